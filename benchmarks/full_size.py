r"""How much faster than PyTorch autocast is a pass of the full-size network, and at what memory?

    python benchmarks/full_size.py --bundle runs/fullsize-fp32 --stage2 fine.pth \
        --output benchmarks/results/full_size

One window of the fine stage (192^3), N classes, from text alone and with spatial prompts. Eager
PyTorch under bf16 autocast runs what the release runs: every graph whole, prompts of zeros where
there are none. Each contestant runs in a process of its own, one after another, with the same
inputs and threads, so that its peak memory is the process's; the first pass of a kind is its
warm-up. Times to open both stages are of processes that find no compiled graphs, and that find
them. Needs the extras `cpu` and `export`, 8 GB, and a machine that does nothing else.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from reporting import today, write_report

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.environment import library_versions, machine_facts
from medals_rt.inference.network import StageNetwork
from medals_rt.inference.spatial_prompts import LabelPrompts, label_prompts
from medals_rt.pipeline.segmenter import Segmenter
from medals_rt.planning.sliding_window import plan_windows

BASELINE = "pytorch bf16 autocast"
KINDS = ("text only", "text and prompts")
BLOCK_VOXELS = 8


def inputs(
    window_hwd: tuple[int, ...], classes: int, dim: int
) -> tuple[np.ndarray, np.ndarray, LabelPrompts]:
    """Return an image of noise, queries, and blocky prompts; the same every time."""
    rng = np.random.default_rng(7)
    image = rng.random((1, 1, *window_hwd), dtype=np.float32) * 255
    queries = rng.standard_normal((classes, dim), dtype=np.float32)
    labels = rng.integers(0, 2 * classes, [size // BLOCK_VOXELS for size in window_hwd])
    for axis in range(3):
        labels = np.repeat(labels, BLOCK_VOXELS, axis=axis)
    windows = plan_windows(window_hwd, window_hwd)
    (prompts,) = label_prompts(labels.astype(np.uint16), windows, range(1, classes + 1), 8)
    return image, queries, prompts


def timed_passes(run: Callable[[bool], np.ndarray], repetitions: int, folder: Path) -> dict:
    """Time both kinds of pass; keep their probabilities in the folder."""
    rows = {}
    for kind, prompted in zip(KINDS, (False, True), strict=True):
        seconds = []
        for _ in range(repetitions + 1):
            start = time.perf_counter()
            found = run(prompted)
            seconds.append(round(time.perf_counter() - start, 2))
        np.save(folder / f"{kind}.npy", found)
        del found
        rows[kind] = {"first_seconds": seconds[0], "seconds": seconds[1:], "peak_gb": peak_gb()}
    return rows


def pytorch(options: argparse.Namespace, folder: Path) -> dict:
    """Run the eager network."""
    import torch

    from medals_export.checkpoint import load_checkpoint

    torch.set_num_threads(options.threads)
    model = load_checkpoint(options.stage2).model.eval()
    config = model.config
    image, queries, prompts = inputs(config.window_hwd, options.classes, config.text_dim)
    shown = prompts.channels(options.classes)
    foreground = prompts.foreground()

    @torch.inference_mode()
    def run(prompted: bool) -> np.ndarray:
        channels = torch.from_numpy(shown if prompted else np.zeros_like(shown))
        seen = torch.from_numpy(foreground if prompted else np.zeros_like(foreground))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(torch.from_numpy(image), seen, torch.from_numpy(queries), channels[None])
        return logits.float().sigmoid()[0].numpy()

    return timed_passes(run, options.repetitions, folder)


def openvino(options: argparse.Namespace, folder: Path) -> dict:
    """Run the exported graphs."""
    bundle = Bundle.open(options.bundle, verify=False)
    with StageNetwork.open(
        bundle, 2, runner="openvino", precision="bf16", threads=options.threads
    ) as network:
        dim = bundle.manifest.embeddings.dim
        image, queries, prompts = inputs(network.spec.window_hwd, options.classes, dim)

        def run(prompted: bool) -> np.ndarray:
            found = network.predict(image, queries, prompts if prompted else None)
            return np.concatenate([probabilities for _, probabilities in found])

        return timed_passes(run, options.repetitions, folder)


def opening(options: argparse.Namespace, folder: Path) -> dict:
    """Open both stages, as a run does, and what prompted windows of this many classes need."""
    del folder
    start = time.perf_counter()
    with Segmenter.open(
        options.bundle, runner="openvino", precision="bf16", threads=options.threads
    ) as segmenter:
        opened = time.perf_counter() - start
        segmenter.network(2).prepare(options.classes, prompted=True)
        total = time.perf_counter() - start
    return {"both_stages_seconds": round(opened, 2), "with_prompted_seconds": round(total, 2)}


def peak_gb() -> float:
    """Largest resident size of this process so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)


