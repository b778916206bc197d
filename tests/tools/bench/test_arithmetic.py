from pathlib import Path

import numpy as np
import onnx
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.tools.bench.arithmetic import graph_flop, pass_tflop
from medals_rt.tools.bench.roofline import write_graphs


def test_one_node_of_each_kind_is_counted_by_its_definition(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "conv": rng.random((6, 4, 3, 3, 3), np.float32),
        "up": rng.random((6, 5, 2, 2, 2), np.float32),
        "matrix": rng.random((7, 5), np.float32),
    }
    nodes = [
        onnx.helper.make_node("Conv", ["x", "conv"], ["a"], pads=[1] * 6, strides=[2] * 3),
        onnx.helper.make_node("ConvTranspose", ["a", "up"], ["b"], strides=[2] * 3),
        onnx.helper.make_node("Gemm", ["q", "matrix"], ["y"]),
        onnx.helper.make_node("MatMul", ["q", "matrix"], ["z"]),
    ]
    float32 = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "counted",
        [
            onnx.helper.make_tensor_value_info("x", float32, [1, 4, 8, 8, 8]),
            onnx.helper.make_tensor_value_info("q", float32, ["N", 7]),
        ],
        [onnx.helper.make_tensor_value_info(name, float32, None) for name in ("b", "y", "z")],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = tmp_path / "counted.onnx"
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    onnx.save(model, path)

    convolution = 2 * (6 * 4**3) * (4 * 27)
    transposed = 2 * (6 * 4**3) * (5 * 8)
    products = 2 * (2 * 3 * 5 * 7)
    assert graph_flop(path, 3) == convolution + transposed + products


def test_roof_graphs_hold_what_their_names_say(tmp_path: Path) -> None:
    matrix, convolution = write_graphs(tmp_path)

    assert graph_flop(matrix, 1) == 4 * 2 * 2048**3
    assert graph_flop(convolution, 1) == 4 * 2 * 64 * 64 * 27 * 64**3


@pytest.mark.parametrize("stage", [1, 2])
def test_a_pass_costs_more_with_prompts_and_with_classes(tiny_bundle: Bundle, stage: int) -> None:
    text_only = pass_tflop(tiny_bundle, stage, 2, prompted=False)

    assert 0 < text_only < pass_tflop(tiny_bundle, stage, 2, prompted=True)
    assert text_only < pass_tflop(tiny_bundle, stage, 4, prompted=False)
    many = pass_tflop(tiny_bundle, stage, 40, prompted=True)
    assert many < pass_tflop(tiny_bundle, stage, 80, prompted=True)
