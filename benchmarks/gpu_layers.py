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

import cupy
import cudnn
import numpy as np
from gpu_report import PartReport

from medals_rt.bundle.bundle import Bundle
from medals_rt.runners.cudnn import program as program_module
from medals_rt.runners.cudnn.convolution import Convolutions
from medals_rt.runners.cudnn.runner import CuDNNRunner
from medals_rt.runners.selection import open_runner

COLUMNS = ("graph", "operation", "shape", "ms", "tflop_per_s", "other_plans_ms")
GRAPHS = ("image_encoder", "refiner_text_only", "refiner_4")
REPETITIONS = 5
OTHER_PLANS = 12


def milliseconds(job: Callable[[], Any], repetitions: int = REPETITIONS) -> float:
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
    plan = convolutions.plan(volume.shape, weights.shape, stride)
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


def measure(report: PartReport, bundle: Bundle, name: str, tried: set[Any]) -> None:
    """Time every operation of a graph."""
    runner = open_runner("cudnn", bundle.graph_path(2, name), graph_precision="fp16")
    assert isinstance(runner, CuDNNRunner)
    rng = np.random.default_rng(1)
    feeds = {
        spec.name: cupy.asarray(
            rng.random([n if isinstance(n, int) else 4 for n in spec.shape], np.float32), spec.dtype
        )
        for spec in runner.inputs
    }
    runner.run(feeds)
    whole = milliseconds(lambda: runner.run(feeds))
    report.add(graph=name, operation="all", ms=round(whole, 3))
    operators = dict(program_module._OPERATORS)

    def watched(operator: Callable[..., Any]) -> Callable[..., Any]:
        def run(backend: Any, node: Any, *given: Any) -> Any:
            # a norm works in place, so that what comes out is normed several times: only timed
            ms = milliseconds(lambda: operator(backend, node, *given))
            found = operator(backend, node, *given)
            row = {"graph": name, "operation": node.op, "ms": round(ms, 3)}
            row["shape"] = f"{getattr(given[0], 'shape', '')} to {found.shape}"
            if node.op == "Conv":
                channels = given[0].shape[1]
                flop = 2 * 27 * channels * found.size
                row["tflop_per_s"] = round(flop / ms / 1e9, 1)
                volume = program_module.stored(cupy, given[0])
                key = (volume.shape, found.shape, node.attributes["strides"][0])
                if channels % 8 == 0 and given[1].shape[-1] != 3 and key not in tried:
                    tried.add(key)
                    plans = other_plans(backend.convolutions, volume, given[1], key[2])
                    row["other_plans_ms"] = "; ".join(plans)
            report.add(**row)
            return found

        return run

    try:
        program_module._OPERATORS.update(  # type: ignore[attr-defined]
            {op: watched(operator) for op, operator in operators.items()}
        )
        runner.run(feeds)
    finally:
        program_module._OPERATORS.update(operators)  # type: ignore[attr-defined]
    runner.close()


def main() -> None:
    """Measure the graphs of a pass."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="of gpu_models.py")
    parser.add_argument("--output", type=Path, required=True, help="without ending")
    options = parser.parse_args()
    report = PartReport(options.output, "What does each layer cost?", COLUMNS)
    report.remark(f"cuDNN {cudnn.backend_version_string()}, frontend {cudnn.__version__}.")
    bundle = Bundle.open(options.folder / "bundle", verify=False)
    tried: set[Any] = set()
    for name in GRAPHS:
        measure(report, bundle, name, tried)


if __name__ == "__main__":
    main()
