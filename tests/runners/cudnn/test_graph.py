"""What is read of an ONNX file, and what is put together in it."""

import numpy as np
import onnx
import pytest

from medals_rt.common.errors import RunnerError
from medals_rt.runners.cudnn.graph import NORM_ACTIVATE, PROBABILITY, UPSAMPLE_JOIN, read_graph
from tests.errors import raises


def graph_of(bundle, name):
    return read_graph(bundle.graph_path(1, name))


def test_norms_and_activations_are_one_and_their_biases_gone(tiny_half_bundle):
    graph = graph_of(tiny_half_bundle, "image_encoder")
    kinds = [node.op for node in graph.nodes]
    convolutions = [node for node in graph.nodes if node.op == "Conv"]
    assert kinds.count(NORM_ACTIVATE) == len(convolutions) > 0
    assert not {"InstanceNormalization", "LeakyRelu"} & set(kinds)
    assert {len(node.inputs) for node in convolutions} == {2}


def test_a_bias_stays_where_no_norm_takes_it_off_again(tiny_half_bundle):
    graph = graph_of(tiny_half_bundle, "image_encoder")
    assert {len(node.inputs) for node in graph.nodes if node.op == UPSAMPLE_JOIN} == {4}


def test_a_norm_overwrites_nothing_that_it_was_given(tmp_path):
    """Norms work in place: not on what a caller passed in, nor on what others read."""
    volume, features = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, (1, 8, 4, 4, 4))
        for name in ("volume", "features")
    )
    constants = [
        onnx.numpy_helper.from_array(np.ones(8, np.float16), name) for name in ("scale", "shift")
    ]
    nodes = [
        onnx.helper.make_node("InstanceNormalization", ["volume", "scale", "shift"], ["normed"]),
        onnx.helper.make_node("LeakyRelu", ["normed"], ["features"]),
    ]
    graph = onnx.helper.make_graph(nodes, "norm", [volume], [features], constants)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "norm.onnx")
    kinds = [node.op for node in read_graph(tmp_path / "norm.onnx").nodes]
    assert kinds == ["InstanceNormalization", "LeakyRelu"]


def test_what_is_upsampled_is_joined_at_once(tiny_half_bundle):
    kinds = [node.op for node in graph_of(tiny_half_bundle, "image_encoder").nodes]
    assert UPSAMPLE_JOIN in kinds
    assert "ConvTranspose" not in kinds


def test_probabilities_are_not_cast_first(tiny_half_bundle):
    kinds = [node.op for node in graph_of(tiny_half_bundle, "classifier").nodes]
    assert kinds[-1] == PROBABILITY
    assert "Sigmoid" not in kinds


def test_pooled_volumes_are_not_cast(tiny_half_bundle):
    graph = graph_of(tiny_half_bundle, "image_encoder")
    made_by = {name: node.op for node in graph.nodes for name in node.outputs}
    pooled = [node.inputs[0] for node in graph.nodes if node.op == "AveragePool"]
    assert {made_by[name] for name in pooled} == {NORM_ACTIVATE}


def test_what_goes_in_and_out_is_as_the_bundle_says(tiny_half_bundle):
    graph = graph_of(tiny_half_bundle, "refiner")
    record = tiny_half_bundle.graph(1, "refiner")
    for found, said in ((graph.inputs, record.inputs), (graph.outputs, record.outputs)):
        assert [(each.name, each.shape, each.dtype) for each in found] == [
            (each.name, each.shape, each.dtype) for each in said
        ]


@pytest.mark.parametrize(
    ("content", "code"), [(b"", "graph-empty"), (b"no graph at all", "graph-refused")]
)
def test_no_onnx_file(tmp_path, content, code):
    (tmp_path / "graph.onnx").write_bytes(content)
    with raises(RunnerError, code):
        read_graph(tmp_path / "graph.onnx")
