"""A model of which OpenVINO computes the small part, and Winograd convolutions the large one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from medals_rt.common.typing import Array
from medals_rt.runners.base import TensorSpec
from medals_rt.runners.winograd.buffers import BUFFERS, Buffer
from medals_rt.runners.winograd.convolution import (
    STORED,
    Factors,
    Source,
    Sums,
    Workers,
    activate,
    average,
    convolve,
    measure,
    spare_rows,
)
from medals_rt.runners.winograd.cut import Block, Cut, Sweep
from medals_rt.runners.winograd.machine_code import Storage


class Compiled(Protocol):
    """What a segment is compiled to."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(
        self, feeds: Mapping[str, Array], into: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, Array]:
        """Compute all outputs from all inputs, some of them into given memory."""
        ...

    def release(self) -> None:
        """Return memory."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


@dataclass
class _Pass:
    """What one pass holds at a time: values by name, and outputs of blocks by number.

    Volumes whose memory is kept for later ones have it in `buffers`.
    """

    values: dict[str, Any]
    made: dict[int, Source]
    buffers: dict[str | int, Buffer]


class SplitModel:
    """Segments, sweeps and blocks in turn; runs like an OpenVINO model, and holds little.

    Parameters
    ----------
    cut
        What was cut.
    compiled
        A compiled model for each segment that has outputs, None for the others; then one for each
        sweep.
    storage
        How volumes are handed over.
    threads
        How many convolve.
    """

    def __init__(
        self,
        cut: Cut,
        compiled: Sequence[Compiled | None],
        storage: Storage,
        threads: int,
    ) -> None:
        self._blocks = cut.blocks
        self._reads = cut.reads
        self._compiled = tuple(compiled)
        segments = len(cut.computes)
        self._segments = self._compiled[:segments]
        self._sweeps = tuple(zip(cut.sweeps, self._compiled[segments:], strict=True))
        self._storage = storage
        self._workers = Workers(threads if cut.blocks else 1)  # sweeps alone need none
        self._factors = [_fixed_factors(block) for block in cut.blocks]
        opened = [each for each in self._compiled if each is not None]
        made = {spec.name: spec for each in opened for spec in each.outputs}
        made |= {sweep.output: _swept_output(sweep, each) for sweep, each in self._sweeps if each}
        stored = STORED[storage]
        made |= {each.name: TensorSpec(each.name, each.shape, stored) for each in cut.handed}
        own = {*made, *(sweep.rows for sweep in cut.sweeps)}
        own.update(name for reads in self._reads for name in reads)
        own.update(pool.name for block in cut.blocks for pool in block.pools)
        given = {spec.name: spec for each in opened for spec in each.inputs if spec.name not in own}
        for sweep, each in self._sweeps:
            if isinstance(sweep.source, str) and each is not None:
                given[sweep.source] = _swept_input(sweep, each)
        self.inputs = tuple(given.values())
        self.outputs = tuple(made[name] for name in cut.outputs)
        self._volumes = {
            name: made[name].shape[1:] for block in cut.blocks for name in _volumes(block)
        }
        self._kept = frozenset((*given, *cut.outputs))
        # OpenVINO's segments read what is activated; others activate while they read
        self._handed = cut.handed
        self._shown = {number for reads in self._reads for number in reads.values()}
        self._shown.update(each.block for each in cut.handed)
        self._last = self._last_readers()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute all outputs from all inputs, by name."""
        now = _Pass(dict(feeds), {}, {})
        for number in range(len(self._reads)):
            self._run_segment(number, now)
            for sweep, compiled in self._sweeps:
                if sweep.step == number and compiled is not None:
                    self._run_sweep(sweep, compiled, now)
            if number < len(self._blocks):
                self._run_block(number, now)
            for each in self._handed:
                if each.block == number:
                    now.values[each.name] = now.made[number].values[None]
                    now.buffers.pop(number, None)  # the caller's from now on
            self._drop_unread(number, now)
        return {spec.name: now.values[spec.name] for spec in self.outputs}

    def release(self) -> None:
        """Return the memory that is kept between runs."""
        BUFFERS.release()
        for compiled in self._compiled:
            if compiled is not None:
                compiled.release()

    def close(self) -> None:
        """Let go of everything."""
        BUFFERS.release()
        for compiled in self._compiled:
            if compiled is not None:
                compiled.close()
        self._workers.close()

    def _last_readers(self) -> dict[str | int, int]:
        """Return the step in which each value, or block's output, is read for the last time."""
        last: dict[str | int, int] = {}
        for number, reads in enumerate(self._reads):
            compiled = self._segments[number]
            if compiled is not None:
                last |= dict.fromkeys((spec.name for spec in compiled.inputs), number)
                last |= dict.fromkeys(reads.values(), number)
            for sweep, swept in self._sweeps:
                if sweep.step == number and swept is not None:
                    last |= dict.fromkeys((spec.name for spec in swept.inputs), number)
                    last[sweep.source] = number
            if number < len(self._blocks):
                block = self._blocks[number]
                last |= dict.fromkeys(_names(block), number)
                last |= {
                    term.source: number for term in block.terms if isinstance(term.source, int)
                }
        return last

    def _drop_unread(self, number: int, now: _Pass) -> None:
        """Let go of what nobody reads after a step: it would be held until the end."""
        for name in [key for key, last in self._last.items() if last == number]:
            if isinstance(name, int):
                now.made.pop(name, None)
            elif name not in self._kept:
                now.values.pop(name, None)
            if name in now.buffers:
                BUFFERS.give_back(now.buffers.pop(name))

    def _room(self, name: str | int, shape: Sequence[Any], now: _Pass) -> Buffer:
        """Return memory for a volume, kept for others when nobody reads this one any more."""
        spare = spare_rows(shape, self._workers.threads)
        now.buffers[name] = BUFFERS.take(shape, STORED[self._storage], spare)
        return now.buffers[name]

    def _run_segment(self, number: int, now: _Pass) -> None:
        compiled, reads = self._segments[number], self._reads[number]
        if compiled is None:
            return
        feeds: dict[str, Array] = {
            name: now.made[source].values[None] for name, source in reads.items()
        }
        feeds |= {
            spec.name: now.values[spec.name] for spec in compiled.inputs if spec.name not in feeds
        }
        into = {
            spec.name: self._room(spec.name, self._volumes[spec.name], now).first[None]
            for spec in compiled.outputs
            if spec.name in self._volumes
        }
        now.values |= compiled.run(feeds, into)
        compiled.release()

    def _run_sweep(self, sweep: Sweep, compiled: Compiled, now: _Pass) -> None:
        """Run a model for some rows after the others."""
        (spec,) = (spec for spec in compiled.inputs if spec.name == sweep.rows)
        shape = [int(size) for size in spec.shape]
        feeds = {each.name: now.values[each.name] for each in compiled.inputs if each is not spec}
        found: np.ndarray | None = None
        for run, rows in enumerate(self._rows(sweep, shape, now)):
            made = compiled.run({**feeds, sweep.rows: rows})[sweep.output]
            if found is None:
                count, high, *plane = made.shape
                shape = [count, high * sweep.runs, *plane]
                if sweep.output in self._volumes:
                    found = self._room(sweep.output, shape[1:], now).first[None]
                else:
                    found = np.empty(shape, made.dtype)
            found[:, run * high : (run + 1) * high] = made
        now.values[sweep.output] = found
        compiled.release()

    def _rows(self, sweep: Sweep, shape: Sequence[int], now: _Pass) -> Iterator[np.ndarray]:
        """Go through the rows of each run, which the next one overwrites."""
        if isinstance(sweep.source, str):  # rows that lie side by side, and are read there
            volume = now.values[sweep.source]
            for run in range(sweep.runs):
                yield volume[:, run * sweep.advance : (run + 1) * sweep.advance]
            return
        source = now.made[sweep.source]
        rows = np.empty(shape, source.values.dtype)
        for run in range(sweep.runs):
            first = run * sweep.advance - sweep.before
            start, stop = max(first, 0), min(first + rows.shape[1], len(source.values))
            rows[0, : start - first] = 0
            rows[0, stop - first :] = 0
            part = replace(source, values=source.values[start:stop])
            activate(part, self._storage, self._workers, rows[0, start - first : stop - first])
            yield rows

    def _run_block(self, number: int, now: _Pass) -> None:
        block = self._blocks[number]
        if block.values:
            outputs = now.values[block.values][0]
            sums = measure(outputs, self._storage, self._workers)
            now.buffers[number] = now.buffers.pop(block.values)
        else:
            sources = [
                now.made[term.source]
                if isinstance(term.source, int)
                else Source.plain(now.values[term.source][0])
                for term in block.terms
            ]
            factors = self._factors[number] or _factors(block, now.values)
            outputs = self._place(number, factors.outputs, sources, now)
            outputs, sums = convolve(sources, factors, self._storage, self._workers, outputs)
        scale, shift = _normalization(block, sums)
        source = Source(outputs, scale, shift, block.slope)
        for pool in block.pools:
            now.values[pool.name] = average(source, pool.kernel, self._storage, self._workers)[None]
        shown = number in self._shown
        now.made[number] = activate(source, self._storage, self._workers) if shown else source

    def _place(
        self, number: int, channels: int, sources: Sequence[Source], now: _Pass
    ) -> np.ndarray:
        """Return memory for a block's output: a source's, if nobody reads that any more."""
        for term, source in zip(self._blocks[number].terms, sources, strict=True):
            name = term.source
            ends = name in now.buffers and self._last[name] == number
            if ends and source.values.shape[-1] == channels:
                now.buffers[number] = now.buffers.pop(name)
                return now.buffers[number].other(source.values)
        return self._room(number, (*sources[0].values.shape[:3], channels), now).first


