"""Which array library an array belongs to, and what differs between them.

Every array step of the package takes NumPy or CuPy arrays (tests also pass `array_api_strict`) and
stays on their device. Only this module knows which library it is; the others ask it for a
`namespace` and use the functions of the array API standard, which NumPy 2 and CuPy 14 share.

CuPy is never imported unless an array is already CuPy's.
"""

from __future__ import annotations

import sys
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from medals_rt.errors import MissingDependencyError

_CACHE_ELEMENTS = 1 << 17

Array: TypeAlias = Any
"""A NumPy or CuPy array (in tests also an `array_api_strict` one)."""

Namespace: TypeAlias = Any
"""The functions that go with an `Array`: the module `numpy`, `cupy` or `array_api_strict`."""

Box: TypeAlias = tuple[tuple[int, int, int], tuple[int, int, int]]
"""A box in voxels: the lowest index on each axis (inclusive) and the highest (exclusive)."""


def namespace(array: Array) -> Namespace:
    """Give the library that `array` belongs to.

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
        return array.__array_namespace__()
    raise TypeError(f"expected a NumPy or CuPy array, found {type(array).__name__}")


def is_cupy(array: Array) -> bool:
    """Say whether `array` is CuPy's, without importing CuPy."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(array, cupy.ndarray)


def to_host(array: Array) -> npt.NDArray[Any]:
    """Give `array` as a NumPy array: itself where it is one, else a copy from its device."""
    if isinstance(array, np.ndarray):
        return array
    if is_cupy(array):
        host: npt.NDArray[Any] = array.get()
        return host
    return np.asarray(array)


def to_device(array: npt.ArrayLike, device: str) -> Array:
    """Put a host array on `device`: ``"cpu"`` (NumPy) or ``"cuda"`` (CuPy, the current card).

    Raises
    ------
    MissingDependencyError
        ``"cuda"`` was asked for and CuPy or a card is missing.
    ValueError
        `device` is neither.
    """
    if device == "cpu":
        return np.asarray(array)
    if device != "cuda":
        raise ValueError(f"unknown device {device!r}: choose 'cpu' or 'cuda'")
    try:
        import cupy
    except ImportError as error:
        raise MissingDependencyError(
            "device 'cuda' needs CuPy: install the extra with pip install 'medals-rt[gpu]'"
        ) from error
    if not cupy.is_available():
        raise MissingDependencyError("device 'cuda' was asked for, but CuPy finds no CUDA card")
    return cupy.asarray(array)


def as_namespace(array: npt.ArrayLike, xp: Namespace, like: Array | None = None) -> Array:
    """Turn a host array into one of the library `xp`, on the device of `like` where it is given."""
    if xp is np:
        return np.asarray(array)
    if like is not None and is_cupy(like):
        with like.device:
            return xp.asarray(array)
    return xp.asarray(array)


def block_elements(array: Array) -> int:
    """Say how many elements of `array` are best worked on at once.

    On a processor what fits its cache; on a card everything, since each step costs a launch.
    """
    return max(1, int(array.size)) if is_cupy(array) else _CACHE_ELEMENTS


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
        ``(A, B, C)`` integers, 0 for background, in the order in which a scan with the last axis
        fastest first meets the components. Within one label the order is thus that of `cc3d` on
        that label's mask, on which ties in `postprocess` rest.
    count
        The number of components.
    """
    if is_cupy(array):
        return _label_components_cupy(array)
    import cc3d

    host = np.ascontiguousarray(to_host(array))
    if host.size == 0:
        return as_namespace(np.zeros(host.shape, np.uint32), namespace(array)), 0
    numbers, count = cc3d.connected_components(
        host, connectivity=6, return_N=True, out_dtype=np.uint32
    )
    return as_namespace(numbers, namespace(array)), int(count)


def _label_components_cupy(array: Array) -> tuple[Array, int]:
    """Do the same on a card.

    `cupyx.scipy.ndimage.label` takes masks only, so each label of a map is numbered by itself.
    """
    import cupy
    from cupyx.scipy import ndimage

    if array.dtype == cupy.bool_:
        numbers, count = ndimage.label(array)
        return numbers, int(count)
    numbers = cupy.zeros(array.shape, cupy.int32)
    total = 0
    for value in cupy.unique(array).tolist():
        if value == 0:
            continue
        of_label, count = ndimage.label(array == value)
        numbers = cupy.where(of_label > 0, of_label + total, numbers)
        total += int(count)
    return numbers, total


def count_values(indices: Array, length: int, weights: Array | None = None) -> Array:
    """Count (or sum `weights` over) each value of `indices`, ``0 <= index < length``.

    Sums are taken in float64 whatever the dtype of `weights`. Gives ``(length,)``.
    """
    xp = namespace(indices)
    if xp is np or is_cupy(indices):
        flat_weights = None if weights is None else weights.reshape(-1)
        return xp.bincount(indices.reshape(-1), weights=flat_weights, minlength=length)
    host_weights = None if weights is None else to_host(weights).reshape(-1)
    return as_namespace(
        np.bincount(to_host(indices).reshape(-1), weights=host_weights, minlength=length), xp
    )


def bounding_box(mask: Array) -> Box | None:
    """Give the smallest box that holds the true voxels of `mask` ``(A, B, C)``; None: empty."""
    xp = namespace(mask)
    low, high = [], []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        (found,) = xp.nonzero(xp.any(mask, axis=others))
        if found.shape[0] == 0:
            return None
        low.append(int(found[0]))
        high.append(int(found[-1]) + 1)
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])
