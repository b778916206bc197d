"""Spatial prompts in few bytes, against the arrays of N channels that they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medals_rt.common.arrays import to_host
from medals_rt.inference.spatial_prompts import (
    Blocks,
    LabelPrompts,
    SpatialPrompts,
    channel_prompts,
    label_prompts,
)
from medals_rt.planning.sliding_window import plan_windows

SHAPE, WINDOW = (20, 12, 10), (12, 8, 8)
LABELS = (7, 300, 2)


def some_map(seed: int = 0) -> np.ndarray:
    """Blobs of four labels, one of which no class has, and background."""
    rng = np.random.default_rng(seed)
    values = np.array([0, 0, *LABELS, 9], np.uint16)
    coarse = values[rng.integers(0, len(values), [-(-size // 4) for size in SHAPE])]
    return np.kron(coarse, np.ones((4, 4, 4), np.uint16))[:20, :12, :10]


def window_prompts(xp: Any) -> tuple[LabelPrompts, np.ndarray]:
    """The first window's prompts, and its channels."""
    windows = plan_windows(SHAPE, WINDOW)
    prompts = label_prompts(xp.asarray(some_map()), windows, LABELS, 4)
    assert len(prompts) == len(windows)
    patch = some_map()[windows[0].slices]
    first = prompts[0]
    assert first is not None
    return first, np.stack([patch == label for label in LABELS])


def both_kinds(xp: Any) -> list[tuple[SpatialPrompts, np.ndarray]]:
    overlapping = np.random.default_rng(3).random((3, *WINDOW)) > 0.6
    found = channel_prompts(xp.asarray(overlapping), 4)
    assert found is not None
    return [window_prompts(xp), (found, overlapping)]


def test_channels_and_foreground_are_those_of_the_masks(xp: Any) -> None:
    for prompts, channels in both_kinds(xp):
        assert prompts.count == 3
        np.testing.assert_array_equal(to_host(prompts.channels(3)), channels)
        padded = to_host(prompts.channels(5))
        assert padded.dtype == np.float32
        np.testing.assert_array_equal(padded[:3], channels)
        assert not padded[3:].any()
        foreground = to_host(prompts.foreground())
        assert foreground.dtype == np.float32
        np.testing.assert_array_equal(foreground, channels.any(0)[None, None])


def test_spread_is_the_product_of_queries_and_prompts(xp: Any) -> None:
    adapted = np.random.default_rng(5).standard_normal((3, 6), dtype=np.float32)
    for prompts, channels in both_kinds(xp):
        spread = to_host(prompts.spread(xp.asarray(adapted)))
        assert spread.dtype == np.float32
        expected = np.einsum("nc,nhwd->chwd", adapted, channels.astype(np.float32))[None]
        np.testing.assert_allclose(spread, expected, rtol=0, atol=1e-6)


def test_a_look_up_is_exact(xp: Any) -> None:
    prompts, channels = window_prompts(xp)
    adapted = np.random.default_rng(5).standard_normal((3, 6), dtype=np.float32)
    spread = to_host(prompts.spread(xp.asarray(adapted)))[0]
    for n in range(3):
        np.testing.assert_array_equal(spread[:, channels[n]].T, adapted[[n] * channels[n].sum()])
    assert not spread[:, ~channels.any(0)].any()


def test_an_index_names_every_voxels_class(xp: Any) -> None:
    prompts, channels = window_prompts(xp)
    index = to_host(prompts.index())
    assert index.dtype == np.int32
    for n in range(3):
        np.testing.assert_array_equal(index == n + 1, channels[n])
    np.testing.assert_array_equal(index == 0, ~channels.any(0))


def test_hiding_blocks_hides_their_prompts(xp: Any) -> None:
    chosen = np.zeros((2, 1, 1), bool)
    chosen[0] = True
    mask = np.zeros(WINDOW, bool)
    mask[:8] = True
    for prompts, channels in both_kinds(xp):
        shown = prompts.where(xp.asarray(mask), Blocks(8, chosen))
        assert shown is not None
        np.testing.assert_array_equal(to_host(shown.channels(3)), channels * mask)
        nothing = prompts.where(xp.asarray(~mask & mask), Blocks(8, ~chosen & chosen))
        assert nothing is None


def test_windows_without_a_prompt_have_none() -> None:
    label_map = np.zeros(SHAPE, np.uint8)
    label_map[:3, :3, :3] = 2
    label_map[18:, 10:, 8:] = 9  # which no class has
    windows = plan_windows(SHAPE, WINDOW)
    found = label_prompts(label_map, windows, (2,), 8)
    assert [each is not None for each in found] == [max(w.starts_hwd) < 3 for w in windows]
    first = found[0]
    assert first is not None
    assert first.occupied.chosen.ravel().tolist() == [True, False]
    assert channel_prompts(np.zeros((2, *WINDOW), bool), 4) is None


def test_more_classes_than_a_byte_numbers() -> None:
    labels = tuple(range(1, 301))
    label_map = np.arange(8 * 8 * 8).reshape(8, 8, 8) % 301
    (found,) = label_prompts(label_map, plan_windows((8, 8, 8), (8, 8, 8)), labels, 8)
    assert found is not None
    assert found.index_hwd.dtype == np.uint16
    np.testing.assert_array_equal(found.index_hwd, label_map)


@given(st.sampled_from([4, 8, 16]), st.tuples(*[st.integers(1, 30)] * 3), st.integers(0, 99))
def test_finer_blocks_mean_the_same_voxels(size: int, shape: tuple[int, ...], seed: int) -> None:
    grid = tuple(-(-length // size) for length in shape)
    chosen = np.random.default_rng(seed).random(grid) > 0.5
    fine_grid = tuple(-(-length // 4) for length in shape)
    finer = Blocks(size, chosen).in_blocks_of(4, fine_grid)
    h, w, d = shape
    voxels = np.kron(chosen, np.ones((size,) * 3))[:h, :w, :d]
    np.testing.assert_array_equal(np.kron(finer, np.ones((4,) * 3))[:h, :w, :d], voxels)
    with pytest.raises(ValueError, match="don't split"):
        Blocks(size, chosen).in_blocks_of(3, fine_grid)
