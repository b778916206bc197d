r"""Which of cuDNN's plans is fastest, and what can it compute along with a convolution?

    python benchmarks/gpu_plans.py --output benchmarks/results/gpu/plans

Convolutions of the released size, each by the first plans of cuDNN's modes A (whose first plan the
runner cudnn takes) and B, and graphs that hold a convolution and what comes before or after it: the
statistics of a norm, a sum, an activation. Milliseconds between two events on the stream, the
median of some runs. Beside the report, `device.json` is what cuDNN knows of the GPU: with it, plans
can be made without one (`tests/runners/cudnn/test_plans.py`). Needs a GPU.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cudnn
import cupy
from gpu_layers import milliseconds
from gpu_report import PartReport

from medals_rt.runners.cudnn.convolution import Kind, Plan

COLUMNS = ("what", "shape", "mode", "plan", "ms", "tflop_per_s", "workspace_mib", "name")
MOST_PLANS = 5
MOST_COMPILED = 2
CHANNELS = 64

Sizes = tuple[int, int, int]
Bound = list[tuple[Any, Any]]
"""Tensors of a graph, and the arrays that they are."""


def shapes(edge: int) -> Iterator[tuple[Kind, Sizes, int, int, int]]:
    """Go through convolutions of a window with such edges: kind, sizes, channels in and out."""
    for down, inputs, outputs, stride in (
        (1, 64, 64, 1),
        (1, 128, 64, 1),
        (1, 8, 64, 1),
        (1, 64, 64, 2),
        (2, 64, 64, 1),
        (4, 128, 128, 1),
        (8, 256, 256, 1),
    ):
        yield "convolve", (edge // down,) * 3, inputs, outputs, stride
    yield "upsample", (edge // 2,) * 3, 64, 64, 2


def volume(sizes: Sizes, channels: int) -> Any:
    """Make a volume of small numbers, some of them 0."""
    count = sizes[0] * sizes[1] * sizes[2] * channels
    values = (cupy.arange(count, dtype=cupy.int32) % 7).astype(cupy.float16)
    return values.reshape(*sizes, channels)


class Timer:
    """Times plans of graphs, and writes a row for each."""

    def __init__(self, report: PartReport, repetitions: int) -> None:
        self._report, self._repetitions = report, repetitions
        self._handle = cudnn.create_handle()
        cudnn.set_stream(handle=self._handle, stream=cupy.cuda.get_current_stream().ptr)

    def time_convolution(
        self, mode: str, kind: Kind, sizes: Sizes, inputs: int, outputs: int, stride: int
    ) -> None:
        """Time the plans of a convolution alone."""
        edge = 2 if kind == "upsample" else 3
        weights_shape = (outputs, *[edge] * 3, inputs)
        if kind == "upsample":
            weights_shape = (inputs, *[edge] * 3, outputs)
        row = {"what": kind, "shape": f"{sizes} {inputs} to {outputs}, stride {stride}"}
        try:
            plan = Plan(
                cudnn, self._handle, kind, (*sizes, inputs), weights_shape, stride, modes=(mode,)
            )
        except Exception as error:  # noqa: BLE001 - what this GPU can't run is a row
            self._report.add(**row, mode=mode, name=f"{type(error).__name__}: {error}")
            return
        given = volume(sizes, inputs)
        weights = cupy.ones(weights_shape, cupy.float16)
        result = cupy.empty(plan.shape, cupy.float16)
        bound = list(zip(plan.tensors, (given, weights, result), strict=True))
        voxels = result.size // outputs if kind == "convolve" else given.size // inputs
        flop = 2 * edge**3 * inputs * outputs * voxels
        self._time_plans(plan.graph, bound, {**row, "mode": mode}, flop)

    def time_fused(self, what: str, sizes: Sizes, describe: Callable[..., Bound]) -> None:
        """Time the plans of a graph with a convolution of 64 channels in it."""
        row = {"what": what, "shape": f"{sizes} {CHANNELS} to {CHANNELS}", "mode": "A"}
        half, single = cudnn.data_type.HALF, cudnn.data_type.FLOAT
        try:
            graph = cudnn.pygraph(
                handle=self._handle,
                io_data_type=half,
                intermediate_data_type=single,
                compute_data_type=single,
            )
            bound = describe(graph, sizes)
            graph.validate()
            graph.build_operation_graph()
            graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
            graph.check_support()
        except Exception as error:  # noqa: BLE001 - as above
            self._report.add(**row, name=f"{type(error).__name__}: {' '.join(str(error).split())}")
            return
        flop = 2 * 27 * CHANNELS**2 * sizes[0] * sizes[1] * sizes[2]
        self._time_plans(graph, bound, row, flop)

    def _time_plans(self, graph: Any, bound: Bound, row: dict[str, Any], flop: int) -> None:
        places = {tensor: array.data.ptr for tensor, array in bound}
        most = MOST_PLANS if row["what"] not in FUSED else MOST_COMPILED  # that takes seconds
        for index in range(min(graph.get_execution_plan_count(), most)):
            found = {**row, "plan": index}
            try:
                graph.build_plan_at_index(index)
                size = graph.get_workspace_size_plan_at_index(index)
                found["workspace_mib"] = round(size / 2**20, 1)
                workspace = cupy.empty(max(1, size), cupy.uint8)

                def execute(index: int = index, workspace: Any = workspace) -> None:
                    graph.execute_plan_at_index(
                        places, workspace.data.ptr, index, handle=self._handle
                    )

                ms = milliseconds(execute, self._repetitions)
                found |= {"ms": round(ms, 3), "tflop_per_s": round(flop / ms / 1e9, 1)}
                found["name"] = graph.get_plan_name_at_index(index)
            except Exception as error:  # noqa: BLE001 - as above
                found["name"] = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
            self._report.add(**found)


# Graphs with a convolution -----------------------------------------------------------------------


def tensor(graph: Any, name: str, dims: tuple[int, ...], dtype: Any) -> Any:
    """Describe an array of axes (N, C, H, W, D) that is stored (N, H, W, D, C)."""
    _, channels, height, width, depth = dims
    row = depth * channels
    strides = [height * width * row, 1, width * row, row, channels]
    return graph.tensor(name=name, dim=list(dims), stride=strides, data_type=dtype)


def convolved(graph: Any, image: Any) -> tuple[Any, Bound]:
    """Describe a convolution of an image, and bind its weights."""
    half = cudnn.data_type.HALF
    weights = tensor(graph, "weights", (CHANNELS, CHANNELS, 3, 3, 3), half)
    found = graph.conv_fprop(
        image=image,
        weight=weights,
        padding=[1] * 3,
        stride=[1] * 3,
        dilation=[1] * 3,
        compute_data_type=cudnn.data_type.FLOAT,
    )
    return found, [(weights, cupy.ones((CHANNELS, 3, 3, 3, CHANNELS), cupy.float16))]


def image_of(graph: Any, sizes: Sizes, name: str = "image") -> tuple[Any, Bound]:
    """Describe a volume, and bind one."""
    image = tensor(graph, name, (1, CHANNELS, *sizes), cudnn.data_type.HALF)
    return image, [(image, volume(sizes, CHANNELS))]


def result_of(found: Any, sizes: Sizes) -> Bound:
    """Make what a graph gives an output in fp16, and bind it."""
    height, width, depth = sizes
    row = depth * CHANNELS
    found.set_output(True).set_data_type(cudnn.data_type.HALF)
    found.set_dim([1, CHANNELS, *sizes])
    found.set_stride([height * width * row, 1, width * row, row, CHANNELS])
    return [(found, cupy.empty((*sizes, CHANNELS), cupy.float16))]


def of_channels(graph: Any, name: str) -> tuple[Any, Bound]:
    """Describe a number in fp32 for each channel, and bind ones."""
    found = tensor(graph, name, (1, CHANNELS, 1, 1, 1), cudnn.data_type.FLOAT)
    return found, [(found, cupy.ones(CHANNELS, cupy.float32))]


def statistics(graph: Any, sizes: Sizes) -> Bound:
    """Add up each channel's values and squares as the convolution writes them."""
    image, of_image = image_of(graph, sizes)
    found, of_weights = convolved(graph, image)
    sums = graph.genstats(input=found, compute_data_type=cudnn.data_type.FLOAT)
    for each in sums:
        each.set_output(True).set_data_type(cudnn.data_type.FLOAT)
    of_sums = [(each, cupy.empty(CHANNELS, cupy.float32)) for each in sums]
    return [*of_image, *of_weights, *result_of(found, sizes), *of_sums]