def _swept_input(sweep: Sweep, compiled: Compiled) -> TensorSpec:
    """Return the volume that all runs of a sweep read together."""
    (rows,) = (spec for spec in compiled.inputs if spec.name == sweep.rows)
    return TensorSpec(
        str(sweep.source), (1, sweep.advance * sweep.runs, *rows.shape[2:]), rows.dtype
    )


def _swept_output(sweep: Sweep, compiled: Compiled) -> TensorSpec:
    """Return what all runs of a sweep make together."""
    (spec,) = compiled.outputs
    count, high, *plane = spec.shape
    return TensorSpec(spec.name, (count, int(high) * sweep.runs, *plane), spec.dtype)


def _volumes(block: Block) -> list[str]:
    """List the volumes of segments and sweeps that a block reads."""
    names = [block.values] if block.values else []
    return names + [term.source for term in block.terms if isinstance(term.source, str)]


def _names(block: Block) -> list[str]:
    """List all that a block reads of segments and sweeps."""
    return _volumes(block) + [term.weights for term in block.terms if isinstance(term.weights, str)]


def _factors(block: Block, values: Mapping[str, Any]) -> Factors:
    weights = [
        values[term.weights] if isinstance(term.weights, str) else term.weights
        for term in block.terms
    ]
    return Factors(weights, block.bias)


def _fixed_factors(block: Block) -> Factors | None:
    """Factors that are the same for every window."""
    if not block.terms or any(isinstance(term.weights, str) for term in block.terms):
        return None
    return _factors(block, {})


def _normalization(block: Block, sums: Sums) -> tuple[np.ndarray, np.ndarray]:
    """Return what a block's readers multiply and add, `(K,)` float32 each."""
    if block.eps is None:
        return np.ones(len(sums.total), np.float32), np.zeros(len(sums.total), np.float32)
    factor, offset = sums.normalization(block.eps)
    if block.scale is not None:
        factor, offset = factor * block.scale, offset * block.scale
    if block.shift is not None:
        offset = offset + block.shift
    return factor.astype(np.float32), offset.astype(np.float32)
