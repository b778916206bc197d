"""On a GPU: every runner that is installed against ONNX Runtime on the CPU.

Where there is one: `pytest -m gpu -rs`. Elsewhere skipped aloud; `tests/fakes/test_fakes.py` runs
it on fakes.
"""

import shutil

import pytest

from medals_export.engines import build_engines
from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import GRAPH_NAMES
from medals_rt.bundle.recipes import recipe_for, verification_for
from medals_rt.common.choices import TENSORRT_LABELS
from medals_rt.common.errors import RunnerError
from medals_rt.common.gpu import find_gpu
from medals_rt.runners.engine_check import ensure_tried
from medals_rt.runners.selection import choose, installed, open_runner
from medals_rt.runners.tensorrt import TensorRTRunner
from medals_rt.runners.tensorrt_library import open_library
from tests.runners.engine_bundles import engine_of, random_feeds
from tests.runners.on_gpu import (
    agreement_of_a_whole_case,
    assert_close,
    assert_ordered_with_the_callers_stream,
    assert_results_are_the_callers_own,
    expected,
)

pytestmark = pytest.mark.gpu

CUDA_KINDS = ("onnxruntime-cuda", "tensorrt", "tensorrt-rtx")
TOLERANCE = verification_for("fp32").relative_error


@pytest.fixture(scope="module", params=CUDA_KINDS)
def kind(request, cupy):  # noqa: ARG001 - without a GPU there is nothing to ask
    if not installed(request.param):
        pytest.skip(f"{request.param} is not installed")
    return request.param


@pytest.fixture(scope="module")
def bundle(kind, tiny_bundle, tmp_path_factory):
    """The minuscule bundle, with engines for this GPU."""
    folder = tmp_path_factory.mktemp("gpu") / kind
    shutil.copytree(tiny_bundle.folder, folder)
    copy = Bundle.open(folder)
    if kind in TENSORRT_LABELS:
        architecture = find_gpu().architecture
        if not open_library(kind).builds_for(architecture):
            pytest.skip(f"{TENSORRT_LABELS[kind]} does not build for {architecture}")
        targets = ("CURRENT",) if kind == "tensorrt-rtx" else ()
        build_engines(copy, open_library(kind), *recipe_for(kind, "fp32"), architectures=targets)
    return copy


@pytest.fixture
def trt_kind(kind):
    if kind not in TENSORRT_LABELS:
        pytest.skip("for TensorRT and TensorRT-RTX")
    return kind


@pytest.mark.parametrize("graph", GRAPH_NAMES)
def test_every_graph_gives_what_the_cpu_does(kind, bundle, cupy, graph):
    runner = open_runner(kind, bundle.graph_path(1, graph), name=graph)
    for count in (1, 3, 7, 3):
        feeds = random_feeds(cupy, bundle, graph, count, seed=count)
        assert_close(runner.run(feeds), expected(bundle, graph, feeds), TOLERANCE)
    runner.close()


def test_outputs_are_the_callers_own_and_repeat_to_the_byte(kind, bundle, cupy):
    runner = open_runner(kind, bundle.graph_path(1, "refiner"))
    assert_results_are_the_callers_own(cupy, bundle, runner)


def test_order_against_the_callers_stream(kind, bundle, cupy):
    runner = open_runner(kind, bundle.graph_path(1, "refiner"))
    assert_ordered_with_the_callers_stream(cupy, bundle, runner, TOLERANCE)


def test_views_are_taken(kind, bundle, cupy):
    runner = open_runner(kind, bundle.graph_path(1, "refiner"))
    feeds = random_feeds(cupy, bundle, "refiner", 2)
    turned = {key: cupy.asfortranarray(array) for key, array in feeds.items()}
    assert_close(runner.run(turned), expected(bundle, "refiner", feeds), TOLERANCE)


def test_caller_provided_outputs_and_cuda_graphs(trt_kind, bundle, cupy):
    options = {"name": "refiner", "cuda_graphs": True}
    runner = TensorRTRunner(engine_of(bundle, "refiner"), open_library(trt_kind), **options)
    feeds = random_feeds(cupy, bundle, "refiner", 3)
    given = {"probabilities": cupy.empty((3, *bundle.stage_spec(1).window_hwd), cupy.float32)}
    for seed in (0, 1, 2):
        for key, array in random_feeds(cupy, bundle, "refiner", 3, seed=seed).items():
            feeds[key][...] = array
        given["probabilities"].fill(float("nan"))
        found = runner.run(feeds, given)
        assert found["probabilities"] is given["probabilities"]
        assert_close(found, expected(bundle, "refiner", feeds), TOLERANCE)
    assert len(runner._graphs) == 1
    runner.close()


def test_more_prompts_than_the_profile_has(trt_kind, bundle, cupy):
    runner = open_runner(trt_kind, bundle.graph_path(1, "refiner"))
    least, most = runner.prompt_counts
    assert least == 1
    feeds = random_feeds(cupy, bundle, "refiner", most)
    assert_close(runner.run(feeds), expected(bundle, "refiner", feeds), TOLERANCE)
    with pytest.raises(RunnerError) as refused:
        runner.run(random_feeds(cupy, bundle, "refiner", most + 1))
    assert refused.value.code == "prompt-count"


@pytest.mark.usefixtures("trt_kind")
def test_engines_are_tried_in_a_child(bundle):
    engine = engine_of(bundle, "fusion")
    engine.trials_path.unlink(missing_ok=True)
    assert ensure_tried(engine, "fusion") == ()
    assert engine.trials_path.is_file()


def test_auto_takes_the_engines(trt_kind, bundle):
    choice = choose("auto", bundle)
    assert choice.kind == trt_kind or installed("tensorrt")
    assert find_gpu().name in choice.why


def test_a_whole_case(kind, bundle):
    assert agreement_of_a_whole_case(bundle, kind, "fp32") >= 0.999
