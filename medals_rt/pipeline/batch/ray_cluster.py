"""Workers of a batch as actors of a Ray cluster, each with models of its own that stay open.

The schedule is that of `claims`, as everywhere: here the cells lie with one small actor, and each
worker takes its next case from it when it has room for one, so that nothing piles up. Ray notices
when an actor or its machine is lost; what it had in hand is then free, and another actor takes its
place. Inputs and outputs are on a disk that all machines see under the same path, or behind URLs.
Needs ray (the extra `ray`).
"""

import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from medals_rt.common.errors import MedalsError, RunnerError
from medals_rt.common.gpu_faults import sticky_fault
from medals_rt.common.optional_deps import import_optional
from medals_rt.pipeline.batch.claims import Cells, LocalCells
from medals_rt.pipeline.batch.plan import BatchCase
from medals_rt.pipeline.batch.records import Entry
from medals_rt.pipeline.batch.run import Listener, run_cases
from medals_rt.pipeline.batch.supervision import GRACE_S, Event, Teller, rotated, supervise
from medals_rt.pipeline.options import RunOptions

LOCAL: Final = "local"
"""Instead of an address: a cluster of this machine alone, for as long as the batch runs."""
_KNOCK_S: Final = 5.0
_LOOK_AFTER_S: Final = 0.1


def run_on_ray(
    cases: Sequence[BatchCase],
    options: RunOptions,
    listener: Listener,
    *,
    address: str,
    workers: int | None,
    cells: Cells,
    own: Sequence[int],
) -> dict[int, Entry]:
    """Run cases as `run_cases`, in actors of a Ray cluster.

    Parameters
    ----------
    cases, options, listener, own
        As for `run_cases`.
    address
        Of the cluster, ``"auto"``, or `LOCAL`.
    workers
        How many actors; None: one a GPU of the cluster, or one where there is none.
    cells
        What the driver says of the cases afterwards.

    Raises
    ------
    MissingDependencyError
        Ray isn't installed.
    RunnerError
        There is no cluster, or workers end and take no case.
    MedalsError
        As `run_cases`.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # before Ray is imported: nothing is sent away
    if address == LOCAL:  # a cluster that no other machine can join listens on the loopback alone
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray = import_optional("Ray", "--ray")
    _connect(ray, address)
    try:
        crew = _Actors(ray, cases, options, workers, own)
        served = _ServedCells(ray, crew.server)
        try:
            return supervise(crew, len(crew.orders), listener, cases, served, own)
        finally:
            for index, value in enumerate(served.read(0, len(cases))):
                cells.write(index, value)
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    try:
        if address == LOCAL:
            ray.init(include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
        else:
            _knock(address)
            ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise RunnerError(
            f"can't reach the Ray cluster {address}: {error}; check the address, or use --ray "
            f"{LOCAL}",
            code="ray-unreachable",
        ) from error


def _knock(address: str) -> None:
    """Try whether anybody listens there: Ray itself tries for minutes.

    Raises
    ------
    OSError
    """
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()


class _Server:
    """The actor that holds the cells, and what workers tell the driver."""

    def __init__(self, count: int) -> None:
        self._cells = LocalCells(count)
        self._told: list[tuple[int, Event]] = []
        self._stopped = False

    def read(self, start: int, count: int) -> bytes:
        return self._cells.read(start, count)

    def write(self, index: int, value: int) -> None:
        self._cells.write(index, value)

    def hold(self, index: int, holder: int | None) -> bool:
        return self._cells.hold(index, holder)

    def free(self, index: int) -> None:
        self._cells.free(index)

    def drop(self, holder: int) -> None:
        self._cells.drop(holder)

    def tell(self, number: int, event: Event) -> bool:
        """Take what a worker tells; return whether it is to stop."""
        self._told.append((number, event))
        return self._stopped

    def told(self) -> list[tuple[int, Event]]:
        """Return what was told since the last call."""
        told, self._told = self._told, []
        return told

    def stop(self) -> None:
        self._stopped = True


class _ServedCells:
    """Cells of the server; see `Cells`. What they hold goes with the worker of a number."""

    def __init__(self, ray: Any, server: Any, number: int | None = None) -> None:
        self._ray, self._server, self._number = ray, server, number

    def read(self, start: int, count: int) -> bytes:
        found: bytes = self._ray.get(self._server.read.remote(start, count))
        return found

    def write(self, index: int, value: int) -> None:
        self._ray.get(self._server.write.remote(index, value))

    def hold(self, index: int) -> bool:
        held: bool = self._ray.get(self._server.hold.remote(index, self._number))
        return held

    def free(self, index: int) -> None:
        self._ray.get(self._server.free.remote(index))


@dataclass(frozen=True)
class _RayTask:
    """What an actor is told at its start."""

    number: int
    cases: list[Any]
    """A reference to the cases; in a list, so that Ray doesn't send them along."""
    options: RunOptions
    own: Sequence[int]
    server: Any


