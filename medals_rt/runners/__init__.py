"""Inference libraries behind one protocol, one file each; none is imported before it is chosen."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from medals_rt.errors import InputError, MissingDependencyError
from medals_rt.runners.base import Runner, RunnerKind, TensorSpec

__all__ = ["Choice", "Runner", "RunnerKind", "TensorSpec", "choose", "installed", "open_runner"]

RUNNER_KINDS: tuple[RunnerKind, ...] = get_args(RunnerKind)
_EXTRAS: dict[RunnerKind, str] = {"openvino": "cpu", "onnxruntime": "onnx"}


@dataclass(frozen=True)
class Choice:
    """Which library runs, and why, for the report."""

    kind: RunnerKind
    why: str


def choose(asked: str = "auto") -> Choice:
    """Decide which inference library runs.

    "auto" takes OpenVINO where it is installed (the fastest on a CPU), else ONNX Runtime. What is
    asked for by name is never replaced by another.

    Raises
    ------
    InputError
        If `asked` names no runner.
    MissingDependencyError
        If the library asked for, or for "auto" any of them, is not installed; the message names
        the extra that installs it.
    """
    if asked == "auto":
        return _automatic()
    for kind in RUNNER_KINDS:
        if asked == kind:
            if not installed(kind):
                raise MissingDependencyError(
                    f"{kind} is not installed: pip install 'medals-rt[{_EXTRAS[kind]}]'"
                )
            return Choice(kind, "asked for")
    raise InputError(f"there is no runner {asked!r}; use auto, {', '.join(RUNNER_KINDS)}")


def open_runner(
    kind: RunnerKind,
    graph_path: Path,
    *,
    name: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    cache_key: str | None = None,
) -> Runner:
    """Open one graph in one library.

    Parameters
    ----------
    kind
        As `choose` gave it.
    graph_path
        An ONNX file.
    name
        Name for messages; the file's stem if none is given.
    precision
        "fp32" or "bf16"; None for the fastest that the processor computes in natively.
    threads
        How many to compute with; None leaves it to the library, within a container's CPU quota.
    cache_key
        The graph's SHA-256: compiled forms are kept in the user's cache folder under it. None
        keeps nothing.

    Raises
    ------
    MissingDependencyError, MissingFileError
        If the library or the file is not there.
    InputError
        If the precision is not one that this library has.
    RunnerError
        If the library refuses the graph, or the processor lacks the precision.
    """
    if kind == "openvino":
        from medals_rt.runners.openvino import OpenVINORunner

        return OpenVINORunner(
            graph_path,
            name=name or graph_path.stem,
            precision=precision,
            threads=threads,
            cache_key=cache_key,
        )
    from medals_rt.runners.onnxruntime import ONNXRuntimeRunner

    return ONNXRuntimeRunner(
        graph_path, name=name or graph_path.stem, precision=precision, threads=threads
    )


def _automatic() -> Choice:
    if installed("openvino"):
        return Choice("openvino", "auto: OpenVINO is installed, the fastest on a CPU")
    if installed("onnxruntime"):
        return Choice("onnxruntime", "auto: OpenVINO is not installed, ONNX Runtime is")
    raise MissingDependencyError(
        "no inference library is installed: pip install 'medals-rt[cpu]' (OpenVINO, the fastest "
        "on a CPU) or 'medals-rt[onnx]' (ONNX Runtime)"
    )


def installed(kind: RunnerKind) -> bool:
    """Tell whether a runner's library is there, without importing it."""
    return find_spec(kind) is not None
