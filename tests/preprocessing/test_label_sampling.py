"""Label maps on another grid, beside SimpleITK."""

import array_api_strict
import numpy as np
import pytest
import SimpleITK

from medals_rt.preprocessing.label_sampling import sample_labels

SHAPE = (7, 9, 11)


def affine(seed: int, *, spacing: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    directions, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    directions[:, 2] *= np.sign(np.linalg.det(directions))  # SimpleITK takes proper ones
    matrix = np.eye(4)
    matrix[:3, :3] = directions * spacing * rng.uniform(0.8, 1.5, 3)
    center = matrix[:3, :3] @ (np.array(SHAPE)[::-1] / 2)
    matrix[:3, 3] = rng.uniform(-1, 1, 3) - center
    return matrix


def image(array: np.ndarray, matrix: np.ndarray) -> SimpleITK.Image:
    made = SimpleITK.GetImageFromArray(array)
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    made.SetSpacing(lengths.tolist())
    made.SetDirection((matrix[:3, :3] / lengths).ravel().tolist())
    made.SetOrigin(matrix[:3, 3].tolist())
    return made


def labels(dtype: type = np.uint16) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 300, SHAPE).astype(dtype)


@pytest.mark.parametrize("seed", range(6))
def test_as_simpleitk(seed: int) -> None:
    source, onto, shape = affine(seed), affine(seed + 100, spacing=0.7), (8, 10, 6)
    ours = sample_labels(labels(), source, onto, shape)
    target = image(np.zeros(shape, np.uint16), onto)
    theirs = SimpleITK.Resample(
        image(labels(), source), target, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor
    )
    assert ours.dtype == np.uint16
    assert (ours > 0).any()
    np.testing.assert_array_equal(ours, SimpleITK.GetArrayFromImage(theirs))


def test_halfway_takes_the_later_voxel_as_simpleitk() -> None:
    source, onto = np.diag([1.0, 1.0, 1.0, 1.0]), np.diag([0.5, 1.5, 2.5, 1.0])
    ours = sample_labels(labels(), source, onto, SHAPE)
    theirs = SimpleITK.Resample(
        image(labels(), source),
        image(np.zeros(SHAPE, np.uint16), onto),
        SimpleITK.Transform(),
        SimpleITK.sitkNearestNeighbor,
    )
    np.testing.assert_array_equal(ours, SimpleITK.GetArrayFromImage(theirs))


def test_the_same_grid_changes_nothing_and_outside_is_background() -> None:
    source = affine(0)
    np.testing.assert_array_equal(sample_labels(labels(), source, source, SHAPE), labels())
    away = source.copy()
    away[:3, 3] += 1000
    assert not sample_labels(labels(), source, away, SHAPE).any()


def test_arrays_of_another_library() -> None:
    source, onto = affine(1), affine(2)
    strict = sample_labels(array_api_strict.asarray(labels()), source, onto, SHAPE)
    expected = sample_labels(labels(), source, onto, SHAPE)
    np.testing.assert_array_equal(np.asarray(strict), expected)
