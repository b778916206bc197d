"""The TensorRT runner on fakes of TensorRT and CuPy: what it asks for, and what it refuses."""

import math
import shutil

import numpy as np
import pytest

from medals_rt.common import gpu
from medals_rt.common.errors import BundleError, InputError, MissingDependencyError, RunnerError
from medals_rt.common.gpu import Gpu
from medals_rt.runners import tensorrt as module
from medals_rt.runners.selection import choose, open_runner
from medals_rt.runners.tensorrt import TensorRTRunner
from tests.errors import raises
from tests.runners.engine_bundles import behaving, engine_of, random_feeds

GRAPH = "refiner"
DEFAULT_STREAM = 1


@pytest.fixture
def untried(monkeypatch):
    """Leave out the trial in a child process, which has tests of its own."""
    monkeypatch.setattr(module, "ensure_tried", lambda *_: ())


@pytest.fixture
def runner(fakes, bundle):
    return TensorRTRunner(engine_of(bundle, GRAPH), fakes.library, name=GRAPH)


def expected(bundle, feeds, graph=GRAPH):
    on_cpu = open_runner("onnxruntime", bundle.graph_path(1, graph))
    return on_cpu.run({key: array.get() for key, array in feeds.items()})


def test_what_a_runner_tells(runner, fakes, bundle):
    assert (runner.kind, runner.device, runner.precision) == ("tensorrt", "cuda", "fp32")
    assert runner.version == fakes.tensorrt.__version__
    assert runner.prompt_counts == (1, 32)
    names = [spec.name for spec in runner.inputs]
    assert names == [tensor.name for tensor in bundle.graph(1, GRAPH).inputs]
    window = bundle.stage_spec(1).window_hwd
    assert runner.inputs[names.index("prompts")].shape == ("?", *window)
    assert runner.outputs[0].dtype == "float32"


def test_n_changes_from_run_to_run(runner, fakes, bundle):
    for count in (3, 1, 7, 3):
        feeds = random_feeds(fakes.cupy, bundle, GRAPH, count, seed=count)
        found = runner.run(feeds)["probabilities"]
        assert isinstance(found, fakes.cupy.ndarray)
        np.testing.assert_array_equal(found.get(), expected(bundle, feeds)["probabilities"])


def test_every_graph_of_the_bundle_runs(fakes, bundle):
    for graph in bundle.stage_record(1).graphs:
        runner = TensorRTRunner(engine_of(bundle, graph), fakes.library, name=graph)
        feeds = random_feeds(fakes.cupy, bundle, graph, 2)
        found, wanted = runner.run(feeds), expected(bundle, feeds, graph)
        assert found.keys() == wanted.keys()
        for key, array in found.items():
            np.testing.assert_array_equal(array.get(), wanted[key])


def test_outputs_are_the_callers_own(runner, fakes, bundle):
    first_feeds = random_feeds(fakes.cupy, bundle, GRAPH, 2)
    first = runner.run(first_feeds)["probabilities"]
    kept = first.get()
    second = runner.run(random_feeds(fakes.cupy, bundle, GRAPH, 2, seed=1))["probabilities"]
    assert first.data.ptr != second.data.ptr
    np.testing.assert_array_equal(first.get(), kept)
    assert not np.array_equal(second.get(), kept)


def test_outputs_that_the_caller_gives_are_written_into(runner, fakes, bundle):
    feeds = random_feeds(fakes.cupy, bundle, GRAPH, 2)
    given = fakes.cupy.empty((2, *bundle.stage_spec(1).window_hwd), "float32")
    found = runner.run(feeds, {"probabilities": given})
    assert found["probabilities"] is given
    np.testing.assert_array_equal(given.get(), expected(bundle, feeds)["probabilities"])


