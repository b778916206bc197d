"""Resampling images and label maps (paper 2.5, system section 4).

Linear with half-pixel centers and clamped edges, as `torch.nn.functional.interpolate` with
``align_corners=False``; on the way in, an axis much coarser than the others is resampled by
nearest neighbor instead (nnU-Net's rule, decided in `geometry.separate_axis`). Everything is in
float32, including the positions, where the release's rounding decides which voxel is nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from medals_rt.arrays import Array, Namespace, as_namespace, block_elements, namespace
from medals_rt.windows import Shape

_VOTE_CHUNK = 1 << 16
_VOTE_SCALE = 1000.0


_Sides: TypeAlias = tuple[tuple[Array, Array], tuple[Array, Array]]
"""Lower and upper neighbor along one axis: (index, weight) each."""


@dataclass(frozen=True)
class _Taps:
    """Where each output position of one axis reads: two inputs and the share of the upper one."""

    lower: npt.NDArray[np.intp]
    upper: npt.NDArray[np.intp]
    share: npt.NDArray[np.float32]


def resample_image(
    image_hwd: Array, new_shape_hwd: Shape, separate_axis: int | None = None
) -> Array:
    """Bring an image to another shape.

    Parameters
    ----------
    image_hwd
        ``(H, W, D)``, any real dtype.
    new_shape_hwd
        The shape wanted.
    separate_axis
        Axis that is resampled by nearest neighbor, the other two linearly. None: trilinear, as
        always on the way back to the original grid.

    Returns
    -------
    Array
        `new_shape_hwd`, float32, on the device of the image. Never the image itself.
    """
    xp = namespace(image_hwd)
    unchanged = tuple(image_hwd.shape) == tuple(new_shape_hwd)
    result = xp.astype(image_hwd, xp.float32, copy=unchanged)
    for axis in _axes_by_growth(image_hwd.shape, new_shape_hwd):
        n, m = result.shape[axis], new_shape_hwd[axis]
        if n == m:
            continue
        if axis == separate_axis:
            result = xp.take(result, _index(_nearest_exact(n, m), xp, result), axis=axis)
        else:
            result = _lerp(result, _linear_taps(n, m), axis, xp)
    return result


def resample_labels(
    labels_hwd: Array, new_shape_hwd: Shape, separate_axis: int | None = None
) -> Array:
    """Bring a label map to another shape: each voxel gets the label of the largest linear weight.

    It is the release's result (each label's mask interpolated linearly, times 1000, rounded to
    float16, the first largest wins) without interpolating any mask. A voxel whose eight neighbors
    agree takes their label, which settles nearly all; for the others the eight labels vote with
    their weights, summed in torch's order and rounded to float16's steps, since that rounding makes
    and breaks ties: of equal weights the smallest label wins. The cost doesn't grow with the number
    of labels.

    Parameters
    ----------
    labels_hwd
        ``(H, W, D)``, integers from 0 on.
    new_shape_hwd, separate_axis
        As in `resample_image`. A separate axis copies whole slices, after the plane was decided.

    Returns
    -------
    Array
        `new_shape_hwd`, the dtype of `labels_hwd`, on its device. Never `labels_hwd` itself.
    """
    xp = namespace(labels_hwd)
    shape = tuple(labels_hwd.shape)
    if shape == tuple(new_shape_hwd):
        return xp.asarray(labels_hwd, copy=True)
    taps = [
        _linear_taps(n, m) if axis != separate_axis else _slice_taps(n, m)
        for axis, (n, m) in enumerate(zip(shape, new_shape_hwd, strict=True))
    ]
    coded, undecided = _decide_where_neighbors_agree(labels_hwd, taps, xp)
    for axis in _axes_by_growth(shape, new_shape_hwd):
        coded = xp.take(coded, _index(taps[axis].lower, xp, coded), axis=axis)
    flat = xp.reshape(coded, (-1,))
    is_open = flat == undecided
    (open_voxels,) = xp.nonzero(is_open)
    result = xp.astype(flat, labels_hwd.dtype)
    source = xp.reshape(labels_hwd, (-1,))
    count = int(open_voxels.shape[0])
    decided = [
        _vote(source, shape, open_voxels[start:stop], new_shape_hwd, taps, xp)
        for start in range(0, count, _VOTE_CHUNK)
        for stop in (min(start + _VOTE_CHUNK, count),)
    ]
    if decided:
        result[is_open] = xp.concat(decided)
    return xp.reshape(result, tuple(new_shape_hwd))


def _linear_taps(n: int, m: int) -> _Taps:
    """Place `m` half-pixel centers among `n` voxels, in float32 as torch does."""
    scale = np.float32(n) / np.float32(m)
    position = scale * (np.arange(m, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    position = np.maximum(position, np.float32(0))
    lower = np.minimum(position.astype(np.intp), n - 1)
    upper = np.minimum(lower + 1, n - 1)
    share = np.clip(position - lower.astype(np.float32), 0, 1).astype(np.float32)
    return _Taps(lower, upper, share)


def _nearest_exact(n: int, m: int) -> npt.NDArray[np.intp]:
    """Give the input voxel that holds each of `m` half-pixel centers, in float32."""
    scale = np.float32(n) / np.float32(m)
    position = (np.arange(m, dtype=np.float32) + np.float32(0.5)) * scale
    return np.minimum(position.astype(np.intp), n - 1)


def _slice_taps(n: int, m: int) -> _Taps:
    """Give taps that copy the nearest slice."""
    nearest = _nearest_exact(n, m)
    return _Taps(nearest, nearest, np.zeros(m, np.float32))


def _axes_by_growth(shape: tuple[int, ...], new_shape: tuple[int, ...]) -> list[int]:
    """Order the axes so that what lies between is smallest: the most shrinking axis first.

    Gathering along the last axis is the slow one, so of axes that grow alike it comes first, while
    the array is small, and of axes that shrink alike it comes last.
    """

    def key(axis: int) -> tuple[float, int]:
        growth = new_shape[axis] / shape[axis]
        return growth, -axis if growth > 1 else axis

    return sorted(range(3), key=key)


def _index(positions: npt.NDArray[np.intp], xp: Namespace, like: Array) -> Array:
    return as_namespace(positions, xp, like)


def _lerp(array: Array, taps: _Taps, axis: int, xp: Namespace) -> Array:
    """Interpolate linearly along one axis, block by block; float32 in, float32 out."""
    along = [1, 1, 1]
    along[axis] = -1
    share = xp.reshape(as_namespace(taps.share, xp, array), tuple(along))
    lower, upper = (_index(at, xp, array) for at in (taps.lower, taps.upper))
    shape = list(array.shape)
    shape[axis] = len(taps.share)
    result = xp.empty(tuple(shape), dtype=xp.float32, device=array.device)
    rows = max(1, block_elements(array) // max(1, shape[1] * shape[2]))
    for start in range(0, shape[0], rows):
        block = slice(start, min(start + rows, shape[0]))
        if axis == 0:
            part, at, over, by = array, lower[block], upper[block], share[block, :, :]
        else:
            part, at, over, by = array[block, :, :], lower, upper, share
        low = xp.take(part, at, axis=axis)
        step = xp.take(part, over, axis=axis)
        step -= low
        step *= by
        step += low
        result[block, :, :] = step
    return result


def _decide_where_neighbors_agree(
    labels: Array, taps: list[_Taps], xp: Namespace
) -> tuple[Array, int]:
    """Mark the input cells whose corners differ.

    Gives the labels with the mark put at the lower corner of each such cell, and the mark: a value
    that no label has. A cell reaches one voxel up on every axis that is interpolated.
    """
    agree = xp.ones(labels.shape, dtype=xp.bool, device=labels.device)
    for axis, tap in enumerate(taps):
        if not bool(np.any(tap.share)):
            continue
        low, high = _pair_slices(axis)
        agree[low] = agree[low] & agree[high] & (labels[low] == labels[high])
    largest = int(xp.max(labels))
    dtype = next(t for t in (xp.uint8, xp.uint16, xp.int64) if largest < int(xp.iinfo(t).max))
    undecided = int(xp.iinfo(dtype).max)
    mark = xp.asarray(undecided, dtype=dtype, device=labels.device)
    return xp.where(agree, xp.astype(labels, dtype), mark), undecided


def _pair_slices(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    low, high = [slice(None)] * 3, [slice(None)] * 3
    low[axis], high[axis] = slice(None, -1), slice(1, None)
    return tuple(low), tuple(high)


def _vote(
    source: Array,
    shape: tuple[int, ...],
    voxels: Array,
    new_shape: Shape,
    taps: list[_Taps],
    xp: Namespace,
) -> Array:
    """Decide output `voxels` (flat indices) by the weights of their eight neighbors' labels."""
    position = (
        voxels // (new_shape[1] * new_shape[2]),
        voxels // new_shape[2] % new_shape[1],
        voxels % new_shape[2],
    )
    sides: list[_Sides] = []
    for tap, at in zip(taps, position, strict=True):
        upper = xp.take(as_namespace(tap.share, xp, source), at)
        lower_index = xp.take(_index(tap.lower, xp, source), at)
        upper_index = xp.take(_index(tap.upper, xp, source), at)
        sides.append(((lower_index, 1.0 - upper), (upper_index, upper)))
    corners = [
        xp.take(source, (i * shape[1] + j) * shape[2] + k)
        for i, _ in sides[0]
        for j, _ in sides[1]
        for k, _ in sides[2]
    ]
    best_label = corners[0]
    best_weight = _rounded_weight(corners, corners[0], sides, xp)
    for candidate in corners[1:]:
        weight = _rounded_weight(corners, candidate, sides, xp)
        wins = (weight > best_weight) | ((weight == best_weight) & (candidate < best_label))
        best_weight = xp.where(wins, weight, best_weight)
        best_label = xp.where(wins, candidate, best_label)
    return best_label


def _rounded_weight(
    corners: list[Array], label: Array, sides: list[_Sides], xp: Namespace
) -> Array:
    """Interpolate the mask of `label` from the corners, last axis first, in float16's steps."""
    whole = xp.asarray(_VOTE_SCALE, dtype=xp.float32, device=label.device)
    values = [xp.where(corner == label, whole, 0 * whole) for corner in corners]
    for (_, low), (_, high) in reversed(sides):
        values = [a * low + b * high for a, b in zip(values[::2], values[1::2], strict=True)]
    return _to_float16_steps(values[0], xp)


def _to_float16_steps(values: Array, xp: Namespace) -> Array:
    """Round float32 values of 64 to 1024 to what float16 can hold, half to even.

    Of eight weights the largest is at least 125, so smaller values, rounded too coarsely or too
    finely here, never decide. (Written out because not every array library has float16.)
    """
    sixteenth, eighth, quarter, half = (
        xp.asarray(step, dtype=xp.float32, device=values.device)
        for step in (1 / 16, 1 / 8, 1 / 4, 1 / 2)
    )
    step = xp.where(values < 256, xp.where(values < 128, sixteenth, eighth), quarter)
    step = xp.where(values < 512, step, half)
    return xp.round(values / step) * step
