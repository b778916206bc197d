"""Whole cases through the run time against the released pipeline (golden/e2e).

The networks are the golden recipe's, exported and run in float32; block masks are injected. Each
stage must agree in at least 99.9% of voxels: rounding may flip a voxel whose probability is near
0.5 or whose two best classes are near each other. ONNX Runtime, whose float32 is nearest to
PyTorch's (1e-5), takes all cases; OpenVINO's (1e-4) takes one.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

import medals_rt
from medals_rt.bundle.bundle import Bundle
from medals_rt.common.choices import STAGE_NAMES, StageNumber
from medals_rt.inference.refinement import BlockMask, MaskRequest, block_grid, mask_from_order
from medals_rt.io.volume import Volume
from medals_rt.pipeline.options import SegmentOptions
from medals_rt.pipeline.segmenter import Result
from medals_rt.prompts.prompt_set import PromptSet, parse_prompts
from tests.paths import GOLDEN

pytest.importorskip("torch", reason="makes bundles, which needs the extra 'export'")
from tests.recipes import e2e_embeddings, export_e2e_bundle

WHOLE_CASES = GOLDEN / "e2e"
CASES = sorted(path.stem for path in WHOLE_CASES.glob("*.npz"))
RUNS = [*(("onnxruntime", each) for each in CASES), ("openvino", "empty_coarse")]
AGREEMENT = 0.999

pytestmark = pytest.mark.slow


@dataclass
class GoldenMasks:
    """The k-th masked pair of a case shows the first half of `default_rng(k).permutation`."""

    totals: list[int] = field(default_factory=list)

    def __call__(self, request: MaskRequest) -> BlockMask:
        (block_size,) = request.block_sizes
        grid = block_grid(request.window_hwd, block_size)
        k, total = len(self.totals), int(np.prod(grid))
        self.totals.append(total)
        return mask_from_order(np.random.default_rng(k).permutation(total), grid, block_size)


@dataclass(frozen=True)
class GoldenCase:
    """One golden case, the masks that were asked for, and what ours gave."""

    golden: dict[str, np.ndarray]
    masks: GoldenMasks
    result: Result


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """Return the bundle of a case; what the cases share is traced once."""
    made: dict[str, Bundle] = {}
    root = tmp_path_factory.mktemp("e2e")

    def bundle_of(name: str) -> Bundle:
        if name not in made:
            golden = golden_arrays(name)
            keys = [key.bank_key for key in golden_prompts(golden).class_keys]
            embeddings = e2e_embeddings(keys, int(golden["embedding_seed"]))
            like = next(iter(made.values()), None)
            made[name] = export_e2e_bundle(root / name, golden["shift"].tolist(), embeddings, like)
        return made[name]

    return bundle_of


@pytest.fixture(scope="module", params=RUNS, ids="-".join)
def case(request: pytest.FixtureRequest, bundles: Callable[[str], Bundle]) -> GoldenCase:
    runner, name = request.param
    golden = golden_arrays(name)
    volume = Volume(golden["imgs"], tuple(golden["spacing"].tolist()), name=name)
    masks = GoldenMasks()
    with medals_rt.load(bundles(name).folder, runner=runner, precision="fp32") as segmenter:
        result = segmenter.segment(
            volume, golden_prompts(golden), SegmentOptions(preset="release", masks=masks)
        )
    return GoldenCase(golden, masks, result)


def golden_arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(WHOLE_CASES / f"{name}.npz") as stored:
        return {key: stored[key] for key in stored.files}


def golden_prompts(golden: dict[str, np.ndarray]) -> PromptSet:
    return parse_prompts(json.loads(str(golden["prompts"])))


def agreement(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.mean(ours == theirs))


def test_masked_pairs_are_those_of_the_release(case: GoldenCase) -> None:
    assert case.masks.totals == case.golden["masks"].reshape(-1, 2)[:, 1].tolist()


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_stages_agree(case: GoldenCase, stage: StageNumber) -> None:
    theirs = case.golden[f"stage{stage}_labels"]
    name = STAGE_NAMES[stage]
    record = next(each for each in case.result.report.stages if each.name == name)
    inside = tuple(slice(low, high) for low, high in zip(*record.box_dhw, strict=True))
    ours = case.result.stage_labels_dhw[name][inside]
    assert agreement(ours, theirs) >= AGREEMENT


def test_final_labels_agree(case: GoldenCase) -> None:
    assert agreement(case.result.labels_dhw, case.golden["segs"]) >= AGREEMENT
