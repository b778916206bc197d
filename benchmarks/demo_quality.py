"""How good is the demo model, measured through the run time?

    python benchmarks/demo_quality.py --bundle engines/demo --output benchmarks/results/quality

Held-out phantoms (seeds that training never uses) of varied spacing, extent and noise, and a real
chest CT that nobody trained on. For anatomy: the coarse stage, and the fine stage from text alone,
with masked and with unmasked prompts. For liver tumors: F1 at IoU 0.5. For the hybrid mode: what a
roughly drawn annotation (the truth eroded, shifted, with blocks dropped) gains. Writes a JSON, a
Markdown table and a picture. Needs the extras `cpu`, `formats`, `preview` and `export`.
"""

import argparse
import json
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from reporting import write_report
from scipy import ndimage

import medals_rt
from demo_training.cases import CaseRecipe, make_case
from medals_rt.common.environment import machine_facts
from medals_rt.io.volume import Volume
from medals_rt.pipeline.options import SegmentOptions
from medals_rt.pipeline.segmenter import Result, Segmenter
from medals_rt.prompts.prompt_set import PromptSet, parse_prompts
from medals_rt.tools.evaluate.metrics import dice_by_label, match_instances

FIRST_HELD_OUT = 100
MODES = ("none", "masked", "unmasked")
SMALLEST_SCORED_VOXELS = 100
REAL_SCAN = Path(__file__).parents[1] / "tests" / "data"
TITLES = {
    "coarse": "coarse",
    "none": "fine, text only",
    "masked": "fine, masked prompts",
    "unmasked": "fine, unmasked prompts",
    "hybrid none": "text only",
    "hybrid drawn": "the drawing itself",
    "hybrid masked": "drawing, masked",
    "hybrid unmasked": "drawing, unmasked",
}


@dataclass(frozen=True)
class Scored:
    """DSC by class name of one case under one mode."""

    number: int
    modality: str
    mode: str
    dsc: dict[str, float]


def held_out_recipe(number: int) -> CaseRecipe:
    """Vary spacing, field of view and noise; every fourth case is MR, every third a chest scan."""
    rng = np.random.default_rng([number, 99])
    modality = "MRI" if number % 4 == 3 else "CT"
    in_plane = float(rng.uniform(1.8, 3.2))
    slices = float(rng.uniform(2.0, 5.0))
    chest = modality == "CT" and number % 3 == 1
    return CaseRecipe(
        number=number,
        modality=modality,
        spacing_hwd_mm=(in_plane, in_plane, slices),
        extent_hwd_mm=(float(rng.uniform(290, 330)), float(rng.uniform(360, 400)), 330.0),
        bottom_mm=-100.0 if chest else float(rng.uniform(-225, -205)),
        noise=float(rng.uniform(4, 22)),
    )


def as_case(recipe: CaseRecipe) -> tuple[Volume, np.ndarray, PromptSet]:
    """Return a phantom as the run time takes it, with its truth `(D, H, W)`."""
    arrays, prompts = make_case(recipe)
    spacing = tuple(float(value) for value in arrays["spacing"])
    return (
        Volume(arrays["imgs"], spacing, name=f"phantom {recipe.number}"),
        arrays["gts"],
        (parse_prompts(prompts)),
    )


def class_scores(labels: np.ndarray, truth: np.ndarray, prompts: PromptSet) -> dict[str, float]:
    """DSC by class of those of which the truth holds at least 100 voxels."""
    names = {
        each.label: f"{each.class_key.modality} {each.class_key.name}" for each in prompts.prompts
    }
    sizes = np.bincount(truth.reshape(-1), minlength=max(names) + 1)
    scored = [label for label in names if sizes[label] >= SMALLEST_SCORED_VOXELS]
    return {names[label]: score for label, score in dice_by_label(labels, truth, scored).items()}


