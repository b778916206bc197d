"""Spatial prompts of one window, `S_p`, without an array of N times the window.

Prompts that come from a label map are exclusive: one index a voxel says it all, and `F_a = T^T S_p`
is a table look-up (docs/algorithm.md, section 5). Those that come from probabilities may overlap
and take one bit a class and voxel. Which blocks of a window hold any prompt is known on the host,
so that the loop over windows needs no answer from the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from medals_rt.common.arrays import as_namespace, contiguous, namespace, on_all_cores, to_host
from medals_rt.common.typing import Array, Namespace
from medals_rt.planning.sliding_window import Window, pad_far_end

_VOXELS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Blocks:
    """Which blocks of a window are meant.

    Attributes
    ----------
    size
        Edge of a block in voxels; blocks at the far end may be cut.
    chosen
        ``(ceil(h / size), ceil(w / size), ceil(d / size))`` bool, on the host.
    """

    size: int
    chosen: npt.NDArray[np.bool_]

    def in_blocks_of(self, size: int, grid: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        """Split into smaller blocks, whose edge divides this one's; `grid` is their number."""
        if self.size % size:
            raise ValueError(f"blocks of {self.size} voxels don't split into blocks of {size}")
        finer = self.chosen
        for axis, length in enumerate(grid):
            finer = np.repeat(finer, self.size // size, axis=axis)
            finer = np.take(finer, np.arange(length), axis=axis)
        return finer


@dataclass(frozen=True)
class LabelPrompts:
    """Prompts of which no two cover a voxel.

    Attributes
    ----------
    index_hwd
        ``(h, w, d)`` unsigned integers: ``n + 1`` where class n is prompted, 0 where none is.
    count
        N.
    occupied
        The blocks that hold any prompt.
    """

    index_hwd: Array
    count: int
    occupied: Blocks

    @property
    def xp(self) -> Namespace:
        """The library of the arrays."""
        return namespace(self.index_hwd)

    @property
    def voxels(self) -> Array:
        """All that a network sees of them."""
        return self.index_hwd

    def where(self, mask: Array, blocks: Blocks) -> LabelPrompts | None:
        """Keep what lies in a mask ``(h, w, d)`` bool, which is `blocks` spread; None: nothing."""
        occupied = _common(self.occupied, blocks)
        if not occupied.chosen.any():
            return None
        index = self.xp.where(mask, self.index_hwd, self.xp.zeros_like(self.index_hwd))
        return replace(self, index_hwd=index, occupied=occupied)

    def flipped(self, axes: Sequence[int]) -> LabelPrompts:
        """Mirror along some of the axes 0 to 2."""
        index = contiguous(self.xp.flip(self.index_hwd, axis=tuple(axes)))
        return replace(self, index_hwd=index, occupied=_anywhere(self.occupied))

    def foreground(self) -> Array:
        """Return `S_f`: ``(1, 1, h, w, d)`` float32, 1 where any class is prompted."""
        xp = self.xp
        return xp.astype(self.index_hwd > 0, xp.float32)[None, None, ...]

    def channels(self, width: int) -> Array:
        """Return `S_p (width, h, w, d)` float32, one channel a class, the rest zeros."""
        xp = self.xp
        return xp.stack([xp.astype(self.index_hwd == n + 1, xp.float32) for n in range(width)])

    def index(self) -> Array:
        """Return ``(h, w, d)`` int32 for graphs that look up: ``n + 1`` for class n, 0 for none."""
        xp = self.xp
        return xp.astype(self.index_hwd, xp.int32)

    def spread(self, adapted_queries: Array) -> Array:
        """Return `F_a (1, C, h, w, d)` float32: a voxel's row of `T (N, C)`, zeros for no class."""
        xp = self.xp
        nothing = xp.zeros_like(adapted_queries[:1, ...])
        table = contiguous(xp.concat([nothing, adapted_queries]).T)
        flat = xp.reshape(self.index_hwd, (-1,))
        if xp is not np:
            rows = xp.take(table, xp.astype(flat, xp.int64), axis=1)
            return xp.reshape(rows, (1, -1, *self.index_hwd.shape))
        spread = np.empty((table.shape[0], flat.size), np.float32)

        def look_up(voxels: slice) -> None:
            spread[:, voxels] = xp.take(table, xp.astype(flat[voxels], xp.int64), axis=1)

        on_all_cores(look_up, _runs(flat.size), spread)
        return spread.reshape(1, -1, *self.index_hwd.shape)


@dataclass(frozen=True)
class ChannelPrompts:
    """Prompts that may overlap.

    Attributes
    ----------
    shown
        ``(N, h, w, d)`` bool.
    occupied
        The blocks that hold any prompt.
    """

    shown: Array
    occupied: Blocks

    @property
    def count(self) -> int:
        """N."""
        return int(self.shown.shape[0])

    @property
    def xp(self) -> Namespace:
        """The library of the arrays."""
        return namespace(self.shown)

    @property
    def voxels(self) -> Array:
        """All that a network sees of them."""
        return self.shown

    def where(self, mask: Array, blocks: Blocks) -> ChannelPrompts | None:
        """Keep what lies in a mask ``(h, w, d)`` bool, which is `blocks` spread; None: nothing."""
        occupied = _common(self.occupied, blocks)
        if not occupied.chosen.any():
            return None
        return ChannelPrompts(self.shown & mask, occupied)

    def flipped(self, axes: Sequence[int]) -> ChannelPrompts:
        """Mirror along some of the axes 0 to 2."""
        shown = contiguous(self.xp.flip(self.shown, axis=tuple(axis + 1 for axis in axes)))
        return ChannelPrompts(shown, _anywhere(self.occupied))

    def foreground(self) -> Array:
        """Return `S_f`: ``(1, 1, h, w, d)`` float32, 1 where any class is prompted."""
        xp = self.xp
        return xp.astype(xp.any(self.shown, axis=0), xp.float32)[None, None, ...]

    def channels(self, width: int) -> Array:
        """Return `S_p (width, h, w, d)` float32, one channel a class, the rest zeros."""
        xp = self.xp
        channels = xp.astype(self.shown, xp.float32)
        if width == self.count:
            return channels
        more = xp.zeros_like(channels[:1, ...])
        return xp.concat([channels, *[more] * (width - self.count)])

    def spread(self, adapted_queries: Array) -> Array:
        """Return `F_a (1, C, h, w, d)` float32: `T^T S_p`, in runs of voxels that fit a cache."""
        xp = self.xp
        table = contiguous(adapted_queries.T)
        flat = xp.reshape(self.shown, (self.count, -1))
        size = int(flat.shape[1])
        spread = xp.empty((table.shape[0], size), dtype=xp.float32, device=table.device)
        for (voxels,) in _runs(size) if xp is np else [(slice(0, size),)]:
            spread[:, voxels] = table @ xp.astype(flat[:, voxels], xp.float32)
        return xp.reshape(spread, (1, -1, *self.shown.shape[1:]))


SpatialPrompts: TypeAlias = LabelPrompts | ChannelPrompts
"""`S_p` of one window and N classes."""


def label_prompts(
    label_map: Array, windows: Sequence[Window], labels: Sequence[int], block_size: int
) -> list[LabelPrompts | None]:
    """Cut the prompts of every window out of a stage's label map.

    What the host must know of all windows (where there is anything) is asked of the device once.

    Parameters
    ----------
    label_map
        ``(H, W, D)`` integers, padded like the image.
    windows
        Of the stage.
    labels
        The label of each of the N classes.
    block_size
        Edge of the blocks in which is remembered where prompts are: one that divides those of all
        masks.

    Returns
    -------
    list of LabelPrompts or None
        One a window; None where it holds none of the labels. The indices are views of one map.
    """
    xp = namespace(label_map)
    largest = max(labels)
    indices = np.zeros(largest + 1, np.uint8 if len(labels) < 255 else np.uint16)
    indices[list(labels)] = np.arange(1, len(labels) + 1)
    table = as_namespace(indices, xp, label_map)
    known = xp.where(label_map <= largest, label_map, xp.zeros_like(label_map))
    flat = xp.astype(xp.reshape(known, (-1,)), xp.int64)
    index = xp.reshape(xp.take(table, flat), label_map.shape)
    grids = xp.stack([_occupied(index[window.slices] > 0, block_size, xp) for window in windows])
    return [
        LabelPrompts(index[window.slices], len(labels), Blocks(block_size, grid))
        if grid.any()
        else None
        for window, grid in zip(windows, to_host(grids), strict=True)
    ]


def channel_prompts(shown: Array, block_size: int) -> ChannelPrompts | None:
    """Make prompts of masks ``(N, h, w, d)`` bool that may overlap; None where all are empty.

    Where they are is asked of the device: it depends on what the network just predicted.
    """
    xp = namespace(shown)
    grid = to_host(_occupied(xp.any(shown, axis=0), block_size, xp))
    return ChannelPrompts(shown, Blocks(block_size, grid)) if grid.any() else None


def _occupied(mask: Array, block_size: int, xp: Namespace) -> Array:
    """Return which blocks of a mask ``(h, w, d)`` hold anything."""
    grid = [-(-int(length) // block_size) for length in mask.shape]
    h, w, d = (blocks * block_size for blocks in grid)
    split = [part for blocks in grid for part in (blocks, block_size)]
    return xp.any(xp.reshape(pad_far_end(mask, (h, w, d)), tuple(split)), axis=(1, 3, 5))


def _runs(size: int) -> list[tuple[slice]]:
    """Cut so many voxels into runs that fit a processor's cache."""
    starts = range(0, size, _VOXELS_AT_ONCE)
    return [(slice(start, min(start + _VOXELS_AT_ONCE, size)),) for start in starts]


def _common(occupied: Blocks, blocks: Blocks) -> Blocks:
    chosen = blocks.in_blocks_of(occupied.size, occupied.chosen.shape)
    return Blocks(occupied.size, occupied.chosen & chosen)


def _anywhere(occupied: Blocks) -> Blocks:
    """Return that any block may hold prompts: cut ones at the far end don't mirror onto blocks."""
    return Blocks(occupied.size, np.ones_like(occupied.chosen))
