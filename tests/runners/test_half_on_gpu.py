"""Graphs in fp16 on a GPU, by cuDNN and by ONNX Runtime, against ONNX Runtime on the CPU."""

import pytest

from medals_rt.bundle.manifest import GRAPH_NAMES
from medals_rt.bundle.recipes import verification_for
from medals_rt.runners.selection import choose, installed, open_runner
from tests.runners.engine_bundles import random_feeds
from tests.runners.on_gpu import (
    agreement_of_a_whole_case,
    assert_close,
    assert_ordered_with_the_callers_stream,
    assert_results_are_the_callers_own,
    expected,
)

pytestmark = pytest.mark.gpu

TOLERANCE = verification_for("fp16").relative_error


@pytest.fixture(scope="module", params=["onnxruntime-cuda", "cudnn"])
def kind(request, cupy):  # noqa: ARG001 - without a GPU there is nothing to ask
    if not installed(request.param):
        pytest.skip(f"{request.param} is not installed")
    return request.param


@pytest.fixture(scope="module")
def cudnn(cupy):  # noqa: ARG001 - as above
    if not installed("cudnn"):
        pytest.skip("cudnn is not installed")


def opened(kind, bundle, graph):
    path = bundle.graph_path(1, graph)
    return open_runner(kind, path, name=graph, graph_precision="fp16")


@pytest.mark.parametrize("graph", GRAPH_NAMES)
def test_every_graph_gives_what_the_cpu_does(kind, tiny_half_bundle, cupy, graph):
    with opened(kind, tiny_half_bundle, graph) as runner:
        for count in (1, 3, 7, 3):
            feeds = random_feeds(cupy, tiny_half_bundle, graph, count, seed=count)
            assert_close(runner.run(feeds), expected(tiny_half_bundle, graph, feeds), TOLERANCE)


def test_outputs_are_the_callers_own_and_repeat_to_the_byte(kind, tiny_half_bundle, cupy):
    with opened(kind, tiny_half_bundle, "refiner") as runner:
        assert_results_are_the_callers_own(cupy, tiny_half_bundle, runner)


def test_order_against_the_callers_stream(kind, tiny_half_bundle, cupy):
    with opened(kind, tiny_half_bundle, "refiner") as runner:
        assert_ordered_with_the_callers_stream(cupy, tiny_half_bundle, runner, TOLERANCE)


def test_features_go_from_graph_to_graph_as_they_are_stored(kind, tiny_half_bundle, cupy):
    encoder, fusion = (
        opened(kind, tiny_half_bundle, name) for name in ("image_encoder", "fusion_text_only")
    )
    features = encoder.run(random_feeds(cupy, tiny_half_bundle, "image_encoder", 1))["features"]
    refined = fusion.run({"features": features})
    wanted = expected(tiny_half_bundle, "fusion_text_only", {"features": features})
    assert_close(refined, wanted, TOLERANCE)
    encoder.close()
    fusion.close()


def test_a_whole_case(kind, tiny_half_bundle):
    assert agreement_of_a_whole_case(tiny_half_bundle, kind, None) >= 0.98


@pytest.mark.usefixtures("cudnn")
def test_auto_does_not_take_what_is_untried(tiny_half_bundle):
    assert choose("auto", tiny_half_bundle).kind != "cudnn"
