"""Watching a GPU's memory, on a module in CuPy's place."""

import sys
import time
from pathlib import Path

import pytest

from medals_rt.tools.bench.gpu_memory import GpuMemory

SLOW_TO_IMPORT = """
import time

time.sleep(0.2)


def is_available():
    return True


class cuda:
    class runtime:
        used = 100 << 20

        @classmethod
        def memGetInfo(cls):
            cls.used += 50 << 20
            return (80 << 30) - cls.used, 80 << 30
"""


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_library_that_is_being_imported_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cupy.py").write_text(SLOW_TO_IMPORT, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "cupy", sys)  # so that what was there comes back
    del sys.modules["cupy"]
    with GpuMemory() as memory:
        import cupy  # noqa: F401

        deadline = time.monotonic() + 180
        while not memory.peak_mib and time.monotonic() < deadline:
            time.sleep(0.01)
    assert memory.peak_mib is not None
    assert memory.peak_mib >= 50


def test_without_a_card_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", sys)
    del sys.modules["cupy"]
    with GpuMemory() as memory:
        time.sleep(0.05)
    assert memory.peak_mib is None
