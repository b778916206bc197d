"""Graphs in fp16 on a GPU, by cuDNN and by ONNX Runtime, against ONNX Runtime on the CPU."""

import numpy as np
import pytest

from medals_rt.bundle.manifest import GRAPH_NAMES
from medals_rt.bundle.recipes import verification_for
from medals_rt.common.gpu import find_gpu
from medals_rt.runners.selection import choose, installed, open_runner
from tests.runners.engine_bundles import random_feeds

pytestmark = pytest.mark.gpu

TOLERANCE = verification_for("fp16").relative_error


@pytest.fixture(scope="module")
def cupy():
    """CuPy, where it finds a GPU."""
    module = pytest.importorskip("cupy", reason="CuPy is not installed")
    if find_gpu() is None or not module.is_available():
        pytest.skip("there is no CUDA GPU")
    return module


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


def expected(bundle, graph, feeds):
    on_cpu = open_runner("onnxruntime", bundle.graph_path(1, graph))
    return on_cpu.run({key: array.get() for key, array in feeds.items()})


def assert_close(found, wanted):
    assert found.keys() == wanted.keys()
    for key, array in found.items():
        assert array.dtype == wanted[key].dtype
        scale = float(np.abs(wanted[key]).max())
        assert float(np.abs(array.get().astype(float) - wanted[key]).max()) <= TOLERANCE * scale, (
            key
        )


@pytest.mark.parametrize("graph", GRAPH_NAMES)
def test_every_graph_gives_what_the_cpu_does(kind, tiny_half_bundle, cupy, graph):
    with opened(kind, tiny_half_bundle, graph) as runner:
        for count in (1, 3, 7, 3):
            feeds = random_feeds(cupy, tiny_half_bundle, graph, count, seed=count)
            assert_close(runner.run(feeds), expected(tiny_half_bundle, graph, feeds))


def test_outputs_are_the_callers_own_and_repeat_to_the_byte(kind, tiny_half_bundle, cupy):
    runner = opened(kind, tiny_half_bundle, "refiner")
    feeds, others = (random_feeds(cupy, tiny_half_bundle, "refiner", 3, seed=n) for n in (0, 1))
    first = runner.run(feeds)["probabilities"]
    kept = first.copy()
    other = runner.run(others)["probabilities"]
    again = runner.run(feeds)["probabilities"]
    assert not bool((other == kept).all())
    assert bool((first == kept).all())
    assert bool((again == kept).all())
    runner.close()


def test_order_against_the_callers_stream(kind, tiny_half_bundle, cupy):
    """Inputs written just before, and overwritten just after, on a stream of the caller's."""
    runner = opened(kind, tiny_half_bundle, "refiner")
    sources = [random_feeds(cupy, tiny_half_bundle, "refiner", 2, seed=seed) for seed in range(6)]
    wanted = [expected(tiny_half_bundle, "refiner", feeds) for feeds in sources]
    cupy.cuda.Device().synchronize()
    found = []
    with cupy.cuda.Stream(non_blocking=True) as stream:
        feeds = {key: cupy.empty_like(array) for key, array in sources[0].items()}
        for source in sources:
            for key, array in source.items():
                feeds[key][...] = array
            found.append(runner.run(feeds))
            for array in feeds.values():
                array.fill(float("nan"))
        stream.synchronize()
    for each, right in zip(found, wanted, strict=True):
        assert_close(each, right)
    runner.close()


def test_features_go_from_graph_to_graph_as_they_are_stored(kind, tiny_half_bundle, cupy):
    encoder, fusion = (
        opened(kind, tiny_half_bundle, name) for name in ("image_encoder", "fusion_text_only")
    )
    features = encoder.run(random_feeds(cupy, tiny_half_bundle, "image_encoder", 1))["features"]
    refined = fusion.run({"features": features})
    assert_close(refined, expected(tiny_half_bundle, "fusion_text_only", {"features": features}))
    encoder.close()
    fusion.close()


def test_a_whole_case(kind, tiny_half_bundle):
    """From text to labels, against ONNX Runtime on the CPU."""
    from medals_rt.io.volume import Volume
    from medals_rt.pipeline.segmenter import Segmenter

    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (20, 24, 28)).astype(np.float32)
    volume = Volume(image, (3.0, 2.0, 2.0))
    prompts = {"1": "Liver in abdominal CT", "2": "Right kidney in abdominal CT"}
    labels = {}
    for runner in ("onnxruntime", kind):
        with Segmenter.open(tiny_half_bundle, runner=runner) as segmenter:
            labels[runner] = segmenter.segment(volume, prompts).labels_dhw
    assert float(np.mean(labels["onnxruntime"] == labels[kind])) >= 0.98


@pytest.mark.usefixtures("cudnn")
def test_auto_does_not_take_what_is_untried(tiny_half_bundle):
    assert choose("auto", tiny_half_bundle).kind != "cudnn"
