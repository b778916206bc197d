"""Windows aggregated to labels, in memory that does not grow with N times the volume.

docs/algorithm.md, section 4. Arrays are in model order ``(H, W, D)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy.typing as npt

from medals_rt.common.arrays import block_elements, label_dtype, namespace, on_all_cores
from medals_rt.common.typing import Array, Shape
from medals_rt.inference.largest_values import LargestValues
from medals_rt.inference.probability_maps import as_bytes
from medals_rt.planning.axis_tiling import Columns
from medals_rt.planning.sliding_window import Window

_ARRAYS_OF_A_DECISION = 4  # that share a cache: sums, weights, the best probability and label


@dataclass(frozen=True)
class LabelMap:
    """Labels of an image ``(H, W, D)``, as far as they are final.

    Attributes
    ----------
    labels_hwd
        uint8, or uint16 where a label needs it; 0 where no class reaches the threshold.
    probability_hwd
        Each voxel's largest probability, float32; None where it is not kept.
    uncovered_hwd
        bool, where no window was run; None where all were.
    """

    labels_hwd: Array
    probability_hwd: Array | None
    uncovered_hwd: Array | None = None


def empty_label_map(
    shape_hwd: Shape, label_values: Sequence[int], weights: Array, *, keep_probability: bool
) -> LabelMap:
    """Make the arrays that `SlabAggregator` writes to: background everywhere.

    Parameters
    ----------
    shape_hwd
        Shape of the image before padding.
    label_values
        The labels of all classes.
    weights
        Those of the windows: their library and device are the arrays'.
    keep_probability
        Also keep each voxel's largest probability; groups of classes are compared by it.
    """
    xp, device = namespace(weights), weights.device
    dtype = getattr(xp, label_dtype(max(label_values)).name)
    return LabelMap(
        xp.zeros(shape_hwd, dtype=dtype, device=device),
        xp.zeros(shape_hwd, dtype=xp.float32, device=device) if keep_probability else None,
    )


class SlabAggregator:
    """Aggregates the windows of an image and decides its labels, in slabs.

    The probability of a class at a voxel is the sum of weight times probability over the sum of
    weights; the voxel takes the class of the largest, where that is at least the threshold. Windows
    come with H slowest, so once a window starts at a later row, the rows before it are final: they
    become labels and their memory is used again. Sums take ``(N, window_h, W, D)`` float32 instead
    of ``(N, H, W, D)``, and the labels are those of the plain method to the bit.

    Where even a slab is too large, it is aggregated in parts, one sweep over windows each: blocks
    of columns, of which only the windows that reach into them are run, and groups of classes, which
    are compared with the result of the groups before them. The labels stay the same: each voxel
    gets the same sums in the same order.

    Parameters
    ----------
    windows
        The windows that will be added: all of the plan (`plan_windows`) that reach into the
        columns, in its order.
    label_values
        The label of each class, N of them, in the order of the probabilities' first axis. Of two
        classes with equal probability the earlier wins.
    weights
        ``(window_h, window_w, window_d)`` float32 (`gaussian_weights`); their library and device
        are those of everything else.
    label_map
        `empty_label_map`, or the result of the sweeps before this one. Its arrays are written to.
    threshold
        The least probability of a class that is no background.
    columns
        The block of columns; None: the whole image.
    maps_nhwd
        ``(N, H, W, D)`` uint8 that get the probability of every class (`as_bytes`); None: nobody
        wants them.
    largest
        Notes each voxel's largest probability; NaN where one of its probabilities is.
    """

    def __init__(
        self,
        windows: Sequence[Window],
        label_values: Sequence[int],
        weights: Array,
        label_map: LabelMap,
        threshold: float,
        columns: Columns | None = None,
        maps_nhwd: Array | None = None,
        largest: LargestValues | None = None,
    ) -> None:
        if not windows:
            raise ValueError("an image has at least one window")
        if not label_values:
            raise ValueError("there is no class to decide between")
        starts = [window.starts_hwd[0] for window in windows]
        if starts != sorted(starts):
            raise ValueError("windows must come with the H axis slowest")
        height, width, depth = label_map.labels_hwd.shape
        self._height = height
        self._columns = columns or (slice(0, width), slice(0, depth))
        for window in windows:
            if any(inside.start >= inside.stop for inside, _ in self._across(window)):
                raise ValueError(f"{window} does not reach into the columns {self._columns}")
        xp = namespace(weights)
        self._weights = weights
        self._expected = iter(tuple(windows))
        self._window: Window | None = None
        self._values = tuple(label_values)
        self._threshold = threshold
        self._maps = maps_nhwd
        self._largest = LargestValues() if largest is None else largest
        self._rows = int(weights.shape[0])
        slab = (self._rows, *(block.stop - block.start for block in self._columns))
        device = weights.device
        self._sums = xp.zeros((len(self._values), *slab), dtype=xp.float32, device=device)
        self._weight_sums = xp.zeros(slab, dtype=xp.float32, device=device)
        self._labels = label_map.labels_hwd
        self._probability = label_map.probability_hwd
        self._uncovered = label_map.uncovered_hwd
        self._first_open_row = starts[0]

    def begin(self, window: Window) -> None:
        """Go on to the next window of the plan; its probabilities come by `add`.

        Raises
        ------
        ValueError
            It is not the window whose turn it is.
        """
        self._take_turn(window)
        self._window = window
        (w, of_w), (d, of_d) = self._across(window)
        for buffer_rows, window_rows in self._ring(window.starts_hwd[0], window.stops_hwd[0]):
            self._weight_sums[buffer_rows, w, d] += self._weights[window_rows, of_w, of_d]

    def skip(self, window: Window) -> None:
        """Leave the next window out: what no other window covers stays background.

        Raises
        ------
        ValueError
            It is not the window whose turn it is.
        """
        self._take_turn(window)
        self._window = None
        if self._uncovered is None:
            xp = namespace(self._weights)
            self._uncovered = xp.zeros_like(self._labels, dtype=xp.bool)

    def add(self, classes: slice, probabilities: Array, valid_mask: Array | None = None) -> None:
        """Add probabilities of some classes in the window that was begun.

        Parameters
        ----------
        classes
            Which of the N, with start and stop.
        probabilities
            ``(n, window_h, window_w, window_d)`` float32, one a class of `classes`.
        valid_mask
            ``(window_h, window_w, window_d)`` bool: where these are valid, as other ones of
            the same classes are elsewhere. None: everywhere.
        """
        if self._window is None:
            raise ValueError("no window was begun")
        (w, of_w), (d, of_d) = self._across(self._window)
        inside = (slice(None), of_w, of_d)
        weights = self._weights[inside]
        if valid_mask is not None:
            xp = namespace(weights)
            weights = weights * xp.astype(valid_mask[inside], xp.float32)
        rows_at_once = max(1, block_elements(weights) // (weights.shape[1] * weights.shape[2]))
        blocks = [
            (n, slice(k, min(k + rows_at_once, rows.stop)), of_window.start + k - rows.start)
            for rows, of_window in self._ring(self._window.starts_hwd[0], self._window.stops_hwd[0])
            for n in range(classes.stop - classes.start)
            for k in range(rows.start, rows.stop, rows_at_once)
        ]

        def add_block(n: int, buffer_rows: slice, window_row: int) -> None:
            rows = slice(window_row, window_row + buffer_rows.stop - buffer_rows.start)
            self._sums[classes.start + n, buffer_rows, w, d] += (
                probabilities[n, rows, of_w, of_d] * weights[rows, :, :]
            )

        on_all_cores(add_block, blocks, weights)

    def result(self) -> LabelMap:
        """Decide what is left and return everything.

        Raises
        ------
        ValueError
            Windows are missing.
        """
        missing = next(self._expected, None)
        if missing is not None:
            raise ValueError(f"{missing} was never added")
        self._decide_up_to(self._first_open_row + self._rows)
        return LabelMap(self._labels, self._probability, self._uncovered)

    def _take_turn(self, window: Window) -> None:
        if window != next(self._expected, None):
            raise ValueError(f"{window} is not the next window of the plan")
        self._decide_up_to(window.starts_hwd[0])

    def _across(self, window: Window) -> list[tuple[slice, slice]]:
        """Return, along W and along D, where a window lies in the block, and that part of it."""
        parts = []
        for axis, block in enumerate(self._columns, start=1):
            start, stop = window.starts_hwd[axis], window.stops_hwd[axis]
            first, last = max(start, block.start), min(stop, block.stop)
            inside = slice(first - block.start, last - block.start)
            parts.append((inside, slice(first - start, last - start)))
        return parts

    def _ring(self, start: int, stop: int) -> Iterator[tuple[slice, slice]]:
        """Cut image rows ``start:stop`` into runs of the ring buffer.

        Yields (rows in the buffer, rows relative to `start`).
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
        _, width, depth = self._weight_sums.shape
        elements = max(1, block_elements(self._weight_sums) // _ARRAYS_OF_A_DECISION)
        rows = max(1, elements // (width * depth))
        columns = width if rows > 1 else max(1, min(width, elements // depth))
        blocks = [
            (
                slice(k, min(k + rows, buffer_rows.start + kept)),
                first + offset.start + k - buffer_rows.start,
                slice(start, min(start + columns, width)),
            )
            for buffer_rows, offset in self._ring(first, row)
            for kept in (min(offset.stop, self._height - first) - offset.start,)
            for k in range(buffer_rows.start, buffer_rows.start + kept, rows)
            for start in range(0, width, columns)
        ]
        on_all_cores(self._decide, blocks, self._weights)
        for buffer_rows, _ in self._ring(first, row):
            self._sums[:, buffer_rows, :, :] = 0.0
            self._weight_sums[buffer_rows, :, :] = 0.0
        self._first_open_row = row

    def _decide(self, buffer_rows: slice, image_row: int, across: slice) -> None:
        """Decide a run of rows, within some columns, that ends in the image from `image_row` on."""
        w, d = self._columns
        at = (buffer_rows, across)
        to = (
            slice(image_row, image_row + buffer_rows.stop - buffer_rows.start),
            slice(w.start + across.start, w.start + across.stop),
            d,
        )
        weight_sums = self._weight_sums[(*at, ...)]
        if self._uncovered is not None:
            xp = namespace(weight_sums)
            uncovered = weight_sums == 0
            self._uncovered[to] |= uncovered
            weight_sums = xp.where(uncovered, xp.ones_like(weight_sums), weight_sums)
        before = None
        if self._probability is not None:
            before = self._labels[to], self._probability[to]
        if self._maps is not None:
            for n in range(len(self._values)):
                self._maps[(n, *to)] = as_bytes(self._sums[(n, *at, ...)] / weight_sums)
        labels, probability = decide_labels(
            [self._sums[(n, *at, ...)] for n in range(len(self._values))],
            weight_sums,
            self._values,
            self._labels.dtype,
            before=before,
            threshold=self._threshold,
        )
        self._largest.note(probability)
        self._labels[to] = labels
        if self._probability is not None:
            self._probability[to] = probability


def decide_labels(
    sums: Sequence[Array],
    weight_sums: Array,
    label_values: Sequence[int],
    dtype: npt.DTypeLike,
    threshold: float,
    before: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:
    """Label each voxel by its most probable class, 0 where that is below a threshold.

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
    threshold
        The least probability of a class that is no background.
    before
        Labels and probability of the classes that came first.

    Returns
    -------
    labels, probability
        Labels of `dtype`, and the largest probability, float32: NaN where one of them is.
    """
    xp = namespace(weight_sums)
    if before is None:
        before = (xp.zeros_like(weight_sums, dtype=dtype), xp.zeros_like(weight_sums) - 1)
    labels, best = before
    for value, class_sum in zip(label_values, sums, strict=True):
        probability = class_sum / weight_sums
        label = xp.asarray(value, dtype=dtype, device=weight_sums.device)
        better = probability > best
        best = xp.maximum(probability, best)  # which hands NaN on, as `better` does not
        labels = xp.where(better, label, labels)
    background = xp.asarray(0, dtype=dtype, device=weight_sums.device)
    return xp.where(best >= threshold, labels, background), best
