r"""How soon does a cancel end a large window, and is the next one right?

    python benchmarks/cancel.py --bundle runs/fullsize-fp32 --output benchmarks/results/cancel \
        [--convolution direct] [--points 10]

One window of the fine stage, 4 classes, is run whole, then ended at so many places in its course,
as a canceled job or Ctrl-C ends it; seconds from there to where its error is raised. Afterwards it
is run whole again and compared with the first, bit by bit.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from full_size import inputs
from reporting import today, write_report

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.environment import library_versions, machine_facts
from medals_rt.common.interruption import interrupted_by
from medals_rt.inference.network import StageNetwork

CLASSES = 4


class CanceledError(Exception):
    """Raised by the check."""


def main() -> None:
    """Run, cancel, run again, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="without ending")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--convolution", default="direct")
    parser.add_argument("--points", type=int, default=10)
    words = parser.parse_args()
    bundle = Bundle.open(words.bundle, verify=False)
    with StageNetwork.open(
        bundle, 2, runner="openvino", precision=words.precision, convolution=words.convolution
    ) as network:
        window = network.spec.window_hwd
        image, queries, _ = inputs(window, CLASSES, bundle.manifest.embeddings.dim)

        def run() -> np.ndarray:
            return np.concatenate([part for _, part in network.predict(image, queries, None)])

        run()  # its memory is taken
        began = time.perf_counter()
        expected = run()
        whole = time.perf_counter() - began
        waited = []
        for point in range(words.points):
            end = time.perf_counter() + whole * (point + 0.5) / words.points

            def check(end: float = end) -> None:
                if time.perf_counter() > end:
                    raise CanceledError

            try:
                with interrupted_by(check):
                    run()
            except CanceledError:
                waited.append(round(time.perf_counter() - end, 2))
        same = bool(np.array_equal(run(), expected))
    report = {
        "date": today(),
        "bundle": bundle.name,
        "window_hwd": list(window),
        "precision": words.precision,
        "convolution": words.convolution,
        "whole_s": round(whole, 2),
        "canceled_after_s": waited,
        "next_is_the_same": same,
        "machine": machine_facts(),
        "versions": library_versions(),
    }
    machine = report["machine"]
    write_report(
        words.output,
        report,
        f"""# A cancel in the middle of a window

{report["date"]}, {machine["processor"]}, {machine["cores"]} cores, {bundle.name}, a window of
{" x ".join(map(str, window))}, {words.precision}, convolutions {words.convolution}.

A whole window takes {whole:.1f} s. Canceled at {len(waited)} of {words.points} places in its
course, it ended within {max(waited, default=0):.1f} s (median {np.median(waited or [0]):.1f} s).
The next window is the same to the bit: {same}.
""",
    )


if __name__ == "__main__":
    main()
