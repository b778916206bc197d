"""A child of `medals_serve.model_process` whose runner fails as those on a GPU do."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from medals_rt.common.errors import BundleError
from medals_rt.common.typing import Array
from medals_rt.pipeline.options import RunOptions
from medals_rt.runners.onnxruntime import ONNXRuntimeRunner
from medals_serve import model_process

FAULTS: Final = "MEDALS_RT_TESTS_FAULTS"
"""The variable with a file whose lines say what becomes of the next windows, one after the other:
``lost``, ``refused``, ``killed``, ``stuck``, or that the next child does not open: ``closed``, or
``hangs``."""
_OF_OPENING: Final = frozenset({"closed", "hangs"})


def next_fault(expected: bool) -> str | None:
    """Take the first line of the file, of those about opening or about windows."""
    file = Path(os.environ[FAULTS])
    lines = file.read_text(encoding="utf-8").splitlines()
    if not lines or (lines[0] in _OF_OPENING) is not expected:
        return None
    file.write_text("".join(f"{line}\n" for line in lines[1:]), encoding="utf-8")
    return lines[0]


def work(options: RunOptions, pipe: Connection) -> None:
    """Be such a child."""
    right = ONNXRuntimeRunner.run
    is_lost = False

    def run(self: ONNXRuntimeRunner, feeds: Mapping[str, Array]) -> dict[str, Any]:
        nonlocal is_lost
        fault = "lost" if is_lost else next_fault(expected=False)
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "lost":
            is_lost = True
            raise RuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")
        if fault == "stuck":
            time.sleep(600)
        if fault == "refused":
            raise ZeroDivisionError("a surprise")
        return right(self, feeds)

    def close(_: ONNXRuntimeRunner) -> None:
        if is_lost:
            raise RuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")

    ONNXRuntimeRunner.run, ONNXRuntimeRunner.close = run, close  # type: ignore[method-assign]
    model_process.open_models = _opening(model_process.open_models)
    model_process._work(options, pipe)


def _opening(opens: Callable[[RunOptions], Any]) -> Callable[[RunOptions], Any]:
    def open_models(options: RunOptions) -> Any:
        fault = next_fault(expected=True)
        if fault == "hangs":
            time.sleep(600)
        if fault == "closed":
            raise BundleError("there is no GPU any more")
        return opens(options)

    return open_models
