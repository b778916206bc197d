"""Choosing an inference library and opening graphs in it; all is read from the registry."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from medals_rt.bundle.bundle import Bundle
from medals_rt.common import gpu
from medals_rt.common.choices import (
    QUANTIZED_PRECISIONS,
    RUNNER_KINDS,
    ConvolutionChoice,
    Precision,
    RunnerKind,
)
from medals_rt.common.errors import InputError
from medals_rt.common.optional_deps import is_installed, missing, missing_one_of
from medals_rt.runners.base import (
    OpenRequest,
    Runner,
    RunnerSpec,
    check_convolution,
    check_precision,
    check_quantized,
    not_quantized,
)
from medals_rt.runners.registry import CPU_RUNNERS, REGISTRY, libraries_of, runner_spec


@dataclass(frozen=True)
class ChosenRunner:
    """Which library runs, and why, for the report."""

    kind: RunnerKind
    why: str


def choose(asked: str = "auto", bundle: Bundle | None = None) -> ChosenRunner:
    """Decide which inference library runs.

    "auto" takes the first of `REGISTRY` that can run the bundle here (`why_not`): with an NVIDIA
    GPU, TensorRT or TensorRT-RTX where the bundle has an engine of every graph that fits the GPU
    and the library's version, else ONNX Runtime with CUDA; without one, or where all of that is
    missing, OpenVINO (the fastest on a CPU), else ONNX Runtime. What was passed over on a GPU is
    reported in `why`. What is asked for by name is never replaced by another.

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
                raise missing(f"the runner {kind}", *runner_spec(kind).libraries)
            return ChosenRunner(kind, "asked for")
    raise InputError(
        f"there is no runner {asked!r}; use auto, {', '.join(RUNNER_KINDS)}", code="runner-unknown"
    )


def open_runner(
    kind: RunnerKind,
    *graph_paths: Path,
    name: str | None = None,
    precision: str | None = None,
    graph_precision: Precision | None = None,
    threads: int | None = None,
    cache_key: str | None = None,
    check_files: Callable[[], object] = lambda: None,
    cuda_graphs: bool = False,
    joined: bool = False,
    convolution: ConvolutionChoice = "auto",
) -> Runner:
    """Open a graph in one library, or several that run in a row as one graph.

    Of several, an input of a later graph with the name of an earlier one's output is fed by it, and
    what none of them reads is returned. What only the next such graph reads (features) may be
    something that only this library understands.

    Parameters
    ----------
    kind
        As `choose` found it.
    graph_paths
        ONNX files, in the order in which they run; one, unless they are joined. For TensorRT one of
        a bundle, whose folder `engines` holds its engine.
    name
        Name for messages; None: the first file's stem.
    precision
        "fp32", "fp16", "bf16", or what graphs with Q/DQ are, "int8" or "fp8". None for the graph's
        own on a GPU and where it has Q/DQ, else for the fastest that the processor computes in
        natively.
    graph_precision
        The arithmetic that the graphs ask for, as their bundle says; None where that is not known.
    threads
        How many to compute with; None leaves it to the library, within a container's CPU quota.
    cache_key
        The graphs' SHA-256: compiled forms are kept in the user's cache folder under it. None
        keeps nothing.
    check_files
        As of an `OpenRequest`.
    cuda_graphs
        Have TensorRT record what it launches; see `medals_rt.runners.tensorrt.TensorRTRunner`.
    joined
        Whether the graphs are parts of a pass, to be joined by a library that gains from that
        (`RunnerSpec.joins_graphs`).
    convolution
        How large convolutions of joined graphs are computed.

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
    spec = runner_spec(kind)
    if joined and not spec.joins_graphs:
        raise ValueError(f"{kind} does not join graphs")
    if joined:
        check_arithmetic(kind, graph_precision or "fp32", precision, convolution)
    request = OpenRequest(
        graph_paths=graph_paths,
        name=name or graph_paths[0].stem,
        precision=check_precision(precision),
        graph_precision=graph_precision,
        threads=threads,
        cache_key=cache_key,
        check_files=check_files,
        cuda_graphs=cuda_graphs,
        joined=joined,
        convolution=convolution,
    )
    return spec.open_graphs(request)


def check_arithmetic(
    kind: RunnerKind, graphs: Precision, asked: str | None, convolution: ConvolutionChoice = "auto"
) -> None:
    """Refuse arithmetic that a library doesn't have for graphs; runs and plans ask this first.

    What only this processor lacks is left to the library.

    Parameters
    ----------
    kind
        The library.
    graphs
        The arithmetic that the graphs ask for.
    asked
        A precision; "auto" and None leave it to the library.
    convolution
        How large convolutions are to be computed.

    Raises
    ------
    InputError
        ``precision-unknown``, ``precision-not-exported`` (8-bit arithmetic of graphs without Q/DQ),
        ``precision-unsupported`` (another than that of graphs with Q/DQ),
        ``bundle-precision-unsupported`` (graphs of an arithmetic that the library lacks),
        ``convolution-unknown``, or ``convolution-unsupported`` (Winograd's where the library has
        none).
    """
    precision = check_precision(asked)
    check_convolution(convolution)
    if graphs in QUANTIZED_PRECISIONS:
        check_quantized(precision, graphs, "this bundle")
    elif precision in QUANTIZED_PRECISIONS:
        raise not_quantized(precision)
    computed = runner_spec(kind).graph_precisions
    if graphs not in computed:
        raise InputError(
            f"the runner {kind} computes bundles in {' or '.join(computed)}, and this one is in "
            f"{graphs}: export it in {computed[0]}, or take another --runner",
            code="bundle-precision-unsupported",
        )
    if convolution != "winograd":
        return
    if runner_spec(kind).expected_convolution is None:
        able = [spec.kind for spec in REGISTRY if spec.expected_convolution is not None]
        raise InputError(
            f"--convolution winograd is of the runner {' or '.join(able)}, and {kind} convolves by "
            "itself: leave one of them out",
            code="convolution-unsupported",
        )
    if graphs in QUANTIZED_PRECISIONS:
        raise InputError(
            f"convolutions of {graphs} are computed directly: leave --convolution winograd out",
            code="convolution-unsupported",
        )


def installed(kind: RunnerKind) -> bool:
    """Whether what a runner needs is there, without importing it; not whether a GPU is."""
    spec = runner_spec(kind)
    return all(map(is_installed, spec.libraries)) and all(map(_distributed, spec.distributions))


def usable(kind: RunnerKind) -> bool:
    """Whether a runner could be opened here: installed, and a GPU there if it needs one."""
    return installed(kind) and (runner_spec(kind).device == "cpu" or gpu.find_gpu() is not None)


def runs_on_gpu(asked: str, bundle: Bundle) -> bool:
    """Whether a bundle's networks would run on a GPU; `asked` and errors as for `choose`."""
    return runner_spec(choose(asked, bundle).kind).device != "cpu"


