"""A graph computed with arrays, its volumes stored with the channels last.

Arrays have ONNX's axes, `(1, C, H, W, D)` for a volume, whatever their memory is like: `stored` and
`shown` go from one to the other. Convolutions, and norms with activations, are `VolumeOperations`;
all else is array code, which NumPy runs too.
"""

from collections.abc import Callable, Mapping
from functools import partial
from math import sqrt
from typing import Any, Final, Protocol, TypeAlias

import numpy as np

from medals_rt.common.errors import RunnerError
from medals_rt.runners.cudnn.graph import (
    NORM_ACTIVATE,
    PROBABILITY,
    UPSAMPLE_JOIN,
    Graph,
    Node,
)

Array: TypeAlias = Any
Namespace: TypeAlias = Any
Watch: TypeAlias = Callable[[Node, list[Any], Callable[[], Any]], Any]

CHANNEL_STEP: Final = 8
"""Channels that a GPU's matrix units take at once in fp16; volumes of fewer are padded to it."""

_VOLUME_AXES: Final = 5
_KERNEL: Final = (3, 3, 3)
_DTYPES: Final = {1: np.float32, 10: np.float16}
_OUTPUT_AXIS: Final = {"Conv": 0, "ConvTranspose": 1, UPSAMPLE_JOIN: 1}
"""Which axis of ONNX's weights has the outputs."""


class VolumeOperations(Protocol):
    """What computes on volumes `(H, W, D, C)` in fp16, C a multiple of `CHANNEL_STEP`."""

    xp: Namespace

    def convolve(self, volume: Array, weights: Array, stride: int) -> Array:
        """Convolve with weights `(K, 3, 3, 3, C)`, one voxel of zeros around the volume."""
        ...

    def upsample(self, volume: Array, weights: Array) -> Array:
        """Make eight voxels of each with weights `(C, 2, 2, 2, K)`."""
        ...

    def norm_activate(
        self, volume: Array, scale: Array, shift: Array, epsilon: float, alpha: float
    ) -> None:
        """Norm each channel, scale and shift it, and apply a leaky ReLU, all in place."""
        ...

    def join(self, upsampled: Array, bias: Array, skip: Array) -> Array:
        """Add a bias `(C,)`, and lay the channels of another volume beside the sum."""
        ...

    def add(self, first: Array, second: Array) -> Array:
        """Add two volumes of one shape."""
        ...

    def pool(self, volume: Array, edge: int) -> Array:
        """Return the means of cubes of so many voxels an edge, in fp32."""
        ...

    def to_probability(self, logits: Array) -> Array:
        """Return the sigmoid of an array in fp16, contiguous, in fp32."""
        ...

    def erf(self, values: Array) -> Array:
        """Return the error function, in fp32."""
        ...


def stored(xp: Namespace, volume: Array) -> Array:
    """Return a volume `(1, C, H, W, D)` as contiguous `(H, W, D, C)`, a view if it is stored so."""
    return xp.ascontiguousarray(xp.transpose(volume[0], (1, 2, 3, 0)))


def shown(xp: Namespace, volume: Array) -> Array:
    """Return a volume `(H, W, D, C)` as a view `(1, C, H, W, D)`."""
    return xp.transpose(volume, (3, 0, 1, 2))[None]


class Program:
    """A graph, made ready to run.

    Raises
    ------
    RunnerError
        ``graph-unsupported``: it has an operation, or attributes of one, that are not known here.
    """

    def __init__(self, graph: Graph, operations: VolumeOperations) -> None:
        self._operations = operations
        self._constants: dict[str, Any] = {}
        self._nodes: list[Node] = []
        for node in graph.nodes:
            _check(node)
            if node.op in _OUTPUT_AXIS and node.inputs[1] in graph.constants:
                _check_width(graph.constants[node.inputs[1]].shape[_OUTPUT_AXIS[node.op]])
            for place, name in enumerate(node.inputs):
                if name in graph.constants and name not in self._constants:
                    self._constants[name] = self._prepared(node, place, graph.constants[name])
            if self._constants.keys() >= set(node.inputs):  # the same in every run
                self._constants.update(self._compute(node, self._constants))
            else:
                self._nodes.append(node)
        self._last_read = {
            name: number for number, node in enumerate(self._nodes) for name in node.inputs
        }
        self._kept = {spec.name for spec in graph.outputs}
        needed = self._last_read.keys() | self._kept
        self._constants = {name: self._constants[name] for name in self._constants.keys() & needed}

    def run(self, feeds: Mapping[str, Array], watch: Watch | None = None) -> dict[str, Array]:
        """Compute all outputs.

        Parameters
        ----------
        feeds
            Inputs by name.
        watch
            Called instead of each operation, with its node, what it reads and itself; returns what
            it gives.
        """
        values: dict[str, Any] = {**self._constants, **feeds}
        for number, node in enumerate(self._nodes):
            values.update(self._compute(node, values, watch))
            for name in node.inputs:
                if self._last_read[name] == number and name not in self._kept:
                    values.pop(name, None)
        return {name: values[name] for name in self._kept}

    def _compute(
        self, node: Node, values: Mapping[str, Any], watch: Watch | None = None
    ) -> dict[str, Any]:
        """Compute what a node gives, by name."""
        given = [values[name] for name in node.inputs]
        compute = partial(_OPERATORS[node.op], self._operations, node, *given)
        found = compute() if watch is None else watch(node, given, compute)
        several = found if isinstance(found, list) else [found]
        return dict(zip(node.outputs, several, strict=True))

    def _prepared(self, node: Node, place: int, constant: np.ndarray) -> Any:
        """Bring a constant to the device, weights with the channels last; shapes stay numbers."""
        if constant.dtype == np.int64:
            return tuple(int(size) for size in constant.reshape(-1))
        xp = self._operations.xp
        if node.op == "Conv" and place == 1:
            return _conv_weights(xp, xp.asarray(constant))
        if node.op in {"ConvTranspose", UPSAMPLE_JOIN} and place == 1:
            return xp.asarray(np.ascontiguousarray(np.moveaxis(constant, 1, -1)))
        return xp.asarray(constant)


