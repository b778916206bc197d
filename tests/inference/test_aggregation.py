"""What windows come to: against whole arrays of all classes at once, to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medals_rt.common.arrays import to_host
from medals_rt.inference.aggregation import LabelMap, SlabAggregator, empty_label_map
from medals_rt.inference.largest_values import LargestValues
from medals_rt.planning.memory import TileSweep, slab_bytes
from medals_rt.planning.sliding_window import Window, gaussian_weights, padded_shape, plan_windows

HALF = 0.5
WINDOW = (8, 8, 4)
SHAPES = [(8, 8, 4), (5, 9, 3), (19, 13, 9), (33, 8, 5), (24, 20, 4)]


def plain(
    windows: tuple[Window, ...],
    shape: tuple[int, int, int],
    probabilities: list[np.ndarray],
    label_values: tuple[int, ...],
) -> tuple[np.ndarray, np.ndarray]:
    """The release's method: whole volumes of sums for all classes at once."""
    padded = padded_shape(shape, WINDOW)
    weights = gaussian_weights(WINDOW)
    sums = np.zeros((len(label_values), *padded), np.float32)
    weight_sums = np.zeros(padded, np.float32)
    for window, probability in zip(windows, probabilities, strict=True):
        sums[(slice(None), *window.slices)] += probability * weights
        weight_sums[window.slices] += weights
    mean = sums / weight_sums
    labels = np.asarray(label_values)[mean.argmax(0)]
    labels[mean.max(0) < 0.5] = 0
    h, w, d = shape
    return labels[:h, :w, :d], mean.max(0)[:h, :w, :d]


def few_levels(count: int, windows: int, seed: int) -> list[np.ndarray]:
    """Probabilities of few levels, so that equal ones and exact halves come up."""
    rng = np.random.default_rng(seed)
    return [
        rng.integers(0, 5, (count, *WINDOW)).astype(np.float32) / np.float32(4)
        for _ in range(windows)
    ]


def aggregated(
    windows: tuple[Window, ...],
    shape: tuple[int, int, int],
    probabilities: list[np.ndarray],
    label_values: tuple[int, ...],
    xp: Any = np,
    sweeps: Sequence[TileSweep] = (),
    chunk_size: int | None = None,
    masks: np.ndarray | None = None,
    keep_probability: bool = True,
) -> LabelMap:
    """Sweep by sweep (else all at once), a window in chunks of classes and, masked, in halves."""
    weights = gaussian_weights(WINDOW, xp)
    label_map = empty_label_map(shape, label_values, weights, keep_probability=keep_probability)
    everywhere = (slice(0, shape[1]), slice(0, shape[2]))
    at_once = TileSweep(slice(0, len(label_values)), everywhere, tuple(range(len(windows))))
    for sweep in sweeps or [at_once]:
        group = sweep.classes
        chosen = [windows[index] for index in sweep.windows]
        slabs = SlabAggregator(chosen, label_values[group], weights, label_map, HALF, sweep.columns)
        size = group.stop - group.start
        for index, window in zip(sweep.windows, chosen, strict=True):
            probability = probabilities[index]
            slabs.begin(window)
            for first in range(0, size, chunk_size or size):
                chunk = slice(first, min(first + (chunk_size or size), size))
                values = xp.asarray(probability[group][chunk])
                if masks is None:
                    slabs.add(chunk, values)
                else:
                    other = xp.asarray(np.random.default_rng(1).random(values.shape, np.float32))
                    valid_mask = xp.asarray(masks)
                    slabs.add(chunk, xp.where(valid_mask, values, other), valid_mask)
                    slabs.add(chunk, xp.where(valid_mask, other, values), ~valid_mask)
        label_map = slabs.result()
    return label_map