WORKERS = {"openvino bf16": openvino, BASELINE: pytorch, "open": opening}


def ask(name: str, options: argparse.Namespace, folder: Path) -> dict:
    """Run one worker in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", name, "--folder", str(folder)]
    environment = {**os.environ, "MEDALS_RT_CACHE": str(options.cache)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    found = msgspec.json.decode(done.stdout)
    print(name, found, flush=True)
    return found


def compared(found: dict, folder: Path) -> list[dict]:
    """Set the passes of both beside each other."""
    rows = []
    for kind in KINDS:
        baseline = float(np.median(found[BASELINE][kind]["seconds"]))
        ours = np.load(folder / "openvino bf16" / f"{kind}.npy")
        theirs = np.load(folder / BASELINE / f"{kind}.npy")
        for name in (BASELINE, "openvino bf16"):
            measured = found[name][kind]
            median = float(np.median(measured["seconds"]))
            rows.append(
                {
                    "pass": kind,
                    "runner": name,
                    **measured,
                    "times_as_fast": round(baseline / median, 2),
                }
            )
        rows[-1]["voxels_on_the_same_side"] = round(
            float(np.mean((ours > 0.5) == (theirs > 0.5))), 5
        )
        rows[-1]["mean_difference"] = round(float(np.abs(ours - theirs).mean()), 5)
    return rows


def markdown(report: dict) -> str:
    """Write the rows as a table."""
    machine = report["machine"]
    head = (
        f"{machine['processor']}, {report['threads']} threads, {report['date']}. One window of "
        f"192^3, {report['classes']} classes, full-size network, made-up weights."
    )
    lines = [
        head,
        "",
        "| pass | runner | s | first, s | peak, GB | times as fast |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in report["rows"]:
        seconds = " ".join(map(str, row["seconds"]))
        lines.append(
            f"| {row['pass']} | {row['runner']} | {seconds} | {row['first_seconds']} | "
            f"{row['peak_gb']} | {row['times_as_fast']} |"
        )
    for name, opened in report["open"].items():
        both, prompted = opened["both_stages_seconds"], opened["with_prompted_seconds"]
        line = (
            f"Opening both stages, {name}: {both} s; with what prompted windows need {prompted} s."
        )
        lines += ["", line]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Ask every worker and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--stage2", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="without ending")
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        found = WORKERS[options.worker](options, options.folder)
        sys.stdout.buffer.write(msgspec.json.encode(found))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options.cache = folder / "cache"
        opened = {
            "nothing compiled yet": ask("open", options, folder),
            "compiled before": ask("open", options, folder),
        }
        found = {who: ask(who, options, folder / who) for who in ("openvino bf16", BASELINE)}
        rows = compared(found, folder)
    report = {
        "date": today(),
        "machine": machine_facts(),
        "versions": library_versions(),
        "threads": options.threads,
        "classes": options.classes,
        "open": opened,
        "rows": rows,
    }
    write_report(options.output, report, markdown(report))


if __name__ == "__main__":
    main()
