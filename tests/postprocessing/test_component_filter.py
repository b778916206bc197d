from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label

from medals_rt.common.arrays import to_host
from medals_rt.planning.policy import load_policy
from medals_rt.postprocessing.component_filter import (
    ComponentRemoval,
    drop_small_components,
    keep_probable_components,
)

FEWEST = load_policy().components.fewest_voxels


def test_golden_cases(golden: Path, xp: Any) -> None:
    """12 of 12 results of the release, exactly."""
    with np.load(golden / "postprocess_release.npz") as stored:
        assert len(stored.files) == 12 * 4
        for i in range(12):
            found, _ = keep_probable_components(
                xp.asarray(stored[f"{i}_seg"]),
                xp.asarray(stored[f"{i}_prob"]),
                stored[f"{i}_labels"].tolist(),
            )
            np.testing.assert_array_equal(to_host(found), stored[f"{i}_out"], err_msg=str(i))


def one_label_at_a_time(
    labels: np.ndarray, probability: np.ndarray, treated: list[int], size_ratio: float | None
) -> np.ndarray:
    """Algorithm 3 as it is written, with scipy's labels: slow and plain."""
    result = labels.copy()
    for value in treated:
        numbers, count = label(labels == value)
        if count == 0:
            continue
        components = sorted(range(1, count + 1), key=lambda c: -np.count_nonzero(numbers == c))[:3]
        means = {c: np.mean(probability[numbers == c], dtype=np.float64) for c in components}
        best = max(means.values())
        kept = [c for c in components if best - means[c] <= 0.1 and means[c] > 0.86]
        if len(kept) < 2:
            likeliest = max(components, key=lambda c: means[c])
            share = np.count_nonzero(numbers == likeliest) / np.count_nonzero(
                numbers == components[0]
            )
            trusted = likeliest in components[:2] and (size_ratio is None or share > size_ratio)
            kept = [likeliest if trusted else components[0]]
        result[(labels == value) & ~np.isin(numbers, kept)] = 0
    return result


