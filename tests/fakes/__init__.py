"""Fakes of CuPy and TensorRT on a machine without a GPU.

`in_place` puts them there for a test, `environment` for a child process. They show that the code
keeps the libraries' rules as far as they are known, and nothing of a GPU.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from medals_rt.common import gpu
from medals_rt.common.gpu import Gpu
from medals_rt.runners.tensorrt_library import TensorRTLibrary, open_library

GPU = Gpu("NVIDIA Fake 90", "SM90", 80 << 30, "580.65.06, CUDA 13.0")
FOLDER = Path(__file__).parent
ALLOWED = "MEDALS_RT_FAKES"
"""The variable without which no fake can be imported."""


@dataclass(frozen=True)
class Fakes:
    """The modules, as they are imported under the real ones' names, and TensorRT as a library."""

    cupy: ModuleType
    tensorrt: ModuleType
    library: TensorRTLibrary


@contextmanager
def in_place(patch: pytest.MonkeyPatch) -> Iterator[Fakes]:
    """Have `import cupy`, `import tensorrt` and the driver find fakes, also to children.

    Afterwards, and once `patch` is undone, nothing of them is left: what had been imported under
    these names is back.
    """
    earlier = {name: sys.modules.pop(name) for name in _faked_modules()}
    patch.setenv(ALLOWED, "1")
    patch.syspath_prepend(str(FOLDER))
    patch.setattr(gpu, "find_gpu", lambda: GPU)
    open_library.cache_clear()
    try:
        modules = [import_module(name) for name in ("cupy", "tensorrt")]
        yield Fakes(*modules, open_library("tensorrt"))
    finally:
        open_library.cache_clear()
        for name in _faked_modules():
            del sys.modules[name]
        sys.modules.update(earlier)


def _faked_modules() -> list[str]:
    """List the modules that are faked, or hold on to one that is."""
    roots = {"cudnn", "cupy", "cupyx", "tensorrt", "array_api_compat"}
    return [name for name in sys.modules if name.partition(".")[0] in roots]


def environment() -> dict[str, str]:
    """Return the variables of a child process that is to find the fakes, and nothing of CuPy."""
    path = os.pathsep.join([str(FOLDER), str(FOLDER.parent.parent)])
    return {**os.environ, ALLOWED: "1", "PYTHONPATH": path}