class _Actor:
    """A worker."""

    def work(self, task: _RayTask) -> None:
        """Do cases until none is left, or until the driver stops."""
        import ray

        teller = _ActorTeller(ray, task)
        try:
            run_cases(
                ray.get(task.cases[0]),
                task.options,
                teller,
                cells=_ServedCells(ray, task.server, task.number),
                own=task.own,
            )
            teller.tell("finished")
        except KeyboardInterrupt:
            return
        except Exception as error:
            fault = sticky_fault(error)
            if fault is not None:  # the driver ends this actor, and starts another
                teller.tell("lost", fault)
            elif isinstance(error, MedalsError):
                teller.tell("raised", error)
                return
            raise


class _ActorTeller(Teller):
    """Tells the driver what happens, and stops the worker when the driver stops."""

    def __init__(self, ray: Any, task: _RayTask) -> None:
        self._ray, self._task = ray, task
        self._lock = threading.Lock()

    def tell(self, *event: object) -> None:
        with self._lock:
            stop = self._ray.get(self._task.server.tell.remote(self._task.number, event))
        if stop:
            raise KeyboardInterrupt


class _Actors:
    """Workers of a cluster; see `supervision.Crew`."""

    def __init__(
        self,
        ray: Any,
        cases: Sequence[BatchCase],
        options: RunOptions,
        workers: int | None,
        own: Sequence[int],
    ) -> None:
        resources = ray.cluster_resources()
        gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        count = max(1, min(workers or gpus or 1, len(own)))
        share = max(1, cores // count)
        on_gpu = gpus >= count
        self.orders = rotated(own, count)
        self.server = ray.remote(num_cpus=0)(_Server).remote(len(cases))
        self._ray = ray
        self._cases = ray.put(list(cases))
        self._options = options if on_gpu else replace(options, threads=options.threads or share)
        self._actor = ray.remote(
            num_cpus=1 if on_gpu else share,
            num_gpus=1 if on_gpu else 0,
            max_restarts=0,  # another is started here, with the reason kept
            scheduling_strategy="SPREAD",
        )(_Actor)
        self._actors: dict[int, Any] = {}
        self._ends: dict[int, Any] = {}

    def start(self, number: int) -> None:
        """Start an actor."""
        task = _RayTask(number, [self._cases], self._options, self.orders[number], self.server)
        self._actors[number] = self._actor.remote()
        self._ends[number] = self._actors[number].work.remote(task)

    def heard(self, timeout_s: float) -> Iterator[tuple[int, Event]]:
        """Wait for events; the last of an actor is that it is over."""
        until = time.monotonic() + timeout_s
        while True:
            over = self._over()
            told = self._ray.get(self.server.told.remote())  # after that: it has all that was said
            if told or over or time.monotonic() > until:
                yield from told
                yield from over
                return

    def stop(self) -> Iterator[tuple[int, Event]]:
        """Let actors write what they have begun to write, and end them."""
        self._ray.get(self.server.stop.remote())
        until = time.monotonic() + GRACE_S
        while self._ends and time.monotonic() < until:
            over = self._over()
            yield from self._ray.get(self.server.told.remote())
            yield from over

    def _over(self) -> list[tuple[int, Event]]:
        """Return which actors have ended, and how."""
        if not self._ends:
            return []
        numbers = {end: number for number, end in self._ends.items()}
        ended, _ = self._ray.wait(list(numbers), num_returns=len(numbers), timeout=_LOOK_AFTER_S)
        found: list[tuple[int, Event]] = []
        for end in ended:
            number = numbers[end]
            del self._ends[number], self._actors[number]
            how = "the actor ended"
            try:
                self._ray.get(end)
            except self._ray.exceptions.RayError as error:
                how = f"the actor was lost: {_first_line(error)}"
                self._ray.get(self.server.drop.remote(number))
            found.append((number, ("over", how)))
        return found


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
