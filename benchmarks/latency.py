r"""How fast is a window, against PyTorch autocast with the same weights, and is it the same answer?

    python benchmarks/latency.py --bundle engines/demo --stage1 coarse.pth --stage2 fine.pth \
        --output benchmarks/results/latency

For both stages: one window from text alone and one with spatial prompts, N classes. PyTorch (eager,
fp32 and bf16 autocast) and every runner that is installed take turns in one process, each with the
same number of threads; the median of the repetitions counts. Errors are against PyTorch in fp32,
largest difference of a probability. Needs the extras `cpu`, `onnx` and `export`. With
`--device cuda` all of it is on the GPU, and the runners are those for GPUs.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from reporting import write_report

from medals_export.checkpoint import load_checkpoint
from medals_export.eager import EagerNetwork
from medals_rt.bundle.bundle import Bundle
from medals_rt.common.arrays import namespace, settle, to_device, to_host
from medals_rt.common.environment import library_versions, machine_facts
from medals_rt.common.gpu import require_gpu
from medals_rt.common.typing import Array
from medals_rt.inference.network import Network, PassInput, StageNetwork
from medals_rt.inference.spatial_prompts import LabelPrompts, label_prompts
from medals_rt.planning.sliding_window import plan_windows
from medals_rt.runners.selection import usable, why_not

RUNNERS = {
    "cpu": (("openvino", "bf16"), ("openvino", "fp32"), ("onnxruntime", "fp32")),
    "cuda": (("tensorrt", None), ("tensorrt-rtx", None), ("onnxruntime-cuda", None)),
}
BASELINE = "pytorch bf16 autocast"

Inputs = tuple[Array, Array, LabelPrompts]
Pass = Callable[[Inputs, bool], Array]


def window_inputs(window_hwd: tuple[int, ...], classes: int, text_dim: int, device: str) -> Inputs:
    """Return a smooth image, queries and blocky prompts; the same every time."""
    rng = np.random.default_rng(7)
    coarse = rng.random([size // 8 for size in window_hwd], dtype=np.float32)
    labels = rng.integers(0, 2 * classes, coarse.shape).astype(np.uint16)
    image = coarse
    for axis in range(3):
        image, labels = np.repeat(image, 8, axis=axis), np.repeat(labels, 8, axis=axis)
    image = (image * 200 + rng.random(window_hwd, dtype=np.float32) * 20)[None, None]
    queries = rng.standard_normal((classes, text_dim), dtype=np.float32)
    windows = plan_windows(window_hwd, window_hwd)
    on_device = to_device(labels, device)
    (prompts,) = label_prompts(on_device, windows, range(1, classes + 1), 8)
    return to_device(image.astype(np.float32), device), to_device(queries, device), prompts


def network_pass(network: Network) -> Pass:
    """Run a network, and wait for the GPU where it is on one."""

    def run(arrays: Inputs, prompted: bool) -> Array:
        image, queries, prompts = arrays
        parts = network.predict(PassInput(image, queries, prompts if prompted else None))
        found = namespace(image).concat([probabilities for _, probabilities in parts])
        settle(found)
        return found

    return run


def can_run(kind: str, bundle: Bundle) -> bool:
    """Whether a runner is there and can run the bundle; prints why one that is there can't."""
    if not usable(kind):
        return False
    reason = why_not(kind, bundle)
    if reason:
        print(f"{kind} is left out: {reason}")
    return not reason


def measure(passes: dict[str, Pass], arrays: Inputs, repetitions: int) -> list[dict]:
    """Let all take turns, so that a drift of the machine's speed meets everyone."""
    rows = []
    for prompted in (False, True):
        reference = to_host(passes["pytorch fp32"](arrays, prompted))
        seconds: dict[str, list[float]] = {name: [] for name in passes}
        errors = {}
        for repetition in range(repetitions + 1):
            for name, run in passes.items():
                start = time.perf_counter()
                found = run(arrays, prompted)
                if repetition:  # the first is the warm-up
                    seconds[name].append(time.perf_counter() - start)
                errors[name] = float(np.abs(to_host(found) - reference).max())
        baseline = float(np.median(seconds[BASELINE]))
        for name, times in seconds.items():
            median = float(np.median(times))
            rows.append(
                {
                    "pass": "text and prompts" if prompted else "text only",
                    "runner": name,
                    "median_ms": round(1000 * median, 1),
                    "p95_ms": round(1000 * float(np.quantile(times, 0.95)), 1),
                    "times_as_fast_as_autocast": round(baseline / median, 2),
                    "largest_difference": round(errors[name], 5),
                }
            )
    return rows


def markdown(report: dict) -> str:
    """Write the rows as a table."""
    machine = report["machine"]
    where = report["card"] or f"{machine['processor']}, {report['threads']} threads"
    lines = [
        f"{where}, {report['classes']} classes, median of {report['repetitions']}.",
        "",
        "| stage | pass | runner | ms | p95, ms | against PyTorch autocast | largest difference |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['stage']} | {row['pass']} | {row['runner']} | {row['median_ms']} | "
        f"{row['p95_ms']} | {row['times_as_fast_as_autocast']}x | {row['largest_difference']} |"
        for row in report["rows"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure both stages of a bundle."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--stage1", type=Path, required=True)
    parser.add_argument("--stage2", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="without ending")
    parser.add_argument("--device", choices=tuple(RUNNERS), default="cpu")
    parser.add_argument("--classes", type=int, default=9)
    parser.add_argument("--repetitions", type=int, default=9)
    options = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False  # fp32 is to be fp32, for it is what errors are against
    bundle = Bundle.open(options.bundle)
    rows = []
    for stage, path in ((1, options.stage1), (2, options.stage2)):
        model = load_checkpoint(path).model.eval()
        spec = bundle.stage_spec(stage)
        passes = {
            "pytorch fp32": network_pass(EagerNetwork(spec, model, "fp32", options.device)),
            BASELINE: network_pass(EagerNetwork(spec, model, "bf16", options.device)),
        }
        networks = []
        for kind, precision in RUNNERS[options.device]:
            if not can_run(kind, bundle):
                continue
            network = StageNetwork.open(
                bundle, stage, runner=kind, precision=precision, threads=threads
            )
            networks.append(network)
            passes[f"{kind} {network.info.precision}"] = network_pass(network)
        arrays = window_inputs(
            spec.window_hwd, options.classes, model.config.text_dim, options.device
        )
        measured = measure(passes, arrays, options.repetitions)
        rows += [{"stage": stage, **row} for row in measured]
        for network in networks:
            network.close()
    report = {
        "bundle": {"name": bundle.name, "hash": bundle.hash},
        "machine": machine_facts(),
        "card": require_gpu("--device cuda").name if options.device == "cuda" else None,
        "versions": {**library_versions(), "torch": torch.__version__},
        "threads": threads,
        "classes": options.classes,
        "repetitions": options.repetitions,
        "rows": rows,
    }
    write_report(options.output, report, markdown(report))


if __name__ == "__main__":
    main()
