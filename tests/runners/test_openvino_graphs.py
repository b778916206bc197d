"""How OpenVINO's graphs are joined and arranged, looked at before they are compiled."""

import numpy as np
import pytest

pytest.importorskip("torch")
openvino = pytest.importorskip("openvino")

from medals_rt.runners.openvino_graphs import (  # noqa: E402
    PROMPT_INDEX,
    arrange_for_bf16,
    join_graphs,
    port_name,
)

ENCODE_AND_FUSE = ("image_encoder", "query_decoder", "fusion")
WINDOW = (16, 16, 16)


def joined(bundle, *names):
    return join_graphs([bundle.graph_path(2, name) for name in names])


def shapes(ports):
    return {port_name(port): str(port.get_partial_shape()) for port in ports}


def joined_volumes(model):
    """Convolutions that read channels which were joined."""
    return [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Convolution"
        and node.input_value(0).get_node().get_type_name() == "Concat"
    ]


def computed(model, feeds):
    """Compute in fp32, whatever the model was arranged for."""
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    request.infer(feeds)
    return {
        port_name(port): request.get_output_tensor(number).data.copy()
        for number, port in enumerate(compiled.outputs)
    }


def feeds_of_many(count):
    rng = np.random.default_rng(count)
    image = (rng.random((1, 1, *WINDOW)) * 255).astype(np.float32)
    return {
        "image": image,
        "foreground": (image > 100).astype(np.float32),
        "queries": rng.standard_normal((count, 24), dtype=np.float32),
        PROMPT_INDEX: rng.integers(0, count + 1, WINDOW).astype(np.int32),
    }


def test_prompt_features_are_looked_up_where_queries_are_adapted_before(tiny_bundle):
    chain = joined(tiny_bundle, *ENCODE_AND_FUSE)
    assert set(shapes(chain.inputs)) == {"image", "foreground", "queries", PROMPT_INDEX}
    assert set(shapes(chain.outputs)) == {"adapted_queries", "refined"}
    alone = joined(tiny_bundle, "fusion")
    assert set(shapes(alone.inputs)) == {"features", "prompt_features"}


def test_arranged_graphs_give_what_they_gave(tiny_bundle):
    """In fp32, where only sums are taken in another order; bf16 is at both ends alone."""
    feeds = feeds_of_many(17)
    expected = computed(joined(tiny_bundle, *ENCODE_AND_FUSE, "classifier"), feeds)
    chain = joined(tiny_bundle, *ENCODE_AND_FUSE, "classifier")
    assert joined_volumes(chain)
    arranged = arrange_for_bf16(chain)
    assert not joined_volumes(arranged)
    found = computed(arranged, feeds)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-4)


def test_what_is_handed_over_has_its_channels_last(tiny_bundle):
    first = arrange_for_bf16(joined(tiny_bundle, *ENCODE_AND_FUSE))
    second = arrange_for_bf16(joined(tiny_bundle, "classifier"))
    channels = 4
    last = f"[1,16,16,16,{channels}]"
    assert shapes(first.outputs)["refined"] == shapes(second.inputs)["refined"] == last
    (output,) = (port for port in first.outputs if port_name(port) == "refined")
    assert output.get_element_type() == openvino.Type.bf16
    assert "?" in shapes(second.outputs)["probabilities"]
