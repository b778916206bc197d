"""OpenVINO on the CPU."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from medals_rt.common.cache_dir import mark_used
from medals_rt.common.choices import Precision, RunnerKind
from medals_rt.common.errors import InputError, MissingFileError, RunnerError
from medals_rt.common.heap import trim_heap
from medals_rt.common.typing import Array
from medals_rt.runners.base import (
    Device,
    OpenRequest,
    Runner,
    RunnerSpec,
    TensorSpec,
    check_feeds,
    thread_limit,
)
from medals_rt.runners.openvino_cache import compiled_file, keep_compiled
from medals_rt.runners.openvino_graphs import (
    arrange,
    import_openvino,
    join_graphs,
    port_name,
    shared_core,
)

# Part of a compiled graph's key: to be raised when graphs are joined or arranged differently.
_JOINED_BY = 5
_HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16"}
_DTYPES = {
    "f32": "float32",
    "f16": "float16",
    "bf16": "uint16",  # its bits: NumPy has no such type
    "i64": "int64",
    "i32": "int32",
    "boolean": "bool",
}


class OpenVINORunner(Runner):
    """One ONNX graph, or several joined into one, compiled by OpenVINO for the CPU; see `Runner`.

    Arrays are NumPy's. Each run is a request of its own, so that the arrays which it returns are
    the caller's own, and the library keeps none that it was given.

    Of several graphs, an input of a later one that has the name of an earlier one's output is fed
    by it, inputs of one name are one, and what no later graph reads is returned. The library then
    optimizes across them: what one hands to the next stays in the processor's own layout and
    precision. `prompt_features` of `adapted_queries` made before is looked up by the input
    `prompt_index` (see `openvino_graphs.PROMPT_INDEX`).

    Joined graphs in bf16 are arranged for speed (`openvino_graphs.arrange_for_bf16`), and take and
    return what one chain of graphs hands to the next (`HANDED_OVER` there) as `(1, H, W, D, C)`
    bf16, whose bits are NumPy's uint16: half the memory, and neither converted nor transposed.

    The compiled form is kept in the user's cache folder under the request's `cache_key`.
    """

    kind: RunnerKind = "openvino"
    device: Device = "cpu"

    def __init__(self, request: OpenRequest) -> None:
        openvino = import_openvino()
        for path in request.graph_paths:
            if not path.is_file():
                raise MissingFileError(f"there is no graph {path}", code="graph-missing")
        self.name = request.name
        self.version: str = openvino.__version__.partition("-")[0]
        self.notes: tuple[str, ...] = ()
        self._library = openvino
        self._mapped: Any = None
        core = shared_core()
        self.precision = _precision(core, request.precision)
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
        }
        limit = thread_limit(request.threads)
        if limit:
            config["INFERENCE_NUM_THREADS"] = limit
        try:
            self._compiled: Any = None
            kept = None
            if request.cache_key is not None:
                processor = core.get_property("CPU", "FULL_DEVICE_NAME")
                parts = (
                    _JOINED_BY,
                    request.cache_key,
                    self.version,
                    processor,
                    self.precision,
                    request.joined,
                    limit,
                )
                kept, self.notes = compiled_file(parts)
            if kept is not None:
                self._compiled = self._reopened(core, kept, config)
            if self._compiled is None:
                joined = join_graphs(request.graph_paths)
                model = arrange(joined, self.precision, chained=request.joined)
                self._compiled = core.compile_model(model, "CPU", config)
                if kept is not None:
                    self.notes += keep_compiled(kept, self._compiled.export_model)
            self.threads = int(self._compiled.get_property("INFERENCE_NUM_THREADS"))
        except RuntimeError as error:
            raise RunnerError(
                f"OpenVINO refused {self.name}: {_reason(error)}", code="graph-refused"
            ) from error
        self.inputs = _specs(self._compiled.inputs)
        self.outputs = _specs(self._compiled.outputs)
        ports = (*self._compiled.inputs, *self._compiled.outputs)
        self._types = {port_name(port): port.get_element_type() for port in ports}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute all outputs; see `Runner.run`."""
        check_feeds(self.name, self.inputs, feeds)
        results: dict[str, Array] = {}
        try:
            request = self._compiled.create_infer_request()
            for spec in self.outputs:
                shape = tuple(size for size in spec.shape if isinstance(size, int))
                if len(shape) == len(spec.shape):
                    results[spec.name] = np.empty(shape, spec.dtype)
                    request.set_tensor(spec.name, self._tensor(spec.name, results[spec.name]))
            inputs = {
                name: self._tensor(name, np.ascontiguousarray(value))
                for name, value in feeds.items()
            }
            request.infer(inputs, share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            raise RunnerError(
                f"OpenVINO failed in {self.name}: {_reason(error)}", code="run-failed"
            ) from error
        # an output of free size that is set would be written elsewhere first, and then copied
        for spec in self.outputs:
            if spec.name not in results:
                results[spec.name] = request.get_tensor(spec.name).data
        return results

    def release(self) -> None:
        """Return the memory that the library keeps between runs; the next run takes it again."""
        self._compiled.release_memory()
        trim_heap()

    def close(self) -> None:
        """Let go of the compiled graph."""
        self._compiled = None
        self._mapped = None

    def _reopened(self, core: Any, kept: Path, config: dict[str, Any]) -> Any | None:
        """Open a compiled form that an earlier process left; None where there is none that fits.

        The file is mapped, not read: its pages are shared with the system's cache. The library
        reads weights from there whenever it runs, so the mapping lives as long as the graph.
        """
        if not kept.is_file():
            return None
        try:
            content = np.memmap(kept, np.uint8, mode="c")
            tensor = self._library.Tensor(content, shared_memory=True)
            compiled = core.import_model(tensor, "CPU", config)
        except (OSError, ValueError, RuntimeError) as error:
            self.notes = (f"a compiled graph could not be used and was made again: {error}",)
            return None
        mark_used(kept)
        self._mapped = tensor, content
        return compiled

    def _tensor(self, name: str, array: Array) -> Any:
        """Return the library's view of an array, in the type of an input or output."""
        return self._library.Tensor(array, self._library.Shape(array.shape), self._types[name])


def _precisions(_: Precision) -> tuple[Precision, ...]:
    """Return what this processor computes in, as OpenVINO says; bf16 needs AMX or AVX512-BF16."""
    return _native(shared_core())


def _native(core: Any) -> tuple[Precision, ...]:
    native = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("bf16", "fp32") if native else ("fp32",)


def _precision(core: Any, asked: Precision | None) -> Precision:
    """Choose bf16 where the processor computes in it natively, else fp32, unless one is asked."""
    if asked == "fp16":
        raise InputError(
            "OpenVINO is far slower in fp16 on a CPU; use precision bf16 or fp32",
            code="precision-unsupported",
        )
    offered = _native(core)
    if asked is not None and asked not in offered:
        raise RunnerError(
            f"this processor has no {asked} arithmetic (bf16 needs AMX or AVX512-BF16); "
            "use precision fp32",
            code="precision-not-native",
        )
    return asked or offered[0]


def _specs(ports: Sequence[Any]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            port_name(port),
            tuple(
                axis.get_length() if axis.is_static else "?" for axis in port.get_partial_shape()
            ),
            _DTYPES.get(
                port.get_element_type().get_type_name(), port.get_element_type().get_type_name()
            ),
        )
        for port in ports
    )


def _reason(error: Exception) -> str:
    """Return the last line that says something; the ones before it name source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


OPENVINO: Final = RunnerSpec(
    kind="openvino",
    device="cpu",
    libraries=("OpenVINO",),
    open_graphs=OpenVINORunner,
    precisions=_precisions,
    auto_reason="OpenVINO is installed, the fastest on a CPU",
    joins_graphs=True,
)
