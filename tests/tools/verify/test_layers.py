"""`medals-rt verify --layers`: a fault that was planted is found by the layer's name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is the reference")
onnx = pytest.importorskip("onnx")

from medals_export.engines import build_graph
from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import GraphName
from medals_rt.tools.verify import layers as layers_module
from medals_rt.tools.verify.layers import LayerComparison, compare_layers
from medals_rt.tools.verify.references import Candidate, OwnGraphs
from tests.cli.helpers import call
from tests.fakes import Fakes
from tests.tools.verify.helpers import damage

ALLOWED = 1e-3


def nodes_reading(path: Path, changed: str) -> dict[str, str]:
    """The nodes that compute with a constant, or with what it was cast or split to, by name."""
    graph = onnx.load(path).graph
    depends, derived, found = {each.name for each in graph.input}, {changed}, {}
    for node in graph.node:
        reads = derived & {*node.input}
        if depends & {*node.input}:
            depends |= {*node.output}
            found |= {node.name: node.op_type} if reads else {}
        elif reads:
            derived |= {*node.output}
    return found


def largest_constant(path: Path) -> str:
    graph = onnx.load(path).graph
    return str(max(graph.initializer, key=lambda each: np.prod(each.dims)).name)


class ChangedReference(OwnGraphs):
    """The bundle's graphs with an operator of one changed: the bundle's own is then the fault."""

    def graph_file(self, stage: int, graph: GraphName, folder: Path) -> Path:
        model = onnx.load(super().graph_file(stage, graph, folder))
        node = changed_node(model.graph)
        node.attribute[0].f = 0.5
        path = folder / "changed.onnx"
        onnx.save(model, path)
        return path


def changed_node(graph: Any) -> Any:
    """A layer in the middle of the encoder."""
    found = [node for node in graph.node if node.op_type == "LeakyRelu"]
    return found[len(found) // 2]


def compare(
    bundle: Bundle, graph: GraphName, candidate: Candidate, reference: Any, **more: Any
) -> LayerComparison:
    return compare_layers(bundle, 2, graph, reference, candidate, allowed=ALLOWED, **more)


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("most_bytes", [1 << 29, 1 << 20])
def test_an_operator_that_differs_is_found(bundle: Bundle, kind: Any, most_bytes: int) -> None:
    """Whether all tensors are looked at together, or a few at a time."""
    found = compare(
        bundle,
        "image_encoder",
        Candidate(kind, "fp32"),
        ChangedReference(bundle),
        most_bytes=most_bytes,
    )
    expected = changed_node(onnx.load(bundle.graph_path(2, "image_encoder")).graph)
    assert found.first is not None
    assert (found.first.node, found.first.operator) == (expected.name, "LeakyRelu")
    assert found.first.tensor == expected.output[0]
    assert found.first.inherited < ALLOWED < found.first.error
    assert found.sources[0] == found.first
    assert found.unpaired == 0
    assert len(found.layers) > 20


@pytest.mark.parametrize("graph", ["image_encoder", "query_decoder", "refiner", "classifier"])
def test_a_graph_that_is_right_has_no_such_layer(bundle: Bundle, graph: GraphName) -> None:
    found = compare(bundle, graph, Candidate("openvino", "fp32"), OwnGraphs(bundle))
    assert found.first is None
    assert found.output_error < ALLOWED
    assert found.layers


def test_a_changed_weight_is_found_by_its_layer(
    bundle: Bundle, checkpoints: list[Path], tmp_path: Path
) -> None:
    """By the command, against graphs that are exported from the checkpoints again."""
    graph: GraphName = "query_decoder"
    changed = largest_constant(bundle.graph_path(2, graph))
    expected = nodes_reading(bundle.graph_path(2, graph), changed)
    spoilt, report = damage(bundle, graph), tmp_path / "report.json"
    arguments = ("verify", "--bundle", spoilt.folder, "--against", *checkpoints, "--graphs-only")
    done = call(*arguments, "--runner", "onnxruntime", "--stage", 2, "--layers", "--json", report)
    assert done.exit_code == 1, done.output
    (compared,) = json.loads(report.read_text(encoding="utf-8"))["layers"]
    assert compared["graph"] == graph
    assert compared["first"]["node"] in expected
    assert compared["unpaired"] == 0
    line = next(line for line in done.stdout.splitlines() if line.strip().startswith("! node"))
    assert expected[compared["first"]["node"]] in line


def test_nothing_is_compared_where_all_is_well(bundle: Bundle, checkpoints: list[Path]) -> None:
    arguments = ("verify", "--bundle", bundle.folder, "--against", *checkpoints, "--graphs-only")
    done = call(*arguments, "--runner", "onnxruntime", "--stage", 1, "--layers")
    assert done.exit_code == 0
    assert "layer" not in done.stdout


def test_engines_are_built_of_graphs_with_more_outputs(
    bundle: Bundle, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the fake of TensorRT, which computes with ONNX Runtime."""
    assert fakes.library.kind == "tensorrt"
    monkeypatch.setattr(layers_module, "load_plugin", lambda *_: build_graph)
    found = compare(
        bundle,
        "image_encoder",
        Candidate("tensorrt", "fp32"),
        ChangedReference(bundle),
        most_bytes=1 << 22,
    )
    expected = changed_node(onnx.load(bundle.graph_path(2, "image_encoder")).graph)
    assert found.first is not None
    assert found.first.node == expected.name
