"""Whoever starts workers hears how it goes, replaces one that ends before its time, and ends them.

The same for processes of one machine (`workers`) and actors of a cluster (`ray_cluster`).
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Protocol, TypeAlias

from medals_rt.common.errors import RunnerError
from medals_rt.pipeline.batch.claims import Cells, is_settled
from medals_rt.pipeline.batch.plan import BatchCase
from medals_rt.pipeline.batch.records import Entry, note_end
from medals_rt.pipeline.batch.run import Listener

GRACE_S: Final = 60.0
"""What a worker may take to write the case that it has begun to write."""
MOST_BARREN: Final = 3
"""Workers that may end since one has last taken a case."""
_COUNT_AFTER_S: Final = 5.0

Event: TypeAlias = tuple[Any, ...]
"""A method of `Listener` and its arguments; ``("raised", error)``, ``("finished",)``, ``("lost",
why)`` of a worker whose GPU failed; or, last of all that is heard of a worker, ``("over",
how)``."""


class Crew(Protocol):
    """Workers by number."""

    def start(self, number: int) -> None:
        """Start a worker, or another one in its place."""

    def heard(self, timeout_s: float) -> Iterator[tuple[int, Event]]:
        """Wait for events of workers, no longer than this."""

    def stop(self) -> Iterator[tuple[int, Event]]:
        """End all workers, and pass on what they still say."""


class Teller(ABC):
    """A worker's `Listener`: passes on what it hears as events."""

    @abstractmethod
    def tell(self, *event: object) -> None:
        """Pass an event on; calls may come from several threads."""

    def taken(self, index: int) -> None:
        """See `Listener`."""
        self.tell("taken", index)

    def started(self, case: BatchCase) -> None:
        """See `Listener`."""
        self.tell("started", case)

    def windows(self, stage: str, done: int, total: int) -> None:
        """See `Listener`."""
        self.tell("windows", stage, done, total)

    def ended(self, index: int, entry: Entry) -> None:
        """See `Listener`."""
        self.tell("ended", index, entry)

    def elsewhere(self, count: int) -> None:  # noqa: B027 - what it does is nothing
        """Tell nothing: who started the workers counts what none of them has settled."""


def rotated(own: Sequence[int], count: int) -> list[tuple[int, ...]]:
    """Return the same places in an order for each of some workers, each beginning elsewhere."""
    firsts = [len(own) * number // count for number in range(count)]
    return [(*own[first:], *own[:first]) for first in firsts]


def supervise(
    crew: Crew,
    count: int,
    listener: Listener,
    cases: Sequence[BatchCase],
    cells: Cells,
    own: Sequence[int],
) -> dict[int, Entry]:
    """Have workers do the cases; return the entries of those that ended with them, by place.

    Parameters
    ----------
    crew, count
        The workers, and how many.
    listener
        Hears how it goes.
    cases, cells, own
        As for `run_cases`.

    Raises
    ------
    RunnerError
        Workers end and take no case.
    MedalsError
        What a worker raised.
    """
    hearing = _Hearing(listener, count)
    alive = set(range(count))
    try:
        for number in range(count):
            crew.start(number)
        while alive:
            for number, event in crew.heard(_COUNT_AFTER_S):
                if event[0] != "over":
                    hearing.hear(number, event)
                elif number in hearing.finished:
                    alive.discard(number)
                else:
                    hearing.ended_before_its_time(number, event[1], cases, cells)
                    crew.start(number)
            hearing.count_others(cells, own)
    finally:
        for number, event in crew.stop():
            if event[0] in {"taken", "ended"}:
                hearing.hear(number, event)
    return dict(sorted(hearing.entries.items()))


class _Hearing:
    """What is heard of all workers."""

    def __init__(self, listener: Listener, count: int) -> None:
        self.entries: dict[int, Entry] = {}
        self.finished: set[int] = set()
        self._listener = listener
        self._in_hand: list[set[int]] = [set() for _ in range(count)]
        self._lost: dict[int, str] = {}
        self._barren = 0
        self._others = 0
        self._counted_at = time.monotonic()

    def hear(self, number: int, event: Event) -> None:
        """Hear what a worker says, and pass it on.

        Raises
        ------
        MedalsError
            The worker did.
        """
        what, *more = event
        if what == "raised":
            raise more[0]
        if what == "finished":
            self.finished.add(number)
            return
        if what == "lost":  # of what it had in hand only one case is to blame, as it has noted
            self._lost[number] = more[0]
            self._in_hand[number].clear()
            return
        if what == "taken":
            self._in_hand[number].add(more[0])
            self._barren = 0
        elif what == "ended":
            index, entry = more
            self._in_hand[number].discard(index)
            self.entries[index] = entry
        getattr(self._listener, what)(*more)

    def ended_before_its_time(
        self, number: int, how: str, cases: Sequence[BatchCase], cells: Cells
    ) -> None:
        """Note with its cases how a worker ended.

        Raises
        ------
        RunnerError
            It is one of several that took no case.
        """
        how = self._lost.pop(number, how)
        _note_ends(cases, cells, self._in_hand[number], how)
        self._in_hand[number].clear()
        self._barren += 1
        if self._barren > MOST_BARREN:
            raise RunnerError(
                f"{self._barren} workers ended one after the other and took no case; the last: "
                f"{how}",
                code="workers-end",
            )

    def count_others(self, cells: Cells, own: Sequence[int]) -> None:
        """Count, now and then, the cases that none of the workers has settled."""
        if not own or time.monotonic() < self._counted_at + _COUNT_AFTER_S:
            return
        values = cells.read(0, max(own) + 1)
        others = sum(is_settled(values[index]) for index in own) - len(self.entries)
        if others > self._others:
            self._listener.elsewhere(others - self._others)
            self._others = others
        self._counted_at = time.monotonic()


def _note_ends(cases: Sequence[BatchCase], cells: Cells, in_hand: Iterable[int], how: str) -> None:
    """Note how a worker ended with the cases that it had in hand, if nobody has taken them up."""
    for index in in_hand:
        if cells.hold(index):
            try:
                if not is_settled(cells.read(index, 1)[0]):
                    note_end(cases[index], how)
            finally:
                cells.free(index)
