"""NIfTI and NRRD: orientation, and results on the file's own grid."""

import itertools
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK

from medals_rt.common.errors import CaseError, InputError
from medals_rt.io.registry import read_case, read_labels, write_segmentation
from medals_rt.io.volume import Volume, volume_notes
from medals_rt.pipeline.output_grid import GridRequest, OutputGrid
from tests.errors import raises
from tests.paths import DATA

ORIENTATIONS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]
SPACING = (1.0, 1.5, 2.0)
SHAPE = (22, 16, 12)
CENTER_LPS = np.array([3.0, -4.0, 2.0])
RADIUS_MM = 6.0


def affine_of(order: Any, signs: Any) -> np.ndarray:
    """LPS affine whose file axis `n` runs along patient axis `order[n]`, about the ball."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * SPACING[axis]
    affine[:3, 3] = CENTER_LPS - affine[:3, :3] @ (np.array(SHAPE) / 2)
    return affine


def sphere_ijk(affine: np.ndarray) -> np.ndarray:
    """A ball about `CENTER_LPS` on the grid; 2 marks its half to the patient's left."""
    points = np.einsum("ab,bijk->aijk", affine[:3, :3], np.indices(SHAPE))
    points += affine[:3, 3, None, None, None]
    offset = points - CENTER_LPS[:, None, None, None]
    inside = (offset**2).sum(axis=0) <= RADIUS_MM**2
    return (inside * np.where(offset[0] > 0, 2, 1)).astype(np.int16)


def write_image(path: Path, array_ijk: np.ndarray, affine_lps: np.ndarray) -> None:
    if path.suffix == ".nrrd":
        header = {
            "space": "left-posterior-superior",
            "space directions": affine_lps[:3, :3].T,
            "space origin": affine_lps[:3, 3],
        }
        nrrd.write(str(path), array_ijk, header)
        return
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_lps
    nibabel.save(nibabel.Nifti1Image(array_ijk, ras), path)


def read_image(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Values `(i, j, k)` and LPS affine by the format's own library."""
    if path.suffix == ".nrrd":
        array, header = nrrd.read(str(path))
        affine = np.eye(4)
        affine[:3, :3] = header["space directions"].T
        affine[:3, 3] = header["space origin"]
        return array, affine
    image = nibabel.load(path)
    assert isinstance(image, nibabel.Nifti1Image)
    return np.asarray(image.dataobj), np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine


def centers_mm(path: Path) -> np.ndarray:
    """Middle of either half of the ball in LPS mm, `(2, 3)`, as SimpleITK sees the file."""
    image = SimpleITK.ReadImage(str(path))
    array = SimpleITK.GetArrayFromImage(image)
    return np.array(
        [
            image.TransformContinuousIndexToPhysicalPoint(
                np.argwhere(array == half).mean(axis=0)[::-1].tolist()
            )
            for half in (1, 2)
        ]
    )


@pytest.mark.parametrize("ending", [".nrrd", ".nii.gz"])
@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_a_sphere_comes_back_at_the_same_mm(
    tmp_path: Path, order: Any, signs: Any, ending: str
) -> None:
    affine = affine_of(order, signs)
    ball = sphere_ijk(affine)
    path = tmp_path / f"image{ending}"
    write_image(path, ball, affine)
    drawn = np.array([np.argwhere(ball == half).mean(axis=0) for half in (1, 2)])
    drawn_mm = drawn @ affine[:3, :3].T + affine[:3, 3]
    np.testing.assert_allclose(centers_mm(path), drawn_mm, atol=1e-4)
    case = read_case(path)
    # The network sees what SimpleITK gives of the image turned to the LPS frame.
    turned = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(path)), "LPS")
    assert np.array_equal(case.volume.image_dhw, SimpleITK.GetArrayViewFromImage(turned))
    assert case.volume.spacing_dhw_mm == pytest.approx(turned.GetSpacing()[::-1], rel=1e-6)
    for other in {ending, ".nrrd", ".seg.nrrd", ".npz"}:
        out = tmp_path / f"out{other}"
        write_segmentation(out, case, case.volume.image_dhw)
        if other != ".npz":
            assert np.array_equal(read_image(out)[0], ball)
            np.testing.assert_allclose(centers_mm(out), drawn_mm, atol=1e-4)
        again = read_labels(out)
        assert np.array_equal(again.labels_dhw, case.volume.image_dhw)
        assert again.spacing_hwd_mm == pytest.approx(case.volume.spacing_hwd_mm, rel=1e-6)