@settings(max_examples=80)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(*[st.integers(1, 12)] * 3),
    st.sampled_from([None, 0.6]),
    st.sampled_from([np.uint8, np.int16, np.uint16]),
)
def test_equals_the_written_rule_and_never_adds_a_voxel(
    seed: int, shape: tuple[int, ...], size_ratio: float | None, dtype: type
) -> None:
    rng = np.random.default_rng(seed)
    sparse = rng.random(shape) < rng.random()
    labels = (rng.integers(0, 4, shape) * sparse).astype(dtype)
    # Per-region offsets move means across the thresholds; noise keeps them off exact ties.
    probability = (rng.choice([0.55, 0.85, 0.95]) + 0.04 * rng.random(shape)).astype(np.float32)
    probability[: shape[0] // 2] -= np.float32(0.07)
    found, _ = keep_probable_components(labels, probability, [1, 3, 200], size_ratio)
    assert found.dtype == dtype
    np.testing.assert_array_equal(
        found, one_label_at_a_time(labels, probability, [1, 3], size_ratio)
    )
    assert ((found == labels) | (found == 0)).all()
    np.testing.assert_array_equal(found == 2, labels == 2)


def bars(*lengths_and_means: tuple[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """Components in a row each: so many voxels long, of that probability."""
    count = len(lengths_and_means)
    labels = np.zeros((2 * count, 1, 20), np.uint8)
    probability = np.zeros(labels.shape, np.float32)
    for row, (length, mean) in enumerate(lengths_and_means):
        labels[2 * row, 0, :length] = 1
        probability[2 * row] = mean
    return labels, probability


@pytest.mark.parametrize(
    ("components", "size_ratio", "kept"),
    [
        ([(20, 0.70), (10, 0.80)], None, [1]),  # the likelier of the two largest
        ([(20, 0.70), (10, 0.80)], 0.6, [0]),  # ... but it is only half as large
        ([(20, 0.70), (13, 0.80)], 0.6, [1]),
        ([(20, 0.70), (12, 0.80)], 0.6, [0]),  # more than 0.6, not exactly 0.6
        ([(20, 0.70), (13, 0.60), (12, 0.99)], None, [0]),  # the likeliest is third in size
        ([(20, 0.90), (13, 0.95), (12, 0.87)], None, [0, 1, 2]),  # all sure and close
        ([(20, 0.90), (13, 0.95), (12, 0.84)], None, [0, 1]),  # not above 0.86
        ([(20, 0.80), (13, 0.95), (12, 0.94)], 0.6, [1, 2]),
        ([(20, 0.90), (13, 0.95), (12, 0.94), (11, 0.96)], None, [0, 1, 2]),  # fourth: never
        ([(9, 0.50), (9, 0.50)], None, [0]),  # of equals the first met
    ],
)
def test_which_components_stay(
    components: list[tuple[int, float]], size_ratio: float | None, kept: list[int]
) -> None:
    labels, probability = bars(*components)
    found, _ = keep_probable_components(labels, probability, [1], size_ratio)
    stayed = [row for row in range(len(components)) if found[2 * row].any()]
    assert stayed == kept


def cut(components: list[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Components as of `bars`, whose first voxels lie at the edge of the image's last axis."""
    labels, probability = bars(*components)
    return np.pad(labels, ((1, 1), (0, 0), (0, 0))), np.pad(probability, ((1, 1), (0, 0), (0, 0)))


@pytest.mark.parametrize(
    ("components", "stay"),
    [
        ([(20, 0.82), (3, 0.80)], [0, 1]),  # an aorta below its arch
        ([(20, 0.82), (3, 0.71)], [0]),  # less likely than the rest
        ([(20, 0.82), (5, 0.80), (4, 0.80), (3, 0.80), (2, 0.80)], [0, 1, 2, 3, 4]),
        ([(3, 0.95), (20, 0.86), (19, 0.80)], [0, 1]),  # beside the best of the three largest
    ],
)
@pytest.mark.parametrize("side", [False, True])
def test_pieces_at_the_edge_stay_where_they_are_likely(
    components: list[tuple[int, float]], stay: list[int], side: bool, xp: Any
) -> None:
    labels, probability = cut(components)
    if side:
        labels, probability = labels[..., ::-1].copy(), probability[..., ::-1].copy()
    found, _ = keep_probable_components(
        xp.asarray(labels), xp.asarray(probability), [1], 0.6, keeps_cut_pieces=True
    )
    kept = to_host(found)[1:-1]
    assert [row for row in range(len(components)) if kept[2 * row].any()] == stay


def test_a_single_slice_has_no_edge_but_its_sides() -> None:
    labels, probability = bars((9, 0.8), (3, 0.8))
    labels, probability = (np.pad(a, ((1, 1), (0, 0), (1, 1))) for a in (labels, probability))
    found, removals = keep_probable_components(labels, probability, [1], 0.6, keeps_cut_pieces=True)
    assert found.sum() == 9
    assert removals == (ComponentRemoval(1, 1, 3, 9),)


@pytest.mark.parametrize(
    ("known", "stay"),
    [
        ([], [0]),  # nobody has seen to it: the rule
        ([1], [1]),  # the smaller one, by hand: the larger one stays away
        ([0, 2], [0, 2]),
        ([0, 1, 2, 3], [0, 1, 2, 3]),
    ],
)
def test_who_corrected_a_class_chose_its_pieces(known: list[int], stay: list[int], xp: Any) -> None:
    labels, probability = bars((20, 0.7), (13, 0.6), (5, 0.8), (4, 0.9))
    seen = np.zeros_like(labels)
    for row in known:
        seen[2 * row, 0, :2] = 1
    labels[-1], probability[-1] = 0, 0.5
    labels[-1, 0, [0, 3]] = 2  # of another class, which nobody has seen to
    seen[-1, 0, 3] = 1
    found, removals = keep_probable_components(
        xp.asarray(labels), xp.asarray(probability), [1, 2], 0.6, known=xp.asarray(seen)
    )
    assert [row for row in range(4) if to_host(found)[2 * row].any()] == stay
    assert to_host(found)[-1, 0].nonzero()[0].tolist() == [0]
    assert removals[0].components_removed == 4 - len(stay)


def test_labels_that_are_not_treated_are_not_counted() -> None:
    labels, probability = bars((9, 0.5), (3, 0.5), (4, 0.5), (2, 0.5))
    labels[4:] *= 2
    found, removals = keep_probable_components(labels, probability, [2, 7])
    assert removals == (ComponentRemoval(2, 1, 2, 4),)
    assert np.count_nonzero(found == 1) == 12


def test_touching_labels_are_separate_components(xp: Any) -> None:
    labels = np.zeros((1, 1, 10), np.uint8)
    labels[0, 0] = [1, 1, 2, 1, 1, 1, 0, 2, 2, 2]
    probability = xp.full((1, 1, 10), 0.5, dtype=xp.float32)
    found, _ = keep_probable_components(xp.asarray(labels), probability, [1, 2])
    assert to_host(found)[0, 0].tolist() == [0, 0, 0, 1, 1, 1, 0, 2, 2, 2]


def test_input_is_left_alone(xp: Any) -> None:
    labels, probability = bars((5, 0.5), (3, 0.5))
    given_labels = xp.asarray(labels)
    keep_probable_components(given_labels, xp.asarray(probability), [1])
    np.testing.assert_array_equal(to_host(given_labels), labels)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_small_components_go(seed: int, min_voxels: int) -> None:
    """Beside scipy's labels, whose default is six neighbors too."""
    rng = np.random.default_rng(seed)
    mask = rng.random((9, 8, 7)) < rng.uniform(0.05, 0.5)
    numbers, _ = label(mask)
    sizes = np.bincount(numbers.ravel())
    expected = mask & (sizes[numbers] >= min_voxels)
    found = drop_small_components(mask, min_voxels)
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found, expected)
    assert not (found & ~mask).any()


def test_ten_voxels_are_enough(xp: Any) -> None:
    mask = np.zeros((3, 1, 12), np.bool_)
    mask[0, 0, :9] = True
    mask[2, 0, :10] = True
    found = to_host(drop_small_components(xp.asarray(mask), FEWEST))
    assert not found[0].any()
    np.testing.assert_array_equal(found[2], mask[2])


@pytest.mark.parametrize("shape", [(3, 3, 3), (1, 1, 1)])
def test_nothing_in_nothing_out(xp: Any, shape: tuple[int, int, int]) -> None:
    empty = xp.zeros(shape, dtype=xp.uint8)
    assert not to_host(drop_small_components(empty > 0, FEWEST)).any()
    probability = xp.zeros(shape, dtype=xp.float32)
    assert not to_host(keep_probable_components(empty, probability, [1, 2])[0]).any()
