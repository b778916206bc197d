"""Inference libraries behind one protocol, one file each; none is imported before it is chosen."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from medals_rt.common.choices import Precision, RunnerKind
from medals_rt.common.errors import BundleError, InputError, MissingDependencyError
from medals_rt.common.optional_deps import missing, missing_one_of
from medals_rt.runners.base import Runner, TensorSpec

if TYPE_CHECKING:
    from medals_rt.bundle.bundle import Bundle
    from medals_rt.common.choices import TensorRTKind
    from medals_rt.common.gpu import Gpu

__all__ = [
    "CPU_RUNNERS",
    "JOINING_RUNNERS",
    "LIBRARIES",
    "RUNNER_KINDS",
    "Choice",
    "Precision",
    "Runner",
    "RunnerKind",
    "TensorSpec",
    "choose",
    "installed",
    "open_joined",
    "open_runner",
    "precisions",
    "release_memory",
    "usable",
    "why_not",
]

RUNNER_KINDS: tuple[RunnerKind, ...] = get_args(RunnerKind)
CPU_RUNNERS: tuple[RunnerKind, ...] = ("openvino", "onnxruntime")
JOINING_RUNNERS: tuple[RunnerKind, ...] = ("openvino",)
"""Libraries that gain from seeing the graphs of a pass as one (`open_joined`)."""
LIBRARIES: dict[RunnerKind, tuple[str, ...]] = {
    "openvino": ("OpenVINO",),
    "onnxruntime": ("ONNX Runtime",),
    "onnxruntime-cuda": ("ONNX Runtime", "CuPy"),
    "tensorrt": ("TensorRT", "CuPy"),
    "tensorrt-rtx": ("TensorRT-RTX", "CuPy"),
}
"""What each needs, by the names of `medals_rt.common.optional_deps`."""


@dataclass(frozen=True)
class Choice:
    """Which library runs, and why, for the report."""

    kind: RunnerKind
    why: str


def choose(asked: str = "auto", bundle: "Bundle | None" = None) -> Choice:
    """Decide which inference library runs.

    "auto" takes, on a machine with an NVIDIA card, TensorRT or TensorRT-RTX where the bundle has
    an engine of every graph that fits the card and the library's version, else ONNX Runtime with
    CUDA. Without a card, or where all of that is missing, it takes OpenVINO (the fastest on a
    CPU), else ONNX Runtime. What was passed over is told in `why`. What is asked for by name is
    never replaced by another.

    Parameters
    ----------
    asked
        "auto" or the name of a runner.
    bundle
        What is to be run; without it "auto" finds no engines.

    Raises
    ------
    InputError
        If `asked` names no runner.
    MissingDependencyError
        If the library asked for, or for "auto" any of them, is not installed; the message names
        the extra that installs it.
    """
    if asked == "auto":
        return _automatic(bundle)
    for kind in RUNNER_KINDS:
        if asked == kind:
            if not installed(kind):
                raise missing(f"the runner {kind}", *LIBRARIES[kind])
            return Choice(kind, "asked for")
    raise InputError(f"there is no runner {asked!r}; use auto, {', '.join(RUNNER_KINDS)}")


def open_runner(
    kind: RunnerKind,
    graph_path: Path,
    *,
    name: str | None = None,
    precision: str | None = None,
    graph_precision: Precision | None = None,
    threads: int | None = None,
    cache_key: str | None = None,
    cuda_graphs: bool = False,
) -> Runner:
    """Open one graph in one library.

    Parameters
    ----------
    kind
        As `choose` gave it.
    graph_path
        An ONNX file; for TensorRT one of a bundle, whose folder `engines` holds its engine.
    name
        Name for messages; the file's stem if none is given.
    precision
        "fp32", "fp16" or "bf16". None for the fastest that the processor computes in natively; on
        a card for the graph's own, which is all that there is.
    graph_precision
        The arithmetic that the graph asks for, as its bundle says; None where that is not known.
    threads
        How many to compute with; None leaves it to the library, within a container's CPU quota.
    cache_key
        The graph's SHA-256: compiled forms are kept in the user's cache folder under it. None
        keeps nothing.
    cuda_graphs
        Have TensorRT record what it launches; see `medals_rt.runners.tensorrt.TensorRTRunner`.

    Raises
    ------
    MissingDependencyError, MissingFileError
        If the library or the file is not there.
    InputError
        If the precision is not one that this library has.
    BundleError
        If no engine fits; the message says how the nearest differs.
    RunnerError
        If the library refuses the graph, or the processor lacks the precision.
    """
    name = name or graph_path.stem
    if kind == "openvino":
        from medals_rt.runners.openvino import OpenVINORunner

        return OpenVINORunner(
            graph_path, name=name, precision=precision, threads=threads, cache_key=cache_key
        )
    if kind == "onnxruntime":
        from medals_rt.runners.onnxruntime import ONNXRuntimeRunner

        return ONNXRuntimeRunner(graph_path, name=name, precision=precision, threads=threads)
    if kind == "onnxruntime-cuda":
        from medals_rt.runners.onnxruntime import ONNXRuntimeCUDARunner

        return ONNXRuntimeCUDARunner(
            graph_path, name=name, precision=precision, graph_precision=graph_precision
        )
    from medals_rt.runners.tensorrt import open_engine

    return open_engine(
        kind,
        graph_path,
        name=name,
        precision=precision,
        graph_sha256=cache_key,
        cuda_graphs=cuda_graphs,
    )


def open_joined(
    kind: RunnerKind,
    graph_paths: Sequence[Path],
    *,
    name: str,
    precision: str | None = None,
    threads: int | None = None,
    cache_key: str | None = None,
) -> Runner:
    """Open several graphs that run in a row as one graph.

    An input of a later graph with the name of an earlier one's output is fed by it, and what none
    of them reads is given back. What only the next such graph reads (features) may be given as
    something that only this library understands. The rest is as for `open_runner`.

    Parameters
    ----------
    kind
        One of `JOINING_RUNNERS`.
    graph_paths
        ONNX files, in the order in which they run.
    name, precision, threads, cache_key
        As for `open_runner`.
    """
    if kind not in JOINING_RUNNERS:
        raise ValueError(f"{kind} does not join graphs")
    from medals_rt.runners.openvino import OpenVINORunner

    return OpenVINORunner(
        graph_paths,
        name=name,
        precision=precision,
        threads=threads,
        cache_key=cache_key,
        chained=True,
    )


def release_memory(runner: Runner) -> None:
    """Give back what a runner keeps between runs, where its library can."""
    release = getattr(runner, "release", None)
    if release is not None:
        release()


def installed(kind: RunnerKind) -> bool:
    """Tell whether what a runner needs is there, without importing it; not whether a card is."""
    if kind in CPU_RUNNERS:
        return find_spec(kind) is not None
    if find_spec("cupy") is None:
        return False
    if kind == "onnxruntime-cuda":
        try:
            distribution("onnxruntime-gpu")
        except PackageNotFoundError:
            return False
        return True
    return kind in _tensorrt_installed()


def usable(kind: RunnerKind) -> bool:
    """Tell whether a runner could be opened here: installed, and a card there if it needs one."""
    if not installed(kind):
        return False
    from medals_rt.common.gpu import find_gpu

    return kind in CPU_RUNNERS or find_gpu() is not None


def why_not(kind: RunnerKind, bundle: "Bundle | None") -> str:
    """Say why a runner can't run a bundle on this machine; empty where it can.

    Told from what is installed, the card, and the records in the bundle: nothing is opened, so a
    library may still refuse a graph.

    Parameters
    ----------
    kind
        The runner.
    bundle
        What is to be run; without one there are no engines.
    """
    if not installed(kind):
        return f"{kind} is not installed"
    if kind == "openvino":
        return ""
    if kind == "onnxruntime":
        if bundle is not None and not precisions(kind, bundle.precision):
            return f"{kind} has no arithmetic on a CPU for a bundle in {bundle.precision}"
        return ""
    from medals_rt.common.gpu import find_gpu

    card = find_gpu()
    if card is None:
        return f"{kind} needs an NVIDIA card, and no driver finds one"
    return "" if kind == "onnxruntime-cuda" else _why_no_engines(kind, bundle, card)


def precisions(kind: RunnerKind, graph_precision: Precision = "fp32") -> tuple[Precision, ...]:
    """Precisions that a library offers on this machine, the one that it takes unasked first.

    Parameters
    ----------
    kind
        The library.
    graph_precision
        What the graphs ask for, which on a card is all that there is.

    Returns
    -------
    tuple of Precision
        Empty where the library can't run such graphs: ONNX Runtime has no bf16 convolution on a
        CPU.

    Raises
    ------
    MissingDependencyError
        If the library is not installed.
    """
    if kind == "openvino":
        from medals_rt.runners import openvino

        return openvino.precisions()
    if kind == "onnxruntime":
        return () if graph_precision == "bf16" else ("fp32",)
    return (graph_precision,)


def _automatic(bundle: "Bundle | None") -> Choice:
    from medals_rt.common.gpu import find_gpu

    card = find_gpu()
    if card is None:
        return _automatic_on_cpu("")
    passed_over: list[str] = []
    for kind in ("tensorrt", "tensorrt-rtx"):
        reason = why_not(kind, bundle)
        if not reason:
            return Choice(kind, f"auto: {card.name}, and the bundle has {kind} engines for it")
        passed_over.append(reason)
    if installed("onnxruntime-cuda"):
        return Choice("onnxruntime-cuda", f"auto: {card.name}; {'; '.join(passed_over)}")
    passed_over.append("onnxruntime-cuda is not installed")
    return _automatic_on_cpu(f", and {card.name} is not used: {'; '.join(passed_over)}")


def _automatic_on_cpu(remark: str) -> Choice:
    if installed("openvino"):
        return Choice("openvino", f"auto: OpenVINO is installed, the fastest on a CPU{remark}")
    if installed("onnxruntime"):
        return Choice("onnxruntime", f"auto: OpenVINO is not installed, ONNX Runtime is{remark}")
    raise missing_one_of("running networks", "OpenVINO", "ONNX Runtime", remark=remark)


def _why_no_engines(kind: "TensorRTKind", bundle: "Bundle | None", card: "Gpu") -> str:
    if bundle is None:
        return f"no bundle to look for {kind} engines in"
    from medals_rt.bundle.engines import require_engines
    from medals_rt.runners.tensorrt_library import open_library

    try:
        library = open_library(kind)
        if not library.builds_for(card.architecture):
            return f"{library.label} {library.version} has no engines for {card.architecture} cards"
        require_engines(bundle, kind, library.version, card.architecture)
    except (BundleError, MissingDependencyError) as error:
        return str(error)
    return ""


def _tensorrt_installed() -> tuple[RunnerKind, ...]:
    from medals_rt.runners.tensorrt_library import MODULES

    return tuple(kind for kind, names in MODULES.items() if any(find_spec(name) for name in names))
