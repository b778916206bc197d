"""Which array library an array belongs to, and what differs between them.

Every array step of the package takes NumPy or CuPy arrays (tests also pass `array_api_strict`) and
stays on their device. Only this module knows which library it is; the others ask it for a
`namespace` and use the functions of the array API standard, which NumPy 2 and CuPy 14 share.

CuPy is never imported unless an array is already CuPy's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from medals_rt.common.cache_dir import provide_cupy_cache
from medals_rt.common.cores import usable_cores
from medals_rt.common.errors import MissingDependencyError
from medals_rt.common.optional_deps import import_optional
from medals_rt.common.typing import Array, Box, Namespace

_CACHE_ELEMENTS = 1 << 17


def namespace(array: Array) -> Namespace:
    """Return the library that `array` belongs to.

    Raises
    ------
    TypeError
        `array` is no array of a library with the array API's functions.
    """
    if isinstance(array, np.ndarray | np.generic):
        return np
    if is_cupy(array):
        import array_api_compat.cupy  # CuPy under the standard's names, `astype` among them

        return array_api_compat.cupy
    if hasattr(array, "__array_namespace__"):
        library: Namespace = array.__array_namespace__()
        return library
    raise TypeError(f"expected a NumPy or CuPy array, found {type(array).__name__}")


def is_cupy(array: Array) -> bool:
    """Whether `array` is CuPy's, found without importing CuPy."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(array, cupy.ndarray)


def to_host(array: Array) -> npt.NDArray[Any]:
    """Return `array` as a NumPy array: itself where it is one, else a copy from its device."""
    if isinstance(array, np.ndarray):
        return array
    if is_cupy(array):
        found: np.ndarray = array.get()  # type: ignore[attr-defined]
        return found
    return np.asarray(array)


def open_cupy(what: str) -> Any:
    """Import CuPy where it finds a GPU; all that uses one begins here.

    Parameters
    ----------
    what
        What needs it, for the message, such as ``"a runner on a GPU"``.

    Raises
    ------
    MissingDependencyError
        If CuPy is not installed, or finds no GPU.
    """
    provide_cupy_cache()
    cupy = import_optional("CuPy", what)
    if not cupy.is_available():
        raise MissingDependencyError(
            f"{what} was asked for, but CuPy finds no CUDA GPU", code="gpu-missing"
        )
    return cupy


def to_device(array: npt.ArrayLike, device: str) -> Array:
    """Put a host array on `device`: ``"cpu"`` (NumPy) or ``"cuda"`` (CuPy, the current GPU).

    Raises
    ------
    MissingDependencyError
        ``"cuda"`` was asked for and CuPy or a GPU is missing.
    ValueError
        `device` is neither.
    """
    if device == "cpu":
        return np.asarray(array)
    if device != "cuda":
        raise ValueError(f"unknown device {device!r}: choose 'cpu' or 'cuda'")
    # CuPy's own copies: staging them in two page-locked buffers was slower on an H200
    found: Array = open_cupy("device 'cuda'").asarray(np.asarray(array))
    return found


def as_namespace(array: npt.ArrayLike | Array, xp: Namespace, like: Array | None = None) -> Array:
    """Turn a host array into one of the library `xp`, on the device of `like` where it is given."""
    if xp is np:
        return np.asarray(array)
    if like is not None and is_cupy(like):
        with like.device:
            return xp.asarray(array)
    return xp.asarray(array)


def block_elements(array: Array) -> int:
    """Return how many elements of `array` are best worked on at once.

    On a processor what fits its cache; on a GPU everything, since each step costs a launch.
    """
    return max(1, int(array.size)) if is_cupy(array) else _CACHE_ELEMENTS


def settle(array: Array) -> None:
    """Wait until a GPU has done all that was asked of it; without one there is nothing to do."""
    if is_cupy(array):
        array.device.synchronize()