def test_inputs_are_read_where_they_are(runner, fakes, bundle):
    """By address; only a view is copied, and left as it was."""
    feeds = random_feeds(fakes.cupy, bundle, GRAPH, 2)
    runner.run(feeds)
    addresses = runner._context._addresses
    assert {key: array.data.ptr for key, array in feeds.items()}.items() <= addresses.items()
    turned = {**feeds, "prompts": fakes.cupy.asfortranarray(feeds["prompts"])}
    found = runner.run(turned)["probabilities"]
    assert addresses["prompts"] != turned["prompts"].data.ptr
    np.testing.assert_array_equal(found.get(), expected(bundle, feeds)["probabilities"])


def test_arrays_that_begin_inside_another_are_aligned_first(runner, fakes, bundle):
    """TensorRT takes addresses that are multiples of 256; a slice of T need not begin at one."""
    feeds = random_feeds(fakes.cupy, bundle, GRAPH, 2)
    wanted = expected(bundle, feeds)["probabilities"]
    queries = feeds["adapted_queries"]
    whole = fakes.cupy.zeros((3, queries.shape[1]), "float32")
    whole[1:] = queries
    part = whole[1:]
    assert part.flags.c_contiguous
    assert part.data.ptr % 256
    found = runner.run({**feeds, "adapted_queries": part})["probabilities"]
    np.testing.assert_array_equal(found.get(), wanted)
    assert all(address % 256 == 0 for address in runner._context._addresses.values())
    shape = (3, *bundle.stage_spec(1).window_hwd)
    odd = fakes.cupy.empty((math.prod(shape) + 1,), "float32")[1:].reshape(shape)
    feeds = random_feeds(fakes.cupy, bundle, GRAPH, 3)
    with raises(RunnerError, "output-array-unusable", "256 bytes"):
        runner.run(feeds, {"probabilities": odd})


def test_order_of_work_is_kept_by_events_and_nothing_waits(runner, fakes, bundle):
    feeds = random_feeds(fakes.cupy, bundle, GRAPH, 2)
    cuda = fakes.cupy.cuda
    cuda.log.clear()
    with cuda.Stream() as callers:
        runner.run(feeds)
        steps = list(cuda.log)
    own = steps[2][1]
    assert own not in {callers.ptr, DEFAULT_STREAM}
    assert cuda.streams[own].non_blocking
    given, done = steps[0][1], steps[3][1]
    assert steps == [
        ("record", given, callers.ptr),
        ("wait", given, own),
        ("launch", own),
        ("record", done, own),
        ("wait", done, callers.ptr),
    ]


def test_runners_share_a_stream_so_that_they_share_scratch(fakes, bundle, runner):
    other = TensorRTRunner(engine_of(bundle, "fusion"), fakes.library, name="fusion")
    assert other._stream is runner._stream
    fakes.cupy.cuda.log.clear()
    runner.close()
    assert fakes.cupy.cuda.log == [("synchronize", runner._stream.ptr)]


def test_scratch_is_what_the_shapes_need_and_from_the_runners_stream(runner, fakes, bundle):
    taken = []
    alloc = fakes.cupy.cuda.alloc

    def noting(size):
        memory = alloc(size)
        taken.append((size, memory.stream))
        return memory

    fakes.cupy.cuda.alloc = noting
    for count in (2, 5):
        runner.run(random_feeds(fakes.cupy, bundle, GRAPH, count))
    assert taken == [(512, runner._stream.ptr), (1280, runner._stream.ptr)]


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        ("false", ("run-failed", "an illegal memory access was encountered")),
        ("unspecified", ("input-refused", "prompts")),
        ("bad shape", ("input-refused", "features", "shape out of the profile")),
        ("bad address", ("input-refused", "features")),
    ],
)
def test_what_the_library_refuses_is_raised(fakes, bundle, behaviour, error):
    engine = behaving(engine_of(bundle, GRAPH), behaviour)
    runner = TensorRTRunner(engine, fakes.library, name=GRAPH)
    feeds = random_feeds(fakes.cupy, bundle, GRAPH, 2)
    for _ in range(2):  # a refusal is no less one the second time
        with raises(RunnerError, *error):
            runner.run(feeds)


