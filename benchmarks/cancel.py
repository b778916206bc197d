r"""How soon does a cancel end a large window, and is the next one right?

    python benchmarks/cancel.py --bundle runs/fullsize --output benchmarks/results/cancel \
        [--convolution winograd direct] [--points 10]

One window of the fine stage, 4 classes, from text alone and with spatial prompts, is run whole,
then ended at so many places in its course, as a canceled job or Ctrl-C ends it; seconds from there
to where its error is raised, on the clock and of the processor (which say how long a machine that
does other work at the same time would take alone). Afterwards it is run whole again and compared
with the first, bit by bit. `runs/fullsize` is a bundle of the released size, such as
`benchmarks/gpu_models.py` makes.
"""

import argparse
import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from full_size import TEXT_DIM, inputs
from reporting import today, write_report

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.environment import library_versions, machine_facts
from medals_rt.common.interruption import interrupted_by
from medals_rt.inference.network import PassInput, StageNetwork

CLASSES = 4


class CanceledError(Exception):
    """Raised by the check."""


def canceled(run: Callable[[], np.ndarray], points: int) -> dict[str, Any]:
    """Run whole, cancel at so many places, and run whole again."""
    run()  # its memory is taken
    began, spent = time.perf_counter(), time.process_time()
    expected = run()
    whole, whole_cpu = time.perf_counter() - began, time.process_time() - spent
    waited: list[tuple[float, float]] = []
    for point in range(points):
        asked: list[tuple[float, float]] = []

        def ask(asked: list[tuple[float, float]] = asked) -> None:
            asked.append((time.perf_counter(), time.process_time()))

        def check(asked: list[tuple[float, float]] = asked) -> None:
            if asked:
                raise CanceledError

        timer = threading.Timer(whole * (point + 0.5) / points, ask)
        timer.start()
        try:
            with interrupted_by(check):
                run()
        except CanceledError:
            clock, cpu = asked[0]
            waited.append(
                (round(time.perf_counter() - clock, 2), round(time.process_time() - cpu, 2))
            )
        finally:
            timer.cancel()
    return {
        "whole_s": (round(whole, 2), round(whole_cpu, 2)),
        "canceled_after_s": waited,
        "next_is_the_same": bool(np.array_equal(run(), expected)),
    }


def main() -> None:
    """Run, cancel, run again, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="without ending")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--convolution", nargs="+", default=["winograd", "direct"])
    parser.add_argument("--points", type=int, default=10)
    words = parser.parse_args()
    bundle = Bundle.open(words.bundle, verify=False)
    if bundle.manifest.embeddings.dim != TEXT_DIM:
        parser.error(f"{words.bundle} is not of the released size")
    window = bundle.stage_spec(2).window_hwd
    image, queries, prompts = inputs(window, CLASSES)
    rows: list[dict[str, Any]] = []
    others = round(os.getloadavg()[0], 1)
    for convolution in words.convolution:
        with StageNetwork.open(
            bundle, 2, runner="openvino", precision=words.precision, convolution=convolution
        ) as network:
            for kind, shown in (("text", None), ("prompts", prompts)):
                found = canceled(
                    lambda shown=shown, network=network: np.concatenate(
                        [part for _, part in network.predict(PassInput(image, queries, shown))]
                    ),
                    words.points,
                )
                rows.append({"convolution": convolution, "pass": kind, **found})
                print(rows[-1], flush=True)
        gc.collect()
    report = {
        "date": today(),
        "bundle": bundle.name,
        "window_hwd": list(window),
        "classes": CLASSES,
        "precision": words.precision,
        "points": words.points,
        "load_average_before": others,
        "rows": rows,
        "machine": machine_facts(),
        "versions": library_versions(),
    }
    write_report(words.output, report, text_of(report))


def text_of(report: dict[str, Any]) -> str:
    """Write the figures for people."""
    machine, cores = report["machine"], report["machine"]["cores"]
    lines = []
    for row in report["rows"]:
        clock, cpu = np.array(row["canceled_after_s"] or [(0.0, 0.0)]).T
        lines.append(
            f"| {row['convolution']} | {row['pass']} "
            f"| {row['whole_s'][0]:.1f} ({row['whole_s'][1] / cores:.1f}) "
            f"| {len(row['canceled_after_s'])} of {report['points']} "
            f"| {np.median(clock):.1f} ({np.median(cpu) / cores:.1f}) "
            f"| {max(clock):.1f} ({max(cpu) / cores:.1f}) "
            f"| {'to the bit' if row['next_is_the_same'] else 'NO'} |"
        )
    table = "\n".join(lines)
    return f"""# A cancel in the middle of a window

{report["date"]}, {machine["processor"]}, {cores} cores. A window of the released size
({" x ".join(map(str, report["window_hwd"]))}), {report["classes"]} classes, OpenVINO,
{report["precision"]}. Seconds on the clock; in brackets those of the processor by cores, which is
what it takes at least by itself (load average before: {report["load_average_before"]}).
Repeat it: `python benchmarks/cancel.py`.

| convolutions | pass | whole, s | canceled | median wait, s | longest, s | next window the same |
|---|---|---:|---:|---:|---:|---|
{table}
"""


if __name__ == "__main__":
    main()
