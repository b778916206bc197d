"""A batch that is run again: what is finished is kept, what changed is done again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import file_sha256
from medals_rt.pipeline.batch import run as batch_run
from medals_rt.pipeline.batch.records import RECORD_FORMAT
from medals_rt.pipeline.options import RunOptions
from tests.pipeline.batch.helpers import KIDNEY, Result, batch, statuses, write_case


def test_a_second_run_keeps_all_and_opens_no_model(
    run: Callable[..., Result], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run().exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("case*")}

    def refuse(_: RunOptions) -> None:
        raise AssertionError

    monkeypatch.setattr(batch_run, "open_models", refuse)
    result = run()
    assert result.exit_code == 0, result.output
    assert set(statuses(out).values()) == {"kept"}
    assert "3 finished before" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in out.rglob("case*")} == before


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def outdate(path: Path) -> None:
    path.write_text(
        path.read_text(encoding="utf-8").replace(f'"format": {RECORD_FORMAT}', '"format": 2'),
        encoding="utf-8",
    )


CHANGES = {
    "another input": ("scans/case1.npz", lambda path: write_case(path, 99, KIDNEY)),
    "a result is gone": ("out/case1.npz", Path.unlink),
    "a report is gone": ("out/reports/case1.json", Path.unlink),
    "a record of another format": ("out/.medals-rt/case1.json", outdate),
}


def test_only_what_changed_is_run_again(
    run: Callable[..., Result], tmp_path: Path, out: Path
) -> None:
    assert run().exit_code == 0
    for what, (name, make) in CHANGES.items():
        make(tmp_path / name)
        assert run().exit_code == 0, what
        assert statuses(out) == {"case0": "kept", "case1": "done", "case2": "kept"}, what
    assert run().exit_code == 0
    assert set(statuses(out).values()) == {"kept"}


@pytest.mark.parametrize("name", ["case1.npz", "reports/case1.json"])
def test_what_somebody_changed_stays(run: Callable[..., Result], out: Path, name: str) -> None:
    """With its case's entry where nothing else has changed; else the case isn't made."""
    assert run().exit_code == 0
    spoil(out / name)
    changed = (out / name).read_bytes()
    again = run()
    assert again.exit_code == 0
    assert set(statuses(out).values()) == {"kept"}
    assert f"case1: {name} was changed since it was written" in again.stderr
    for _ in range(2):  # also once it is noted that it failed
        otherwise = run("--seed", "7")
        assert otherwise.exit_code == 1
        assert statuses(out) == {"case0": ANY, "case1": "failed", "case2": ANY}
        assert f"{name} was changed since" in otherwise.stderr
        assert (out / name).read_bytes() == changed
        assert (out / "case1.npz").exists()
    assert run().exit_code == 0  # as at first
    assert set(statuses(out).values()) == {"done", "kept"}
    assert statuses(out)["case1"] == "kept"
    (out / name).rename(out / "mine")
    assert run("--seed", "7").exit_code == 0
    assert statuses(out)["case1"] == "done"


@pytest.mark.parametrize("words", [(), ("--split", "--format", "nii.gz")])
def test_files_that_no_batch_wrote_are_not_overwritten(
    run: Callable[..., Result], out: Path, words: tuple[str, ...]
) -> None:
    """Such as labels that somebody drew, in a folder of labels."""
    taken = out / ("case1/right_kidney.nii.gz" if words else "case1.npz")
    taken.parent.mkdir(parents=True)
    taken.write_bytes(b"drawn")
    result = run(*words)
    assert result.exit_code == 1
    assert statuses(out) == {"case0": "done", "case1": "failed", "case2": "done"}
    assert f"{taken.relative_to(out)} was not written by a batch" in result.stderr
    assert taken.read_bytes() == b"drawn"
    taken.unlink()
    assert run(*words).exit_code == 0
    assert statuses(out) == {"case0": "kept", "case1": "done", "case2": "kept"}


def test_a_damaged_record_makes_files_nobodys(run: Callable[..., Result], out: Path) -> None:
    assert run().exit_code == 0
    (out / ".medals-rt" / "case1.json").write_text("{", encoding="utf-8")
    assert run().exit_code == 1
    assert statuses(out)["case1"] == "failed"


@pytest.fixture
def half_written(
    run: Callable[..., Result], out: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Leave cases as a process does that is killed when their files are there, the record not."""

    def leave(*words: str) -> Path:
        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(batch_run, "remember", killed)
            assert run(*words).exit_code == 130
        (mark,) = (out / ".medals-rt").glob("*.writing")
        assert mark.name == "case0.json.writing"
        return mark

    return leave