def add(graph: Any, sizes: Sizes) -> Bound:
    """Add another volume, as the refiner of prompts does."""
    image, of_image = image_of(graph, sizes)
    found, of_weights = convolved(graph, image)
    other, of_other = image_of(graph, sizes, "other")
    both = graph.add(a=found, b=other, compute_data_type=cudnn.data_type.FLOAT)
    return [*of_image, *of_weights, *of_other, *result_of(both, sizes)]


def activate(graph: Any, sizes: Sizes) -> Bound:
    """Add a bias and activate."""
    image, of_image = image_of(graph, sizes)
    found, of_weights = convolved(graph, image)
    bias, of_bias = of_channels(graph, "bias")
    single = cudnn.data_type.FLOAT
    shifted = graph.add(a=found, b=bias, compute_data_type=single)
    active = graph.leaky_relu(input=shifted, negative_slope=0.01, compute_data_type=single)
    return [*of_image, *of_weights, *of_bias, *result_of(active, sizes)]


def norm_before(graph: Any, sizes: Sizes) -> Bound:
    """Scale, shift and activate the volume as the convolution reads it."""
    image, of_image = image_of(graph, sizes)
    scale, of_scale = of_channels(graph, "scale")
    shift, of_shift = of_channels(graph, "shift")
    single = cudnn.data_type.FLOAT
    normed = graph.mul(a=image, b=scale, compute_data_type=single)
    normed = graph.add(a=normed, b=shift, compute_data_type=single)
    normed = graph.leaky_relu(input=normed, negative_slope=0.01, compute_data_type=single)
    normed.set_data_type(cudnn.data_type.HALF)
    found, of_weights = convolved(graph, normed)
    return [*of_image, *of_scale, *of_shift, *of_weights, *result_of(found, sizes)]


FUSED: dict[str, Callable[..., Bound]] = {
    "convolution and statistics": statistics,
    "convolution and sum": add,
    "convolution, bias and leaky ReLU": activate,
    "norm, leaky ReLU and convolution": norm_before,
}


def main() -> None:
    """Time plans."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="without ending")
    parser.add_argument("--edge", type=int, default=192, help="of a window, voxels")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    report = PartReport(options.output, "Which of cuDNN's plans is fastest?", COLUMNS)
    report.remark(f"cuDNN {cudnn.backend_version_string()}, frontend {cudnn.__version__}.")
    timer = Timer(report, options.repetitions)
    for kind, sizes, inputs, outputs, stride in shapes(options.edge):
        timer.time_convolution("A", kind, sizes, inputs, outputs, stride)
    for what, describe in FUSED.items():
        timer.time_fused(what, (options.edge,) * 3, describe)
    for kind, sizes, inputs, outputs, stride in shapes(options.edge):
        timer.time_convolution("B", kind, sizes, inputs, outputs, stride)
    properties = cudnn.create_device_properties(cupy.cuda.Device().id).serialize()
    options.output.with_name("device.json").write_text(properties, encoding="utf-8")


if __name__ == "__main__":
    main()
