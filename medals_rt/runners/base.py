"""What every inference library is to the rest of the package: a runner of one graph."""

import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self, TypeAlias

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.choices import (
    CONVOLUTIONS,
    PRECISIONS,
    Convolution,
    ConvolutionChoice,
    Precision,
    QuantizedPrecision,
    RunnerKind,
)
from medals_rt.common.cores import usable_cores
from medals_rt.common.errors import InputError, RunnerError
from medals_rt.common.gpu import Gpu
from medals_rt.common.typing import Array, HostArray

Device: TypeAlias = Literal["cpu", "cuda"]

TextGraph: TypeAlias = Callable[[HostArray, HostArray], HostArray]
"""`token_ids (B, L)` and `modality (B,)`, int64, to `embeddings (B, dim)`, float32."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of a graph's input or output; a free dimension has a name or is "?"."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


class Runner(Protocol):
    """One graph, opened once, run any number of times; a context manager that closes it.

    Not safe to share between threads. Runners are subclasses, for what is the same for all.

    Attributes
    ----------
    name
        The graph's name, for messages.
    kind
        The library, one of `RunnerKind`.
    device
        Where arrays are taken from and returned: "cpu" or "cuda".
    precision
        Arithmetic that is really used, one of `Precision`.
    version
        The library's version.
    threads
        How many it computes with; 0 where the library decides and does not tell.
    convolution
        How large convolutions are computed, "direct" or "winograd".
    notes
        Remarks for the run's report, such as a cache that could not be kept.
    inputs, outputs
        What goes in and comes out.
    """

    name: str
    kind: RunnerKind
    device: Device
    precision: Precision
    version: str
    threads: int
    convolution: Convolution = "direct"
    notes: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @abstractmethod
    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute all outputs from all inputs, by name.

        The inputs are only read. The arrays that come back belong to the caller: no later run
        writes into them. What `interruption.interrupted_by` was given may end it in the middle;
        the runner then stays usable.

        Raises
        ------
        RunnerError
            If an input is missing, unknown, or of a wrong shape or dtype, or the library fails.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what the library holds; the runner can't be used afterwards."""

    def release(self) -> None:
        """Return the memory that the library keeps between runs; the next run takes it again."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True)
class OpenRequest:
    """What is to be opened, and how; see `medals_rt.runners.selection.open_runner`.

    `graph_paths` has one path, or those of graphs that are to be joined. `check_files` raises where
    they are no longer the files that `cache_key` names: to be called between reading them and
    keeping what was made of them under that key.
    """

    graph_paths: tuple[Path, ...]
    name: str
    precision: Precision | None = None
    graph_precision: Precision | None = None
    threads: int | None = None
    cache_key: str | None = None
    check_files: Callable[[], object] = lambda: None
    cuda_graphs: bool = False
    joined: bool = False
    convolution: ConvolutionChoice = "auto"


@dataclass(frozen=True)
class RunnerSpec:
    """An inference library as `medals_rt.runners.registry` lists it; its own file declares it.

    Attributes
    ----------
    kind
        The name by which it is chosen.
    device
        Where it computes and where its arrays lie.
    libraries
        What it needs, by the names of `medals_rt.common.optional_deps`.
    open_graphs
        Opens one graph, or joins several.
    precisions
        Arithmetic that it offers on this machine for graphs of a precision, what it takes unasked
        first. May import the library.
    auto_reason
        Why `auto` takes it, for the report; empty where it never does.
    distributions
        Packages one of whose modules another package has too, so that they are looked for by name.
    graph_precisions
        Of the graphs that it can run.
    joins_graphs
        Whether it gains from seeing the graphs of a pass as one.
    quantized
        Of graphs with Q/DQ, those whose convolutions it computes in 8 bits where the processor has
        instructions for it; others it only rounds so. None on a GPU's.
    expected_convolution
        How joined graphs will be convolved, for plans: given what was asked for, the precision, the
        network's channels and the voxels of its largest window. None where there is no choice.
    open_text_graph
        Opens the graph of a text encoder on the CPU in fp32: it has two free axes, sentences and
        tokens, where the networks' have one. None where it can't.
    why_no_engines
        For libraries that need engines: why a bundle has none for a GPU; empty where it has.
    """

    kind: RunnerKind
    device: Device
    libraries: tuple[str, ...]
    open_graphs: Callable[[OpenRequest], Runner]
    precisions: Callable[[Precision], tuple[Precision, ...]]
    auto_reason: str
    distributions: tuple[str, ...] = ()
    graph_precisions: tuple[Precision, ...] = PRECISIONS
    joins_graphs: bool = False
    quantized: tuple[QuantizedPrecision, ...] = ()
    expected_convolution: Callable[[ConvolutionChoice, Precision, int, int], Convolution] | None = (
        None
    )
    open_text_graph: Callable[[Path], TextGraph] | None = None
    why_no_engines: Callable[[Bundle, Gpu], str] | None = None


def precision_of_graphs(graph_precision: Precision) -> tuple[Precision, ...]:
    """Return a graph's own precision: all that there is on a GPU."""
    return (graph_precision,)


