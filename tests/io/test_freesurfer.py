"""FreeSurfer's volumes against what nibabel writes and reads."""

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medals_rt.common.errors import CaseError
from medals_rt.io.case import Case
from medals_rt.io.registry import check_output, read_case, read_labels, write_segmentation
from medals_rt.io.volume import Volume, volume_notes
from tests.errors import raises

VALUES_IJK = np.random.default_rng(0).integers(0, 250, (9, 7, 5)).astype(np.int16)
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
CORONAL = np.array(
    [[-1.0, 0.0, 0.0, 120.25], [0.0, 0.0, 1.5, -90.5], [0.0, -2.0, 0.0, 70.125], [0, 0, 0, 1]]
)
"""As FreeSurfer conforms scans: the axes run to the left, down and to the front."""
DIMS, TYPE, GOOD_RAS, DELTA = 4, 20, 28, 30
"""Where fields of a header begin."""


def write(path: Path, values: Any = VALUES_IJK, affine: Any = CORONAL) -> Path:
    nibabel.save(nibabel.freesurfer.MGHImage(values, affine), path)
    return path


def loaded(path: Path) -> Any:
    """An image of nibabel's: `nibabel.load` leaves an `.mgh` open."""
    content = path.read_bytes()
    if path.suffix == ".mgz":
        content = gzip.decompress(content)
    return nibabel.freesurfer.MGHImage.from_bytes(content)


def edited(path: Path, at: int, form: str, *values: Any) -> Path:
    """Overwrite a field of an `.mgh`."""
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, at, *values)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["a.mgz", "a.mgh"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "u2"])
def test_values_and_place_are_those_that_nibabel_reads(
    tmp_path: Path, name: str, dtype: str
) -> None:
    path = write(tmp_path / name, VALUES_IJK.astype(dtype))
    case = read_case(path)
    own = loaded(path)
    assert case.volume.image_dhw.dtype == np.dtype(dtype)
    assert np.array_equal(case.volume.restore(case.volume.image_dhw).T, np.asarray(own.dataobj))
    np.testing.assert_allclose(case.volume.affine_lps, RAS_TO_LPS @ own.affine, atol=1e-5)
    assert case.volume.spacing_hwd_mm == (1.5, 1.0, 2.0)
    assert case.volume.has_orientation
    assert volume_notes(case.volume) == ()
    # a voxel, by hand: to the head where j is small, to the back where k is
    assert case.volume.image_dhw[6, 4, 0] == VALUES_IJK[0, 0, 0]


def test_labels_come_back_on_the_same_grid(tmp_path: Path) -> None:
    affine = CORONAL.copy()
    affine[:3, :3] = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]) @ CORONAL[:3, :3] * 1.1
    case = read_case(write(tmp_path / "a.mgz", affine=affine))
    for highest, dtype in ((2, "u1"), (300, "i2"), (2035, "i2"), (40000, "i4")):
        labels = np.where(case.volume.image_dhw > 200, highest, 0)
        for name in ("b.mgz", "b.mgh"):
            write_segmentation(tmp_path / name, case, labels)
            image = loaded(tmp_path / name)
            assert image.get_data_dtype() == np.dtype(dtype).newbyteorder(">")
            assert np.array_equal(image.affine, loaded(tmp_path / "a.mgz").affine)
            assert np.array_equal(read_labels(tmp_path / name).labels_dhw, labels)
    assert not list(tmp_path.glob(".partial*"))
    assert (tmp_path / "b.mgz").read_bytes().startswith(b"\x1f\x8b")
    assert not (tmp_path / "b.mgh").read_bytes().startswith(b"\x1f\x8b")


def test_labels_of_another_format_lie_in_its_place(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(VALUES_IJK, CORONAL), tmp_path / "a.nii.gz")
    case = read_case(tmp_path / "a.nii.gz")
    labels = (case.volume.image_dhw > 100).astype(np.uint8)
    write_segmentation(tmp_path / "b.mgz", case, labels)
    image = loaded(tmp_path / "b.mgz")
    np.testing.assert_allclose(image.affine, CORONAL, atol=1e-4)
    assert np.array_equal(np.asarray(image.dataobj), VALUES_IJK > 100)
    write_segmentation(tmp_path / "c.nii.gz", read_case(write(tmp_path / "a.mgz")), labels)
    np.testing.assert_allclose(nibabel.load(tmp_path / "c.nii.gz").affine, CORONAL, atol=1e-4)


