"""OpenVINO's graphs of a pass: joined into one, and arranged as its CPU plugin runs them best.

What is done here is of no use to other libraries, so the exported graphs are left as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, Final

from medals_rt.common.choices import Precision
from medals_rt.common.optional_deps import import_optional

HANDED_OVER = frozenset({"features", "refined"})
"""Values that only the next chain reads: `(1, H, W, D, C)`, in bf16 where chains compute in it."""

PROMPT_INDEX = "prompt_index"
"""Input of a chain that looks `F_a` up: `(H, W, D)` int32, ``n + 1`` for class n, 0 for none."""

AXES_DHW: Final = [2, 3, 4]
"""Of a volume `(1, C, H, W, D)`."""

CHANNELS_LAST: Final = [0, 2, 3, 4, 1]
CHANNELS_FIRST: Final = [0, 4, 1, 2, 3]
"""Orders for transposing one to `(1, H, W, D, C)`, and back."""

LARGE_PLANE_VOXELS = 32**3
"""Above it, fp32 norms are computed by sums in steps; up to it the library's are 1e-5 exact."""

SPLIT_VOXELS = 1 << 20
"""Volumes of so many voxels are not joined for a convolution; see `arrange_for_bf16`."""

_LONGEST_POOL = 8  # along each axis, so that no sum is of more than 512 values
_LONGEST_SUM = _LONGEST_POOL**3
_OUTPUT_NODE = "/sink_port_0"  # as the library itself tells an output's node from its tensor


def join_graphs(paths: Sequence[Path]) -> Any:
    """Read ONNX graphs and make one `openvino.Model` of them, fed as `OpenVINORunner` says.

    Where one graph fixes the number of prompts, what comes from another is given that shape, and
    the other keeps its own free. Fixing all would be simpler, but compiled in bf16 for as many
    prompts as it has attention heads, a query decoder gives a `T` that is up to a tenth wrong
    (OpenVINO 2026.4).
    """
    openvino = import_openvino()
    core = shared_core()
    made: dict[str, Any] = {}
    read: set[str] = set()
    parameters: dict[str, Any] = {}
    for path in paths:
        graph = core.read_model(str(path))
        for parameter in graph.get_parameters():
            name = parameter.output(0).get_any_name()
            source = made.get(name)
            if source is None and name in parameters:
                source = parameters[name].output(0)
            if source is not None:
                parameter.output(0).replace(_of_width(source, parameter))
                read.add(name)
            elif name == "prompt_features" and "adapted_queries" in made:
                index, source = _looked_up(made["adapted_queries"], parameter)
                parameters[PROMPT_INDEX] = index
                parameter.output(0).replace(source)
            else:
                parameters[name] = parameter
        for output in graph.outputs:
            made[output.get_any_name()] = output.get_node().input_value(0)
    outputs = {name: value for name, value in made.items() if name not in read}
    model = openvino.Model(
        [openvino.op.Result(value) for value in outputs.values()],
        list(parameters.values()),
        " + ".join(path.stem for path in paths),
    )
    model.validate_nodes_and_infer_types()
    return name_outputs(model, list(outputs))


def arrange(model: Any, precision: Precision, *, chained: bool) -> Any:
    """Arrange a model as suits its precision, and that it is one of a chain."""
    if precision == "fp32":
        return arrange_for_fp32(model, chained=chained)
    return arrange_for_bf16(model) if chained else model


def arrange_for_bf16(model: Any) -> Any:
    """Take out what a chain spends beside arithmetic when it computes in bf16.

    There the plugin keeps volumes with their channels last. So values that are handed over are
    passed in that layout, and classes are products with voxels' rows: no volume is
    transposed. Joining two volumes' channels is a copy of both; instead each goes through its half
    of the convolution, which adds to what the first one gave. That rounds once more, so it is done
    only to large volumes, whose copies cost time and memory.
    """
    _change_each(model, {"Convolution": _split_convolution, "MatMul": _multiply_rows})
    return _with_channels_last(model, import_openvino().Type.bf16)


def arrange_for_fp32(model: Any, *, chained: bool = False) -> Any:
    """Sum in steps where a norm of large planes is computed, and join no volumes.

    The library adds a plane's voxels to running sums in float32. These lose what is small beside
    them: of 192^3 voxels a norm is 1e-2 deviations off (OpenVINO 2026.4), where it is 1e-6 by
    averages of blocks, and averages of these. Not in bf16, which rounds more than that away. Why no
    volumes are joined, and how a chain's are handed over, `arrange_for_bf16` says.
    """
    changes = {"Convolution": _split_convolution, "MVN": _norm_in_steps}
    if chained:
        changes["MatMul"] = _multiply_rows
    _change_each(model, changes)
    model.validate_nodes_and_infer_types()
    return _with_channels_last(model, import_openvino().Type.f32) if chained else model