def cut_sweeps(
    windows: tuple[Window, ...], shape: tuple[int, int, int], count: int, group_size: int, seed: int
) -> list[TileSweep]:
    """Groups of classes in every block of a grid of columns that is drawn at random."""
    rng = np.random.default_rng(seed)
    edges = [
        sorted({0, length, *rng.integers(1, length, rng.integers(0, 4)).tolist()})
        if length > 1
        else [0, 1]
        for length in shape[1:]
    ]
    along_w, along_d = ([slice(a, b) for a, b in pairwise(cuts)] for cuts in edges)
    sweeps = []
    for w, d in product(along_w, along_d):
        reaching = tuple(
            index
            for index, window in enumerate(windows)
            if window.starts_hwd[1] < w.stop
            and window.stops_hwd[1] > w.start
            and window.starts_hwd[2] < d.stop
            and window.stops_hwd[2] > d.start
        )
        groups = [slice(k, min(k + group_size, count)) for k in range(0, count, group_size)]
        sweeps += [TileSweep(group, (w, d), reaching) for group in groups]
    return sweeps


@given(st.tuples(*[st.integers(1, 21)] * 3))
def test_where_every_probability_is_one_so_is_the_mean(shape: tuple[int, int, int]) -> None:
    windows = plan_windows(padded_shape(shape, WINDOW), WINDOW)
    ones = [np.ones((1, *WINDOW), np.float32) for _ in windows]
    label_map = aggregated(windows, shape, ones, (3,))
    assert label_map.labels_hwd.shape == shape
    assert (label_map.labels_hwd == 3).all()
    np.testing.assert_array_equal(label_map.probability_hwd, 1)
    assert label_map.uncovered_hwd is None


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cut", [False, True])
def test_slabs_give_the_plain_labels_to_the_bit(
    xp: Any, shape: tuple[int, int, int], cut: bool
) -> None:
    windows = plan_windows(padded_shape(shape, WINDOW), WINDOW)
    values = (4, 260, 7)
    probabilities = few_levels(3, len(windows), shape[0])
    sweeps = cut_sweeps(windows, shape, 3, 2, seed=shape[0]) if cut else ()
    assert not cut or len(sweeps) > 2
    label_map = aggregated(windows, shape, probabilities, values, xp, sweeps)
    expected, expected_probability = plain(windows, shape, probabilities, values)
    assert label_map.labels_hwd.dtype == xp.uint16
    np.testing.assert_array_equal(to_host(label_map.labels_hwd), expected)
    np.testing.assert_array_equal(to_host(label_map.probability_hwd), expected_probability)