def _check(node: Node) -> None:
    """Refuse what would be computed wrongly."""
    attributes = node.attributes
    kernel = tuple(attributes.get("kernel_shape", ()))
    known = node.op in _OPERATORS and (len(node.outputs) == 1 or node.op == "Split")
    plain = (
        attributes.get("group", 1) == 1
        and set(attributes.get("dilations", [1])) == {1}
        and attributes.get("auto_pad", b"NOTSET") in {b"NOTSET", ""}
    )
    strides = tuple(attributes.get("strides", ()))
    pads = set(attributes.get("pads", [0]))
    if node.op == "Conv":
        known = plain and kernel == _KERNEL and pads == {1} and len(set(strides)) == 1
    elif node.op in {"ConvTranspose", UPSAMPLE_JOIN}:
        padding = set(attributes.get("output_padding", [0]))
        known = plain and kernel == strides == (2, 2, 2) and pads == padding == {0}
    elif node.op == "AveragePool":
        is_cube = kernel == strides and len(set(kernel)) == 1
        known = is_cube and pads == {0} and not attributes.get("ceil_mode", 0)
    elif node.op == "Cast":
        known = attributes["to"] in _DTYPES
    elif node.op in {"LayerNormalization", "Softmax"}:
        known = attributes.get("axis", -1) == -1
    elif node.op == "Split":
        known = len(node.inputs) == 1 and attributes.get("num_outputs") == len(node.outputs)
    elif node.op == "Gelu":
        known = attributes.get("approximate", b"none") == b"none"
    if not known:
        raise RunnerError(
            f"{node.op} with {dict(attributes)} is not known to the runner cudnn",
            code="graph-unsupported",
        )


def _check_width(channels: int) -> None:
    """Refuse a convolution whose result is no volume of `VolumeOperations`."""
    if channels % CHANNEL_STEP:
        raise RunnerError(
            f"the runner cudnn takes networks whose widths are multiples of {CHANNEL_STEP}, and "
            f"this one has {channels} channels: use --runner onnxruntime-cuda",
            code="width-unsupported",
        )


def _conv_weights(xp: Namespace, weights: Array) -> Array:
    """Return weights `(K, C, 3, 3, 3)` as `(K, 3, 3, 3, C)`, C padded with zeros."""
    last = xp.transpose(weights, (0, 2, 3, 4, 1))
    return _padded(xp, last)


