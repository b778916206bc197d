"""Connected components of masks and label maps: numbered, measured, and kept or removed.

Connectivity is 6 throughout. On a processor all but the numbering is done by runs, stretches of
voxels of one number in the order of memory: there are far fewer of them than voxels. On a GPU a
voxel is as good as a run, and the array library counts them.

A GPU adds in whatever order its threads come by (CuPy's `bincount` adds atomically), and sums of
floats depend on their order: two runs of one case could give two results. So what is summed here
is whole numbers, or floats rounded to steps so coarse that float64 adds them without rounding, in
any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from medals_rt.common.arrays import (
    as_namespace,
    bounding_box,
    box_slices,
    contiguous,
    is_cupy,
    look_up,
    namespace,
    on_all_cores,
    row_slabs,
    to_host,
)
from medals_rt.common.typing import Array

_STEPS = 2.0**24
"""Steps a unit that means are taken in: those of float32 from 0.5 to 1, where the probabilities of
labeled voxels lie, so that only smaller ones are changed. Float64 adds up to 2**29 of them
exactly."""
_SLAB_BLOCKS = 4
"""A slab is so many blocks: with fewer the threads wait for each other in Python."""


class Pieces(NamedTuple):
    """Parts of components: runs of voxels on a processor, single voxels elsewhere, ``(m,)`` each.

    Attributes
    ----------
    number
        The component's number; of runs also 0, for background.
    start
        The flat index of its first voxel.
    size
        Voxels; None: one each.
    """

    number: Array
    start: Array
    size: Array | None = None


@dataclass(frozen=True, eq=False)
class Components:
    """The n components of a volume, in the order in which a scan, last axis fastest, meets them.

    Attributes
    ----------
    numbers
        ``(A, B, C)`` uint32 on the volume's device: 1 to n, 0 for background.
    labels
        ``(n,)`` on the host: the value that the volume has in each.
    sizes
        ``(n,)`` int64 on the host: voxels.
    """

    numbers: Array
    labels: npt.NDArray[Any]
    sizes: npt.NDArray[np.int64]
    pieces: Pieces


def label_components(array: Array) -> tuple[Array, int]:
    """Find and number the 6-connected components of a mask or of a label map.

    Parameters
    ----------
    array
        ``(A, B, C)``: bool, or integer labels with 0 for background. In a label map, voxels of
        different labels are never in one component.

    Returns
    -------
    numbers
        ``(A, B, C)`` uint32, 0 for background, in the order in which a scan with the last axis
        fastest first meets the components. Within one label the order is thus that of `cc3d` on
        that label's mask, which decides ties in `component_filter`.
    count
        The number of components.
    """
    xp = namespace(array)
    box = bounding_box(array)
    if box is None:
        return xp.zeros(array.shape, dtype=xp.uint32, device=array.device), 0
    inside = box_slices(box)
    found, count = _number(array[inside])
    if tuple(found.shape) == tuple(array.shape):
        return found, count
    numbers = xp.zeros(array.shape, dtype=xp.uint32, device=array.device)
    numbers[inside] = found
    return numbers, count


def measure_components(labels: Array) -> Components:
    """Find the components of a mask or label map with the label and size of each.

    Parameters
    ----------
    labels
        ``(A, B, C)``, at least one voxel, else as for `label_components`. All of it is read: cut
        out the box that matters.
    """
    labels = contiguous(labels)
    numbers, count = _number(labels)
    pieces = _runs(numbers) if isinstance(numbers, np.ndarray) else _voxels(numbers)
    sizes = _sums(pieces.number, pieces.size, count + 1).astype(np.int64)
    return Components(numbers, _in_first_voxels(labels, pieces, count), sizes[1:], pieces)


def component_means(components: Components, values: Array) -> npt.NDArray[np.float32]:
    """Return each component's mean, ``(n,)`` on the host, of ``(A, B, C)`` float32 `values`.

    The same from run to run, on a GPU too. On a processor sums are taken in float32 along a run of
    voxels and in float64 beyond; elsewhere of probabilities, from 0 to 1, to 2**-25 each.
    """
    number, start, size = components.pieces
    if size is None:
        of_pieces = _in_steps(_at(values, start))
    else:
        of_pieces = _sums_of_runs(to_host(values), to_host(start))
    sums = _sums(number, of_pieces, len(components.sizes) + 1)[1:]
    means: npt.NDArray[np.float32] = (sums / components.sizes).astype(np.float32)
    return means


def values_of_components(components: Components, values: Array) -> npt.NDArray[Any]:
    """Return what ``(A, B, C)`` `values` hold in each component's first voxel, ``(n,)``."""
    return _in_first_voxels(values, components.pieces, len(components.sizes))


def cut_components(
    components: Components, sides: Sequence[tuple[bool, bool]]
) -> npt.NDArray[np.bool_]:
    """Find which components touch sides of their volume, ``(n,)`` on the host.

    Parameters
    ----------
    components
        Of a volume.
    sides
        For each of its three axes, whether the low and the high side matter.
    """
    touches = np.zeros(len(components.sizes) + 1, np.bool_)
    for axis, matter in enumerate(sides):
        for index, matters in zip((0, -1), matter, strict=True):
            if matters:
                face = [slice(None)] * 3
                face[axis] = slice(index, None if index else 1)
                touches[to_host(components.numbers[tuple(face)])] = True
    return touches[1:]


