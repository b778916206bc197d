"""The committed demo model on its two cases and on a real scan: what the README promises.

Figures are from `benchmarks/demo_quality.py`; the bounds here leave room for the precision that the
processor computes in (bf16 or fp32).
"""

from collections.abc import Iterator

import numpy as np
import pytest

import medals_rt
from medals_rt.io.registry import read_case, read_labels
from medals_rt.pipeline.segmenter import Result, Segmenter
from medals_rt.prompts.prompt_set import read_prompts
from medals_rt.tools.evaluate.metrics import dice_by_label, match_instances
from tests.paths import ROOT

CASES = ROOT / "engines" / "demo" / "cases"
SCAN = ROOT / "tests" / "data"


@pytest.fixture(scope="module")
def segmenter() -> Iterator[Segmenter]:
    with medals_rt.load(ROOT / "engines" / "demo") as opened:
        yield opened


def run_demo_case(segmenter: Segmenter, name: str) -> tuple[Result, np.ndarray]:
    case = read_case(CASES / f"{name}.npz")
    prompts = read_prompts(CASES / f"{name}.prompts.json")
    return segmenter.segment(case.volume, prompts), case.ground_truth_dhw


def test_the_anatomy_case(segmenter: Segmenter) -> None:
    result, truth = run_demo_case(segmenter, "ct_anatomy")
    scores = dice_by_label(result.labels_dhw, truth, range(1, 10))
    assert np.mean(list(scores.values())) >= 0.90
    assert min(scores.values()) >= 0.80
    assert result.report.within_challenge


def test_the_lesion_case(segmenter: Segmenter) -> None:
    result, truth = run_demo_case(segmenter, "ct_liver_tumors")
    score = match_instances(result.instances_dhw, truth)
    assert score.f1 >= 0.6


def test_lungs_of_a_real_scan(segmenter: Segmenter) -> None:
    volume = read_case(SCAN / "ctchest4_image.nrrd").volume
    truth = read_labels(SCAN / "ctchest4_label.seg.nrrd").labels_dhw
    prompts = {"5": "Right lung in chest CT", "6": "Left lung in chest CT"}
    result = segmenter.segment(volume, prompts)
    scores = dice_by_label(result.labels_dhw, truth, (5, 6))
    assert min(scores.values()) >= 0.88


def test_the_bundle_stays_small() -> None:
    folder = ROOT / "engines" / "demo"
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert size <= 15e6
