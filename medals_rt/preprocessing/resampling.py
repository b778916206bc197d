"""Resampling images and label maps (paper 2.5).

Linear with half-pixel centers and clamped edges, as `torch.nn.functional.interpolate` with
``align_corners=False``; on input, an axis much coarser than the others is resampled by
nearest neighbor instead (nnU-Net's rule, in `geometry.separate_axis`). Everything is in
float32, including the positions, where the release's rounding decides which voxel is nearest.

Volumes are swept in slabs of output rows, which fit a processor's cache and share its cores. The
larger of the two grids is swept in the order of its memory: files hold ``(D, H, W)``, the model
works on ``(H, W, D)``, and turning an array around costs more than resampling it.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from medals_rt.common.arrays import (
    RowSums,
    as_namespace,
    contiguous,
    memory_order,
    namespace,
    on_all_cores,
    row_slabs,
    take_into,
)
from medals_rt.common.typing import Array, Namespace, Shape
from medals_rt.preprocessing.interpolation import Axis, make_axis
from medals_rt.preprocessing.label_interpolation import vote, vote_everywhere

Order: TypeAlias = tuple[int, int, int]
"""The three axes of an array from the slowest to the fastest in memory."""

MODEL_ORDER: Order = (0, 1, 2)
"""``(H, W, D)`` arrays whose memory is in that order."""

FILE_ORDER: Order = (2, 0, 1)
"""``(H, W, D)`` views of arrays whose memory is in the files' order, ``(D, H, W)``."""

_MOST_KEPT_LINES = 1 << 12
"""Tables of so many lines are kept (128 KiB each): making one takes longer than using it."""

_FEW_VOXELS = 1 << 15
"""Label maps of so many voxels are interpolated as a whole: that fits a processor's cache.

Larger ones are mostly of one label, which the source's voxels show, and that is cheaper.
"""

_SLAB_BLOCKS = 16
"""A slab is so many blocks: fewer and the threads wait for each other in Python."""


