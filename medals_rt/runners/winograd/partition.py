"""An OpenVINO model cut at its large 3x3x3 convolutions, and the parts between them.

What is cut out is a *block*: convolutions of several sources that add up, and the norm and
activation behind them. A norm needs sums of a whole volume, so its result is not made: whoever
reads a block's output gets what was convolved, and scales, shifts and activates while reading.
A large norm of what OpenVINO convolved is a block too, without convolutions of its own.

Everything else is sorted into *segments*: a segment needs outputs of the blocks before it, and
none of those behind. Segment 0, block 0, segment 1, block 1 and so on are a pass.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

import numpy as np

from medals_rt.runners.openvino_graphs import import_openvino, name_outputs, port_name
from medals_rt.runners.winograd.machine_code import CHANNEL_STEP, Storage

_AXES_DHW: Final = [2, 3, 4]
_LAST, _FIRST = [0, 2, 3, 4, 1], [0, 4, 1, 2, 3]  # channels from first to last, and back
_CONSTANT: Final = -1


@dataclass(frozen=True)
class Term:
    """One convolution of a block.

    Attributes
    ----------
    source
        Number of the block that it reads, or name of a segment's output `(1, H, W, D, C)`.
    weights
        `(K, C, 3, 3, 3)`, or name of the output where they depend on the window's prompts.
    """

    source: int | str
    weights: np.ndarray | str


@dataclass(frozen=True)
class Block:
    """What is computed between two segments.

    Attributes
    ----------
    terms
        Convolutions that add up; none for values of OpenVINO's own.
    values
        Name of these; "" where there are convolutions.
    bias
        `(K,)`; None for none.
    eps, scale, shift
        Of the norm: ``(x - mean) / sqrt(variance + eps) * scale + shift``; None if there is none.
    slope
        What negative values are multiplied by; 1 for no activation.
    """

    terms: tuple[Term, ...]
    values: str
    bias: np.ndarray | None
    eps: float | None
    scale: np.ndarray | None
    shift: np.ndarray | None
    slope: float


@dataclass(frozen=True)
class Segment:
    """A model between blocks.

    Attributes
    ----------
    model
        Its `openvino.Model`; inputs and outputs have names.
    blocks
        Numbers of the blocks whose outputs it reads, by the name of the input. Each reader has an
        input of its own: then the plugin turns none of them around.
    """

    model: Any
    blocks: Mapping[str, int]


@dataclass(frozen=True)
class Partition:
    """Segments and the blocks between them, one more segment than blocks.

    Attributes
    ----------
    outputs
        Names of what the model returns.
    """

    segments: tuple[Segment, ...]
    blocks: tuple[Block, ...]
    outputs: tuple[str, ...]


@dataclass
class _Found:
    """A block in the graph, before it is cut out."""

    root: Any  # output port: the sum of convolutions, or what is normed
    out: Any  # output port behind norm and activation
    convolutions: list[Any] = field(default_factory=list)  # nodes
    biases: list[np.ndarray] = field(default_factory=list)
    eps: float | None = None
    scale: np.ndarray | None = None
    shift: np.ndarray | None = None
    slope: float = 1.0


def partition(model: Any, storage: Storage, smallest_voxels: int) -> Partition | None:
    """Cut a model at its convolutions; None where it has none that are large enough.

    Parameters
    ----------
    model
        An `openvino.Model` of one window, changed by this.
    storage
        How volumes are handed over.
    smallest_voxels
        Of the volumes whose convolutions are cut out.
    """
    from openvino.passes import ConstantFolding, Manager

    folding = Manager()
    folding.register_pass(ConstantFolding())
    folding.run_passes(model)
    found = _find_blocks(model, smallest_voxels)
    if not any(block.convolutions for block in found):
        return None
    return _Cut(model, storage, found).partition()


def _key(port: Any) -> tuple[str, int]:
    return port.get_node().get_name(), port.get_index()


def _readers(port: Any) -> list[Any]:
    return [each.get_node() for each in port.get_target_inputs()]


def _volume(port: Any) -> tuple[int, int] | None:
    """Channels and voxels of `(1, C, H, W, D)`; None for anything else."""
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic or len(shape) != 5 or shape.is_dynamic or shape.to_shape()[0] != 1:
        return None
    _, channels, *space = shape.to_shape()
    return channels, prod(space)


def _constant(port: Any) -> np.ndarray | None:
    node = port.get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return np.array(node.data, np.float32) if node.get_type_name() == "Constant" else None


def _by_channel(port: Any, channels: int) -> np.ndarray | None:
    """A constant that has a value for each channel, or one for all, as `(C,)`."""
    values = _constant(port)
    if values is None or values.size not in {1, channels}:
        return None
    if values.size == channels > 1 and (values.ndim < 4 or values.shape[-4] != channels):
        return None
    return np.ascontiguousarray(np.broadcast_to(values.reshape(-1), (channels,)))


def _is_convolution(node: Any, smallest_voxels: int) -> bool:
    if node.get_type_name() != "Convolution":
        return False
    made, taken = _volume(node.output(0)), _volume(node.input_value(0))
    weights = node.input_value(1).get_partial_shape()
    if made is None or taken is None or weights.is_dynamic or made[1] < smallest_voxels:
        return False
    options = node.get_attributes()
    ones = [1, 1, 1]
    return (
        list(weights.to_shape()[2:]) == [3, 3, 3]
        and made[0] % CHANNEL_STEP == 0
        and options["strides"] == options["dilations"] == ones
        and options["pads_begin"] == options["pads_end"] == ones
        and options["auto_pad"] in {"explicit", "EXPLICIT"}
    )


def _other(node: Any, port: Any) -> Any:
    """The other operand of two."""
    first, second = node.input_value(0), node.input_value(1)
    return second if _key(first) == _key(port) else first


def _expand(port: Any, found: _Found, smallest_voxels: int) -> bool:
    """Collect the convolutions and biases whose sum a value is."""
    node = port.get_node()
    if _is_convolution(node, smallest_voxels):
        found.convolutions.append(node)
        return True
    if node.get_type_name() != "Add":
        return False
    volume = _volume(port)
    for operand in node.input_values():
        bias = _by_channel(operand, volume[0]) if volume else None
        if bias is not None:
            found.biases.append(bias)
        elif len(_readers(operand)) != 1 or not _expand(operand, found, smallest_voxels):
            return False
    return True


def _sum_of(convolution: Any, smallest_voxels: int) -> _Found:
    """The largest sum that a convolution is part of."""
    port = convolution.output(0)
    best = _Found(port, port, [convolution])
    while len(_readers(port)) == 1 and _readers(port)[0].get_type_name() == "Add":
        port = _readers(port)[0].output(0)
        wider = _Found(port, port)
        if not _expand(port, wider, smallest_voxels):
            break
        best = wider
    return best


def _follow(found: _Found) -> bool:
    """Take norm, scale, shift and activation behind a sum into its block; is there a norm?"""
    channels, _ = _volume(found.root) or (0, 0)
    port = found.root
    readers = _readers(port)
    if len(readers) != 1 or readers[0].get_type_name() != "MVN":
        return False
    norm = readers[0]
    options, axes = norm.get_attributes(), _constant(norm.input_value(1))
    if (
        axes is None
        or axes.tolist() != _AXES_DHW
        or not options["normalize_variance"]
        or str(options["eps_mode"]).upper() != "INSIDE_SQRT"
    ):
        return False
    found.eps = float(options["eps"])
    port = norm.output(0)
    for kind in ("Multiply", "Add"):
        readers = _readers(port)
        if len(readers) != 1 or readers[0].get_type_name() != kind:
            continue
        values = _by_channel(_other(readers[0], port), channels)
        if values is None:
            break
        if kind == "Multiply":
            found.scale = values
        else:
            found.shift = values
        port = readers[0].output(0)
    readers = _readers(port)
    if len(readers) == 1 and readers[0].get_type_name() == "PRelu":
        slope = _constant(readers[0].input_value(1))
        if slope is not None and slope.size == 1:
            found.slope = float(slope.reshape(-1)[0])
            port = readers[0].output(0)
    found.out = port
    return True


def _find_blocks(model: Any, smallest_voxels: int) -> list[_Found]:
    """Find blocks in the order in which they are computed."""
    found: list[_Found] = []
    taken: set[str] = set()
    for node in model.get_ordered_ops():
        if node.get_name() in taken:
            continue
        if _is_convolution(node, smallest_voxels) and _wide_enough(node):
            block = _sum_of(node, smallest_voxels)
            _follow(block)
        elif node.get_type_name() == "MVN":
            port = node.input_value(0)
            volume = _volume(port)
            if volume is None or volume[1] < smallest_voxels or volume[0] % CHANNEL_STEP:
                continue
            block = _Found(port, port)
            if len(_readers(port)) != 1 or not _follow(block):
                continue
            taken.add(node.get_name())
        else:
            continue
        if block.eps is not None:
            taken.add(_readers(block.root)[0].get_name())
        taken.update(each.get_name() for each in block.convolutions)
        found.append(block)
    # a sum is computed where the last of its convolutions can be
    order = {node.get_name(): place for place, node in enumerate(model.get_ordered_ops())}
    return sorted(found, key=lambda block: order[block.out.get_node().get_name()])


def _wide_enough(node: Any) -> bool:
    """Whether a convolution has the channels to fill a strip; one of two is OpenVINO's."""
    volume = _volume(node.input_value(0))
    return volume is not None and volume[0] >= CHANNEL_STEP


