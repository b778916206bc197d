"""What tells the content of a batch's inputs, also of those of several files, and among results."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from medals_rt.bundle.bundle import Bundle
from medals_rt.io.registry import read_case
from medals_rt.pipeline.batch.inputs import input_sizes, inputs_sha256
from medals_rt.pipeline.batch.plan import BatchPlan
from medals_rt.pipeline.batch.shared_cells import claims_file, share_folders
from tests.dicom import write_series
from tests.pipeline.batch.helpers import SHAPE, batch, plan, statuses, write_case, write_json


def write_scan(path: Path, seed: int = 0) -> Path:
    """Write an image of noise in the format of its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(-200, 300, SHAPE).astype(np.int16)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(image), str(path))
    return path


def write_slices(folder: Path, seed: int = 0) -> Path:
    """Write a DICOM series of noise."""
    image = np.random.default_rng(seed).integers(-200, 300, SHAPE).astype(np.int16)
    write_series(folder, image, np.diag([2.0, 2.0, 3.0, 1.0]))
    return folder


def told(found: BatchPlan) -> tuple[str | None, list[list[object]]]:
    return inputs_sha256(found.cases[0]), input_sizes(found)


@pytest.mark.parametrize(("name", "data"), [("a.mhd", "a.raw"), ("a.nhdr", "a.raw")])
@pytest.mark.parametrize("drawn", [False, True])
def test_voxels_beside_a_header_count(tmp_path: Path, name: str, data: str, drawn: bool) -> None:
    """Also of a drawing; nothing is known of the content where they are gone."""
    row = {"input": name, "sentences": ["Liver in abdominal CT"]}
    if drawn:
        write_case(tmp_path / "scans" / "b.npz")
        row = {**row, "input": "b.npz", "spatial_prompts": name}
    path = write_scan(tmp_path / "scans" / name)
    jobs = write_json(tmp_path / "jobs.json", [row])
    found = plan(tmp_path / "scans", out=tmp_path / "out", jobs=jobs)
    content, sizes = told(found)
    header = path.read_bytes()
    voxels = path.with_name(data)
    voxels.write_bytes(voxels.read_bytes()[::-1])
    assert told(found)[0] not in {content, None}
    voxels.write_bytes(b"\0" + voxels.read_bytes())
    assert told(found)[1] != sizes
    voxels.unlink()
    assert told(found)[0] is None
    assert path.read_bytes() == header


def test_replaced_voxels_are_segmented_again(tiny_bundle: Bundle, tmp_path: Path) -> None:
    scan, out = write_scan(tmp_path / "scans" / "a.mhd"), tmp_path / "out"
    words = (tiny_bundle.folder, tmp_path / "scans", out, "--no-preview", "--prompt", "Liver in CT")
    for seed, status in ((0, "done"), (0, "kept"), (1, "done")):
        write_scan(scan, seed)
        result = batch(*words)
        assert result.exit_code == 0, result.output
        assert statuses(out) == {"a": status}


@pytest.mark.parametrize("place", ["results", "deep/results", "."])
@pytest.mark.parametrize("ending", ["nii.gz", "dcm"])
def test_results_among_the_slices_are_none_of_the_case(
    tiny_bundle: Bundle, tmp_path: Path, place: str, ending: str
) -> None:
    slices = write_slices(tmp_path / "anna")
    out = slices / place
    words = ("--format", ending, "--no-preview", "--prompt", "Liver in CT")
    before = told(plan(slices, out=out, format=ending))
    for status in ("done", "kept", "kept"):
        result = batch(tiny_bundle.folder, slices, out, *words)
        assert result.exit_code == 0, result.output
        assert statuses(out) == {"anna": status}
    assert told(plan(slices, out=out, format=ending)) == before
    write_slices(slices, seed=1)
    result = batch(tiny_bundle.folder, slices, out, *words)
    assert result.exit_code == 0, result.output
    assert statuses(out) == {"anna": "done"}


def test_folders_of_as_many_files_are_told_apart_by_their_sizes(tmp_path: Path) -> None:
    sizes = []
    for name in ("anna", "berta"):
        folder = write_slices(tmp_path / name / "ct")
        if name == "berta":
            slice_of = next(folder.iterdir())
            slice_of.write_bytes(slice_of.read_bytes() + b"\0\0")
        sizes.append(input_sizes(plan(tmp_path / name, out=tmp_path / "out")))
    ((((count, one),),), (((other_count, other),),)) = sizes
    assert (count, other) == (other_count, one + 2) == (SHAPE[0], other)


@pytest.mark.skipif(os.name != "posix", reason="shared locks are POSIX's")
def test_locks_of_a_batch_survive_that_its_input_is_read(tmp_path: Path) -> None:
    """POSIX ends all locks of a process on a file when it closes that file once."""
    slices = write_slices(tmp_path / "anna")
    found = plan(slices, out=slices, format="nii.gz")
    (slices / "ct" / ".medals-rt").mkdir(parents=True)
    code = (
        "import sys; from pathlib import Path\n"
        "from medals_rt.pipeline.batch.shared_cells import SharedCells\n"
        f"print(SharedCells(Path({str(claims_file(found))!r})).enter('f' * 64, 2))"
    )

    def another_may_enter() -> str:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        return done.stdout.decode().strip()

    with share_folders(found, "a" * 64, (), (0,)):
        assert another_may_enter() == "False"
        assert inputs_sha256(found.cases[0]) is not None
        read_case(slices)
        assert another_may_enter() == "False"
    assert another_may_enter() == "True"
