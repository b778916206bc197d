"""The runner on fakes of CuPy and cuDNN; on a GPU itself: `tests/runners/test_half_on_gpu.py`."""

import numpy as np
import pytest

from medals_rt.bundle.manifest import GRAPH_NAMES
from medals_rt.bundle.recipes import verification_for
from medals_rt.common.errors import InputError, RunnerError
from medals_rt.runners.cudnn.runner import UNTRIED
from medals_rt.runners.selection import open_runner
from tests.errors import raises
from tests.runners.engine_bundles import random_feeds

GRAPH = "fusion_text_only"
TOLERANCE = verification_for("fp16").relative_error


@pytest.fixture
def cudnn(fakes):  # noqa: ARG001 - it can be imported while they are in place
    import cudnn

    yield cudnn
    cudnn.refused = 0


def opened(bundle, graph=GRAPH, **options):
    return open_runner("cudnn", bundle.graph_path(1, graph), name=graph, **options)


def expected(bundle, graph, feeds):
    on_cpu = open_runner("onnxruntime", bundle.graph_path(1, graph))
    return on_cpu.run({key: array.get() for key, array in feeds.items()})


@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize("graph", GRAPH_NAMES)
def test_results_are_onnx_runtimes(fakes, tiny_half_bundle, graph):
    feeds = random_feeds(fakes.cupy, tiny_half_bundle, graph, 2)
    with opened(tiny_half_bundle, graph) as runner:
        assert (runner.kind, runner.device, runner.precision) == ("cudnn", "cuda", "fp16")
        found = runner.run(feeds)
    for key, wanted in expected(tiny_half_bundle, graph, feeds).items():
        assert found[key].dtype == wanted.dtype
        furthest = np.abs(found[key].get().astype(float) - wanted).max()
        assert furthest <= TOLERANCE * np.abs(wanted.astype(float)).max()


@pytest.mark.usefixtures("cudnn")
def test_all_of_it_is_queued_on_the_callers_stream(fakes, tiny_half_bundle):
    cuda = fakes.cupy.cuda
    feeds = random_feeds(fakes.cupy, tiny_half_bundle, GRAPH, 1)
    runner = opened(tiny_half_bundle)
    with cuda.Stream(non_blocking=True) as stream:
        cuda.log.clear()
        runner.run(feeds)
    assert {entry for entry in cuda.log if entry[0] == "launch"} == {("launch", stream.ptr)}
    assert not [entry for entry in cuda.log if "synchronize" in entry[0]]


def test_handles_are_freed(fakes, cudnn, tiny_half_bundle):
    before = len(cudnn.handles)
    runner = opened(tiny_half_bundle)
    assert len(cudnn.handles) == before + 1
    runner.close()
    assert len(cudnn.handles) == before
    with raises(RunnerError, "runner-closed"):
        runner.run(random_feeds(fakes.cupy, tiny_half_bundle, GRAPH, 1))


@pytest.mark.usefixtures("cudnn")
def test_other_precisions_are_refused(tiny_half_bundle):
    with raises(InputError, "precision-unsupported", "fp32"):
        opened(tiny_half_bundle, precision="fp32")


@pytest.mark.usefixtures("cudnn")
def test_it_says_that_it_is_untried(tiny_half_bundle):
    assert opened(tiny_half_bundle).notes == (UNTRIED,)
