"""How fast a library multiplies matrices and convolves on this machine: the roof over a network.

The two graphs are made here, with the shapes that dominate Medal S: 3x3x3 convolutions of 64
channels, several in a row so that handing arrays in and out weighs little.
"""

import tempfile
import time
from pathlib import Path

import numpy as np

from medals_rt.common.arrays import to_device
from medals_rt.common.choices import RunnerKind
from medals_rt.common.optional_deps import import_optional
from medals_rt.runners.selection import open_runner, precisions
from medals_rt.tools.bench.arithmetic import graph_flop
from medals_rt.tools.bench.gpu_memory import wait_for_device
from medals_rt.tools.bench.records import Roofline

_CHANNELS = 64
_EDGE = 64
_CONVOLUTIONS = 4
_MATRIX = 2048
_PRODUCTS = 4
_REPETITIONS = 3


def measure_roofline(kind: RunnerKind, precision: str | None, threads: int | None) -> Roofline:
    """Time both graphs in a library; the best of three runs after a first one counts.

    Parameters
    ----------
    kind, precision, threads
        As for `open_runner`.
    """
    half = precision == "fp16" and "fp16" not in precisions(kind)  # as its graphs say, then
    with tempfile.TemporaryDirectory() as folder:
        graphs = write_graphs(Path(folder), half=half)
        rates = [_rate(kind, path, precision, threads) for path in graphs]
    return Roofline(matrix_tflop_per_second=rates[0], convolution_tflop_per_second=rates[1])


def write_graphs(folder: Path, *, half: bool = False) -> tuple[Path, Path]:
    """Write `matrix.onnx` and `convolution.onnx`; `half`: they compute in fp16."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((_MATRIX, _MATRIX), np.float32) / np.sqrt(_MATRIX)
    kernel = rng.standard_normal((_CHANNELS, _CHANNELS, 3, 3, 3), np.float32)
    kernel /= np.sqrt(kernel[0].size)
    chains = {
        "matrix": ("MatMul", matrix, (_MATRIX, _MATRIX), _PRODUCTS, {}),
        "convolution": (
            "Conv",
            kernel,
            (1, _CHANNELS, _EDGE, _EDGE, _EDGE),
            _CONVOLUTIONS,
            {"pads": [1] * 6},
        ),
    }
    paths = []
    for name, chain in chains.items():
        path = folder / f"{name}.onnx"
        _write_chain(path, *chain, half=half)
        paths.append(path)
    return paths[0], paths[1]


def _write_chain(
    path: Path,
    operator: str,
    weight: np.ndarray,
    shape: tuple[int, ...],
    length: int,
    attributes: dict[str, list[int]],
    *,
    half: bool,
) -> None:
    onnx = import_optional("ONNX", "measuring roofline")
    dtype = onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
    weight = weight.astype(np.float16 if half else np.float32)
    names = [f"x{i}" for i in range(length)] + ["y"]
    nodes = [
        onnx.helper.make_node(operator, [names[i], "weight"], [names[i + 1]], **attributes)
        for i in range(length)
    ]
    graph = onnx.helper.make_graph(
        nodes,
        path.stem,
        [onnx.helper.make_tensor_value_info("x0", dtype, shape)],
        [onnx.helper.make_tensor_value_info("y", dtype, shape)],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10
    )
    onnx.save(model, path)


def _rate(kind: RunnerKind, path: Path, precision: str | None, threads: int | None) -> float:
    runner = open_runner(kind, path, precision=precision, threads=threads)
    try:
        spec = runner.inputs[0]
        shape = [size for size in spec.shape if isinstance(size, int)]
        value = np.random.default_rng(1).standard_normal(shape).astype(spec.dtype)
        feeds = {spec.name: to_device(value, runner.device)}
        seconds = []
        for _ in range(1 + _REPETITIONS):
            start = time.perf_counter()
            found = runner.run(feeds)
            wait_for_device(found["y"])
            seconds.append(time.perf_counter() - start)
    finally:
        runner.close()
    return graph_flop(path, 1) / min(seconds[1:]) / 1e12
