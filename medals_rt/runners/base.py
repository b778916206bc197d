"""What every inference library is to the rest of the package: a runner of one graph."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from medals_rt.common.cgroups import CGROUP, cpu_quota
from medals_rt.common.choices import PRECISIONS, Precision, RunnerKind
from medals_rt.common.errors import InputError, RunnerError
from medals_rt.common.typing import Array


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of a graph's input or output; a free dimension has a name or is "?"."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


class Runner(Protocol):
    """One graph, opened once, run any number of times; not safe to share between threads.

    Attributes
    ----------
    name
        The graph's name, for messages.
    kind
        The library, one of `RunnerKind`.
    device
        Where arrays are taken from and given back: "cpu" or "cuda".
    precision
        Arithmetic that is really used, one of `Precision`.
    version
        The library's version.
    threads
        How many it computes with; 0 where the library decides and does not tell.
    notes
        Remarks for the run's report, such as a cache that could not be kept.
    inputs, outputs
        What goes in and comes out.
    """

    name: str
    kind: RunnerKind
    device: str
    precision: Precision
    version: str
    threads: int
    notes: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute all outputs from all inputs, by name.

        The inputs are only read. The arrays that come back belong to the caller: no later run
        writes into them.

        Raises
        ------
        RunnerError
            If an input is missing, unknown, or of a wrong shape or dtype, or the library fails.
        """
        ...

    def close(self) -> None:
        """Free what the library holds; the runner can't be used afterwards."""
        ...


def check_feeds(name: str, inputs: Sequence[TensorSpec], feeds: Mapping[str, Array]) -> int | None:
    """Hold inputs to a graph's specification and give the free dimension's size (None: no such).

    Raises
    ------
    RunnerError
        If names, dtypes or shapes do not fit, or two free dimensions of one name differ.
    """
    if feeds.keys() != {spec.name for spec in inputs}:
        raise RunnerError(
            f"{name} takes {', '.join(spec.name for spec in inputs)}; got {', '.join(feeds)}"
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
                f"expected {spec.dtype} {spec.shape}"
            )
    return free


def check_precision(precision: str | None) -> Precision | None:
    """Give back a precision that exists.

    Raises
    ------
    InputError
        If it does not.
    """
    for known in PRECISIONS:
        if precision == known:
            return known
    if precision is None:
        return None
    raise InputError(f"precision {precision!r} is not known here; use {' or '.join(PRECISIONS)}")


def thread_limit(threads: int | None) -> int:
    """Decide how many threads to ask a library for; 0 leaves it to the library.

    Libraries look at the machine's cores. In a container that may use only part of them (a CPU
    quota) that means many threads waiting for each other, so the quota is given to them.

    Raises
    ------
    InputError
        If `threads` is given and not at least 1.
    """
    if threads is not None:
        if threads < 1:
            raise InputError(f"threads must be at least 1, got {threads}")
        return threads
    quota = cpu_quota(CGROUP)
    return quota if quota is not None and quota < (os.cpu_count() or 1) else 0
