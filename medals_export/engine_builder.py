"""One ONNX file to one engine, by the interface that TensorRT and TensorRT-RTX share.

Written for TensorRT 10.13 to 11.4 and TensorRT-RTX 1.4 to 1.7. Networks are strongly typed:
precision lives in the ONNX file, and no flag here changes it. TF32 is off, so that fp32 is fp32.

Why not Polygraphy, which has all of this as `network_from_onnx_path`, `create_config` and
`engine_bytes_from_network`: tried with 0.53.6 and TensorRT-RTX 1.7.1. Its engines of graphs with N
are ours to the last byte, which a test holds us to, and as quick to build; of others it adds a
profile that says nothing, 900 bytes. But which of the two libraries it means is one environment
variable, read when it is imported, and it looks for TensorRT-RTX under a name that the wheels on
PyPI do not have; it leaves TF32 on for TensorRT-RTX; it does not look whether an architecture was
accepted; and its errors say "Could not parse ONNX correctly", the node's name goes to the log.
Progress and cancel were no reason: it takes the same progress monitor.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medals_rt.bundle.recipes import BuildSettings, PromptCounts
from medals_rt.common.atomic_io import atomic_output, prepare_output
from medals_rt.common.cache_dir import cache_folder
from medals_rt.common.errors import BuildError
from medals_rt.runners.tensorrt_library import TensorRTLibrary

_MEBIBYTE = 1 << 20

OnStep = Callable[[str, int, int], None]
"""Called with a phase's name, its steps done and its steps in all."""


@dataclass(frozen=True)
class EngineOrder:
    """What is to be built.

    Attributes
    ----------
    label
        Name for messages.
    graph_path
        An ONNX file.
    prompt_counts
        Range of N; None where the graph has no N.
    architectures
        What TensorRT-RTX builds for.
    settings
        How.
    """

    label: str
    graph_path: Path
    prompt_counts: PromptCounts | None
    architectures: tuple[str, ...]
    settings: BuildSettings


class TimingCache:
    """What TensorRT measured while it built, so that the next build need not measure it again.

    Opened by `open_timing_cache`; `data` is empty at first. TensorRT-RTX measures nothing.
    """

    def __init__(self, data: bytes = b"") -> None:
        self.data = data


def build_engine(
    library: TensorRTLibrary, order: EngineOrder, timing: TimingCache, on_step: OnStep
) -> memoryview:
    """Parse a graph and build its engine.

    The library works in a thread of its own, so that Ctrl-C (or any exception in this thread) is
    seen at once: the build is then asked to stop, ends at its next step, and the exception goes on.

    Returns
    -------
    memoryview
        The engine's bytes.

    Raises
    ------
    BuildError
        If the library refuses; the message is the library's own, for a graph that it can't parse
        with the names of the nodes.
    """
    monitor = _Progress(on_step)
    with ThreadPoolExecutor(1, thread_name_prefix="engine-build") as thread:
        work = thread.submit(_build, library, order, timing, monitor)
        try:
            return work.result()
        except BaseException:
            monitor.cancelled.set()
            raise


@contextmanager
def open_timing_cache(
    library: TensorRTLibrary, architectures: tuple[str, ...]
) -> Iterator[TimingCache]:
    """Load what was measured before with this exact version, and keep what is measured now.

    It lies in the user's cache folder. What was measured is kept also if a build fails.

    Raises
    ------
    InputError
        If the cache folder can't be written; $MEDALS_RT_CACHE names another.
    """
    if library.compiles_on_first_use:
        yield TimingCache()
        return
    name = f"timing-{library.version}-{'-'.join(architectures)}.cache"
    path = prepare_output(cache_folder() / library.kind / name)
    timing = TimingCache(path.read_bytes() if path.is_file() else b"")
    before = timing.data
    try:
        yield timing
    finally:
        if timing.data != before:
            with atomic_output(path) as temporary:
                temporary.write_bytes(timing.data)