def keep_components(labels: Array, components: Components, stays: npt.NDArray[np.bool_]) -> Array:
    """Copy a volume with the components that do not stay set to 0.

    Parameters
    ----------
    labels
        ``(A, B, C)``: the volume.
    components
        Its components.
    stays
        ``(n,)`` on the host.
    """
    xp = namespace(labels)
    table = np.concatenate([np.ones(1, np.bool_), stays])
    pieces = components.pieces
    if pieces.size is None:
        background = xp.zeros((), dtype=labels.dtype, device=labels.device)
        return xp.where(look_up(table, components.numbers), labels, background)
    result = np.array(labels, order="C")
    goes = ~table[to_host(pieces.number)]
    start, size = to_host(pieces.start)[goes], to_host(pieces.size)[goes]
    # the voxels of all these runs: counted up within each from where it starts
    before = np.cumsum(size) - size
    result.reshape(-1)[np.repeat(start - before, size) + np.arange(size.sum())] = 0
    return result


def _number(labels: Array) -> tuple[Array, int]:
    """Find and number the components, and say how many there are."""
    if is_cupy(labels):
        return _number_cupy(labels)
    import cc3d

    found, count = cc3d.connected_components(
        to_host(contiguous(labels)), connectivity=6, return_N=True, out_dtype=np.uint32
    )
    return as_namespace(found, namespace(labels)), int(count)


def _number_cupy(array: Array) -> tuple[Array, int]:
    """Find and number the components on a GPU: uint32 numbers, and how many.

    `cupyx.scipy.ndimage.label` takes masks only. cuCIM's takes label maps; without it each label
    but the only one is numbered by itself, and all are put in the order of appearance.
    """
    import cupy
    from cupyx.scipy import ndimage

    if array.dtype == cupy.bool_:
        numbers, count = ndimage.label(array)
        return numbers.astype(cupy.uint32), int(count)
    if find_spec("cucim") is not None:
        from cucim.skimage import measure

        numbers, count = measure.label(
            cupy.ascontiguousarray(array), background=0, return_num=True, connectivity=1
        )
        return numbers.astype(cupy.uint32), int(count)
    numbers = cupy.zeros(array.shape, cupy.int64)
    total = 0
    for value in cupy.unique(array).tolist():
        if value != 0:
            of_label, count = ndimage.label(array == value)
            numbers += cupy.where(of_label > 0, of_label + total, 0)
            total += int(count)
    _, first_met = cupy.unique(numbers[numbers > 0], return_index=True)
    renumbered = cupy.zeros(total + 1, cupy.uint32)
    renumbered[1 + cupy.argsort(first_met)] = cupy.arange(1, total + 1, dtype=cupy.uint32)
    return renumbered[numbers], total


def _runs(numbers: npt.NDArray[np.uint32]) -> Pieces:
    """Cut a volume into stretches of one number, none of which lies in two slabs."""
    plane = prod(numbers.shape[1:])
    starts: dict[int, npt.NDArray[np.intp]] = {}

    def find(begin: int, end: int) -> None:
        flat = numbers[begin:end].reshape(-1)
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        starts[begin] = np.concatenate([np.zeros(1, np.intp), changes]) + begin * plane

    slabs = row_slabs(numbers, _SLAB_BLOCKS)
    on_all_cores(find, slabs, numbers)
    start = np.concatenate([starts[begin] for begin, _ in slabs])
    return Pieces(numbers.reshape(-1)[start], start, np.diff(start, append=numbers.size))


def _sums_of_runs(values: npt.NDArray[Any], start: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
    """Add up the values of each run."""
    plane = prod(values.shape[1:])
    sums = np.empty(len(start), values.dtype)

    def add(begin: int, end: int) -> None:
        runs = slice(*np.searchsorted(start, (begin * plane, end * plane)))
        sums[runs] = np.add.reduceat(values[begin:end].reshape(-1), start[runs] - begin * plane)

    on_all_cores(add, row_slabs(values, _SLAB_BLOCKS), values)
    return sums


def _voxels(numbers: Array) -> Pieces:
    """Find the voxels of all components."""
    xp = namespace(numbers)
    flat = xp.reshape(numbers, (-1,))
    (at,) = xp.nonzero(flat)
    return Pieces(xp.take(flat, at), at)


def _at(array: Array, index: Array) -> Array:
    """Read ``(A, B, C)`` at flat indices."""
    xp = namespace(array)
    return xp.take(xp.reshape(array, (-1,)), index)


def _sums(numbers: Array, weights: Array | None, length: int) -> npt.NDArray[Any]:
    """Count each number, ``0 <= number < length``, or sum its weights in float64."""
    numbers = _countable(numbers)
    xp = namespace(numbers)
    if weights is not None:
        weights = xp.astype(_countable(weights), xp.float64)
    return to_host(xp.bincount(numbers, weights=weights, minlength=length))


def _in_steps(values: Array) -> Array:
    """Round to whole multiples of a step, as float64, so that their sums are exact."""
    xp = namespace(values)
    return xp.round(xp.astype(values, xp.float64) * _STEPS) / _STEPS


def _in_first_voxels(values: Array, pieces: Pieces, count: int) -> npt.NDArray[Any]:
    """Read ``(A, B, C)`` at the first voxel of each of `count` components."""
    number, start, values = map(_countable, (pieces.number, pieces.start, values))
    xp: Any = namespace(start)
    first = xp.full(count + 1, prod(values.shape), dtype=xp.uint64)
    xp.minimum.at(first, number, xp.astype(start, xp.uint64))
    return to_host(_at(values, xp.astype(first[1:], xp.int64)))


def _countable(array: Array) -> Array:
    """Bring an array to the host, which counts for libraries of no more than the standard."""
    return array if is_cupy(array) else to_host(array)
