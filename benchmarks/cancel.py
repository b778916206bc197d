r"""How soon does a cancel end a large window, and is the next one right?

    python benchmarks/cancel.py --bundle runs/fullsize --output benchmarks/results/cancel \
        [--convolution winograd direct] [--points 10]

One window of the fine stage, 4 classes, from text alone and with spatial prompts, is run whole,
then ended at so many places in its course, as a canceled job or Ctrl-C ends it; seconds from there
to where its error is raised. Afterwards it is run whole again and compared with the first, bit by
bit. `runs/fullsize` is a bundle of the released size, such as `benchmarks/gpu_models.py` makes.
"""

import argparse
import gc
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
from medals_rt.inference.network import StageNetwork

CLASSES = 4


class CanceledError(Exception):
    """Raised by the check."""


def canceled(run: Callable[[], np.ndarray], points: int) -> dict[str, Any]:
    """Run whole, cancel at so many places, and run whole again."""
    run()  # its memory is taken
    began = time.perf_counter()
    expected = run()
    whole = time.perf_counter() - began
    waited: list[float] = []
    for point in range(points):
        end = time.perf_counter() + whole * (point + 0.5) / points

        def check(end: float = end) -> None:
            if time.perf_counter() > end:
                raise CanceledError

        try:
            with interrupted_by(check):
                run()
        except CanceledError:
            waited.append(round(time.perf_counter() - end, 2))
    return {
        "whole_s": round(whole, 2),
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
    rows = []
    for convolution in words.convolution:
        with StageNetwork.open(
            bundle, 2, runner="openvino", precision=words.precision, convolution=convolution
        ) as network:
            for kind, shown in (("text", None), ("prompts", prompts)):
                found = canceled(
                    lambda shown=shown, network=network: np.concatenate(
                        [part for _, part in network.predict(image, queries, shown)]
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
        "rows": rows,
        "machine": machine_facts(),
        "versions": library_versions(),
    }
    write_report(words.output, report, text_of(report))


def text_of(report: dict[str, Any]) -> str:
    """Write the figures for people."""
    machine = report["machine"]
    lines = [
        f"| {row['convolution']} | {row['pass']} | {row['whole_s']:.1f} "
        f"| {len(row['canceled_after_s'])} of {report['points']} "
        f"| {np.median(row['canceled_after_s'] or [0]):.1f} "
        f"| {max(row['canceled_after_s'], default=0):.1f} "
        f"| {'to the bit' if row['next_is_the_same'] else 'NO'} |"
        for row in report["rows"]
    ]
    table = "\n".join(lines)
    return f"""# A cancel in the middle of a window

{report["date"]}, {machine["processor"]}, {machine["cores"]} cores, shared with other work. A window
of the released size ({" x ".join(map(str, report["window_hwd"]))}), {report["classes"]} classes,
OpenVINO, {report["precision"]}. Repeat it: `python benchmarks/cancel.py`.

| convolutions | pass | whole, s | canceled at | median wait, s | longest, s | next window the same |
|---|---|---:|---:|---:|---:|---|
{table}
"""


if __name__ == "__main__":
    main()
