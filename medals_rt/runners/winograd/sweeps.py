"""Operations that read a large volume, as models that read a few rows of it at a time.

OpenVINO keeps memory for each input of fixed size, and writes it once when a model is opened: for
a volume of a full-size window about a gigabyte, and half a second.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Final

from medals_rt.runners.openvino_graphs import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    import_openvino,
    name_outputs,
)
from medals_rt.runners.winograd.ports import (
    constant_of,
    readers_of,
    values_by_channel,
    volume_of,
)

SWEPT_VOXELS: Final = 1 << 20
"""Smaller volumes are read whole."""

_ROWS_VOXELS: Final = 1 << 19
_BY_VALUE: Final = {"Sigmoid", "Convert"}  # what may follow a product


@dataclass(frozen=True)
class Swept:
    """What is taken out of a graph to be computed a few rows at a time.

    Attributes
    ----------
    source
        Output port that is read, `(1, C, H, W, D)`.
    nodes
        What is taken out.
    step, before, runs
        See `cut.Sweep`.
    other
        Output port of something small that is read too; None for nothing.
    model
        ``model(stored, name, read, output)``: what makes the `openvino.Model` of one run, whose
        input of rows `(1, h, W, D, C)` and output are named so; `read` gives `other`.
    """

    source: Any
    nodes: tuple[Any, ...]
    step: int
    before: int
    runs: int
    other: Any | None
    model: Callable[[Any, str, Any, str], Any]


def strided_convolution(port: Any) -> Swept | None:
    """Recognize a convolution that makes its volume smaller, and its bias."""
    nodes = [port.get_node()]
    bias = None
    volume = volume_of(port)
    if volume is None:
        return None
    if nodes[0].get_type_name() == "Add":
        bias = next((each for each in nodes[0].input_values() if _is_bias(each, volume[0])), None)
        if bias is None:
            return None
        nodes += [
            each.get_node() for each in nodes[0].input_values() if not _is_bias(each, volume[0])
        ]
    node = nodes[-1]
    if node.get_type_name() != "Convolution" or len(readers_of(node.output(0))) != 1:
        return None
    source, weights = node.input_value(0), node.input_value(1)
    read, options = volume_of(source), node.get_attributes()
    if (
        read is None
        or read[1] < SWEPT_VOXELS
        or constant_of(weights) is None
        or options["strides"][0] == 1
        or options["dilations"] != [1, 1, 1]
        or options["auto_pad"] not in {"explicit", "EXPLICIT"}
    ):
        return None
    height = port.get_partial_shape().to_shape()[2]
    _, channels, _, *plane = source.get_partial_shape().to_shape()
    stride, kernel = options["strides"][0], weights.get_partial_shape().to_shape()[2]
    made = _rows(height, stride * prod(plane))

    def model(stored: Any, name: str, _: Any, output: str) -> Any:
        from openvino import opset13

        rows = _parameter(name, [1, (made - 1) * stride + kernel, *plane, channels], stored)
        values = opset13.convert(opset13.transpose(rows, CHANNELS_FIRST), port.get_element_type())
        begin, end = ([0, *options[key][1:]] for key in ("pads_begin", "pads_end"))
        found = opset13.convolution(
            values, weights, options["strides"], begin, end, options["dilations"]
        )
        if bias is not None:
            found = opset13.add(found, bias)
        last = opset13.convert(opset13.transpose(found, CHANNELS_LAST), stored)
        return _model(last, [rows], output)

    return Swept(
        source,
        tuple(nodes),
        made * stride,
        options["pads_begin"][0],
        height // made,
        None,
        model,
    )


def product(result: Any) -> Swept | None:
    """Recognize a model's result that is a product `(N, C)` with the channels of each voxel."""
    nodes = [result]
    by_value: list[Any] = []
    port = result.input_value(0)
    while port.get_node().get_type_name() in _BY_VALUE and len(readers_of(port)) == 1:
        by_value.append(port.get_node())
        port = port.get_node().input_value(0)
    nodes += by_value
    shaped, width = port.get_node(), port.get_partial_shape()
    if shaped.get_type_name() != "Reshape" or len(width) != 4 or len(readers_of(port)) != 1:
        return None
    multiplied = shaped.input_value(0).get_node()
    if multiplied.get_type_name() != "MatMul" or any(multiplied.get_attributes().values()):
        return None
    nodes += [shaped, multiplied]
    source = multiplied.input_value(1)
    while source.get_node().get_type_name() in {"Reshape", "Squeeze"}:
        nodes.append(source.get_node())
        source = source.get_node().input_value(0)
    read = volume_of(source)
    factors = multiplied.input_value(0)
    if read is None or read[1] < SWEPT_VOXELS or len(factors.get_partial_shape()) != 2:
        return None
    _, channels, height, *plane = source.get_partial_shape().to_shape()
    taken = multiplied.input_value(1).get_partial_shape()
    if taken.is_dynamic or taken.to_shape() != [channels, read[1]]:
        return None
    made = _rows(height, prod(plane))

    def model(stored: Any, name: str, read: Any, output: str) -> Any:
        from openvino import opset13

        rows = _parameter(name, [1, made, *plane, channels], stored)
        flat = opset13.reshape(rows, [made * prod(plane), channels], special_zero=False)
        voxels = opset13.convert(flat, factors.get_element_type())
        found = opset13.matmul(read, voxels, False, True)
        found = opset13.reshape(found, [-1, made, *plane], special_zero=False)
        for node in reversed(by_value):
            kind = node.get_output_element_type(0)
            sigmoid = node.get_type_name() == "Sigmoid"
            found = opset13.sigmoid(found) if sigmoid else opset13.convert(found, kind)
        return _model(found, [rows, *_parameters(read)], output)

    return Swept(source, tuple(nodes), made, 0, height // made, factors, model)


def _is_bias(port: Any, channels: int) -> bool:
    return values_by_channel(port, channels) is not None


def _rows(height: int, voxels: int) -> int:
    """Return how many rows of so many voxels are made at a time: a divisor of their number."""
    most = max(1, _ROWS_VOXELS // voxels)
    return max(rows for rows in range(1, height + 1) if height % rows == 0 and rows <= most)


def _parameter(name: str, shape: list[int], kind: Any) -> Any:
    from openvino import opset13

    parameter = opset13.parameter(shape, kind, name=name)
    parameter.output(0).set_names({name})
    return parameter


def _parameters(port: Any) -> list[Any]:
    """List the parameters that a value is converted from."""
    node = port.get_node()
    if node.get_type_name() == "Parameter":
        return [node]
    return [found for each in node.input_values() for found in _parameters(each)]


def _model(node: Any, parameters: list[Any], output: str) -> Any:
    openvino = import_openvino()
    result = openvino.op.Result(node.output(0))
    return name_outputs(openvino.Model([result], parameters, output), [output])
