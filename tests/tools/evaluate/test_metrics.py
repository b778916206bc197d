"""DSC, NSD, F1 and DSC TP against the public package and against plain definitions."""

import math
import warnings
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt, gaussian_filter, label
from scipy.optimize import linear_sum_assignment

from medals_rt.tools.evaluate.metrics import (
    dice_by_label,
    match_instances,
    nsd_by_label,
    overlap_table,
    split_binary,
)
from medals_rt.tools.evaluate.surface import surface_dice, surface_of

SIX_DECIMALS = 1e-6


def blobs(seed: int, shape: tuple[int, int, int], smoothing: float = 1.5) -> tuple:
    """Two similar lumpy masks."""
    rng = np.random.default_rng(seed)
    first = gaussian_filter(rng.standard_normal(shape), smoothing)
    second = first + 0.4 * first.std() * gaussian_filter(rng.standard_normal(shape), 1) / 0.2
    return first > 0.5 * first.std(), second > 0.5 * second.std()


def public_nsd(first: np.ndarray, second: np.ndarray, spacing: tuple, tolerance: float) -> float:
    """The package that the challenge scores with."""
    surface_distance = pytest.importorskip("surface_distance")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses names that scipy has deprecated
        distances = surface_distance.compute_surface_distances(first, second, spacing)
        return surface_distance.compute_surface_dice_at_tolerance(distances, tolerance)


@pytest.mark.parametrize("seed", range(12))
def test_nsd_equals_the_public_package_to_six_decimals(seed: int) -> None:
    rng = np.random.default_rng(1000 + seed)
    shape = tuple(int(n) for n in rng.integers(6, 40, 3))
    first, second = blobs(seed, shape)
    spacing = tuple(float(s) for s in rng.choice([0.5, 0.7, 1.0, 2.0, 3.3, 5.0], 3))
    for tolerance in (1.0, 2.0):
        expected = public_nsd(first, second, spacing, tolerance)
        assert surface_dice(first, second, spacing, tolerance) == pytest.approx(
            expected, abs=SIX_DECIMALS
        )


def test_every_neighborhood_has_the_public_package_area() -> None:
    """All 256 two-voxel neighborhoods, by masks that consist of one."""
    spacing = (0.8, 1.7, 2.9)
    pytest.importorskip("surface_distance")
    from surface_distance import lookup_tables

    areas = lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
    kernel = lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL
    corners = list(product((0, 1), repeat=3))
    for code in range(1, 256):
        mask = np.zeros((2, 2, 2), dtype=bool)
        for corner in corners:
            mask[corner] = bool(code & int(kernel[corner]))
        surface = surface_of(mask, spacing)
        center = np.all(surface.positions == 1, axis=1)
        found = surface.areas_mm2[center].sum()
        assert found == pytest.approx(areas[code], abs=1e-12), f"code {code:08b}"


def test_a_surface_of_exactly_the_tolerance_away_touches() -> None:
    first = np.zeros((12, 8, 8), dtype=bool)
    second = first.copy()
    first[2:6], second[4:8] = True, True
    assert surface_dice(first, second, (1.0, 1.0, 1.0), 2.0) == 1.0
    assert surface_dice(first, second, (1.0, 1.0, 1.0), 1.99) < 1.0


def test_nsd_by_a_plain_distance_map() -> None:
    """The tree against full distance maps, on spacings that are not exact in binary."""
    first, second = blobs(5, (20, 24, 22))
    spacing, tolerance = (0.3, 0.7, 1.1), 2.1
    touching = total = 0.0
    surfaces = [surface_of(mask, spacing) for mask in (first, second)]
    for one, other in (surfaces, surfaces[::-1]):
        free = np.ones(np.add(first.shape, 1), dtype=bool)
        free[tuple(other.positions.T)] = False
        distances = distance_transform_edt(free, sampling=spacing)[tuple(one.positions.T)]
        touching += one.areas_mm2[distances <= tolerance].sum()
        total += one.areas_mm2.sum()
    assert surface_dice(first, second, spacing, tolerance) == pytest.approx(touching / total)


def test_nsd_of_empty_masks() -> None:
    full, empty = np.ones((3, 3, 3), dtype=bool), np.zeros((3, 3, 3), dtype=bool)
    assert surface_dice(full, empty, (1.0, 1.0, 1.0)) == 0.0
    assert surface_dice(empty, full, (1.0, 1.0, 1.0)) == 0.0
    assert math.isnan(surface_dice(empty, empty, (1.0, 1.0, 1.0)))


def test_axis_order_of_the_spacing_matters_and_both_are_given() -> None:
    reference = np.zeros((10, 20, 20), dtype=np.uint8)
    predicted = reference.copy()
    reference[3:6, 5:15, 5:15] = 4
    predicted[4:7, 5:15, 5:15] = 4
    scores = nsd_by_label(predicted, reference, [4], [(5.0, 1.0, 1.0), (1.0, 1.0, 5.0)])
    apart, together = scores[4]
    assert apart < 0.75
    assert together == 1.0
    assert apart == pytest.approx(
        public_nsd(reference == 4, predicted == 4, (5.0, 1.0, 1.0), 2.0), abs=SIX_DECIMALS
    )


