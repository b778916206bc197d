"""An ONNX graph as data, with what belongs together put together.

A convolution's norm and activation are one node here, and a bias that a norm takes off again is
left out: on a GPU each costs a sweep over the volume.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from medals_rt.common.errors import RunnerError
from medals_rt.common.optional_deps import import_optional
from medals_rt.runners.base import TensorSpec

_VOLUME_AXES: Final = 5
NORM_ACTIVATE: Final = "NormActivate"
"""InstanceNormalization and LeakyRelu: inputs volume, scale and shift; `epsilon` and `alpha`."""


@dataclass(frozen=True)
class Node:
    """One operation of ONNX, or `NORM_ACTIVATE`."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Graph:
    """Nodes in the order in which they run, constants by name, and what goes in and comes out."""

    nodes: tuple[Node, ...]
    constants: Mapping[str, np.ndarray]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def takes_volume(self) -> bool:
        """Whether one of its inputs is a volume `(1, C, H, W, D)`."""
        return any(len(spec.shape) == _VOLUME_AXES for spec in self.inputs)


def read_graph(path: Path) -> Graph:
    """Read an ONNX file; nodes that belong together are put together.

    Raises
    ------
    MissingDependencyError
        If ONNX is not installed.
    RunnerError
        If the file can't be read as ONNX.
    """
    onnx = import_optional("ONNX", "the runner cudnn")
    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf's errors share no base class of their own
        raise RunnerError(f"ONNX can't read {path.name}: {error}", code="graph-refused") from error
    graph = model.graph
    if not graph.node:
        raise RunnerError(f"{path.name} holds no ONNX graph", code="graph-empty")
    nodes = [
        Node(
            node.op_type,
            tuple(node.input),
            tuple(node.output),
            {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute},
        )
        for node in graph.node
    ]
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    inputs = tuple(_spec(onnx, value) for value in graph.input if value.name not in constants)
    outputs = tuple(_spec(onnx, value) for value in graph.output)
    merged = _without_lost_biases(_merged(nodes, {spec.name for spec in outputs}))
    return Graph(tuple(merged), constants, inputs, outputs)


def _spec(onnx: Any, value: Any) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(each.dim_param or int(each.dim_value) for each in tensor.shape.dim)
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return TensorSpec(value.name, shape, str(dtype))


def _readers(nodes: Iterable[Node]) -> dict[str, list[Node]]:
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    return readers


def _merged(nodes: list[Node], kept: set[str]) -> list[Node]:
    """Merge casts, norms and activations; take the cast off a pooled volume, which sums in fp32.

    `kept` are values that must stay: the graph's outputs.
    """
    readers = _readers(nodes)
    made_by = {name: node for node in nodes for name in node.outputs}

    def alone(name: str) -> Node | None:
        """Return the only reader of a value that nobody else needs."""
        found = readers.get(name, [])
        return found[0] if len(found) == 1 and name not in kept else None

    def through_casts(name: str, dropped: list[Node]) -> Node | None:
        reader = alone(name)
        while reader is not None and reader.op == "Cast":
            dropped.append(reader)
            reader = alone(reader.outputs[0])
        return reader

    def before_cast(name: str, dropped: list[Node]) -> str:
        maker = made_by.get(name)
        if maker is not None and maker.op == "Cast" and alone(name) is not None:
            dropped.append(maker)
            return maker.inputs[0]
        return name

    replaced: dict[int, Node] = {}
    gone: list[Node] = []
    for node in nodes:
        dropped: list[Node] = []
        if node.op == "InstanceNormalization":
            source = before_cast(node.inputs[0], dropped)
            last = through_casts(node.outputs[0], dropped)
            if last is None or last.op != "LeakyRelu":
                continue
            attributes = {
                "epsilon": node.attributes["epsilon"],
                "alpha": last.attributes.get("alpha", 0.01),
            }
            inputs = (source, *node.inputs[1:])
            replaced[id(last)] = Node(NORM_ACTIVATE, inputs, last.outputs, attributes)
            gone += [node, *dropped]
        elif node.op == "AveragePool":
            source = before_cast(node.inputs[0], dropped)
            replaced[id(node)] = replace(node, inputs=(source,))
            gone += dropped
    lost = {id(node) for node in gone}
    return [replaced.get(id(node), node) for node in nodes if id(node) not in lost]


def _without_lost_biases(nodes: list[Node]) -> list[Node]:
    """Leave out what is added to whole channels before a norm subtracts their means."""
    readers = _readers(nodes)

    def normed(name: str) -> bool:
        (reader, *others) = readers.get(name, [None])
        if others or reader is None:
            return False
        return reader.op == NORM_ACTIVATE or (reader.op == "Add" and normed(reader.outputs[0]))

    return [
        replace(node, inputs=node.inputs[:2])
        if node.op == "Conv" and normed(node.outputs[0])
        else node
        for node in nodes
    ]
