"""Graphs computed with arrays: on NumPy, against ONNX Runtime."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from medals_rt.bundle.manifest import GRAPH_NAMES
from medals_rt.common.errors import RunnerError
from medals_rt.runners.cudnn.graph import UPSAMPLE_JOIN, read_graph
from medals_rt.runners.cudnn.program import Program, shown, stored
from tests.errors import raises
from tests.runners.reference import NumpyOperations

TOLERANCE = 4e-3  # of the largest value: roundings to fp16 in another order


def graph_of(bundle, name):
    return read_graph(bundle.graph_path(1, name))


def feeds_of(graph, count):
    rng = np.random.default_rng(count)
    return {
        spec.name: rng.standard_normal(
            [size if isinstance(size, int) else count for size in spec.shape]
        ).astype(spec.dtype)
        for spec in graph.inputs
    }


@pytest.mark.parametrize("name", GRAPH_NAMES)
def test_every_graph(tiny_half_bundle, name):
    graph = graph_of(tiny_half_bundle, name)
    feeds = feeds_of(graph, 3)
    found = Program(graph, NumpyOperations()).run(feeds)
    session = onnxruntime.InferenceSession(tiny_half_bundle.graph_path(1, name))
    for spec, wanted in zip(graph.outputs, session.run(None, feeds), strict=True):
        assert found[spec.name].dtype == wanted.dtype
        assert found[spec.name].shape == wanted.shape
        furthest = np.abs(found[spec.name].astype(float) - wanted.astype(float)).max()
        assert furthest <= TOLERANCE * np.abs(wanted.astype(float)).max()


def test_features_are_stored_with_the_channels_last(tiny_half_bundle):
    graph = graph_of(tiny_half_bundle, "image_encoder")
    features = Program(graph, NumpyOperations()).run(feeds_of(graph, 1))["features"]
    assert stored(np, features).base is not None
    assert np.shares_memory(stored(np, features), features)
    np.testing.assert_array_equal(shown(np, stored(np, features)), features)


def test_inputs_are_not_changed(tiny_half_bundle):
    graph = graph_of(tiny_half_bundle, "fusion_text_only")
    feeds = feeds_of(graph, 1)
    kept = {name: array.copy() for name, array in feeds.items()}
    program = Program(graph, NumpyOperations())
    first = program.run(feeds)["refined"].copy()
    assert all((feeds[name] == kept[name]).all() for name in feeds)
    np.testing.assert_array_equal(program.run(feeds)["refined"], first)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Conv", {"strides": [1, 2, 1]}),
        ("Conv", {"pads": [0] * 6}),
        ("Conv", {"group": 2}),
        ("Conv", {"dilations": [2, 2, 2]}),
        (UPSAMPLE_JOIN, {"strides": [1, 1, 1]}),
        ("AveragePool", {"ceil_mode": 1}),
    ],
)
def test_what_is_not_known_is_refused(tiny_half_bundle, op, attributes):
    graph = graph_of(tiny_half_bundle, "image_encoder")
    nodes = tuple(
        replace(node, attributes={**node.attributes, **attributes}) if node.op == op else node
        for node in graph.nodes
    )
    with raises(RunnerError, "graph-unsupported"):
        Program(replace(graph, nodes=nodes), NumpyOperations())


def test_widths_of_no_matrix_unit_are_refused(tiny_bundle):
    with raises(RunnerError, "width-unsupported", "4 channels", "onnxruntime-cuda"):
        Program(graph_of(tiny_bundle, "image_encoder"), NumpyOperations())


def test_an_unknown_operation_is_refused(tiny_half_bundle):
    graph = graph_of(tiny_half_bundle, "query_decoder")
    nodes = (replace(graph.nodes[0], op="Einsum"), *graph.nodes[1:])
    with raises(RunnerError, "graph-unsupported", "Einsum"):
        Program(replace(graph, nodes=nodes), NumpyOperations())


def test_what_is_the_same_in_every_run_is_computed_once(tiny_half_bundle):
    graph = graph_of(tiny_half_bundle, "query_decoder")
    assert "Split" in {node.op for node in graph.nodes}
    seen = []

    def watch(node, given, compute):
        del given
        seen.append(node.op)
        return compute()

    Program(graph, NumpyOperations()).run(feeds_of(graph, 2), watch)
    assert "Split" not in seen
    assert len(seen) < len(graph.nodes)