class _Progress:
    """Hears of the library's phases, from its threads, and says whether to go on."""

    def __init__(self, on_step: OnStep) -> None:
        self.cancelled = threading.Event()
        self.failure: BaseException | None = None
        self._on_step = on_step
        self._steps: dict[str, int] = {}

    def started(self, phase: str, steps: int) -> None:
        self._steps[phase] = steps

    def stepped(self, phase: str, step: int) -> bool:
        """Report a step that is done; False ends the build.

        An exception must not reach the library, which would print and forget it.
        """
        try:
            self._on_step(phase, step + 1, self._steps.get(phase, step + 1))
        except BaseException as error:  # noqa: BLE001 - raised again by the building thread
            self.failure = error
            self.cancelled.set()
        return not self.cancelled.is_set()


def _build(
    library: TensorRTLibrary, order: EngineOrder, timing: TimingCache, progress: _Progress
) -> memoryview:
    """Build in this thread."""
    trt, settings = library.module, order.settings
    builder = trt.Builder(library.log)
    # 1 in TensorRT 10, 0 in 11: networks are always strongly typed there
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, library.log)
    if not parser.parse_from_file(str(order.graph_path)):
        raise BuildError(_parse_errors(library, parser, order), code="graph-refused")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib * _MEBIBYTE)
    config.builder_optimization_level = settings.optimization_level
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # kernels' names, for `--inspect`
    config.progress_monitor = _monitor(trt, progress)
    if order.prompt_counts is not None:
        profile = _profile(builder, network, order.prompt_counts)
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(
                f"{library.label} refused N from {order.prompt_counts.least} to "
                f"{order.prompt_counts.most} for {order.label}: {library.take_errors()}",
                code="prompt-counts-refused",
            )
    measured = None
    if library.compiles_on_first_use:
        _set_architectures(library, config, order)
    else:
        measured = _attach_timing_cache(config, timing)
    plan = builder.build_serialized_network(network, config)
    if progress.failure is not None:
        raise progress.failure
    if plan is None:
        reason = library.take_errors()
        if "OutOfMemory" in reason or "workspace" in reason:  # both say that the limit is too low
            reason += f" (the recipe's workspace_mib is {settings.workspace_mib}; raise it)"
        raise BuildError(
            f"{library.label} {library.version} could not build {order.label}: {reason}",
            code="build-failed",
        )
    if measured is not None:
        timing.data = bytes(measured.serialize())
    return memoryview(plan)


def _parse_errors(library: TensorRTLibrary, parser: Any, order: EngineOrder) -> str:
    """List what the parser did not understand, each with its node."""
    found = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node = f"node {error.node_name()} ({error.node_operator()})" if error.node_name() else ""
        found.append(f"{node}: {error.desc()}" if node else str(error.desc()))
    said = "; ".join(found) or library.take_errors()
    library.log.errors.clear()
    return f"{library.label} {library.version} can't parse {order.label}: {said}"


def _profile(builder: Any, network: Any, counts: PromptCounts) -> Any:
    """Return every free dimension the range of N."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if -1 in shape:
            profile.set_shape(
                tensor.name,
                *(
                    tuple(count if size == -1 else size for size in shape)
                    for count in (counts.least, counts.best, counts.most)
                ),
            )
    return profile


def _set_architectures(library: TensorRTLibrary, config: Any, order: EngineOrder) -> None:
    config.num_compute_capabilities = len(order.architectures)
    for index, name in enumerate(order.architectures):
        capability = getattr(library.module.ComputeCapability, name)
        if not config.set_compute_capability(capability, index):
            raise BuildError(
                f"{library.label} {library.version} does not build for {name}: "
                f"{library.take_errors()}",
                code="architecture-refused",
            )


def _attach_timing_cache(config: Any, timing: TimingCache) -> Any:
    """Return the library what was measured before; where it refuses that, an empty cache."""
    for data in (timing.data, b""):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return cache
    return None


def _monitor(trt: Any, progress: _Progress) -> Any:
    """Put the library's interface around `progress`."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Called by the library, from any of its threads."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            del parent_phase
            progress.started(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.stepped(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()
