"""Volumes: what is refused, and the way between a file's grid and the canonical one."""

import itertools
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK

from medals_rt.common.errors import CaseError
from medals_rt.common.limits import MAX_VOXELS
from medals_rt.io.volume import SourceGrid, Volume, check_image, to_dhw, to_hwd, volume_notes
from tests.errors import raises

ORIENTATIONS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]
"""All 48 ways that three axes of a file can run along three axes of a patient."""


def affine_of(order: tuple[int, ...], signs: tuple[float, ...], spacing: Any) -> np.ndarray:
    """Affine whose file axis `n` runs along patient axis `order[n]`, in LPS."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * spacing[axis]
    affine[:3, 3] = (5.0, -7.0, 11.0)
    return affine


def test_hwd_and_dhw_are_views_of_each_other() -> None:
    array = np.arange(24).reshape(2, 3, 4)
    turned = to_hwd(array)
    assert turned.shape == (3, 4, 2)
    assert turned[1, 2, 0] == array[0, 1, 2]
    assert np.array_equal(to_dhw(turned), array)
    assert np.shares_memory(turned, array)
    assert to_hwd(array[None]).shape == (1, 3, 4, 2)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_canonical_axes_run_to_head_back_and_left(order: Any, signs: Any) -> None:
    spacing = (0.7, 1.3, 2.9)
    shape_ijk = (3, 4, 5)
    affine = affine_of(order, signs, spacing)
    source = SourceGrid.from_affine(affine)
    index_ijk = np.indices(shape_ijk)
    points = np.einsum("ab,bijk->aijk", affine[:3, :3], index_ijk) + affine[:3, 3, None, None, None]
    left, back, head = (source.to_canonical(points[axis].transpose()) for axis in range(3))
    assert (np.diff(head, axis=0) > 0).all()
    assert (np.diff(back, axis=1) > 0).all()
    assert (np.diff(left, axis=2) > 0).all()
    step = (
        np.diff(back, axis=1).mean(),
        np.diff(left, axis=2).mean(),
        np.diff(head, axis=0).mean(),
    )
    assert source.spacing_hwd_mm == pytest.approx(step)
    own = np.arange(60).reshape(shape_ijk[::-1])
    assert np.array_equal(source.to_source(source.to_canonical(own)), own)


def test_oblique_grids_go_to_the_nearest_axis() -> None:
    angle = np.deg2rad(20)
    rotation = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([2.0, 2.0, 5.0])
    source = SourceGrid.from_affine(affine)
    assert source.permutation == (0, 1, 2)
    assert source.flips == (False, False, False)
    assert source.spacing_hwd_mm == pytest.approx((2, 2, 5))


@pytest.mark.parametrize(
    "affine",
    [
        np.eye(3),
        np.full((4, 4), np.nan),
        np.diag([1.0, 0.0, 1.0, 1.0]),
        np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
    ],
)
def test_broken_affines_are_refused(affine: np.ndarray) -> None:
    with raises(CaseError, "geometry-singular"):
        SourceGrid.from_affine(affine)


@pytest.mark.parametrize(
    ("image", "code"),
    [
        (np.zeros((3, 4)), "not-3d"),
        (np.zeros((1, 3, 4, 5)), "not-3d"),
        (np.zeros((0, 4, 5)), "image-empty"),
        (np.full((2, 2, 2), np.nan), "values-not-finite"),
        (np.full((2, 2, 2), np.inf, np.float32), "values-not-finite"),
        (np.zeros((2, 2, 2), complex), "value-type"),
        (np.full((2, 2, 2), "a"), "value-type"),
        (np.zeros((2, 2, 2), object), "value-type"),
    ],
)
def test_unusable_images_are_refused(image: np.ndarray, code: str) -> None:
    with raises(CaseError, code):
        Volume(image, (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("spacing", "code"),
    [
        ((), "spacing-not-three-numbers"),
        ((1.0, 1.0), "spacing-not-three-numbers"),
        ((0.0, 1.0, 1.0), "spacing-not-positive"),
        ((1.0, -1.0, 1.0), "spacing-not-positive"),
        ((1.0, np.nan, 1.0), "spacing-not-positive"),
        ((1.0, np.inf, 1.0), "spacing-not-positive"),
        (("x",) * 3, "spacing-not-three-numbers"),
    ],
)
def test_unusable_spacings_are_refused(spacing: Any, code: str) -> None:
    with raises(CaseError, code):
        Volume(np.zeros((2, 2, 2)), spacing)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.float16, np.float64, ">i2"])
def test_real_types_are_taken(dtype: Any) -> None:
    volume = Volume(np.zeros((2, 3, 4), dtype), np.array([1, 2, 3]))
    assert volume.spacing_hwd_mm == (1.0, 2.0, 3.0)
    assert volume.spacing_dhw_mm == (3.0, 1.0, 2.0)
    assert volume.shape_hwd == (3, 4, 2)
    assert volume.voxel_ml == pytest.approx(0.006)


def test_too_many_voxels_are_refused_by_shape_alone() -> None:
    huge = np.broadcast_to(np.uint8(0), (2000, 2000, 2000))
    with raises(CaseError, "too-many-voxels", "8,000,000,000"):
        check_image(huge, max_voxels=MAX_VOXELS)
    assert Volume(huge, (1.0, 1.0, 1.0)).shape_dhw == huge.shape  # whoever has the memory


def test_results_of_another_shape_are_refused() -> None:
    volume = Volume(np.zeros((2, 3, 4)), (1.0, 1.0, 1.0))
    with raises(CaseError, "shapes-differ"):
        volume.restore(np.zeros((2, 4, 3)))


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_images_of_nibabel_and_simpleitk_lie_as_their_files_do(order: Any, signs: Any) -> None:
    affine = affine_of(order, signs, (0.7, 1.3, 2.9))
    array_ijk = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    itk = SimpleITK.GetImageFromArray(array_ijk.transpose())
    itk.SetSpacing((0.7, 1.3, 2.9))
    itk.SetDirection((affine[:3, :3] / (0.7, 1.3, 2.9)).ravel().tolist())
    itk.SetOrigin(affine[:3, 3].tolist())
    expected = SimpleITK.GetArrayFromImage(SimpleITK.DICOMOrient(itk, "LPS"))
    for volume in (
        Volume.from_nibabel(nibabel.Nifti1Image(array_ijk, to_ras @ affine)),
        Volume.from_sitk(itk),
        Volume.from_array(array_ijk, to_ras @ affine, axes="ijk", frame="RAS"),
        Volume.from_array(array_ijk.transpose(), affine, axes="kji", frame="LPS"),
    ):
        assert np.array_equal(volume.image_dhw, expected)
        np.testing.assert_allclose(volume.affine_lps, affine, atol=1e-5)
        assert volume.has_orientation
        assert volume.geometry_is_stated
        assert volume_notes(volume) == ()


def test_an_array_without_orientation_is_known_as_such() -> None:
    volume = Volume(np.zeros((3, 4, 5), np.uint8), (1.0, 2.0, 3.0), "made up")
    assert not volume.has_orientation
    assert [note.code for note in volume_notes(volume)] == ["orientation-assumed"]
    text = "Volume('made up', 3 x 4 x 5 voxels of 3 x 1 x 2 mm (D, H, W), uint8, no orientation)"
    assert repr(volume) == text


def test_a_slice_or_two_are_read_with_a_warning() -> None:
    for slices, expected in ((1, ["few-slices"]), (2, ["few-slices"]), (3, [])):
        array = np.zeros((slices, 4, 5), np.uint8)
        volume = Volume.from_array(array, np.eye(4), axes="kji", frame="LPS")
        assert [note.code for note in volume_notes(volume)] == expected


def test_other_types_are_refused_by_name() -> None:
    array: Any = np.zeros((2, 3, 4))
    image: Any = nibabel.Nifti1Image(array, np.eye(4))
    with pytest.raises(TypeError, match="from_nibabel"):
        Volume(image.header, (1.0, 1.0, 1.0))
    with pytest.raises(TypeError, match="from_array"):
        Volume.from_nibabel(array)
    with pytest.raises(TypeError, match=r"SimpleITK\.Image"):
        Volume.from_sitk(image)
    wrong: Any = "xyz"
    with pytest.raises(TypeError, match="axes"):
        Volume.from_array(array, np.eye(4), axes=wrong, frame="LPS")


@pytest.mark.parametrize("axes", ["ijk", "kji"])
def test_tensors_are_taken_and_masks_are_refused(axes: Any) -> None:
    torch = pytest.importorskip("torch")
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    tensor, place = torch.from_numpy(array), {"axes": axes, "frame": "LPS"}
    taken = Volume.from_array(tensor, np.eye(4), **place)
    expected = Volume.from_array(array, np.eye(4), **place)
    np.testing.assert_array_equal(taken.image_dhw, expected.image_dhw)
    np.testing.assert_array_equal(Volume(tensor, (1.0, 1.0, 1.0)).image_dhw, array)
    masked = np.ma.masked_less(array, 3)
    with pytest.raises(TypeError, match="mask"):
        Volume(masked, (1.0, 1.0, 1.0))
    with pytest.raises(TypeError, match="mask"):
        Volume.from_array(masked, np.eye(4), **place)


def test_rounding_decides_nothing_about_a_grid_at_45_degrees() -> None:
    """Files of one scan would be read with their axes exchanged."""
    turned = np.array([[1, -1, 0], [1, 1, 0], [0, 0, np.sqrt(2)]]) / np.sqrt(2)
    affine = np.eye(4)
    affine[:3, :3] = turned * [1.5, 2.0, 3.0]
    found = SourceGrid.from_affine(affine)
    for noise in (1e-7, -1e-7):
        off = affine.copy()
        off[0, 0] += noise
        assert SourceGrid.from_affine(off).permutation == found.permutation
