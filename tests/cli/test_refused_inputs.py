"""What can't be used is refused in one line, and nothing is written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.errors import (
    BundleError,
    CaseError,
    InputError,
    MissingFileError,
    PromptError,
)
from tests.cli.helpers import (
    SHAPE,
    Result,
    assert_one_line,
    assert_refused,
    call,
    error_of,
    write_case,
)


def test_an_annotation_that_does_not_fit(
    run: Callable[..., Result], tmp_path: Path, out: Path
) -> None:
    file = tmp_path / "drawn.npz"
    np.savez(file, segs=np.ones((3, 3, 3), np.uint8), spacing=np.array([2.0, 2.0, 3.0]))
    assert_refused(run(spatial_prompts=file), CaseError)
    np.savez(file, segs=np.ones(SHAPE, np.uint8), spacing=np.array([2.0, 2.0, 5.0]))
    assert_refused(run(spatial_prompts=file), CaseError)
    np.savez(file, segs=np.full(SHAPE, 9, np.uint8), spacing=np.array([2.0, 2.0, 3.0]))
    assert_refused(run(spatial_prompts=file), InputError)
    assert not list(out.iterdir())


BROKEN_CASES = {
    "no image": ({"imgs": None}, CaseError),
    "no spacing": ({"spacing": None}, CaseError),
    "two dimensions": ({"imgs": np.zeros((4, 4))}, CaseError),
    "four dimensions": ({"imgs": np.zeros((2, 4, 4, 4))}, CaseError),
    "empty": ({"imgs": np.zeros((0, 4, 4))}, CaseError),
    "NaN": ({"imgs": np.full(SHAPE, np.nan)}, CaseError),
    "infinite": ({"imgs": np.full(SHAPE, np.inf)}, CaseError),
    "complex": ({"imgs": np.zeros(SHAPE, complex)}, CaseError),
    "empty spacing": ({"spacing": np.array([])}, CaseError),
    "zero spacing": ({"spacing": np.array([1.0, 0.0, 1.0])}, CaseError),
    "negative spacing": ({"spacing": np.array([1.0, 1.0, -1.0])}, CaseError),
    "NaN spacing": ({"spacing": np.array([1.0, 1.0, np.nan])}, CaseError),
    "no prompts": ({"text_prompts": None}, PromptError),
    "no class": ({"text_prompts": {"instance_label": 0}}, PromptError),
    "unknown class": ({"text_prompts": {"1": "Livre in CT", "instance_label": 0}}, PromptError),
    "no label": ({"text_prompts": {"liver": "Liver in CT"}}, PromptError),
    "one label twice": ({"text_prompts": {"1": "Liver in CT", "01": "Spleen in CT"}}, PromptError),
    "two labels of one class": (
        {"text_prompts": {"1": "Liver in CT", "2": "liver, CT"}},
        PromptError,
    ),
    "two modalities": ({"text_prompts": {"1": "Liver in CT", "2": "Spleen in MRI"}}, PromptError),
    "bad kind": ({"text_prompts": {"1": "Liver in CT", "instance_label": 2}}, PromptError),
    "not in the bundle": ({"text_prompts": {"1": "Spleen in CT"}}, BundleError),
}


@pytest.mark.parametrize("name", BROKEN_CASES)
def test_a_case_that_cannot_be_used(
    run: Callable[..., Result], tmp_path: Path, out: Path, name: str
) -> None:
    changes, kind = BROKEN_CASES[name]
    if isinstance(changes.get("text_prompts"), dict):
        changes = {"text_prompts": np.array(changes["text_prompts"], dtype=object)}
    broken = write_case(tmp_path / "broken.npz", **changes)
    assert_refused(run(input=broken), kind)
    assert not list(out.iterdir())


class Malice:
    """Unpickled the usual way, this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (str(self.path), "w"))


def test_a_pickle_runs_nothing(run: Callable[..., Result], tmp_path: Path, out: Path) -> None:
    made = tmp_path / "made"
    prompts = np.array({"1": Malice(made)}, dtype=object)
    assert_refused(run(input=write_case(tmp_path / "evil.npz", text_prompts=prompts)), InputError)
    assert not made.exists()
    assert not list(out.iterdir())


def test_files_that_cannot_be_used(
    run: Callable[..., Result], case: Path, tmp_path: Path, out: Path
) -> None:
    before = case.read_bytes()
    (tmp_path / "noise.npz").write_bytes(b"noise")
    for changes, kind in (
        ({"input": tmp_path / "missing.npz"}, MissingFileError),
        ({"input": tmp_path / "noise.npz"}, CaseError),
        ({"output": case}, InputError),
        ({"output": out / "seg.tiff"}, InputError),
        ({"output": case / "below" / "seg.npz"}, InputError),
        ({"report": out / "seg.npz"}, InputError),
        ({"report": out}, InputError),
        ({"prompts": tmp_path / "missing.json"}, MissingFileError),
        ({"bundle": tmp_path / "missing"}, MissingFileError),
    ):
        assert_refused(run(**changes), kind)
    assert_refused(run("--prompt", "liver on CT", prompts=case), PromptError)
    assert case.read_bytes() == before
    assert not list(out.iterdir())


def test_a_damaged_bundle(
    run: Callable[..., Result], tiny_bundle: Bundle, tmp_path: Path, out: Path
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle.folder, copy)
    graph = next(copy.rglob("*.onnx"))
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    assert_refused(run(bundle=copy), BundleError)
    assert_refused(call("info", "--bundle", copy), BundleError)
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "--input"],
        ["run", "--input", "x.npz", "--nonsense"],
        ["run", "--input", "x.npz", "--preset", "newest"],
        ["run", "--input", "x.npz", "--seed", "-1"],
        ["run", "--input", "x.npz", "--threads", "0"],
        ["run", "--input", "x.npz", "--runner", "abacus"],
        ["evaluate", "one"],
        ["nonsense"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    assert_one_line(call(*arguments), 2)


def test_a_file_where_a_folder_is_wanted(run: Callable[..., Result], case: Path, out: Path) -> None:
    for option in ("split", "probabilities"):
        result = run(**{option: case})
        assert_refused(result, InputError)
        assert error_of(result).code == "folder-is-a-file"
    assert not list(out.iterdir())


def test_a_batch_of_reports_about_no_dicom(case: Path, tmp_path: Path) -> None:
    result = call("batch", case, tmp_path / "results", "--sr", "--no-preview")
    assert_refused(result, InputError)
    assert error_of(result).code == "report-without-seg"
    assert "--format dcm" in result.stderr


def test_layers_of_no_graph() -> None:
    result = call("verify", "--layers", "--cases-only")
    assert_refused(result, InputError)
    assert error_of(result).code == "layers-without-graphs"
