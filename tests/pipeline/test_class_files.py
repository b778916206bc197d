"""A file for each class: names, contents, and what is refused before the network runs."""

import json
from pathlib import Path

import numpy as np
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.choices import KINDS, MODALITIES
from medals_rt.common.errors import InputError
from medals_rt.io.registry import read_labels
from medals_rt.pipeline.class_files import check_class_files, class_files, split_ending
from medals_rt.prompts.classes import ClassKey, classes_of
from medals_rt.prompts.prompt_set import Prompt, PromptSet, class_prompts, parse_prompts
from tests.cli.helpers import Result, call, error_of
from tests.dicom import write_series
from tests.pipeline.batch.helpers import batch, files_below, statuses, write_case


def free_prompts(*texts: str) -> PromptSet:
    """Prompts of free text, whose names are the sentences."""
    return PromptSet(
        tuple(
            Prompt(label, text, ClassKey("CT", "anatomy", text, 0), text)
            for label, text in enumerate(texts, 1)
        )
    )


def named(prompts: PromptSet) -> list[str]:
    return [path.name for path in class_files(Path("to"), prompts, ".nii.gz").values()]


def test_names_are_those_that_users_of_totalsegmentator_know() -> None:
    prompts = parse_prompts({"3": "Left kidney in CT", "1": "Prostate/uterus in CT"})
    assert class_files(Path("to"), prompts, ".nii.gz") == {
        3: Path("to/left_kidney.nii.gz"),
        1: Path("to/prostate_uterus.nii.gz"),
    }


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_class_has_a_name_of_its_own(modality: str) -> None:
    for kind in KINDS:
        if classes_of(modality, kind):
            found = named(class_prompts(modality, kind=kind))
            assert len({name.casefold() for name in found}) == len(found)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("../../etc/passwd", "etc_passwd"),
        ("/absolute", "absolute"),
        ("C:\\temp\\x", "c_temp_x"),
        (".hidden", "hidden"),
        ("a\0b\n", "a_b"),
        ("..", "1"),
        ("肝臓", "1"),
        ("Übergröße", "ubergrosse"),
        ("NUL", "nul_1"),
        ("x" * 400, "x" * 100),
    ],
)
def test_no_name_becomes_a_path(text: str, name: str) -> None:
    assert named(free_prompts(text)) == [f"{name}.nii.gz"]


def test_names_that_would_be_alike_have_their_labels() -> None:
    assert named(free_prompts("cyst!", "cyst?")) == ["cyst_1.nii.gz", "cyst_2.nii.gz"]
    assert named(free_prompts("a!", "a?", "a 1")) == ["a_1.nii.gz", "a_2.nii.gz", "a_1_3.nii.gz"]


def test_only_label_maps_are_split() -> None:
    assert split_ending(Path("a.seg.nrrd")).endswith("nrrd")
    for name in ("a.dcm", "a.rtstruct.dcm", "a.tiff"):
        with pytest.raises(InputError) as caught:
            split_ending(Path(name))
        assert caught.value.code == "split-format"


def test_files_of_others_are_neither_overwritten_nor_passed_over(tmp_path: Path) -> None:
    files = class_files(tmp_path, parse_prompts({"1": "Liver in CT"}), ".npz")
    assert check_class_files(files, set()) == ()
    (tmp_path / "spleen.npz").touch()
    (note,) = check_class_files(files, set())
    assert (note.code, note.severity) == ("split-folder-not-empty", "warning")
    assert "spleen.npz" in note.text
    with pytest.raises(InputError) as caught:
        check_class_files(files, {(tmp_path / "liver.npz").resolve()})
    assert caught.value.code == "class-file-taken"


def split_run(bundle: Bundle, case: Path, output: Path, *more: object) -> Result:
    words = ("run", "--input", case, "--bundle", bundle.folder, "--runner", "onnxruntime")
    return call(*words, "--precision", "fp32", "--output", output, *more)