def test_an_npz_of_another_grid_lies_where_its_image_lies(tmp_path: Path) -> None:
    affine = affine_of((1, 2, 0), (-1.0, 1.0, -1.0))
    write_image(tmp_path / "a.nrrd", sphere_ijk(affine), affine)
    case = read_case(tmp_path / "a.nrrd")
    write_segmentation(tmp_path / "out.npz", case, case.volume.image_dhw)
    with np.load(tmp_path / "out.npz") as stored:
        image = SimpleITK.GetImageFromArray(stored["segs"])
        image.SetSpacing(stored["spacing"].tolist())
        image.SetDirection(stored["direction"].ravel().tolist())
        image.SetOrigin(stored["origin"].tolist())
    SimpleITK.WriteImage(image, str(tmp_path / "b.nrrd"))
    np.testing.assert_allclose(
        centers_mm(tmp_path / "b.nrrd"), centers_mm(tmp_path / "a.nrrd"), atol=1e-4
    )


def test_nifti_headers_come_back_to_the_last_digit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation * (0.7123456, 0.7123456, 3.3)
    affine[:3, 3] = rng.standard_normal(3) * 100
    header = nibabel.Nifti1Header()
    header.set_xyzt_units("mm", "sec")
    image = nibabel.Nifti1Image(rng.normal(0, 500, (5, 6, 7)).astype(np.float32), affine, header)
    image.set_sform(affine, code=2)
    image.set_qform(affine, code=1)
    nibabel.save(image, tmp_path / "a.nii")
    stored = nibabel.load(tmp_path / "a.nii")
    case = read_case(tmp_path / "a.nii")
    labels = (case.volume.image_dhw > 0).astype(np.int64) * 300
    write_segmentation(tmp_path / "b.nii.gz", case, labels)
    back = nibabel.load(tmp_path / "b.nii.gz")
    assert isinstance(stored, nibabel.Nifti1Image)
    assert isinstance(back, nibabel.Nifti1Image)
    assert np.array_equal(back.affine, stored.affine)
    for field in ("srow_x", "quatern_b", "qoffset_x", "pixdim", "sform_code", "qform_code"):
        assert np.array_equal(back.header[field], stored.header[field]), field
    assert back.get_data_dtype() == np.uint16
    assert np.array_equal(np.asarray(back.dataobj), (np.asarray(stored.dataobj) > 0) * 300)


@pytest.mark.parametrize(("sform", "qform"), [(1, 0), (0, 1), (0, 2), (4, 3), (0, 0)])
def test_codes_and_both_matrices_are_kept(tmp_path: Path, sform: int, qform: int) -> None:
    affine = np.array([[-2, 0.1, 0, 5], [0.1, 3, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1.0]])
    affine[:3, :3] = np.linalg.qr(affine[:3, :3])[0] * (2.0, 3.0, 4.0)
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), affine)
    image.set_sform(affine if sform else None, sform)
    image.set_qform(affine if qform else None, qform)
    nibabel.save(image, tmp_path / "a.nii")
    case = read_case(tmp_path / "a.nii")
    write_segmentation(tmp_path / "b.nii", case, (case.volume.image_dhw > 5).astype(np.uint8))
    before, after = (nibabel.load(tmp_path / name).header for name in ("a.nii", "b.nii"))
    for field in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "pixdim"):
        assert np.array_equal(before[field], after[field]), field
    for field in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):
        assert np.array_equal(before[field], after[field]), field
    seen = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(tmp_path / "a.nii")), "LPS")
    assert np.array_equal(case.volume.image_dhw, SimpleITK.GetArrayViewFromImage(seen))
    codes = {note.code for note in volume_notes(case.volume)}
    assert ("orientation-assumed" in codes) == (sform == qform == 0)


