"""TensorRT and TensorRT-RTX engines, run through CuPy.

Written against the libraries' documented interface (TensorRT 10.13 to 11.4, TensorRT-RTX 1.4 to
1.7, CuPy 13.4 and 14). Nothing here has been run on a GPU: the tests run it on fakes of both
libraries, and those marked `gpu` are ready to run on one.
"""

from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.engines import ENGINE_FOLDER, Engine, Wanted, find_engine, require_engines
from medals_rt.bundle.manifest import MANIFEST_FILE, file_sha256
from medals_rt.common.arrays import open_cupy
from medals_rt.common.atomic_io import atomic_output
from medals_rt.common.cache_dir import cache_folder, forget_old, mark_used
from medals_rt.common.choices import TENSORRT_LABELS, Precision, RunnerKind, TensorRTKind
from medals_rt.common.errors import (
    BundleError,
    MissingDependencyError,
    MissingFileError,
    RunnerError,
)
from medals_rt.common.gpu import Gpu, require_gpu
from medals_rt.common.interruption import check_interruption
from medals_rt.common.typing import Array
from medals_rt.runners.base import (
    Device,
    OpenRequest,
    Runner,
    RunnerSpec,
    TensorSpec,
    check_feeds,
    precision_of_graphs,
)
from medals_rt.runners.cuda import (
    Ordering,
    device_inputs,
    device_outputs,
    runner_stream,
)
from medals_rt.runners.engine_check import ensure_tried
from medals_rt.runners.tensorrt_library import TensorRTLibrary, open_library

_KEPT_CUDA_GRAPHS = 8
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT64": "int64",
    "INT32": "int32",
    "BOOL": "bool",
}


def _open_engine(kind: TensorRTKind, request: OpenRequest) -> "TensorRTRunner":
    """Find the engine of a bundle's graph, try it if it is new, and open it.

    Parameters
    ----------
    kind
        Which of the two libraries.
    request
        Its path is a bundle's ONNX file, in whose folder `engines` the engine lies; its
        `cache_key` the graph's hash, computed where it is None.

    Raises
    ------
    MissingDependencyError
        If the library, CuPy or a GPU is missing.
    MissingFileError
        If there is no graph.
    BundleError
        If it is in no bundle, or no engine fits, or the engine's file is damaged.
    RunnerError
        If the engine failed when it was tried, or is refused.
    """
    (graph_path,) = request.graph_paths
    if not graph_path.is_file():
        raise MissingFileError(f"there is no graph {graph_path}", code="graph-missing")
    folder = next((each for each in graph_path.parents if (each / MANIFEST_FILE).is_file()), None)
    if folder is None:
        raise BundleError(
            f"{graph_path} lies in no bundle, so there is no engine of it", code="graph-not-bundled"
        )
    library = open_library(kind)
    wanted = Wanted(
        graph_sha256=request.cache_key or file_sha256(graph_path),
        library=kind,
        version=library.version,
        architecture=require_gpu(library.label).architecture,
        precision=request.precision,
    )
    engine = find_engine(folder / ENGINE_FOLDER, wanted, request.name)
    notes = ensure_tried(engine, request.name)
    runner = TensorRTRunner(engine, library, name=request.name, cuda_graphs=request.cuda_graphs)
    runner.notes += notes
    return runner