def import_openvino() -> Any:
    """Import OpenVINO, or say what installs it."""
    return import_optional("OpenVINO", "the runner openvino")


def shared_core() -> Any:
    """Return the process's one `openvino.Core`.

    Each has a CPU plugin of its own, which gives the thread another stack for signal handlers while
    it lives. Of several, those that end in the order in which they began leave a stack that is no
    more, and the next signal, Ctrl-C say, is a segmentation fault (OpenVINO 2026.4).
    """
    return _core_of(import_openvino())


@cache
def _core_of(openvino: Any) -> Any:
    return openvino.Core()


def port_name(port: Any) -> str:
    """Name an input or output.

    A tensor next to a cast of no effect also has the cast's name: the node's name is the one.
    """
    name: str = port.get_node().get_friendly_name()
    return name.removesuffix(_OUTPUT_NODE)


def _looked_up(adapted_queries: Any, prompt_features: Any) -> tuple[Any, Any]:
    """Return the input `PROMPT_INDEX`, and `F_a (1, C, H, W, D)`: a voxel's row of `T (N, C)`."""
    openvino = import_openvino()
    from openvino import opset13

    _, channels, *window = prompt_features.get_partial_shape().to_shape()
    index = opset13.parameter(window, openvino.Type.i32, name=PROMPT_INDEX)
    index.output(0).set_names({PROMPT_INDEX})
    nothing = opset13.constant([[0.0] * channels], adapted_queries.get_element_type())
    table = opset13.concat([nothing, adapted_queries], 0)
    rows = opset13.unsqueeze(opset13.gather(table, index, 0), 0)
    return index, opset13.transpose(rows, CHANNELS_FIRST).output(0)


def _change_each(model: Any, changes: Mapping[str, Callable[[Any], None]]) -> None:
    """Change operations by their type, in the order in which they are computed."""
    for node in model.get_ordered_ops():
        change = changes.get(node.get_type_name())
        if change is not None:
            change(node)


def _split_convolution(convolution: Any) -> None:
    """Convolve large volumes, joined along their channels, one by one, and add the results."""
    from openvino import opset13

    joined = convolution.input_value(0).get_node()
    weights = convolution.input_value(1)
    if joined.get_type_name() != "Concat" or joined.get_attributes()["axis"] != 1:
        return
    shape = joined.get_output_partial_shape(0)
    if any(axis.is_dynamic for axis in shape) or prod(shape.to_shape()[2:]) < SPLIT_VOXELS:
        return
    parts = joined.input_values()
    sizes = [part.get_partial_shape()[1].get_length() for part in parts]
    halves = opset13.variadic_split(weights, 1, sizes)
    # the bias, if there is one, goes with the first part
    total = convolution.output(0)
    for reader in total.get_target_inputs():
        if reader.get_node().get_type_name() == "Add":
            total = reader.get_node().output(0)
    readers = total.get_target_inputs()
    convolution.input(0).replace_source_output(parts[0])
    convolution.input(1).replace_source_output(halves.output(0))
    options = convolution.get_attributes()
    summed = total
    for number in range(1, len(parts)):
        more = opset13.convolution(
            parts[number],
            halves.output(number),
            options["strides"],
            options["pads_begin"],
            options["pads_end"],
            options["dilations"],
        )
        summed = opset13.add(summed, more).output(0)
    for reader in readers:
        reader.replace_source_output(summed)


def _multiply_rows(product: Any) -> None:
    """Let a product `(N, C)` times `(C, H W D)` read a volume's voxels as rows of C channels."""
    from openvino import opset13

    volume = product.input_value(1)
    while volume.get_node().get_type_name() in {"Reshape", "Squeeze"}:
        volume = volume.get_node().input_value(0)
    shape, flat = volume.get_partial_shape(), product.input_value(1).get_partial_shape()
    if shape.is_dynamic or len(shape) != 5 or shape[0] != 1:
        return
    _, channels, *window = shape.to_shape()
    if flat.is_dynamic or flat.to_shape() != [channels, prod(window)]:
        return
    voxels = opset13.reshape(
        opset13.transpose(volume, CHANNELS_LAST), [prod(window), channels], False
    )
    rows = opset13.matmul(product.input_value(0), voxels, False, True)
    product.output(0).replace(rows.output(0))