@pytest.mark.parametrize(
    "ending", [".nii.gz", ".nii", ".hdr", ".seg.nrrd", ".nhdr", ".mha", ".npz"]
)
@pytest.mark.parametrize("crop_mm", [None, 2.0])
def test_an_assumed_orientation_is_no_known_one_in_results(
    tmp_path: Path, ending: str, crop_mm: float | None
) -> None:
    """The place is kept, what is assumed about it is noted again, and so in results of results."""
    image = np.zeros((6, 9, 12), np.uint8)
    image[2:4, 3:6, 5:9] = 1
    np.savez(tmp_path / "a.npz", imgs=image, spacing=(2.0, 1.0, 3.0))
    whole = read_case(tmp_path / "a.npz")
    grid = OutputGrid.of(GridRequest(crop_mm=crop_mm), whole.volume, image)
    case = whole if crop_mm is None else grid.case(whole)
    labels = grid.labels(image)
    first, again = tmp_path / f"b{ending}", tmp_path / f"c{ending}"
    write_segmentation(first, case, labels)
    if ending == ".npz":
        found = read_labels(first)
        assert np.array_equal(found.labels_dhw, labels)
        assert not found.source.has_orientation
        affine = case.volume.source.canonical_affine_lps(labels.shape, case.volume.spacing_hwd_mm)
        known = found.source.canonical_affine_lps(labels.shape, found.spacing_hwd_mm or ())
        np.testing.assert_allclose(known, affine, atol=1e-5)
        return
    read = read_case(first)
    assert np.array_equal(read.volume.image_dhw, labels)
    np.testing.assert_allclose(read.volume.affine_lps, case.volume.affine_lps, atol=1e-5)
    assert [note.code for note in volume_notes(read.volume)] == ["orientation-assumed"]
    write_segmentation(again, read, labels)
    assert [note.code for note in volume_notes(read_case(again).volume)] == ["orientation-assumed"]
    if ending in {".nii.gz", ".nii"}:
        header = nibabel.load(first).header
        assert (int(header["qform_code"]), int(header["sform_code"])) == (2, 2)
        in_memory = Volume.from_nibabel(nibabel.load(first))
        assert not in_memory.has_orientation
    seen = SimpleITK.ReadImage(str(first.with_suffix(".img") if ending == ".hdr" else first))
    assert np.array_equal(SimpleITK.GetArrayFromImage(seen), labels)
    np.testing.assert_allclose(seen.GetOrigin(), case.volume.affine_lps[:3, 3], atol=1e-5)


@pytest.mark.parametrize("ending", [".nii.gz", ".seg.nrrd", ".mha", ".npz"])
def test_a_known_orientation_is_written_as_such(tmp_path: Path, ending: str) -> None:
    image = SimpleITK.GetImageFromArray(np.ones((3, 4, 5), np.uint8))
    SimpleITK.WriteImage(image, str(tmp_path / "a.mha"))
    case = read_case(tmp_path / "a.mha")
    write_segmentation(tmp_path / f"b{ending}", case, case.volume.image_dhw)
    assert read_labels(tmp_path / f"b{ending}").source.has_orientation
    if ending == ".nii.gz":
        header = nibabel.load(tmp_path / "b.nii.gz").header
        assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 1)
        assert not bytes(header["descrip"]).strip(b"\0")


def test_two_places_in_one_header_are_noted(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.uint8), np.eye(4))
    image.set_sform(np.diag([1.0, 1.0, 1.0, 1.0]), 2)
    image.set_qform(np.diag([-1.0, 1.0, 1.0, 1.0]), 1)
    nibabel.save(image, tmp_path / "a.nii")
    (note,) = read_case(tmp_path / "a.nii").volume.notes
    assert note.code == "orientation-contradicted"


