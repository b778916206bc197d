"""Lesions measured, against what is known of simple shapes and against brute force."""

from collections.abc import Iterator

import numpy as np
import pytest

from medals_rt.common.errors import InputError
from medals_rt.io.volume import Volume
from medals_rt.pipeline.csv_tables import LESION_COLUMNS, lesion_row
from medals_rt.pipeline.lesion_statistics import LesionStatistics, lesion_statistics
from tests.io.test_formats import ORIENTATIONS, affine_of

NAMES = {1: "Liver tumors", 2: "Liver cysts"}
RNG = np.random.default_rng(0)
SPACING_DHW = np.array([3.0, 0.8, 1.1])


def volume_of(shape: tuple[int, ...]) -> Volume:
    d, h, w = SPACING_DHW.tolist()
    image = RNG.integers(-100, 200, shape).astype(np.int16)
    return Volume(image, (h, w, d))


def measure(mask: np.ndarray) -> LesionStatistics:
    (found,) = lesion_statistics(volume_of(mask.shape), mask * 1, mask * 1, NAMES)
    return found


def faces_mm(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Middles of all faces of all voxels, also those inside: they change no diameter."""
    axes = mask.ndim
    steps = np.concatenate([np.eye(axes), -np.eye(axes)]) / 2
    return ((np.argwhere(mask)[:, None] + steps).reshape(-1, axes)) * spacing


def longest_pairs(points: np.ndarray) -> tuple[float, list[tuple[np.ndarray, np.ndarray]]]:
    distances = np.linalg.norm(points[:, None] - points, axis=-1)
    longest = distances.max()
    firsts, lasts = np.nonzero(distances > longest - 1e-9)
    return longest, [(points[i], points[j]) for i, j in zip(firsts, lasts, strict=True)]


def chords(points: np.ndarray, along: np.ndarray) -> Iterator[float]:
    """Lengths of chords across `along` between all segments that join two points."""
    across = np.array([-along[1], along[0]])
    for at in np.unique((points @ along).round(9)):
        heights = []
        for p in points:
            for q in points:
                a, b = p @ along - at, q @ along - at
                if a * b <= 1e-15 and abs(a - b) > 1e-9:
                    heights.append((p + (q - p) * a / (a - b)) @ across)
                elif abs(a) < 1e-9:
                    heights.append(p @ across)
        yield max(heights) - min(heights)


@pytest.mark.parametrize("seed", range(6))
def test_diameters_are_those_of_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((3, 4, 4)) < 0.5
    found = measure(mask)
    longest, _ = longest_pairs(faces_mm(mask, SPACING_DHW))
    assert found.longest_mm == pytest.approx(longest)
    planes = [faces_mm(plane, SPACING_DHW[1:]) for plane in mask if plane.any()]
    axial = max(longest_pairs(points)[0] for points in planes)
    assert found.axial_longest_mm == pytest.approx(axial)
    shorts = [
        max(chords(points, (last - first) / axial))
        for points in planes
        for length, pairs in [longest_pairs(points)]
        if length > axial - 1e-9
        for first, last in pairs
    ]
    assert min(abs(found.axial_short_mm - short) for short in shorts) < 1e-6


@pytest.mark.parametrize(
    ("shape", "longest", "axial", "short"),
    [
        ((1, 1, 1), 3.0, 1.1, 0.8),  # mm of a voxel along D, W, H
        ((1, 1, 9), 9.9, 9.9, 0.8),
        ((5, 1, 1), 15.0, 1.1, 0.8),
        ((1, 10, 1), 8.0, 8.0, 1.1),
    ],
)
def test_rows_of_voxels(
    shape: tuple[int, int, int], longest: float, axial: float, short: float
) -> None:
    mask = np.zeros((8, 12, 14), bool)
    mask[2 : 2 + shape[0], 1 : 1 + shape[1], 3 : 3 + shape[2]] = True
    found = measure(mask)
    assert found.longest_mm == pytest.approx(longest)
    assert found.axial_longest_mm == pytest.approx(axial)
    assert found.axial_short_mm == pytest.approx(short)


def test_an_ellipsoid_has_its_axes() -> None:
    shape = (40, 120, 90)
    d, h, w = (
        (axis - size / 2) * step
        for axis, size, step in zip(np.ogrid[:40, :120, :90], shape, SPACING_DHW, strict=True)
    )
    turn = np.radians(30)
    first, second = np.cos(turn) * h + np.sin(turn) * w, np.cos(turn) * w - np.sin(turn) * h
    mask = (first / 30) ** 2 + (second / 15) ** 2 + (d / 20) ** 2 < 1
    found = measure(mask)
    assert found.longest_mm == pytest.approx(60, abs=1.5)
    assert found.axial_longest_mm == pytest.approx(60, abs=1.5)
    assert found.axial_short_mm == pytest.approx(30, abs=1.5)
    assert found.volume_ml == pytest.approx(4 / 3 * np.pi * 30 * 15 * 20 / 1000, rel=0.01)


def test_every_lesion_has_a_row_with_its_own_figures() -> None:
    instances = np.zeros((6, 8, 10), np.uint32)
    instances[1:3, 2:5, 3], instances[4, 6, 7:9], instances[0, 0, 0] = 2, 7, 9
    labels = np.zeros(instances.shape, np.uint8)
    labels[instances == 2], labels[instances == 7], labels[instances == 9] = 1, 2, 3
    volume = volume_of(instances.shape)
    first, second = lesion_statistics(volume, labels, instances, NAMES)
    assert (first.label, first.name, first.instance, first.voxels) == (1, "Liver tumors", 2, 6)
    assert (second.label, second.name, second.instance, second.voxels) == (2, "Liver cysts", 7, 2)
    assert first.volume_ml == pytest.approx(6 * 3.0 * 0.8 * 1.1 / 1000)
    assert first.mean == pytest.approx(volume.image_dhw[instances == 2].mean())
    assert first.center_lps_mm is None  # nothing is known of its place
    assert len(lesion_row(first)) == len(LESION_COLUMNS)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS[::5])
def test_centers_and_diameters_are_the_patients(
    order: tuple[int, ...], signs: tuple[float, ...]
) -> None:
    affine = affine_of(order, signs)
    angle = np.radians(12)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    affine[:2] = turn @ affine[:2]
    lesion_ijk = np.zeros((22, 16, 12), np.uint8)
    lesion_ijk[3:9, 4:7, 2:4], lesion_ijk[5, 5:12, 3] = 1, 1
    volume = Volume.from_array(lesion_ijk, affine, axes="ijk", frame="LPS")
    mask = volume.image_dhw
    (found,) = lesion_statistics(volume, mask, mask, NAMES)
    center = affine[:3, :3] @ np.argwhere(lesion_ijk).mean(axis=0) + affine[:3, 3]
    assert found.center_lps_mm == pytest.approx(center)
    steps = np.concatenate([np.eye(3), -np.eye(3)]) / 2
    faces = (np.argwhere(lesion_ijk)[:, None] + steps).reshape(-1, 3) @ affine[:3, :3].T
    assert found.longest_mm == pytest.approx(longest_pairs(faces)[0])


def test_nothing_found_is_no_row() -> None:
    nothing = np.zeros((3, 4, 5), np.uint32)
    assert lesion_statistics(volume_of(nothing.shape), nothing, nothing, NAMES) == ()


def test_another_shape_is_refused() -> None:
    volume, small = volume_of((3, 4, 5)), np.ones((3, 4, 4), np.uint8)
    full = np.ones((3, 4, 5), np.uint8)
    for labels, instances in ((small, full), (full, small)):
        with pytest.raises(InputError) as caught:
            lesion_statistics(volume, labels, instances, NAMES)
        assert caught.value.code == "shapes-differ"
