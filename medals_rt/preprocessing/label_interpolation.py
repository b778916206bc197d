"""Which label a voxel gets whose eight neighbors differ, by the release's rule.

The release interpolates each label's mask linearly, times 1000, rounds to float16 and lets the
first largest win. Here only the eight neighbors' labels are candidates, and their weights are
summed as torch sums them and rounded to float16's steps, since that rounding makes and breaks ties:
of equal weights the smallest label wins.

Nearly always the nearest neighbor's label has more than half of the weight, which asks for one sum
and no care. `vote` takes it for single voxels, `vote_everywhere` for a small volume as a whole,
whose arrays cost less than finding and indexing what is contested.

The neighbors of a voxel come as ``(s, s, s, ...)``, the axis that torch sums first last; s is 2, or
1 along an axis that isn't interpolated. For a majority the nearer one on an axis comes first, for
the exact sums the lower one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from medals_rt.common.arrays import as_namespace, block_elements, contiguous, namespace
from medals_rt.common.typing import Array, Namespace
from medals_rt.preprocessing.interpolation import Axis

_WHOLE = 1000.0
_KEEPS_11_BITS = float((1 << 13) + 1)

_MAJORITY = 0.501
"""A weight that no other can reach, rounded or not: the rest has 0.499."""

_CHUNKS_A_BLOCK = 16
"""So many voxels with their eight neighbors fit a processor's cache twice."""

_LARGEST_CHUNK = 1 << 21
"""Voxels that are computed at once on a GPU: under 1 KiB each."""

_WEIGHTS_A_VOXEL = 64
"""Eight candidates with eight neighbors each."""

_FEW_VOXELS = 1 << 11
"""So many are compared at once, whatever the block."""


