r"""What do the sums over windows take, in memory and time, for 1 to 243 classes at full size?

    python benchmarks/memory.py --output benchmarks/results/memory [--memory 12GB]

The fine stage's grid of a 512x512x400 image at 1.5 mm (preset `paper`: it stays 512x512x400 voxels,
of 1 mm to the network), windows of 192^3, of which the first row along H is swept: the sums are as
large as ever, and a row costs what any other does. The network is replaced by one array of
probabilities that every window gives, so that what is left is the run time's own: aggregating and
deciding, in blocks of the image and groups of classes. How often windows are run for that is told,
and how often they would be in groups of classes alone: the network's time grows with it. Each
number of classes runs in a process of its own; its growth is given, and the peak of all arrays
beside it (NumPy tells `tracemalloc` of its allocations). `--memory` is the limit that the plan is
made for.
"""

import argparse
import resource
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from math import ceil
from pathlib import Path

import msgspec
import numpy as np
from reporting import circumstances, write_report

from medals_rt.bundle.stage_spec import StageSpec
from medals_rt.common.byte_sizes import parse_size
from medals_rt.inference.aggregation import SlabAggregator, empty_label_map
from medals_rt.planning.geometry import plan_stage
from medals_rt.planning.memory import (
    LARGEST_DEFAULT_SLAB,
    MemoryDemand,
    MemoryLimit,
    MemoryPlan,
    plan_memory,
    slab_bytes,
)
from medals_rt.planning.model_facts import RELEASED
from medals_rt.planning.policy import load_policy
from medals_rt.planning.sliding_window import gaussian_weights
from medals_rt.prompts.classes import by_exact_name

SHAPE_HWD, SPACING_MM = (512, 512, 400), (1.5, 1.5, 1.5)
FINE = StageSpec(2, (192, 192, 192), (1.0, 1.0, 1.0))
COUNTS = (1, 16, 104, 243)


def measure(classes: int, limit: int) -> dict[str, object]:
    """Gather one stage of so many classes."""
    policy = load_policy()
    keys = [by_exact_name("CT", "Liver"), by_exact_name("CT", "Spleen")]
    plan = plan_stage(
        SHAPE_HWD, SPACING_MM, FINE, policy.rules(keys, "paper"), policy.preset("paper")
    )
    memory = plan_memory(
        MemoryDemand(replace(RELEASED, weights=0), classes),
        plan.resampled_shape_hwd,
        plan.windows,
        MemoryLimit(limit, "the benchmark", LARGEST_DEFAULT_SLAB),
    )
    _, width, depth = plan.resampled_shape_hwd
    shape = (FINE.window_hwd[0], width, depth)
    rng = np.random.default_rng(0)
    chunk = memory.classes_per_chunk
    probabilities = rng.random((chunk, *FINE.window_hwd), np.float32)
    weights = gaussian_weights(FINE.window_hwd)
    values = tuple(range(1, classes + 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    decided = empty_label_map(shape, values, weights, keep_probability=True)
    runs = 0
    adding = deciding = 0.0
    for sweep in memory.sweeps:
        start = time.perf_counter()
        reaching = [plan.windows[index] for index in sweep.windows]
        row = [window for window in reaching if window.starts_hwd[0] == 0]
        group = sweep.classes
        slabs = SlabAggregator(row, values[group], weights, decided, 0.5, sweep.columns)
        for window in row:
            slabs.begin(window)
            deciding += time.perf_counter() - start
            start = time.perf_counter()
            for first in range(0, group.stop - group.start, chunk):
                part = slice(first, min(first + chunk, group.stop - group.start))
                slabs.add(part, probabilities[: part.stop - part.start])
            adding += time.perf_counter() - start
            start = time.perf_counter()
            runs += 1
        decided = slabs.result()
        del slabs
        deciding += time.perf_counter() - start
    arrays = tracemalloc.get_traced_memory()[1]
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    h, w, d = plan.resampled_shape_hwd
    return {
        "classes": classes,
        "grid_hwd": plan.resampled_shape_hwd,
        "windows": len(plan.windows),
        "window_runs": memory.window_runs,
        "times": round(memory.window_runs / len(plan.windows), 2),
        "times_by_classes_alone": groups_alone(classes, plan.padded_shape_hwd, memory, limit),
        "blocks": memory.column_blocks,
        "groups": memory.class_groups,
        "accumulators_gb": round(memory.slab_bytes / 1e9, 2),
        "arrays_peak_gb": round(arrays / 1e9, 2),
        "process_grew_gb": round((after - before) * 1024 / 1e9, 2),
        "whole_array_gb": round(4 * (classes + 1) * h * w * d / 1e9, 1),
        "add_seconds": round(adding, 1),
        "add_seconds_a_window": round(adding / runs, 3),
        "decide_seconds": round(deciding, 1),
    }


def groups_alone(
    classes: int, shape_hwd: tuple[int, int, int], memory: MemoryPlan, limit: int
) -> int:
    """Count the groups of classes that would fit in the same room without blocks."""
    room = min(LARGEST_DEFAULT_SLAB, limit - (memory.expected_bytes - memory.slab_bytes))
    slab = (FINE.window_hwd[0], *shape_hwd[1:])
    return next(
        groups
        for groups in range(1, classes + 1)
        if slab_bytes(ceil(classes / groups), slab) <= room
    )


def markdown(report: dict) -> str:
    """Write the rows as a table."""
    machine = report["machine"]
    columns = {
        "classes": "classes",
        "blocks": "blocks",
        "groups of classes": "groups",
        "window runs": "window_runs",
        "times the windows": "times",
        "in groups of classes alone": "times_by_classes_alone",
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
        **circumstances(),
        "limit_gb": limit / 1e9,
        "rows": rows,
    }
    write_report(options.output, report, markdown(report))


if __name__ == "__main__":
    main()
