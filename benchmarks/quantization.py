"""What do 8-bit convolutions cost in quality, and what do they save?

    python benchmarks/quantization.py --quality engines/demo:fp32 engines/demo:bf16 out/int8:int8 \
        --output benchmarks/results/quantization

Quality: the held-out phantoms and the real scan of `demo_quality.py`, with the defaults and from the
text alone, through the whole run time. Speed (`--speed`): one window through networks of the
released width with made-up weights, in processor time, all convolutions quantized that can be.
What is in the output already is kept, so that backends can be measured one at a time. Needs the
extras `cpu`, `formats` and `export`.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from demo_quality import FIRST_HELD_OUT, as_case, class_scores, held_out_recipe, real_scan
from reporting import write_report

import medals_rt
from medals_rt.common.environment import machine_facts
from medals_rt.pipeline.options import SegmentOptions
from medals_rt.pipeline.segmenter import Segmenter
from medals_rt.tools.evaluate.metrics import match_instances

Scores = dict[str, dict[str, float]]


def score_anatomy(segmenter: Segmenter, number: int) -> Scores:
    """DSC by class of one phantom: of the coarse stage, from the text alone, with the defaults."""
    recipe = held_out_recipe(number)
    volume, truth, prompts = as_case(recipe)
    window = "soft tissue" if recipe.modality == "CT" else "auto"
    scores: Scores = {}
    for refinement in ("none", "masked"):
        options = SegmentOptions(refinement=refinement, window=window)
        result = segmenter.segment(volume, prompts, options)
        scores[refinement] = class_scores(result.labels_dhw, truth, prompts)
        scores["coarse"] = class_scores(result.stage_labels_dhw["coarse"], truth, prompts)
    return scores


def score_lesions(segmenter: Segmenter, number: int) -> dict[str, float]:
    """Match the tumors of one CT phantom."""
    recipe = replace(
        held_out_recipe(number), kind="lesion", modality="CT", bottom_mm=-215.0, tumor_count=4
    )
    volume, truth, prompts = as_case(recipe)
    score = match_instances(
        segmenter.segment(volume, prompts).instances_dhw, truth.astype(np.uint32)
    )
    return {
        "true_positives": score.true_positives,
        "false_positives": score.false_positives,
        "false_negatives": score.false_negatives,
        "dsc_tp": score.dsc_tp,
    }


def score_real_scan(segmenter: Segmenter) -> Scores:
    """DSC of both lungs of the real chest CT."""
    volume, truth, prompts = real_scan()
    return {
        refinement: class_scores(
            segmenter.segment(volume, prompts, SegmentOptions(refinement=refinement)).labels_dhw,
            truth,
            prompts,
        )
        for refinement in ("none", "masked")
    }


def measure_quality(folder: Path, precision: str, runner: str, cases: int) -> dict[str, object]:
    """Score one bundle in one precision on everything."""
    start = time.process_time()
    anatomy: dict[int, Scores] = {}
    lesions: dict[int, dict[str, float]] = {}
    with medals_rt.load(folder, runner=runner, precision=precision) as segmenter:
        for number in range(FIRST_HELD_OUT, FIRST_HELD_OUT + cases):
            anatomy[number] = score_anatomy(segmenter, number)
            if number % 2 == 0:
                lesions[number] = score_lesions(segmenter, number)
            means = {mode: np.mean([*dsc.values()]) for mode, dsc in anatomy[number].items()}
            print(
                precision, number, {mode: f"{dsc:.4f}" for mode, dsc in means.items()}, flush=True
            )
        real = score_real_scan(segmenter)
        bundle = {"name": segmenter.bundle.name, "hash": segmenter.bundle.hash}
    return {
        "bundle": bundle,
        "runner": runner,
        "anatomy": anatomy,
        "lesions": lesions,
        "real_scan": real,
        "processor_seconds": round(time.process_time() - start, 1),
    }


def main() -> None:
    """Measure what was asked for, and write all that is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quality", nargs="*", default=[], metavar="BUNDLE:PRECISION")
    parser.add_argument("--output", type=Path, required=True, help="without ending")
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--runner", default="auto")
    options = parser.parse_args()
    kept = options.output.with_suffix(".json")
    found = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {"quality": {}}
    found["machine"] = machine_facts()
    for backend in options.quality:
        folder, _, precision = backend.rpartition(":")
        if precision not in found["quality"]:
            found["quality"][precision] = measure_quality(
                Path(folder), precision, options.runner, options.cases
            )
    write_report(options.output, found, "")


if __name__ == "__main__":
    main()
