"""Workers whose steps are quick and do what a case's name says; run in processes of their own."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from medals_rt.common.atomic_io import atomic_output
from medals_rt.common.gpu_faults import raises_device_lost
from medals_rt.pipeline.batch import ray_cluster, workers
from medals_rt.pipeline.batch import run as batch_run
from medals_rt.pipeline.batch.plan import BatchCase
from medals_rt.pipeline.batch.records import Entry, remember, shown, writing_noted

SECONDS = 0.01


def install() -> None:
    """Put quick steps in the place of those of a batch."""
    batch_run.open_models = lambda _: _models()
    batch_run.passes_recorded = lambda _: nullcontext()
    batch_run.segment_job = _segment
    batch_run._written = _written


def work(task: Any, events: Connection) -> None:
    """Be a worker with quick steps."""
    install()
    workers._work(task, events)


def hold_after(cases: int) -> None:
    """Let this process run so many cases, and linger in the next one until it is interrupted."""
    segment, left = batch_run.segment_job, iter(range(cases))

    def held(*given: Any) -> Any:
        if next(left, None) is None:
            time.sleep(3600)
        return segment(*given)

    batch_run.segment_job = held


def lingering_work(task: Any, events: Connection) -> None:
    """Be a worker with real steps that ends two cases, and lingers in the third."""
    hold_after(2)
    workers._work(task, events)


def barren_work(*_: object) -> None:
    """End before a case is in hand."""
    os._exit(7)


@contextmanager
def _models() -> Iterator[str]:
    """Models that can't be closed once the GPU has failed, as those of libraries."""
    try:
        yield "models"
    finally:
        if _lost:
            _fail()


_lost: list[str] = []


def _fail() -> None:
    """Fail as CuPy does with everything that is asked of a lost GPU."""
    raise RuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")


@raises_device_lost
def _segment(_: object, read: Any, __: object) -> str:
    name = read.job.report.stem
    if "poison" in name:
        os.kill(os.getpid(), signal.SIGKILL)
    if _lost:
        _fail()
    if "fault" in name:
        seen = Path(os.environ["MEDALS_RT_TESTS_LOG"]).with_name(f"{name} seen")
        if "always" in name or not seen.exists():
            seen.touch()
            _lost.append(name)
            _fail()
    if "slow" in name:
        time.sleep(60)
    time.sleep(SECONDS)
    return name


def _written(ready: Any, _: object) -> Entry:
    case: BatchCase = ready.case
    with writing_noted(case, ready.earlier):
        for path in (case.job.output, case.job.report):
            assert path is not None
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_output(path) as temporary:
                temporary.write_text(case.name, encoding="utf-8")
    entry = Entry(shown(case.name), "", "", "done", seconds=SECONDS)
    remember(case, ready.made_from, entry, ready.earlier)
    log = Path(os.environ["MEDALS_RT_TESTS_LOG"])
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{case.name}\n")
    return entry


class Actor:
    """A worker of a Ray cluster with quick steps."""

    def work(self, task: Any) -> None:
        install()
        ray_cluster._Actor().work(task)
