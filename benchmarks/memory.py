r"""What do the sums over windows take, in memory and time, for 1 to 243 classes at full size?

    python benchmarks/memory.py --output benchmarks/results/memory [--memory 12GB]

The fine stage's grid of a 512x512x400 image at 1.5 mm (preset `paper`: it stays 512x512x400 voxels,
of 1 mm to the network), windows of 192^3, of which the first row along H is walked: the sums are as
large as ever, and a row costs what any other does. The network is replaced by one array of
probabilities that every window gives, so that what is left is the run time's own: gathering,
deciding, merging groups of classes. Each number of classes runs in a process of its own; its growth
is given, and the peak of all arrays beside it (NumPy tells `tracemalloc` of its allocations).
`--memory` is the limit that the plan is made for.
"""

import argparse
import resource
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import msgspec
import numpy as np
from reporting import today, write_report

from medals_rt.gathering import SlabAccumulator
from medals_rt.geometry import StageSpec, plan_stage
from medals_rt.memory import LARGEST_DEFAULT_SLAB, MemoryLimit, plan_memory
from medals_rt.policy import load_policy
from medals_rt.report import library_versions, machine_facts
from medals_rt.sizes import parse_size
from medals_rt.vocabulary import by_exact_name
from medals_rt.windows import gaussian_weights

SHAPE_HWD, SPACING_MM = (512, 512, 400), (1.5, 1.5, 1.5)
FINE = StageSpec(2, (192, 192, 192), (1.0, 1.0, 1.0))
CHANNELS = 64
COUNTS = (1, 16, 104, 243)


def measure(classes: int, limit: int) -> dict[str, object]:
    """Gather one stage of so many classes."""
    policy = load_policy()
    keys = [by_exact_name("CT", "Liver"), by_exact_name("CT", "Spleen")]
    plan = plan_stage(
        SHAPE_HWD, SPACING_MM, FINE, policy.rules(keys, "paper"), policy.preset("paper")
    )
    memory = plan_memory(
        classes,
        plan.padded_shape_hwd,
        FINE.window_hwd,
        CHANNELS,
        MemoryLimit(limit, "the benchmark", LARGEST_DEFAULT_SLAB),
    )
    row = [window for window in plan.windows if window.starts_hwd[0] == 0]
    _, width, depth = plan.resampled_shape_hwd
    shape = (FINE.window_hwd[0], width, depth)
    rng = np.random.default_rng(0)
    chunk = memory.classes_per_chunk
    probabilities = rng.random((chunk, *FINE.window_hwd), np.float32)
    weights = gaussian_weights(FINE.window_hwd)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    decided, windows = None, 0
    adding = deciding = 0.0
    for group in memory.groups:
        start = time.perf_counter()
        slabs = SlabAccumulator(
            row,
            shape,
            tuple(range(group.start + 1, group.stop + 1)),
            weights,
            label_dtype=np.uint8 if classes < 256 else np.uint16,
            keep_probability=True,
            before=decided,
        )
        for window in row:
            slabs.begin(window)
            deciding += time.perf_counter() - start
            start = time.perf_counter()
            for first in range(0, group.stop - group.start, chunk):
                part = slice(first, min(first + chunk, group.stop - group.start))
                slabs.add(part, probabilities[: part.stop - part.start])
            adding += time.perf_counter() - start
            start = time.perf_counter()
            windows += 1
        decided = slabs.result()
        del slabs
        deciding += time.perf_counter() - start
    arrays = tracemalloc.get_traced_memory()[1]
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    h, w, d = plan.resampled_shape_hwd
    return {
        "classes": classes,
        "grid_hwd": plan.resampled_shape_hwd,
        "walks": len(memory.groups),
        "windows": windows,
        "accumulators_gb": round(memory.slab_bytes / 1e9, 2),
        "arrays_peak_gb": round(arrays / 1e9, 2),
        "process_grew_gb": round((after - before) * 1024 / 1e9, 2),
        "whole_array_gb": round(4 * (classes + 1) * h * w * d / 1e9, 1),
        "add_seconds": round(adding, 1),
        "add_seconds_a_window": round(adding / windows, 3),
        "decide_seconds": round(deciding, 1),
    }


def markdown(report: dict) -> str:
    """Write the rows as a table."""
    machine = report["machine"]
    columns = {
        "classes": "classes",
        "walks": "walks",
        "sums, GB": "accumulators_gb",
        "all arrays at their peak, GB": "arrays_peak_gb",
        "one array of all classes, GB": "whole_array_gb",
        "adding, s a window": "add_seconds_a_window",
        "adding a row, s": "add_seconds",
        "deciding a row, s": "decide_seconds",
    }
    grid = " x ".join(map(str, report["rows"][0]["grid_hwd"]))
    head = (
        f"{machine['processor']}, {machine['cores']} cores, {report['date']}. Grid {grid}, "
        f"limit {report['limit_gb']} GB, of which the sums may take 6 GB by default."
    )
    lines = [
        head,
        "",
        "| " + " | ".join(columns) + " |",
        "|---:" * len(columns) + "|",
    ]
    lines += [
        "| " + " | ".join(str(row[key]) for key in columns.values()) + " |"
        for row in report["rows"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every number of classes in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="without ending")
    parser.add_argument("--memory", default="16GB")
    parser.add_argument("--classes", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    limit = parse_size(options.memory)
    if options.one is not None:
        sys.stdout.buffer.write(msgspec.json.encode(measure(options.one, limit)))
        return
    if options.output is None:
        parser.error("--output is needed")
    rows = []
    for classes in options.classes:
        command = [sys.executable, __file__, "--one", str(classes), "--memory", options.memory]
        found = subprocess.run(command, check=True, capture_output=True)
        rows.append(msgspec.json.decode(found.stdout))
        print(rows[-1], flush=True)
    report = {
        "date": today(),
        "machine": machine_facts(),
        "versions": library_versions(),
        "limit_gb": limit / 1e9,
        "rows": rows,
    }
    write_report(options.output, report, markdown(report))


if __name__ == "__main__":
    main()
