r"""What do 8-bit convolutions cost in quality, and what do they save?

    python benchmarks/quantization.py --bank-of engines/demo --output bank
    medals-rt export --stage1 benchmarks/checkpoints/demo_coarse.pth \
        --stage2 benchmarks/checkpoints/demo_fine.pth --bank bank.safetensors \
        --precision int8 --calibrate engines/demo/cases --out out/int8
    python benchmarks/quantization.py --quality engines/demo:fp32 engines/demo:bf16 out/int8:int8 \
        --speed 96 --output benchmarks/results/quantization

Quality: the held-out phantoms and the real scan of `demo_quality.py`, with the defaults and from
the text alone, through the whole run time. Speed: one window of so many voxels along each axis,
from text alone, through a network of the released width with made-up weights in OpenVINO, in
processor time on one thread, with all convolutions quantized that can be. What is in the output
already is kept, and every phantom's scores are written as soon as they are there, so that a
measurement can be interrupted; means are over the phantoms that every bundle has been through.
Needs the extras `cpu`, `formats` and `export`.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
from demo_quality import FIRST_HELD_OUT, as_case, class_scores, held_out_recipe, real_scan
from reporting import write_report

import medals_rt
from medals_export.arithmetic import ARITHMETICS
from medals_export.graph_plans import graph_plans
from medals_export.model import MedalS, ModelConfig
from medals_export.onnx_graphs import trace
from medals_export.quantization.layers import candidates, inputs_watched
from medals_export.text_bank import bundle_bank, save_bank
from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import GraphName
from medals_rt.common.atomic_io import write_json
from medals_rt.common.choices import Precision, Refinement
from medals_rt.common.environment import machine_facts
from medals_rt.pipeline.options import SegmentOptions
from medals_rt.pipeline.segmenter import Segmenter
from medals_rt.runners.base import Runner
from medals_rt.runners.selection import open_runner, precisions
from medals_rt.tools.evaluate.metrics import match_instances

Scores = dict[str, dict[str, float]]
CHAIN: tuple[GraphName, ...] = ("image_encoder", "query_decoder", "refiner_text_only")
CLASSES = 4
REPETITIONS = 3
SIDES = ("Right", "Left")
PARTS = ("masked", "none", "lesions", "real_scan")
"""The most important first."""


def score_anatomy(segmenter: Segmenter, number: int, refinement: Refinement) -> Scores:
    """DSC by class of one phantom: of the coarse stage, and with a refinement."""
    recipe = held_out_recipe(number)
    volume, truth, prompts = as_case(recipe)
    window = "soft tissue" if recipe.modality == "CT" else "auto"
    options = SegmentOptions(refinement=refinement, window=window)
    result = segmenter.segment(volume, prompts, options)
    return {
        refinement: class_scores(result.labels_dhw, truth, prompts),
        "coarse": class_scores(result.stage_labels_dhw["coarse"], truth, prompts),
    }


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


def measure_quality(
    segmenters: dict[str, Segmenter], parts: list[str], cases: int, quality: dict[str, dict]
) -> Iterator[None]:
    """Add to each bundle's scores what they lack, and yield whenever something was added."""
    for number, precision, part in product(range(cases), segmenters, parts):
        case, found, segmenter = FIRST_HELD_OUT + number, quality[precision], segmenters[precision]
        scores = found[part]
        if part == "real_scan":
            missing = not scores
        else:
            missing = str(case) not in scores and (part != "lesions" or case % 2 == 0)
        if not missing:
            continue
        start = time.process_time()
        if part == "real_scan":
            scores |= score_real_scan(segmenter)
        elif part == "lesions":
            scores[str(case)] = score_lesions(segmenter, case)
        else:
            scores[str(case)] = score_anatomy(segmenter, case, part)
            means = {mode: np.mean([*dsc.values()]) for mode, dsc in scores[str(case)].items()}
            print(precision, case, {mode: f"{dsc:.4f}" for mode, dsc in means.items()}, flush=True)
        found["processor_seconds"] += round(time.process_time() - start, 1)
        yield


def measure_speed(size: int) -> dict[str, object]:
    """Time one window of a network of the released width in every precision; processor time."""
    import torch

    torch.manual_seed(0)
    network = MedalS(ModelConfig.released((size, size, size))).eval()
    rng = np.random.default_rng(0)
    feeds = {
        "image": rng.random((1, 1, size, size, size), dtype=np.float32) * 255,
        "foreground": np.zeros((1, 1, size, size, size), np.float32),
        "queries": rng.standard_normal((CLASSES, network.config.text_dim), dtype=np.float32),
    }
    ranges: dict[str, float] = {}

    def see(layer: str, values: torch.Tensor) -> None:
        ranges[layer] = float(values.abs().max())

    with torch.inference_mode(), inputs_watched(network, candidates(network), see):
        network.encode(torch.from_numpy(feeds["image"]), torch.from_numpy(feeds["foreground"]))
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for graphs in ("fp32", "int8"):
            paths = write_chain(network, graphs, ranges, Path(folder) / graphs)
            for precision in precisions("openvino", graphs):
                with open_runner(
                    "openvino",
                    *paths,
                    joined=True,
                    name=f"the network in {precision}",
                    precision=precision,
                    graph_precision=graphs,
                    threads=1,
                ) as runner:
                    seconds[precision] = min(timed(runner, feeds) for _ in range(REPETITIONS))
                print(precision, f"{seconds[precision]:.2f} s", flush=True)
    return {"window": size, "quantized_layers": len(ranges), "processor_seconds": seconds}