def resample_image(
    image_hwd: Array,
    new_shape_hwd: Shape,
    separate_axis: int | None = None,
    *,
    order: Order = MODEL_ORDER,
    scale_hwd: tuple[float, float, float] | None = None,
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
        always back to the original grid.
    order
        How the result lies in memory: `MODEL_ORDER`, or `FILE_ORDER` back to the original grid.
    scale_hwd
        How many voxels of the image one of the result is long; None: so many that both end at the
        same place.

    Returns
    -------
    Array
        `new_shape_hwd`, float32, on the device of the image. Never the image itself.
    """
    xp = namespace(image_hwd)
    shape, new_shape = _shape(image_hwd.shape), _shape(new_shape_hwd)
    axes = _axes(shape, new_shape, separate_axis, scale_hwd)
    source, swept = _to_sweep(image_hwd, new_shape, order, xp)
    moved = [axes[axis] for axis in swept]
    result = xp.empty(
        tuple(each.new_length for each in moved), dtype=xp.float32, device=image_hwd.device
    )

    def fill(start: int, stop: int) -> None:
        _fill_image_slab(source, moved, slice(start, stop), result[start:stop, :, :], xp)

    on_all_cores(fill, _slabs(source, result), source)
    return _in_order(result, swept, order, xp)


def resample_labels(
    labels_hwd: Array,
    new_shape_hwd: Shape,
    separate_axis: int | None = None,
    *,
    order: Order = MODEL_ORDER,
    scale_hwd: tuple[float, float, float] | None = None,
) -> Array:
    """Bring a label map to another shape: each voxel gets the label of the largest linear weight.

    It is the release's result (each label's mask interpolated linearly, times 1000, rounded to
    float16, the first largest wins) without interpolating any mask. A voxel whose eight neighbors
    agree takes their label, which settles nearly all; for the others the eight labels vote with
    their weights (`label_interpolation.vote`). In a small map all voxels are computed at once. The
    cost doesn't grow with the number of labels.

    Parameters
    ----------
    labels_hwd
        ``(H, W, D)``, integers from 0 on.
    new_shape_hwd, separate_axis, order, scale_hwd
        As in `resample_image`. A separate axis copies whole slices of the interpolated plane.

    Returns
    -------
    Array
        `new_shape_hwd`, the dtype of `labels_hwd`, on its device. Never `labels_hwd` itself.
    """
    xp = namespace(labels_hwd)
    shape, new_shape = _shape(labels_hwd.shape), _shape(new_shape_hwd)
    axes = _axes(shape, new_shape, separate_axis, scale_hwd)
    source, swept = _to_sweep(labels_hwd, new_shape, order, xp)
    moved = [axes[axis] for axis in swept]
    result = xp.empty(
        tuple(each.new_length for each in moved), dtype=labels_hwd.dtype, device=labels_hwd.device
    )
    if all(each.keeps for each in axes):
        result[...] = source
        return _in_order(result, swept, order, xp)
    last_first = tuple(swept.index(axis) for axis in (2, 1, 0))
    if max(prod(new_shape), prod(shape) // 4) <= _FEW_VOXELS:
        result[...] = vote_everywhere(source, moved, last_first)
        return _in_order(result, swept, order, xp)
    coded_dtype, undecided = _code_of_undecided(labels_hwd, xp)

    def fill(start: int, stop: int) -> None:
        part, local = _part(source, moved, slice(start, stop))
        coded = _decide_where_neighbors_agree(part, local, coded_dtype, undecided, xp)
        for axis in _axes_by_growth(local):
            coded = _take(coded, local[axis].lower, axis, xp)
        labels_at = xp.astype(coded, labels_hwd.dtype)
        contested = xp.reshape(coded == undecided, (-1,))
        (voxels,) = xp.nonzero(contested)
        if voxels.shape[0]:
            flat = xp.reshape(labels_at, (-1,))
            flat[contested] = vote(part, local, voxels, last_first)
            labels_at = xp.reshape(flat, labels_at.shape)
        result[start:stop, :, :] = labels_at

    on_all_cores(fill, _slabs(source, result), source)
    return _in_order(result, swept, order, xp)


def _axes(
    shape: Shape,
    new_shape: Shape,
    separate_axis: int | None,
    scale_hwd: tuple[float, float, float] | None,
) -> tuple[Axis, ...]:
    scales = (None, None, None) if scale_hwd is None else scale_hwd
    return tuple(
        make_axis(n, m, nearest=axis == separate_axis, scale=scale)
        for axis, (n, m, scale) in enumerate(zip(shape, new_shape, scales, strict=True))
    )


def _shape(shape: tuple[int, ...]) -> Shape:
    h, w, d = (int(length) for length in shape)
    return h, w, d


def _to_sweep(array: Array, new_shape: Shape, order: Order, xp: Namespace) -> tuple[Array, Order]:
    """View `array` as it is to be swept, and name its axes in that order.

    Where the result is the larger one, the array is turned to its order first; else it is swept
    as it lies, and the result is turned in the end.
    """
    if prod(new_shape) < prod(array.shape):
        lies = memory_order(array)
        return xp.permute_dims(array, lies), lies
    return contiguous(xp.permute_dims(array, order)), order


def _in_order(result: Array, swept: Order, order: Order, xp: Namespace) -> Array:
    """View a result, swept in one order, as ``(H, W, D)`` with its memory in another."""
    back = tuple(swept.index(axis) for axis in range(3))
    if swept != order:
        turned = xp.permute_dims(result, tuple(swept.index(axis) for axis in order))
        result = contiguous(turned)
        back = tuple(order.index(axis) for axis in range(3))
    return xp.permute_dims(result, back)


def _slabs(source: Array, result: Array) -> list[tuple[int, int]]:
    """Cut the result's first axis into runs of rows that are worked on at once."""
    largest_row = max(prod(result.shape[1:]), prod(source.shape[1:]))
    return row_slabs(result, _SLAB_BLOCKS, largest_row)


def _part(source: Array, axes: list[Axis], rows: slice) -> tuple[Array, list[Axis]]:
    """Cut out what some output rows read, and give the axes that say so."""
    first = axes[0]
    if rows.stop - rows.start == first.new_length:
        return source, axes
    low, high = int(first.lower[rows.start]), int(first.upper[rows.stop - 1]) + 1
    of_part = Axis(high - low, first.lower[rows] - low, first.upper[rows] - low, first.share[rows])
    return source[low:high, :, :], [of_part, *axes[1:]]


