"""Which label a voxel gets whose eight neighbors differ, by the release's rule.

The release interpolates each label's mask linearly, times 1000, rounds to float16 and lets the
first largest win (system section 4). Here only the eight neighbors' labels are candidates, and
their weights are summed in torch's order and rounded to float16's steps, since that rounding makes
and breaks ties: of equal weights the smallest label wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from medals_rt.arrays import Array, Namespace, as_namespace, block_elements, namespace
from medals_rt.axes import Axis

_WHOLE = 1000.0
_MAJORITY = 501.0
"""A weight that no other can reach: 500.75 at least before rounding, so the rest has 499.25."""

_CHUNKS_A_BLOCK = 8
"""Eight neighbors of so many voxels make a block that fits a processor's cache."""

_LARGEST_CHUNK = 1 << 21
"""Voxels that vote at once on a card: under 1 KiB each."""

Sides: TypeAlias = tuple[Array, Array]
"""Both neighbors along an axis, the lower one first: what they add to the flat index, ``(2, n)``,
and their weights, ``(2, n)`` float32."""


def vote(
    labels: Array, axes: Sequence[Axis], voxels: Array, summing_order: tuple[int, ...]
) -> Array:
    """Decide output voxels by the weights of their eight neighbors' labels.

    Parameters
    ----------
    labels
        ``(A, B, C)``, integers from 0 on.
    axes
        The three axes of `labels`.
    voxels
        Flat indices in the output grid, ``(n,)``.
    summing_order
        The axes in the order in which torch interpolates them: the last of its own axes first.

    Returns
    -------
    Array
        ``(n,)``, the dtype of `labels`.
    """
    xp = namespace(labels)
    source = xp.reshape(labels, (-1,))
    size = min(_LARGEST_CHUNK, max(1, block_elements(labels) // _CHUNKS_A_BLOCK))
    count = int(voxels.shape[0])
    decided = []
    for start in range(0, count, size):
        sides = _sides(labels, axes, voxels[start : min(start + size, count)], xp)
        sides = [sides[axis] for axis in summing_order]
        neighbors = _neighbors(source, sides, xp)
        likeliest, is_sure = _likeliest(source, neighbors, sides, xp)
        unsure = ~is_sure
        (left,) = xp.nonzero(unsure)
        if left.shape[0]:
            likeliest[unsure] = _heaviest(
                xp.take(neighbors, left, axis=3),
                [(at, xp.take(weights, left, axis=1)) for at, weights in sides],
                xp,
            )
        decided.append(likeliest)
    return decided[0] if len(decided) == 1 else xp.concat(decided)


def _sides(labels: Array, axes: Sequence[Axis], voxels: Array, xp: Namespace) -> list[Sides]:
    """Find both neighbors of each voxel on each axis, and their weights."""
    _, columns, depth = (axis.new_length for axis in axes)
    plane = voxels // depth
    row = plane // columns
    position = (row, plane - row * columns, voxels - plane * depth)
    strides = (labels.shape[1] * labels.shape[2], labels.shape[2], 1)
    sides = []
    for axis, at, stride in zip(axes, position, strides, strict=True):
        steps = np.stack([axis.lower, axis.upper]) * stride
        weights = np.stack([np.float32(1) - axis.share, axis.share])
        sides.append(
            (
                xp.take(as_namespace(steps, xp, labels), at, axis=1),
                xp.take(as_namespace(weights, xp, labels), at, axis=1),
            )
        )
    return sides


def _neighbors(source: Array, sides: Sequence[Sides], xp: Namespace) -> Array:
    """Read the eight neighbors' labels, ``(2, 2, 2, n)``: the axis summed first comes last."""
    (fastest, _), (middle, _), (slowest, _) = sides
    at = slowest[:, None, None, :] + middle[None, :, None, :] + fastest[None, None, :, :]
    return xp.reshape(xp.take(source, xp.reshape(at, (-1,))), at.shape)


def _likeliest(
    source: Array, neighbors: Array, sides: Sequence[Sides], xp: Namespace
) -> tuple[Array, Array]:
    """Give the label of the nearest neighbor, and whether it has more than half of the weight."""
    nearest = [
        xp.where(weights[1, :] > weights[0, :], steps[1, :], steps[0, :])
        for steps, weights in sides
    ]
    label = xp.take(source, nearest[0] + nearest[1] + nearest[2])
    return label, _weights(neighbors == label, sides, xp) >= _MAJORITY


def _heaviest(neighbors: Array, sides: Sequence[Sides], xp: Namespace) -> Array:
    """Give the label of the largest weight among eight neighbors ``(2, 2, 2, n)``."""
    candidates = xp.reshape(neighbors, (8, -1))
    weights = _weights(neighbors[None, ...] == candidates[:, None, None, None, :], sides, xp)
    is_heaviest = weights == xp.max(weights, axis=0)
    return xp.min(xp.where(is_heaviest, candidates, xp.max(candidates, axis=0)), axis=0)


def _weights(is_label: Array, sides: Sequence[Sides], xp: Namespace) -> Array:
    """Interpolate masks ``(..., 2, 2, 2, n)``, the last axis first, in float16's steps."""
    whole = xp.full((), _WHOLE, dtype=xp.float32, device=is_label.device)
    values = xp.where(is_label, whole, 0 * whole)
    for _, weights in sides:
        low, high = values[..., 0, :] * weights[0, :], values[..., 1, :] * weights[1, :]
        low += high
        values = low
    return _to_float16_steps(values, xp)


def _to_float16_steps(values: Array, xp: Namespace) -> Array:
    """Round float32 values of 64 to 1024 to what float16 can hold, half to even.

    Of eight weights the largest is at least 125, so smaller values, rounded too coarsely or too
    finely here, never decide. (Written out because not every array library has float16.)
    """
    sixteenth, eighth, quarter, half = (
        xp.full((), step, dtype=xp.float32, device=values.device)
        for step in (1 / 16, 1 / 8, 1 / 4, 1 / 2)
    )
    step = xp.where(values < 256, xp.where(values < 128, sixteenth, eighth), quarter)
    step = xp.where(values < 512, step, half)
    return xp.round(values / step) * step