def rough_drawing(truth: np.ndarray, seed: int) -> np.ndarray:
    """Draw as someone in a hurry: eroded by a voxel, shifted by up to two, a third left out."""
    rng = np.random.default_rng([seed, 5])
    drawn = np.zeros_like(truth)
    for label in np.unique(truth)[1:]:
        mask = ndimage.binary_erosion(truth == label)
        shift = rng.integers(-2, 3, 3)
        drawn[np.roll(mask, shift, axis=(0, 1, 2))] = label
    blocks = rng.random([-(-size // 8) for size in truth.shape]) < 1 / 3
    for axis in range(3):
        blocks = np.repeat(blocks, 8, axis=axis)
    d, h, w = truth.shape
    drawn[blocks[:d, :h, :w]] = 0
    return drawn


def run_anatomy(segmenter: Segmenter, number: int) -> list[Scored]:
    """Score every mode on one phantom, and the hybrid mode on every other."""
    recipe = held_out_recipe(number)
    volume, truth, prompts = as_case(recipe)
    scored = []

    def note(mode: str, labels: np.ndarray) -> None:
        scored.append(Scored(number, recipe.modality, mode, class_scores(labels, truth, prompts)))

    # all classes at once: else those of the lungs are segmented apart, in a window of their own
    window = "soft tissue" if recipe.modality == "CT" else "auto"
    results: dict[str, Result] = {}
    for mode in MODES:
        options = SegmentOptions(refinement=mode, window=window)
        results[mode] = segmenter.segment(volume, prompts, options)
        note(mode, results[mode].labels_dhw)
    note("coarse", results["none"].stage_labels_dhw["coarse"])
    if number % 2 == 0:
        drawn = rough_drawing(truth, number)
        note("hybrid none", results["none"].labels_dhw)
        note("hybrid drawn", drawn)
        for mode in ("masked", "unmasked"):
            options = SegmentOptions(refinement=mode, window=window)
            result = segmenter.segment(volume, prompts, options, spatial_prompts=drawn)
            note(f"hybrid {mode}", result.labels_dhw)
    return scored


def run_lesions(segmenter: Segmenter, number: int) -> dict[str, tuple[int, int, int, list[float]]]:
    """Match the tumors of one CT phantom under each mode: TP, FP, FN, and their mean DSC."""
    recipe = replace(
        held_out_recipe(number), kind="lesion", modality="CT", bottom_mm=-215.0, tumor_count=4
    )
    volume, truth, prompts = as_case(recipe)
    found = {}
    for mode in MODES:
        result = segmenter.segment(volume, prompts, SegmentOptions(refinement=mode))
        score = match_instances(result.instances_dhw, truth.astype(np.uint32))
        dsc = [score.dsc_tp] * score.true_positives
        found[mode] = (score.true_positives, score.false_positives, score.false_negatives, dsc)
    return found


def real_scan() -> tuple[Volume, np.ndarray, PromptSet]:
    """Return the real chest CT with its truth `(D, H, W)`."""
    from medals_rt.io.registry import read_case, read_labels

    volume = read_case(REAL_SCAN / "ctchest4_image.nrrd").volume
    truth = read_labels(REAL_SCAN / "ctchest4_label.seg.nrrd").labels_dhw
    return (
        volume,
        truth,
        parse_prompts({"5": "Right lung in chest CT", "6": "Left lung in chest CT"}),
    )


def run_real_scan(segmenter: Segmenter) -> dict[str, dict[str, float]]:
    """Score the lungs of the real chest CT in every mode."""
    volume, truth, prompts = real_scan()
    scores = {}
    for mode in MODES:
        result = segmenter.segment(volume, prompts, SegmentOptions(refinement=mode))
        scores[mode] = class_scores(result.labels_dhw, truth, prompts)
        if mode == "none":
            coarse = result.stage_labels_dhw["coarse"]
            scores["coarse"] = class_scores(coarse, truth, prompts)
    return scores


def class_means(scored: list[Scored], mode: str) -> dict[str, float]:
    """Mean DSC of each class over the cases that hold it."""
    values = defaultdict(list)
    for each in scored:
        if each.mode == mode:
            for name, dsc in each.dsc.items():
                values[name].append(dsc)
    return {name: float(np.mean(values[name])) for name in sorted(values)}


def case_means(scored: list[Scored], number: int) -> dict[str, float]:
    """Mean DSC of one case by mode, to watch the run."""
    return {
        each.mode: round(float(np.mean(list(each.dsc.values()))), 3)
        for each in scored
        if each.number == number
    }


def summarize(
    scored: list[Scored], lesions: list[dict], real: dict, seconds: float, bundle: dict
) -> dict:
    """Put all figures into one mapping."""
    modes = list(dict.fromkeys(each.mode for each in scored))
    classes = {mode: class_means(scored, mode) for mode in modes}
    lesion_rows = {}
    for mode in MODES:
        tp, fp, fn = (sum(case[mode][i] for case in lesions) for i in range(3))
        dsc = [value for case in lesions for value in case[mode][3]]
        lesion_rows[mode] = {
            "lesions": tp + fn,
            "true_positives": tp,
            "false_positives": fp,
            "false_negatives": fn,
            "f1": 2 * tp / max(2 * tp + fp + fn, 1),
            "dsc_tp": float(np.mean(dsc)) if dsc else 0.0,
        }
    return {
        "bundle": bundle,
        "machine": machine_facts(),
        "cases": len({each.number for each in scored}),
        "mean_dsc": {mode: float(np.mean(list(classes[mode].values()))) for mode in modes},
        "dsc": classes,
        "lesions": lesion_rows,
        "real_scan": real,
        "seconds": round(seconds, 1),
        "by_case": [asdict(each) for each in scored],
    }


def markdown(summary: dict) -> str:
    """Write the tables that the README quotes."""
    modes = ("coarse", *MODES)
    lines = [
        f"Held-out phantoms: {summary['cases']} cases. Mean DSC by class.",
        "",
        "| class | " + " | ".join(TITLES[mode] for mode in modes) + " |",
        "|---|" + "---:|" * len(modes),
    ]
    for name in summary["dsc"]["coarse"]:
        cells = [f"{summary['dsc'][mode].get(name, float('nan')):.3f}" for mode in modes]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    means = [f"**{summary['mean_dsc'][mode]:.3f}**" for mode in modes]
    lines += ["| **mean over classes** | " + " | ".join(means) + " |", ""]
    lines += ["| liver tumors | lesions | found | false | missed | F1 | DSC TP |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|"]
    for mode, row in summary["lesions"].items():
        lines.append(
            f"| {TITLES[mode]} | {row['lesions']} | {row['true_positives']} | "
            f"{row['false_positives']} | {row['false_negatives']} | {row['f1']:.2f} | "
            f"{row['dsc_tp']:.2f} |"
        )
    lines += ["", "| real chest CT, DSC | right lung | left lung |", "|---|---:|---:|"]
    for mode in modes:
        row = summary["real_scan"][mode]
        lines.append(f"| {TITLES[mode]} | {row['CT Right lung']:.3f} | {row['CT Left lung']:.3f} |")
    lines += ["", "| hybrid mode: a rough drawing of every class | mean DSC |", "|---|---:|"]
    for mode in ("hybrid none", "hybrid drawn", "hybrid masked", "hybrid unmasked"):
        lines.append(f"| {TITLES[mode]} | {summary['mean_dsc'][mode]:.3f} |")
    return "\n".join(lines) + "\n"


def picture(summary: dict, path: Path) -> None:
    """Plot each class's DSC by mode."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    modes = ("coarse", *MODES)
    names = list(summary["dsc"]["coarse"])
    figure, axes = plt.subplots(figsize=(7, 0.36 * len(names) + 1.9), layout="constrained")
    rows = np.arange(len(names))
    colors = ("#999999", "#0072b2", "#d55e00", "#009e73")
    for mode, color, marker in zip(modes, colors, "osD^", strict=True):
        values = [summary["dsc"][mode].get(name, np.nan) for name in names]
        label = f"{TITLES[mode]} ({summary['mean_dsc'][mode]:.3f})"
        axes.plot(values, rows, marker, color=color, label=label, markersize=6, alpha=0.85)
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    axes.axvline(0.9, color="#bbbbbb", linewidth=1, zorder=0)
    axes.set_xlabel(f"DSC, mean over {summary['cases']} held-out phantoms")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Run the whole measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="without ending")
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--runner", default="auto")
    parser.add_argument("--precision", help="default: what the runner takes unasked")
    options = parser.parse_args()
    start = time.perf_counter()
    scored: list[Scored] = []
    lesions = []
    numbers = range(FIRST_HELD_OUT, FIRST_HELD_OUT + options.cases)
    with medals_rt.load(
        options.bundle, runner=options.runner, precision=options.precision
    ) as segmenter:
        for number in numbers:
            scored += run_anatomy(segmenter, number)
            if number % 2 == 0:
                lesions.append(run_lesions(segmenter, number))
            print(number, case_means(scored, number), flush=True)
        real = run_real_scan(segmenter)
        bundle = {"name": segmenter.bundle.name, "hash": segmenter.bundle.hash}
    summary = summarize(scored, lesions, real, time.perf_counter() - start, bundle)
    write_report(options.output, summary, markdown(summary))
    picture(summary, options.output.with_suffix(".png"))
    print(json.dumps(summary["mean_dsc"], indent=1))


if __name__ == "__main__":
    main()
