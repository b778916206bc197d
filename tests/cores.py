"""Cores of the machine, shared among the processes that run tests.

Each of pytest-xdist's processes keeps to a share of the cores, and so do those that its tests
start. Otherwise each one starts a thread a core: on two cores the threads of two processes wait
for each other, most of them busily, which takes half of the time.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

ALL = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()
"""Those that this process had from its parent; none where processes aren't tied to cores."""


def take_a_share() -> None:
    """Keep to this process's share, for good: libraries look at the cores when they are loaded."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if ALL and worker:
        workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        share = sorted(ALL)[int(worker.removeprefix("gw")) :: workers]
        os.sched_setaffinity(0, share or ALL)


@contextmanager
def all_cores() -> Iterator[None]:
    """Use all that there are: what is opened and started in here has a thread for each."""
    from medals_rt.common.cores import usable_cores

    if not ALL:
        yield
        return
    share = os.sched_getaffinity(0)
    os.sched_setaffinity(0, ALL)
    usable_cores.cache_clear()
    try:
        yield
    finally:
        os.sched_setaffinity(0, share)
        usable_cores.cache_clear()
