"""OpenVINO on the CPU."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medals_rt.common.cache_dir import mark_used
from medals_rt.common.choices import Precision, RunnerKind
from medals_rt.common.errors import InputError, MissingFileError, RunnerError
from medals_rt.common.typing import Array
from medals_rt.runners.base import TensorSpec, check_feeds, check_precision, thread_limit
from medals_rt.runners.openvino_cache import compiled_file, keep_compiled
from medals_rt.runners.openvino_graphs import (
    arrange,
    import_openvino,
    join_graphs,
    port_name,
    shared_core,
)

# Part of a compiled graph's key: to be raised when graphs are joined or arranged in another way.
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


class OpenVINORunner:
    """One ONNX graph, or several joined into one, compiled by OpenVINO for the CPU; see `Runner`.

    Arrays are NumPy's. Each run is a request of its own, so that the arrays which it gives are the
    caller's own, and the library keeps none that it was given.

    Parameters
    ----------
    graph_paths
        An ONNX file, or several: an input of a later one that has the name of an earlier one's
        output is fed by it, inputs of one name are one, and what no later graph reads is given
        back. The library then optimizes across them: what one hands to the next stays in the
        processor's own layout and precision. `prompt_features` of `adapted_queries` made before is
        looked up by the input `prompt_index` (see `openvino_graphs.PROMPT_INDEX`).
    name
        For messages.
    precision, threads
        As for `open_runner`.
    cache_key
        Names the graphs' content; the compiled form is kept under it. None keeps nothing.
    chained
        In bf16, arrange graphs for speed (`openvino_graphs.arrange_for_bf16`), and take and give
        what one chain of graphs hands to the next (`HANDED_OVER` there) as `(1, H, W, D, C)` bf16,
        whose bits are NumPy's uint16: half the memory, and neither converted nor turned around.
    """

    kind: RunnerKind = "openvino"
    device = "cpu"

    def __init__(
        self,
        graph_paths: Path | Sequence[Path],
        *,
        name: str,
        precision: str | None = None,
        threads: int | None = None,
        cache_key: str | None = None,
        chained: bool = False,
    ) -> None:
        openvino = import_openvino()
        paths = (graph_paths,) if isinstance(graph_paths, Path) else tuple(graph_paths)
        for path in paths:
            if not path.is_file():
                raise MissingFileError(f"there is no graph {path}")
        self.name = name
        self.version: str = openvino.__version__.partition("-")[0]
        self.notes: tuple[str, ...] = ()
        self._library = openvino
        self._mapped: Any = None
        core = shared_core()
        self.precision = _precision(core, check_precision(precision))
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
        }
        limit = thread_limit(threads)
        if limit:
            config["INFERENCE_NUM_THREADS"] = limit
        try:
            self._compiled: Any = None
            kept = None
            if cache_key is not None:
                processor = core.get_property("CPU", "FULL_DEVICE_NAME")
                parts = (
                    _JOINED_BY,
                    cache_key,
                    self.version,
                    processor,
                    self.precision,
                    chained,
                    limit,
                )
                kept, self.notes = compiled_file(parts)
            if kept is not None:
                self._compiled = self._reopened(core, kept, config)
            if self._compiled is None:
                model = arrange(join_graphs(paths), self.precision, chained=chained)
                self._compiled = core.compile_model(model, "CPU", config)
                if kept is not None:
                    self.notes += keep_compiled(kept, self._compiled.export_model)
            self.threads = int(self._compiled.get_property("INFERENCE_NUM_THREADS"))
        except RuntimeError as error:
            raise RunnerError(f"OpenVINO refused {name}: {_reason(error)}") from error
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
            raise RunnerError(f"OpenVINO failed in {self.name}: {_reason(error)}") from error
        # an output of free size that is set would be written elsewhere first, and then copied
        for spec in self.outputs:
            if spec.name not in results:
                results[spec.name] = request.get_tensor(spec.name).data
        return results

    def release(self) -> None:
        """Give back the memory that the library keeps between runs; the next run takes it anew."""
        self._compiled.release_memory()

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
        """Give the library's view of an array, in the type of an input or output."""
        return self._library.Tensor(array, self._library.Shape(array.shape), self._types[name])


def precisions() -> tuple[Precision, ...]:
    """Precisions that this processor computes in, the one taken unasked first.

    OpenVINO itself is asked what is native: bf16 needs AMX or AVX512-BF16.
    """
    return _native(shared_core())


def _native(core: Any) -> tuple[Precision, ...]:
    native = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("bf16", "fp32") if native else ("fp32",)


def _precision(core: Any, asked: Precision | None) -> Precision:
    """Choose bf16 where the processor computes in it natively, else fp32, unless told."""
    if asked == "fp16":
        raise InputError("OpenVINO is far slower in fp16 on a CPU; use precision bf16 or fp32")
    offered = _native(core)
    if asked is not None and asked not in offered:
        raise RunnerError(
            f"this processor has no {asked} arithmetic (bf16 needs AMX or AVX512-BF16); "
            "use precision fp32"
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
    """Give the last line that says something; the ones before it name source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
