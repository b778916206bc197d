"""Exact percentiles of the non-zero voxels of a large volume, without a copy of it.

Sorting a CT's hundred million voxels takes a second copy of them and seconds. Read as unsigned
numbers with the sign folded in, float32 values keep their order, so that the value of a rank is
found by counting the upper 16 bits of all, then the lower 16 bits of those that share its upper
ones, slab by slab.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from medals_rt.common.arrays import is_cupy, namespace, on_all_cores, row_slabs, to_host
from medals_rt.common.typing import Array

_HALVES = 1 << 16
_SIGN = np.uint32(1 << 31)
_SLAB_BLOCKS = 2


def nonzero_percentiles(
    image: Array, percents: Sequence[float], *, only_positive: bool = False
) -> tuple[float, ...] | None:
    """Find percentiles of the voxels that are not 0, or of those above 0.

    Equal to those of `numpy.percentile` (linear between ranks) on the values as float32; counted on
    the device of `image`.

    Parameters
    ----------
    image
        ``(A, B, C)``, real and finite.
    percents
        From 0 to 100.
    only_positive
        Leave out the voxels below 0 too.

    Returns
    -------
    tuple of float or None
        In the order asked for; None where no voxel is left.
    """
    (upper,) = _counts(image, None)
    zero_high, zero_low = divmod(int(_SIGN), _HALVES)
    zeros = _zeros(image)
    upper[zero_high] -= zeros
    below = int(upper[:zero_high].sum()) if only_positive else 0  # ranks of those come first
    count = int(upper.sum())
    if count == below:
        return None
    places = [below + (count - below - 1) * each / 100 for each in percents]
    ranks = sorted({min(int(place) + step, count - 1) for place in places for step in (0, 1)})
    ends = np.cumsum(upper)
    highs = np.searchsorted(ends, ranks, side="right")
    distinct = np.unique(highs)
    lower = dict(zip(distinct.tolist(), _counts(image, distinct), strict=True))
    if zero_high in lower:
        lower[zero_high][zero_low] -= zeros
    value_at = {}
    for rank, high in zip(ranks, highs.tolist(), strict=True):
        before = int(ends[high] - upper[high])
        low = int(np.searchsorted(np.cumsum(lower[high]), rank - before, side="right"))
        value_at[rank] = _value(high * _HALVES + low)
    found = []
    for place in places:
        first, second = value_at[int(place)], value_at[min(int(place) + 1, count - 1)]
        found.append(first + (second - first) * (place - int(place)))
    return tuple(found)


def _zeros(image: Array) -> int:
    """Count the voxels that are 0."""
    xp = namespace(image)
    voxels = int(image.size)
    return voxels - sum(int(xp.count_nonzero(image[i, ...])) for i in range(image.shape[0]))


def _counts(image: Array, highs: npt.NDArray[np.intp] | None) -> list[npt.NDArray[np.int64]]:
    """Count the upper halves of all keys; or the lower halves, for each of some upper ones."""
    totals = [np.zeros(_HALVES, np.int64) for _ in range(1 if highs is None else len(highs))]
    adding = Lock()

    def count(start: int, stop: int) -> None:
        slab = image[start:stop, ...]
        keys = _ordered_keys(slab if is_cupy(slab) else to_host(slab))
        xp = namespace(keys)
        high = keys >> np.uint32(16)
        if highs is None:
            chosen = [high]
        else:
            chosen = [keys[high == each] & np.uint32(_HALVES - 1) for each in highs.tolist()]
        found = [to_host(xp.bincount(each, minlength=_HALVES)) for each in chosen]
        with adding:
            for index, each in enumerate(found):
                totals[index] += each

    on_all_cores(count, row_slabs(image, _SLAB_BLOCKS), image)
    return totals


def _ordered_keys(slab: Array) -> Array:
    """Turn values into uint32 numbers of the same order, ``(n,)``; -0 becomes 0.

    `slab` is NumPy's or CuPy's: `view` is their own, and no function of the array API.
    """
    xp = namespace(slab)
    values: Any = xp.reshape(xp.astype(slab, xp.float32), (-1,)) + np.float32(0)
    bits = values.view(xp.uint32)
    return xp.where(values < 0, ~bits, bits | _SIGN)


def _value(key: int) -> float:
    """Return the value of a key."""
    bits = np.uint32(key)
    original = bits ^ _SIGN if bits & _SIGN else ~bits
    return float(original.view(np.float32))
