"""What a Linux container may use, read from its control group; both generations are known."""

import math
from pathlib import Path
from typing import Final

CGROUP: Final = Path("/sys/fs/cgroup")


def cpu_quota(cgroup: Path) -> int | None:
    """Read the CPU quota, rounded up to whole processors; None where none is set.

    `cpu.max` ("200000 100000" or "max 100000"), or `cpu.cfs_quota_us` (-1 for none) beside
    `cpu.cfs_period_us`.
    """
    try:
        modern = cgroup / "cpu.max"
        if modern.is_file():
            quota, period = modern.read_text(encoding="ascii").split()[:2]
        else:
            old = cgroup / "cpu"
            quota = (old / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (old / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
        if quota == "max" or int(quota) <= 0:
            return None
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no such files: not Linux, or no control groups
        return None


def memory_limit(cgroup: Path) -> int | None:
    """Read how much memory may be held, bytes; None where nothing limits it."""
    return _first_number(cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes")


def memory_in_use(cgroup: Path) -> int | None:
    """Read how much memory is held, bytes; None where that is not known."""
    return _first_number(cgroup / "memory.current", cgroup / "memory" / "memory.usage_in_bytes")


def _first_number(*files: Path) -> int | None:
    """Read the first of these files that is there; None if it holds no number, or there is none."""
    for file in files:
        try:
            text = file.read_text(encoding="ascii").strip()
        except OSError:
            continue
        return int(text) if text.isdigit() else None
    return None
