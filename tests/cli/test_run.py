"""`medals-rt run`: what is written and said."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medals_rt.common.errors import InputError, PromptError
from tests.cli.helpers import (
    LIVER,
    SHAPE,
    Result,
    assert_one_line,
    assert_refused,
    call,
    error_of,
)


def test_run_writes_what_was_asked_for(run: Callable[..., Result], out: Path) -> None:
    files = {"report": out / "new" / "report.json", "preview": out / "new" / "preview.png"}
    result = run(**files)
    assert result.exit_code == 0, result.output
    assert "Liver" in result.stdout
    # no progress bar where there is no terminal
    assert all(line.startswith(("note: ", "warning: ")) for line in result.stderr.splitlines())
    with np.load(out / "seg.npz", allow_pickle=True) as found:
        assert found["segs"].shape == SHAPE
        assert set(np.unique(found["segs"])) <= {0, 1}
        assert found["spacing"].tolist() == [2.0, 2.0, 3.0]
        assert found["text_prompts"].item() == LIVER
        voxels = int((found["segs"] == 1).sum())
    report = json.loads(files["report"].read_text(encoding="utf-8"))
    (liver,) = report["classes"]
    assert (liver["name"], liver["voxels"]) == ("Liver", voxels)
    assert liver["volume_ml"] == pytest.approx(voxels * 12 / 1000)
    assert {stage["name"] for stage in report["stages"]} >= {"coarse"}
    assert report["seconds_per_class"] > 0
    assert report["limits"]["challenge_seconds_per_class"] == 60
    assert files["preview"].read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in out.rglob("*") if path.is_file()) == [
        "preview.png",
        "report.json",
        "seg.npz",
    ]


def test_run_is_repeatable_and_quiet(run: Callable[..., Result], out: Path) -> None:
    for name in ("a.npz", "b.npz"):
        result = run("--quiet", output=out / name, seed=7)
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    with np.load(out / "a.npz") as a, np.load(out / "b.npz") as b:
        np.testing.assert_array_equal(a["segs"], b["segs"])


def test_prompts_from_a_file_and_from_the_line(
    run: Callable[..., Result], tmp_path: Path, out: Path
) -> None:
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps({"5": "Right kidney in CT", "instance_label": 0}), encoding="utf-8")
    assert run(prompts=file).exit_code == 0
    with np.load(out / "seg.npz") as found:
        assert set(np.unique(found["segs"])) <= {0, 5}
    result = run("--prompt", "liver on CT", "--prompt", "right kidney on CT", quiet=None)
    assert result.exit_code == 0, result.output
    assert "Right kidney" in result.stdout


def test_lesions_and_the_release_preset(run: Callable[..., Result], out: Path) -> None:
    lesion = ("--prompt", "adrenocortical carcinoma on CT", "--kind", "lesion")
    result = run(*lesion)
    assert result.exit_code == 0, result.output
    assert "lesions" in result.stdout
    with np.load(out / "seg.npz") as found:
        assert found["instances"].shape == SHAPE
    assert run(*lesion, preset="release").exit_code == 0
    with np.load(out / "seg.npz") as found:
        assert "instances" not in found
        assert set(np.unique(found["segs"])) <= {0, 1}


def test_organs_and_lesions_in_one_run(run: Callable[..., Result], out: Path) -> None:
    words = ("--prompt", "liver on CT", "--lesion", "adrenocortical carcinoma")
    result = run(*words, report=out / "r.json")
    assert result.exit_code == 0, result.output
    report = json.loads((out / "r.json").read_text(encoding="utf-8"))
    assert report["stages"][0]["name"] == "organs: coarse"
    assert [each["label"] for each in report["classes"]] == [1, 2]
    refused = run(*words, preset="release")
    assert_refused(refused, PromptError)
    assert error_of(refused).code == "lesions-without-labels"
    alone = run("--lesion", "adrenocortical carcinoma on CT", output=out / "alone.npz")
    assert alone.exit_code == 0, alone.output
    with np.load(out / "alone.npz") as found:
        assert "instances" in found


def test_hybrid_mode(run: Callable[..., Result], tmp_path: Path) -> None:
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[2:9, 4:15, 4:15] = 1
    file = tmp_path / "drawn.npz"
    np.savez(file, segs=drawn, spacing=np.array([2.0, 2.0, 3.0]))
    for refinement in ("masked", "unmasked"):
        result = run(spatial_prompts=file, refinement=refinement)
        assert result.exit_code == 0, result.output


def test_a_corrected_result(run: Callable[..., Result], out: Path, tmp_path: Path) -> None:
    """`--corrects` shows it to the windows that decide about it, as the library does."""
    first, drawn = tmp_path / "first.npz", tmp_path / "drawn.npz"
    assert run(output=first).exit_code == 0
    with np.load(first) as found:
        labels, spacing = found["segs"], found["spacing"]
    corrected = labels.copy()
    corrected[:2, :3, :3] = 1 - (corrected[:2, :3, :3] > 0)
    np.savez(drawn, segs=corrected, spacing=spacing)
    report = out / "r.json"
    words = {"corrects": first, "spatial_prompts": drawn, "output": out / "second.npz"}
    result = run(report=report, **words)
    assert result.exit_code == 0, result.output
    assert "the fine stage, those that decide about what was corrected" in result.output
    found = json.loads(report.read_text(encoding="utf-8"))
    assert 0 < found["stages"][-1]["windows_corrected"] < found["stages"][-1]["windows"]
    (note,) = (each["text"] for each in found["notes"] if each["code"] == "corrects")
    assert note == "drawn.npz corrects 18 voxels of first.npz"
    assert error_of(run("--resample", **words)).code == "correction-resampled"
    words["spatial_prompts"] = first
    refused = run(**words)
    assert error_of(refused).code == "correction-empty"
    words["spatial_prompts"] = drawn
    refused = run(**{**words, "output": first})
    assert error_of(refused).code == "input-overwritten", "the result that is corrected"


def test_a_second_correction_keeps_the_first(
    run: Callable[..., Result], out: Path, tmp_path: Path
) -> None:
    """A file doesn't say what was corrected of it before; the run finds that out."""
    base, drawn, report = tmp_path / "base.npz", tmp_path / "drawn.npz", tmp_path / "r.json"
    assert run(output=base).exit_code == 0

    def corrected(result: Path, output: Path, at: tuple[slice, ...]) -> np.ndarray:
        with np.load(result) as found:
            labels, spacing = found["segs"].copy(), found["spacing"]
        labels[at] = 1 - (labels[at] > 0)
        np.savez(drawn, segs=labels, spacing=spacing)
        done = run(corrects=result, spatial_prompts=drawn, output=output, report=report)
        assert done.exit_code == 0, done.output
        with np.load(output) as found:
            assert np.array_equal(found["segs"][at], labels[at])
            return found["segs"].copy()

    def notes() -> dict[str, str]:
        found = json.loads(report.read_text(encoding="utf-8"))["notes"]
        return {note["code"]: note["severity"] for note in found}

    first, second = np.s_[:2, :3, :3], np.s_[-2:, -3:, -3:]
    once = corrected(base, out / "once.npz", first)
    assert "corrected-before" not in notes()
    twice = corrected(out / "once.npz", out / "twice.npz", second)
    assert np.array_equal(twice[first], once[first])
    assert notes()["corrected-before"] == "warning"
    # What the first changed elsewhere makes no more windows look again than the second alone.
    looked = json.loads(report.read_text(encoding="utf-8"))["stages"][-1]["windows_corrected"]
    corrected(base, out / "alone.npz", second)
    alone = json.loads(report.read_text(encoding="utf-8"))["stages"][-1]["windows_corrected"]
    assert looked == alone


