"""A model of which OpenVINO computes the small part, and Winograd convolutions the large one."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from medals_rt.common.typing import Array
from medals_rt.runners.base import TensorSpec
from medals_rt.runners.winograd.convolution import (
    Factors,
    Source,
    Sums,
    Workers,
    activate,
    convolve,
    measure,
)
from medals_rt.runners.winograd.cut import Block, Cut
from medals_rt.runners.winograd.machine_code import Storage


class Compiled(Protocol):
    """What a segment is compiled to."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute all outputs from all inputs."""
        ...

    def release(self) -> None:
        """Return memory."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class SplitModel:
    """Segments and blocks in turn; runs like an OpenVINO model, and holds as little as it can.

    Parameters
    ----------
    cut
        What was cut.
    compiled
        A compiled model for each segment that has outputs; None for the others.
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
        self._storage = storage
        self._workers = Workers(threads)
        self._factors = [_fixed_factors(block) for block in cut.blocks]
        own = {spec.name for each in self._compiled if each for spec in each.outputs}
        ports = [spec for each in self._compiled if each for spec in each.inputs]
        blocks = {name for reads in self._reads for name in reads}
        given = {spec.name: spec for spec in ports if spec.name not in own | blocks}
        self.inputs = tuple(given.values())
        made = {spec.name: spec for each in self._compiled if each for spec in each.outputs}
        self.outputs = tuple(made[name] for name in cut.outputs)
        self._kept = frozenset((*given, *cut.outputs))
        # OpenVINO reads what is activated; convolutions activate while they read
        self._shown = {number for reads in self._reads for number in reads.values()}
        self._last = self._last_readers()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute all outputs from all inputs, by name."""
        values: dict[str, Array] = dict(feeds)
        made: dict[int, Source] = {}
        for number, reads in enumerate(self._reads):
            compiled = self._compiled[number]
            if compiled is not None:
                values |= self._run_segment(compiled, reads, values, made)
            if number < len(self._blocks):
                made[number] = self._run_block(number, values, made)
            # what nobody reads any more would be held until the end
            for name in [key for key, last in self._last.items() if last == number]:
                if isinstance(name, int):
                    made.pop(name, None)
                elif name not in self._kept:
                    values.pop(name, None)
        return {spec.name: values[spec.name] for spec in self.outputs}

    def release(self) -> None:
        """Return the memory that the library keeps between runs."""
        for compiled in self._compiled:
            if compiled is not None:
                compiled.release()

    def close(self) -> None:
        """Let go of everything."""
        for compiled in self._compiled:
            if compiled is not None:
                compiled.close()
        self._workers.close()

    def _last_readers(self) -> dict[str | int, int]:
        """Return the step in which each value, or block's output, is read for the last time."""
        last: dict[str | int, int] = {}
        for number, reads in enumerate(self._reads):
            compiled = self._compiled[number]
            if compiled is not None:
                last |= dict.fromkeys((spec.name for spec in compiled.inputs), number)
                last |= dict.fromkeys(reads.values(), number)
            if number < len(self._blocks):
                block = self._blocks[number]
                last |= dict.fromkeys(_names(block), number)
                last |= {
                    term.source: number for term in block.terms if isinstance(term.source, int)
                }
        return last

    def _run_segment(
        self,
        compiled: Compiled,
        reads: Mapping[str, int],
        values: Mapping[str, Array],
        made: Mapping[int, Source],
    ) -> dict[str, Array]:
        feeds: dict[str, Array] = {
            name: made[number].values[None] for name, number in reads.items()
        }
        feeds |= {
            spec.name: values[spec.name] for spec in compiled.inputs if spec.name not in feeds
        }
        found = compiled.run(feeds)
        compiled.release()
        return found

    def _run_block(
        self, number: int, values: Mapping[str, Any], made: Mapping[int, Source]
    ) -> Source:
        block = self._blocks[number]
        if block.values:
            outputs = values[block.values][0]
            sums = measure(outputs, self._storage, self._workers)
        else:
            sources = [
                made[term.source]
                if isinstance(term.source, int)
                else Source.plain(values[term.source][0])
                for term in block.terms
            ]
            factors = self._factors[number] or _factors(block, values)
            outputs, sums = convolve(sources, factors, self._storage, self._workers)
        scale, shift = _normalization(block, sums)
        source = Source(outputs, scale, shift, block.slope)
        return activate(source, self._storage, self._workers) if number in self._shown else source


def _names(block: Block) -> list[str]:
    """List what a block reads of segments."""
    names = [block.values] if block.values else []
    for term in block.terms:
        names += [name for name in (term.source, term.weights) if isinstance(name, str)]
    return names


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