def test_a_run_with_a_file_for_each_class(tiny_bundle: Bundle, tmp_path: Path) -> None:
    case, folder = write_case(tmp_path / "a.npz"), tmp_path / "classes"
    asked = ("--all", "--modality", "CT", "--split", folder, "--report", tmp_path / "r.json")
    result = split_run(tiny_bundle, case, tmp_path / "s.nii.gz", *asked)
    assert result.exit_code == 0, result.output
    assert f"wrote {folder}" in result.stdout
    together = read_labels(tmp_path / "s.nii.gz").labels_dhw
    assert [path.name for path in sorted(folder.iterdir())] == [
        "liver.nii.gz",
        "right_kidney.nii.gz",
    ]
    for label, name in ((1, "liver"), (2, "right_kidney")):
        apart = read_labels(folder / f"{name}.nii.gz").labels_dhw
        assert np.array_equal(apart, together == label)
    notes = {
        note["code"]
        for note in json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["notes"]
    }
    assert {"classes-not-covered", "other-kind-left-out"} <= notes


@pytest.mark.parametrize(
    ("output", "split", "code"),
    [
        ("s.dcm", "classes", "split-format"),
        ("classes/liver.npz", "classes", "class-file-taken"),
        ("s.npz", ".", "class-file-taken"),
        ("s.npz", "s.npz", "folder-is-a-file"),
    ],
)
def test_what_can_not_be_split_is_found_before_the_model_is_opened(
    tiny_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    output: str,
    split: str,
    code: str,
) -> None:
    monkeypatch.setattr("medals_rt.pipeline.job.open_models", None)
    case = write_case(tmp_path / "liver.npz")
    result = split_run(tiny_bundle, case, tmp_path / output, "--split", tmp_path / split)
    assert result.exit_code == 2
    error = error_of(result)
    assert isinstance(error, InputError)
    assert error.code == code


def test_a_batch_with_a_file_for_each_class(tiny_bundle: Bundle, tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    write_case(scans / "a.npz")
    write_case(scans / "b.npz", 1)
    words = (scans, out, "--no-preview", "--format", "npz", "--group", "Abdominal Organs")
    asked = (*words, "--modality", "CT", "--split")
    result = batch(tiny_bundle.folder, *asked)
    assert result.exit_code == 0, result.output
    for name in ("a", "b"):
        assert {f"{name}.npz", f"{name}/liver.npz", f"{name}/right_kidney.npz"} < set(
            files_below(out)
        )
    assert batch(tiny_bundle.folder, *asked).exit_code == 0
    assert set(statuses(out).values()) == {"kept"}
    (out / "a" / "liver.npz").unlink()
    assert batch(tiny_bundle.folder, *asked).exit_code == 0
    assert statuses(out) == {"a": "done", "b": "kept"}
    assert (out / "a" / "liver.npz").is_file()


def test_a_batch_takes_the_modality_from_its_images(tiny_bundle: Bundle, tmp_path: Path) -> None:
    write_series(
        tmp_path / "ct",
        np.arange(3456, dtype=np.int16).reshape(6, 24, 24),
        np.diag([2.0, 2.0, 3.0, 1.0]),
    )
    words = (tmp_path / "ct", tmp_path / "out", "--no-preview", "--format", "nii.gz", "--split")
    asked = (*words, "--prompt", "liver", "--group", "kidneys")
    result = batch(tiny_bundle.folder, *asked)
    assert result.exit_code == 0, result.output
    assert {"ct/liver.nii.gz", "ct/right_kidney.nii.gz"} < set(files_below(tmp_path / "out"))
    assert batch(tiny_bundle.folder, *asked).exit_code == 0
    assert statuses(tmp_path / "out") == {"ct": "kept"}


def test_a_case_among_the_classes_of_another(tiny_bundle: Bundle, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    write_case(scans / "a.npz")
    write_case(scans / "a" / "liver.npz")
    result = batch(tiny_bundle.folder, scans, tmp_path / "out", "--no-preview", "--split")
    error = error_of(result)
    assert isinstance(error, InputError)
    assert error.code == "results-alike"
