"""Processes of this machine that work on one batch, each with models of its own: one a GPU.

Each does what `run_cases` does alone, on the cells that all share. `supervision` says what the
parent does with them; they end with it.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from medals_rt.bundle.bundle import Bundle, resolve_bundle
from medals_rt.common.errors import InputError, MedalsError, RunnerError
from medals_rt.common.gpu_faults import EXIT_DEVICE_LOST, sticky_fault
from medals_rt.common.subprocesses import signal_name
from medals_rt.pipeline.batch.claims import Cells
from medals_rt.pipeline.batch.plan import BatchCase
from medals_rt.pipeline.batch.records import Entry
from medals_rt.pipeline.batch.run import Listener, run_cases
from medals_rt.pipeline.batch.shared_cells import joined_cells
from medals_rt.pipeline.batch.supervision import GRACE_S, Event, Teller, rotated, supervise
from medals_rt.pipeline.options import RunOptions
from medals_rt.runners.selection import runs_on_gpu


@dataclass(frozen=True)
class Place:
    """Where a worker works.

    Attributes
    ----------
    gpu
        Its value of CUDA_VISIBLE_DEVICES; None: all there are, or none.
    cores
        The processor cores that it keeps to; None: any.
    """

    gpu: str | None = None
    cores: tuple[int, ...] | None = None


def places_on_gpus(words: str, visible: Sequence[str]) -> tuple[Place, ...]:
    """Return a place for each GPU that was asked for: ``"all"``, or numbers such as ``"0,1"``.

    Parameters
    ----------
    words
        What was asked for; numbers count those that are visible.
    visible
        As `gpu.visible_gpus`.

    Raises
    ------
    InputError
        There are no such GPUs.
    """
    if not visible:
        raise InputError(
            "--gpus: no driver finds an NVIDIA GPU here; use --processes on a processor",
            code="no-gpu",
        )
    if words == "all":
        return tuple(Place(gpu=each) for each in visible)
    numbers = [each.strip() for each in words.split(",")]
    if not all(each.isdecimal() and int(each) < len(visible) for each in numbers):
        raise InputError(
            f"--gpus {words}: write all, or numbers from 0 to {len(visible) - 1} with commas",
            code="no-gpu",
        )
    return tuple(Place(gpu=visible[number]) for number in dict.fromkeys(map(int, numbers)))


def places_on_gpu(options: RunOptions) -> tuple[Place, ...]:
    """Return the place of a batch on the first GPU, none where networks run on a processor.

    After a fault a process can use its GPU no more, so that it must be one that can be replaced.

    Raises
    ------
    InputError
        The bundle can't be used.
    MissingDependencyError
        The runner is not installed.
    """
    bundle = Bundle.open(resolve_bundle(options.bundle), verify=False)
    return (Place(),) if os.name == "posix" and runs_on_gpu(options.runner, bundle) else ()


def places_on_cores(count: int) -> tuple[Place, ...]:
    """Share the cores that this process may use among some workers, neighbors together."""
    if not hasattr(os, "sched_getaffinity"):
        return (Place(),) * count
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < count:
        return (Place(),) * count
    bounds = [len(cores) * number // count for number in range(count + 1)]
    return tuple(Place(cores=tuple(cores[a:b])) for a, b in pairwise(bounds))


@dataclass(frozen=True)
class _Task:
    """What a worker is told at its start."""

    cases: Sequence[BatchCase]
    options: RunOptions
    cells: Path
    own: Sequence[int]
    place: Place


@dataclass(eq=False)
class _Worker:
    """A process that works, and where it is heard."""

    process: BaseProcess
    events: Connection


class _Processes:
    """Workers of this machine; see `supervision.Crew`."""

    def __init__(self, tasks: Sequence[_Task]) -> None:
        self._tasks = tasks
        self._workers: dict[int, _Worker] = {}

    def start(self, number: int) -> None:
        """Start a worker. A Ctrl-C that comes meanwhile waits: it is for the parent."""
        context = get_context("spawn")
        events, theirs = context.Pipe()
        process = context.Process(target=_work, args=(self._tasks[number], theirs), daemon=True)
        resource_tracker.ensure_running()  # which lets Ctrl-C in again when it starts
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self._workers[number] = _Worker(process, events)

    def heard(self, timeout_s: float) -> Iterator[tuple[int, Event]]:
        """Wait for events; the last of a worker is that it is over."""
        ready = wait([each.events for each in self._workers.values()], timeout_s)
        for number, worker in list(self._workers.items()):
            if worker.events in ready:
                yield number, self._next(number, worker)

    def stop(self) -> Iterator[tuple[int, Event]]:
        """End workers as Ctrl-C does: each writes what it has begun to write, and no more."""
        for worker in self._workers.values():
            if worker.process.pid is not None and worker.process.is_alive():
                os.kill(worker.process.pid, signal.SIGINT)
        until = time.monotonic() + GRACE_S
        for number, worker in list(self._workers.items()):
            while worker.events.poll(max(0.0, until - time.monotonic())):
                yield number, self._next(number, worker)
                if number not in self._workers:
                    break
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    def _next(self, number: int, worker: _Worker) -> Event:
        try:
            event: Event = worker.events.recv()
        except Exception:  # noqa: BLE001 - it has ended, or Ctrl-C has cut what it said
            worker.process.join(GRACE_S)
            worker.events.close()
            del self._workers[number]
            return ("over", _how_it_ended(worker.process.exitcode))
        return event


def run_workers(
    cases: Sequence[BatchCase],
    options: RunOptions,
    listener: Listener,
    *,
    places: Sequence[Place],
    cells: Cells,
    cells_file: Path,
    own: Sequence[int],
) -> dict[int, Entry]:
    """Run cases as `run_cases`, in one process a place.

    A worker that ends before its time is replaced; see `claims` for what becomes of its cases.

    Parameters
    ----------
    cases, options, listener, cells, own
        As for `run_cases`.
    places
        Where workers work.
    cells_file
        The file that holds the cells.

    Raises
    ------
    InputError
        Processes can't share cells on this system.
    RunnerError
        Workers end and take no case.
    MedalsError
        As `run_cases`.
    """
    if os.name != "posix":
        raise InputError(
            "several processes of one batch need a POSIX system; leave out --processes and --gpus",
            code="no-shared-locks",
        )

    orders = rotated(own, len(places))
    tasks = [
        _Task(cases, options, cells_file, order, place)
        for order, place in zip(orders, places, strict=True)
    ]
    return supervise(_Processes(tasks), len(places), listener, cases, cells, own)


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        remark = ", perhaps for lack of memory" if code == -signal.SIGKILL else ""
        return f"the process was ended by {signal_name(-code)}{remark}"
    return f"the process ended with exit code {code}"


class _Teller(Teller):
    """Tells the parent what happens."""

    def __init__(self, events: Connection) -> None:
        self._events = events
        self._lock = threading.Lock()

    def tell(self, *event: object) -> None:
        with self._lock:
            self._events.send(event)


def _work(task: _Task, events: Connection) -> None:
    """Be a worker."""
    os.setsid()  # Ctrl-C of a terminal goes to the parent alone, which ends its workers
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    teller = _Teller(events)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        threading.Thread(target=_end_with_parent, args=(events,), daemon=True).start()
        if task.place.gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = task.place.gpu
        options = task.options
        if task.place.cores is not None:
            os.sched_setaffinity(0, task.place.cores)
            options = replace(options, threads=options.threads or len(task.place.cores))
        with joined_cells(task.cells) as cells:
            run_cases(task.cases, options, teller, cells=cells, own=task.own)
        teller.tell("finished")
    except (KeyboardInterrupt, BrokenPipeError):  # the parent ends, or has ended
        pass
    except Exception as error:  # noqa: BLE001 - the parent raises it, or starts another worker
        fault = sticky_fault(error)  # closing the models may have failed, too
        if fault is not None:
            teller.tell("lost", fault)
            os._exit(EXIT_DEVICE_LOST)  # libraries that tidy up on a lost GPU abort, or hang
        known = isinstance(error, MedalsError)
        reason = f"{type(error).__name__}: {error}"
        teller.tell("raised", error if known else RunnerError(reason, code="worker"))
    finally:
        _heed_no_more()


def _interrupt(*_: object) -> None:
    """Interrupt this process, once: a second signal would cut short what it ends with."""
    _heed_no_more()
    raise KeyboardInterrupt


def _heed_no_more() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _end_with_parent(events: Connection) -> None:
    """Wait until the parent has ended, then interrupt this process."""
    with suppress(EOFError, OSError):
        events.recv()
    os.kill(os.getpid(), signal.SIGINT)
