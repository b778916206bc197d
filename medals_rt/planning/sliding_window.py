"""Sliding windows: where they stand and how their voxels are weighted.

Paper section 2.5. Arrays are in model order ``(H, W, D)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import numpy as np
import numpy.typing as npt

from medals_rt.common.arrays import as_namespace, namespace
from medals_rt.common.typing import Array, Namespace, Shape

HALF_OVERLAP = 0.5
"""Share of a window that it has in common with its neighbor along an axis."""

DECIDING_SHARE = 0.25
"""Of the largest weight that any window has at a voxel: with less, a window hardly decides there.
Between neighbors at half a window that is farther than 7 % of a window from where they weigh the
same."""

_SIGMA_SHARE = 1 / 8
_TRUNCATE_SIGMAS = 4.0
_PEAK = 10.0


@dataclass(frozen=True)
class Window:
    """One window of a padded image: voxels `starts_hwd` (inclusive) to `stops_hwd` (exclusive)."""

    starts_hwd: Shape
    stops_hwd: Shape

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The window as an index into an ``(H, W, D)`` array."""
        h, w, d = (slice(a, b) for a, b in zip(self.starts_hwd, self.stops_hwd, strict=True))
        return h, w, d


def window_starts(length: int, window: int, overlap: float = HALF_OVERLAP) -> tuple[int, ...]:
    """Return the first voxel of each window along one axis.

    Neighbors share `overlap` of the window (half, in the paper and the release), and the last one
    is pulled back inside. At half a window that makes ``max(ceil(length / (window // 2)) - 1, 1)``
    windows. `length` is at least `window` (pad first).
    """
    step = max(1, window - ceil(window * overlap))
    count = ceil((length - window) / step) + 1
    return tuple(max(0, min(i * step, length - window)) for i in range(count))


def plan_windows(
    padded_shape_hwd: Shape, window_hwd: Shape, overlap: float = HALF_OVERLAP
) -> tuple[Window, ...]:
    """Return every window of a padded image, the H axis slowest and the D axis fastest."""
    h, w, d = (
        window_starts(length, window, overlap)
        for length, window in zip(padded_shape_hwd, window_hwd, strict=True)
    )
    return tuple(
        Window((i, j, k), (i + window_hwd[0], j + window_hwd[1], k + window_hwd[2]))
        for i in h
        for j in w
        for k in d
    )


def deciding_windows(
    voxels_hwd: npt.NDArray[np.bool_],
    indices_hwd: Sequence[npt.NDArray[np.integer]],
    windows: Sequence[Window],
) -> npt.NDArray[np.bool_]:
    """Return which windows decide about any of some voxels (`DECIDING_SHARE`).

    Each voxel has one at least.

    Parameters
    ----------
    voxels_hwd
        Which are meant.
    indices_hwd
        Where the rows of `voxels_hwd` along each axis lie in the padded image.
    windows
        All of it, from `plan_windows`.

    Returns
    -------
    numpy.ndarray
        One bool a window.
    """
    shares: list[dict[int, npt.NDArray[np.float64]]] = []
    for axis in range(3):
        starts = sorted({window.starts_hwd[axis] for window in windows})
        stop = max(window.stops_hwd[axis] for window in windows)
        length = windows[0].stops_hwd[axis] - windows[0].starts_hwd[axis]
        weights = np.zeros((len(starts), stop))
        for row, start in zip(weights, starts, strict=True):
            row[start : start + length] = _gaussian_profile(length)
        of_starts = (weights / weights.max(axis=0))[:, indices_hwd[axis]]
        shares.append(dict(zip(starts, of_starts, strict=True)))

    def decides(window: Window) -> bool:
        of_axes = [share[start] for share, start in zip(shares, window.starts_hwd, strict=True)]
        near = [np.flatnonzero(share >= DECIDING_SHARE) for share in of_axes]  # others: 1 at most
        h, w, d = (share[index] for share, index in zip(of_axes, near, strict=True))
        meant = voxels_hwd[np.ix_(*near)]
        if not meant.any():
            return False
        share = h[:, None, None] * w[:, None] * d
        return bool((meant & (share >= DECIDING_SHARE)).any())

    return np.array([decides(window) for window in windows], dtype=np.bool_)


def padded_shape(shape_hwd: Shape, window_hwd: Shape) -> Shape:
    """Return the shape of an image after padding: at least the window on each axis."""
    h, w, d = (max(length, window) for length, window in zip(shape_hwd, window_hwd, strict=True))
    return h, w, d


def pad_far_end(array: Array, shape_hwd: Shape) -> Array:
    """Pad the last three axes of `array` with zeros at their far end, up to `shape_hwd`.

    Gives `array` itself where it already has that shape.
    """
    if tuple(array.shape[-3:]) == tuple(shape_hwd):
        return array
    xp = namespace(array)
    padded = xp.zeros((*array.shape[:-3], *shape_hwd), dtype=array.dtype, device=array.device)
    h, w, d = array.shape[-3:]
    padded[..., :h, :w, :d] = array
    return padded


@lru_cache(maxsize=4)
def gaussian_weights_float16(window_hwd: Shape) -> npt.NDArray[np.float16]:
    """Return the weights of a window's voxels, ``(H, W, D)`` float16, read-only.

    A Gaussian of sigma ``window / 8`` about voxel ``window // 2``, cut at four sigma, with peak 10;
    zeros are replaced by the smallest weight that is not. Every window sum of the release is made
    with these float16 values, so they are made in float64 in its order of operations.
    """
    profiles = [_gaussian_profile(length) for length in window_hwd]
    product = profiles[0][:, None, None] * profiles[1][:, None] * profiles[2]
    weights: npt.NDArray[np.float16] = (product / product.max() * _PEAK).astype(np.float16)
    weights[weights == 0] = weights[weights != 0].min()
    weights.flags.writeable = False
    return weights


def gaussian_weights(window_hwd: Shape, xp: Namespace = np) -> Array:
    """Return the weights of a window's voxels, ``(H, W, D)`` float32 of exact float16 values."""
    return as_namespace(gaussian_weights_float16(window_hwd).astype(np.float32), xp)


def _gaussian_profile(length: int) -> npt.NDArray[np.float64]:
    """Filter a point at ``length // 2`` by a Gaussian of sigma ``length / 8``; zero outside."""
    sigma = length * _SIGMA_SHARE
    radius = int(_TRUNCATE_SIGMAS * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 / (sigma * sigma) * offsets**2)
    kernel /= kernel.sum()
    profile = np.zeros(length)
    position = length // 2 + offsets
    inside = (position >= 0) & (position < length)
    profile[position[inside]] = kernel[inside]
    return profile
