"""What every exported graph is held to before it is written."""

from collections.abc import Iterable

import numpy as np
import onnx
import torch
from onnx import TensorProto, shape_inference

from medals_export.graph_plans import GraphPlan
from medals_rt.bundle.manifest import TensorRecord
from medals_rt.common.errors import ExportError

PROMPT_AXIS = "N"
ALLOWED_OPERATORS = frozenset(
    {
        "Add",
        "AveragePool",
        "Cast",
        "Concat",
        "Conv",
        "ConvTranspose",
        "DequantizeLinear",
        "Expand",
        "Gelu",
        "Gemm",
        "InstanceNormalization",
        "LayerNormalization",
        "LeakyRelu",
        "MatMul",
        "Mul",
        "QuantizeLinear",
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
# in every precision: sums over many values, and exponentials
_FLOAT32_OPERATORS = frozenset(
    {"AveragePool", "InstanceNormalization", "LayerNormalization", "Sigmoid", "Softmax"}
)
# in the bundle's precision, also where folded refiners compute weights; see `Arithmetic.upsample`
# for transposed convolutions
_PRECISION_OPERATORS = frozenset({"Conv", "Gemm", "MatMul"})
_ONNX_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
}


def check_graph(model: onnx.ModelProto, plan: GraphPlan) -> None:
    """Hold a graph to the contract.

    Raises
    ------
    ExportError
        If the opset is not the arithmetic's, an operator is not among the allowed ones or computes
        in another type than it should, an input or output has another name, type or shape, N is no
        named free dimension where it should be, or ONNX's checker or strict shape inference object.
    """
    check_operators(model, plan.name, plan.arithmetic.opset, ALLOWED_OPERATORS)
    _check_borders(model, plan)
    _check_types(infer_shapes(model, plan.name), plan)


def check_operators(model: onnx.ModelProto, name: str, opset: int, allowed: frozenset[str]) -> None:
    """Hold a graph to one version of ONNX's own operators, and to some of them.

    Raises
    ------
    ExportError
        If the opset is another, or an operator is not among the allowed ones.
    """
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets != {"": opset} or model.functions:
        raise ExportError(
            f"{name} uses operator sets {opsets}, not {opset} alone", code="graph-opset"
        )
    odd = {node.op_type for node in model.graph.node} - allowed
    if odd:
        raise ExportError(
            f"{name} uses operators it should not: {', '.join(sorted(odd))}", code="graph-operator"
        )


def infer_shapes(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return a graph with the shapes that ONNX infers, after its checker has passed it.

    Raises
    ------
    ExportError
        If the checker or strict shape inference object.
    """
    try:
        onnx.checker.check_model(model, full_check=False)
        return shape_inference.infer_shapes(
            model, check_type=True, strict_mode=True, data_prop=True
        )
    except (onnx.checker.ValidationError, shape_inference.InferenceError) as error:
        raise ExportError(
            f"{name} is no valid ONNX graph: {error}", code="graph-invalid"
        ) from error


def _check_borders(model: onnx.ModelProto, plan: GraphPlan) -> None:
    """Compare inputs and outputs with the plan's."""
    free_inputs = plan.prompt_inputs if plan.width is None else frozenset[str]()
    free_outputs = frozenset(plan.outputs) if free_inputs else frozenset[str]()
    for verb, values, tensors, free in (
        ("takes", model.graph.input, plan.inputs, free_inputs),
        ("gives", model.graph.output, plan.outputs, free_outputs),
    ):
        found = tensor_records(values)
        expected = tuple(
            TensorRecord(
                name=name,
                dtype=str(tensor.dtype).removeprefix("torch."),
                shape=(PROMPT_AXIS, *tensor.shape[1:]) if name in free else tuple(tensor.shape),
            )
            for name, tensor in tensors.items()
        )
        if found != expected:
            raise ExportError(
                f"{plan.name} {verb} {found}, the contract says {expected}", code="graph-signature"
            )


def _check_types(model: onnx.ModelProto, plan: GraphPlan) -> None:
    """Compare what operators compute in with the plan's arithmetic; shapes must be inferred."""
    graph = model.graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    types |= {value.name: value.type.tensor_type.elem_type for value in graph.input}
    types |= {item.name: item.data_type for item in graph.initializer}
    restored = {
        name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output
    }
    for operators, dtype in (
        (_FLOAT32_OPERATORS, torch.float32),
        (_PRECISION_OPERATORS, plan.arithmetic.compute),
        (frozenset({"ConvTranspose"}), plan.arithmetic.upsample),
    ):
        for node in graph.node:
            if node.op_type not in operators:
                continue
            wanted = torch.float32 if restored.issuperset(node.input[:2]) else dtype
            found = {types[name] for name in node.input if name}
            if found != {_ONNX_TYPES[wanted]}:
                names = ", ".join(sorted(TensorProto.DataType.Name(each) for each in found))
                raise ExportError(
                    f"{plan.name} of a {plan.arithmetic.precision} bundle computes "
                    f"{node.op_type} {node.name} in {names}, not in {wanted}",
                    code="graph-precision",
                )


def tensor_records(values: Iterable[onnx.ValueInfoProto]) -> tuple[TensorRecord, ...]:
    """Return name, type and shape of a graph's inputs or outputs."""
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
