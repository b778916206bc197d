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

_FLOAT32: Final = 1
NORM_ACTIVATE: Final = "NormActivate"
"""InstanceNormalization and LeakyRelu: inputs volume, scale and shift; `epsilon` and `alpha`."""
UPSAMPLE_JOIN: Final = "UpsampleJoin"
"""ConvTranspose and Concat: inputs volume, weights, bias, and the volume that is laid beside it."""
PROBABILITY: Final = "Probability"
"""Cast to fp32 and Sigmoid."""


@dataclass(frozen=True)
class Node:
    """One operation of ONNX, or one of those that are several of it."""

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
    kept = {spec.name for spec in outputs}
    merged = _without_lost_biases(_Merger(nodes, kept).merge(), kept)
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


class _Merger:
    """Puts nodes together that cost a sweep over a volume each.

    Parameters
    ----------
    nodes
        Of a graph, in order.
    kept
        Values that must stay: the graph's outputs.
    """

    def __init__(self, nodes: list[Node], kept: set[str]) -> None:
        self._nodes, self._kept = nodes, kept
        self._readers = _readers(nodes)
        self._made_by = {name: node for node in nodes for name in node.outputs}
        self._replaced: dict[int, Node] = {}
        self._gone: set[int] = set()

    def merge(self) -> list[Node]:
        """Return the nodes, those that were put together at the place of the last of them."""
        rules = {
            "AveragePool": self._pool,
            "ConvTranspose": self._upsample_join,
            "InstanceNormalization": self._norm_activate,
            "Sigmoid": self._probability,
        }
        for node in self._nodes:
            if node.op in rules:
                rules[node.op](node)
        left = (node for node in self._nodes if id(node) not in self._gone)
        return [self._replaced.get(id(node), node) for node in left]

    def _norm_activate(self, node: Node) -> None:
        """Merge a norm, casts around it and its activation, which overwrite what they read."""
        source, casts = self._before_cast(node.inputs[0])
        last = self._alone(node.outputs[0])
        while last is not None and last.op == "Cast":
            casts.append(last)
            last = self._alone(last.outputs[0])
        if last is None or last.op != "LeakyRelu" or not self._may_overwrite(source):
            return
        attributes = {
            "epsilon": node.attributes["epsilon"],
            "alpha": last.attributes.get("alpha", 0.01),
        }
        inputs = (source, *node.inputs[1:])
        self._put(last, Node(NORM_ACTIVATE, inputs, last.outputs, attributes), [node, *casts])

    def _pool(self, node: Node) -> None:
        """Take the cast off a pooled volume, which is summed in fp32."""
        source, casts = self._before_cast(node.inputs[0])
        self._put(node, replace(node, inputs=(source,)), casts)

    def _upsample_join(self, node: Node) -> None:
        """Merge a transposed convolution and the volume that is laid beside its result."""
        (result,), reader = node.outputs, self._alone(node.outputs[0])
        if reader is None or len(node.inputs) != 3 or not _joins(reader, result):
            return
        inputs = (*node.inputs, reader.inputs[1])
        merged = replace(node, op=UPSAMPLE_JOIN, inputs=inputs, outputs=reader.outputs)
        self._put(reader, merged, [node])

    def _probability(self, node: Node) -> None:
        """Merge a cast to fp32 and the sigmoid of it."""
        source, casts = self._before_cast(node.inputs[0])
        if casts and casts[0].attributes["to"] == _FLOAT32:
            self._put(node, Node(PROBABILITY, (source,), node.outputs, {}), casts)

    def _may_overwrite(self, name: str) -> bool:
        """Whether a value has memory of its own that only its one reader needs."""
        maker = self._made_by.get(name)
        makes_anew = maker is not None and maker.op in {"Add", "Conv", "ConvTranspose"}
        return makes_anew and self._alone(name) is not None

    def _put(self, place: Node, merged: Node, gone: list[Node]) -> None:
        self._replaced[id(place)] = merged
        self._gone.update(id(node) for node in gone)

    def _alone(self, name: str) -> Node | None:
        """Return the only reader of a value that nobody else needs."""
        found = self._readers.get(name, [])
        return found[0] if len(found) == 1 and name not in self._kept else None

    def _before_cast(self, name: str) -> tuple[str, list[Node]]:
        """Return what a value was cast from, and the cast, where nothing else reads it."""
        maker = self._made_by.get(name)
        if maker is not None and maker.op == "Cast" and self._alone(name) is not None:
            return maker.inputs[0], [maker]
        return name, []


def _joins(node: Node, first: str) -> bool:
    """Whether a node lays the channels of two volumes side by side, `first` before the other."""
    return (
        node.op == "Concat"
        and node.attributes["axis"] == 1
        and len(node.inputs) == 2
        and node.inputs[0] == first != node.inputs[1]
    )


def _without_lost_biases(nodes: list[Node], kept: set[str]) -> list[Node]:
    """Leave out what is added to whole channels before a norm subtracts their means."""
    readers = _readers(nodes)

    def normed(name: str) -> bool:
        (reader, *others) = readers.get(name, [None])
        if others or reader is None or name in kept:
            return False
        return reader.op == NORM_ACTIVATE or (reader.op == "Add" and normed(reader.outputs[0]))

    return [
        replace(node, inputs=node.inputs[:2])
        if node.op == "Conv" and normed(node.outputs[0])
        else node
        for node in nodes
    ]