class _Cut:
    """Cuts blocks out of a model, and sorts what is left into segments."""

    def __init__(self, model: Any, storage: Storage, found: Sequence[_Found]) -> None:
        openvino = import_openvino()
        self.openvino = openvino
        self.model = model
        self.found = found
        self.stored = openvino.Type.f32 if storage == "float32" else openvino.Type.bf16
        self.by_out = {_key(block.out): number for number, block in enumerate(found)}
        self.levels: dict[str, int] = {}
        self.results: list[dict[str, Any]] = [{} for _ in range(len(found) + 1)]
        self.inner = self._inner()
        self.count = 0

    def _next(self) -> int:
        self.count += 1
        return self.count

    def _inner(self) -> set[str]:
        """Nodes that blocks replace."""
        inner: set[str] = set()
        for block in self.found:
            port, stop = block.out, {_key(block.root)}
            pending = [port]
            while pending:
                port = pending.pop()
                node = port.get_node()
                if not block.convolutions and _key(port) in stop:
                    continue
                if node.get_type_name() == "Constant" or node.get_name() in inner:
                    continue
                inner.add(node.get_name())
                if node in block.convolutions or node.get_name() in {
                    each.get_name() for each in block.convolutions
                }:
                    continue
                pending.extend(node.input_values())
        return inner

    def level(self, port: Any) -> int:
        """Number of the first segment that can compute a value; -1 for constants."""
        number = self.by_out.get(_key(port))
        return self.levels[port.get_node().get_name()] if number is None else number + 1

    def partition(self) -> Partition:
        """Cut."""
        ordered = self.model.get_ordered_ops()
        for node in ordered:
            name = node.get_name()
            if name in self.inner:
                continue
            levels = [self.level(port) for port in node.input_values()]
            kind = node.get_type_name()
            own = _CONSTANT if kind == "Constant" else 0 if kind == "Parameter" else max(levels)
            self.levels[name] = own
        self._defer(ordered)
        outputs = {
            port_name(result.output(0)): result.input_value(0)
            for result in self.model.get_results()
        }
        for name, port in outputs.items():
            if _key(port) not in self.by_out:
                self.results[self.level(port)][name] = port
        blocks = tuple(self._block(number, block) for number, block in enumerate(self.found))
        given: dict[tuple[object, ...], Any] = {}
        reads: list[dict[str, int]] = [{} for _ in self.results]
        for node in ordered:
            name = node.get_name()
            if name in self.inner or self.levels[name] < 0:
                continue
            here = self.levels[name]
            for place in node.inputs():
                port = place.get_source_output()
                number = self.by_out.get(_key(port))
                if number is None and self.level(port) in {_CONSTANT, here}:
                    continue
                if number is None and port.get_node().get_type_name() == "Parameter":
                    continue
                pooled = None if number is None else self._pooled(node, number, reads[here])
                if pooled is not None:
                    self.levels[pooled.get_node().get_name()] = here
                    node.output(0).replace(pooled)
                    continue
                key = (here, _key(port), None if number is None else name)
                if key not in given:
                    given[key] = self._given(port, number, reads[here])
                place.replace_source_output(given[key])
        for result in self.model.get_results():  # of blocks, now computed from what these made
            name = port_name(result.output(0))
            self.results[self.levels[result.get_name()]].setdefault(name, result.input_value(0))
        segments = tuple(
            Segment(self._model(number, results), reads[number])
            for number, results in enumerate(self.results)
        )
        return Partition(segments, blocks, tuple(outputs))

    def _defer(self, ordered: Sequence[Any]) -> None:
        """Move what needs no volume to the last segment that can compute it.

        What prompts weigh and `F_a` are volumes that are made of little, and read late.
        """
        light: set[str] = set()
        for node in ordered:
            name = node.get_name()
            if name not in self.inner and all(map(self._is_light(light), node.input_values())):
                light.add(name)
        needed: dict[str, int] = {}
        for number, block in enumerate(self.found):
            for port in self._read_by(block):
                name = port.get_node().get_name()
                needed[name] = min(number, needed.get(name, number))
        for node in reversed(ordered):
            name = node.get_name()
            if name in self.inner:
                continue
            if name in light and name in needed and self.levels[name] != _CONSTANT:
                self.levels[name] = max(self.levels[name], needed[name])
            for port in node.input_values():
                source = port.get_node().get_name()
                needed[source] = min(self.levels[name], needed.get(source, self.levels[name]))

    def _is_light(self, light: set[str]) -> Callable[[Any], bool]:
        def check(port: Any) -> bool:
            node = port.get_node()
            if node.get_type_name() in {"Constant", "Parameter"}:
                return True
            if _key(port) in self.by_out:
                return False
            return _volume(port) is None or (node.get_name() in light and len(_readers(port)) == 1)

        return check

    def _read_by(self, block: _Found) -> Iterable[Any]:
        """What a block reads of the graph."""
        if not block.convolutions:
            yield block.root
        for node in block.convolutions:
            yield from node.input_values()
            joined = node.input_value(0).get_node()
            if joined.get_type_name() == "Concat":
                yield from joined.input_values()

    def _block(self, number: int, block: _Found) -> Block:
        """Describe a block, and let segments return what it reads."""
        terms = tuple(
            Term(source, weights)
            for node in block.convolutions
            for source, weights in self._terms(number, node)
        )
        values = "" if block.convolutions else self._handed(number, block.root)
        bias = np.sum(block.biases, axis=0, dtype=np.float32) if block.biases else None
        return Block(terms, values, bias, block.eps, block.scale, block.shift, block.slope)

    def _terms(self, number: int, node: Any) -> Iterable[tuple[int | str, np.ndarray | str]]:
        source, weights = node.input_value(0), node.input_value(1)
        constant = _constant(weights)
        joined = source.get_node()
        if (
            constant is not None
            and joined.get_type_name() == "Concat"
            and joined.get_attributes()["axis"] == 1
            and len(_readers(source)) == 1
        ):
            start = 0
            for part in joined.input_values():
                width = part.get_partial_shape().to_shape()[1]
                yield self._source(number, part), constant[:, start : start + width]
                start += width
            self.inner.add(joined.get_name())
        elif constant is not None:
            yield self._source(number, source), constant
        else:
            name = f"weights_{number}_{self._next()}"
            self.results[self.level(weights)][name] = weights
            yield self._source(number, source), name

    def _source(self, number: int, port: Any) -> int | str:
        known = self.by_out.get(_key(port))
        return self._handed(number, port) if known is None else known

    def _handed(self, number: int, port: Any) -> str:
        """Let a segment return a volume with its channels last, as it is stored."""
        from openvino import opset13

        # counted, since the library's own names are others in each process
        name = f"into_block_{number}_{self._next()}"
        last = opset13.transpose(port, _LAST)
        self.results[self.level(port)][name] = opset13.convert(last, self.stored).output(0)
        return name

    def _given(self, port: Any, number: int | None, reads: dict[str, int]) -> Any:
        """Return a segment's input in place of what blocks or earlier segments made."""
        from openvino import opset13

        if number is None:
            return self._passed_on(port)
        raw = self._read(number, reads)
        kind = port.get_element_type()
        # turned before it is converted, which costs nothing: the plugin's own layout has channels last
        return opset13.convert(opset13.transpose(raw, _FIRST), kind).output(0)

    def _read(self, number: int, reads: dict[str, int]) -> Any:
        """Return a block's output as a new input `(1, H, W, D, C)` of a segment."""
        name = f"block_{number}_{self._next()}"
        reads[name] = number
        _, channels, *space = self.found[number].out.get_partial_shape().to_shape()
        return self._parameter(name, [1, *space, channels], self.stored)

    def _pooled(self, node: Any, number: int, reads: dict[str, int]) -> Any | None:
        """Average blocks of voxels of a block's output; None if it isn't that what a node does.

        By means along one axis after the other, with the channels last as they are: the plugin's
        own pool would have the volume turned around for it.
        """
        from openvino import opset13

        if node.get_type_name() != "AvgPool":
            return None
        options = node.get_attributes()
        kernel, none = options["kernel"], [0, 0, 0]
        _, channels, *space = self.found[number].out.get_partial_shape().to_shape()
        if (
            options["strides"] != kernel
            or options["pads_begin"] != none
            or options["pads_end"] != none
            or any(size % k for size, k in zip(space, kernel, strict=True))
        ):
            return None
        values = opset13.convert(self._read(number, reads), node.get_output_element_type(0))
        left = [size // k for size, k in zip(space, kernel, strict=True)]
        for axis in (2, 1, 0):
            before, behind = prod(space[:axis]) * left[axis], prod(left[axis + 1 :]) * channels
            rows = opset13.reshape(values, [before, kernel[axis], behind], special_zero=False)
            values = opset13.reduce_mean(rows, [1], keep_dims=False)
        pooled = opset13.reshape(values, [1, *left, channels], special_zero=False)
        return opset13.transpose(pooled, _FIRST).output(0)

    def _passed_on(self, port: Any) -> Any:
        """Return a value that an earlier segment makes, as an input of this one.

        In bfloat16 where volumes are: the plugin computes what leads to a float32 result in
        float32, and would convert whole volumes for it.
        """
        from openvino import opset13

        results = self.results[self.level(port)]
        name = next((known for known, kept in results.items() if _key(kept) == _key(port)), "")
        kind = port.get_element_type()
        narrow = kind == self.openvino.Type.f32 and not name
        if not name:
            name = f"value_{self._next()}"
            results[name] = opset13.convert(port, self.stored).output(0) if narrow else port
        passed = self._parameter(name, port.get_partial_shape(), self.stored if narrow else kind)
        return opset13.convert(passed, kind).output(0) if narrow else passed

    def _parameter(self, name: str, shape: Any, kind: Any) -> Any:
        from openvino import opset13

        parameter = opset13.parameter(shape, kind, name=name)
        parameter.output(0).set_names({name})
        return parameter.output(0)

    def _model(self, number: int, results: dict[str, Any]) -> Any:
        """Make a model of what leads to a segment's results."""
        parameters: dict[str, Any] = {}
        pending = [port.get_node() for port in results.values()]
        seen: set[str] = set()
        while pending:
            node = pending.pop()
            if node.get_name() in seen:
                continue
            seen.add(node.get_name())
            if node.get_type_name() == "Parameter":
                parameters[node.get_name()] = node
            pending.extend(port.get_node() for port in node.input_values())
        model = self.openvino.Model(
            [self.openvino.op.Result(port) for port in results.values()],
            list(parameters.values()),
            f"{self.model.get_friendly_name()}, {number}",
        )
        return name_outputs(model, list(results))
