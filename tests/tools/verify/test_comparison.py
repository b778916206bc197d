"""What is compared with what, with which prompts, and how near it has to be."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is the reference")
pytest.importorskip("onnx")

from medals_export.torch_reference import TorchReference
from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import FOLDED_REFINERS
from medals_rt.bundle.recipes import Verification, read_recipe
from medals_rt.common.errors import InputError, MissingDependencyError, RunnerError
from medals_rt.inference.network import PassInput
from medals_rt.tools.verify import graphs as parity_graphs
from medals_rt.tools.verify import references
from medals_rt.tools.verify.graphs import compare_graphs
from medals_rt.tools.verify.references import Candidate, OwnGraphs, find_candidates
from medals_rt.tools.verify.verify import graph_passes, verify_bundle
from tests.bundles import tiny_checkpoint
from tests.errors import raises
from tests.tools.verify.helpers import BOTH


def test_a_candidate_that_fails_is_told_and_the_others_go_on(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = references.open_candidate

    def break_one(bundle: Bundle, stage: int, graph: str, candidate: Candidate, threads: Any):
        if graph == "fusion" and candidate.kind == "openvino":
            raise RunnerError("the library refused it")
        return opened(bundle, stage, graph, candidate, threads)

    monkeypatch.setattr(parity_graphs, "open_candidate", break_one)
    reference = TorchReference(tiny_bundle, tiny_checkpoint(1), tiny_checkpoint(2))
    told: list[tuple[str, int, int]] = []
    found = compare_graphs(
        tiny_bundle, 1, reference, BOTH, progress=lambda *step: told.append(step)
    )
    broken = {each.graph: each.fault for each in found[BOTH[0]] if each.fault}
    assert broken == {"fusion": "the library refused it"}
    assert all(graph_passes(each, 1e-4) for each in found[BOTH[1]])
    assert told[0] == ("coarse graphs", 0, 36)
    assert told[-1] == ("coarse graphs", 36, 36)


def test_prompts_that_graphs_are_tried_with(tiny_bundle: Bundle) -> None:
    found = compare_graphs(tiny_bundle, 2, OwnGraphs(tiny_bundle), BOTH[:1], prompts_tried=3)
    counts = {each.graph: each.prompt_counts for each in found[BOTH[0]]}
    assert counts["image_encoder"] == (1,)
    assert counts["refiner"] == counts["classifier"] == counts["query_decoder"] == (1, 3)
    folded = {width: counts[name] for width, name in FOLDED_REFINERS.items()}
    assert folded == {1: (1,), 2: (2,), 4: (3,), 8: (3,), 16: (3,)}


def test_another_spacing_than_the_checkpoints_is_refused(
    tiny_bundle: Bundle, checkpoints: list[Path]
) -> None:
    """Both sides would be run on the bundle's, and agree."""
    stages = tiny_bundle.manifest.stages
    fine = msgspec.structs.replace(stages.fine, spacing_hwd_mm=(2.0, 2.0, 2.5))
    stages = msgspec.structs.replace(stages, fine=fine)
    changed = msgspec.structs.replace(tiny_bundle.manifest, stages=stages)
    bundle = Bundle(tiny_bundle.folder, changed)
    with raises(InputError, "checkpoint-spacing", checkpoints[1].name, 3.0, 2.5):
        TorchReference(bundle, *checkpoints)
    with raises(InputError, "checkpoint-spacing", 3.0, 2.5):
        TorchReference(bundle, tiny_checkpoint(1), tiny_checkpoint(2))
    assert any(
        "text embeddings" in note for note in TorchReference(tiny_bundle, *checkpoints).notes
    )


def test_onnxruntime_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medals_rt.runners.selection.installed", lambda _: False)
    with raises(MissingDependencyError, "dependency-missing", "medals-rt[onnx]"):
        references.itself()


def test_graphs_that_onnxruntime_has_no_arithmetic_for(tiny_bundle: Bundle) -> None:
    halved = msgspec.structs.replace(tiny_bundle.manifest, precision="bf16")
    bundle = Bundle(tiny_bundle.folder, halved)
    assert {each.kind for each in find_candidates(bundle)} == {"openvino"}
    with raises(InputError, "reference-missing", "bf16", "--against"):
        OwnGraphs(bundle)


def test_graphs_of_eight_bits_are_no_reference_in_floats(tiny_bundle: Bundle) -> None:
    quantized = msgspec.structs.replace(tiny_bundle.manifest, precision="int8")
    with raises(InputError, "reference-missing", "int8 graphs of tiny in fp32", "--against"):
        OwnGraphs(Bundle(tiny_bundle.folder, quantized))


def test_the_coarser_arithmetic_decides_what_is_allowed(tiny_bundle: Bundle) -> None:
    halved = msgspec.structs.replace(tiny_bundle.manifest, precision="fp16")
    reference = OwnGraphs(tiny_bundle)
    for manifest, allowed in ((tiny_bundle.manifest, 1e-4), (halved, 2e-2)):
        bundle = Bundle(tiny_bundle.folder, manifest)
        outcome = verify_bundle(bundle, reference, BOTH[:1], stages=(1,))
        assert [each.relative_error for each in outcome.records] == [allowed]


def test_recipe_says_what_is_compared_and_how_near(tiny_bundle: Bundle) -> None:
    recipe = read_recipe("cpu-fp32")
    assert set(find_candidates(tiny_bundle, recipe=recipe)) == set(BOTH)
    strict = msgspec.structs.replace(
        recipe,
        verification=Verification(relative_error=1e-12, mean_dsc=1.0, lowest_class_dsc=1.0),
    )
    outcome = verify_bundle(
        tiny_bundle, OwnGraphs(tiny_bundle), BOTH[:1], stages=(1,), recipe=strict
    )
    assert not outcome.passed
    assert outcome.records[0].relative_error == 1e-12


def test_stored_rounding_is_not_an_error_of_arithmetic(tiny_bundle: Bundle) -> None:
    """Weights stored in fp16: graphs are held to the rounded network, cases to the exact one."""
    stored = msgspec.structs.replace(tiny_bundle.manifest, weights="fp16")
    bundle = Bundle(tiny_bundle.folder, stored)
    exact = TorchReference(tiny_bundle, tiny_checkpoint(1), tiny_checkpoint(2))
    rounded = TorchReference(bundle, tiny_checkpoint(1), tiny_checkpoint(2))
    feeds = parity_graphs.made_up_inputs(tiny_bundle, 1, 1)
    image = {name: feeds[name] for name in ("image", "foreground")}

    def features(reference: TorchReference) -> np.ndarray:
        return reference.open_graph(1, "image_encoder").run(image)["features"]

    assert 0 < np.abs(features(exact) - features(rounded)).max() < 1e-2
    with exact.open_network(1) as one, rounded.open_network(1) as other:
        (_, first), (_, second) = (
            next(network.predict(PassInput(image["image"], feeds["queries"])))
            for network in (one, other)
        )
    np.testing.assert_array_equal(first, second)