@pytest.mark.parametrize("label", [1, 255, 300])
def test_results_of_any_label_are_corrected_in_little_memory(
    run: Callable[..., Result], tmp_path: Path, label: int
) -> None:
    asked, drawn = tmp_path / "p.json", tmp_path / "drawn.npz"
    asked.write_text(json.dumps({f"{label}": "liver on CT"}), encoding="utf-8")
    words = {"prompts": asked, "max_memory": "500MB"}
    assert run(output=tmp_path / "a.npz", **words).exit_code == 0
    with np.load(tmp_path / "a.npz") as found:
        labels, spacing = found["segs"].copy(), found["spacing"]
    labels[:2, :3, :3] = np.where(labels[:2, :3, :3] > 0, 0, label)
    np.savez(drawn, segs=labels, spacing=spacing)
    files = {"corrects": tmp_path / "a.npz", "spatial_prompts": drawn}
    done = run(output=tmp_path / "b.npz", **files, **words)
    assert done.exit_code == 0, done.output
    with np.load(tmp_path / "b.npz") as found:
        assert np.array_equal(found["segs"][:2, :3, :3], labels[:2, :3, :3])


def test_a_result_that_was_relabeled_is_warned_of_and_stays(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    """Kidneys exchanged by hand look like prompts in another order."""
    words = ("--prompt", "liver on CT", "--prompt", "right kidney on CT")
    first, drawn = tmp_path / "first.npz", tmp_path / "drawn.npz"
    assert run(*words, output=first).exit_code == 0
    with np.load(first) as found:
        segs, spacing = found["segs"], found["spacing"]
    labels = segs.copy()
    assert set(np.unique(labels)) == {0, 1, 2}, "the tiny model finds both"
    labels[0, 0, 0] = 2 if labels[0, 0, 0] == 1 else 1
    np.savez(drawn, segs=labels, spacing=spacing)
    files = {"corrects": first, "spatial_prompts": drawn, "output": tmp_path / "again.npz"}
    by_name = run(*words[2:], *words[:2], **files)  # the result names its labels
    assert by_name.exit_code == 0, by_name.output
    assert "it stays so" not in by_name.stderr
    with np.load(files["output"]) as found:
        assert found["segs"][0, 0, 0] == 3 - labels[0, 0, 0]
    np.savez(first, segs=segs, spacing=spacing)
    result = run(*words[2:], *words[:2], **files)
    assert result.exit_code == 0, result.output
    assert "it stays so" in result.stderr


def test_classes_that_are_added_to_a_corrected_result_are_found(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    liver, both = ("--prompt", "liver on CT"), ("--prompt", "right kidney on CT")
    first, drawn, more = (tmp_path / f"{name}.npz" for name in ("first", "drawn", "more"))
    assert run(*liver, output=first).exit_code == 0
    with np.load(first) as found:
        labels, spacing = found["segs"].copy(), found["spacing"]
    labels[:2, :3, :3] = 1 - (labels[:2, :3, :3] > 0)
    np.savez(drawn, segs=labels, spacing=spacing)
    files = {"corrects": first, "spatial_prompts": drawn, "output": more}
    result = run(*liver, *both, **files)
    assert result.exit_code == 0, result.output
    assert "holds nothing of Right kidney" in result.stderr
    with np.load(more) as found:
        assert 2 in found["segs"]
        assert np.array_equal(found["segs"][:2, :3, :3] == 1, labels[:2, :3, :3] == 1)
    fewer = run(*liver, **{**files, "corrects": more, "output": tmp_path / "fewer.npz"})
    assert fewer.exit_code == 0, fewer.output


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--resample",), "nothing-to-resample"),
        (("--corrects", "result.npz"), "nothing-corrected"),
        (("--statistics", "table.xlsx"), "ending-of-another-format"),
        (("--preview", "picture.JPG"), "ending-of-another-format"),
    ],
)
def test_what_would_be_done_otherwise_than_asked(
    run: Callable[..., Result], words: tuple[str, ...], code: str
) -> None:
    result = run(*words)
    assert_refused(result, InputError)
    assert error_of(result).code == code


@pytest.mark.parametrize("flag", ["--input", "--bundle", "--prompts", "--report"])
def test_an_unset_variable_is_not_the_current_folder(flag: str) -> None:
    result = call("run", flag, "")
    assert_one_line(result, 2, flag, "empty")


def test_a_second_input_is_no_replacement_for_the_first(run: Callable[..., Result]) -> None:
    result = run("--input", "another.npz")
    assert_one_line(result, 2, "--input", "one value, found 2")
