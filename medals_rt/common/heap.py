"""Memory that the C library keeps after it was freed."""

import ctypes
import sys
from functools import cache
from typing import Any


def trim_heap() -> None:
    """Return freed memory to the system where glibc allocates it; do nothing elsewhere.

    glibc keeps freed blocks of up to 32 MiB for the next allocation, however many there are; what a
    graph that won't run again has freed would be counted as the process's for good.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Any | None:
    """Find `malloc_trim` in the C library of this process; None where it has none."""
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