def contiguous(array: Array) -> Array:
    """Return `array` with its memory in the order of its axes: itself where it already lies so."""
    xp = namespace(array)
    return xp.ascontiguousarray(array) if xp is np or is_cupy(array) else array


def owned(array: Array) -> Array:
    """Return `array` where its memory is its own, else a copy: a view holds all that it views."""
    if getattr(array, "base", None) is None:
        return array
    return namespace(array).asarray(array, copy=True)


def memory_order(array: Array) -> tuple[int, int, int]:
    """Return the three axes of `array` from the slowest to the fastest in memory."""
    strides: tuple[int, ...] | None = getattr(array, "strides", None)
    if strides is None:
        return 0, 1, 2  # the standard knows none
    first, second, third = sorted(range(3), key=lambda axis: -strides[axis])
    return first, second, third


def on_all_cores(work: Callable[..., None], blocks: Sequence[tuple[Any, ...]], like: Array) -> None:
    """Do `work` on every block, whose arguments they are; each writes to a place of its own.

    NumPy lets go of the interpreter in its loops, so that threads share the blocks. Other
    libraries, which run on a GPU or only in tests, take them one by one, as do single blocks.
    """
    threads = min(usable_cores(), len(blocks)) if namespace(like) is np else 1
    if threads <= 1:
        for block in blocks:
            work(*block)
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, *block) for block in blocks]:
            done.result()