def vote(labels: Array, axes: Sequence[Axis], voxels: Array, summing_order: Sequence[int]) -> Array:
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
    labels = contiguous(labels)
    size = min(_LARGEST_CHUNK, max(1, block_elements(labels) // _CHUNKS_A_BLOCK))
    count = int(voxels.shape[0])
    result = []
    for start in range(0, count, size):
        positions = _positions(voxels[start : min(start + size, count)], axes)
        reads = [axis.near_far for axis in axes]
        neighbors = _neighbors(labels, reads, positions, summing_order, xp)
        tables = [axis.weights_near_far for axis in axes]
        weights = _look_up(tables, positions, summing_order, xp)
        likeliest = neighbors[0, 0, 0, :]
        unsure = _sums(neighbors == likeliest, weights, xp) < _MAJORITY
        (left,) = xp.nonzero(unsure)
        if left.shape[0]:
            of_left = [xp.take(each, left) for each in positions]
            likeliest[unsure] = _heaviest(labels, axes, of_left, summing_order, xp)
        result.append(likeliest)
    return result[0] if len(result) == 1 else xp.concat(result)


def vote_everywhere(labels: Array, axes: Sequence[Axis], summing_order: Sequence[int]) -> Array:
    """Decide all output voxels by the weights of their eight neighbors' labels.

    Parameters
    ----------
    labels, axes, summing_order
        As in `vote`. The output is a small one: over 40 bytes a voxel are in use.

    Returns
    -------
    Array
        ``(A', B', C')``, the dtype of `labels`.
    """
    xp = namespace(labels)
    lines, of_plane = _kept_tables(*axes, tuple(summing_order))
    neighbors = _neighbors_everywhere(labels, axes, lines, xp)
    result = neighbors[0, 0, 0, ...]
    first = as_namespace(axes[0].weights_near_far, xp, labels)
    sums = xp.astype(neighbors == result, xp.float32)
    sums *= as_namespace(of_plane, xp, labels)
    sums = xp.sum(sums, axis=(_side(1, summing_order), _side(2, summing_order)))
    sums *= first[:, :, None, None]
    unsure = xp.reshape(xp.sum(sums, axis=0) < _MAJORITY, (-1,))
    (left,) = xp.nonzero(unsure)
    if left.shape[0]:
        flat = xp.reshape(result, (-1,))
        flat[unsure] = _heaviest(labels, axes, _positions(left, axes), summing_order, xp)
        result = xp.reshape(flat, result.shape)
    return result


@lru_cache(maxsize=32)
def _kept_tables(
    first: Axis, second: Axis, last: Axis, summing_order: tuple[int, ...]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """Return which lines of the last axis all voxels read, and with what weights in a plane.

    Returns
    -------
    lines
        ``(s, s, s, A', B', 1)``, of lines ``(A, B, s)``: each is there nearer and farther.
    of_plane
        ``(s, s, s, 1, B', C')`` float32, with 1 along the first axis.
    """
    sides = len(last.near_far)
    lines = (
        _spread(first.near_far * (second.length * sides), 0, summing_order)
        + _spread(second.near_far * sides, 1, summing_order)
        + _spread(np.arange(sides)[:, None], 2, summing_order)
    )
    of_second = _spread(second.weights_near_far, 1, summing_order)
    return lines, of_second * _spread(last.weights_near_far, 2, summing_order)


def _spread(table: npt.NDArray[Any], number: int, summing_order: Sequence[int]) -> npt.NDArray[Any]:
    """Lay the ``(s, m)`` of one axis out for ``(s, s, s, A', B', C')``."""
    shape = [1] * 6
    shape[_side(number, summing_order)], shape[3 + number] = table.shape
    return table.reshape(shape)


def _side(number: int, summing_order: Sequence[int]) -> int:
    """Return which of the axes ``(s, s, s)`` is that of the neighbors along axis `number`."""
    return 2 - summing_order.index(number)


def _neighbors_everywhere(
    labels: Array, axes: Sequence[Axis], lines: npt.NDArray[np.intp], xp: Namespace
) -> Array:
    """Read the labels of all voxels' neighbors, ``(s, s, s, A', B', C')``.

    The last axis is indexed first, then its lines are copied whole, which is faster.
    """
    depth = axes[2].new_length
    near_and_far = as_namespace(axes[2].near_far.reshape(-1), xp, labels)
    taken = xp.reshape(xp.take(labels, near_and_far, axis=2), (-1, depth))
    found = xp.take(taken, as_namespace(lines.reshape(-1), xp, labels), axis=0)
    return xp.reshape(found, (*lines.shape[:5], depth))


def _positions(voxels: Array, axes: Sequence[Axis]) -> tuple[Array, Array, Array]:
    """Split flat indices of the output grid axis by axis, ``(n,)`` each."""
    _, columns, depth = (axis.new_length for axis in axes)
    plane = voxels // depth
    row = plane // columns
    return row, plane - row * columns, voxels - plane * depth


def _neighbors(
    labels: Array,
    reads: Sequence[npt.NDArray[np.integer]],
    positions: Sequence[Array],
    summing_order: Sequence[int],
    xp: Namespace,
) -> Array:
    """Read the labels of some voxels' neighbors, ``(s, s, s, n)``, in the order of `reads`."""
    strides = (labels.shape[1] * labels.shape[2], labels.shape[2], 1)
    steps = [each.astype(np.intp) * stride for each, stride in zip(reads, strides, strict=True)]
    fastest, middle, slowest = _look_up(steps, positions, summing_order, xp)
    at = (slowest[:, None, :] + middle[None, :, :])[:, :, None, :] + fastest[None, None, :, :]
    return xp.reshape(xp.take(xp.reshape(labels, (-1,)), xp.reshape(at, (-1,))), at.shape)


def _look_up(
    tables: Sequence[npt.NDArray[Any]],
    positions: Sequence[Array],
    summing_order: Sequence[int],
    xp: Namespace,
) -> list[Array]:
    """Read each axis' ``(s, m)`` at some voxels: ``(s, n)`` each, the axis summed first first."""
    return [
        xp.take(as_namespace(tables[number], xp, positions[number]), positions[number], axis=1)
        for number in summing_order
    ]


def _heaviest(
    labels: Array,
    axes: Sequence[Axis],
    positions: Sequence[Array],
    summing_order: Sequence[int],
    xp: Namespace,
) -> Array:
    """Return the label of the largest weight at some voxels, ``(n,)``."""
    count = int(positions[0].shape[0])
    size = max(_FEW_VOXELS, block_elements(labels) // _WEIGHTS_A_VOXEL)
    result = []
    for start in range(0, count, size):
        some = [each[start : min(start + size, count)] for each in positions]
        neighbors = _neighbors(labels, [axis.reads.T for axis in axes], some, summing_order, xp)
        weights = _look_up([axis.weights.T for axis in axes], some, summing_order, xp)
        candidates = xp.reshape(neighbors, (-1, neighbors.shape[3]))
        is_candidate = neighbors == candidates[:, None, None, None, :]
        sums = _to_float16_steps(_fused_sums(is_candidate, weights, xp))
        loses = sums < xp.max(sums, axis=0)
        result.append(xp.min(xp.where(loses, xp.max(candidates, axis=0), candidates), axis=0))
    return result[0] if len(result) == 1 else xp.concat(result)


def _fused_sums(is_label: Array, weights: Sequence[Array], xp: Namespace) -> Array:
    """Interpolate masks ``(..., s, s, s, n)``, lower ones first, to thousandths ``(..., n)``.

    To the bit as torch's kernels do in float32: the last axis first, and the lower one's product is
    added unrounded (a fused multiply-add; here in float64, where the product is exact).
    """
    values, scale = xp.astype(is_label, xp.float32), _WHOLE
    for of_pair in weights:
        sums = xp.astype(values[..., 0, :], xp.float64)
        sums *= xp.astype(of_pair[0, :], xp.float64) * scale
        if of_pair.shape[0] > 1:
            sums += values[..., 1, :] * (of_pair[1, :] * scale)
        values, scale = xp.astype(sums, xp.float32), 1.0
    return values


def _sums(is_label: Array, weights: Sequence[Array], xp: Namespace) -> Array:
    """Interpolate masks ``(..., s, s, s, n)`` along the last axes that `weights` are given for."""
    values = xp.astype(is_label, xp.float32)
    for along_axis in weights:
        values *= along_axis
        near = values[..., 0, :]
        values = near + values[..., 1, :] if along_axis.shape[0] > 1 else near
    return values


def _to_float16_steps(values: Array) -> Array:
    """Round float32 values of 0 to 1024 to what float16 can hold, half to even.

    Not every array library has float16; this is Veltkamp's splitting, which keeps 11 of the 24 bits
    as float16 does. (Below 6e-5 float16 keeps fewer, but of eight weights the largest is 125 or
    more, so these never decide.)
    """
    scaled = values * _KEEPS_11_BITS
    return scaled - (scaled - values)
