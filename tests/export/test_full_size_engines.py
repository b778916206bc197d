"""The released networks at their full size: exported in fp16 and built by TensorRT-RTX."""

import shutil
from importlib.util import find_spec

import pytest

pytest.importorskip("torch", reason="exports, which needs the extra 'export'")

from medals_export.engines import build_engines
from medals_export.export import export_bundle
from medals_export.model import ModelConfig
from medals_rt.bundle.manifest import GRAPH_NAMES
from medals_rt.bundle.recipes import recipe_for
from medals_rt.runners.tensorrt_library import MODULES, open_library
from tests.recipes import bank_of, e2e_embeddings, recipe_checkpoint

STAGES = (((224, 224, 128), (1.5, 1.5, 3.0)), ((192, 192, 192), (1.0, 1.0, 1.0)))


@pytest.mark.slow
def test_every_fp16_graph_of_both_stages_is_parsed_and_built(tmp_path_factory):
    """About a minute, 2.5 GB of memory and 0.9 GB of disk, which are given back."""
    if not any(find_spec(name) for name in MODULES["tensorrt-rtx"]):
        pytest.skip("TensorRT-RTX is not installed")
    checkpoints = [
        recipe_checkpoint(ModelConfig.released(window_hwd), spacing_hwd_mm, f"stage{stage}/")
        for stage, (window_hwd, spacing_hwd_mm) in enumerate(STAGES, start=1)
    ]
    folder = tmp_path_factory.mktemp("full") / "bundle"
    try:
        bundle = export_bundle(
            *checkpoints,
            bank_of(e2e_embeddings(["CT/anatomy/1"], seed=1)),
            folder,
            name="full",
            precision="fp16",
            verify_with=(),
        )
        del checkpoints
        built = build_engines(
            bundle,
            open_library("tensorrt-rtx"),
            *recipe_for("tensorrt-rtx", "fp16"),
            architectures=("SM89",),
        )
        found = {(each.engine.record.stage, each.engine.record.graph): each for each in built}
        assert found.keys() == {(stage, graph) for stage in (1, 2) for graph in GRAPH_NAMES}
        for each in built:
            assert each.engine.record.key.precision == "fp16"
            assert len(each.engine.read()) == each.engine.record.bytes
        encoder = found[2, "image_encoder"].engine.record
        assert encoder.bytes > 100e6  # its weights in halves
    finally:
        shutil.rmtree(folder, ignore_errors=True)