def test_one_frame_of_4d_is_a_volume_and_two_are_not(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4, 1)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([-1.0, -1.0, 2.0, 1.0])), tmp_path / "a.nii")
    case = read_case(tmp_path / "a.nii")
    assert np.array_equal(case.volume.image_dhw, array[..., 0].transpose())
    write_segmentation(tmp_path / "b.nii", case, case.volume.image_dhw)
    assert nibabel.load(tmp_path / "b.nii").shape == (2, 3, 4)
    two = np.concatenate([array, array], axis=3)
    nibabel.save(nibabel.Nifti1Image(two, np.eye(4)), tmp_path / "c.nii")
    with raises(CaseError, "not-3d"):
        read_case(tmp_path / "c.nii")


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 1), (5, 1, 3)])
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_tiny_and_flat_volumes_come_back(
    tmp_path: Path, shape: tuple[int, int, int], ending: str
) -> None:
    affine = np.diag([-0.05, 0.3, -40.0, 1.0])
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    write_image(tmp_path / f"a{ending}", array, affine)
    case = read_case(tmp_path / f"a{ending}")
    assert case.volume.spacing_hwd_mm == pytest.approx((0.3, 0.05, 40.0))
    write_segmentation(tmp_path / f"b{ending}", case, case.volume.image_dhw)
    written, back = read_image(tmp_path / f"b{ending}")
    assert np.array_equal(written, array)
    np.testing.assert_allclose(back, affine, rtol=1e-6)


