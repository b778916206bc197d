"""How many processors this process may use."""

import os
from functools import cache

from medals_rt.common.cgroups import CGROUP, cpu_quota


@cache
def usable_cores() -> int:
    """Processors that this process may use: its affinity, and a container's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(cores, cpu_quota(CGROUP) or cores))
