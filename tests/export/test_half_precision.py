"""Bundles in half precision: what computes in what, and how near it comes to PyTorch in fp32."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onnx
from onnx import TensorProto, shape_inference

from medals_export.arithmetic import ARITHMETICS, FP32, half_network
from medals_export.graph_checks import check_graph
from medals_export.graph_plans import graph_plans
from medals_export.onnx_graphs import trace
from medals_export.verify import reference_passes, relative_error, unverified, verify_graph
from medals_rt.bundle.manifest import FOLDED_REFINERS, GRAPH_NAMES, HANDED_ON_DTYPES
from medals_rt.common.errors import ExportError
from medals_rt.runners.selection import open_runner, precisions
from tests.bundles import tiny_bank, tiny_checkpoint
from tests.errors import raises

TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
HANDED_ON = {"features", "image_embedding", "refined"}
IN_FP32 = {"InstanceNormalization", "LayerNormalization", "Softmax", "Sigmoid", "AveragePool"}
RUNNERS = {"fp16": ("openvino", "onnxruntime"), "bf16": ("openvino",)}


# the traces of bf16 take another ten seconds, and go through the same code
@pytest.fixture(scope="module", params=["fp16", pytest.param("bf16", marks=pytest.mark.slow)])
def traced(request):
    """A stage's graphs in one of the half precisions."""
    plans = graph_plans(tiny_checkpoint(2).model, ARITHMETICS[request.param])
    return request.param, dict(zip(GRAPH_NAMES, trace(plans), strict=True))


@pytest.fixture(scope="module")
def references():
    network = tiny_checkpoint(2).model
    return reference_passes(network, network, tiny_bank().class_embeddings)


