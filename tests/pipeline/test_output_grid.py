"""Labels on another grid than the scan's: where they lie, by readers that aren't ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK
from typer.testing import CliRunner

from medals_rt.bundle.bundle import Bundle
from medals_rt.cli import app
from medals_rt.common.errors import CaseError, InputError
from medals_rt.io.registry import check_own_grid, read_case, read_labels, write_segmentation
from medals_rt.pipeline.output_grid import GridRequest, OutputGrid, lost_notes, on_grid
from medals_rt.pipeline.segmenter import Result
from tests.cli.helpers import error_of
from tests.dicom import write_series
from tests.errors import raises
from tests.pipeline.batch.helpers import write_case
from tests.pipeline.test_job import words

TILT = np.radians(20)
AFFINES = {
    "upright": np.diag([0.8, 0.9, 2.5, 1.0]),
    "turned": np.array(
        [[0, 0, -2.5, 40.0], [-0.8, 0, 0, 15.0], [0, 0.9, 0, -30.0], [0, 0, 0, 1.0]]
    ),
    "oblique": np.array(
        [
            [0.8 * np.cos(TILT), -0.9 * np.sin(TILT), 0, 3.0],
            [0.8 * np.sin(TILT), 0.9 * np.cos(TILT), 0, 5.0],
            [0, 0, -2.5, 7.0],
            [0, 0, 0, 1.0],
        ]
    ),
}
SHAPE_IJK = (40, 30, 18)


def ball(affine: np.ndarray, center_ijk: tuple[int, int, int], radius_mm: float) -> np.ndarray:
    """A ball in the patient, on the grid of a file."""
    at = np.stack(np.meshgrid(*map(np.arange, SHAPE_IJK), indexing="ij"), axis=-1)
    away = (at - center_ijk) @ affine[:3, :3].T
    return (np.linalg.norm(away, axis=-1) <= radius_mm).astype(np.uint8)


def written(
    tmp_path: Path, affine: np.ndarray, request: GridRequest, ending: str
) -> SimpleITK.Image:
    """Write two balls on a grid that is asked for, and read them by SimpleITK."""
    labels = ball(affine, (20, 14, 8), 6.0) + 2 * ball(affine, (8, 20, 12), 4.0)
    nibabel.save(nibabel.Nifti1Image(labels, affine), tmp_path / "scan.nii.gz")
    case = read_case(tmp_path / "scan.nii.gz")
    result = Result(np.asarray(case.volume.image_dhw), None, {}, None)  # type: ignore[arg-type]
    case, result, _ = on_grid(case, result, request)
    path = tmp_path / f"out{ending}"
    write_segmentation(path, case, result.labels_dhw)
    return SimpleITK.ReadImage(str(path))


def center_mm(image: SimpleITK.Image, label: int) -> np.ndarray:
    kji = np.argwhere(SimpleITK.GetArrayFromImage(image) == label).mean(axis=0)
    return np.array(image.TransformContinuousIndexToPhysicalPoint(kji[::-1].tolist()))


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("ending", [".nii.gz", ".seg.nrrd", ".mha", ".nii"])
def test_a_cropped_result_lies_where_the_whole_one_does(
    tmp_path: Path, name: str, ending: str
) -> None:
    whole = written(tmp_path, AFFINES[name], GridRequest(), ending)
    cut = written(tmp_path, AFFINES[name], GridRequest(crop_mm=2.0), ending)
    assert np.prod(cut.GetSize()) < 0.7 * np.prod(whole.GetSize())
    np.testing.assert_allclose(cut.GetSpacing(), whole.GetSpacing(), atol=1e-5)
    np.testing.assert_allclose(cut.GetDirection(), whole.GetDirection(), atol=1e-5)
    back = SimpleITK.Resample(cut, whole, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor, 0)
    np.testing.assert_array_equal(
        SimpleITK.GetArrayFromImage(back), SimpleITK.GetArrayFromImage(whole)
    )


@pytest.mark.parametrize("name", AFFINES)
def test_the_margin_is_in_millimeters(tmp_path: Path, name: str) -> None:
    tight = written(tmp_path, AFFINES[name], GridRequest(crop_mm=0.0), ".nii.gz")
    array = SimpleITK.GetArrayFromImage(tight)
    for axis in range(3):
        for side in (0, -1):
            assert np.take(array, side, axis=axis).any()
    wide = written(tmp_path, AFFINES[name], GridRequest(crop_mm=2.0), ".nii.gz")
    more = np.subtract(wide.GetSize(), tight.GetSize()) / 2 * np.array(wide.GetSpacing())
    assert (more >= 2.0 - 1e-6).all()
    assert (more < 2.0 + np.array(wide.GetSpacing())).all()


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 0.7, 3.0)])
def test_another_spacing_keeps_place_and_volume(
    tmp_path: Path, name: str, spacing: tuple[float, float, float]
) -> None:
    whole = written(tmp_path, AFFINES[name], GridRequest(), ".nii.gz")
    moved = written(tmp_path, AFFINES[name], GridRequest(spacing), ".nii.gz")
    assert sorted(np.round(moved.GetSpacing(), 5)) == sorted(spacing)
    np.testing.assert_allclose(moved.GetDirection(), whole.GetDirection(), atol=1e-5)
    array = SimpleITK.GetArrayFromImage(moved)
    for label in (1, 2):  # a voxel has the label that has the most of it, as ITK interpolates
        mask = SimpleITK.Cast(whole == label, SimpleITK.sitkFloat32)
        share = SimpleITK.GetArrayFromImage(
            SimpleITK.Resample(mask, moved, SimpleITK.Transform(), SimpleITK.sitkLinear)
        )
        assert (array[share > 0.502] == label).all()
        assert (array[share < 0.498] != label).all()
        np.testing.assert_allclose(center_mm(moved, label), center_mm(whole, label), atol=0.5)
    reaches = [
        [
            image.TransformContinuousIndexToPhysicalPoint(corner.tolist())
            for corner in (np.full(3, -0.5), np.array(image.GetSize()) - 0.5)
        ]
        for image in (whole, moved)
    ]
    assert np.abs(np.subtract(*reaches)).max() < max(spacing)
    cut = written(tmp_path, AFFINES[name], GridRequest(spacing, 1.0), ".nii.gz")
    back = SimpleITK.Resample(cut, moved, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor, 0)
    np.testing.assert_array_equal(
        SimpleITK.GetArrayFromImage(back), SimpleITK.GetArrayFromImage(moved)
    )


def test_labels_and_lesions_agree_on_another_grid(tmp_path: Path) -> None:
    affine = AFFINES["upright"]
    labels = ball(affine, (20, 14, 8), 6.0) + 2 * ball(affine, (8, 20, 12), 4.0)
    nibabel.save(nibabel.Nifti1Image(labels, affine), tmp_path / "scan.nii.gz")
    volume = read_case(tmp_path / "scan.nii.gz").volume
    found = np.asarray(volume.image_dhw)
    instances = np.where(found == 2, 5, 0).astype(np.uint32)
    instances[:, : found.shape[1] // 2][found[:, : found.shape[1] // 2] == 1] = 9
    grid = OutputGrid.of(GridRequest((1.0, 1.0, 1.0)), volume, found)
    moved = grid.result(Result(found, instances, {}, None))  # type: ignore[arg-type]
    assert moved.instances_dhw is not None
    assert set(np.unique(moved.instances_dhw)) == {0, 5, 9}
    assert (moved.labels_dhw[moved.instances_dhw == 5] == 2).all()
    assert (moved.labels_dhw[moved.instances_dhw == 9] == 1).all()
    assert (moved.labels_dhw == 1).sum() > (moved.instances_dhw == 9).sum() > 0


def test_nothing_found_is_not_cropped(tmp_path: Path) -> None:
    nibabel.save(
        nibabel.Nifti1Image(np.zeros(SHAPE_IJK, np.uint8), np.eye(4)), tmp_path / "a.nii.gz"
    )
    volume = read_case(tmp_path / "a.nii.gz").volume
    grid = OutputGrid.of(GridRequest(crop_mm=1.0), volume, np.zeros(volume.shape_dhw, np.uint8))
    assert grid.labels(np.zeros(volume.shape_dhw, np.uint8)).shape == volume.shape_dhw


def test_what_must_lie_on_the_scans_grid_is_refused(tmp_path: Path) -> None:
    for name, format_name in (
        ("a.dcm", None),
        ("a.labelmap.dcm", None),
        ("a.dcm", "rtstruct"),
        ("a.rtstruct.dcm", None),
    ):
        with raises(CaseError, "grid-of-the-source"):
            check_own_grid(tmp_path / name, format_name)
    for name in ("a.nii.gz", "a.seg.nrrd", "a.mha", "a.npz", "a.glb", "a.stl"):
        check_own_grid(tmp_path / name)
    with raises(InputError, "output-spacing-not-positive"):
        GridRequest((1.0, 0.0, 1.0))
    with raises(InputError, "crop-margin-negative"):
        GridRequest(crop_mm=-1.0)


def test_run_writes_every_label_map_on_the_grid(tiny_bundle: Bundle, tmp_path: Path) -> None:
    case, output = write_case(tmp_path / "a.npz"), tmp_path / "s.seg.nrrd"
    more = ("--output-spacing", "2", "--crop", "0", "--split", tmp_path / "classes")
    maps = ("--probabilities", tmp_path / "maps", "--report", tmp_path / "r.json")
    result = CliRunner().invoke(app, words(tiny_bundle, case, output, *more, *maps))
    assert result.exit_code == 0, result.output
    assert "on a grid of 2 x 2 x 2 mm" in " ".join(result.stderr.split())
    array, header = nrrd.read(str(output))
    np.testing.assert_allclose(np.abs(header["space directions"]), 2 * np.eye(3))
    (split,) = (tmp_path / "classes").iterdir()
    np.testing.assert_array_equal(nrrd.read(str(split))[0], array)
    (of_class,) = (tmp_path / "maps").iterdir()
    image = nibabel.load(of_class)
    assert image.shape == array.shape
    lps = np.diag([-1, -1, 1, 1]) @ image.affine
    np.testing.assert_allclose(lps[:3, 3], header["space origin"], atol=1e-4)
    whole = words(tiny_bundle, case, tmp_path / "w.npz", "--output-spacing", "0.01")
    error = error_of(CliRunner().invoke(app, [*whole, "--max-voxels", "100000"]))
    assert isinstance(error, InputError)
    assert error.code == "output-too-large"
    empty = ("--split", tmp_path / "new", "--probabilities", tmp_path / "new2")
    asked = words(tiny_bundle, case, tmp_path / "w.npz", "--output-spacing", "5000", *empty)
    error = error_of(CliRunner().invoke(app, asked))
    assert isinstance(error, InputError)
    assert error.code == "output-spacing-too-large"
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "new2").exists()
    write_series(tmp_path / "ct", np.zeros((6, 24, 24), np.int16), AFFINES["upright"])
    for word in (("--crop", "1"), ("--output-spacing", "1")):
        asked = words(tiny_bundle, tmp_path / "ct", tmp_path / "s.dcm", "--prompt", "Liver", *word)
        error = error_of(CliRunner().invoke(app, asked))
        assert isinstance(error, CaseError)
        assert error.code == "grid-of-the-source"


def test_a_case_without_place_is_cut_in_the_frame_that_is_assumed(tmp_path: Path) -> None:
    image = np.zeros((6, 8, 10), np.uint8)
    np.savez(tmp_path / "a.npz", imgs=image, spacing=(1.0, 2.0, 3.0))
    case = read_case(tmp_path / "a.npz")
    labels = image.copy()
    labels[2:4, 3:5, 4:9] = 1
    result = Result(labels, None, {}, None)  # type: ignore[arg-type]
    for ending in (".npz", ".nii.gz"):
        cut, moved, _ = on_grid(case, result, GridRequest(crop_mm=0.0))
        write_segmentation(tmp_path / f"s{ending}", cut, moved.labels_dhw)
        found = read_labels(tmp_path / f"s{ending}")
        assert found.labels_dhw.shape == (2, 2, 5)
        assert found.labels_dhw.all()
        assert found.source.affine_lps is not None
        np.testing.assert_allclose(np.array(found.source.affine_lps)[:3, 3], (8.0, 3.0, 6.0))


def test_what_is_too_small_for_the_spacing_is_noted() -> None:
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[:6] = 1
    labels[0, 0, 0] = 2
    instances = np.zeros((8, 8, 8), np.uint32)
    instances[0, 0, 0], instances[:6, 4:] = 3, 1
    classes = (SimpleNamespace(label=1, name="Liver"), SimpleNamespace(label=2, name="Cyst"))
    whole = Result(labels, instances, {}, SimpleNamespace(classes=classes))  # type: ignore[arg-type]
    moved = replace(whole, labels_dhw=labels[::4, 1::4, 1::4], instances_dhw=instances[::4, 1::4])
    (note,) = lost_notes(whole, moved)
    assert (note.code, note.severity) == ("lost-at-spacing", "warning")
    assert note.text.endswith(": Cyst, Cyst 3")
    assert lost_notes(whole, whole) == ()
