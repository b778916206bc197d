"""Every inference library, a line each; what else is known of one is in its own file."""

from collections.abc import Iterable
from typing import Final

from medals_rt.common.choices import RunnerKind
from medals_rt.runners.base import RunnerSpec
from medals_rt.runners.cudnn.runner import CUDNN
from medals_rt.runners.onnxruntime import ONNXRUNTIME, ONNXRUNTIME_CUDA
from medals_rt.runners.openvino import OPENVINO
from medals_rt.runners.tensorrt import TENSORRT, TENSORRT_RTX

REGISTRY: Final[tuple[RunnerSpec, ...]] = (
    TENSORRT,
    TENSORRT_RTX,
    CUDNN,
    ONNXRUNTIME_CUDA,
    OPENVINO,
    ONNXRUNTIME,
)
"""In the order in which `auto` prefers them."""

CPU_RUNNERS: Final[tuple[RunnerKind, ...]] = tuple(
    spec.kind for spec in REGISTRY if spec.device == "cpu"
)

_BY_KIND: Final = {spec.kind: spec for spec in REGISTRY}


def libraries_of(specs: Iterable[RunnerSpec]) -> tuple[str, ...]:
    """Name what some runners need, each once."""
    return tuple(dict.fromkeys(name for spec in specs for name in spec.libraries))


def runner_spec(kind: RunnerKind) -> RunnerSpec:
    """Return what is known of an inference library."""
    return _BY_KIND[kind]
