"""Stand-ins for CuPy and TensorRT on a machine without a card; put in place by `install`."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from medals_rt import cards
from medals_rt.cards import Card
from medals_rt.runners.tensorrt_library import Library, open_library

CARD = Card("NVIDIA Stand-in 90", "SM90", 80 << 30, "580.65.06, CUDA 13.0")


@dataclass(frozen=True)
class StandIns:
    """The modules, as they are imported under the real ones' names, and TensorRT as a library."""

    cupy: ModuleType
    tensorrt: ModuleType
    library: Library


def install(patch: pytest.MonkeyPatch) -> StandIns:
    """Have `import cupy`, `import tensorrt` and the driver give stand-ins, also to children."""
    patch.syspath_prepend(str(Path(__file__).parent))
    modules = [_load(patch, name) for name in ("cupy", "tensorrt")]
    patch.setattr(cards, "find_card", lambda: CARD)
    open_library.cache_clear()
    return StandIns(*modules, open_library("tensorrt"))


def _load(patch: pytest.MonkeyPatch, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module
