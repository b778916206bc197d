from __future__ import annotations

from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from medals_rt.common.arrays import to_host
from medals_rt.planning.sliding_window import (
    DECIDING_SHARE,
    deciding_windows,
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
    ("length", "window", "overlap", "starts"),
    [
        (192, 192, 0.5, (0,)),
        (193, 192, 0.5, (0, 1)),
        (288, 192, 0.5, (0, 96)),
        (300, 192, 0.5, (0, 96, 108)),
        (384, 192, 0.5, (0, 96, 192)),
        (192, 192, 0.25, (0,)),
        (336, 192, 0.25, (0, 144)),
        (365, 192, 0.25, (0, 144, 173)),
    ],
)
def test_window_starts(length: int, window: int, overlap: float, starts: tuple[int, ...]) -> None:
    assert window_starts(length, window, overlap) == starts


@given(st.integers(1, 60).map(lambda n: 2 * n), st.integers(0, 400))
def test_half_overlap_is_the_published_rule(window: int, extra: int) -> None:
    length = window + extra
    starts = window_starts(length, window)
    assert len(starts) == max(ceil(length / (window // 2)) - 1, 1)
    assert starts[0] == 0
    assert starts[-1] == length - window
    assert all(0 < b - a <= window // 2 for a, b in pairwise(starts))


@given(st.integers(1, 60), st.integers(0, 400))
def test_a_quarter_overlap_is_kept(window: int, extra: int) -> None:
    starts = window_starts(window + extra, window, 0.25)
    assert starts[0] == 0
    assert starts[-1] == extra
    assert all(0 < b - a <= max(1, window - window / 4) for a, b in pairwise(starts))


@given(st.tuples(*[st.integers(1, 21)] * 3), st.sampled_from([0.5, 0.25, 0.0]))
def test_windows_cover_every_voxel(shape: tuple[int, int, int], overlap: float) -> None:
    padded = padded_shape(shape, WINDOW)
    weights = gaussian_weights(WINDOW)
    sums = np.zeros(padded, np.float32)
    for window in plan_windows(padded, WINDOW, overlap):
        assert sums[window.slices].shape == WINDOW
        sums[window.slices] += weights
    assert sums.min() > 0


def test_padding_is_at_the_far_end(xp: Any) -> None:
    image = xp.reshape(xp.arange(8, dtype=xp.float32), (2, 2, 2))
    padded = pad_far_end(image, (3, 2, 4))
    assert padded.dtype == xp.float32
    np.testing.assert_array_equal(to_host(padded), np.pad(to_host(image), ((0, 1), (0, 0), (0, 2))))
    assert pad_far_end(image, (2, 2, 2)) is image


@given(
    st.tuples(*[st.integers(6, 40)] * 3),
    st.sampled_from([(6, 8, 4), (5, 6, 6)]),
    st.integers(0, 99),
)
def test_windows_that_decide_about_a_voxel(
    shape: tuple[int, int, int], window: tuple[int, int, int], seed: int
) -> None:
    padded = padded_shape(shape, window)
    windows = plan_windows(padded, window)
    point = np.random.default_rng(seed).integers(0, padded)
    middle = np.zeros(window)
    middle[tuple(n // 2 for n in window)] = 1
    weights = gaussian_filter(middle, [n / 8 for n in window], mode="constant")  # not yet rounded
    at = np.zeros(len(windows))
    for number, each in enumerate(windows):
        inside = point - each.starts_hwd
        if ((inside >= 0) & (inside < window)).all():
            at[number] = weights[tuple(inside)]
    found = deciding_windows(np.ones((1, 1, 1), np.bool_), point[:, None], windows)
    assert found.any()
    largest = at.max()
    assert found[at > 1.0001 * DECIDING_SHARE * largest].all()
    assert not found[at < 0.9999 * DECIDING_SHARE * largest].any()


def test_windows_decide_about_any_of_some_voxels() -> None:
    windows = plan_windows((8, 8, 16), (8, 8, 8))
    assert len(windows) == 3
    places = [np.array(each) for each in ([4], [4], [1, 6, 15])]

    def deciding(*meant: bool) -> list[bool]:
        found: list[bool] = deciding_windows(np.array([[meant]]), places, windows).tolist()
        return found

    assert deciding(True, False, True) == [True, False, True]
    assert deciding(False, True, False) == [True, True, False]
    assert deciding(False, False, False) == [False, False, False]
