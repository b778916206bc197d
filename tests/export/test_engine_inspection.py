"""What is in engines: of TensorRT-RTX for real as far as there is no GPU, else on the fake."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

onnx = pytest.importorskip("onnx")

from medals_export.engine_inspection import _dtype, inspect_engine
from medals_export.engines import build_engines
from medals_rt.bundle.bundle import Bundle, resolve_bundle
from medals_rt.bundle.engines import Engine
from medals_rt.bundle.manifest import GRAPH_NAMES
from medals_rt.bundle.recipes import recipe_for
from medals_rt.common.errors import BuildError
from medals_rt.runners.tensorrt_library import MODULES, open_library
from tests.cli.helpers import call
from tests.errors import raises
from tests.fakes import Fakes

NAME, RECIPE = recipe_for("tensorrt", "fp32")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A copy of the demo model, to build in."""
    shutil.copytree(resolve_bundle(), tmp_path / "bundle", ignore=shutil.ignore_patterns("cases"))
    return Bundle.open(tmp_path / "bundle", verify=False)


def test_layers_of_engines_as_the_inspector_tells_them(fakes: Fakes, bundle: Bundle) -> None:
    built = build_engines(bundle, fakes.library, NAME, RECIPE, inspect=True)
    assert len(built) == 2 * len(GRAPH_NAMES)
    found = built[0].inspection
    assert found is not None
    assert (found.source, found.scratch_bytes) == ("engine", 4096)
    nodes = onnx.load(bundle.graph_path(1, "image_encoder")).graph.node
    assert [layer.name for layer in found.layers] == [node.name for node in nodes]
    first, second = found.layers[:2]
    assert (first.precision, first.tactic) == ("fp16", "0x0000000000000001")
    assert second.precision == "fp32"
    assert second.tactic == f"sm90_{nodes[1].op_type.lower()}"
    assert second.shape == "1x32x8"
    again = build_engines(bundle, fakes.library, NAME, RECIPE)
    assert all(each.inspection is None and not each.built for each in again)


def test_an_engine_without_details_has_names_alone(fakes: Fakes, bundle: Bundle) -> None:
    """Those that were built before details were asked for."""
    engine = build_engines(bundle, fakes.library, NAME, RECIPE)[1].engine
    plan = engine.path.read_bytes().replace(b'"detailed": true', b'"detailed": false')
    older = rewritten(engine, plan)
    found = inspect_engine(fakes.library, older, bundle.graph_path(1, "query_decoder"))
    assert {layer.tactic + layer.precision + layer.kind for layer in found.layers} == {""}
    assert all(layer.name for layer in found.layers)
    with raises(BuildError, "engine-refused", "not compatible"):
        inspect_engine(fakes.library, rewritten(engine, b"no engine"), older.path)


def rewritten(engine: Engine, plan: bytes) -> Engine:
    import hashlib

    import msgspec

    record = msgspec.structs.replace(
        engine.record, sha256=hashlib.sha256(plan).hexdigest(), bytes=len(plan)
    )
    engine.path.write_bytes(plan)
    return Engine(engine.folder, record)


def test_without_a_gpu_the_parsed_graph_is_told(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of TensorRT-RTX for real, by the command."""
    rtx: Any = pytest.importorskip(MODULES["tensorrt-rtx"][-1], reason="needs TensorRT-RTX")
    assert rtx.__version__
    monkeypatch.setattr("medals_rt.common.gpu.find_gpu", lambda: None)
    library, (name, recipe) = open_library("tensorrt-rtx"), recipe_for("tensorrt-rtx", "fp32")
    build_engines(bundle, library, name, recipe, architectures=("SM89",))
    report = tmp_path / "layers.json"
    words = ("--bundle", bundle.folder, "--target", "tensorrt-rtx", "--arch", "SM89")
    done = call("build", *words, "--inspect", "--json", report)
    assert done.exit_code == 0, done.output
    assert "as parsed: there is no GPU to load the engine with" in " ".join(done.stdout.split())
    engines = json.loads(report.read_text(encoding="utf-8"))["engines"]
    assert [each["graph"] for each in engines] == [*GRAPH_NAMES, *GRAPH_NAMES]
    encoder = engines[0]
    assert (encoder["source"], encoder["scratch_bytes"]) == ("network", None)
    assert encoder["bytes"] > 10_000
    kinds = {layer["kind"] for layer in encoder["layers"]}
    assert {"CONVOLUTION", "CAST"} <= kinds
    decoder = engines[GRAPH_NAMES.index("query_decoder")]
    assert {layer["precision"] for layer in decoder["layers"]} <= {"fp32", "fp16", "int64", "bool"}
    assert any(layer["shape"].startswith("N") for layer in decoder["layers"])


def test_json_wants_inspect(bundle: Bundle, tmp_path: Path) -> None:
    words = ("build", "--bundle", bundle.folder, "--target", "tensorrt-rtx")
    done = call(*words, "--json", tmp_path / "layers.json")
    assert done.exit_code == 2
    assert "--inspect" in done.stderr


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Row major linear FP32", "fp32"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("HALF", "fp16"),
        ("BFloat16", "bf16"),
        ("FP8", "fp8"),
        ("a new one", "a new one"),
        ("", ""),
    ],
)
def test_types_are_read_from_formats(said: str, expected: str) -> None:
    assert _dtype(said) == expected
