"""A network to the four ONNX graphs of a stage.

The cuts follow what the run time reuses: one image encoding serves any number of query chunks, and
a window without prompts takes a refiner of half the cost. Tracing works on shapes alone (no forward
pass), so a full-size network exports in seconds.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import onnx
import torch
from onnx import shape_inference
from torch import Tensor, nn

from medals_export.model import MedalS
from medals_rt.errors import ExportError
from medals_rt.manifest import GraphName, TensorRecord

if TYPE_CHECKING:
    from medals_export.model.image_encoder import ConvBlock

OPSET = 20
MAX_PROMPTS = 256
PROMPT_AXIS = "N"
ALLOWED_OPERATORS = frozenset(
    {
        "Add",
        "AveragePool",
        "Cast",
        "Concat",
        "Conv",
        "ConvTranspose",
        "Expand",
        "Gelu",
        "Gemm",
        "InstanceNormalization",
        "LayerNormalization",
        "LeakyRelu",
        "MatMul",
        "Mul",
        "Relu",
        "Reshape",
        "Sigmoid",
        "Softmax",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)


class ImageEncoderGraph(nn.Module):
    """`image`, `foreground` to `features`, `image_embedding`."""

    def __init__(self, network: MedalS) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
        """`(1, 1, H, W, D)` twice to `(1, C, H, W, D)` and `(L, dim)`."""
        features, image_embedding = self.network.encode(image, foreground)
        return features, image_embedding.squeeze(0)


class QueryDecoderGraph(nn.Module):
    """`image_embedding`, `queries` to `adapted_queries`."""

    def __init__(self, network: MedalS) -> None:
        super().__init__()
        self.network = network

    def forward(self, image_embedding: Tensor, queries: Tensor) -> Tensor:
        """`(L, dim)`, `(N, dim)` to `T (N, C)`."""
        adapted = self.network.adapt(image_embedding.unsqueeze(0), queries.unsqueeze(0))
        return adapted.squeeze(0)


class RefinerGraph(nn.Module):
    """`features`, `adapted_queries`, `prompts` to `probabilities`.

    `T^T S_p` and `T F_r` are written as matrix products over flattened voxels, which every
    inference library has a fast kernel for.
    """

    def __init__(self, network: MedalS) -> None:
        super().__init__()
        self.fusion = network.fusion_conv

    def forward(self, features: Tensor, adapted_queries: Tensor, prompts: Tensor) -> Tensor:
        """`(1, C, H, W, D)`, `(N, C)`, `(N, H, W, D)` to `(N, H, W, D)`."""
        spread = (adapted_queries.t() @ prompts.flatten(1)).reshape(features.shape)
        refined = self.fusion(torch.cat([features, spread], dim=1))
        return _probabilities(refined, adapted_queries)


class TextOnlyRefinerGraph(nn.Module):
    """`features`, `adapted_queries` to `probabilities`: the refiner for `S_p = 0`.

    It holds only the half of the convolution's weights that reads the features.
    """

    weight: Tensor

    def __init__(self, network: MedalS) -> None:
        super().__init__()
        block = cast("ConvBlock", network.fusion_conv.convs[0])
        self.register_buffer(
            "weight", block.conv.weight.detach()[:, : network.config.channels].clone()
        )
        self.bias = block.conv.bias
        self.norm = block.norm
        self.activation = block.activation

    def forward(self, features: Tensor, adapted_queries: Tensor) -> Tensor:
        """`(1, C, H, W, D)`, `(N, C)` to `(N, H, W, D)`."""
        fused = nn.functional.conv3d(features, self.weight, self.bias, padding=1)
        refined: Tensor = self.activation(self.norm(fused))
        return _probabilities(refined, adapted_queries)


def _probabilities(refined: Tensor, adapted_queries: Tensor) -> Tensor:
    logits = adapted_queries @ refined.flatten(2).squeeze(0)
    return logits.reshape(-1, *refined.shape[2:]).sigmoid()


@dataclass(frozen=True)
class GraphPlan:
    """One graph to trace: its module, example inputs by name, names of its outputs."""

    name: GraphName
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    prompt_inputs: frozenset[str]


def graph_plans(network: MedalS) -> tuple[GraphPlan, ...]:
    """Give the four graphs of a network, ready to trace.

    The example inputs are uninitialized memory that is never read or written.
    """
    config = network.config
    window, channels, dim = config.window_hwd, config.channels, config.text_dim
    tokens = int(np.prod(config.grid_hwd))
    count = 3  # neither 1 nor another dimension of the graph, so that tracing keeps it apart

    features = torch.empty(1, channels, *window)
    adapted = torch.empty(count, channels)
    return (
        GraphPlan(
            "image_encoder",
            ImageEncoderGraph(network),
            {"image": torch.empty(1, 1, *window), "foreground": torch.empty(1, 1, *window)},
            ("features", "image_embedding"),
            frozenset(),
        ),
        GraphPlan(
            "query_decoder",
            QueryDecoderGraph(network),
            {"image_embedding": torch.empty(tokens, dim), "queries": torch.empty(count, dim)},
            ("adapted_queries",),
            frozenset({"queries"}),
        ),
        GraphPlan(
            "refiner",
            RefinerGraph(network),
            {
                "features": features,
                "adapted_queries": adapted,
                "prompts": torch.empty(count, *window),
            },
            ("probabilities",),
            frozenset({"adapted_queries", "prompts"}),
        ),
        GraphPlan(
            "refiner_text_only",
            TextOnlyRefinerGraph(network),
            {"features": features, "adapted_queries": adapted},
            ("probabilities",),
            frozenset({"adapted_queries"}),
        ),
    )


def trace(plan: GraphPlan) -> onnx.ModelProto:
    """Turn one graph into ONNX, opset 20, with a dynamic number of prompts N, and check it.

    Raises
    ------
    ExportError
        If the tracer fails, or what it gives breaks the graph contract (see `check_graph`).
    """
    prompts = torch.export.Dim(PROMPT_AXIS, min=1, max=MAX_PROMPTS)
    shapes = tuple({0: prompts} if name in plan.prompt_inputs else {} for name in plan.inputs)
    with _quiet():
        try:
            program = torch.onnx.export(
                plan.module.eval(),
                tuple(plan.inputs.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(plan.inputs),
                output_names=list(plan.outputs),
                dynamic_shapes=shapes,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ExportError(
                f"{plan.name} could not be traced: {str(error).splitlines()[0]}"
            ) from error
    if program is None:
        raise ExportError(f"{plan.name} could not be traced: the exporter gave nothing")
    model: onnx.ModelProto = program.model_proto
    strip_origins(model)
    check_graph(model, plan)
    return model


def strip_origins(model: onnx.ModelProto) -> None:
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


def check_graph(model: onnx.ModelProto, plan: GraphPlan) -> None:
    """Hold a graph to the contract.

    Raises
    ------
    ExportError
        If the opset is not 20, an operator is not among the allowed ones, an input or output has
        another name, type or shape, N is no named free dimension, or ONNX's checker or strict
        shape inference object.
    """
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets != {"": OPSET} or model.functions:
        raise ExportError(f"{plan.name} uses operator sets {opsets}, not {OPSET} alone")
    odd = {node.op_type for node in model.graph.node} - ALLOWED_OPERATORS
    if odd:
        raise ExportError(f"{plan.name} uses operators it should not: {', '.join(sorted(odd))}")
    expected = [
        (name, (PROMPT_AXIS, *tensor.shape[1:]) if name in plan.prompt_inputs else (*tensor.shape,))
        for name, tensor in plan.inputs.items()
    ]
    found = [(record.name, record.shape) for record in tensor_records(model.graph.input)]
    if found != expected:
        raise ExportError(f"{plan.name} takes {found}, the contract says {expected}")
    outputs = tensor_records(model.graph.output)
    if tuple(record.name for record in outputs) != plan.outputs:
        raise ExportError(f"{plan.name} gives {outputs}, the contract says {plan.outputs}")
    if plan.prompt_inputs and any(record.shape[0] != PROMPT_AXIS for record in outputs):
        raise ExportError(f"{plan.name} has frozen the number of prompts: it gives {outputs}")
    try:
        onnx.checker.check_model(model, full_check=False)
        shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, shape_inference.InferenceError) as error:
        raise ExportError(f"{plan.name} is no valid ONNX graph: {error}") from error


def tensor_records(values: "list[onnx.ValueInfoProto]") -> tuple[TensorRecord, ...]:
    """Give name, type and shape of a graph's inputs or outputs."""
    return tuple(
        TensorRecord(
            name=value.name,
            dtype=np.dtype(
                onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            ).name,
            shape=tuple(
                axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim
            ),
        )
        for value in values
    )


@contextmanager
def _quiet() -> Iterator[None]:
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
