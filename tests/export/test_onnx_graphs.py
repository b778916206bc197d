"""Traced graphs keep the contract: names, shapes, free N, operators, no traces of this machine."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onnx
from onnx import numpy_helper

from medals_export.graph_checks import ALLOWED_OPERATORS, check_graph, tensor_records
from medals_export.graph_plans import graph_plans
from medals_export.half_storage import round_weights_to_fp16, store_constants_as_fp16
from medals_export.onnx_graphs import trace
from medals_rt.bundle.manifest import GRAPH_NAMES
from medals_rt.common.errors import ExportError
from tests.bundles import tiny_checkpoint
from tests.errors import raises
from tests.paths import ROOT

WINDOW = (16, 16, 16)
TOKENS = 64
CONTRACT = {
    "image_encoder": (
        {"image": (1, 1, *WINDOW), "foreground": (1, 1, *WINDOW)},
        {"features": (1, 4, *WINDOW), "image_embedding": (TOKENS, 24)},
    ),
    "query_decoder": (
        {"image_embedding": (TOKENS, 24), "queries": ("N", 24)},
        {"adapted_queries": ("N", 4)},
    ),
    "refiner": (
        {"features": (1, 4, *WINDOW), "adapted_queries": ("N", 4), "prompts": ("N", *WINDOW)},
        {"probabilities": ("N", *WINDOW)},
    ),
    "refiner_text_only": (
        {"features": (1, 4, *WINDOW), "adapted_queries": ("N", 4)},
        {"probabilities": ("N", *WINDOW)},
    ),
    **{
        f"refiner_{width}": (
            {
                "features": (1, 4, *WINDOW),
                "adapted_queries": (width, 4),
                "prompts": (width, *WINDOW),
            },
            {"probabilities": (width, *WINDOW)},
        )
        for width in (1, 2, 4, 8, 16)
    },
    "fusion": (
        {"features": (1, 4, *WINDOW), "prompt_features": (1, 4, *WINDOW)},
        {"refined": (1, 4, *WINDOW)},
    ),
    "fusion_text_only": ({"features": (1, 4, *WINDOW)}, {"refined": (1, 4, *WINDOW)}),
    "classifier": (
        {"refined": (1, 4, *WINDOW), "adapted_queries": ("N", 4)},
        {"probabilities": ("N", *WINDOW)},
    ),
}


@pytest.fixture(scope="module")
def plans():
    return {plan.name: plan for plan in graph_plans(tiny_checkpoint(2).model)}


def traced(plan):
    ((_, model),) = trace([plan])
    return model


@pytest.fixture(scope="module")
def refiner(plans):
    return traced(plans["refiner_text_only"])


def test_every_graph_has_a_contract():
    assert tuple(CONTRACT) == GRAPH_NAMES


@pytest.mark.parametrize("graph", CONTRACT)
def test_graph_contract(tiny_bundle, graph):
    model = onnx.load(tiny_bundle.graph_path(2, graph))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert {node.op_type for node in model.graph.node} <= ALLOWED_OPERATORS
    for values, expected, recorded in (
        (model.graph.input, CONTRACT[graph][0], tiny_bundle.graph(2, graph).inputs),
        (model.graph.output, CONTRACT[graph][1], tiny_bundle.graph(2, graph).outputs),
    ):
        records = tensor_records(values)
        assert {record.name: record.shape for record in records} == expected
        assert {record.dtype for record in records} == {"float32"}
        assert records == recorded
    onnx.checker.check_model(model, full_check=True)


def test_position_encoding_is_baked_in(tiny_bundle, plans):
    model = onnx.load(tiny_bundle.graph_path(2, "query_decoder"))
    positions = plans["query_decoder"].module.network.positions.numpy()
    constants = [numpy_helper.to_array(item) for item in model.graph.initializer]
    assert any(np.array_equal(value.reshape(-1), positions.reshape(-1)) for value in constants)
    assert not {"Sin", "Cos", "Range"} & {node.op_type for node in model.graph.node}


@pytest.mark.parametrize(
    ("graph", "shapes"),
    [
        ("refiner", [(4, 8, 3, 3, 3)]),
        ("refiner_text_only", [(4, 4, 3, 3, 3)]),
        ("refiner_8", [(4, 4, 3, 3, 3), (4, 4, 27)]),
        ("fusion", [(4, 8, 3, 3, 3)]),
        ("fusion_text_only", [(4, 4, 3, 3, 3)]),
        ("classifier", []),
    ],
)
def test_refiners_hold_what_they_use_of_the_convolution_once(tiny_bundle, graph, shapes):
    constants = onnx.load(tiny_bundle.graph_path(2, graph)).graph.initializer
    assert [tuple(item.dims) for item in constants if len(item.dims) > 1] == shapes


def test_same_weights_give_the_same_bytes(plans, refiner):
    again = traced(plans["refiner_text_only"])
    assert again.SerializeToString(deterministic=True) == refiner.SerializeToString(
        deterministic=True
    )


def test_nothing_of_this_machine_is_in_a_graph(tiny_bundle):
    folder = str(ROOT).encode()
    for graph in CONTRACT:
        data = tiny_bundle.graph_path(2, graph).read_bytes()
        assert folder not in data
        assert b".py" not in data


def broken(model, change):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    change(copy)
    return copy


def freeze(model):
    for value in (*model.graph.input, *model.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_value = 3


def freeze_output(model):
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 3


def turn_output_to_fp16(model):
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


def use_odd_operator(model):
    model.graph.node[0].op_type = "NonZero"


def raise_opset(model):
    model.opset_import[0].version = 23


def rename_output(model):
    for node in model.graph.node:
        node.output[:] = ["logits" if n == "probabilities" else n for n in node.output]
    model.graph.output[0].name = "logits"


def cut_a_wire(model):
    model.graph.node[-1].input[0] = "nowhere"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (freeze, ("graph-signature",)),
        (freeze_output, ("graph-signature",)),
        (turn_output_to_fp16, ("graph-signature",)),
        (use_odd_operator, ("graph-operator", "NonZero")),
        (raise_opset, ("graph-opset",)),
        (rename_output, ("graph-signature",)),
        (cut_a_wire, ("graph-invalid",)),
    ],
)
def test_what_breaks_the_contract_is_refused(plans, refiner, change, error):
    check_graph(refiner, plans["refiner_text_only"])
    with raises(ExportError, *error):
        check_graph(broken(refiner, change), plans["refiner_text_only"])


def test_constants_in_fp16_are_the_rounded_weights_exactly():
    network = tiny_checkpoint(2).model
    plain = {name: weight.clone() for name, weight in network.named_parameters()}
    round_weights_to_fp16(network)
    for name, weight in network.named_parameters():
        if weight.ndim < 2:
            assert torch.equal(weight, plain[name])
        else:
            assert torch.equal(weight, plain[name].half().float())
    plan = graph_plans(network)[3]
    model = traced(plan)
    size = len(model.SerializeToString())
    store_constants_as_fp16(model)
    check_graph(model, plan)
    assert len(model.SerializeToString()) < 0.8 * size
    halved = [
        item for item in model.graph.initializer if item.data_type == onnx.TensorProto.FLOAT16
    ]
    (weight,) = (numpy_helper.to_array(item) for item in halved)
    expected = network.fusion_conv.convs[0].conv.weight[:, :4].numpy()
    np.testing.assert_array_equal(weight.astype(np.float32), expected)


def test_weights_beyond_fp16_are_refused():
    network = tiny_checkpoint(2).model
    with torch.no_grad():
        network.mask_embed_proj[0].weight[0, 0] = 1e5
    with raises(ExportError, "weights-too-large", "mask_embed_proj.0.weight"):
        round_weights_to_fp16(network)
