"""TensorRT and TensorRT-RTX engines, run through CuPy.

Written against the libraries' documented interface (TensorRT 10.13 to 11.4, TensorRT-RTX 1.4 to
1.7, CuPy 13.4 and 14). Nothing here has been run on a card: the tests run it on stand-ins for both
libraries, and those marked `gpu` are ready to run on one.
"""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medals_rt.bundle.engines import ENGINE_FOLDER, Engine, Wanted, find_engine
from medals_rt.bundle.manifest import MANIFEST_FILE, file_sha256
from medals_rt.common.atomic_io import atomic_output
from medals_rt.common.cache_dir import cache_folder, forget_old, mark_used
from medals_rt.common.choices import Precision, RunnerKind, TensorRTKind
from medals_rt.common.errors import BundleError, MissingFileError, RunnerError
from medals_rt.common.gpu import require_gpu
from medals_rt.common.typing import Array
from medals_rt.runners.base import TensorSpec, check_feeds, check_precision
from medals_rt.runners.cuda import (
    Ordering,
    device_inputs,
    device_outputs,
    import_cupy,
    runner_stream,
)
from medals_rt.runners.engine_check import ensure_tried
from medals_rt.runners.tensorrt_library import Library, open_library

_KEPT_CUDA_GRAPHS = 8
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT64": "int64",
    "INT32": "int32",
    "BOOL": "bool",
}


def open_engine(
    kind: TensorRTKind,
    graph_path: Path,
    *,
    name: str,
    precision: str | None = None,
    graph_sha256: str | None = None,
    cuda_graphs: bool = False,
) -> "TensorRTRunner":
    """Find the engine of a bundle's graph, try it if it is new, and open it.

    Parameters
    ----------
    kind
        Which of the two libraries.
    graph_path
        A bundle's ONNX file; the engine lies in the bundle's folder `engines`.
    name
        The graph's name, for messages.
    precision
        "fp32", "fp16" or "bf16", to be sure of it; None takes the graph's own.
    graph_sha256
        The graph's hash; None has it computed.
    cuda_graphs
        See `TensorRTRunner`.

    Raises
    ------
    MissingDependencyError
        If the library, CuPy or a card is missing.
    MissingFileError
        If there is no graph.
    BundleError
        If it is in no bundle, or no engine fits, or the engine's file is damaged.
    RunnerError
        If the engine failed when it was tried, or is refused.
    """
    if not graph_path.is_file():
        raise MissingFileError(f"there is no graph {graph_path}")
    folder = next((each for each in graph_path.parents if (each / MANIFEST_FILE).is_file()), None)
    if folder is None:
        raise BundleError(f"{graph_path} lies in no bundle, so there is no engine of it")
    library = open_library(kind)
    card = require_gpu(f"{library.label}")
    wanted = Wanted(
        graph_sha256=graph_sha256 or file_sha256(graph_path),
        library=kind,
        version=library.version,
        architecture=card.architecture,
        precision=check_precision(precision),
    )
    engine = find_engine(folder / ENGINE_FOLDER, wanted, name)
    notes = ensure_tried(engine, name)
    runner = TensorRTRunner(engine, library, name=name, cuda_graphs=cuda_graphs)
    runner.notes += notes
    return runner


class TensorRTRunner:
    """One engine of TensorRT or TensorRT-RTX on the current card; see `Runner`.

    Arrays are CuPy's, on its current device. Inputs are read where they are; a view that is not
    contiguous is copied on the card first. Outputs are new arrays from CuPy's pool that belong to
    the caller, or arrays that the caller gives to be written into. Work is queued on a stream that
    runners share and ordered by events against the caller's current stream: `run` returns before
    the card is done, and nothing waits on the processor, but for the capture of a CUDA graph.

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
        If CuPy or a card is missing.
    RunnerError
        If the library refuses the engine.
    """

    device = "cuda"
    threads = 0

    def __init__(
        self, engine: Engine, library: Library, *, name: str, cuda_graphs: bool = False
    ) -> None:
        data = engine.read()
        self._cupy = import_cupy()
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
            raise RunnerError(f"{library.label} refused {engine.path}: {library.take_errors()}")
        self._kernels = KernelCache(engine, library)
        self._context = self._kernels.open_context(self._engine)
        if self._context is None:
            raise RunnerError(f"{library.label} can't run {engine.path}: {library.take_errors()}")
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
            raise RunnerError(f"{self.name} was closed")
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
            f"{counts.most}; give fewer at once, or build with a recipe that allows more"
        )

    def _set_shapes(self, arrays: Mapping[str, Array], results: Mapping[str, Array]) -> None:
        """Tell the context the inputs' shapes, and hold the outputs' to what it makes of them."""
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
                    f"expected {tuple(array.shape)}"
                )
        if self._graphs is None:
            self._scratch_bytes = int(self._context.update_device_memory_size_for_shapes())

    def _set_addresses(self, arrays: Mapping[str, Array]) -> list[int]:
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
                f"{self._library.label} failed in {self.name}: {self._library.take_errors()}"
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
            f"{self._library.label} refused {what} in {self.name}: {self._library.take_errors()}"
        )


class KernelCache:
    """Opens an engine's context; for TensorRT-RTX with the kernels compiled by earlier processes.

    TensorRT-RTX compiles an engine for the card when it is first run. What was compiled is kept in
    the user's cache folder, as much as `caches.KEPT_BYTES` allows, and the library itself refuses
    what is of another version, card or driver. Kernels for the shapes of a run are compiled before
    it, not beside it: else the first runs would use other kernels than later ones, and one case
    could give two results.
    """

    def __init__(self, engine: Engine, library: Library) -> None:
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
                self._before = b""  # of another card or driver: compiled anew, and then replaced
                self._library.log.errors.clear()
        self._config.set_runtime_cache(self._cache)
        return engine.create_execution_context(self._config)

    def forget(self) -> None:
        """Let go of what the engine made."""
        self._cache = self._config = None

    def keep(self) -> tuple[str, ...]:
        """Write what was compiled since; give a note where that could not be."""
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
            raise RunnerError(f"{name}: {tensor} is of a kind that this runner does not know")
        shape = tuple("?" if size < 0 else int(size) for size in engine.get_tensor_shape(tensor))
        is_input = engine.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT
        (inputs if is_input else outputs).append(TensorSpec(tensor, shape, dtype))
    return tuple(inputs), tuple(outputs)
