"""OpenVINO on the CPU."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medals_rt.arrays import Array
from medals_rt.errors import InputError, MissingDependencyError, MissingFileError, RunnerError
from medals_rt.runners.base import (
    Precision,
    RunnerKind,
    TensorSpec,
    check_feeds,
    check_precision,
    thread_limit,
)
from medals_rt.runners.openvino_cache import compiled_file, keep_compiled, mark_used

INSTALL = "OpenVINO is not installed: pip install 'medals-rt[cpu]'"
HANDED_OVER = frozenset({"features", "refined"})
"""Values that only the next graph reads: chains pass them on in the arithmetic's own type."""

_OUTPUT_NODE = "/sink_port_0"  # as the library itself tells an output's node from its tensor
# Part of a compiled graph's key: to be raised when graphs are joined in another way.
_JOINED_BY = 2
_HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16"}
_DTYPES = {
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "i64": "int64",
    "i32": "int32",
    "boolean": "bool",
}


@dataclass(frozen=True, eq=False)
class HandedOver:
    """A value in a type that NumPy has not, such as bf16; for another graph to read."""

    tensor: Any
    shape: tuple[int, ...]
    dtype: str


class OpenVINORunner:
    """One ONNX graph, or several joined into one, compiled by OpenVINO for the CPU; see `Runner`.

    Arrays are NumPy's. Each run writes into arrays made for it, which are the caller's own; the
    library refers to the last run's until the next, so their memory is free one run later.

    Parameters
    ----------
    graph_paths
        An ONNX file, or several: an input of a later one that has the name of an earlier one's
        output is fed by it, inputs of one name are one, and what no later graph reads is given
        back. The library then optimizes across them: what one hands to the next stays in the
        processor's own layout and precision.
    name
        For messages.
    precision, threads
        As for `open_runner`.
    cache_key
        Names the graphs' content; the compiled form is kept under it. None keeps nothing.
    hand_over
        In bf16, take and give `HANDED_OVER` values as bf16 tensors (`HandedOver`) instead of
        float32 arrays: half the memory, and no conversion.
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
        hand_over: bool = False,
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
        core = openvino.Core()
        self.precision = _precision(core, check_precision(precision))
        hand_over = hand_over and self.precision == "bf16"
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
                    hand_over,
                    limit,
                )
                kept, self.notes = compiled_file(parts)
            if kept is not None:
                self._compiled = self._reopened(core, kept, config)
            if self._compiled is None:
                model = join_graphs(paths)
                if hand_over:
                    model = _with_bf16(model, HANDED_OVER)
                self._compiled = core.compile_model(model, "CPU", config)
                if kept is not None:
                    self.notes += keep_compiled(kept, self._compiled.export_model)
            self.threads = int(self._compiled.get_property("INFERENCE_NUM_THREADS"))
            self._request = self._compiled.create_infer_request()
        except RuntimeError as error:
            raise RunnerError(f"OpenVINO refused {name}: {_reason(error)}") from error
        self.inputs = _specs(self._compiled.inputs)
        self.outputs = _specs(self._compiled.outputs)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute all outputs; see `Runner.run`."""
        free = check_feeds(self.name, self.inputs, feeds)
        results: dict[str, Array] = {}
        try:
            for spec in self.outputs:
                shape = tuple(size if isinstance(size, int) else free for size in spec.shape)
                results[spec.name], tensor = self._output(spec, shape)
                self._request.set_tensor(spec.name, tensor)
            inputs = {
                name: value.tensor if isinstance(value, HandedOver) else np.ascontiguousarray(value)
                for name, value in feeds.items()
            }
            self._request.infer(inputs, share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            raise RunnerError(f"OpenVINO failed in {self.name}: {_reason(error)}") from error
        return results

    def release(self) -> None:
        """Give back the memory that the library keeps between runs; the next run takes it anew."""
        self._request = None
        self._compiled.release_memory()
        self._request = self._compiled.create_infer_request()

    def close(self) -> None:
        """Let go of the compiled graph."""
        self._request = self._compiled = None
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

    def _output(self, spec: TensorSpec, shape: tuple[Any, ...]) -> tuple[Array, Any]:
        """Make what one output is written to: the result, and the library's view of it."""
        if spec.dtype == "bfloat16":
            tensor = self._library.Tensor(self._library.Type.bf16, self._library.Shape(shape))
            return HandedOver(tensor, shape, spec.dtype), tensor
        array = np.empty(shape, spec.dtype)
        return array, self._library.Tensor(array, shared_memory=True)


def join_graphs(paths: Sequence[Path]) -> Any:
    """Read ONNX graphs and make one `openvino.Model` of them, fed as `OpenVINORunner` says.

    Where one graph fixes the number of prompts, what comes from another is given that shape, and
    the other keeps its own free. Fixing all would be simpler, but compiled in bf16 for as many
    prompts as it has attention heads, a query decoder gives a `T` that is up to a tenth wrong
    (OpenVINO 2026.4).
    """
    openvino = import_openvino()
    core = openvino.Core()
    made: dict[str, Any] = {}
    read: set[str] = set()
    parameters: dict[str, Any] = {}
    for path in paths:
        graph = core.read_model(str(path))
        for parameter in graph.get_parameters():
            name = parameter.output(0).get_any_name()
            source = made.get(name)
            if source is None and name in parameters:
                source = parameters[name].output(0)
            if source is None:
                parameters[name] = parameter
            else:
                parameter.output(0).replace(_of_width(source, parameter))
                read.add(name)
        for output in graph.outputs:
            made[output.get_any_name()] = output.get_node().input_value(0)
    outputs = {name: value for name, value in made.items() if name not in read}
    model = openvino.Model(
        [openvino.op.Result(value) for value in outputs.values()],
        list(parameters.values()),
        " + ".join(path.stem for path in paths),
    )
    model.validate_nodes_and_infer_types()
    return _named(model, list(outputs))


def import_openvino() -> Any:
    """Import OpenVINO, or say what installs it."""
    try:
        import openvino
    except ImportError as error:
        raise MissingDependencyError(INSTALL) from error
    return openvino


def precisions() -> tuple[Precision, ...]:
    """Precisions that this processor computes in, the one taken unasked first.

    OpenVINO itself is asked what is native: bf16 needs AMX or AVX512-BF16.
    """
    return _native(import_openvino().Core())


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


def _with_bf16(model: Any, names: frozenset[str]) -> Any:
    """Make inputs and outputs of these names bf16."""
    openvino = import_openvino()
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(model)
    for ports, ask in ((model.inputs, steps.input), (model.outputs, steps.output)):
        for name in [port.get_any_name() for port in ports]:
            if name in names:
                ask(name).tensor().set_element_type(openvino.Type.bf16)
    outputs = [port.get_any_name() for port in model.outputs]
    return _named(steps.build(), outputs)


def _named(model: Any, outputs: Sequence[str]) -> Any:
    """Give a model's outputs their names, on tensor and node, where the library loses them."""
    for port, name in zip(model.outputs, outputs, strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_friendly_name(name + _OUTPUT_NODE)
    return model


def _of_width(source: Any, parameter: Any) -> Any:
    """Give what comes from one graph the number of prompts that the next one fixes."""
    wanted = parameter.get_partial_shape()
    if source.get_partial_shape().is_static or wanted.is_dynamic:
        return source
    from openvino import opset13

    return opset13.reshape(source, list(wanted.to_shape()), special_zero=False).output(0)


def _specs(ports: Sequence[Any]) -> tuple[TensorSpec, ...]:
    # a tensor next to a cast of no effect also has the cast's name: the node's name is the one
    return tuple(
        TensorSpec(
            port.get_node().get_friendly_name().removesuffix(_OUTPUT_NODE),
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