def _fill_image_slab(
    source: Array, axes: list[Axis], rows: slice, out: Array, xp: Namespace
) -> None:
    """Interpolate some output rows; the last axis first where it grows, else last."""
    part, local = _part(source, axes, rows)
    part = xp.astype(part, xp.float32, copy=False)
    first, second, last = local
    if last.new_length > last.length:
        grown = xp.empty((*part.shape[:2], last.new_length), dtype=xp.float32, device=part.device)
        _along_last(part, last, grown, xp)
        out[...] = _along_first_two(grown, first, second, xp)
    else:
        _along_last(_along_first_two(part, first, second, xp), last, out, xp)


def _along_first_two(part: Array, first: Axis, second: Axis, xp: Namespace) -> Array:
    """Interpolate along the first two axes at once: lines of the last axis are summed whole."""
    if first.keeps and second.keeps:
        return part
    is_small = first.new_length * second.new_length <= _MOST_KEPT_LINES
    sums = (_kept_line_sums if is_small else _line_sums)(first, second)
    combined = sums(xp.reshape(part, (part.shape[0] * part.shape[1], part.shape[2])))
    return xp.reshape(combined, (first.new_length, second.new_length, part.shape[2]))


def _line_sums(first: Axis, second: Axis) -> RowSums:
    """Return which lines of the last axis are summed to each new one, and with what weights."""
    # entries by (first, second, first's term, second's term): long inner loops, as NumPy likes them
    of_first, of_second = first.reads.shape[1], second.reads.shape[1]
    term = np.tile(np.repeat(np.arange(of_first), of_second), second.new_length)
    read = (first.reads * np.int32(second.length))[:, term]
    read += np.repeat(second.reads[:, None, :], of_first, axis=1).reshape(-1)
    weights = first.weights[:, term]
    weights *= np.repeat(second.weights[:, None, :], of_first, axis=1).reshape(-1)
    terms = of_first * of_second
    count = first.length * second.length
    return RowSums(read.reshape(-1, terms), weights.reshape(-1, terms), count)


_kept_line_sums = lru_cache(maxsize=64)(_line_sums)


def _along_last(part: Array, axis: Axis, out: Array, xp: Namespace) -> None:
    if axis.keeps:
        out[...] = part
        return
    take_into(out, part, axis.lower)
    if axis.mixes:
        step = _take(part, axis.upper, 2, xp)
        step -= out
        step *= as_namespace(axis.share, xp, part)
        out += step


def _take(array: Array, index: npt.NDArray[np.intp], axis: int, xp: Namespace) -> Array:
    return xp.take(array, as_namespace(index, xp, array), axis=axis)


def _axes_by_growth(axes: list[Axis]) -> list[int]:
    """Order the axes so that what lies between is smallest: the most shrinking axis first.

    But indexing along the last axis is the slow one: it comes first where it grows, while the
    array is small, else last.
    """
    last = 2

    def enlargement(axis: int) -> float:
        return axes[axis].new_length / axes[axis].length

    first_two = sorted(range(last), key=enlargement)
    ordered = [last, *first_two] if enlargement(last) > 1 else [*first_two, last]
    return [axis for axis in ordered if not axes[axis].keeps]


def _code_of_undecided(labels: Array, xp: Namespace) -> tuple[Any, int]:
    """Choose a small integer type and a value of it that no label has."""
    largest = int(xp.max(labels)) if labels.size else 0
    infos: list[Any] = [xp.iinfo(dtype) for dtype in (xp.uint8, xp.uint16, xp.int64)]
    info = next(info for info in infos if largest < int(info.max))
    return info.dtype, int(info.max)


def _decide_where_neighbors_agree(
    labels: Array, axes: list[Axis], dtype: npt.DTypeLike, undecided: int, xp: Namespace
) -> Array:
    """Return the labels, with `undecided` at the lower corner of each cell whose corners differ.

    A cell reaches one voxel up on every axis that is interpolated. The volume is compared with
    itself as one long line, which is faster; so a cell at the end of an axis, where there is none
    further up, may be called undecided for what follows on the line. It then votes in vain.
    """
    flat = xp.reshape(labels, (-1,))
    agree = xp.ones(flat.shape, dtype=xp.bool, device=labels.device)
    step = 1
    for axis in reversed(axes):
        if axis.mixes and axis.length > 1:
            agree[:-step] = agree[:-step] & agree[step:] & (flat[:-step] == flat[step:])
        step *= axis.length
    mark = xp.full((), undecided, dtype=dtype, device=labels.device)
    labels_at = xp.where(agree, xp.astype(flat, dtype, copy=False), mark)
    return xp.reshape(labels_at, labels.shape)