def _padded(xp: Namespace, array: Array) -> Array:
    """Return an array as contiguous, its last axis padded with zeros to `CHANNEL_STEP`."""
    count = array.shape[-1]
    if count % CHANNEL_STEP == 0:
        return xp.ascontiguousarray(array)
    width = -(-count // CHANNEL_STEP) * CHANNEL_STEP
    result = xp.zeros((*array.shape[:-1], width), dtype=array.dtype)
    result[..., :count] = array
    return result


def _conv(
    operations: VolumeOperations,
    node: Node,
    volume: Array,
    weights: Array,
    bias: Array | None = None,
) -> Array:
    xp = operations.xp
    if weights.shape[-1] == _KERNEL[-1]:  # computed in this run: (K, C, 3, 3, 3)
        weights = _conv_weights(xp, weights)
    last = xp.transpose(volume[0], (1, 2, 3, 0))
    found = operations.convolve(_padded(xp, last), weights, node.attributes["strides"][0])
    if bias is not None:
        found += bias
    return shown(xp, found)


def _norm_activate(
    operations: VolumeOperations, node: Node, volume: Array, scale: Array, shift: Array
) -> Array:
    last = stored(operations.xp, volume)
    attributes = node.attributes
    operations.norm_activate(last, scale, shift, attributes["epsilon"], attributes["alpha"])
    return shown(operations.xp, last)


def _conv_transpose(
    operations: VolumeOperations,
    node: Node,
    volume: Array,
    weights: Array,
    bias: Array | None = None,
) -> Array:
    del node
    found = operations.upsample(stored(operations.xp, volume), weights)
    if bias is not None:
        found += bias
    return shown(operations.xp, found)


def _upsample_join(
    operations: VolumeOperations,
    node: Node,
    volume: Array,
    weights: Array,
    bias: Array,
    skip: Array,
) -> Array:
    del node
    xp = operations.xp
    upsampled = operations.upsample(stored(xp, volume), weights)
    return shown(xp, operations.join(upsampled, bias, stored(xp, skip)))


def _concat(operations: VolumeOperations, node: Node, *parts: Array) -> Array:
    xp = operations.xp
    if parts[0].ndim != _VOLUME_AXES or node.attributes["axis"] != 1:
        return xp.concatenate(parts, axis=node.attributes["axis"])
    count = sum(part.shape[1] for part in parts)
    result = xp.empty((*parts[0].shape[2:], count), dtype=parts[0].dtype)
    at = 0
    for part in parts:
        end = at + part.shape[1]
        result[..., at:end] = xp.transpose(part[0], (1, 2, 3, 0))
        at = end
    return shown(xp, result)


def _average_pool(operations: VolumeOperations, node: Node, volume: Array) -> Array:
    """Return means in fp32."""
    xp = operations.xp
    return shown(xp, operations.pool(stored(xp, volume), node.attributes["kernel_shape"][0]))


def _gelu(operations: VolumeOperations, node: Node, values: Array) -> Array:
    del node
    exact = values.astype(np.float32)
    exact *= np.float32(0.5) * (1 + operations.erf(exact * np.float32(1 / sqrt(2))))
    return exact.astype(values.dtype)


def _probability(operations: VolumeOperations, node: Node, logits: Array) -> Array:
    del node
    return operations.to_probability(operations.xp.ascontiguousarray(logits))


def _layer_normalization(
    operations: VolumeOperations, node: Node, values: Array, scale: Array, shift: Array
) -> Array:
    xp = operations.xp
    exact = values.astype(np.float32)
    exact -= xp.mean(exact, axis=-1, keepdims=True)
    variance = xp.mean(exact * exact, axis=-1, keepdims=True)
    exact /= xp.sqrt(variance + np.float32(node.attributes["epsilon"]))
    exact *= scale
    exact += shift
    return exact.astype(values.dtype, copy=False)


def _softmax(operations: VolumeOperations, node: Node, values: Array) -> Array:
    del node
    xp = operations.xp
    exact = values.astype(np.float32)
    exact = xp.exp(exact - xp.max(exact, axis=-1, keepdims=True))
    exact /= xp.sum(exact, axis=-1, keepdims=True)
    return exact.astype(values.dtype, copy=False)


def _split(operations: VolumeOperations, node: Node, values: Array) -> list[Array]:
    count = node.attributes["num_outputs"]
    return list(operations.xp.split(values, count, axis=node.attributes.get("axis", 0)))


def _matmul(operations: VolumeOperations, node: Node, a: Array, b: Array) -> Array:
    """Multiply; by one matrix as two-dimensional arrays, which CuPy leaves in fp16."""
    del node
    if a.ndim <= 2 or b.ndim != 2:
        return operations.xp.matmul(a, b)
    flat = operations.xp.matmul(a.reshape(-1, a.shape[-1]), b)
    return flat.reshape(*a.shape[:-1], b.shape[-1])


def _squeeze(
    operations: VolumeOperations, node: Node, values: Array, axes: tuple[int, ...]
) -> Array:
    del node
    return operations.xp.squeeze(values, axis=axes)


def _unsqueeze(
    operations: VolumeOperations, node: Node, values: Array, axes: tuple[int, ...]
) -> Array:
    del node
    for axis in sorted(axes):
        values = operations.xp.expand_dims(values, axis=axis)
    return values


def _reshape(
    operations: VolumeOperations, node: Node, values: Array, shape: tuple[int, ...]
) -> Array:
    del operations
    if not node.attributes.get("allowzero", 0):
        shape = tuple(size or values.shape[place] for place, size in enumerate(shape))
    return values.reshape(shape)


def _add(operations: VolumeOperations, node: Node, a: Array, b: Array) -> Array:
    del node
    if a.ndim != _VOLUME_AXES or a.shape != b.shape:
        return a + b
    xp = operations.xp
    return shown(xp, operations.add(stored(xp, a), stored(xp, b)))


_OPERATORS: Final[Mapping[str, Callable[..., Any]]] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "Cast": lambda _, node, values: values.astype(_DTYPES[node.attributes["to"]], copy=False),
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gelu": _gelu,
    "LayerNormalization": _layer_normalization,
    "MatMul": _matmul,
    "Mul": lambda operations, _, a, b: operations.xp.multiply(a, b),
    NORM_ACTIVATE: _norm_activate,
    PROBABILITY: _probability,
    "Relu": lambda operations, _, values: operations.xp.maximum(values, values.dtype.type(0)),
    "Reshape": _reshape,
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": lambda operations, node, values: operations.xp.transpose(
        values, tuple(node.attributes["perm"])
    ),
    "Unsqueeze": _unsqueeze,
    UPSAMPLE_JOIN: _upsample_join,
}