def test_what_a_killed_process_left_is_written_over(
    run: Callable[..., Result], out: Path, half_written: Callable[..., Path]
) -> None:
    """Also what the second of two left, or both, in the place of a whole result or of none."""
    for seed, before in enumerate((half_written, half_written, run, half_written)):
        before("--seed", str(seed))
    mark = half_written("--format", "nii.gz")
    assert run().exit_code == 0
    assert statuses(out)["case0"] == "done"
    assert [path.name for path in mark.parent.glob("case0*")] == ["case0.json"]
    assert run("--format", "nii.gz").exit_code == 0  # whose file is the batch's still


def test_what_somebody_puts_in_the_place_of_a_half_written_file_stays(
    run: Callable[..., Result], out: Path, half_written: Callable[..., Path]
) -> None:
    half_written()
    (out / "case0.npz").write_bytes(b"drawn")
    result = run()
    assert result.exit_code == 1
    assert "case0.npz was not written by a batch" in result.stderr
    assert (out / "case0.npz").read_bytes() == b"drawn"
    (out / "case0.npz").unlink()
    assert run().exit_code == 0
    assert statuses(out)["case0"] == "done"


def test_every_file_is_known_before_it_is_there(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the mark, which knows the content of whatever a case can get."""
    write_case(tmp_path / "scans" / "a.npz", prompts=None)
    out, seen = tmp_path / "out", {}
    remember = batch_run.remember

    def look(*given: Any) -> None:
        seen.update(json.loads((out / ".medals-rt" / "a.json.writing").read_text("utf-8")))
        remember(*given)

    monkeypatch.setattr(batch_run, "remember", look)
    words = ("--modality", "CT", "--prompt", "liver", "--lesion", "adrenocortical carcinoma")
    more = ("--split", "--probabilities", "--instances", "--format", "nii.gz")
    result = batch(tiny_bundle.folder, tmp_path / "scans", out, *words, *more)
    assert result.exit_code == 0, result.output
    record = json.loads((out / ".medals-rt" / "a.json").read_text("utf-8"))
    assert seen["files"] == record["files"]
    assert len(seen["files"]) == 8
    assert {file_sha256(path) for path in out.rglob("a*/*.nii.gz")} <= {*seen["files"].values()}


def test_what_a_killed_process_left_is_no_result_of_a_case_that_fails(
    run: Callable[..., Result], scans: Path, out: Path
) -> None:
    assert run().exit_code == 0
    spoil(out / "case1.npz")
    mark = out / ".medals-rt" / "case1.json.writing"
    left = {"files": {"labels": file_sha256(out / "case1.npz")}, "ending": ".npz"}
    mark.write_text(json.dumps(left), encoding="utf-8")
    (scans / "case1.npz").write_bytes(b"damaged")
    assert run().exit_code == 1
    assert not mark.exists()
    assert not (out / "case1.npz").exists()
    assert not (out / "reports" / "case1.json").exists()
    (out / "case1.npz").write_bytes(b"drawn")
    write_case(scans / "case1.npz", 1, KIDNEY)
    assert run().exit_code == 1
    assert (out / "case1.npz").read_bytes() == b"drawn"


def test_a_record_speaks_of_no_file_of_another_ending(
    run: Callable[..., Result], scans: Path, out: Path
) -> None:
    """The first format's file is of the first scan, of which the newest record knows nothing."""
    assert run("--format", "nii.gz").exit_code == 0
    first = (out / "case1.nii.gz").read_bytes()
    write_case(scans / "case1.npz", 99, KIDNEY)
    assert run("--format", "nrrd").exit_code == 0
    assert run("--format", "nii.gz").exit_code == 0
    assert statuses(out)["case1"] == "done"
    assert (out / "case1.nii.gz").read_bytes() != first


def test_files_of_earlier_options_are_still_the_batchs(
    run: Callable[..., Result], tiny_bundle: Bundle, scans: Path, out: Path
) -> None:
    words = (tiny_bundle.folder, scans, out)
    for more in (("--split",), ("--seed", "7", "--no-preview"), ("--split", "--seed", "3"), ()):
        assert batch(*words, *more).exit_code == 0, more
    assert set(statuses(out).values()) == {"done"}
    (scans / "case1.npz").write_bytes(b"damaged")
    assert run().exit_code == 1
    left = {path.name for path in out.rglob("*") if path.is_file() and "case1" in str(path)}
    assert left == {"case1.json"}  # its record
    assert (out / "case0").is_dir()


def test_a_changed_result_beside_its_scan_is_no_scan(tiny_bundle: Bundle, scans: Path) -> None:
    words = (tiny_bundle.folder, scans, scans, "--format", "nii.gz", "--no-preview")
    assert batch(*words).exit_code == 0
    spoil(scans / "case1.nii.gz")
    again = batch(*words)
    assert again.exit_code == 0, again.output
    assert statuses(scans) == {f"case{number}": "kept" for number in range(3)}
    assert "case1.nii.gz was changed" in again.stderr


def test_a_case_of_the_same_name_elsewhere_takes_the_place_with_a_warning(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    for number, patient in enumerate(("anna", "berta")):
        write_case(tmp_path / patient / "ct.npz", number, KIDNEY)
    out = tmp_path / "out"
    assert batch(tiny_bundle.folder, tmp_path / "anna", out, "--no-preview").exit_code == 0
    result = batch(tiny_bundle.folder, tmp_path / "berta", out, "--no-preview")
    assert result.exit_code == 0
    assert f"an earlier batch's result, of {tmp_path / 'anna' / 'ct.npz'}, is" in result.stderr


def test_a_renamed_case_is_not_taken_for_another(
    run: Callable[..., Result], scans: Path, out: Path
) -> None:
    assert run().exit_code == 0
    (scans / "case0.npz").replace(scans / "swap.npz")
    (scans / "case2.npz").replace(scans / "case0.npz")
    (scans / "swap.npz").replace(scans / "case2.npz")
    before = (out / "case0.npz").read_bytes()
    assert run().exit_code == 0
    assert statuses(out) == {"case0": "done", "case1": "kept", "case2": "done"}
    assert (out / "case2.npz").read_bytes() == before


def test_options_that_decide_a_result_count(
    run: Callable[..., Result], tiny_bundle: Bundle, tmp_path: Path, scans: Path, out: Path
) -> None:
    assert run().exit_code == 0
    copy = tmp_path / "moved"
    shutil.copytree(tiny_bundle.folder, copy)
    assert batch(copy, scans, out, "--no-preview", "--threads", "1").exit_code == 0
    assert set(statuses(out).values()) == {"kept"}
    for words in (
        ["--seed", "7"],
        ["--refinement", "none"],
        ["--postprocess", "off"],
        ["--prompt", "liver in CT"],
        ["--prompt", "liver in CT", "--lesion", "adrenocortical carcinoma"],
    ):
        assert run(*words).exit_code == 0
        assert set(statuses(out).values()) == {"done"}


def test_the_version_counts(
    run: Callable[..., Result], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run().exit_code == 0
    monkeypatch.setattr("medals_rt.pipeline.batch.records.VERSION", "0.0.0")
    assert run().exit_code == 0
    assert set(statuses(out).values()) == {"done"}


def test_results_of_other_classes_are_replaced_with_a_warning(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    write_case(tmp_path / "scans" / "case.npz", 1, None)
    words = (tmp_path / "scans", tmp_path / "out", "--no-preview", "--modality", "CT", "--prompt")
    assert batch(tiny_bundle.folder, *words, "liver").exit_code == 0
    again = batch(tiny_bundle.folder, *words, "right kidney")
    assert again.exit_code == 0, again.output
    assert "earlier batch's result, which had Liver, is replaced" in again.stderr
    assert "earlier batch" not in batch(tiny_bundle.folder, *words, "right kidney").stderr


@pytest.mark.parametrize("more", [("--split", "--format", "nii.gz"), ("--format", "nrrd")])
def test_results_are_replaced_with_a_warning_also_where_other_files_are_asked_for(
    tiny_bundle: Bundle, tmp_path: Path, more: tuple[str, ...]
) -> None:
    write_case(tmp_path / "scans" / "case.npz", 1, None)
    words = (tmp_path / "scans", tmp_path / "out", "--no-preview", "--modality", "CT", "--prompt")
    first = batch(tiny_bundle.folder, *words, "liver", "--format", "nii.gz")
    assert first.exit_code == 0, first.output
    again = batch(tiny_bundle.folder, *words, "right kidney", *more)
    assert again.exit_code == 0, again.output
    assert "earlier batch's result, which had Liver," in again.stderr
    assert ("case.nii.gz stays" in again.stderr) == ("nrrd" in more)


def test_what_stays_of_an_earlier_result_is_told(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """A warning where it was made otherwise, a remark where only other files are asked for."""
    write_case(tmp_path / "scans" / "case.npz", 1, None)
    words = (tmp_path / "scans", tmp_path / "out", "--modality", "CT", "--prompt")
    everything = (*words, "liver", "--format", "nii.gz", "--split", "--probabilities")
    assert batch(tiny_bundle.folder, *everything).exit_code == 0
    alike = batch(tiny_bundle.folder, *words, "liver", "--format", "nrrd", "--split")
    assert alike.exit_code == 0, alike.output
    report = json.loads((tmp_path / "out" / "reports" / "case.json").read_text("utf-8"))
    (told,) = [each for each in report["notes"] if each["code"] == "earlier-files-stay"]
    assert told["severity"] != "warning"
    assert "case.nii.gz, case_probabilities/liver.nii.gz stay" in told["text"]
    other = batch(
        tiny_bundle.folder, *words, "right kidney", "--format", "nrrd", "--no-preview", "--split"
    )
    assert other.exit_code == 0, other.output
    assert "which had Liver, is replaced" in other.stderr
    assert "which had Liver, previews/case.png, case.nii.gz" in other.stderr
    assert "files that are not of this result" in other.stderr


def test_of_a_case_that_fails_nothing_stays_as_its_result(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """Not what other options left either; what somebody has changed since is theirs."""
    scan = write_case(tmp_path / "scans" / "case.npz", 1, None)
    words = (tmp_path / "scans", tmp_path / "out", "--modality", "CT", "--prompt", "liver")
    assert batch(tiny_bundle.folder, *words, "--format", "nii.gz", "--split").exit_code == 0
    (of_class,) = (tmp_path / "out" / "case").iterdir()
    (tmp_path / "out" / "previews" / "case.png").write_bytes(b"drawn over")
    scan.write_bytes(b"no scan any more")
    assert batch(tiny_bundle.folder, *words, "--format", "nrrd").exit_code != 0
    left = {path.name for path in (tmp_path / "out").rglob("case*") if path.is_file()}
    assert "case.nii.gz" not in left
    assert not of_class.exists()
    assert "case.png" in left


@pytest.mark.parametrize("own", ["scans", "scans/out"])
def test_results_among_the_scans_are_kept(
    tiny_bundle: Bundle, tmp_path: Path, scans: Path, own: str
) -> None:
    inputs = {"scans": scans, "scans/out": scans / "*"}[own]
    words = (inputs, tmp_path / own, "--format", "nii.gz", "--split", "--quiet")
    for status in ("done", "kept"):
        result = batch(tiny_bundle.folder, *words)
        assert (result.exit_code, result.stderr) == (0, "")
        assert statuses(tmp_path / own) == {f"case{number}": status for number in range(3)}


def test_a_record_that_lies_where_a_folder_must_be(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Of an earlier batch, whose case is gone: told in one line."""
    scans, out = tmp_path / "scans", tmp_path / "out"
    write_case(scans / "a.json" / "x.npz")
    (out / ".medals-rt").mkdir(parents=True)
    (out / ".medals-rt" / "a.json").write_text("{}", encoding="utf-8")
    result = batch(tiny_bundle.folder, scans, out, "--no-preview")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert "can't write" in result.stderr