def why_not(kind: RunnerKind, bundle: Bundle | None) -> str:
    """Describe why a runner can't run a bundle on this machine; empty where it can.

    It follows from what is installed, the GPU, and the records in the bundle: no graph is opened,
    so a library may still refuse one.

    Parameters
    ----------
    kind
        The runner.
    bundle
        What is to be run; without one there are no engines.
    """
    if not installed(kind):
        return f"{kind} is not installed"
    spec = runner_spec(kind)
    if bundle is not None and bundle.precision not in spec.graph_precisions:
        return f"{kind} can't compute a bundle in {bundle.precision}"
    return "" if spec.device == "cpu" else _why_not_on_gpu(spec, bundle)


def precisions(kind: RunnerKind, graph_precision: Precision = "fp32") -> tuple[Precision, ...]:
    """Return what a library computes in on this machine, what it takes unasked first.

    Parameters
    ----------
    kind
        The library.
    graph_precision
        What the graphs ask for, which on a GPU is all that there is.

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
    spec = runner_spec(kind)
    return spec.precisions(graph_precision) if graph_precision in spec.graph_precisions else ()


def _why_not_on_gpu(spec: RunnerSpec, bundle: Bundle | None) -> str:
    found = gpu.find_gpu()
    if found is None:
        return f"{spec.kind} needs an NVIDIA GPU, and no driver finds one"
    if spec.why_no_engines is None:
        return ""
    if bundle is None:
        return f"no bundle to look for {spec.kind} engines in"
    return spec.why_no_engines(bundle, found)


def _automatic(bundle: Bundle | None) -> ChosenRunner:
    found = gpu.find_gpu()
    on_gpu: list[str] = []
    on_cpu: list[str] = []
    for spec in REGISTRY:
        needs_gpu = spec.device == "cuda"
        if not spec.auto_reason or (needs_gpu and found is None):
            continue
        reason = why_not(spec.kind, bundle)
        if reason:
            (on_gpu if needs_gpu else on_cpu).append(reason)
            continue
        if found is None:
            return ChosenRunner(spec.kind, f"auto: {spec.auto_reason}")
        passed_over = "; ".join(on_gpu)
        if needs_gpu:
            why = f"auto: {found.name}, and {spec.auto_reason}"
            return ChosenRunner(spec.kind, f"{why}; {passed_over}" if passed_over else why)
        why = f"auto: {spec.auto_reason}, and {found.name} is not used: {passed_over}"
        return ChosenRunner(spec.kind, why)
    remark = f" ({'; '.join((*on_gpu, *on_cpu))})"
    libraries = libraries_of(map(runner_spec, CPU_RUNNERS))
    raise missing_one_of("running networks", *libraries, remark=remark)


def _distributed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True