def row_slabs(array: Array, blocks: int, row_elements: int | None = None) -> list[tuple[int, int]]:
    """Cut the first axis of `array` into slabs of so many blocks (`block_elements`), or of one row.

    `row_elements` says how large a row counts, where it isn't one of `array` itself. Gives each
    slab's first row and the one after its last.
    """
    count = int(array.shape[0])
    of_row = max(1, prod(array.shape[1:]) if row_elements is None else row_elements)
    rows = max(1, blocks * block_elements(array) // of_row)
    return [(first, min(first + rows, count)) for first in range(0, count, rows)]


class RowSums:
    """Weighted sums of rows: row m is the sum of ``weights[m, k] * rows[indices[m, k]]``.

    Parameters
    ----------
    indices, weights
        ``(M, K)`` int32 and float32, on the host. Terms are added in the order of K.
    count
        R, of the rows that are read.
    """

    def __init__(
        self, indices: npt.NDArray[np.int32], weights: npt.NDArray[np.float32], count: int
    ) -> None:
        self._indices, self._weights, self._count = indices, weights, count

    def __call__(self, rows: Array) -> Array:
        """Sum rows ``(R, C)`` float32 to ``(M, C)`` float32, on their device."""
        xp = namespace(rows)
        if xp is np and not self._copies:
            # reads and writes each line once or twice, where taking and multiplying need five
            summed: Array = self._matrix @ rows
            return summed
        first = xp.take(rows, as_namespace(self._indices[:, 0], xp, rows), axis=0)
        if self._copies:
            return first
        of_rows = as_namespace(self._weights, xp, rows)
        result = first * of_rows[:, 0, None]
        for k in range(1, self._indices.shape[1]):
            taken = xp.take(rows, as_namespace(self._indices[:, k], xp, rows), axis=0)
            result += taken * of_rows[:, k, None]
        return result

    @cached_property
    def _copies(self) -> bool:
        """Whether each sum is of one whole row."""
        return self._indices.shape[1] == 1 and bool((self._weights == 1).all())

    @cached_property
    def _matrix(self) -> Any:
        from scipy.sparse import csr_array

        sums, terms = self._indices.shape
        starts = np.arange(0, terms * sums + 1, terms, dtype=np.int32)
        entries = (self._weights.reshape(-1), self._indices.reshape(-1), starts)
        return csr_array(entries, shape=(sums, self._count))


def take_into(out: Array, array: Array, index: npt.NDArray[np.integer]) -> None:
    """Write ``array[..., index]`` to `out`, without an array in between where that can be had."""
    xp = namespace(array)
    if isinstance(array, np.ndarray) and isinstance(
        out, np.ndarray
    ):  # "clip" lets NumPy write to `out` at once; every index is inside
        np.take(array, index, axis=-1, out=out, mode="clip")
    else:
        out[...] = xp.take(array, as_namespace(index, xp, array), axis=-1)


def look_up(table: Array, indices: Array) -> Array:
    """Return ``table[indices]``: a small table, here or on the host, and integers ``(A, B, C)``."""
    xp = namespace(indices)
    on_device = as_namespace(table, xp, indices)
    result = xp.empty(indices.shape, dtype=on_device.dtype, device=indices.device)

    def fill(start: int, stop: int) -> None:
        flat = xp.reshape(indices[start:stop, :, :], (-1,))
        found = xp.take(on_device, xp.astype(flat, xp.int64, copy=False))
        result[start:stop, :, :] = xp.reshape(found, (stop - start, *indices.shape[1:]))

    on_all_cores(fill, row_slabs(indices, 4), indices)
    return result


def present_values(labels: Array) -> set[int]:
    """Values that a label map holds, without the background 0."""
    xp = namespace(labels)
    if xp is np and labels.dtype in (np.uint8, np.uint16):  # sorting a volume takes seconds
        present = np.zeros(int(np.iinfo(labels.dtype).max) + 1, np.bool_)
        for plane in to_host(labels):
            values = np.ravel(plane)
            # neighbors are mostly alike: only where they differ is there something to look at
            present[values[:1]] = True
            present[values[1:][values[1:] != values[:-1]]] = True
        return set(np.flatnonzero(present).tolist()) - {0}
    return set(to_host(xp.unique_values(labels)).tolist()) - {0}


def label_dtype(highest: int) -> np.dtype[np.unsignedinteger]:
    """Smallest unsigned type that holds labels up to `highest`."""
    return np.min_scalar_type(highest)


def label_counts(labels: npt.NDArray[Any], minlength: int = 0) -> npt.NDArray[np.int64]:
    """Count the voxels of each label.

    Parameters
    ----------
    labels
        ``(A, B, C)``, integers from 0 on, none of them huge; on the host.
    minlength
        The result is as long at least.

    Returns
    -------
    numpy.ndarray
        One number for each label from 0 to the highest.
    """
    counts = np.zeros(max(minlength, int(labels.max(initial=0)) + 1), np.int64)
    for plane in labels:  # counting the volume at once would take eight bytes a voxel
        counts += np.bincount(plane.reshape(-1), minlength=len(counts))
    return counts


def bounding_box(array: Array) -> Box | None:
    """Return the smallest box that holds what is not 0 of a mask or label map; None: nothing is.

    Parameters
    ----------
    array
        ``(A, B, C)``: bool, or integers from 0 on.

    Returns
    -------
    Box or None
        Found with one transfer from a GPU, whatever is in the array.
    """
    xp = namespace(array)
    if 0 in array.shape:
        return None
    reduce = xp.any if array.dtype == xp.bool else xp.max
    plane = reduce(array, axis=0)
    sides = (reduce(array, axis=(1, 2)), reduce(plane, axis=1), reduce(plane, axis=0))
    found = to_host(xp.concat(sides))
    low, high, start = [], [], 0
    for length in array.shape:
        indices = np.flatnonzero(found[start : start + length])
        if not indices.size:
            return None
        low.append(int(indices[0]))
        high.append(int(indices[-1]) + 1)
        start += length
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


def enclosing(*boxes: Box) -> Box:
    """Return the smallest box that holds some others."""
    low = np.min([each[0] for each in boxes], axis=0).tolist()
    high = np.max([each[1] for each in boxes], axis=0).tolist()
    return tuple(low), tuple(high)


def box_slices(box: Box) -> tuple[slice, slice, slice]:
    """Return a box as an index into an ``(A, B, C)`` array."""
    a, b, c = (slice(low, high) for low, high in zip(*box, strict=True))
    return a, b, c
