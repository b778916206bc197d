"""What a report says of the machine: versions, processor, memory. Never its owner."""

import platform
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from medals_rt.common.cores import usable_cores
from medals_rt.common.distribution import NAME, VERSION, requirements


def library_versions() -> dict[str, str]:
    """Return the versions of Python, this package, and what is installed of its requirements."""
    return dict(_versions())


@cache
def _versions() -> Mapping[str, str]:
    found = {"python": platform.python_version(), NAME: VERSION}
    for package in sorted({each.package for each in requirements()}):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine_facts() -> dict[str, Any]:
    """Return what kind of machine this is: system, architecture, processor, usable cores."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": _processor_name(),
        "cores": usable_cores(),
    }


def _processor_name() -> str:
    """Read the processor's name where Linux lists it, else take what Python knows."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def peak_memory_mib() -> float | None:
    """Return the peak resident memory of this process so far, in MiB; None if it is unknown.

    On Linux `getrusage` would include the peak of the program that started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    try:
        import resource
    except ImportError:  # Windows has no such module
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kib = peak / 1024 if sys.platform == "darwin" else peak
    return round(kib / 1024, 1)
