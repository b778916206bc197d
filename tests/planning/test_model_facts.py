"""What decides a model's cost, read from a bundle, against its graphs."""

import json
import shutil
from math import prod
from pathlib import Path

import onnx
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.errors import BundleError
from medals_rt.planning.model_facts import facts_of
from tests.errors import raises
from tests.paths import ROOT


def test_facts_of_a_bundle_are_those_of_its_graphs() -> None:
    """Weights are estimated from the files' sizes; a twentieth is all else that graphs hold."""
    bundle = Bundle.open(ROOT / "engines" / "demo")
    facts = facts_of(bundle, "openvino", "bf16", "winograd")
    graphs = [
        onnx.load(bundle.graph_path(stage, name)).graph
        for stage in (1, 2)
        for name in ("image_encoder", "query_decoder")
    ]
    weights = sum(prod(each.dims) for graph in graphs for each in graph.initializer)
    assert facts.weights == pytest.approx(weights, rel=0.05)
    assert facts.channels == graphs[0].output[0].type.tensor_type.shape.dim[1].dim_value
    assert facts.stages == (bundle.stage_spec(1), bundle.stage_spec(2))
    assert (facts.runner, facts.precision, facts.convolution) == ("openvino", "bf16", "winograd")


def test_an_encoder_that_leaves_its_channels_free_is_refused(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_bundle.folder, tmp_path / "tiny"))
    record = folder / "bundle.json"
    manifest = json.loads(record.read_text(encoding="utf-8"))
    manifest["stages"]["fine"]["graphs"]["image_encoder"]["outputs"][0]["shape"][1] = "C"
    record.write_text(json.dumps(manifest), encoding="utf-8")
    with raises(BundleError, "bundle-without-channels"):
        facts_of(Bundle.open(folder, verify=False), "openvino", "fp32")
