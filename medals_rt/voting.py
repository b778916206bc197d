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

_WHOLE = np.float32(1000)
_KEEPS_11_BITS = float((1 << 13) + 1)
_MAJORITY = 501.0
"""A weight that no other can reach, rounded or not: the rest has 499."""

_CHUNKS_A_BLOCK = 16
"""So many voxels with their eight neighbors fit a processor's cache twice."""

_LARGEST_CHUNK = 1 << 21
"""Voxels that vote at once on a card: under 1 KiB each."""

Sides: TypeAlias = tuple[Array, Array]
"""Along an axis, what the lower, the upper and the nearer neighbor add to the index, ``(3, n)``,
and the weights of the lower and the upper one, ``(2, n)`` float32."""


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
        sides = _sides(labels, axes, voxels[start : min(start + size, count)], summing_order, xp)
        neighbors = _neighbors(source, sides, xp)
        likeliest = xp.take(source, sides[0][0][2, :] + sides[1][0][2, :] + sides[2][0][2, :])
        unsure = _weights(neighbors == likeliest, sides, xp) < _MAJORITY
        (left,) = xp.nonzero(unsure)
        if left.shape[0]:
            likeliest[unsure] = _heaviest(
                xp.take(neighbors, left, axis=3),
                [(at, xp.take(weights, left, axis=1)) for at, weights in sides],
                xp,
            )
        decided.append(likeliest)
    return decided[0] if len(decided) == 1 else xp.concat(decided)


def _sides(
    labels: Array,
    axes: Sequence[Axis],
    voxels: Array,
    summing_order: tuple[int, ...],
    xp: Namespace,
) -> list[Sides]:
    """Find both neighbors of each voxel on each axis, the axis summed first first.

    Its weights are in thousandths already: a mask of 1000 times a weight is the same number.
    """
    _, columns, depth = (axis.new_length for axis in axes)
    plane = voxels // depth
    row = plane // columns
    position = (row, plane - row * columns, voxels - plane * depth)
    strides = (labels.shape[1] * labels.shape[2], labels.shape[2], 1)
    sides = []
    for number in summing_order:
        axis = axes[number]
        steps = axis.lower_upper_nearer * strides[number]
        weights = axis.weights_of_pair
        if number == summing_order[0]:
            weights = weights * _WHOLE
        sides.append(
            (
                xp.take(as_namespace(steps, xp, labels), position[number], axis=1),
                xp.take(as_namespace(weights, xp, labels), position[number], axis=1),
            )
        )
    return sides


def _neighbors(source: Array, sides: Sequence[Sides], xp: Namespace) -> Array:
    """Read the eight neighbors' labels, ``(2, 2, 2, n)``: the axis summed first comes last."""
    fastest, middle, slowest = (steps[:2, :] for steps, _ in sides)
    at = (slowest[:, None, :] + middle[None, :, :])[:, :, None, :] + fastest[None, None, :, :]
    return xp.reshape(xp.take(source, xp.reshape(at, (-1,))), at.shape)


def _heaviest(neighbors: Array, sides: Sequence[Sides], xp: Namespace) -> Array:
    """Give the label of the largest weight among eight neighbors ``(2, 2, 2, n)``."""
    candidates = xp.reshape(neighbors, (8, -1))
    weights = _weights(neighbors[None, ...] == candidates[:, None, None, None, :], sides, xp)
    weights = _to_float16_steps(weights)
    is_heaviest = weights == xp.max(weights, axis=0)
    return xp.min(xp.where(is_heaviest, candidates, xp.max(candidates, axis=0)), axis=0)


def _weights(is_label: Array, sides: Sequence[Sides], xp: Namespace) -> Array:
    """Interpolate masks ``(..., 2, 2, 2, n)``, the last axis first, to thousandths ``(..., n)``."""
    values = xp.astype(is_label, xp.float32)
    for _, weights in sides:
        low, high = values[..., 0, :] * weights[0, :], values[..., 1, :] * weights[1, :]
        low += high
        values = low
    return values


def _to_float16_steps(values: Array) -> Array:
    """Round float32 values of 0 to 1024 to what float16 can hold, half to even.

    Not every array library has float16; this is Veltkamp's splitting, which keeps 11 of the 24 bits
    as float16 does. (Below 6e-5 float16 keeps fewer, but of eight weights the largest is 125 or
    more, so these never decide.)
    """
    scaled = values * _KEEPS_11_BITS
    return scaled - (scaled - values)
