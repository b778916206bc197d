"""ONNX Runtime on the CPU."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medals_rt.arrays import Array
from medals_rt.errors import InputError, MissingDependencyError, MissingFileError, RunnerError
from medals_rt.runners.base import (
    Precision,
    RunnerKind,
    TensorSpec,
    check_feeds,
    check_precision,
    thread_limit,
)

INSTALL = "ONNX Runtime is not installed: pip install 'medals-rt[onnx]'"
_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}


class ONNXRuntimeRunner:
    """One ONNX graph in an ONNX Runtime session on the CPU, in fp32; see `Runner`.

    Arrays are NumPy's. The library makes new output arrays each run; they are the caller's own.
    """

    kind: RunnerKind = "onnxruntime"
    device = "cpu"
    precision: Precision = "fp32"

    def __init__(
        self,
        graph_path: Path,
        *,
        name: str,
        precision: str | None = None,
        threads: int | None = None,
    ) -> None:
        onnxruntime = import_onnxruntime()
        if not graph_path.is_file():
            raise MissingFileError(f"there is no graph {graph_path}")
        if check_precision(precision) not in {None, "fp32"}:
            raise InputError(
                f"ONNX Runtime computes in fp32 on a CPU, not {precision}; "
                "use precision fp32 or --runner openvino"
            )
        self.name = name
        self.version: str = onnxruntime.__version__
        self.threads = thread_limit(threads)
        self.notes: tuple[str, ...] = ()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(graph_path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the library's errors share no base class of their own
            raise RunnerError(f"ONNX Runtime refused {name}: {error}") from error
        self.inputs = _specs(self._session.get_inputs())
        self.outputs = _specs(self._session.get_outputs())

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute all outputs; see `Runner.run`."""
        check_feeds(self.name, self.inputs, feeds)
        names = [spec.name for spec in self.outputs]
        contiguous = {key: np.ascontiguousarray(value) for key, value in feeds.items()}
        try:
            results = self._session.run(names, contiguous)
        except Exception as error:  # the library's errors share no base class of their own
            raise RunnerError(f"ONNX Runtime failed in {self.name}: {error}") from error
        return dict(zip(names, results, strict=True))

    def close(self) -> None:
        """Let go of the session."""
        self._session = None


def import_onnxruntime() -> Any:
    """Import ONNX Runtime, or say what installs it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(INSTALL) from error
    return onnxruntime


def _specs(values: Sequence[Any]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(value.name, tuple(value.shape), _TYPES.get(value.type, value.type))
        for value in values
    )
