"""Sliding windows: where they stand, how they are weighted, and how their results are gathered.

Paper section 2.5, system section 5. Arrays are in model order ``(H, W, D)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from medals_rt.arrays import Array, Namespace, as_namespace, namespace

Shape: TypeAlias = tuple[int, int, int]

_SIGMA_SHARE = 1 / 8
_TRUNCATE_SIGMAS = 4.0
_PEAK = 10.0
_DECIDED_FROM = 0.5


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


def window_starts(length: int, window: int) -> tuple[int, ...]:
    """Give the first voxel of each window along one axis.

    Windows stand half a window apart, ``max(ceil(length / (window // 2)) - 1, 1)`` of them, and
    the last is pulled back inside. `length` is at least `window` (pad first).
    """
    step = window // 2
    count = max(ceil(length / step) - 1, 1)
    return tuple(max(0, min(i * step, length - window)) for i in range(count))


def plan_windows(padded_shape_hwd: Shape, window_hwd: Shape) -> tuple[Window, ...]:
    """Give every window of a padded image, the H axis slowest and the D axis fastest."""
    h, w, d = (
        window_starts(length, window)
        for length, window in zip(padded_shape_hwd, window_hwd, strict=True)
    )
    return tuple(
        Window((i, j, k), (i + window_hwd[0], j + window_hwd[1], k + window_hwd[2]))
        for i in h
        for j in w
        for k in d
    )


def padded_shape(shape_hwd: Shape, window_hwd: Shape) -> Shape:
    """Give the shape of an image after padding: at least the window on each axis."""
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
    """Give the weights of a window's voxels, ``(H, W, D)`` float16, read-only.

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
    """Give the weights of a window's voxels, ``(H, W, D)`` float32 holding exact float16 values."""
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


class SlabAccumulator:
    """Gathers the windows of an image and decides its labels, in slabs.

    The probability of a class at a voxel is the sum of weight times probability over the sum of
    weights; the voxel takes the class of the largest, where that is at least 0.5 (system section
    5). Windows come with H slowest, so once a window starts at a later row, the rows before it are
    final: they are decided and their memory is used again. Sums take ``(N, window_h, W, D)``
    float32 instead of ``(N, H, W, D)``, and the labels are those of the plain method to the bit.

    Parameters
    ----------
    windows
        The windows that will be added, in order (`plan_windows`).
    shape_hwd
        Shape of the image before padding: the results are cropped to it.
    label_values
        The label of each class, N of them, in the order of the probabilities' first axis. Of two
        classes with equal probability the earlier wins.
    weights
        ``(window_h, window_w, window_d)`` float32 (`gaussian_weights`); their library and device
        are those of everything else.
    keep_probability
        Also keep each voxel's largest probability.
    """

    def __init__(
        self,
        windows: Sequence[Window],
        shape_hwd: Shape,
        label_values: Sequence[int],
        weights: Array,
        *,
        keep_probability: bool = False,
    ) -> None:
        if not windows:
            raise ValueError("an image has at least one window")
        starts = [window.starts_hwd[0] for window in windows]
        if starts != sorted(starts):
            raise ValueError("windows must come with the H axis slowest")
        xp = namespace(weights)
        self._xp = xp
        self._weights = weights
        self._expected = iter(tuple(windows))
        self._shape = shape_hwd
        self._values = tuple(label_values)
        self._rows = int(weights.shape[0])
        padded_wd = tuple(max(window.stops_hwd[axis] for window in windows) for axis in (1, 2))
        device = weights.device
        sums = (len(self._values), self._rows, *padded_wd)
        self._sums = xp.zeros(sums, dtype=xp.float32, device=device)
        self._weight_sums = xp.zeros(sums[1:], dtype=xp.float32, device=device)
        self._label_dtype = xp.uint8 if max(self._values, default=0) < 256 else xp.uint16
        self._labels = xp.zeros(shape_hwd, dtype=self._label_dtype, device=device)
        self._probability = (
            xp.zeros(shape_hwd, dtype=xp.float32, device=device) if keep_probability else None
        )
        self._first_open_row = starts[0]

    def add(self, window: Window, probabilities: Array) -> None:
        """Add one window's probabilities ``(N, window_h, window_w, window_d)`` float32.

        Raises
        ------
        ValueError
            It is not the window whose turn it is.
        """
        if window != next(self._expected, None):
            raise ValueError(f"{window} is not the next window of the plan")
        self._decide_up_to(window.starts_hwd[0])
        _, w, d = window.slices
        for buffer_rows, window_rows in self._ring(window.starts_hwd[0], window.stops_hwd[0]):
            weights = self._weights[window_rows, :, :]
            self._weight_sums[buffer_rows, w, d] += weights
            for n in range(len(self._values)):
                self._sums[n, buffer_rows, w, d] += probabilities[n, window_rows, :, :] * weights

    def result(self) -> tuple[Array, Array | None]:
        """Decide what is left; give labels ``(H, W, D)`` and the largest probability (or None).

        Labels are uint8 (uint16 where a label needs it), the probability float32.

        Raises
        ------
        ValueError
            Windows are missing.
        """
        missing = next(self._expected, None)
        if missing is not None:
            raise ValueError(f"{missing} was never added")
        self._decide_up_to(self._first_open_row + self._rows)
        return self._labels, self._probability

    def _ring(self, start: int, stop: int) -> Iterator[tuple[slice, slice]]:
        """Cut image rows ``start:stop`` into runs of the ring buffer.

        Gives (rows in the buffer, rows relative to `start`).
        """
        row = start
        while row < stop:
            at = row % self._rows
            count = min(stop - row, self._rows - at)
            yield slice(at, at + count), slice(row - start, row - start + count)
            row += count

    def _decide_up_to(self, row: int) -> None:
        """Decide the rows before `row`, write them to the result and clear their sums."""
        first = self._first_open_row
        if row <= first:
            return
        height, width, depth = self._shape
        for buffer_rows, offset in self._ring(first, row):
            image_rows = slice(first + offset.start, min(first + offset.stop, height))
            kept = image_rows.stop - image_rows.start
            if kept > 0:
                index = (
                    slice(buffer_rows.start, buffer_rows.start + kept),
                    slice(width),
                    slice(depth),
                )
                labels, probability = decide_labels(
                    (self._sums[(n, *index)] for n in range(len(self._values))),
                    self._weight_sums[index],
                    self._values,
                    self._label_dtype,
                )
                self._labels[image_rows, :, :] = labels
                if self._probability is not None:
                    self._probability[image_rows, :, :] = probability
            self._sums[:, buffer_rows, :, :] = 0.0
            self._weight_sums[buffer_rows, :, :] = 0.0
        self._first_open_row = row


def decide_labels(
    sums: Iterable[Array], weight_sums: Array, label_values: Sequence[int], dtype: npt.DTypeLike
) -> tuple[Array, Array]:
    """Give each voxel the label of its most probable class, 0 where that is less likely than 0.5.

    One class at a time, so that nothing of N times the volume is made.

    Parameters
    ----------
    sums
        For each class the sum of weight times probability, float32, any shape.
    weight_sums
        The sum of weights, the same shape.
    label_values
        The label of each class.
    dtype
        Of the labels.

    Returns
    -------
    labels, probability
        Labels of `dtype`, and the largest probability, float32.
    """
    xp = namespace(weight_sums)
    best = labels = None
    for value, class_sum in zip(label_values, sums, strict=True):
        probability = class_sum / weight_sums
        label = xp.asarray(value, dtype=dtype, device=weight_sums.device)
        if best is None:
            best, labels = probability, xp.broadcast_to(label, probability.shape)
            continue
        better = probability > best
        best = xp.where(better, probability, best)
        labels = xp.where(better, label, labels)
    if best is None:
        raise ValueError("there is no class to decide between")
    background = xp.asarray(0, dtype=dtype, device=weight_sums.device)
    return xp.where(best >= _DECIDED_FROM, labels, background), best