def test_a_place_that_is_unknown_is_neither_read_nor_written(tmp_path: Path) -> None:
    path = edited(write(tmp_path / "a.mgh"), GOOD_RAS, ">h", 0)
    with raises(CaseError, "geometry-missing"):
        read_case(path)
    with raises(CaseError, "geometry-missing"):
        read_labels(path)
    unplaced = Case(Volume(VALUES_IJK, (1, 1, 1)), None, None, tmp_path / "a.npz")
    with raises(CaseError, "place-unknown"):
        check_output("b.mgz", unplaced)


def test_labels_that_the_format_cannot_hold_are_refused(tmp_path: Path) -> None:
    case = read_case(write(tmp_path / "a.mgz"))
    with raises(CaseError, "labels-out-of-range"):
        write_segmentation(tmp_path / "b.mgz", case, np.full(case.volume.shape_dhw, 2**31))
    assert not (tmp_path / "b.mgz").exists()


@pytest.mark.parametrize(
    ("at", "form", "values", "code"),
    [
        (0, ">i", (2,), "header-damaged"),
        (DIMS + 12, ">i", (2,), "not-3d"),
        (DIMS, ">3i", (30000, 30000, 30000), "too-many-voxels"),
        (DIMS, ">i", (-9,), "image-empty"),
        (DIMS, ">i", (900,), "file-truncated"),
        (TYPE, ">i", (2,), "value-type"),
        (DELTA, ">f", (0.0,), "spacing-not-positive"),
        (DELTA, ">f", (float("nan"),), "spacing-not-positive"),
        (DELTA + 12, ">9f", (1, 0, 0, 1, 0, 0, 0, 0, 1), "geometry-singular"),
        (DELTA + 48, ">f", (float("inf"),), "geometry-singular"),
    ],
)
def test_unusable_headers_are_refused(
    tmp_path: Path, at: int, form: str, values: tuple[Any, ...], code: str
) -> None:
    path = edited(write(tmp_path / "a.mgh"), at, form, *values)
    for read in (read_case, read_labels):
        with raises(CaseError, code):
            read(path)


def test_a_series_in_time_is_refused(tmp_path: Path) -> None:
    several = write(tmp_path / "a.mgz", np.stack([VALUES_IJK] * 2, axis=-1))
    with raises(CaseError, "not-3d"):
        read_case(several)


def test_labels_are_whole_numbers_from_zero(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.mgz", VALUES_IJK.astype(np.float32))
    assert read_labels(whole).labels_dhw.dtype.kind == "i"
    for values, code in ((0.5, "labels-not-whole"), (-1.0, "labels-negative")):
        path = write(tmp_path / "b.mgz", np.full((3, 3, 3), values, np.float32))
        with raises(CaseError, code):
            read_labels(path)


def test_names_and_contents_that_differ_are_told(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.mgh").read_bytes()
    for name, content, mending in (
        ("plain.mgz", plain, "isn't gzipped; name it plain.mgh, or compress it with gzip"),
        ("packed.mgh", gzip.compress(plain), "let its name end in .mgz, or unpack it"),
        ("other.nii.gz", gzip.compress(plain), "name it other.mgz"),
        ("other.nrrd", plain, "name it other.mgh"),
    ):
        (tmp_path / name).write_bytes(content)
        with raises(CaseError, "wrong-ending") as caught:
            read_case(tmp_path / name)
        assert str(caught.value).endswith(mending)


def test_what_lies_behind_the_voxels_is_no_remark(tmp_path: Path) -> None:
    """FreeSurfer's own files hold commands and tables of colors there."""
    path = write(tmp_path / "a.mgh")
    path.write_bytes(path.read_bytes() + bytes(5000))
    assert volume_notes(read_case(path).volume) == ()
