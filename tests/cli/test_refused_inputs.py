"""What can't be used is refused in one line, and nothing is written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medals_rt.bundle.bundle import Bundle
from tests.cli.helpers import SHAPE, Result, assert_one_line, call, write_case


def test_an_annotation_that_does_not_fit(
    run: Callable[..., Result], tmp_path: Path, out: Path
) -> None:
    file = tmp_path / "drawn.npz"
    np.savez(file, segs=np.ones((3, 3, 3), np.uint8), spacing=np.array([2.0, 2.0, 3.0]))
    assert_one_line(run(spatial_prompts=file), 2, "another grid")
    np.savez(file, segs=np.ones(SHAPE, np.uint8), spacing=np.array([2.0, 2.0, 5.0]))
    assert_one_line(run(spatial_prompts=file), 2, "another grid")
    np.savez(file, segs=np.full(SHAPE, 9, np.uint8), spacing=np.array([2.0, 2.0, 3.0]))
    assert_one_line(run(spatial_prompts=file), 2, "no prompt names", "9")
    assert not list(out.iterdir())


BROKEN_CASES = {
    "no image": ({"imgs": None}, "imgs"),
    "no spacing": ({"spacing": None}, "spacing"),
    "two dimensions": ({"imgs": np.zeros((4, 4))}, "(4, 4)"),
    "four dimensions": ({"imgs": np.zeros((2, 4, 4, 4))}, "(2, 4, 4, 4)"),
    "empty": ({"imgs": np.zeros((0, 4, 4))}, "empty"),
    "NaN": ({"imgs": np.full(SHAPE, np.nan)}, "NaN"),
    "infinite": ({"imgs": np.full(SHAPE, np.inf)}, "infinite"),
    "complex": ({"imgs": np.zeros(SHAPE, complex)}, "complex"),
    "empty spacing": ({"spacing": np.array([])}, "spacing"),
    "zero spacing": ({"spacing": np.array([1.0, 0.0, 1.0])}, "spacing"),
    "negative spacing": ({"spacing": np.array([1.0, 1.0, -1.0])}, "spacing"),
    "NaN spacing": ({"spacing": np.array([1.0, 1.0, np.nan])}, "spacing"),
    "no prompts": ({"text_prompts": None}, "--prompts"),
    "no class": ({"text_prompts": {"instance_label": 0}}, "prompt"),
    "unknown class": ({"text_prompts": {"1": "Livre in CT", "instance_label": 0}}, "Liver"),
    "no label": ({"text_prompts": {"liver": "Liver in CT"}}, "'liver'"),
    "one label twice": ({"text_prompts": {"1": "Liver in CT", "01": "Spleen in CT"}}, "twice"),
    "two labels of one class": ({"text_prompts": {"1": "Liver in CT", "2": "liver, CT"}}, "both"),
    "two modalities": ({"text_prompts": {"1": "Liver in CT", "2": "Spleen in MRI"}}, "modalities"),
    "bad kind": ({"text_prompts": {"1": "Liver in CT", "instance_label": 2}}, "instance_label"),
    "not in the bundle": ({"text_prompts": {"1": "Spleen in CT"}}, "Spleen"),
}


@pytest.mark.parametrize("name", BROKEN_CASES)
def test_a_case_that_cannot_be_used(
    run: Callable[..., Result], tmp_path: Path, out: Path, name: str
) -> None:
    changes, word = BROKEN_CASES[name]
    if isinstance(changes.get("text_prompts"), dict):
        changes = {"text_prompts": np.array(changes["text_prompts"], dtype=object)}
    broken = write_case(tmp_path / "broken.npz", **changes)
    assert_one_line(run(input=broken), 2, word)
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
    assert_one_line(run(input=write_case(tmp_path / "evil.npz", text_prompts=prompts)), 2)
    assert not made.exists()
    assert not list(out.iterdir())


def test_files_that_cannot_be_used(
    run: Callable[..., Result], case: Path, tmp_path: Path, out: Path
) -> None:
    before = case.read_bytes()
    assert_one_line(run(input=tmp_path / "missing.npz"), 2, "missing.npz")
    assert_one_line(run(output=case), 2, "overwrite")
    assert_one_line(run(report=out / "seg.npz"), 2, "different names")
    assert_one_line(run(output=out / "seg.tiff"), 2, ".nii.gz")
    assert_one_line(run(output=case / "below" / "seg.npz"), 2, "can't write")
    assert_one_line(run(report=out), 2, "folder")
    assert_one_line(run(prompts=tmp_path / "missing.json"), 2, "missing.json")
    assert_one_line(run("--prompt", "liver on CT", prompts=case), 2, "not both")
    assert_one_line(run(bundle=tmp_path / "missing"), 2, "missing")
    (tmp_path / "noise.npz").write_bytes(b"noise")
    assert_one_line(run(input=tmp_path / "noise.npz"), 2, "noise.npz")
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
    assert_one_line(run(bundle=copy), 2, "SHA-256", graph.name)
    assert_one_line(call("info", "--bundle", copy), 2, "SHA-256")
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
    result = call(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr
