"""Both libraries against PyTorch, graph by graph, and what a runner promises."""

import os
import weakref

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from medals_export.graph_plans import graph_plans
from medals_export.verify import relative_error
from medals_rt.common.cores import usable_cores
from medals_rt.common.errors import BundleError, InputError, MissingFileError, RunnerError
from medals_rt.common.subprocesses import run_python
from medals_rt.runners.selection import open_runner
from tests.bundles import tiny_checkpoint
from tests.errors import raises

GRAPHS = ("image_encoder", "query_decoder", "refiner", "refiner_text_only")
KINDS = ("openvino", "onnxruntime")
TOLERANCES = {"fp32": 1e-4, "bf16": 4e-2}


def has_bf16() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.fixture(scope="module")
def plans():
    return {plan.name: plan for plan in graph_plans(tiny_checkpoint(2).model)}


def feeds_for(plan, count, seed=0):
    """Inputs of the size that real ones have; `count` prompts."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for name, example in plan.inputs.items():
        shape = (count, *example.shape[1:]) if name in plan.prompt_inputs else tuple(example.shape)
        if name in {"foreground", "prompts"}:
            feeds[name] = (rng.random(shape, np.float32) > 0.5).astype(np.float32)
        elif name == "image":
            feeds[name] = np.floor(rng.random(shape, np.float32) * 256)
        else:
            feeds[name] = rng.standard_normal(shape, dtype=np.float32)
    return feeds


def torch_outputs(plan, feeds):
    with torch.inference_mode():
        found = plan.module(*(torch.from_numpy(feeds[name]) for name in plan.inputs))
    tensors = found if isinstance(found, tuple) else (found,)
    return [tensor.numpy() for tensor in tensors]


def open_graph(bundle, kind, graph, **options):
    return open_runner(kind, bundle.graph_path(2, graph), **options)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(
    ("kind", "precision"), [("openvino", "fp32"), ("openvino", "bf16"), ("onnxruntime", "fp32")]
)
def test_graph_computes_what_pytorch_does(tiny_bundle, plans, kind, precision, graph):
    if precision == "bf16" and not has_bf16():
        pytest.skip("this processor has no bf16 arithmetic")
    plan = plans[graph]
    runner = open_graph(tiny_bundle, kind, graph, precision=precision)
    assert (runner.kind, runner.precision, runner.device) == (kind, precision, "cpu")
    for count in (1, 3, 7):
        feeds = feeds_for(plan, count)
        found = runner.run(feeds)
        assert list(found) == list(plan.outputs)
        assert all(array.dtype == np.float32 for array in found.values())
        error = relative_error(list(found.values()), torch_outputs(plan, feeds))
        assert error <= TOLERANCES[precision]


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_the_callers_own_and_repeat_to_the_byte(tiny_bundle, plans, kind):
    runner = open_graph(tiny_bundle, kind, "refiner")
    feeds, others = feeds_for(plans["refiner"], 3), feeds_for(plans["refiner"], 3, seed=1)
    first = runner.run(feeds)["probabilities"]
    kept = first.copy()
    other = runner.run(others)["probabilities"]
    again = runner.run(feeds)["probabilities"]
    assert not np.array_equal(other, kept)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(again, kept)
    assert not np.shares_memory(first, again)
    assert first.flags.writeable


def test_results_outlive_the_runner_and_inputs_do_not_live_on(tiny_bundle, plans):
    """What a window takes is free before the next one: the library keeps none of it."""
    for graph in ("refiner", "image_encoder"):  # of free size, and of fixed size
        runner = open_graph(tiny_bundle, "openvino", graph)
        feeds = feeds_for(plans[graph], 3)
        found = runner.run(feeds)
        kept = {name: array.copy() for name, array in found.items()}
        given = [weakref.ref(array) for array in feeds.values()]
        del feeds
        assert [array() for array in given] == [None] * len(given)
        runner.run(feeds_for(plans[graph], 5, seed=1))
        runner.release()
        runner.run(feeds_for(plans[graph], 3, seed=2))
        runner.close()
        for name, array in found.items():
            np.testing.assert_array_equal(array, kept[name])


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_read_only_and_may_be_views(tiny_bundle, plans, kind):
    runner = open_graph(tiny_bundle, kind, "refiner")
    feeds = feeds_for(plans["refiner"], 3)
    expected = runner.run(feeds)["probabilities"]
    turned = {name: np.asfortranarray(array) for name, array in feeds.items()}
    for array in turned.values():
        array.flags.writeable = False
    np.testing.assert_array_equal(runner.run(turned)["probabilities"], expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"prompts": None}, ("input-names", "prompts")),
        (
            {"features": np.zeros((1, 5, 16, 16, 16), np.float32)},
            ("input-shape", "features", "float32"),
        ),
        (
            {"features": np.zeros((1, 4, 16, 16, 16), np.float64)},
            ("input-shape", "features", "float64"),
        ),
        ({"prompts": np.zeros((2, 16, 16, 16), np.float32)}, ("input-shape", "prompts")),
        ({"prompts": np.zeros((3, 16, 16), np.float32)}, ("input-shape", "prompts")),
    ],
)
def test_inputs_that_do_not_fit(tiny_bundle, plans, kind, change, error):
    runner = open_graph(tiny_bundle, kind, "refiner")
    feeds = {**feeds_for(plans["refiner"], 3), **change}
    feeds = {name: array for name, array in feeds.items() if array is not None}
    with raises(RunnerError, *error):
        runner.run(feeds)


@pytest.mark.parametrize("kind", KINDS)
def test_no_prompts_at_all_is_refused(tiny_bundle, plans, kind):
    runner = open_graph(tiny_bundle, kind, "refiner")
    with raises(RunnerError, "input-shape", "adapted_queries"):
        runner.run(feeds_for(plans["refiner"], 0))


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_no_graph(tmp_path, kind):
    with raises(MissingFileError, "graph-missing"):
        open_runner(kind, tmp_path / "none.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"this is no graph")
    with raises(RunnerError, "graph-refused", "broken"):
        open_runner(kind, broken)


@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("kind", KINDS)
def test_threads_asked_for_are_used(tiny_bundle, kind):
    assert open_graph(tiny_bundle, kind, "query_decoder", threads=1).threads == 1


def test_precision_is_chosen_and_refused(tiny_bundle):
    automatic = open_graph(tiny_bundle, "openvino", "query_decoder")
    assert automatic.precision == ("bf16" if has_bf16() else "fp32")
    with raises(InputError, "precision-unsupported"):
        open_graph(tiny_bundle, "openvino", "query_decoder", precision="fp16")
    with raises(InputError, "precision-unknown", "int4"):
        open_graph(tiny_bundle, "openvino", "query_decoder", precision="int4")
    with raises(InputError, "precision-unsupported"):
        open_graph(tiny_bundle, "onnxruntime", "query_decoder", precision="bf16")


def blobs(folder):
    return sorted((folder / "openvino").glob("*.blob"))


def test_compiled_graphs_are_kept_by_content_and_arithmetic(
    tiny_bundle, plans, tmp_path, monkeypatch
):
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path))
    feeds = feeds_for(plans["query_decoder"], 3)
    options = {"cache_key": "abc", "precision": "fp32"}
    first = open_graph(tiny_bundle, "openvino", "query_decoder", **options)
    (blob,) = blobs(tmp_path)
    written = blob.stat().st_ino
    second = open_graph(tiny_bundle, "openvino", "query_decoder", **options)
    assert first.notes == second.notes == ()
    assert [each.stat().st_ino for each in blobs(tmp_path)] == [written]
    assert (second.inputs, second.outputs) == (first.inputs, first.outputs)
    np.testing.assert_array_equal(
        second.run(feeds)["adapted_queries"], first.run(feeds)["adapted_queries"]
    )
    open_graph(tiny_bundle, "openvino", "query_decoder", cache_key="another", precision="fp32")
    open_graph(tiny_bundle, "openvino", "query_decoder", **options, threads=usable_cores() + 1)
    assert len(blobs(tmp_path)) == 3


def flipped_in_the_middle(data):
    changed = bytearray(data)
    changed[len(data) // 2] ^= 0xFF
    return bytes(changed)


@pytest.mark.parametrize(
    "damaged", [lambda _: b"", lambda _: b"nonsense", lambda data: data[:-1], flipped_in_the_middle]
)
def test_a_damaged_compilation_is_made_again_and_told(
    tiny_bundle, plans, tmp_path, monkeypatch, damaged
):
    """The library opens one whose weights have changed, and computes with them."""
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path))
    feeds = feeds_for(plans["query_decoder"], 2)
    whole = open_graph(tiny_bundle, "openvino", "query_decoder", cache_key="abc")
    expected = whole.run(feeds)["adapted_queries"]
    whole.close()
    (blob,) = blobs(tmp_path)
    blob.write_bytes(damaged(blob.read_bytes()))
    runner = open_graph(tiny_bundle, "openvino", "query_decoder", cache_key="abc")
    (note,) = runner.notes
    assert "made again" in note
    np.testing.assert_array_equal(runner.run(feeds)["adapted_queries"], expected)
    assert open_graph(tiny_bundle, "openvino", "query_decoder", cache_key="abc").notes == ()


@pytest.mark.parametrize("convolution", ["direct", "auto"])
def test_graphs_exchanged_while_they_are_read_are_not_kept(
    tiny_bundle, tmp_path, monkeypatch, convolution
):
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path))

    def check_files():
        raise BundleError("exchanged", code="bundle-changed")

    with raises(BundleError, "bundle-changed"):
        open_runner(
            "openvino",
            tiny_bundle.graph_path(2, "refiner"),
            joined=True,
            name="x",
            cache_key="abc",
            check_files=check_files,
            convolution=convolution,
        )
    assert blobs(tmp_path) == []


def test_an_unknown_convolution_is_refused(tiny_bundle):
    with raises(InputError, "convolution-unknown", "Direct", "direct"):
        open_runner(
            "openvino", tiny_bundle.graph_path(2, "refiner"), joined=True, convolution="Direct"
        )


def test_only_the_last_used_compilations_are_kept(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path))
    open_graph(tiny_bundle, "openvino", "query_decoder", cache_key="first")
    (first,) = blobs(tmp_path)
    os.utime(first, (0, 0))
    monkeypatch.setattr("medals_rt.common.cache_dir.KEPT_BYTES", 1)
    open_graph(tiny_bundle, "openvino", "query_decoder", cache_key="second")
    (kept,) = blobs(tmp_path)
    assert kept != first


@pytest.mark.parametrize(("width", "count"), [(None, 3), (4, 4)])
def test_joined_graphs_are_their_parts_in_a_row(tiny_bundle, plans, width, count):
    """What is read by a later graph goes no further; the query decoder's N stays free."""
    last = "refiner_text_only" if width is None else f"refiner_{width}"
    names = ("image_encoder", "query_decoder", last)
    joined = open_runner(
        "openvino",
        *(tiny_bundle.graph_path(2, name) for name in names),
        joined=True,
        precision="fp32",
    )
    assert [spec.name for spec in joined.outputs] == ["probabilities"]
    queries = next(spec for spec in joined.inputs if spec.name == "queries")
    assert queries.shape == ("?", 24)
    values = {
        **feeds_for(plans["image_encoder"], 0),
        "queries": feeds_for(plans["query_decoder"], count)["queries"],
        **({"prompts": feeds_for(plans["refiner"], count)["prompts"]} if width else {}),
    }
    found = joined.run(values)["probabilities"]
    for name in names:
        runner = open_graph(tiny_bundle, "openvino", name, precision="fp32")
        values |= runner.run({spec.name: values[spec.name] for spec in runner.inputs})
    np.testing.assert_allclose(found, values["probabilities"], rtol=0, atol=1e-4)


@pytest.mark.skipif(not has_bf16(), reason="this processor has no bf16 arithmetic")
@pytest.mark.parametrize("width", [2, 4, 8])
def test_as_many_prompts_as_attention_heads_are_as_exact_as_others(tiny_bundle, plans, width):
    """Compiled in bf16 for a fixed N that is the number of heads (4 here), T was a tenth wrong."""
    names = ("image_encoder", "query_decoder", f"refiner_{width}")
    rng = np.random.default_rng(5)
    values = {
        **feeds_for(plans["image_encoder"], 0),
        "queries": rng.standard_normal((width, 24), np.float32),
        "prompts": (rng.random((width, 16, 16, 16)) > 0.5).astype(np.float32),
    }
    found = {
        precision: open_runner(
            "openvino",
            *(tiny_bundle.graph_path(2, name) for name in names),
            joined=True,
            precision=precision,
        ).run(values)["probabilities"]
        for precision in ("fp32", "bf16")
    }
    error = found["bf16"] - found["fp32"]
    rms = np.sqrt(np.mean(error**2) / np.mean(found["fp32"] ** 2))
    assert rms < 0.04


def test_only_libraries_that_gain_from_it_join_graphs(tiny_bundle):
    with pytest.raises(ValueError, match="does not join"):
        open_runner("onnxruntime", tiny_bundle.graph_path(2, "refiner"), joined=True)