def test_nrrd_in_nrrd_out_keeps_every_digit(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[:3] = np.random.default_rng(5).standard_normal((3, 4)) * 100
    write_image(tmp_path / "a.nrrd", np.zeros((3, 4, 5), np.uint8), affine)
    case = read_case(tmp_path / "a.nrrd")
    write_segmentation(tmp_path / "b.seg.nrrd", case, case.volume.image_dhw)
    assert np.array_equal(read_image(tmp_path / "b.seg.nrrd")[1], affine)


def test_scaled_nifti_is_read_in_real_units_and_written_unscaled(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    image.header.set_slope_inter(2.0, -1024.0)
    nibabel.save(image, tmp_path / "a.nii")
    stored = nibabel.load(tmp_path / "a.nii")
    assert isinstance(stored, nibabel.Nifti1Image)
    case = read_case(tmp_path / "a.nii")
    expected = np.asarray(stored.dataobj)
    np.testing.assert_allclose(np.sort(case.volume.image_dhw.ravel()), np.sort(expected.ravel()))
    labels = np.ones(case.volume.shape_dhw, np.uint8)
    write_segmentation(tmp_path / "b.nii", case, labels)
    assert (read_labels(tmp_path / "b.nii").labels_dhw == 1).all()


def test_an_unknown_unit_of_length_counts_as_millimeters(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.uint8), np.diag([5.0, 6.0, 7.0, 1.0]))
    image.header["xyzt_units"] = 7
    nibabel.save(image, tmp_path / "a.nii")
    volume = read_case(tmp_path / "a.nii").volume
    assert volume.spacing_hwd_mm == (6.0, 5.0, 7.0)
    assert [(note.code, note.severity) for note in volume.notes] == [("unit-unknown", "warning")]


def test_units_of_length(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.uint8), np.diag([5.0, 6.0, 7.0, 1.0]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "a.nii")
    assert read_case(tmp_path / "a.nii").volume.spacing_hwd_mm == pytest.approx(
        (0.006, 0.005, 0.007)
    )


def test_a_challenge_case_may_be_written_as_nifti_and_nrrd(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", imgs=np.zeros((4, 5, 6), np.uint8), spacing=(0.7, 0.8, 3.0))
    case = read_case(tmp_path / "a.npz")
    labels = np.random.default_rng(0).integers(0, 3, (4, 5, 6))
    for name in ("b.nii.gz", "b.nrrd"):
        write_segmentation(tmp_path / name, case, labels)
        again = read_labels(tmp_path / name)
        assert np.array_equal(again.labels_dhw, labels)
        assert again.spacing_hwd_mm == pytest.approx((0.7, 0.8, 3.0))


def test_a_real_scan_is_brought_to_the_canonical_orientation() -> None:
    case = read_case(DATA / "ctchest4_image.nrrd")
    labels = read_labels(DATA / "ctchest4_label.seg.nrrd").labels_dhw
    assert case.volume.shape_dhw == (34, 128, 128) == labels.shape
    assert case.volume.spacing_hwd_mm == pytest.approx((3.046876, 3.046876, 10.0))
    assert case.volume.source.permutation == (0, 1, 2)
    assert case.volume.source.flips == (False, True, True)
    image = case.volume.image_dhw
    assert image.min() < -900
    right, left = (np.argwhere(labels == value).mean(axis=0) for value in (5, 6))
    assert left[2] > right[2] + 20, "the left lung lies at larger W"
    spine = np.argwhere((labels >= 2) & (labels <= 4)).mean(axis=0)
    assert spine[1] > right[1], "the spine lies at larger H, behind the lungs"
    lumbar, cervical = (np.argwhere(labels == value).mean(axis=0) for value in (4, 2))
    assert cervical[0] > lumbar[0], "the neck lies at larger D"
    assert image[labels == 5].mean() < -600, "labels fit the image"


def test_a_header_of_spacings_alone_is_read(tmp_path: Path) -> None:
    nrrd.write(
        str(tmp_path / "a.nrrd"), np.zeros((2, 3, 4), np.uint8), {"spacings": [1.0, 2.0, 3.0]}
    )
    assert read_case(tmp_path / "a.nrrd").volume.spacing_hwd_mm == (2.0, 1.0, 3.0)


@pytest.mark.parametrize(
    ("header", "shape", "error"),
    [
        ({}, (2, 3, 4), ("spacing-missing",)),
        (
            {"space": "right-anterior-superior", "spacings": [1.0, 2.0, 3.0]},
            (2, 3, 4),
            ("geometry-missing",),
        ),
        ({"spacings": [1.0, 0.0, 1.0]}, (2, 3, 4), ("spacing-not-positive",)),
        ({"spacings": [1.0, 1.0]}, (2, 3), ("not-3d",)),
        (
            {"space": "scanner-xyz", "space directions": np.eye(3)},
            (2, 3, 4),
            ("space-unknown", "scanner-xyz"),
        ),
        ({"spacings": [1.0] * 3, "encoding": "bzip2"}, (2, 3, 4), ("encoding", "bzip2")),
        ({"spacings": [1.0] * 3, "encoding": "text"}, (2, 3, 4), ("encoding", "text")),
    ],
)
def test_unusable_nrrd_is_refused(
    tmp_path: Path, header: dict[str, Any], shape: tuple[int, ...], error: tuple[str, ...]
) -> None:
    path = tmp_path / "a.nrrd"
    nrrd.write(str(path), np.zeros(shape, np.uint8), header)
    with raises(CaseError, *error):
        read_case(path)


@pytest.mark.parametrize("ending", [".nrrd", ".nii", ".nii.gz"])
def test_no_mutation_of_a_valid_file_does_anything_but_fail_cleanly(
    tmp_path: Path, ending: str
) -> None:
    affine = affine_of((0, 1, 2), (1, 1, 1))
    source = tmp_path / f"a{ending}"
    write_image(source, sphere_ijk(affine), affine)
    valid = source.read_bytes()
    rng = np.random.default_rng(7)
    target = tmp_path / f"mutated{ending}"
    for _ in range(150):
        data = bytearray(valid)
        for _ in range(rng.integers(1, 5)):
            data[rng.integers(min(len(data), 400))] = rng.integers(256)
        if rng.random() < 0.2:
            data = data[: rng.integers(len(data))]
        target.write_bytes(data)
        try:
            case = read_case(target, max_voxels=100_000)
        except InputError:
            continue
        assert case.volume.image_dhw.ndim == 3
