"""Whole cases through the run time against the released pipeline (golden/e2e).

The networks are the golden recipe's, exported and run in float32; block masks are injected. Each
stage must agree in at least 99.9% of voxels: rounding may flip a voxel whose probability is near
0.5 or whose two best classes are near each other.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import medals_rt
from medals_rt.prompts import PromptSet, parse_prompts
from medals_rt.refinement import BlockMask, MaskRequest, block_grid, mask_from_order
from medals_rt.segmenter import Result, Segmenter
from medals_rt.volume import Volume
from tests.recipes import e2e_embeddings, export_e2e_bundle

GOLDEN = Path(__file__).parent / "golden" / "e2e"
CASES = sorted(path.stem for path in GOLDEN.glob("*.npz"))
AGREEMENT = 0.999


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
    """One golden case, its prompts, and what ours gave."""

    golden: dict[str, np.ndarray]
    prompts: PromptSet
    volume: Volume
    segmenter: Segmenter
    masks: GoldenMasks
    result: Result


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GoldenCase]:
    with np.load(GOLDEN / f"{request.param}.npz") as stored:
        golden = {name: stored[name] for name in stored.files}
    prompts = parse_prompts(json.loads(str(golden["prompts"])))
    embeddings = e2e_embeddings(
        [key.bank_key for key in prompts.class_keys], int(golden["embedding_seed"])
    )
    folder = tmp_path_factory.mktemp("e2e") / request.param
    export_e2e_bundle(folder, golden["shift"].tolist(), embeddings)
    volume = Volume(golden["imgs"], tuple(golden["spacing"].tolist()), name=request.param)
    masks = GoldenMasks()
    with medals_rt.load(folder, runner="onnxruntime", precision="fp32") as segmenter:
        result = segmenter.segment(volume, prompts, preset="release", masks=masks)
        yield GoldenCase(golden, prompts, volume, segmenter, masks, result)


def agreement(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.mean(ours == theirs))


def test_masked_pairs_are_those_of_the_release(case: GoldenCase) -> None:
    assert case.masks.totals == case.golden["masks"].reshape(-1, 2)[:, 1].tolist()


@pytest.mark.parametrize("stage", [1, 2])
def test_stages_agree(case: GoldenCase, stage: int) -> None:
    theirs = case.golden[f"stage{stage}_labels"]
    name = {1: "coarse", 2: "fine"}[stage]
    record = next(each for each in case.result.report.stages if each.name == name)
    inside = tuple(slice(low, high) for low, high in zip(*record.box_dhw, strict=True))
    ours = case.result.stage_labels_dhw[name][inside]
    assert agreement(ours, theirs) >= AGREEMENT


def test_final_labels_agree(case: GoldenCase) -> None:
    assert agreement(case.result.labels_dhw, case.golden["segs"]) >= AGREEMENT