def test_a_shape_other_than_the_graphs_is_not_written_into(runner, fakes, bundle, monkeypatch):
    monkeypatch.setattr(fakes.tensorrt.Context, "get_tensor_shape", lambda *_: (9, 9, 9, 9))
    with raises(RunnerError, "output-shape", "probabilities", (9, 9, 9, 9)):
        runner.run(random_feeds(fakes.cupy, bundle, GRAPH, 2))


def test_engines_that_do_not_open(fakes, bundle):
    engine = behaving(engine_of(bundle, GRAPH), "no context")
    with raises(RunnerError, "engine-refused", engine.path):
        TensorRTRunner(engine, fakes.library, name=GRAPH)


def test_inputs_that_do_not_fit(runner, fakes, bundle):
    feeds = random_feeds(fakes.cupy, bundle, GRAPH, 2)
    host = {key: array.get() for key, array in feeds.items()}
    with raises(RunnerError, "input-not-on-gpu", "features"):
        runner.run(host)
    with raises(RunnerError, "input-names", "adapted_queries"):
        runner.run({"features": feeds["features"]})
    with raises(RunnerError, "prompt-count", 33, "1 to 32"):
        runner.run(random_feeds(fakes.cupy, bundle, GRAPH, 33))
    shape = (2, *bundle.stage_spec(1).window_hwd)
    for wrong in (
        fakes.cupy.empty((1, *shape[1:]), "float32"),
        fakes.cupy.empty(shape, "float16"),
        np.empty(shape, np.float32),
        fakes.cupy.empty(shape[::-1], "float32").T,
    ):
        with raises(RunnerError, "output-array-unusable", "probabilities"):
            runner.run(feeds, {"probabilities": wrong})
    with raises(RunnerError, "output-names", "labels"):
        runner.run(feeds, {"labels": wrong})
    runner.close()
    runner.close()
    with raises(RunnerError, "runner-closed"):
        runner.run(feeds)


def test_cuda_graphs_are_recorded_once_an_address_set_and_n(fakes, bundle):
    engine = engine_of(bundle, GRAPH)
    runner = TensorRTRunner(engine, fakes.library, name=GRAPH, cuda_graphs=True)
    feeds = random_feeds(fakes.cupy, bundle, GRAPH, 2)
    given = {"probabilities": fakes.cupy.empty((2, *bundle.stage_spec(1).window_hwd), "float32")}
    log = fakes.cupy.cuda.log

    def kinds():
        seen = [entry[0] for entry in log if entry[0] not in {"record", "wait"}]
        log.clear()
        return seen

    kinds()
    runner.run(feeds, given)
    wanted = expected(bundle, feeds)["probabilities"]
    np.testing.assert_array_equal(given["probabilities"].get(), wanted)
    assert kinds() == ["launch", "synchronize", "launch"]
    for change in (0.5, 2.0):  # the same addresses hold other values
        feeds["features"][...] *= change
        given["probabilities"][...] = 0
        runner.run(feeds, given)
        assert kinds() == ["launch graph"]
        np.testing.assert_array_equal(
            given["probabilities"].get(), expected(bundle, feeds)["probabilities"]
        )
    runner.run(feeds)  # to another address
    assert kinds() == ["launch", "synchronize", "launch"]
    kept = [runner.run(feeds) for _ in range(10)]
    assert len(kept) == 10
    assert len(runner._graphs) == 8
    kinds()
    runner.run(feeds, given)  # forgotten meanwhile
    assert kinds() == ["launch", "synchronize", "launch"]


