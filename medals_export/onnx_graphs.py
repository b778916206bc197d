"""PyTorch modules to ONNX graphs.

Tracing works on shapes alone (no forward pass), so a full-size network exports in seconds.
"""

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import onnx
import torch
from onnx import shape_inference
from torch import nn

from medals_export.graph_checks import PROMPT_AXIS, check_graph
from medals_export.graph_plans import EXAMPLE_PROMPTS, GraphPlan
from medals_export.quantization.layers import FUSION
from medals_export.quantization.qdq import quantize_convolutions
from medals_rt.common.errors import ExportError
from medals_rt.common.limits import MAX_PROMPTS


def trace(plans: Iterable[GraphPlan]) -> Iterator[tuple[GraphPlan, onnx.ModelProto]]:
    """Turn plans into ONNX graphs and check them, one after another.

    Plans in a row that share a module are traced once: their graphs differ in the number of prompts
    alone.

    Raises
    ------
    ExportError
        If the tracer fails, or what it gives breaks the graph contract (see `check_graph`).
    """
    shared: onnx.ModelProto | None = None
    last: nn.Module | None = None
    for plan in plans:
        if shared is None or plan.module is not last:
            shared, last = _trace_free(plan), plan.module
        model = shared if plan.width is None else _with_width(shared, plan.width)
        check_graph(model, plan)
        yield plan, model


def _trace_free(plan: GraphPlan) -> onnx.ModelProto:
    """Trace a module with the number of prompts free, whatever the plan's width."""
    prompts = torch.export.Dim(PROMPT_AXIS, min=1, max=MAX_PROMPTS)
    shapes = tuple({0: prompts} if name in plan.prompt_inputs else {} for name in plan.inputs)
    examples = tuple(
        torch.empty(EXAMPLE_PROMPTS, *tensor.shape[1:], dtype=tensor.dtype)
        if name in plan.prompt_inputs
        else tensor
        for name, tensor in plan.inputs.items()
    )
    model = trace_module(
        plan.module,
        examples,
        plan.name,
        inputs=list(plan.inputs),
        outputs=list(plan.outputs),
        dynamic_shapes=shapes,
        opset=plan.arithmetic.opset,
    )
    if plan.arithmetic.number_format is not None:
        found = quantize_convolutions(model, plan.ranges, plan.arithmetic.number_format)
        if missing := _layers_of(plan) - found:
            raise ExportError(
                f"{plan.name} lacks layers that were to be quantized: {', '.join(sorted(missing))}",
                code="layer-not-found",
            )
    return model


def _layers_of(plan: GraphPlan) -> set[str]:
    """Return which of the layers to quantize a graph must have."""
    if plan.name == "image_encoder":
        return {*plan.ranges} - {FUSION}
    return {*plan.ranges} & {FUSION} if "features" in plan.inputs else set()


def trace_module(
    module: nn.Module,
    examples: tuple[torch.Tensor, ...],
    name: str,
    *,
    inputs: list[str],
    outputs: list[str],
    dynamic_shapes: tuple[dict[int, torch.export.Dim], ...],
    opset: int,
) -> onnx.ModelProto:
    """Turn a module into ONNX, without what only tells how; `name` is for messages.

    Raises
    ------
    ExportError
        If the tracer fails.
    """
    with quiet_tracer():
        try:
            program = torch.onnx.export(
                module,
                examples,
                dynamo=True,
                opset_version=opset,
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=dynamic_shapes,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ExportError(
                f"{name} could not be traced: {str(error).splitlines()[0]}",
                code="trace-failed",
            ) from error
    if program is None:
        raise ExportError(
            f"{name} could not be traced: the exporter gave nothing", code="trace-failed"
        )
    model: onnx.ModelProto = program.model_proto
    _strip_origins(model)
    return model


def _with_width(shared: onnx.ModelProto, width: int) -> onnx.ModelProto:
    """Return a graph the number of prompts as a value, and the shapes that follow from it."""
    model = onnx.ModelProto()
    model.CopyFrom(shared)
    for value in (*model.graph.input, *model.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param == PROMPT_AXIS:
                axis.dim_value = width
    del model.graph.value_info[:]
    return shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def _strip_origins(model: onnx.ModelProto) -> None:
    """Take out what only tells how a graph was traced.

    The tracer notes source lines and folders of this machine at every node; without them the same
    weights give the same bytes anywhere.
    """
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    for item in (*model.graph.node, *model.graph.initializer, *model.graph.value_info):
        del item.metadata_props[:]
        item.doc_string = ""
    for item in (*model.graph.input, *model.graph.output):
        del item.metadata_props[:]
        item.doc_string = ""


@contextmanager
def quiet_tracer() -> Iterator[None]:
    """Keep the tracer's own remarks off the user's screen; they concern its internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*The axis name: N will not be used.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        torch.backends.mha.set_fastpath_enabled(value=False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(value=fastpath)
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