def _norm_in_steps(norm: Any) -> None:
    """Return ``(x - mean) / sqrt(variance + eps)`` by means in steps, where planes are large."""
    from openvino import opset13

    options, values = norm.get_attributes(), norm.input_value(0)
    pools = _pools(values.get_partial_shape(), norm.input_value(1).get_node())
    if not pools or not options["normalize_variance"] or options["eps_mode"] != "INSIDE_SQRT":
        return
    mean = _mean_in_steps(values, pools)
    # The op of its own keeps the library from computing `x - mean` once for both of its readers,
    # which would be a volume more to write and to hold.
    variance = _mean_in_steps(opset13.squared_difference(values, mean), pools)
    eps = opset13.constant(options["eps"], norm.get_output_element_type(0))
    deviation = opset13.sqrt(opset13.add(variance, eps))
    normed = opset13.divide(opset13.subtract(values, mean), deviation)
    norm.output(0).replace(normed.output(0))


def _pools(shape: Any, axes: Any) -> list[list[int]]:
    """List sizes `(h, w, d)` of the blocks to average, step by step; none where not to do so.

    Blocks fill a plane: at its edges they would else weigh more. So a plane with long axes that
    only large primes divide is left to the library.
    """
    volumes = shape.rank.is_static and len(shape) == 5 and all(axis.is_static for axis in shape)
    if not volumes or axes.get_type_name() != "Constant" or axes.data.tolist() != AXES_DHW:
        return []
    plane = shape.to_shape()[2:]
    if prod(plane) <= LARGE_PLANE_VOXELS:
        return []
    pools = []
    while prod(plane) > _LONGEST_SUM:
        pool = [max(k for k in range(1, _LONGEST_POOL + 1) if size % k == 0) for size in plane]
        if prod(pool) == 1:
            return []
        pools.append(pool)
        plane = [size // k for size, k in zip(plane, pool, strict=True)]
    return pools


def _mean_in_steps(values: Any, pools: Sequence[Sequence[int]]) -> Any:
    """Average over planes: blocks, blocks of these, and last what is left.

    By pooling, since averages along one axis after the other are joined into one again.
    """
    from openvino import opset13

    none = [0, 0, 0]
    for pool in pools:
        values = opset13.avg_pool(values, pool, none, none, pool, exclude_pad=True)
    return opset13.reduce_mean(values, AXES_DHW, keep_dims=True)


def _with_channels_last(model: Any, kind: Any) -> Any:
    """Return and take values of the names `HANDED_OVER` as `(1, H, W, D, C)` of a type."""
    openvino = import_openvino()
    from openvino import opset13

    inputs = []
    for parameter in model.get_parameters():
        name = port_name(parameter.output(0))
        if name not in HANDED_OVER:
            inputs.append(parameter)
            continue
        _, channels, *window = parameter.get_partial_shape().to_shape()
        taken = opset13.parameter([1, *window, channels], kind, name=name)
        taken.output(0).set_names({name})
        values = opset13.convert(taken, parameter.get_element_type())
        parameter.output(0).replace(opset13.transpose(values, CHANNELS_FIRST).output(0))
        inputs.append(taken)
    outputs = {}
    for result in model.get_results():
        name, value = port_name(result.output(0)), result.input_value(0)
        if name in HANDED_OVER:
            # A pool of single voxels, or the plugin copies all of it once more, and slowly: it
            # does not turn around what a norm has written in place.
            ones, none = [1, 1, 1], [0, 0, 0]
            pooled = opset13.max_pool(value, ones, ones, none, none, ones).output(0)
            value = opset13.convert(opset13.transpose(pooled, CHANNELS_LAST), kind).output(0)
        outputs[name] = value
    arranged = openvino.Model(
        [openvino.op.Result(value) for value in outputs.values()], inputs, model.get_friendly_name()
    )
    return name_outputs(arranged, list(outputs))


def name_outputs(model: Any, outputs: Sequence[str]) -> Any:
    """Name a model's outputs, on tensor and node, where the library loses them."""
    for port, name in zip(model.outputs, outputs, strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_friendly_name(name + _OUTPUT_NODE)
    return model


def _of_width(source: Any, parameter: Any) -> Any:
    """Return what comes from one graph the number of prompts that the next one fixes."""
    wanted = parameter.get_partial_shape()
    if source.get_partial_shape().is_static or wanted.is_dynamic:
        return source
    from openvino import opset13

    return opset13.reshape(source, list(wanted.to_shape()), special_zero=False).output(0)
