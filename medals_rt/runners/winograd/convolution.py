"""A 3x3x3 convolution by Winograd's F(4, 3): sources in, outputs and their sums out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from queue import SimpleQueue
from threading import Condition, Event
from typing import Any

import numpy as np

from medals_rt.common.interruption import Background, check_interruption
from medals_rt.runners.winograd.machine_code import (
    CHANNEL_STEP,
    Storage,
    machine_code,
    scratch_floats,
)
from medals_rt.runners.winograd.transforms import OUTPUTS, transform_weights

STORED: dict[Storage, str] = {"float32": "float32", "bfloat16": "uint16"}
"""NumPy's type of values as they are stored."""

_TASKS_PER_THREAD = 6  # so that threads end at about the same time


@dataclass(frozen=True)
class Source:
    """Values that a convolution reads, and what is done to them on the way.

    ``leaky(values * scale + shift)``, which multiplies negative values by `slope`.

    Attributes
    ----------
    values
        `(H, W, D, C)`, contiguous: float32, or the bits of bfloat16 as uint16.
    scale, shift
        `(C,)` float32.
    slope
        1 leaves negative values as they are.
    """

    values: np.ndarray
    scale: np.ndarray
    shift: np.ndarray
    slope: float

    @classmethod
    def plain(cls, values: np.ndarray) -> "Source":
        """Return values that are read as they are."""
        channels = values.shape[-1]
        return cls(values, np.ones(channels, np.float32), np.zeros(channels, np.float32), 1.0)


@dataclass(frozen=True)
class Sums:
    """Sums over voxels by channel, `(K,)` float64: for the norm that follows a convolution."""

    total: np.ndarray
    squares: np.ndarray
    voxels: int

    def normalization(self, eps: float) -> tuple[np.ndarray, np.ndarray]:
        """Return factor and offset by which values get mean 0 and deviation 1 (instance norm)."""
        mean = self.total / self.voxels
        # of rounding, a constant channel's may come out below zero
        variance = np.maximum(self.squares / self.voxels - mean**2, 0)
        factor = 1 / np.sqrt(variance + eps)
        return factor, -mean * factor


class Workers:
    """Threads that share the tasks of a convolution, each with a scratch of its own.

    Parameters
    ----------
    threads
        How many.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._background = Background(threads, "winograd") if threads > 1 else None

    def share(self, tasks: Sequence[Any], work: Any) -> list[Any]:
        """Call ``work(next_task)`` in every thread; `next_task()` returns None at the end."""
        queue: SimpleQueue[Any] = SimpleQueue()
        for task in (*tasks, *[None] * self.threads):
            queue.put(task)
        if self._background is None:

            def next_task() -> Any:
                check_interruption()
                return queue.get()

            return [work(next_task)]
        stopped = Event()
        each = partial(work, lambda: None if stopped.is_set() else queue.get())
        return self._background.run([each] * self.threads, stopped.set)

    def close(self) -> None:
        """End the threads."""
        if self._background is not None:
            self._background.close()


class Factors:
    """Weights as the factors of products, with the channels that their sources have.

    Parameters
    ----------
    weights
        By source, `(K, C, 3, 3, 3)`; K is a multiple of `CHANNEL_STEP`.
    bias
        `(K,)`; None for zeros.
    """

    def __init__(self, weights: Sequence[np.ndarray], bias: np.ndarray | None) -> None:
        self.outputs = weights[0].shape[0]
        self.wide = tuple(part.shape[1] for part in weights)
        self.channels = -(-sum(self.wide) // CHANNEL_STEP) * CHANNEL_STEP
        blank = np.zeros((self.outputs, self.channels - sum(self.wide), 3, 3, 3))
        self.values = transform_weights(np.concatenate([*weights, blank], axis=1))
        self.bias = np.zeros(self.outputs, np.float32)
        if bias is not None:
            self.bias += bias.reshape(-1)


class _Turns:
    """Keeps rows of tiles near each other, so that none overwrites what another still reads.

    Parameters
    ----------
    order
        The row of each task, as tasks are begun.
    ahead
        A row begins only when all that are further behind are computed.
    """

    def __init__(self, order: Sequence[int], ahead: int) -> None:
        self._place = {row: place for place, row in enumerate(dict.fromkeys(order))}
        self._left = [order.count(row) for row in self._place]
        self._computed = 0
        self._ahead = ahead
        self._changed = Condition()

    def begin(self, row: int) -> None:
        """Wait for a task's turn. Those it waits for were begun before it, so they end."""
        with self._changed:
            self._changed.wait_for(lambda: self._place[row] <= self._computed + self._ahead)

    def end(self, row: int) -> None:
        """Count a task as computed."""
        with self._changed:
            self._left[self._place[row]] -= 1
            while self._computed < len(self._left) and not self._left[self._computed]:
                self._computed += 1
            self._changed.notify_all()


