"""An OpenVINO model cut at its large 3x3x3 convolutions; what that makes, `cut` describes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import numpy as np

from medals_rt.runners.openvino_graphs import (
    AXES_DHW,
    CHANNELS_FIRST,
    CHANNELS_LAST,
    HANDED_OVER,
    import_openvino,
    name_outputs,
    port_name,
)
from medals_rt.runners.winograd.cut import WHOLE, Block, Cut, Handed, Pool, Sweep, Term
from medals_rt.runners.winograd.machine_code import CHANNEL_STEP, Storage
from medals_rt.runners.winograd.ports import (
    constant_of,
    key_of,
    readers_of,
    values_by_channel,
    volume_of,
)
from medals_rt.runners.winograd.sweeps import Swept, product, strided_convolution

_CONSTANT: Final = -1

Pays: TypeAlias = Callable[[int, int], bool]


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
    swept: Swept | None = None  # what makes the root, if that is read a few rows at a time


def partition(model: Any, storage: Storage, pays: Pays) -> tuple[Cut, list[Any]]:
    """Cut a model at its convolutions.

    Parameters
    ----------
    model
        An `openvino.Model` of one window, changed by this.
    storage
        How volumes are handed over.
    pays
        ``pays(channels, voxels)``: whether convolutions with such outputs are cut out.

    Returns
    -------
    cut, models
        The description, and an `openvino.Model` for each segment, then for each sweep; `WHOLE` and
        the model where it has no convolution that is large enough, and no product with a volume
        that another chain hands over.
    """
    convolves = any(_is_convolution(node, pays) for node in model.get_ops())
    if not convolves and not any(map(_is_taken, model.inputs)):
        return WHOLE, [model]
    _fold(model)
    found = _find_blocks(model, pays)
    if not any(block.convolutions for block in found):
        found = []
    cutter = _Cutter(model, storage, found)
    if not found and not cutter.products:
        return WHOLE, [model]
    return cutter.cut()


def _fold(model: Any) -> None:
    """Compute what follows from shapes, which exporters write as operations.

    Weights in half precision stay as they are: the library unpacks them while it compiles.
    """
    from openvino import opset13
    from openvino.passes import ConstantFolding, Manager

    kept = []
    for node in model.get_ops():
        if node.get_type_name() != "Convert":
            continue
        if node.input_value(0).get_node().get_type_name() == "Constant":
            port = node.output(0)
            instead = opset13.parameter(port.get_partial_shape(), port.get_element_type())
            for reader in port.get_target_inputs():
                reader.replace_source_output(instead.output(0))
            kept.append((instead, node))
    model.add_parameters([instead for instead, _ in kept])
    folding = Manager()
    folding.register_pass(ConstantFolding())
    folding.run_passes(model)
    for instead, node in kept:
        instead.output(0).replace(node.output(0))
        model.remove_parameter(instead)


def _is_taken(port: Any) -> bool:
    """Whether another chain hands a volume over here."""
    return port.get_node().get_type_name() == "Parameter" and port_name(port) in HANDED_OVER


def _is_convolution(node: Any, pays: Pays) -> bool:
    if node.get_type_name() != "Convolution":
        return False
    made, taken = volume_of(node.output(0)), volume_of(node.input_value(0))
    weights = node.input_value(1).get_partial_shape()
    if made is None or taken is None or weights.is_dynamic or not pays(*made):
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
    """Return the other operand of two."""
    first, second = node.input_value(0), node.input_value(1)
    return second if key_of(first) == key_of(port) else first


def _expand(port: Any, found: _Found, pays: Pays) -> bool:
    """Collect the convolutions and biases whose sum a value is."""
    node = port.get_node()
    if _is_convolution(node, pays):
        found.convolutions.append(node)
        return True
    if node.get_type_name() != "Add":
        return False
    volume = volume_of(port)
    for operand in node.input_values():
        bias = values_by_channel(operand, volume[0]) if volume else None
        if bias is not None:
            found.biases.append(bias)
        elif len(readers_of(operand)) != 1 or not _expand(operand, found, pays):
            return False
    return True


def _sum_of(convolution: Any, pays: Pays) -> _Found:
    """Return the largest sum that a convolution is part of."""
    port = convolution.output(0)
    best = _Found(port, port, [convolution])
    while len(readers_of(port)) == 1 and readers_of(port)[0].get_type_name() == "Add":
        port = readers_of(port)[0].output(0)
        wider = _Found(port, port)
        if not _expand(port, wider, pays):
            break
        best = wider
    return best


def _follow(found: _Found) -> bool:
    """Take norm, scale, shift and activation behind a sum into its block, if there are."""
    channels, _ = volume_of(found.root) or (0, 0)
    port = found.root
    readers = readers_of(port)
    if len(readers) != 1 or readers[0].get_type_name() != "MVN":
        return False
    norm = readers[0]
    options, axes = norm.get_attributes(), constant_of(norm.input_value(1))
    if (
        axes is None
        or axes.tolist() != AXES_DHW
        or not options["normalize_variance"]
        or str(options["eps_mode"]).upper() != "INSIDE_SQRT"
    ):
        return False
    found.eps = float(options["eps"])
    port = norm.output(0)
    for kind in ("Multiply", "Add"):
        readers = readers_of(port)
        if len(readers) != 1 or readers[0].get_type_name() != kind:
            continue
        values = values_by_channel(_other(readers[0], port), channels)
        if values is None:
            break
        if kind == "Multiply":
            found.scale = values
        else:
            found.shift = values
        port = readers[0].output(0)
    readers = readers_of(port)
    if len(readers) == 1 and readers[0].get_type_name() == "PRelu":
        slope = constant_of(readers[0].input_value(1))
        if slope is not None and slope.size == 1:
            found.slope = float(slope.reshape(-1)[0])
            port = readers[0].output(0)
    found.out = port
    return True


def _find_blocks(model: Any, pays: Pays) -> list[_Found]:
    """Find blocks in the order in which they are computed."""
    found: list[_Found] = []
    taken: set[str] = set()
    for node in model.get_ordered_ops():
        if node.get_name() in taken:
            continue
        if _is_convolution(node, pays):
            block = _sum_of(node, pays)
            _follow(block)
        elif node.get_type_name() == "MVN":
            port = node.input_value(0)
            volume = volume_of(port)
            if volume is None or not pays(*volume) or volume[0] % CHANNEL_STEP:
                continue
            block = _Found(port, port, swept=strided_convolution(port))
            if len(readers_of(port)) != 1 or not _follow(block):
                continue
            taken.add(node.get_name())
        else:
            continue
        if block.eps is not None:
            taken.add(readers_of(block.root)[0].get_name())
        taken.update(each.get_name() for each in block.convolutions)
        found.append(block)
    # a sum is computed where the last of its convolutions can be
    order = {node.get_name(): place for place, node in enumerate(model.get_ordered_ops())}
    return sorted(found, key=lambda block: order[block.out.get_node().get_name()])


class _Cutter:
    """Cuts blocks out of a model, and sorts what is left into segments."""

    def __init__(self, model: Any, storage: Storage, found: Sequence[_Found]) -> None:
        openvino = import_openvino()
        self.openvino = openvino
        self.model = model
        self.found = found
        self.stored = openvino.Type.f32 if storage == "float32" else openvino.Type.bf16
        self.by_out = {key_of(block.out): number for number, block in enumerate(found)}
        for block in found:
            if block.swept is not None and key_of(block.swept.source) not in self.by_out:
                block.swept = None
        products = [(result, product(result)) for result in model.get_results()]
        self.products = {
            port_name(result.output(0)): swept
            for result, swept in products
            if swept is not None
            and (key_of(swept.source) in self.by_out or _is_taken(swept.source))
        }
        self.handed = [
            Handed(name, self.by_out[key_of(port)], self._stored_shape(port))
            for name, port in self._outputs().items()
            if name in HANDED_OVER and key_of(port) in self.by_out
        ]
        # of these outputs, no segment makes anything
        self.elsewhere = {*self.products, *(each.name for each in self.handed)}
        self.sweeps: list[Sweep] = []
        self.sweep_models: list[Any] = []
        self.pools: list[list[Pool]] = [[] for _ in found]
        self.levels: dict[str, int] = {}
        self.results: list[dict[str, Any]] = [{} for _ in range(len(found) + 1)]
        self.inner = self._inner()
        self.count = 0
        self.inputs: dict[str, Any] = {}

    def _next(self) -> int:
        self.count += 1
        return self.count

    def _outputs(self) -> dict[str, Any]:
        """Return what the model's results read, by name."""
        results = self.model.get_results()
        return {port_name(each.output(0)): each.input_value(0) for each in results}

    def _inner(self) -> set[str]:
        """Nodes that blocks replace."""
        swept = [block.swept for block in self.found if block.swept is not None]
        inner = {
            node.get_name() for each in (*swept, *self.products.values()) for node in each.nodes
        }
        for block in self.found:
            convolutions = {node.get_name() for node in block.convolutions}
            pending = [block.out]
            while pending:
                port = pending.pop()
                node = port.get_node()
                # without convolutions, what is normed is the library's own
                outside = not convolutions and key_of(port) == key_of(block.root)
                name = node.get_name()
                if outside or node.get_type_name() == "Constant" or name in inner:
                    continue
                inner.add(name)
                if name not in convolutions:
                    pending.extend(node.input_values())
        return inner

    def level(self, port: Any) -> int:
        """Return the number of the first segment that can compute a value; -1 for constants."""
        number = self.by_out.get(key_of(port))
        return self.levels[port.get_node().get_name()] if number is None else number + 1

    def cut(self) -> tuple[Cut, list[Any]]:
        """Sort what blocks don't replace into segments, and make a model of each."""
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
        outputs = self._outputs()
        for name, port in outputs.items():
            if key_of(port) not in self.by_out and name not in self.elsewhere:
                self.results[self.level(port)][name] = port
        blocks = [self._block(number, block) for number, block in enumerate(self.found)]
        for name, swept in self.products.items():
            self._sweep(len(blocks), swept, name)
        reads: list[dict[str, int]] = [{} for _ in self.results]
        passed: dict[tuple[object, ...], Any] = {}
        given = {
            each.get_name()
            for each in self.model.get_results()
            if port_name(each.output(0)) in self.elsewhere
        }
        for node in ordered:
            name = node.get_name()
            if name not in self.inner | given and self.levels[name] != _CONSTANT:
                self._feed(node, reads[self.levels[name]], passed)
        for result in self.model.get_results():  # of blocks, now computed from what these made
            name = port_name(result.output(0))
            if name not in self.elsewhere:
                here = self.levels[result.get_name()]
                self.results[here].setdefault(name, result.input_value(0))
        models = [self._model(number, results) for number, results in enumerate(self.results)]
        computes = tuple(map(bool, self.results))
        pooled = zip(blocks, self.pools, strict=True)
        done = tuple(replace(block, pools=tuple(pools)) for block, pools in pooled)
        cut = Cut(
            done,
            tuple(reads),
            computes,
            tuple(self.sweeps),
            tuple(self.handed),
            tuple(outputs),
        )
        return cut, models + self.sweep_models

    def _sweep(self, step: int, swept: Swept, output: str) -> str:
        """Let an output be computed a few rows at a time, in a step; return its name."""
        rows = f"rows_{self._next()}"
        other = None if swept.other is None else self._passed_on(swept.other)
        self.sweep_models.append(swept.model(self.stored, rows, other, output))
        source = self.by_out.get(key_of(swept.source), port_name(swept.source))
        self.sweeps.append(Sweep(step, source, rows, output, swept.step, swept.before, swept.runs))
        return output

    def _feed(
        self, node: Any, reads: dict[str, int], passed: dict[tuple[object, ...], Any]
    ) -> None:
        """Let a node read inputs of its segment where it read what is made elsewhere."""
        here = self.levels[node.get_name()]
        for place in node.inputs():
            port = place.get_source_output()
            number = self.by_out.get(key_of(port))
            if number is None:
                made_here = self.level(port) in {_CONSTANT, here}
                if made_here or port.get_node().get_type_name() == "Parameter":
                    continue
                key = (here, key_of(port))
                if key not in passed:
                    passed[key] = self._passed_on(port)
                place.replace_source_output(passed[key])
                continue
            pooled = self._pooled(node, number)
            if pooled is None:
                place.replace_source_output(self._given(port, number, reads))
            else:
                self.levels[pooled.get_node().get_name()] = here
                node.output(0).replace(pooled)

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
            if key_of(port) in self.by_out:
                return False
            return volume_of(port) is None or (
                node.get_name() in light and len(readers_of(port)) == 1
            )

        return check

    def _read_by(self, block: _Found) -> Iterable[Any]:
        """List what a block reads of the graph."""
        if not block.convolutions and block.swept is None:
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
        if block.swept is not None:
            values = self._sweep(number, block.swept, f"swept_{number}")
        else:
            values = "" if block.convolutions else self._handed(number, block.root)
        bias = np.add.reduce(block.biases) if block.biases else None
        return Block(terms, values, bias, block.eps, block.scale, block.shift, block.slope)

    def _terms(self, number: int, node: Any) -> Iterable[tuple[int | str, np.ndarray | str]]:
        source, weights = node.input_value(0), node.input_value(1)
        constant = constant_of(weights)
        joined = source.get_node()
        if (
            constant is not None
            and joined.get_type_name() == "Concat"
            and joined.get_attributes()["axis"] == 1
            and len(readers_of(source)) == 1
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
        known = self.by_out.get(key_of(port))
        return self._handed(number, port) if known is None else known

    def _handed(self, number: int, port: Any) -> str:
        """Let a segment return a volume with its channels last, as it is stored."""
        from openvino import opset13

        # counted, since the library's own names are others in each process
        name = f"into_block_{number}_{self._next()}"
        last = opset13.transpose(port, CHANNELS_LAST)
        self.results[self.level(port)][name] = opset13.convert(last, self.stored).output(0)
        return name

    def _given(self, port: Any, number: int, reads: dict[str, int]) -> Any:
        """Return a segment's input in place of what a block made."""
        from openvino import opset13

        raw = self._read(number, reads)
        kind = port.get_element_type()
        # turned around first, which costs nothing: the plugin's own layout has channels last
        return opset13.convert(opset13.transpose(raw, CHANNELS_FIRST), kind).output(0)

    def _read(self, number: int, reads: dict[str, int]) -> Any:
        """Return a block's output as a new input `(1, H, W, D, C)` of a segment."""
        for name, known in reads.items():
            if known == number:
                return self.inputs[name]
        name = f"block_{number}_{self._next()}"
        reads[name] = number
        shape = self._stored_shape(self.found[number].out)
        self.inputs[name] = self._parameter(name, shape, self.stored)
        return self.inputs[name]

    @staticmethod
    def _stored_shape(port: Any) -> tuple[int, ...]:
        """Return the shape `(1, H, W, D, C)` in which a volume is stored."""
        _, channels, *space = port.get_partial_shape().to_shape()
        return (1, *space, channels)

    def _pooled(self, node: Any, number: int) -> Any | None:
        """Return averages of a block's output; None if it isn't that what a node does.

        The plugin's own pool would have the volume turned around for it.
        """
        from openvino import opset13

        if node.get_type_name() != "AvgPool":
            return None
        options = node.get_attributes()
        kernel, none = tuple(options["kernel"]), [0, 0, 0]
        _, channels, *space = self.found[number].out.get_partial_shape().to_shape()
        if (
            options["strides"] != list(kernel)
            or options["pads_begin"] != none
            or options["pads_end"] != none
            or any(size % k for size, k in zip(space, kernel, strict=True))
        ):
            return None
        name = f"pooled_{number}_{self._next()}"
        self.pools[number].append(Pool(name, kernel))
        left = [size // k for size, k in zip(space, kernel, strict=True)]
        means = self._parameter(name, [1, *left, channels], self.openvino.Type.f32)
        kind = node.get_output_element_type(0)
        return opset13.convert(opset13.transpose(means, CHANNELS_FIRST), kind).output(0)

    def _passed_on(self, port: Any) -> Any:
        """Return a value that is given, or that an earlier segment makes, as an input of a model.

        In bfloat16 where volumes are: the plugin computes what leads to a float32 result in
        float32, and would convert whole volumes for it.
        """
        from openvino import opset13

        if port.get_node().get_type_name() == "Parameter":
            shape, kind = port.get_partial_shape(), port.get_element_type()
            return self._parameter(port_name(port), shape, kind)
        results = self.results[self.level(port)]
        name = next((known for known, kept in results.items() if key_of(kept) == key_of(port)), "")
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
