"""ONNX Runtime on a GPU: what is bound where, on fakes of CuPy and the library."""

import importlib.metadata

import numpy as np
import onnxruntime
import pytest

from medals_rt.common import optional_deps
from medals_rt.common.errors import InputError, MissingDependencyError, RunnerError
from medals_rt.common.optional_deps import gpu_extra
from medals_rt.runners import onnxruntime as module
from medals_rt.runners import selection
from medals_rt.runners.selection import open_runner, precisions
from tests.errors import raises
from tests.fakes.onnxruntime_cuda import make_library
from tests.runners.engine_bundles import random_feeds

GRAPH = "refiner"


@pytest.fixture
def library(fakes, monkeypatch):
    library = make_library(fakes.cupy.cuda)
    monkeypatch.setattr(module, "import_onnxruntime", lambda: library)
    return library


def test_results_and_what_is_bound(library, fakes, bundle):
    runner = open_runner("onnxruntime-cuda", bundle.graph_path(1, GRAPH), name=GRAPH)
    assert (runner.kind, runner.device, runner.precision) == ("onnxruntime-cuda", "cuda", "fp32")
    for count in (3, 1):
        feeds = random_feeds(fakes.cupy, bundle, GRAPH, count)
        found = runner.run(feeds)
        on_cpu = onnxruntime.InferenceSession(bundle.graph_path(1, GRAPH))
        (wanted,) = on_cpu.run(None, {key: array.get() for key, array in feeds.items()})
        np.testing.assert_array_equal(found["probabilities"].get(), wanted)
        assert isinstance(found["probabilities"], fakes.cupy.ndarray)
        for key, (dtype, shape, address) in library.binding.inputs.items():
            array = feeds[key]
            assert (dtype, shape, address) == (np.float32, array.shape, array.data.ptr)
        assert library.binding.outputs["probabilities"][2] == found["probabilities"].data.ptr
    ((name, options),) = library.providers
    assert name == "CUDAExecutionProvider"
    assert (options["use_tf32"], options["prefer_nhwc"]) == ("0", "0")
    with pytest.raises(RuntimeError, match="does not have configuration"):  # see the runner
        library.run_options.get_run_config_entry("disable_synchronize_execution_providers")


def test_matrix_units_compute_graphs_in_fp16_and_none_in_fp32(library, bundle):
    path = bundle.graph_path(1, GRAPH)
    for precision, allowed in (("fp16", "1"), ("fp32", "0"), (None, "0")):
        open_runner("onnxruntime-cuda", path, graph_precision=precision)
        ((_, options),) = library.providers
        assert options["use_tf32"] == allowed


def test_cuda_from_python_packages_is_loaded_before_a_session(library, bundle, capsys):
    open_runner("onnxruntime-cuda", bundle.graph_path(1, GRAPH))
    assert capsys.readouterr().out == ""
    loaded = []
    library.preload_dlls = lambda: loaded.append(hasattr(library, "providers"))
    del library.providers
    open_runner("onnxruntime-cuda", bundle.graph_path(1, GRAPH))
    assert loaded == [False]
    del library.preload_dlls  # before ONNX Runtime 1.21
    open_runner("onnxruntime-cuda", bundle.graph_path(1, GRAPH))


def test_order_of_work_is_kept_by_events(library, fakes, bundle):
    runner = open_runner("onnxruntime-cuda", bundle.graph_path(1, GRAPH))
    feeds = random_feeds(fakes.cupy, bundle, GRAPH, 2)
    cuda = fakes.cupy.cuda
    cuda.log.clear()
    runner.run(feeds)
    own = int(library.providers[0][1]["user_compute_stream"])
    assert [(kind, *rest[-1:]) for kind, *rest in cuda.log] == [
        ("record", 1),
        ("wait", own),
        ("launch", own),
        ("record", own),
        ("wait", 1),
    ]
    runner.close()
    assert cuda.log[-1] == ("synchronize", own)


def test_views_are_copied_on_the_gpu(library, fakes, bundle):
    runner = open_runner("onnxruntime-cuda", bundle.graph_path(1, GRAPH))
    feeds = random_feeds(fakes.cupy, bundle, GRAPH, 2)
    wanted = runner.run(feeds)["probabilities"]
    turned = fakes.cupy.asfortranarray(feeds["features"])
    found = runner.run({**feeds, "features": turned})["probabilities"]
    np.testing.assert_array_equal(found.get(), wanted.get())
    assert library.binding.inputs["features"][2] != turned.data.ptr


def test_what_does_not_fit(library, fakes, bundle):
    runner = open_runner("onnxruntime-cuda", bundle.graph_path(1, GRAPH), name=GRAPH)
    feeds = random_feeds(fakes.cupy, bundle, GRAPH, 2)
    with raises(RunnerError, "input-not-on-gpu", "features"):
        runner.run({key: array.get() for key, array in feeds.items()})
    with raises(RunnerError, "input-names", "features"):
        runner.run({})
    library.failure = "CUDNN_STATUS_EXECUTION_FAILED"
    with raises(RunnerError, "run-failed", "CUDNN_STATUS_EXECUTION_FAILED"):
        runner.run(feeds)


def test_a_session_that_falls_back_to_the_cpu_is_refused(library, bundle):
    library.taken = ["CPUExecutionProvider"]
    with raises(RunnerError, "cuda-not-used"):
        open_runner("onnxruntime-cuda", bundle.graph_path(1, GRAPH))
    library.available = ["CPUExecutionProvider"]
    with raises(MissingDependencyError, "onnxruntime-without-cuda", "1.26.0", f"[{gpu_extra()}]"):
        open_runner("onnxruntime-cuda", bundle.graph_path(1, GRAPH))


@pytest.mark.usefixtures("library")
def test_the_graph_decides_the_arithmetic(bundle, tmp_path):
    import onnx

    path = bundle.graph_path(1, GRAPH)
    with raises(InputError, "precision-unsupported", "fp32", "fp16"):
        open_runner("onnxruntime-cuda", path, precision="fp16")
    assert open_runner("onnxruntime-cuda", path, graph_precision="bf16").precision == "bf16"
    half = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT16, ["N", 4])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "halves",
        [half],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT16, ["N", 4])],
    )
    opset = onnx.helper.make_opsetid("", 20)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    onnx.save(model, tmp_path / "half.onnx")
    assert open_runner("onnxruntime-cuda", tmp_path / "half.onnx").precision == "fp16"
    assert precisions("onnxruntime-cuda", "fp16") == ("fp16",)


def test_what_counts_as_installed(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(
        optional_deps, "find_spec", lambda name: name in {"cupy", "onnxruntime"} or None
    )
    monkeypatch.setattr(selection, "distribution", lambda name: name)
    assert selection.installed("onnxruntime-cuda")
    monkeypatch.setattr(selection, "distribution", missing)
    assert not selection.installed("onnxruntime-cuda")
    assert not selection.installed("tensorrt-rtx")
    monkeypatch.setattr(
        optional_deps, "find_spec", lambda name: name == "tensorrt_rtx_bindings" or None
    )
    assert not selection.installed("tensorrt-rtx")  # without CuPy there are no arrays for it