@given(
    shape=st.tuples(st.integers(1, 21), st.integers(1, 21), st.integers(1, 11)),
    count=st.integers(1, 7),
    group_size=st.integers(1, 7),
    chunk_size=st.integers(1, 7),
    overlap=st.sampled_from([0.5, 0.25]),
    masked=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_blocks_groups_chunks_and_halves_change_nothing(
    shape: tuple[int, int, int],
    count: int,
    group_size: int,
    chunk_size: int,
    overlap: float,
    masked: bool,
    seed: int,
) -> None:
    windows = plan_windows(padded_shape(shape, WINDOW), WINDOW, overlap)
    values = tuple(np.random.default_rng(seed).permutation(np.arange(1, 300))[:count].tolist())
    probabilities = few_levels(count, len(windows), seed)
    masks = np.random.default_rng(seed).random(WINDOW) > 0.5 if masked else None
    label_map = aggregated(
        windows,
        shape,
        probabilities,
        values,
        sweeps=cut_sweeps(windows, shape, count, group_size, seed),
        chunk_size=chunk_size,
        masks=masks,
    )
    expected, expected_probability = plain(windows, shape, probabilities, values)
    np.testing.assert_array_equal(label_map.labels_hwd, expected)
    np.testing.assert_array_equal(label_map.probability_hwd, expected_probability)


@pytest.mark.usefixtures("all_cores")
def test_large_windows_go_through_blocks_and_threads_to_the_same_bits() -> None:
    """More voxels than one block: what threads share out must come together."""
    window, shape, values = (96, 96, 32), (150, 130, 40), (1, 2)
    windows = plan_windows(padded_shape(shape, window), window)
    rng = np.random.default_rng(0)
    weights = gaussian_weights(window)
    nothing = empty_label_map(shape, values, weights, keep_probability=True)
    slabs = SlabAggregator(windows, values, weights, nothing, HALF)
    padded = padded_shape(shape, window)
    sums, weight_sums = np.zeros((2, *padded), np.float32), np.zeros(padded, np.float32)
    for each in windows:
        probabilities = rng.random((2, *window), np.float32)
        slabs.begin(each)
        slabs.add(slice(0, 2), probabilities)
        sums[(slice(None), *each.slices)] += probabilities * weights
        weight_sums[each.slices] += weights
    h, w, d = shape
    mean = (sums / weight_sums)[:, :h, :w, :d]
    label_map = slabs.result()
    np.testing.assert_array_equal(label_map.probability_hwd, mean.max(0))
    labels = np.where(mean.max(0) >= 0.5, mean.argmax(0) + 1, 0)
    np.testing.assert_array_equal(label_map.labels_hwd, labels)


def test_windows_left_out_leave_what_no_other_reaches_uncovered(xp: Any) -> None:
    shape = (20, 8, 4)
    windows = plan_windows(shape, WINDOW)
    assert [window.starts_hwd[0] for window in windows] == [0, 4, 8, 12]
    weights = gaussian_weights(WINDOW, xp)
    nothing = empty_label_map(shape, (5,), weights, keep_probability=True)
    slabs = SlabAggregator(windows, (5,), weights, nothing, HALF)
    ones = xp.ones((1, *WINDOW), dtype=xp.float32)
    for window in windows[:2]:
        slabs.begin(window)
        slabs.add(slice(0, 1), ones)
    for window in windows[2:]:
        slabs.skip(window)
    label_map = slabs.result()
    uncovered = to_host(label_map.uncovered_hwd)
    assert not uncovered[:12].any()
    assert uncovered[12:].all()
    np.testing.assert_array_equal(to_host(label_map.labels_hwd), np.where(uncovered, 0, 5))
    np.testing.assert_array_equal(to_host(label_map.probability_hwd), np.where(uncovered, 0, 1))


def test_slabs_hold_one_row_of_windows(xp: Any) -> None:
    windows = plan_windows((200, 16, 4), WINDOW)
    weights = gaussian_weights(WINDOW, xp)
    nothing = empty_label_map((200, 16, 4), (1, 2), weights, keep_probability=False)
    assert nothing.labels_hwd.dtype == xp.uint8
    slabs = SlabAggregator(windows, (1, 2), weights, nothing, HALF)
    assert tuple(slabs._sums.shape) == (2, 8, 16, 4)
    assert slabs_bytes_of(slabs) == slab_bytes(2, (8, 16, 4))
    block = (slice(3, 9), slice(0, 4))
    slabs = SlabAggregator(windows, (1, 2), weights, nothing, HALF, block)
    assert tuple(slabs._sums.shape) == (2, 8, 6, 4)
    assert slabs_bytes_of(slabs) == slab_bytes(2, (8, 6, 4))


def slabs_bytes_of(slabs: SlabAggregator) -> int:
    shapes = (slabs._sums.shape, slabs._weight_sums.shape)
    return sum(4 * int(np.prod(shape)) for shape in shapes)


def test_ties_go_to_the_first_class_and_half_is_foreground() -> None:
    windows = plan_windows(WINDOW, WINDOW)
    weights = gaussian_weights(WINDOW)
    nothing = empty_label_map(WINDOW, (9, 2), weights, keep_probability=False)
    slabs = SlabAggregator(windows, (9, 2), weights, nothing, HALF)
    halves = np.full((2, *WINDOW), 0.5, np.float32)
    halves[:, 0] = np.float32(0.49)
    slabs.begin(windows[0])
    slabs.add(slice(0, 2), halves)
    label_map = slabs.result()
    assert label_map.probability_hwd is None
    assert (label_map.labels_hwd[0] == 0).all()
    assert (label_map.labels_hwd[1:] == 9).all()


def test_blocks_need_no_probability() -> None:
    """Labels alone, where each voxel is decided once: blocks of columns, but one group."""
    shape, values = (19, 13, 9), (4, 2, 7)
    windows = plan_windows(padded_shape(shape, WINDOW), WINDOW)
    probabilities = few_levels(3, len(windows), 0)
    sweeps = cut_sweeps(windows, shape, 3, 3, seed=4)
    assert len(sweeps) > 1
    label_map = aggregated(
        windows, shape, probabilities, values, sweeps=sweeps, keep_probability=False
    )
    assert label_map.probability_hwd is None
    np.testing.assert_array_equal(
        label_map.labels_hwd, plain(windows, shape, probabilities, values)[0]
    )


def test_windows_left_out_of_one_block_are_uncovered_there_only() -> None:
    shape = (8, 12, 4)
    windows = plan_windows(shape, WINDOW)
    assert [window.starts_hwd[1] for window in windows] == [0, 4]
    weights = gaussian_weights(WINDOW)
    ones = np.ones((1, *WINDOW), np.float32)
    label_map = empty_label_map(shape, (5,), weights, keep_probability=True)
    for columns, left_out in ((slice(0, 6), ()), (slice(6, 12), (1,))):
        slabs = SlabAggregator(windows, (5,), weights, label_map, HALF, (columns, slice(0, 4)))
        for index, window in enumerate(windows):
            if index in left_out:
                slabs.skip(window)
            else:
                slabs.begin(window)
                slabs.add(slice(0, 1), ones)
        label_map = slabs.result()
    assert not label_map.uncovered_hwd[:, :8].any()
    assert label_map.uncovered_hwd[:, 8:].all()
    np.testing.assert_array_equal(label_map.labels_hwd, np.where(label_map.uncovered_hwd, 0, 5))


def test_one_probability_that_is_nan_shows(xp: Any) -> None:
    """Of a class that is not the most probable, at a voxel of which another window is finite."""
    shape = (12, 8, 4)
    windows = plan_windows(shape, WINDOW)
    for amiss, expected in ((np.nan, False), (0.1, True)):
        weights, largest = gaussian_weights(WINDOW, xp), LargestValues()
        nothing = empty_label_map(shape, (1, 2), weights, keep_probability=False)
        slabs = SlabAggregator(windows, (1, 2), weights, nothing, HALF, largest=largest)
        for number, window in enumerate(windows):
            probabilities = np.full((2, *WINDOW), 0.9, np.float32)
            if number == 0:
                probabilities[1, 5, 4, 3] = amiss
            slabs.begin(window)
            slabs.add(slice(0, 2), xp.asarray(probabilities))
        slabs.result()
        assert largest.are_finite() == expected


def test_windows_out_of_turn_or_missing_are_refused() -> None:
    windows = plan_windows((12, 8, 4), WINDOW)
    weights = gaussian_weights(WINDOW)
    nothing = empty_label_map((12, 8, 4), (1,), weights, keep_probability=False)
    slabs = SlabAggregator(windows, (1,), weights, nothing, HALF)
    with pytest.raises(ValueError, match="no window was begun"):
        slabs.add(slice(0, 1), np.ones((1, *WINDOW), np.float32))
    with pytest.raises(ValueError, match="not the next window"):
        slabs.begin(windows[1])
    slabs = SlabAggregator(windows, (1,), weights, nothing, HALF)
    slabs.begin(windows[0])
    with pytest.raises(ValueError, match="never added"):
        slabs.result()
    with pytest.raises(ValueError, match="H axis slowest"):
        SlabAggregator(windows[::-1], (1,), weights, nothing, HALF)
    with pytest.raises(ValueError, match="at least one window"):
        SlabAggregator((), (1,), weights, nothing, HALF)
    with pytest.raises(ValueError, match="no class"):
        SlabAggregator(windows, (), weights, nothing, HALF)
    beside = plan_windows((12, 16, 4), WINDOW)
    wide = empty_label_map((12, 16, 4), (1,), weights, keep_probability=False)
    with pytest.raises(ValueError, match="does not reach into"):
        SlabAggregator(beside, (1,), weights, wide, HALF, (slice(0, 4), slice(0, 4)))
