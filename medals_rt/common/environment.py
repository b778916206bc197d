"""What a report says of the machine: versions, processor, memory. Never its owner."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def library_versions() -> dict[str, str]:
    """Versions of Python, this package and the libraries that decide results, where installed."""
    found = {"python": platform.python_version()}
    names = ("medals-rt", "numpy", "scipy", "openvino", "onnxruntime", "onnxruntime-gpu", "cupy")
    for name in (*names, "tensorrt", "connected-components-3d"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine_facts() -> dict[str, Any]:
    """Name the machine's kind, never its owner: system, architecture, processor, cores."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": _processor_name(),
        "cores": cores,
    }


def _processor_name() -> str:
    """Read the processor's name where Linux keeps it, else what Python knows."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def peak_memory_mib() -> float | None:
    """Largest resident size of this process so far, in MiB; None where the system can't tell.

    Linux keeps it with the process's memory; what `getrusage` gives there counts that of the
    program that started this one, too.
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