def input_types(model):
    """Types of every node's inputs, by the node's operator."""
    graph = shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {item.name: item.data_type for item in graph.initializer}
    for value in (*graph.input, *graph.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    for node in graph.node:
        yield node.op_type, {types[name] for name in node.input if name}


def rounds(precision, graph):
    """Whether weights, inputs or arithmetic of a graph are in half on the processor at hand.

    The classifier has no weights, and its inputs are float32 in bf16. OpenVINO rounds them only on
    a processor that computes in bf16, and takes them as they are on any other.
    """
    return (precision, graph) != ("bf16", "classifier") or "bf16" in precisions("openvino")


def test_operators_compute_in_the_type_they_should(traced):
    precision, graphs = traced
    seen = set()
    for _, model in graphs.values():
        onnx.checker.check_model(model, full_check=True)
        for operator, types in input_types(model):
            seen.add(operator)
            if operator in IN_FP32:
                assert types == {TensorProto.FLOAT}, operator
            elif operator in {"Conv", "MatMul", "Gemm"}:
                assert types == {TYPES[precision]}, operator
            elif operator == "ConvTranspose":
                expected = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
                assert types == {expected}
    assert seen >= {*IN_FP32, "Conv", "ConvTranspose", "MatMul", "Cast"}


def test_what_the_run_time_touches_is_float32(traced):
    precision, graphs = traced
    for _, model in graphs.values():
        for value in (*model.graph.input, *model.graph.output):
            half = precision == "fp16" and value.name in HANDED_ON
            expected = TensorProto.FLOAT16 if half else TensorProto.FLOAT
            assert value.type.tensor_type.elem_type == expected, value.name


def test_opset_is_the_first_that_has_the_type(traced):
    precision, graphs = traced
    expected = {"fp16": 20, "bf16": 22}[precision]
    assert {e.version for _, model in graphs.values() for e in model.opset_import} == {expected}


def test_readers_know_what_is_handed_on():
    expected = {name: str(each.handed_on) for name, each in ARITHMETICS.items()}
    assert {name: f"torch.{dtype}" for name, dtype in HANDED_ON_DTYPES.items()} == expected


def test_weights_are_stored_in_half(traced):
    precision, graphs = traced
    _, model = graphs["query_decoder"]
    large = [item for item in model.graph.initializer if item.name.endswith("in_proj_weight")]
    assert {item.data_type for item in large} == {TYPES[precision]}
    # norms, positions, and the shapes of reshaping alone are not
    rest = {item.name for item in model.graph.initializer if item.data_type == TensorProto.FLOAT}
    assert all("norm" in name or name == "network.positions" for name in rest)


@pytest.mark.parametrize("graph", GRAPH_NAMES)
def test_graph_agrees_with_pytorch_in_fp32(traced, references, graph, tmp_path):
    precision, graphs = traced
    plan, model = graphs[graph]
    path = tmp_path / f"{graph}.onnx"
    path.write_bytes(model.SerializeToString())
    records = verify_graph(path, plan, references[graph], 2, ("openvino", "onnxruntime"))
    assert tuple(record.runner for record in records) == RUNNERS[precision]
    for record in records:
        # where nothing is rounded to half, the comparison would say nothing about half precision
        least = 1e-5 if rounds(precision, graph) else 0
        assert least <= record.relative_error <= record.tolerance
        assert record.tolerance == {"fp16": 2e-2, "bf16": 4e-2}[precision]


@pytest.mark.parametrize("kind", ["openvino", "onnxruntime"])
def test_number_of_prompts_is_free_where_it_should_be(traced, kind, tmp_path):
    precision, graphs = traced
    if kind not in RUNNERS[precision]:
        pytest.skip("ONNX Runtime has no bf16 on a CPU")
    path = tmp_path / "classifier.onnx"
    path.write_bytes(graphs["classifier"][1].SerializeToString())
    runner = open_runner(kind, path, precision="fp32")
    dtype = np.float16 if precision == "fp16" else np.float32
    for count in (1, 5, 40):
        feeds = {
            "refined": np.ones((1, 4, 16, 16, 16), dtype),
            "adapted_queries": np.ones((count, 4), np.float32),
        }
        found = runner.run(feeds)["probabilities"]
        assert (found.shape, found.dtype) == ((count, 16, 16, 16), np.float32)
        np.testing.assert_allclose(found, 1 / (1 + np.exp(-4)), rtol=1e-3)


def test_what_is_not_compared_is_told():
    kinds = ("openvino", "onnxruntime")
    assert unverified(ARITHMETICS["fp16"], kinds) == ()
    (record,) = unverified(ARITHMETICS["bf16"], kinds)
    assert record.runner == "onnxruntime"
    assert record.why == "onnxruntime can't compute graphs in bf16"


def test_weights_beyond_fp16_are_named_all_of_them():
    network = tiny_checkpoint(2).model
    with torch.no_grad():
        network.mask_embed_proj[0].weight[0, 0] = 1e5
        network.backbone.decoder.transpconvs[0].bias[1] = -7e4
        network.transformer_decoder.norm.weight[0] = 1e6  # a norm's: stays fp32
    with pytest.raises(ExportError) as caught:
        graph_plans(network, ARITHMETICS["fp16"])
    message = str(caught.value)
    assert "mask_embed_proj.0.weight (1e+05)" in message
    assert "backbone.decoder.transpconvs.0.bias (7e+04)" in message
    assert "transformer_decoder.norm" not in message
    assert len(graph_plans(network, ARITHMETICS["bf16"])) == len(GRAPH_NAMES)


def test_the_network_itself_stays_as_it_is():
    network = tiny_checkpoint(1).model
    before = copy.deepcopy(network.state_dict())
    assert half_network(network, FP32) is network
    half = half_network(network, ARITHMETICS["fp16"])
    assert half.fusion_conv.convs[0].conv.weight.dtype is torch.float16
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def turn(operator, dtype):
    """Return a change to a graph that lets one operator compute in another type."""

    def change(model):
        nodes = list(model.graph.node)
        index = next(i for i, node in enumerate(nodes) if node.op_type == operator)
        node = nodes[index]
        before = next(types for name, types in input_types(model) if name == operator)
        casts = [
            onnx.helper.make_node("Cast", [name], [f"{name}.turned"], to=dtype)
            for name in node.input
        ]
        node.input[:] = [f"{name}.turned" for name in node.input]
        result = node.output[0]
        node.output[:] = [f"{result}.turned"]
        back = onnx.helper.make_node("Cast", [f"{result}.turned"], [result], to=min(before))
        del model.graph.node[:]
        model.graph.node.extend([*nodes[:index], *casts, node, back, *nodes[index + 1 :]])

    return change


@pytest.mark.parametrize("operator", ["InstanceNormalization", "Sigmoid", "Conv", "MatMul"])
def test_an_operator_in_another_type_is_refused(traced, operator):
    precision, graphs = traced
    plan, model = graphs["refiner_4"]
    wrong = TYPES[precision] if operator in IN_FP32 else TensorProto.FLOAT
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    check_graph(changed, plan)
    turn(operator, wrong)(changed)
    found = TensorProto.DataType.Name(wrong)
    with raises(ExportError, "graph-precision", operator, f"in {found}, "):
        check_graph(changed, plan)


def modules():
    return {plan.name: plan.module for plan in graph_plans(tiny_checkpoint(2).model)}


@pytest.mark.parametrize("count", [1, 3, 4, 11, 16])
def test_folded_refiners_are_the_refiner(count):
    """In exact arithmetic; here to float32's rounding, padded up to the next width."""
    found = modules()
    generator = torch.Generator().manual_seed(count)
    features = torch.randn(1, 4, 16, 16, 16, generator=generator)
    adapted = torch.randn(count, 4, generator=generator)
    prompts = (torch.rand(count, 16, 16, 16, generator=generator) > 0.5).float()
    width = min(each for each in FOLDED_REFINERS if each >= count)
    missing = width - count
    padded = (
        torch.cat([adapted, torch.zeros(missing, 4)]),
        torch.cat([prompts, torch.zeros(missing, 16, 16, 16)]),
    )
    with torch.inference_mode():
        expected = found["refiner"](features, adapted, prompts)
        folded = found[FOLDED_REFINERS[width]](features, *padded)
    assert relative_error([folded[:count].numpy()], [expected.numpy()]) < 1e-5


def test_fusion_and_classifier_in_a_row_are_the_refiner():
    found = modules()
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 4, 16, 16, 16, generator=generator)
    adapted = torch.randn(5, 4, generator=generator)
    prompts = (torch.rand(5, 16, 16, 16, generator=generator) > 0.5).float()
    prompt_features = torch.einsum("nc,nhwd->chwd", adapted, prompts)[None]
    with torch.inference_mode():
        refined = found["fusion"](features, prompt_features)
        # classes in chunks, as they share one F_r
        chunks = [found["classifier"](refined, adapted[a:b]) for a, b in ((0, 2), (2, 5))]
        expected = found["refiner"](features, adapted, prompts)
        assert relative_error([torch.cat(chunks).numpy()], [expected.numpy()]) < 1e-5
        without = found["classifier"](found["fusion_text_only"](features), adapted)
        expected = found["refiner_text_only"](features, adapted)
        assert relative_error([without.numpy()], [expected.numpy()]) < 1e-5
