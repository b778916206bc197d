"""Spatial prompts simulated from the ground truth: the paper's Algorithm 1.

A coarse prediction misses parts and invents others. Both happen here in blocks, for the channels
together (`S_f`) and for each channel (`S_p`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class PromptNoise:
    """Probabilities and ranges of Algorithm 1; the defaults are the paper's."""

    zero: float = 0.35
    channel_zero: float = 0.1
    block_sizes: tuple[int, ...] = (4, 8, 16, 32)
    drop: tuple[float, float] = (0.3, 0.9)
    add: tuple[float, float] = (0.0, 0.02)


def _assign_channels(rng: np.random.Generator, active: Bools, channels: int) -> Bools:
    """Assign every active block to a random non-empty subset of the channels: `(N, *blocks)`.

    The size of the subset is uniform in 1 to N, then the subset is uniform among those of its size.
    """
    rank = rng.random((channels, *active.shape)).argsort(axis=0).argsort(axis=0)
    size = rng.integers(1, channels + 1, active.shape)
    return (rank < size) & active


def _expand(blocks: Bools, block: int, shape_hwd: tuple[int, ...]) -> Bools:
    """Blow blocks up to voxels and cut the far end; the last three axes are (H, W, D)."""
    for axis in (-3, -2, -1):
        blocks = blocks.repeat(block, axis=axis)
    h, w, d = shape_hwd
    return blocks[..., :h, :w, :d]


def simulate_prompts(
    rng: np.random.Generator, truth: Bools, noise: PromptNoise | None = None
) -> tuple[Bools, Bools]:
    """Simulate `S_f` and `S_p` of one window.

    Parameters
    ----------
    rng
        Source of all randomness.
    truth
        `(N, H, W, D)` bool, one channel a class.
    noise
        Probabilities; the paper's if not given. A block longer than the window is cut to it.

    Returns
    -------
    foreground_prompt, spatial_prompts
        `(1, H, W, D)` and `(N, H, W, D)`, bool. All False with probability `noise.zero`; whole
        where nothing is dropped or added.
    """
    noise = noise or PromptNoise()
    channels, *shape = truth.shape
    if rng.random() < noise.zero:
        return np.zeros((1, *shape), bool), np.zeros(truth.shape, bool)
    kept_channels = rng.random((channels, 1, 1, 1)) >= noise.channel_zero
    prompts = truth & kept_channels
    foreground = prompts.any(axis=0, keepdims=True)

    block = min(int(rng.choice(noise.block_sizes)), max(shape))
    blocks = tuple(-(-size // block) for size in shape)
    chances, drop = rng.random(blocks), rng.uniform(*noise.drop)
    dropped = chances < drop
    chances, add = rng.random(blocks), rng.uniform(*noise.add)
    added = (chances < add) & ~dropped
    if drop == add == 0:  # nothing is hidden, so that no channel loses a block to another either
        return foreground, prompts
    extent = tuple(shape)
    foreground &= ~_expand(dropped, block, extent)
    foreground |= _expand(added, block, extent)
    prompts &= _expand(_assign_channels(rng, ~dropped, channels), block, extent)
    prompts |= _expand(_assign_channels(rng, added, channels), block, extent)
    return foreground, prompts