class TensorRTRunner(Runner):
    """One engine of TensorRT or TensorRT-RTX on the current GPU; see `Runner`.

    Arrays are CuPy's, on its current device. Inputs are read where they are; a view that is not
    contiguous is copied on the GPU first. Outputs are new arrays from CuPy's pool that belong to
    the caller, or arrays that the caller passes to be written into. Work is queued on a stream that
    runners share and ordered by events against the caller's current stream: `run` returns before
    the GPU is done, and nothing waits on the processor, but for the capture of a CUDA graph.

    Scratch memory comes from CuPy's pool too, as much as the shapes of a run need.

    Parameters
    ----------
    engine
        An engine that fits; its file is held to its record before it is loaded.
    library
        As `open_library` gave it.
    name
        The graph's name, for messages.
    cuda_graphs
        Record what a run launches as a CUDA graph and launch that when the same arrays come again:
        one a shape and set of addresses, the last eight are kept. The first run of each is run
        once as it is, waited for, and then recorded. Saves time where launching costs more than
        computing; holds scratch memory for the largest N.

    Raises
    ------
    BundleError
        If the engine's file is not what its record says.
    MissingDependencyError
        If CuPy or a GPU is missing.
    RunnerError
        If the library refuses the engine.
    """

    device: Device = "cuda"
    threads = 0

    def __init__(
        self, engine: Engine, library: TensorRTLibrary, *, name: str, cuda_graphs: bool = False
    ) -> None:
        data = engine.read()
        self._cupy = open_cupy("a runner on a GPU")
        self._library = library
        self.name = name
        self.kind: RunnerKind = library.kind
        self.version = library.version
        self.precision: Precision = engine.record.key.precision
        self.notes: tuple[str, ...] = ()
        self._counts = engine.record.key.prompt_counts
        self._stream = runner_stream(self._cupy)
        self._ordering = Ordering(self._cupy, self._stream)
        self._runtime = library.module.Runtime(library.log)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise RunnerError(
                f"{library.label} refused {engine.path}: {library.take_errors()}",
                code="engine-refused",
            )
        self._kernels = KernelCache(engine, library)
        self._context = self._kernels.open_context(self._engine)
        if self._context is None:
            raise RunnerError(
                f"{library.label} can't run {engine.path}: {library.take_errors()}",
                code="engine-refused",
            )
        self.inputs, self.outputs = _tensor_specs(library.module, self._engine, name)
        self._shaped_for: int | None = -1  # N that the context is set to; -1 is none yet
        self._scratch_bytes = 0
        self._graphs: OrderedDict[tuple[int, ...], Any] | None = None
        self._held_scratch: Any = None
        if cuda_graphs:
            self._graphs = OrderedDict()
            self._scratch_bytes = int(self._engine.device_memory_size_v2)
            self._held_scratch = self._new_scratch()

    @property
    def prompt_counts(self) -> tuple[int, int] | None:
        """Least and most N that a run may have; None where the graph has no N."""
        return None if self._counts is None else (self._counts.least, self._counts.most)

    def run(
        self, feeds: Mapping[str, Array], outputs: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Queue the computation of all outputs; see `Runner.run`.

        Parameters
        ----------
        feeds
            The inputs, CuPy arrays.
        outputs
            Arrays to write into, for some or all outputs: contiguous CuPy arrays of the right
            shape and dtype, which overlap no input. They stay the caller's, and are given back.
        """
        if self._context is None:
            raise RunnerError(f"{self.name} was closed", code="runner-closed")
        check_interruption()
        free = check_feeds(self.name, self.inputs, feeds)
        self._check_count(free)
        arrays = device_inputs(self._cupy, self.name, feeds)
        results = device_outputs(self._cupy, self.name, self.outputs, free, outputs)
        with self._ordering.after_and_before():
            if free != self._shaped_for:
                self._set_shapes(arrays, results)
                self._shaped_for = free
            # Given back to the pool when this returns; the pool gives it to work on the same
            # stream only, which starts when this is done.
            scratch = self._held_scratch if self._graphs is not None else self._new_scratch()
            self._context.set_device_memory(scratch.ptr, self._scratch_bytes)
            addresses = self._set_addresses({**arrays, **results})
            if self._graphs is None:
                self._launch()
            else:
                self._launch_recorded(self._graphs, (0 if free is None else free, *addresses))
        return results

    def close(self) -> None:
        """Wait for what was queued, keep compiled kernels, and free the engine."""
        if self._context is None:
            return
        self._stream.synchronize()
        self.notes += self._kernels.keep()
        # what was made by another goes before it
        self._graphs = self._held_scratch = self._context = None
        self._kernels.forget()
        self._engine = self._runtime = None

    def _check_count(self, free: int | None) -> None:
        counts = self._counts
        if free is None or counts is None or counts.least <= free <= counts.most:
            return
        raise RunnerError(
            f"{self.name} got {free} prompts, and its engine was built for {counts.least} to "
            f"{counts.most}; ask for fewer at once, or build with a recipe that allows more",
            code="prompt-count",
        )

    def _set_shapes(self, arrays: Mapping[str, Array], results: Mapping[str, Array]) -> None:
        """Set the inputs' shapes in the context, and hold the outputs' to what it makes of them."""
        self._shaped_for = -1
        for key, array in arrays.items():
            if not self._context.set_input_shape(key, tuple(array.shape)):
                raise self._refusal(f"the shape {tuple(array.shape)} of {key}")
        if unspecified := self._context.infer_shapes():
            raise self._refusal(f"these inputs, and lacks a shape of {', '.join(unspecified)}")
        for key, array in results.items():
            found = tuple(self._context.get_tensor_shape(key))
            if found != tuple(array.shape):
                raise RunnerError(
                    f"{self.name}: {self._library.label} gives {key} the shape {found}, "
                    f"expected {tuple(array.shape)}",
                    code="output-shape",
                )
        if self._graphs is None:
            self._scratch_bytes = int(self._context.update_device_memory_size_for_shapes())

    def _set_addresses(self, arrays: Mapping[str, Any]) -> list[int]:
        addresses = []
        for key, array in arrays.items():
            address = int(array.data.ptr)
            if not self._context.set_tensor_address(key, address):
                raise self._refusal(f"the memory of {key}")
            addresses.append(address)
        return addresses

    def _new_scratch(self) -> Any:
        with self._stream:
            return self._cupy.cuda.alloc(self._scratch_bytes)

    def _launch(self) -> None:
        if not self._context.execute_async_v3(self._stream.ptr):
            raise RunnerError(
                f"{self._library.label} failed in {self.name}: {self._library.take_errors()}",
                code="run-failed",
            )

    def _launch_recorded(
        self, graphs: "OrderedDict[tuple[int, ...], Any]", key: tuple[int, ...]
    ) -> None:
        """Launch the CUDA graph of N and addresses; the first time run as it is, then record."""
        if key in graphs:
            graphs.move_to_end(key)
            graphs[key].launch(self._stream)
            return
        self._launch()
        self._stream.synchronize()
        self._stream.begin_capture()
        try:
            self._launch()
        finally:
            recorded = self._stream.end_capture()
        graphs[key] = recorded
        if len(graphs) > _KEPT_CUDA_GRAPHS:
            graphs.popitem(last=False)

    def _refusal(self, what: str) -> RunnerError:
        return RunnerError(
            f"{self._library.label} refused {what} in {self.name}: {self._library.take_errors()}",
            code="input-refused",
        )


class KernelCache:
    """Opens an engine's context; for TensorRT-RTX with the kernels compiled by earlier processes.

    TensorRT-RTX compiles an engine for the GPU when it is first run. What was compiled is kept in
    the user's cache folder, as much as `cache_dir.KEPT_BYTES` allows, and the library itself
    refuses what is of another version, GPU or driver. Kernels for the shapes of a run are compiled
    before it, not beside it: else the first runs would use other kernels than later ones, and one
    case could give two results.
    """

    def __init__(self, engine: Engine, library: TensorRTLibrary) -> None:
        self._engine_sha256 = engine.record.sha256
        self._library = library
        self._config: Any = None
        self._cache: Any = None
        self._before = b""

    def open_context(self, engine: Any) -> Any:
        """Make an execution context that takes its scratch memory from us; None on failure."""
        trt = self._library.module
        scratch = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self._library.compiles_on_first_use:
            return engine.create_execution_context(scratch)
        self._config = engine.create_runtime_config()
        self._config.set_execution_context_allocation_strategy(scratch)
        eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self._config.dynamic_shapes_kernel_specialization_strategy = eager
        self._cache = self._config.create_runtime_cache()
        path = self._path()
        if path.is_file():
            self._before = path.read_bytes()
            mark_used(path)
            if not self._cache.deserialize(self._before):
                self._before = b""  # of another GPU or driver: compiled again, then replaced
                self._library.log.errors.clear()
        self._config.set_runtime_cache(self._cache)
        return engine.create_execution_context(self._config)

    def forget(self) -> None:
        """Let go of what the engine made."""
        self._cache = self._config = None

    def keep(self) -> tuple[str, ...]:
        """Write what was compiled since; return a note where that could not be."""
        if self._cache is None:
            return ()
        data = bytes(self._cache.serialize())
        if data == self._before:
            return ()
        try:
            path = self._path()
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_output(path) as temporary:
                temporary.write_bytes(data)
            forget_old()
        except OSError as error:
            return (f"compiled kernels are not kept: {error}",)
        return ()

    def _path(self) -> Path:
        return cache_folder() / self._library.kind / f"kernels-{self._engine_sha256}.cache"


def _tensor_specs(
    trt: Any, engine: Any, name: str
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Read what goes in and out of an engine."""
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    for index in range(engine.num_io_tensors):
        tensor = engine.get_tensor_name(index)
        dtype = _DTYPES.get(engine.get_tensor_dtype(tensor).name)
        if dtype is None or engine.get_tensor_location(tensor) != trt.TensorLocation.DEVICE:
            raise RunnerError(
                f"{name}: {tensor} is of a kind that this runner does not know",
                code="tensor-unknown",
            )
        shape = tuple("?" if size < 0 else int(size) for size in engine.get_tensor_shape(tensor))
        is_input = engine.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT
        (inputs if is_input else outputs).append(TensorSpec(tensor, shape, dtype))
    return tuple(inputs), tuple(outputs)


def _why_no_engines(kind: TensorRTKind, bundle: Bundle, gpu: Gpu) -> str:
    """Describe why a bundle has no engines for a GPU, from its records; empty where it has them."""
    try:
        library = open_library(kind)
        if not library.builds_for(gpu.architecture):
            return f"{library.label} {library.version} has no engines for {gpu.architecture} GPUs"
        require_engines(bundle, kind, library.version, gpu.architecture)
    except (BundleError, MissingDependencyError) as error:
        return str(error)
    return ""


def _spec(kind: TensorRTKind) -> RunnerSpec:
    return RunnerSpec(
        kind=kind,
        device="cuda",
        libraries=(TENSORRT_LABELS[kind], "CuPy"),
        open_graphs=partial(_open_engine, kind),
        precisions=precision_of_graphs,
        auto_reason=f"the bundle has {kind} engines for it",
        why_no_engines=partial(_why_no_engines, kind),
    )


TENSORRT: Final = _spec("tensorrt")
TENSORRT_RTX: Final = _spec("tensorrt-rtx")
