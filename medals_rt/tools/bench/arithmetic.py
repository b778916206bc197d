"""How much arithmetic a graph is, counted from its ONNX file.

Only convolutions and matrix products are counted, two operations a multiply-add: in this network
all else is under a hundredth. Needs `onnx` (the extra `bench`).
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.choices import StageNumber
from medals_rt.common.optional_deps import import_optional
from medals_rt.inference.graph_chains import pass_chains

Shape = tuple[int, ...]


def pass_tflop(bundle: Bundle, stage: StageNumber, classes: int, *, prompted: bool) -> float:
    """Count one window's pass, by the graphs that the network runs for it, in TFLOP.

    Parameters
    ----------
    bundle, stage
        Whose graphs.
    classes
        N.
    prompted
        With spatial prompts, or from text alone.
    """
    chains = pass_chains(classes, prompted=prompted)
    graphs = (bundle.graph_path(stage, name) for chain in chains for name in chain)
    return sum(graph_flop(path, classes) for path in graphs) / 1e12


@lru_cache(maxsize=64)
def graph_flop(path: Path, prompts: int) -> int:
    """Count the operations of one graph for a number of prompts N.

    Raises
    ------
    MissingDependencyError
        If `onnx` is not installed.
    """
    onnx = import_optional("ONNX", "counting arithmetic")
    model = onnx.load(path)
    for value in model.graph.input:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.Clear()
                axis.dim_value = prompts
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = inferred.graph
    shapes: dict[str, Shape] = {each.name: tuple(each.dims) for each in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
    total = 0
    for node in graph.node:
        count = _COUNTERS.get(node.op_type)
        if count is not None:
            total += count(node, shapes)
    return total


def _convolution(node: Any, shapes: Mapping[str, Shape]) -> int:
    """Each output value takes one multiply-add a weight of its channel."""
    return 2 * prod(shapes[node.output[0]]) * prod(shapes[node.input[1]][1:])


def _transposed_convolution(node: Any, shapes: Mapping[str, Shape]) -> int:
    """Each input value takes one multiply-add a weight of its channel."""
    return 2 * prod(shapes[node.input[0]]) * prod(shapes[node.input[1]][1:])


def _matrix_product(node: Any, shapes: Mapping[str, Shape]) -> int:
    return 2 * prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


def _gemm(node: Any, shapes: Mapping[str, Shape]) -> int:
    transposed = any(each.name == "transA" and each.i for each in node.attribute)
    return 2 * prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else 1]


_COUNTERS: dict[str, Callable[[Any, Mapping[str, Shape]], int]] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "MatMul": _matrix_product,
    "Gemm": _gemm,
}
