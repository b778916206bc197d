"""OpenVINO's convolutions beside Winograd's on this machine, for `runners.winograd.choice`."""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final, Literal

import numpy as np

from medals_rt.common.optional_deps import import_optional
from medals_rt.common.progress import Progress
from medals_rt.runners.base import thread_limit
from medals_rt.runners.openvino import HINTS, OPENVINO
from medals_rt.runners.openvino_compiled import CompiledModel
from medals_rt.runners.openvino_graphs import (
    AXES_DHW,
    arrange,
    import_openvino,
    name_outputs,
    shared_core,
)
from medals_rt.runners.winograd.choice import WHEREVER_POSSIBLE, Timing
from medals_rt.runners.winograd.partition import partition
from medals_rt.runners.winograd.split_model import SplitModel

CHANNELS: Final = (16, 32, 64)
SIDES: Final = (32, 64, 96)
_LAYERS: Final = 3
_RUNS: Final = 2

_Measured = Literal["fp32", "bf16"]


def time_convolutions(
    threads: int | None = None,
    progress: Progress | None = None,
    channels: Sequence[int] = CHANNELS,
    sides: Sequence[int] = SIDES,
) -> Iterator[Timing]:
    """Time both kinds of convolution, in each precision that the processor computes in natively.

    By processor time, so that it holds on a machine that does other things, too. Takes about a
    minute.

    Parameters
    ----------
    threads
        How many to compute with; None leaves it to the library.
    progress
        Called with what is timed, how many are done, and how many there are.
    channels, sides
        Of the cubes that are convolved.

    Raises
    ------
    MissingDependencyError
        If OpenVINO or llvmlite is not installed.
    """
    import_optional("llvmlite", "Winograd convolutions")
    processor = shared_core().get_property("CPU", "FULL_DEVICE_NAME")
    plan = [
        (precision, count, side)
        for precision in ("bf16", "fp32")
        if precision in OPENVINO.precisions("fp32")
        for count in channels
        for side in sides
    ]
    for precision, count, side in _told(plan, progress):
        yield _time(processor, precision, count, side, threads)


def _told(plan: Sequence[Any], progress: Progress | None) -> Iterator[Any]:
    for done, each in enumerate(plan):
        if progress is not None:
            precision, count, side = each
            progress(f"{precision}, {count} channels at {side}^3", done, len(plan))
        yield each
    if progress is not None:
        progress("done", len(plan), len(plan))


def _time(
    processor: str, precision: _Measured, channels: int, side: int, threads: int | None
) -> Timing:
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
    }
    if limit := thread_limit(threads):
        config["INFERENCE_NUM_THREADS"] = limit

    def compiled(model: Any) -> CompiledModel:
        return CompiledModel(partial(arrange, model, precision, chained=True), config, None)

    whole = compiled(_network(channels, side))
    storage: Literal["float32", "bfloat16"] = "bfloat16" if precision == "bf16" else "float32"
    cut, models = partition(_network(channels, side), storage, WHEREVER_POSSIBLE)
    parts = [
        compiled(model) if needed else None
        for model, needed in zip(models, (*cut.computes, *[True] * len(cut.sweeps)), strict=True)
    ]
    split = SplitModel(cut, parts, storage, whole.threads)
    direct, winograd = (_seconds(model, channels, side) for model in (whole, split))
    whole.close()
    split.close()
    return Timing(processor, precision, channels, side**3, direct, winograd)


def _seconds(model: CompiledModel | SplitModel, channels: int, side: int) -> float:
    """Processor time of a layer, of the quickest of some runs behind a first one."""
    values = np.random.default_rng(0).standard_normal(
        (1, channels, side, side, side), dtype=np.float32
    )
    found = []
    for _ in range(_RUNS + 1):
        start = time.process_time()
        model.run({"values": values})
        found.append(time.process_time() - start)
    return round(min(found[1:]) / _LAYERS, 5)


def _network(channels: int, side: int) -> Any:
    """Make a few layers of the kind that decides a pass, and a small result."""
    openvino = import_openvino()
    from openvino import opset13

    rng = np.random.default_rng(1)
    ones, axes = [1, 1, 1], opset13.constant(AXES_DHW)
    parameter = opset13.parameter([1, channels, side, side, side], np.float32, name="values")
    parameter.output(0).set_names({"values"})
    values = parameter
    for _ in range(_LAYERS):
        weights = rng.standard_normal((channels, channels, 3, 3, 3)) / np.sqrt(27 * channels)
        kernel = opset13.constant(weights.astype(np.float32))
        convolved = opset13.convolution(values, kernel, ones, ones, ones, ones)
        normed = opset13.mvn(convolved, axes, True, 1e-5, "inside_sqrt")
        values = opset13.prelu(normed, opset13.constant(np.array([0.01], np.float32)))
    none, whole = [0, 0, 0], [side] * 3
    small = opset13.avg_pool(values, whole, none, none, whole, exclude_pad=True)
    result = openvino.op.Result(opset13.sigmoid(small).output(0))
    return name_outputs(openvino.Model([result], [parameter], "layers"), ["small"])