def write_chain(
    network: MedalS, precision: Precision, ranges: dict[str, float], folder: Path
) -> list[Path]:
    """Write the graphs of a pass from text alone."""
    folder.mkdir()
    chosen = ranges if precision == "int8" else None
    plans = [
        plan for plan in graph_plans(network, ARITHMETICS[precision], chosen) if plan.name in CHAIN
    ]
    for plan, model in trace(plans):
        (folder / f"{plan.name}.onnx").write_bytes(model.SerializeToString())
    return [folder / f"{name}.onnx" for name in CHAIN]


def timed(runner: Runner, feeds: dict[str, np.ndarray]) -> float:
    """Processor seconds of a pass."""
    start = time.process_time()
    runner.run(feeds)
    return time.process_time() - start


def common_cases(report: dict, part: str) -> list[str]:
    """Phantoms that every bundle has been through."""
    seen = [set(found[part]) for found in report["quality"].values()]
    return sorted(set.intersection(*seen))


def mean_dsc(found: dict, part: str, mode: str, cases: list[str]) -> float:
    """Mean over classes of the mean over phantoms that hold them, as in `demo_quality.py`."""
    classes: dict[str, list[float]] = {}
    for case in cases:
        for name, dsc in found[part][case][mode].items():
            classes.setdefault(name, []).append(dsc)
    return float(np.mean([np.mean(each) for each in classes.values()]))


def tumors(found: dict, cases: list[str]) -> tuple[float, float]:
    """F1 over all tumors, and the mean DSC of those found."""
    lesions = [found["lesions"][case] for case in cases]
    tp, fp, fn = (
        sum(each[kind] for each in lesions)
        for kind in ("true_positives", "false_positives", "false_negatives")
    )
    overlap = sum(each["dsc_tp"] * each["true_positives"] for each in lesions)
    return 2 * tp / max(2 * tp + fp + fn, 1), overlap / max(tp, 1)


def quality_table(report: dict) -> list[str]:
    """Write a row for each figure and a column for each bundle; none for what isn't measured."""
    quality = report["quality"]
    rows: dict[str, list[float]] = {}
    for part, title in (("masked", "with the defaults"), ("none", "from the text alone")):
        if cases := common_cases(report, part):
            for mode, what in (("coarse", f"coarse stage, {title}"), (part, f"**{title}**")):
                rows[f"mean DSC, {what}, {len(cases)} phantoms"] = [
                    mean_dsc(found, part, mode, cases) for found in quality.values()
                ]
    if cases := common_cases(report, "lesions"):
        scores = [tumors(found, cases) for found in quality.values()]
        rows[f"tumors, F1, {len(cases)} phantoms"] = [f1 for f1, _ in scores]
        rows["tumors, DSC of those found"] = [overlap for _, overlap in scores]
    if all(found["real_scan"] for found in quality.values()):
        for side in SIDES:
            rows[f"real scan, {side.lower()} lung"] = [
                found["real_scan"]["masked"][f"CT {side} lung"] for found in quality.values()
            ]
    return [
        f"| | {' | '.join(quality)} |",
        f"|---|{'---:|' * len(quality)}",
        *(
            f"| {name} | {' | '.join(f'{each:.4f}' for each in row)} |"
            for name, row in rows.items()
        ),
    ]


def markdown(report: dict) -> str:
    """Write the tables."""
    lines = quality_table(report) if report["quality"] else []
    if speed := report.get("speed"):
        lines += [
            "",
            f"A window of {speed['window']}^3 from text alone, {CLASSES} classes, released width;",
            f"in int8 {speed['quantized_layers']} convolutions. Processor time, one thread.",
            "",
            "| | seconds |",
            "|---|---:|",
            *(f"| {name} | {value:.2f} |" for name, value in speed["processor_seconds"].items()),
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what was asked for, and write all that is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quality", nargs="*", default=[], metavar="BUNDLE:PRECISION")
    parser.add_argument("--speed", type=int, metavar="VOXELS")
    parser.add_argument("--bank-of", type=Path, metavar="BUNDLE", help="write its embeddings")
    parser.add_argument("--output", type=Path, required=True, help="without ending")
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--runner", default="auto")
    options = parser.parse_args()
    if options.bank_of is not None:
        save_bank(
            options.output.with_suffix(".safetensors"), bundle_bank(Bundle.open(options.bank_of))
        )
        return
    kept = options.output.with_suffix(".json")
    report = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {"quality": {}}
    report["machine"] = machine_facts()
    with ExitStack() as stack:
        segmenters = {}
        for backend in options.quality:
            folder, _, precision = backend.rpartition(":")
            segmenter = stack.enter_context(
                medals_rt.load(Path(folder), runner=options.runner, precision=precision)
            )
            segmenters[precision] = segmenter
            bundle = {"name": segmenter.bundle.name, "hash": segmenter.bundle.hash}
            found = report["quality"].setdefault(
                precision, {"bundle": bundle, "runner": options.runner, "processor_seconds": 0.0}
            )
            if found["bundle"] != bundle:
                parser.error(f"{kept} holds another bundle in {precision}: {found['bundle']}")
            for part in PARTS:
                found.setdefault(part, {})
        for _ in measure_quality(segmenters, options.parts, options.cases, report["quality"]):
            write_json(kept, report)
    if options.speed is not None:
        report["speed"] = measure_speed(options.speed)
    write_report(options.output, report, markdown(report))


if __name__ == "__main__":
    main()
