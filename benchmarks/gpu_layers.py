r"""What does each layer of the released size cost on a GPU, and does cuDNN have a faster plan?

    python benchmarks/gpu_layers.py --folder FOLDER --output benchmarks/results/gpu/layers

The graphs of a text-only and of a prompted pass of the fine stage, operation by operation, as the
runner cudnn computes them: milliseconds between two events on the stream, arithmetic of
convolutions. Then other plans of cuDNN for the same convolution: the fastest of the first ones, in
the milliseconds of one run after another. FOLDER is what `gpu_models.py` wrote. Needs a GPU.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cudnn
import cupy
import numpy as np
from gpu_report import PartReport

from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import GraphName
from medals_rt.runners.cudnn.convolution import Convolutions
from medals_rt.runners.cudnn.graph import Node, read_graph
from medals_rt.runners.cudnn.program import Program, stored
from medals_rt.runners.cudnn.runner import GpuOperations

COLUMNS = ("graph", "operation", "shape", "ms", "tflop_per_s", "other_plans_ms")
GRAPHS: tuple[GraphName, ...] = ("image_encoder", "refiner_text_only", "refiner_4")
OTHER_PLANS = 12


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


def other_plans(convolutions: Convolutions, volume: Any, weights: Any, stride: int) -> list[str]:
    """Time the plans that cuDNN offers besides the one that is taken."""
    plan = convolutions.plan("convolve", volume.shape, weights.shape, stride)
    result = cupy.empty(plan.shape, cupy.float16)
    found = []
    for index in range(min(plan.graph.get_execution_plan_count(), OTHER_PLANS)):
        try:
            plan.graph.build_plan_at_index(index)
            size = plan.graph.get_workspace_size_plan_at_index(index)
            workspace = cupy.empty(max(1, size), cupy.uint8)
            places = (volume.data.ptr, weights.data.ptr, result.data.ptr, workspace.data.ptr)
            ms = milliseconds(lambda: plan.execute(*places, index=index), 2)  # noqa: B023
            found.append(f"{index}: {ms:.2f}")
        except Exception as error:  # noqa: BLE001 - what this GPU can't run is a row
            found.append(f"{index}: {type(error).__name__}")
    return found


def measure(
    report: PartReport, bundle: Bundle, name: GraphName, repetitions: int, tried: set[Any]
) -> None:
    """Time every operation of a graph."""
    graph = read_graph(bundle.graph_path(2, name))
    operations = GpuOperations(cupy, cudnn)
    operations.convolutions.use_current_stream()
    program = Program(graph, operations)
    rng = np.random.default_rng(1)
    feeds = {
        spec.name: cupy.asarray(
            rng.random([n if isinstance(n, int) else 4 for n in spec.shape], np.float32), spec.dtype
        )
        for spec in graph.inputs
    }
    ms = milliseconds(lambda: program.run(feeds), repetitions)
    report.add(graph=name, operation="all", ms=round(ms, 3))

    def watch(node: Node, given: list[Any], compute: Callable[[], Any]) -> Any:
        # a norm works in place, so that what comes out is normed several times: only timed
        ms, found = milliseconds(compute, repetitions), compute()
        row: dict[str, Any] = {"graph": name, "operation": node.op, "ms": round(ms, 3)}
        row["shape"] = f"{getattr(given[0], 'shape', '')} to {found.shape}"
        if node.op == "Conv":
            row["tflop_per_s"] = round(2 * 27 * given[0].shape[1] * found.size / ms / 1e9, 1)
            volume, weights = stored(cupy, given[0]), given[1]
            key = (volume.shape, found.shape)
            if volume.shape[-1] == weights.shape[-1] and key not in tried:
                tried.add(key)
                stride = node.attributes["strides"][0]
                plans = other_plans(operations.convolutions, volume, weights, stride)
                row["other_plans_ms"] = "; ".join(plans)
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
    tried: set[Any] = set()
    for name in GRAPHS:
        measure(report, bundle, name, options.repetitions, tried)


if __name__ == "__main__":
    main()
