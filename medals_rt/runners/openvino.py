"""OpenVINO on the CPU."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medals_rt.arrays import Array
from medals_rt.errors import MissingDependencyError, MissingFileError, RunnerError
from medals_rt.manifest import GRAPH_NAMES
from medals_rt.runners.base import (
    Precision,
    RunnerKind,
    TensorSpec,
    check_feeds,
    check_precision,
    thread_limit,
)
from medals_rt.timings import cache_folder

INSTALL = "OpenVINO is not installed: pip install 'medals-rt[cpu]'"
_KEPT_GRAPHS = 2 * 2 * len(GRAPH_NAMES)
_HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16"}


class OpenVINORunner:
    """One ONNX graph compiled by OpenVINO for the CPU; see `Runner`.

    Arrays are NumPy's. Each run writes into arrays made for it, which are the caller's own; the
    library refers to the last run's until the next, so their memory is free one run later.
    """

    kind: RunnerKind = "openvino"
    device = "cpu"

    def __init__(
        self,
        graph_path: Path,
        *,
        name: str,
        precision: str | None = None,
        threads: int | None = None,
        cache_key: str | None = None,
    ) -> None:
        openvino = import_openvino()
        if not graph_path.is_file():
            raise MissingFileError(f"there is no graph {graph_path}")
        self.name = name
        self.version: str = openvino.__version__.partition("-")[0]
        core = openvino.Core()
        self.precision, notes = _precision(core, check_precision(precision))
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
        }
        limit = thread_limit(threads)
        if limit:
            config["INFERENCE_NUM_THREADS"] = limit
        if cache_key is not None:
            cache, note = _cache(f"{cache_key}-{self.version}")
            notes += note
            if cache is not None:
                config["CACHE_DIR"] = str(cache)
        try:
            self._compiled = core.compile_model(str(graph_path), "CPU", config)
            self.threads = int(self._compiled.get_property("INFERENCE_NUM_THREADS"))
            self._request = self._compiled.create_infer_request()
        except RuntimeError as error:
            raise RunnerError(f"OpenVINO refused {name}: {_reason(error)}") from error
        self._tensor: Any = openvino.Tensor
        self.notes = notes
        self.inputs = _specs(self._compiled.inputs)
        self.outputs = _specs(self._compiled.outputs)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute all outputs; see `Runner.run`."""
        free = check_feeds(self.name, self.inputs, feeds)
        results: dict[str, Array] = {}
        try:
            for spec in self.outputs:
                shape = [size if isinstance(size, int) else free for size in spec.shape]
                results[spec.name] = np.empty(shape, spec.dtype)
                tensor = self._tensor(results[spec.name], shared_memory=True)
                self._request.set_tensor(spec.name, tensor)
            contiguous = {key: np.ascontiguousarray(value) for key, value in feeds.items()}
            self._request.infer(contiguous, share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            raise RunnerError(f"OpenVINO failed in {self.name}: {_reason(error)}") from error
        return results

    def close(self) -> None:
        """Let go of the compiled graph."""
        self._request = self._compiled = None


def import_openvino() -> Any:
    """Import OpenVINO, or say what installs it."""
    try:
        import openvino
    except ImportError as error:
        raise MissingDependencyError(INSTALL) from error
    return openvino


def _precision(core: Any, asked: Precision | None) -> tuple[Precision, tuple[str, ...]]:
    """Choose bf16 where the processor computes in it natively, else fp32, unless told."""
    native = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if asked is None:
        return ("bf16" if native else "fp32"), ()
    if asked == "bf16" and not native:
        raise RunnerError(
            "this processor has no bf16 arithmetic (AMX or AVX512-BF16); use precision fp32"
        )
    return asked, ()


def _cache(key: str) -> tuple[Path | None, tuple[str, ...]]:
    """Make the folder for compiled graphs; a place that can't be written is told, not fatal.

    The folder is named by the graph's hash, so that another graph under the same path never finds
    the old one's compilation. The folders used last are kept, those of two bundles.
    """
    try:
        folder = cache_folder() / "openvino" / key
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / f".{os.getpid()}"
        trial.touch()
        trial.unlink()
        os.utime(folder)
        _forget_old(folder.parent)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        return None, (f"compiled graphs are not kept: {error}",)
    return folder, ()


def _forget_old(cache: Path) -> None:
    """Remove compiled graphs that were not used for longest: they are as large as the weights."""
    folders = sorted(cache.iterdir(), key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in folders[_KEPT_GRAPHS:]:
        shutil.rmtree(folder, ignore_errors=True)


def _specs(ports: Sequence[Any]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            port.get_any_name(),
            tuple(
                axis.get_length() if axis.is_static else "?" for axis in port.get_partial_shape()
            ),
            np.dtype(port.get_element_type().to_dtype()).name,
        )
        for port in ports
    )


def _reason(error: Exception) -> str:
    """Give the last line that says something; the ones before it name source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
