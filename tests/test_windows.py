from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from medals_rt.arrays import to_host
from medals_rt.windows import (
    SlabAccumulator,
    Window,
    gaussian_weights,
    gaussian_weights_float16,
    pad_far_end,
    padded_shape,
    plan_windows,
    window_starts,
)

WINDOW = (8, 8, 4)


def test_golden_weights_to_the_bit(golden: Path) -> None:
    with np.load(golden / "gaussian.npz") as stored:
        assert len(stored.files) == 3
        for name in stored.files:
            shape = tuple(int(n) for n in name.removeprefix("gauss_").split("x"))
            found = gaussian_weights_float16(shape)
            assert found.dtype == np.float16
            np.testing.assert_array_equal(found, stored[name])


def test_weights_are_those_of_filtering_a_point() -> None:
    """A second reference for shapes that the golden figures lack: scipy's filter, to the bit."""
    shape = (48, 40, 30)
    point = np.zeros(shape)
    point[tuple(n // 2 for n in shape)] = 1
    filtered = gaussian_filter(point, [n / 8 for n in shape], mode="constant")
    expected = (filtered / filtered.max() * 10).astype(np.float16)
    expected[expected == 0] = expected[expected != 0].min()
    np.testing.assert_array_equal(gaussian_weights_float16(shape), expected)


def test_weights_as_float32_keep_float16_values(xp: Any) -> None:
    weights = gaussian_weights(WINDOW, xp)
    assert weights.dtype == xp.float32
    np.testing.assert_array_equal(to_host(weights), gaussian_weights_float16(WINDOW))


@pytest.mark.parametrize(
    ("length", "window", "starts"),
    [
        (192, 192, (0,)),
        (193, 192, (0, 1)),
        (288, 192, (0, 96)),
        (300, 192, (0, 96, 108)),
        (384, 192, (0, 96, 192)),
    ],
)
def test_window_starts(length: int, window: int, starts: tuple[int, ...]) -> None:
    assert window_starts(length, window) == starts


@given(st.integers(1, 60).map(lambda n: 2 * n), st.integers(0, 400))
def test_windows_cover_an_axis_and_stay_inside(window: int, extra: int) -> None:
    length = window + extra
    starts = window_starts(length, window)
    assert starts[0] == 0
    assert starts[-1] == length - window
    assert all(0 < b - a <= window // 2 for a, b in pairwise(starts))


@given(st.tuples(*[st.integers(1, 21)] * 3))
def test_windows_cover_every_voxel_and_weights_sum_right(shape: tuple[int, int, int]) -> None:
    """Where every probability is one, so is the weighted mean, everywhere."""
    padded = padded_shape(shape, WINDOW)
    weights = gaussian_weights(WINDOW)
    sums = np.zeros(padded, np.float32)
    for window in plan_windows(padded, WINDOW):
        assert sums[window.slices].shape == WINDOW
        sums[window.slices] += weights
    assert sums.min() > 0
    gathered = SlabAccumulator(
        plan_windows(padded, WINDOW), shape, (3,), weights, keep_probability=True
    )
    for window in plan_windows(padded, WINDOW):
        gathered.add(window, np.ones((1, *WINDOW), np.float32))
    labels, probability = gathered.result()
    assert labels.shape == shape
    assert (labels == 3).all()
    np.testing.assert_array_equal(probability, 1)


def test_padding_is_at_the_far_end(xp: Any) -> None:
    image = xp.reshape(xp.arange(8, dtype=xp.float32), (2, 2, 2))
    padded = pad_far_end(image, (3, 2, 4))
    assert padded.dtype == xp.float32
    np.testing.assert_array_equal(to_host(padded), np.pad(to_host(image), ((0, 1), (0, 0), (0, 2))))
    assert pad_far_end(image, (2, 2, 2)) is image


def plain_labels(
    windows: tuple[Window, ...],
    padded: tuple[int, int, int],
    probabilities: list[np.ndarray],
    label_values: tuple[int, ...],
) -> tuple[np.ndarray, np.ndarray]:
    """The release's method: whole volumes of sums for all classes at once."""
    weights = gaussian_weights(WINDOW)
    sums = np.zeros((len(label_values), *padded), np.float32)
    weight_sums = np.zeros(padded, np.float32)
    for window, probability in zip(windows, probabilities, strict=True):
        sums[(slice(None), *window.slices)] += probability * weights
        weight_sums[window.slices] += weights
    mean = sums / weight_sums
    labels = np.asarray(label_values)[mean.argmax(0)]
    labels[mean.max(0) < 0.5] = 0
    return labels, mean.max(0)


@pytest.mark.parametrize("shape", [(8, 8, 4), (5, 9, 3), (19, 13, 9), (33, 8, 5), (24, 20, 4)])
def test_slabs_give_the_plain_labels_to_the_bit(xp: Any, shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(shape[0])
    label_values = (4, 260, 7)
    padded = padded_shape(shape, WINDOW)
    windows = plan_windows(padded, WINDOW)
    # Few levels, so that equal probabilities and exact halves come up.
    probabilities = [
        rng.integers(0, 5, (3, *WINDOW)).astype(np.float32) / np.float32(4) for _ in windows
    ]
    gathered = SlabAccumulator(
        windows, shape, label_values, gaussian_weights(WINDOW, xp), keep_probability=True
    )
    for window, probability in zip(windows, probabilities, strict=True):
        gathered.add(window, xp.asarray(probability))
    labels, probability_found = gathered.result()
    expected, expected_probability = plain_labels(windows, padded, probabilities, label_values)
    h, w, d = shape
    assert labels.dtype == xp.uint16
    np.testing.assert_array_equal(to_host(labels), expected[:h, :w, :d])
    np.testing.assert_array_equal(to_host(probability_found), expected_probability[:h, :w, :d])


def test_slabs_hold_one_row_of_windows(xp: Any) -> None:
    windows = plan_windows((200, 16, 4), WINDOW)
    gathered = SlabAccumulator(windows, (200, 16, 4), (1, 2), gaussian_weights(WINDOW, xp))
    assert tuple(gathered._sums.shape) == (2, 8, 16, 4)
    assert gathered._labels.dtype == xp.uint8


def test_ties_go_to_the_first_class_and_half_is_foreground() -> None:
    windows = plan_windows(WINDOW, WINDOW)
    gathered = SlabAccumulator(windows, WINDOW, (9, 2), gaussian_weights(WINDOW))
    halves = np.full((2, *WINDOW), 0.5, np.float32)
    halves[:, 0] = np.float32(0.49)
    gathered.add(windows[0], halves)
    labels, probability = gathered.result()
    assert probability is None
    assert (labels[0] == 0).all()
    assert (labels[1:] == 9).all()


def test_windows_out_of_turn_or_missing_are_refused() -> None:
    windows = plan_windows((12, 8, 4), WINDOW)
    ones = np.ones((1, *WINDOW), np.float32)
    weights = gaussian_weights(WINDOW)
    gathered = SlabAccumulator(windows, (12, 8, 4), (1,), weights)
    with pytest.raises(ValueError, match="not the next window"):
        gathered.add(windows[1], ones)
    gathered = SlabAccumulator(windows, (12, 8, 4), (1,), weights)
    gathered.add(windows[0], ones)
    with pytest.raises(ValueError, match="never added"):
        gathered.result()
    with pytest.raises(ValueError, match="H axis slowest"):
        SlabAccumulator(windows[::-1], (12, 8, 4), (1,), weights)
    with pytest.raises(ValueError, match="at least one window"):
        SlabAccumulator((), (12, 8, 4), (1,), weights)