@pytest.mark.usefixtures("untried")
def test_the_engine_of_a_graph_is_found_and_opened(fakes, bundle):
    record = bundle.graph(1, GRAPH)
    runner = open_runner("tensorrt", bundle.graph_path(1, GRAPH), cache_key=record.sha256)
    feeds = random_feeds(fakes.cupy, bundle, GRAPH, 2)
    found = runner.run(feeds)["probabilities"]
    np.testing.assert_array_equal(found.get(), expected(bundle, feeds)["probabilities"])
    unhashed = open_runner("tensorrt", bundle.graph_path(1, GRAPH), precision="fp32")
    assert unhashed.run(feeds).keys() == {"probabilities"}
    with raises(BundleError, "engine-missing", "fp32", "fp16"):
        open_runner("tensorrt", bundle.graph_path(1, GRAPH), precision="fp16")
    with raises(InputError, "precision-unknown", "int4"):
        open_runner("tensorrt", bundle.graph_path(1, GRAPH), precision="int4")


@pytest.mark.usefixtures("untried")
def test_engines_swapped_or_changed_are_never_loaded(bundle):
    refiner, fusion = (engine_of(bundle, name).path for name in (GRAPH, "fusion"))
    kept = refiner.read_bytes()
    refiner.write_bytes(fusion.read_bytes())
    with raises(BundleError, "engine-damaged"):
        open_runner("tensorrt", bundle.graph_path(1, GRAPH))
    refiner.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with raises(BundleError, "engine-damaged"):
        open_runner("tensorrt", bundle.graph_path(1, GRAPH))
    refiner.unlink()
    with raises(BundleError, "engine-file-missing"):
        open_runner("tensorrt", bundle.graph_path(1, GRAPH))


@pytest.mark.usefixtures("untried")
def test_stale_and_foreign_engines_are_passed_over_with_the_reason(bundle, monkeypatch):
    path = bundle.graph_path(1, GRAPH)
    with monkeypatch.context() as patch:
        patch.setattr(gpu, "find_gpu", lambda: Gpu("NVIDIA RTX 4090", "SM89", 24 << 30, "580"))
        with raises(BundleError, "engine-missing", "SM90", "SM89"):
            open_runner("tensorrt", path)
    changed = path.read_bytes() + b"\x00"
    path.write_bytes(changed)
    with raises(BundleError, "engine-missing"):
        open_runner("tensorrt", path)


def test_graphs_outside_a_bundle_have_no_engine(bundle, tmp_path):
    shutil.copy(bundle.graph_path(1, GRAPH), tmp_path / "alone.onnx")
    with raises(BundleError, "graph-not-bundled"):
        open_runner("tensorrt", tmp_path / "alone.onnx")


def test_auto_takes_fitting_engines_and_says_why_not(bundle, monkeypatch):
    monkeypatch.setattr(
        "medals_rt.runners.selection.installed", lambda kind: kind != "tensorrt-rtx"
    )
    choice = choose("auto", bundle)
    assert choice.kind == "tensorrt"
    assert "NVIDIA Fake 90, and the bundle has tensorrt engines for it" in choice.why
    engine_of(bundle, "fusion", 2).record_path.unlink()
    choice = choose("auto", bundle)
    assert choice.kind == "onnxruntime-cuda"
    assert "no TensorRT engine for fusion of stage 2" in choice.why
    assert "tensorrt-rtx is not installed" in choice.why
    assert "no bundle to look for tensorrt engines in" in choose("auto").why
    monkeypatch.setattr("medals_rt.runners.selection.installed", lambda kind: kind == "openvino")
    choice = choose("auto", bundle)
    assert choice.kind == "openvino"
    assert "NVIDIA Fake 90 is not used: tensorrt is not installed" in choice.why
    assert "onnxruntime-cuda is not installed" in choice.why


@pytest.mark.usefixtures("untried")
def test_without_a_card_or_cupy(fakes, bundle, monkeypatch):
    path = bundle.graph_path(1, GRAPH)
    monkeypatch.setattr(fakes.cupy, "is_available", lambda: False)
    with raises(MissingDependencyError, "gpu-missing"):
        open_runner("tensorrt", path)
    monkeypatch.setattr(gpu, "find_gpu", lambda: None)
    with raises(MissingDependencyError, "gpu-missing"):
        open_runner("tensorrt", path)