def spare_rows(shape: Sequence[int], threads: int) -> int:
    """Rows along H by which outputs must lie before or behind a source to be written over it."""
    height, width = (-(-size // OUTPUTS) for size in shape[:2])
    # a row of tiles reads one row of voxels on either side
    return OUTPUTS * (_ahead(height, width, threads) + 2)


def _ahead(rows: int, columns: int, threads: int) -> int:
    """How many rows of tiles are computed at a time, beside the last of them."""
    return -(-threads // _parts(rows, columns, threads))


def convolve(
    sources: Sequence[Source],
    factors: Factors,
    storage: Storage,
    workers: Workers,
    outputs: np.ndarray | None = None,
) -> tuple[np.ndarray, Sums]:
    """Convolve with zeros around, joined along channels.

    Parameters
    ----------
    sources
        What is read, all of one `(H, W, D)` of any size.
    factors
        Weights of the sources in their order.
    storage
        The type of all values.
    workers
        Who computes.
    outputs
        Where to write; None for new memory. May overlap a source of as many channels that lies
        `spare_rows` before or behind it, and is no more afterwards.

    Returns
    -------
    outputs, sums
        `(H, W, D, K)` as stored, without norm or activation, and their sums.
    """
    shape = sources[0].values.shape[:3]
    if outputs is None:
        outputs = np.empty((*shape, factors.outputs), STORED[storage])
    if any(size % OUTPUTS for size in shape):
        return _of_any_size(sources, factors, storage, workers, outputs)
    height, width, depth = shape
    slopes = [np.array([source.slope], np.float32) for source in sources]
    # the description holds addresses: what they belong to must outlive the call
    kept = [(source.values, source.scale, source.shift) for source in sources]
    task = [
        height,
        width,
        depth,
        factors.channels,
        sum(factors.wide),
        factors.outputs,
        len(sources),
        factors.values.ctypes.data,
        factors.bias.ctypes.data,
        outputs.ctypes.data,
    ]
    for (values, scale, shift), slope in zip(kept, slopes, strict=True):
        addresses = (scale.ctypes.data, shift.ctypes.data, slope.ctypes.data)
        task += [values.ctypes.data, values.shape[-1], *addresses]
    description = np.array(task, np.int64)
    code = machine_code(storage)
    rows, columns = height // OUTPUTS, width // OUTPUTS
    tasks = _tasks(rows, columns, workers.threads)
    overwritten = [each for each, _, _ in kept if np.may_share_memory(each, outputs)]
    if any(each.ctypes.data < outputs.ctypes.data for each in overwritten):
        tasks.reverse()
    order = [row for row, _, _ in tasks]
    turns = _Turns(order, _ahead(rows, columns, workers.threads) if overwritten else rows)

    def work(next_task: Any) -> np.ndarray:
        scratch = _aligned(scratch_floats(depth, factors.channels, factors.outputs))
        sums = np.zeros((2, factors.outputs))
        while (where := next_task()) is not None:
            turns.begin(where[0])
            code.convolve(description.ctypes.data, *where, scratch.ctypes.data, sums.ctypes.data)
            turns.end(where[0])
        return sums

    total, squares = sum(workers.share(tasks, work))
    return outputs, Sums(total, squares, height * width * depth)


def measure(values: np.ndarray, storage: Storage, workers: Workers) -> Sums:
    """Return the sums of `(H, W, D, C)`, C a multiple of `CHANNEL_STEP`."""
    code = machine_code(storage)
    channels = values.shape[-1]

    def work(next_task: Any) -> np.ndarray:
        sums = np.zeros((2, channels))
        while (part := next_task()) is not None:
            code.measure(part.ctypes.data, len(part), channels, sums.ctypes.data)
        return sums

    total, squares = sum(workers.share(_rows(values, workers.threads), work))
    return Sums(total, squares, values.size // channels)


def activate(
    source: Source, storage: Storage, workers: Workers, to: np.ndarray | None = None
) -> Source:
    """Do to values what their readers would do; C is a multiple of `CHANNEL_STEP`.

    In place, unless they are to be written elsewhere, in the same shape.
    """
    code = machine_code(storage)
    scale, shift, slope = source.scale, source.shift, np.array([source.slope], np.float32)
    channels = source.values.shape[-1]
    found = source.values if to is None else to
    parts = zip(_rows(source.values, workers.threads), _rows(found, workers.threads), strict=True)

    def work(next_task: Any) -> None:
        while (part := next_task()) is not None:
            values, target = part
            code.activate(
                values.ctypes.data,
                target.ctypes.data,
                len(values),
                channels,
                scale.ctypes.data,
                shift.ctypes.data,
                slope.ctypes.data,
            )

    workers.share(list(parts), work)
    return Source.plain(found)


def average(
    source: Source, kernel: Sequence[int], storage: Storage, workers: Workers
) -> np.ndarray:
    """Average blocks of what readers would see, `(h, w, d, C)` float32.

    The kernel `(kh, kw, kd)` divides `(H, W, D)`; C is a multiple of `CHANNEL_STEP`.
    """
    code = machine_code(storage)
    scale, shift, slope = source.scale, source.shift, np.array([source.slope], np.float32)
    *shape, channels = source.values.shape
    h, w, d = (size // k for size, k in zip(shape, kernel, strict=True))
    means = np.empty((shape[0], shape[1] * d, channels), np.float32)

    def work(next_task: Any) -> None:
        while (row := next_task()) is not None:
            code.average(
                source.values[row].ctypes.data,
                shape[1] * d,
                kernel[2],
                channels,
                scale.ctypes.data,
                shift.ctypes.data,
                slope.ctypes.data,
                means[row].ctypes.data,
            )

    workers.share(range(shape[0]), work)
    blocks = means.reshape(h, kernel[0], w, kernel[1], d, channels)
    return np.ascontiguousarray(blocks.mean(axis=(1, 3), dtype=np.float64), np.float32)


def _rows(values: np.ndarray, threads: int) -> list[np.ndarray]:
    """Cut voxels into parts for threads to share."""
    rows = values.reshape(-1, values.shape[-1])
    step = -(-len(rows) // (threads * _TASKS_PER_THREAD))
    return [rows[start : start + step] for start in range(0, len(rows), step)]


def _tasks(rows: int, columns: int, threads: int) -> list[tuple[int, int, int]]:
    """Cut tiles ``(h, first w, end w)`` into enough tasks for threads to share evenly."""
    parts = _parts(rows, columns, threads)
    edges = [columns * part // parts for part in range(parts + 1)]
    return [(row, first, end) for row in range(rows) for first, end in pairwise(edges)]


def _parts(rows: int, columns: int, threads: int) -> int:
    """Into how many tasks a row is cut."""
    return min(columns, -(-threads * _TASKS_PER_THREAD // rows)) if threads > 1 else 1


def _of_any_size(
    sources: Sequence[Source],
    factors: Factors,
    storage: Storage,
    workers: Workers,
    outputs: np.ndarray,
) -> tuple[np.ndarray, Sums]:
    """Convolve sizes that tiles don't fill: with zeros behind, which are what is outside."""
    shape = sources[0].values.shape[:3]
    behind = [(0, -size % OUTPUTS) for size in shape]
    filled = []
    for source in sources:
        values = np.pad(_activated(source, storage), (*behind, (0, 0)))
        filled.append(Source.plain(values))
    found, _ = convolve(filled, factors, storage, workers)
    outputs[...] = found[tuple(slice(size) for size in shape)]
    return outputs, measure(outputs, storage, workers)


def _activated(source: Source, storage: Storage) -> np.ndarray:
    """Return what the convolution sees of a source, as stored."""
    values = unpacked(source.values) * source.scale + source.shift
    values = np.where(values < 0, values * np.float32(source.slope), values)
    return values if storage == "float32" else packed(values)


def unpacked(values: np.ndarray) -> np.ndarray:
    """Return stored values as float32."""
    if values.dtype == np.float32:
        return values
    return (values.astype(np.uint32) << 16).view(np.float32)


def packed(values: np.ndarray) -> np.ndarray:
    """Return the bits of bfloat16 of float32 values, rounded to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _aligned(count: int) -> np.ndarray:
    """Return uninitialized float32 that begin with a line of the cache."""
    line = 64
    room = np.empty(count + line // 4, np.float32)
    start = -room.ctypes.data % line // 4
    return room[start : start + count]
