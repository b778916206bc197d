r"""What does each layer of the released size cost on a GPU?

    python benchmarks/gpu_layers.py --folder FOLDER --output benchmarks/results/gpu/layers

The graphs of a text-only and of a prompted pass of the fine stage, operation by operation, as the
runner cudnn computes them: milliseconds between two events on the stream, arithmetic of
convolutions. FOLDER is what `gpu_models.py` wrote. Needs a GPU.
"""

import argparse
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import cudnn
import cupy
import numpy as np
from gpu_report import PartReport

from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import GraphName
from medals_rt.runners.cudnn.graph import Node, read_graph
from medals_rt.runners.cudnn.program import Program, shown
from medals_rt.runners.cudnn.runner import GpuOperations

COLUMNS = ("graph", "operation", "shape", "ms", "tflop_per_s")
PROMPTS = 4
GRAPHS: tuple[GraphName, ...] = ("image_encoder", "refiner_text_only", "refiner_4")


def milliseconds(job: Callable[[], Any], repetitions: int) -> float:
    """Return the median time between events around a job, after one run."""
    job()
    found = []
    for _ in range(repetitions):
        before, after = cupy.cuda.Event(), cupy.cuda.Event()
        before.record()
        job()
        after.record()
        after.synchronize()
        found.append(cupy.cuda.get_elapsed_time(before, after))
    return float(np.median(found))


def measure(report: PartReport, bundle: Bundle, name: GraphName, repetitions: int) -> None:
    """Time every operation of a graph."""
    graph = read_graph(bundle.graph_path(2, name))
    operations = GpuOperations(cupy, cudnn)
    operations.convolutions.use_current_stream()
    program = Program(graph, operations)
    feeds = {}
    for spec in graph.inputs:
        shape = [size if isinstance(size, int) else PROMPTS for size in spec.shape]
        values = (cupy.arange(prod(shape), dtype=cupy.int32) % 7).astype(spec.dtype)
        # a volume as the encoder leaves it, with the channels last
        is_volume = len(shape) == 5 and shape[1] > 1
        last = [*shape[2:], shape[1]] if is_volume else shape
        feeds[spec.name] = shown(cupy, values.reshape(last)) if is_volume else values.reshape(shape)
    ms = milliseconds(lambda: program.run(feeds), repetitions)
    report.add(graph=name, operation="all", ms=round(ms, 3))

    def watch(node: Node, given: list[Any], compute: Callable[[], Any]) -> Any:
        # a norm works in place, so that what comes out is normed several times: only timed
        ms, found = milliseconds(compute, repetitions), compute()
        row: dict[str, Any] = {"graph": name, "operation": node.op, "ms": round(ms, 3)}
        row["shape"] = f"{getattr(given[0], 'shape', '')} to {found.shape}"
        if node.op == "Conv":
            row["tflop_per_s"] = round(2 * 27 * given[0].shape[1] * found.size / ms / 1e9, 1)
        report.add(**row)
        return found

    program.run(feeds, watch)
    operations.convolutions.close()


def main() -> None:
    """Measure the graphs of a pass."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="of gpu_models.py")
    parser.add_argument("--output", type=Path, required=True, help="without ending")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    report = PartReport(options.output, "What does each layer cost?", COLUMNS)
    report.remark(f"cuDNN {cudnn.backend_version_string()}, frontend {cudnn.__version__}.")
    bundle = Bundle.open(options.folder / "bundle", verify=False)
    for name in GRAPHS:
        measure(report, bundle, name, options.repetitions)


if __name__ == "__main__":
    main()
