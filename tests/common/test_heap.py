"""Giving freed memory back: what `trim_heap` does where glibc is, and that it is harmless."""

import ctypes
import sys
from pathlib import Path

import numpy as np
import pytest

from medals_rt.common.heap import trim_heap


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


def test_freed_blocks_go_back_to_the_system() -> None:
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("this C library has no malloc_trim")
    # Blocks below the size that glibc maps one by one, the last of which keeps the heap's end.
    blocks = [np.ones(100_000, np.uint8) for _ in range(400)]
    last = blocks[-1].copy()
    del blocks
    before = resident_bytes()
    trim_heap()
    assert resident_bytes() <= before
    assert last.all()


def test_it_may_be_called_at_any_time() -> None:
    trim_heap()
    trim_heap()
