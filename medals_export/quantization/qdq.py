"""Quantization as ONNX says it: `QuantizeLinear` and `DequantizeLinear` around convolutions.

Every library reads these: one that has such convolutions computes them in 8 bits, another computes
the same values in floats. What a convolution reads has one scale, its weights one for each output
channel; zero points are zero, as TensorRT wants them. Biases and results stay float32: an
InstanceNorm reads them.
"""

from collections.abc import Mapping

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from medals_export.quantization.layers import FUSION
from medals_export.quantization.number_format import NumberFormat, weight_scales

_FEATURE_WEIGHT = "feature_weight"  # of `graph_modules.Fusion`


def quantize_convolutions(
    model: onnx.ModelProto, ranges: Mapping[str, float], number_format: NumberFormat
) -> frozenset[str]:
    """Put Q/DQ around those convolutions of a graph that are among the layers, in place.

    Parameters
    ----------
    model
        A graph whose quantized convolutions are float32, see `arithmetic.half_network`.
    ranges
        By layer: the largest absolute value of what it reads.

    Returns
    -------
    frozenset of str
        The layers that the graph has.
    """
    graph = model.graph
    weights = {item.name: item for item in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    found: set[str] = set()
    for node in graph.node:
        layer = _layer_of(node, ranges) if node.op_type == "Conv" else None
        if layer is None or node.input[1] not in weights:
            nodes.append(node)
            continue
        found.add(layer)
        name = node.input[1]
        pair, constants = _input_pair(node.input[0], name, ranges[layer], number_format)
        restored, stored = _weight(weights.pop(name), number_format)
        node.input[0], node.input[1] = pair[-1].output[0], restored.output[0]
        nodes += [*pair, restored, node]
        weights |= {item.name: item for item in (*constants, *stored)}
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights.values())
    return frozenset(found)


def _layer_of(convolution: onnx.NodeProto, ranges: Mapping[str, float]) -> str | None:
    """Return the layer that a convolution is, by the name of its weights; None for no such one."""
    path = convolution.input[1]
    if path.endswith(_FEATURE_WEIGHT):
        return FUSION if FUSION in ranges else None
    return next((layer for layer in ranges if path.endswith(f"{layer}.weight")), None)


def _input_pair(
    value: str, name: str, largest: float, number_format: NumberFormat
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    scale = number_format.scale(torch.tensor(largest, dtype=torch.float32))
    constants = [
        numpy_helper.from_array(scale.numpy(), f"{name}.input_scale"),
        onnx.helper.make_tensor(
            f"{name}.input_zero", number_format.onnx_type, (), bytes(1), raw=True
        ),
    ]
    how = [each.name for each in constants]
    codes, values = f"{name}.input_codes", f"{name}.input_values"
    return [
        onnx.helper.make_node("QuantizeLinear", [value, *how], [codes], f"quantize.{name}"),
        onnx.helper.make_node("DequantizeLinear", [codes, *how], [values], f"dequantize.{name}"),
    ], constants


def _weight(
    item: onnx.TensorProto, number_format: NumberFormat
) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
    weight = torch.from_numpy(numpy_helper.to_array(item).astype(np.float32))
    scales = weight_scales(weight, number_format)
    codes = number_format.codes(weight, scales)
    raw = codes.view(torch.uint8).numpy().tobytes()
    count, kind = len(weight), number_format.onnx_type
    stored = [
        onnx.helper.make_tensor(f"{item.name}.codes", kind, weight.shape, raw, raw=True),
        numpy_helper.from_array(scales.flatten().numpy(), f"{item.name}.scales"),
        onnx.helper.make_tensor(f"{item.name}.zeros", kind, (count,), bytes(count), raw=True),
    ]
    return (
        onnx.helper.make_node(
            "DequantizeLinear",
            [each.name for each in stored],
            [item.name],
            f"dequantize.weight.{item.name}",
            axis=0,
        ),
        stored,
    )
