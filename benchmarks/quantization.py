r"""What do 8-bit convolutions cost in quality, and what do they save?

    medals-rt export --stage1 benchmarks/checkpoints/demo_coarse.pth \
        --stage2 benchmarks/checkpoints/demo_fine.pth --bank bank.safetensors \
        --precision int8 --calibrate engines/demo/cases --out out/int8
    python benchmarks/quantization.py --quality engines/demo:fp32 engines/demo:bf16 out/int8:int8 \
        --speed 96 --output benchmarks/results/quantization

Quality: the held-out phantoms and the real scan of `demo_quality.py`, with the defaults and from
the text alone, through the whole run time. Speed: one window of so many voxels along each axis,
from text alone, through a network of the released width with made-up weights in OpenVINO, in
processor time on one thread, with all convolutions quantized that can be. What is in the output
already is kept, so that backends can be measured one at a time. Needs the extras `cpu`, `formats`
and `export`.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
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
from medals_rt.bundle.manifest import GraphName
from medals_rt.common.choices import Precision
from medals_rt.common.environment import machine_facts
from medals_rt.pipeline.options import SegmentOptions
from medals_rt.pipeline.segmenter import Segmenter
from medals_rt.runners.base import Runner
from medals_rt.runners.selection import open_joined, precisions
from medals_rt.tools.evaluate.metrics import match_instances

Scores = dict[str, dict[str, float]]
CHAIN: tuple[GraphName, ...] = ("image_encoder", "query_decoder", "refiner_text_only")
CLASSES = 4
REPETITIONS = 3
SIDES = ("Right", "Left")


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
                with open_joined(
                    "openvino",
                    paths,
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


def mean_dsc(found: dict, mode: str) -> float:
    """Mean over classes of the mean over phantoms that hold them, as in `demo_quality.py`."""
    classes: dict[str, list[float]] = {}
    for scores in found["anatomy"].values():
        for name, dsc in scores[mode].items():
            classes.setdefault(name, []).append(dsc)
    return float(np.mean([np.mean(each) for each in classes.values()]))


def tumors(found: dict) -> tuple[float, float]:
    """F1 over all tumors, and the mean DSC of those found."""
    tp, fp, fn = (
        sum(each[kind] for each in found["lesions"].values())
        for kind in ("true_positives", "false_positives", "false_negatives")
    )
    overlap = sum(each["dsc_tp"] * each["true_positives"] for each in found["lesions"].values())
    return 2 * tp / max(2 * tp + fp + fn, 1), overlap / max(tp, 1)


def markdown(report: dict) -> str:
    """Write the tables."""
    lines: list[str] = []
    if report["quality"]:
        lines += [
            "| DSC | coarse | text only | **masked** | tumors, F1 | tumors, TP | real lungs |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
    for precision, found in report["quality"].items():
        coarse, text, masked = (mean_dsc(found, mode) for mode in ("coarse", "none", "masked"))
        f1, overlap = tumors(found)
        real = ", ".join(f"{found['real_scan']['masked'][f'CT {side} lung']:.4f}" for side in SIDES)
        lines.append(
            f"| {precision} | {coarse:.4f} | {text:.4f} | **{masked:.4f}** | {f1:.3f} "
            f"| {overlap:.3f} | {real} |"
        )
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
    if options.speed is not None:
        found["speed"] = measure_speed(options.speed)
    write_report(options.output, found, markdown(found))


if __name__ == "__main__":
    main()
