"""Every inference library, a line each; what else is known of one is in its own file."""

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

_BY_KIND: Final = {spec.kind: spec for spec in REGISTRY}


def runner_spec(kind: RunnerKind) -> RunnerSpec:
    """Return what is known of an inference library."""
    return _BY_KIND[kind]
