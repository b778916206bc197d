"""Processes of this machine that work on one batch, each with models of its own: one a GPU.

Each does what `run_batch` does alone, on the cells that all share. The parent starts them, hears
how it goes, replaces one that ends before its time, and ends them with itself.
"""

import os
import signal
import threading
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

from medals_rt.common.errors import InputError, MedalsError, RunnerError
from medals_rt.common.subprocesses import signal_name
from medals_rt.pipeline.batch.claims import Cells, is_settled
from medals_rt.pipeline.batch.find import BatchCase
from medals_rt.pipeline.batch.records import Entry, note_end
from medals_rt.pipeline.batch.run import Listener, run_batch
from medals_rt.pipeline.batch.shared_cells import joined_cells
from medals_rt.pipeline.options import RunOptions

_MOST_BARREN: Final = 3
"""Workers that may end since one has last taken a case."""
_COUNT_AFTER_S: Final = 5.0
_GRACE_S: Final = 60.0
"""What a worker may take to write the case that it has begun to write."""


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
    """A process that works, and what was heard of it: places of cases in its hands and ended."""

    process: BaseProcess
    events: Connection
    in_hand: set[int] = field(default_factory=set)
    finished: bool = False
    raised: BaseException | None = None


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
    """Run cases as `run_batch`, in one process a place.

    A worker that ends before its time is replaced; see `claims` for what becomes of its cases.

    Parameters
    ----------
    cases, options, listener, cells, own
        As for `run_batch`.
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
        As `run_batch`.
    """
    if os.name != "posix":
        raise InputError(
            "several processes of one batch need a POSIX system; leave out --processes and --gpus",
            code="no-shared-locks",
        )

    def begin(number: int) -> _Worker:
        first = len(own) * number // len(places)
        mine = (*own[first:], *own[:first])
        return _start(_Task(cases, options, cells_file, mine, places[number]))

    hearing = _Hearing(listener)
    workers: dict[int, _Worker] = {}
    try:
        for number in range(len(places)):
            workers[number] = begin(number)
        while workers:
            ready = wait([each.events for each in workers.values()], timeout=_COUNT_AFTER_S)
            hearing.count_others(cells, own)
            for number, worker in list(workers.items()):
                if worker.events not in ready or hearing.hear(worker):
                    continue
                worker.process.join()
                del workers[number]
                if worker.raised is not None:
                    raise worker.raised
                if worker.finished:
                    continue
                reason = _how_it_ended(worker.process.exitcode)
                _note_ends(cases, cells, worker.in_hand, reason)
                hearing.barren += 1
                if hearing.barren > _MOST_BARREN:
                    raise RunnerError(
                        f"{hearing.barren} workers ended one after the other and took no case; the "
                        f"last: {reason}",
                        code="workers-end",
                    )
                workers[number] = begin(number)
    finally:
        _end(workers.values(), hearing)
    return dict(sorted(hearing.entries.items()))


class _Hearing:
    """What the parent hears of all workers, and passes on."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.entries: dict[int, Entry] = {}
        self.barren = 0
        self._others = 0
        self._counted_at = time.monotonic()

    def hear(self, worker: _Worker) -> bool:
        """Hear one thing; False where the worker has ended."""
        try:
            what, *told = worker.events.recv()
        except (EOFError, OSError):
            return False
        if what == "taken":
            worker.in_hand.add(*told)
            self.barren = 0
        elif what == "ended":
            index, entry = told
            worker.in_hand.discard(index)
            self.entries[index] = entry
        elif what == "raised":
            (worker.raised,) = told
        elif what == "finished":
            worker.finished = True
        if hasattr(self.listener, what):
            getattr(self.listener, what)(*told)
        return True

    def count_others(self, cells: Cells, own: Sequence[int]) -> None:
        """Count, now and then, the cases that neither of the workers has settled."""
        if time.monotonic() < self._counted_at + _COUNT_AFTER_S:
            return
        values = cells.read(0, max(own) + 1)
        others = sum(is_settled(values[index]) for index in own) - len(self.entries)
        if others > self._others:
            self.listener.elsewhere(others - self._others)
            self._others = others
        self._counted_at = time.monotonic()


def _start(task: _Task) -> _Worker:
    """Start a worker. A Ctrl-C that comes meanwhile waits: it is for the parent."""
    context = get_context("spawn")
    events, theirs = context.Pipe()
    process = context.Process(target=_work, args=(task, theirs), daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return _Worker(process, events)


def _end(workers: Collection[_Worker], hearing: _Hearing) -> None:
    """End workers as Ctrl-C does: each writes what it has begun to write, and no more."""
    for worker in workers:
        if worker.process.pid is not None and worker.process.is_alive():
            os.kill(worker.process.pid, signal.SIGINT)
    until = time.monotonic() + _GRACE_S
    for worker in workers:
        with suppress(Exception):  # Ctrl-C may have cut what is being heard
            while worker.events.poll(max(0.0, until - time.monotonic())) and hearing.hear(worker):
                pass
        worker.process.join(max(0.1, until - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.events.close()


def _note_ends(
    cases: Sequence[BatchCase], cells: Cells, in_hand: Iterable[int], reason: str
) -> None:
    """Note how a worker ended with the cases that it had in hand, if nobody has taken them up."""
    for index in in_hand:
        if cells.hold(index):
            try:
                if not is_settled(cells.read(index, 1)[0]):
                    note_end(cases[index], reason)
            finally:
                cells.free(index)


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        remark = ", perhaps for lack of memory" if code == -signal.SIGKILL else ""
        return f"the process was ended by {signal_name(-code)}{remark}"
    return f"the process ended with exit code {code}"


class _Teller:
    """Tells the parent what happens; see `Listener`."""

    def __init__(self, events: Connection) -> None:
        self._events = events
        self._lock = threading.Lock()

    def tell(self, *what: object) -> None:
        with self._lock:
            self._events.send(what)

    def taken(self, index: int) -> None:
        self.tell("taken", index)

    def started(self, case: BatchCase) -> None:
        self.tell("started", case)

    def windows(self, stage: str, done: int, total: int) -> None:
        self.tell("windows", stage, done, total)

    def ended(self, index: int, entry: Entry) -> None:
        self.tell("ended", index, entry)

    def elsewhere(self, count: int) -> None:
        """Tell nothing: the parent counts what neither of its workers has settled."""


def _work(task: _Task, events: Connection) -> None:
    """Be a worker."""
    os.setsid()  # Ctrl-C of a terminal goes to the parent alone, which ends its workers
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
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
            run_batch(task.cases, options, teller, cells=cells, own=task.own)
        teller.tell("finished")
    except (KeyboardInterrupt, BrokenPipeError):  # the parent ends, or has ended
        pass
    except MedalsError as error:
        teller.tell("raised", error)
    except Exception as error:  # noqa: BLE001 - the parent raises it
        teller.tell("raised", RunnerError(f"{type(error).__name__}: {error}", code="worker"))


def _end_with_parent(events: Connection) -> None:
    """Wait until the parent has ended, then interrupt this process."""
    with suppress(EOFError, OSError):
        events.recv()
    os.kill(os.getpid(), signal.SIGINT)