def test_nsd_by_label_on_crops_equals_whole_masks() -> None:
    rng = np.random.default_rng(3)
    reference = (gaussian_filter(rng.standard_normal((24, 30, 28)), 2) * 40).astype(int).clip(0, 4)
    predicted = np.roll(reference, (1, -2, 1), (0, 1, 2))
    spacing = (2.0, 0.9, 0.9)
    scores = nsd_by_label(predicted, reference, [1, 2, 3, 9], [spacing])
    for value in (1, 2, 3):
        expected = surface_dice(predicted == value, reference == value, spacing)
        assert scores[value][0] == pytest.approx(expected, abs=1e-12)
    assert math.isnan(scores[9][0])


@given(st.integers(0, 2**32 - 1), st.sampled_from([np.uint8, np.uint16, np.int32]))
@settings(max_examples=25, deadline=None)
def test_dice_by_label_equals_the_definition(seed: int, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    reference = rng.choice([0, 0, 1, 2, 7, 250], (5, 6, 7)).astype(dtype)
    predicted = np.where(rng.random(reference.shape) < 0.6, reference, 2).astype(dtype)
    scores = dice_by_label(predicted, reference, [1, 2, 7, 250, 99])
    for value in (1, 2, 7, 250):
        p, r = predicted == value, reference == value
        size = p.sum() + r.sum()
        expected = 2 * (p & r).sum() / size if size else math.nan
        assert scores[value] == pytest.approx(expected, nan_ok=True)
    assert math.isnan(scores[99])


def test_overlap_table_counts_pairs_in_both_of_its_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 6, (2, 8, 9, 10))
    dense = overlap_table(first, second)
    monkeypatch.setattr("medals_rt.tools.evaluate.metrics._LARGEST_DENSE_TABLE", 0)
    sparse = overlap_table(first, second)
    for name in ("first_labels", "first_sizes", "second_labels", "second_sizes", "overlaps"):
        np.testing.assert_array_equal(getattr(dense, name), getattr(sparse, name))
    for i, j, count in zip(dense.pair_first, dense.pair_second, dense.overlaps, strict=True):
        both = (first == dense.first_labels[i]) & (second == dense.second_labels[j])
        assert count == both.sum()


def plain_matching(predicted: np.ndarray, reference: np.ndarray) -> tuple[int, float]:
    """The public script's definition: a mask a pair, Hungarian on all pairs."""
    ps, rs = (np.unique(a[a > 0]) for a in (predicted, reference))
    iou, dice = np.zeros((2, len(rs), len(ps)))
    for i, j in product(range(len(rs)), range(len(ps))):
        r, p = reference == rs[i], predicted == ps[j]
        iou[i, j] = (r & p).sum() / (r | p).sum()
        dice[i, j] = 2 * (r & p).sum() / (r.sum() + p.sum())
    if not iou.size:
        return 0, 0.0
    rows, columns = linear_sum_assignment(-(iou >= 0.5).astype(float) - iou / (2 * min(iou.shape)))
    good = iou[rows, columns] >= 0.5
    matched = dice[rows, columns][good]
    return int(good.sum()), float(matched.mean()) if good.any() else 0.0


@pytest.mark.parametrize("seed", range(15))
def test_matching_equals_the_public_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.standard_normal((20, 24, 24)), 1.2)
    reference = label(smooth > 0.35)[0]
    shifted = smooth + 0.12 * gaussian_filter(rng.standard_normal(smooth.shape), 1)
    predicted = label(np.roll(shifted, int(rng.integers(0, 2)), 0) > 0.33)[0]
    score = match_instances(predicted, reference)
    hits, dsc_tp = plain_matching(predicted, reference)
    assert (score.true_positives, score.dsc_tp) == (hits, pytest.approx(dsc_tp))
    assert score.false_positives == predicted.max() - hits
    assert score.false_negatives == reference.max() - hits
    counts = 2 * hits + score.false_positives + score.false_negatives
    assert score.f1 == pytest.approx(2 * hits / counts)


def test_a_tie_at_exactly_half_counts_once() -> None:
    reference = np.ones((1, 1, 4), dtype=np.uint8)
    predicted = np.array([[[1, 1, 2, 2]]], dtype=np.uint8)
    score = match_instances(predicted, reference)
    assert (score.true_positives, score.false_positives, score.false_negatives) == (1, 1, 0)
    assert score.dsc_tp == pytest.approx(2 / 3)


def test_matching_where_there_is_nothing() -> None:
    empty, one = np.zeros((2, 2, 2), np.uint8), np.ones((2, 2, 2), np.uint8)
    assert match_instances(empty, empty).f1 == 0.0  # as the public script has it
    assert match_instances(empty, one).false_negatives == 1
    assert match_instances(one, empty).false_positives == 1
    assert match_instances(one, one).f1 == 1.0


def test_binary_predictions_are_split_by_faces_only() -> None:
    mask = np.zeros((3, 4, 4), dtype=np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 3, 3] = mask[2, 3, 2] = 5
    assert len(np.unique(split_binary(mask))) == 1 + 3
    two = mask.copy()
    two[0, 0, 0] = 1
    assert split_binary(two) is two


def test_three_hundred_instances_need_no_mask_a_pair() -> None:
    """Scaled: memory stays a small multiple of the volume, whatever the number of instances."""
    import tracemalloc

    shape = (60, 100, 100)
    cells = np.arange(300, dtype=np.uint16).reshape(6, 5, 10) + 1
    reference = np.kron(cells, np.ones((10, 20, 10), np.uint16))
    predicted = np.roll(reference, 2, axis=1)
    assert reference.shape == shape
    tracemalloc.start()
    score = match_instances(predicted, reference)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert score.true_positives == 300
    assert peak < 40 * reference.size