def test_memory_given_back_is_taken_anew(tiny_bundle, plans):
    runner = open_graph(tiny_bundle, "openvino", "refiner")
    feeds = feeds_for(plans["refiner"], 3)
    expected = runner.run(feeds)["probabilities"]
    runner.release()
    np.testing.assert_array_equal(runner.run(feeds)["probabilities"], expected)
    open_graph(tiny_bundle, "onnxruntime", "refiner").release()  # which keeps nothing


def test_cache_that_cannot_be_written_is_noted_not_fatal(tiny_bundle, plans, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path / "file"))
    runner = open_graph(tiny_bundle, "openvino", "query_decoder", cache_key="abc")
    (note,) = runner.notes
    assert note.startswith("compiled graphs are not kept: ")
    assert runner.run(feeds_for(plans["query_decoder"], 2))["adapted_queries"].shape == (2, 4)


def test_ctrl_c_is_told_after_graphs_were_closed(bundle):
    """OpenVINO lends the main thread a stack for signals, and several lent ones come back amiss."""
    code = (
        "import signal\n"
        "from medals_rt.runners.selection import open_runner\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"paths = {[str(bundle.graph_path(2, graph)) for graph in GRAPHS]}\n"
        "opened = [open_runner('openvino', path) for path in map(Path, paths)]\n"
        "[each.close() for each in opened]\n"
        "try:\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    print('told')\n"
    )
    ended = run_python(["-c", f"from pathlib import Path\n{code}"], timeout_s=600)
    assert (ended.code, ended.said) == (0, ("told",)), ended
