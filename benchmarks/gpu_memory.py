r"""Does the plan name the memory that a case then takes on a GPU?

    python benchmarks/gpu_memory.py --folder FOLDER --output benchmarks/results/gpu/memory

Cases of 1 and of 13 classes on 320 x 320 x 200 with networks of the released size, each in a
process of its own: the most that the GPU had in use, opening included, against the peak that the
run expected. FOLDER is what `gpu_models.py` wrote. `--device cpu` rehearses it with the peak of the
process instead.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from gpu_case import RUNNERS, SOFT_TISSUE, large_case
from gpu_report import PartReport, usable_runners

from medals_rt.common.arrays import open_cupy
from medals_rt.common.environment import peak_memory_mib
from medals_rt.pipeline.options import SegmentOptions
from medals_rt.pipeline.segmenter import Segmenter
from medals_rt.tools.bench.gpu_memory import GpuMemory

COLUMNS = ("classes", "planned_mib", "peak_mib", "planned_over_peak")


def measure(options: argparse.Namespace) -> dict[str, float | None]:
    """Open the models and run one case."""
    if options.device == "cuda":
        open_cupy("measuring memory")
    volume, prompts = large_case(tuple(options.shape))
    with (
        GpuMemory() as memory,
        Segmenter.open(options.folder / "bundle", runner=options.runner) as segmenter,
    ):
        found = segmenter.segment(
            volume, prompts[: options.worker], SegmentOptions(window=SOFT_TISSUE)
        )
    peak = memory.peak_mib if options.device == "cuda" else peak_memory_mib()
    return {"planned_mib": found.report.memory["expected_peak_mib"], "peak_mib": peak}


def main() -> None:
    """Run each case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="of gpu_models.py")
    parser.add_argument("--output", type=Path, required=True, help="without ending")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--shape", type=int, nargs=3, default=(200, 320, 320), metavar="N")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--runner", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps(measure(options)))
        return
    report = PartReport(options.output, "Does the plan name the memory of a case?", COLUMNS)
    runner, *_ = usable_runners(report, RUNNERS[options.device])
    for classes in (1, 13):
        own = ["--worker", str(classes), "--runner", runner]
        command = [sys.executable, __file__, *sys.argv[1:], *own]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        ratio = round(row["planned_mib"] / row["peak_mib"], 2) if row["peak_mib"] else None
        report.add(classes=classes, **row, planned_over_peak=ratio)


if __name__ == "__main__":
    main()