def check_feeds(name: str, inputs: Sequence[TensorSpec], feeds: Mapping[str, Array]) -> int | None:
    """Check inputs against a graph's specification.

    Returns
    -------
    int or None
        Size of the free dimension; None where the graph has none.

    Raises
    ------
    RunnerError
        If names, dtypes or shapes do not fit, or two free dimensions of one name differ.
    """
    if feeds.keys() != {spec.name for spec in inputs}:
        raise RunnerError(
            f"{name} takes {', '.join(spec.name for spec in inputs)}; got {', '.join(feeds)}",
            code="input-names",
        )
    free: int | None = None
    for spec in inputs:
        array = feeds[spec.name]
        fits = len(array.shape) == len(spec.shape) and str(array.dtype) == spec.dtype
        for found, expected in zip(array.shape, spec.shape, strict=False):
            if isinstance(expected, int):
                fits = fits and found == expected
            else:
                fits = fits and found > 0 and free in {None, found}
                free = found
        if not fits:
            raise RunnerError(
                f"{name}: {spec.name} is {array.dtype} {tuple(array.shape)}, "
                f"expected {spec.dtype} {spec.shape}",
                code="input-shape",
            )
    return free


def check_precision(precision: str | None) -> Precision | None:
    """Return a precision that exists; None for "auto" and None.

    Raises
    ------
    InputError
        If it does not.
    """
    for known in PRECISIONS:
        if precision == known:
            return known
    if precision is None or precision == "auto":
        return None
    raise InputError(
        f"unknown precision {precision!r}; use {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}",
        code="precision-unknown",
    )


def check_convolution(convolution: ConvolutionChoice) -> None:
    """Refuse a convolution that isn't one of `CONVOLUTIONS`.

    Raises
    ------
    InputError
        It is none (code `convolution-unknown`).
    """
    if convolution not in CONVOLUTIONS:
        raise InputError(
            f"unknown convolution {convolution!r}; use {', '.join(CONVOLUTIONS[:-1])} or "
            f"{CONVOLUTIONS[-1]}",
            code="convolution-unknown",
        )


def check_quantized(asked: Precision | None, graphs: Precision, name: str) -> None:
    """Refuse another precision for graphs with Q/DQ than theirs.

    Raises
    ------
    InputError
    """
    if asked not in {None, graphs}:
        raise InputError(
            f"the convolutions of {name} are {graphs}, and are computed so: leave out precision "
            f"{asked}, or take a bundle exported in it",
            code="precision-unsupported",
        )


def not_quantized(asked: str | None) -> InputError:
    """Return the error that 8-bit arithmetic is asked of graphs without Q/DQ."""
    return InputError(
        f"this bundle's convolutions are not {asked}: export one with --precision {asked} "
        "--calibrate CASES",
        code="precision-not-exported",
    )


def thread_limit(threads: int | None) -> int:
    """Return how many threads to ask a library for; 0 leaves it to the library.

    Libraries look at the machine's cores. Where only part of them may be used (a container's CPU
    quota, a batch's worker that keeps to its cores) that means many threads waiting for each
    other, so the number is given to them.

    Raises
    ------
    InputError
        If `threads` is given and not at least 1.
    """
    if threads is not None:
        if threads < 1:
            raise InputError(
                f"threads must be at least 1, got {threads}", code="threads-not-positive"
            )
        return threads
    cores = usable_cores()
    return cores if cores < (os.cpu_count() or 1) else 0
