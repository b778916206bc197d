"""Who does which case: the one schedule of a batch, in one process, in many, and on many machines.

Every case has a cell: one byte that says how far it is, and a lock that its holder has while it
works on it and that ends with the holder. Where cells lie is another matter (`Cells`): in memory,
in a file that many processes open (`shared_cells`), or with the driver of a Ray cluster
(`ray_cluster`). What is done with them is the same everywhere, and is here.

A cell that isn't settled and isn't held, but was begun, is a *suspect*: its holder ended while it
had this case in hand, and perhaps because of it. Suspects wait until all other cases are begun, and
are then done alone: nothing else is in their process' hands, so that no other case is blamed for
one that ends processes. A case that has ended `MOST_ENDED` processes alone is given up.
"""

import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from medals_rt.pipeline.batch.records import Entry

OPEN: Final = ord(".")
"""Nobody has begun it."""
IN_COMPANY: Final = ord("?")
"""Begun by a process that has, or had, other cases in hand."""
ALONE: Final = tuple(b"123")
"""Begun alone for the first, second, third time."""
MOST_ENDED: Final = len(ALONE)

_STATUSES: Final = {"d": "done", "k": "kept", "f": "failed", "s": "skipped"}
"""Letters of settled cells; in upper case where stages or windows are missing for lack of time."""
_SETTLED: Final = {ord(turn(letter)) for letter in _STATUSES for turn in (str.lower, str.upper)}

_BLOCK: Final = 4096
"""Cells that are looked at together."""
_SAMPLE: Final = 4
"""Cells of others that are tried in one round; with many waiting processes, all are soon tried."""
_FIRST_WAIT_S: Final = 0.02
_LONGEST_WAIT_S: Final = 2.0


class Cells(Protocol):
    """One byte for each case and one lock. Only who holds a lock writes its byte."""

    def read(self, start: int, count: int) -> bytes:
        """Return some cells; those that one doesn't hold may be a little old."""

    def write(self, index: int, value: int) -> None:
        """Change a cell that one holds."""

    def hold(self, index: int) -> bool:
        """Take a lock; False where another has it."""

    def free(self, index: int) -> None:
        """Give a lock back."""


class LocalCells:
    """Cells of one process alone; also what others reach through a server process.

    Parameters
    ----------
    count
        How many.
    """

    def __init__(self, count: int) -> None:
        self._values = bytearray([OPEN]) * count
        self._holders: dict[int, object] = {}
        self._lock = threading.Lock()

    def read(self, start: int, count: int) -> bytes:
        """Return some cells."""
        return bytes(self._values[start : start + count])

    def write(self, index: int, value: int) -> None:
        """Change a cell."""
        self._values[index] = value

    def hold(self, index: int, holder: object = None) -> bool:
        """Take a lock for a holder; False where any has it."""
        with self._lock:
            if index in self._holders:
                return False
            self._holders[index] = holder
            return True

    def free(self, index: int) -> None:
        """Give a lock back."""
        with self._lock:
            self._holders.pop(index, None)

    def drop(self, holder: object) -> tuple[int, ...]:
        """Free what a holder that ended had in hand, and return it."""
        with self._lock:
            had = tuple(index for index, each in self._holders.items() if each == holder)
            for index in had:
                del self._holders[index]
            return had


@dataclass(frozen=True)
class Claim:
    """A case in hand: its place in the batch, and what its cell said before."""

    index: int
    before: int

    @property
    def given_up(self) -> bool:
        """Whether it has ended so many processes that it isn't tried again."""
        return self.before == ALONE[-1]


def is_settled(cell: int) -> bool:
    """Whether nothing is left to do for a case."""
    return cell in _SETTLED


def is_suspect(cell: int) -> bool:
    """Whether a cell that nobody holds was begun by a process that ended."""
    return cell == IN_COMPANY or cell in ALONE


def settled_cell(entry: Entry) -> int:
    """Return the cell of a case that ended like this."""
    letter = next(letter for letter, status in _STATUSES.items() if status == entry.status)
    return ord(letter if entry.incomplete is None else letter.upper())


def status_of(cell: int) -> str | None:
    """Return the status that a cell tells, as `Entry.status`; None where it isn't settled."""
    return _STATUSES.get(chr(cell).lower())


@dataclass(frozen=True)
class BatchStanding:
    """How far a batch is, over all who work on it: cases by status, and those lacking stages."""

    by_status: Counter[str]
    incomplete: int

    @property
    def settled(self) -> int:
        """How many ended in one way or another."""
        return self.by_status.total()

    @property
    def finished(self) -> int:
        """How many have a result."""
        return self.by_status["done"] + self.by_status["kept"]


def standing(cells: bytes) -> BatchStanding:
    """Count cells."""
    counts = Counter(cells)
    by_status: Counter[str] = Counter()
    for cell, count in counts.items():
        status = status_of(cell)
        if status is not None:
            by_status[status] += count
    incomplete = sum(count for cell, count in counts.items() if chr(cell) in "DKFS")
    return BatchStanding(by_status, incomplete)


def settle_once(cells: Cells, index: int, work: Callable[[], bool]) -> bool:
    """Do what one process must do for all, unless another has; return whether it was this one.

    `work` returns False where it can't be done yet.

    Waits while another is doing it, and does it itself if that one ends.
    """
    while not cells.hold(index):
        time.sleep(_FIRST_WAIT_S)
    try:
        if is_settled(cells.read(index, 1)[0]):
            return False
        if not work():
            return False
        cells.write(index, ord("d"))
    finally:
        cells.free(index)
    return True


class Claims:
    """What one process takes of a batch's cases. One thread takes them, others may settle them.

    Each cell is looked at a fixed number of times on the way through the cases, whatever their
    number and that of the processes.

    Parameters
    ----------
    cells
        Of all cases.
    own
        Places of the cases that this process may take, in its order.
    elsewhere
        Called with the number of cases that turn out to be settled by others.
    """

    def __init__(
        self,
        cells: Cells,
        own: Sequence[int],
        elsewhere: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.cells = cells
        self._elsewhere = elsewhere
        self._fresh = deque(own)
        self._pending: set[int] = set()
        self._held: dict[int, Claim] = {}
        self._alone = False
        self._stopped = False
        self._changed = threading.Condition()
        self._dice = random.Random()  # noqa: S311 - which of others' cells is looked at first
        self._block: tuple[int, bytes] = (-1, b"")

    def take(self) -> Claim | None:
        """Take the next case; None when all are settled or in this process' hands, or after `stop`.

        Waits while others have cases in hand: those of a process that ends are taken then.
        """
        wait_s = _FIRST_WAIT_S
        with self._changed:
            self._block = (-1, b"")
            while not self._stopped:
                if not self._alone:
                    claim = self._take_fresh() or self._take_pending()
                    if claim is not None or not self._pending:
                        return claim
                if self._changed.wait(wait_s):
                    wait_s = _FIRST_WAIT_S
                else:
                    wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        return None

    def settle(self, claim: Claim, entry: Entry) -> None:
        """Note how a case in hand ended, and let it go."""
        with self._changed:
            self.cells.write(claim.index, settled_cell(entry))
            self._let_go(claim)

    def abandon(self, claim: Claim) -> None:
        """Let a case go as if this process had ended in it: it is tried again, alone."""
        with self._changed:
            self._let_go(claim)

    def stop(self) -> None:
        """Let `take` return at once, from now on."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def release(self) -> None:
        """Let go of what is in hand, as if it had not been taken: nobody died of it."""
        with self._changed:
            for claim in tuple(self._held.values()):
                self.cells.write(claim.index, claim.before)
                self._let_go(claim)

    def _let_go(self, claim: Claim) -> None:
        del self._held[claim.index]
        self.cells.free(claim.index)
        self._alone = False
        self._changed.notify_all()

    def _take_fresh(self) -> Claim | None:
        """Take the next case that nobody has begun."""
        while self._fresh:
            index = self._fresh.popleft()
            seen = self._glance(index)
            if is_settled(seen):
                self._elsewhere(1)
            elif seen != OPEN:
                self._pending.add(index)
            elif (claim := self._claim(index)) is not None:
                return claim
        return None

    def _take_pending(self) -> Claim | None:
        """Take a case that another has let go of, or that was in the hands of one that ended."""
        tried = self._dice.sample(sorted(self._pending), min(_SAMPLE, len(self._pending)))
        for index in tried:
            self._pending.discard(index)
            if (claim := self._claim(index)) is not None:
                return claim
        return None

    def _claim(self, index: int) -> Claim | None:
        """Take a case if that is possible now; what isn't settled is else kept for later."""
        if not self.cells.hold(index):
            self._pending.add(index)
            return None
        before = self.cells.read(index, 1)[0]
        if is_settled(before):
            self.cells.free(index)
            self._elsewhere(1)
            return None
        if is_suspect(before) and (self._held or self._fresh):
            self.cells.free(index)
            self._pending.add(index)
            return None
        claim = Claim(index, before)
        self._alone = is_suspect(before)
        self.cells.write(index, _begun(before))
        self._held[index] = claim
        return claim

    def _glance(self, index: int) -> int:
        """Look at a cell without holding it, a block at a time."""
        start, block = self._block
        if not start <= index < start + len(block):
            start = index
            block = self.cells.read(start, _BLOCK)
            self._block = (start, block)
        return block[index - start]


def _begun(before: int) -> int:
    """Return what a cell says while its case is in hand."""
    if before == OPEN:
        return IN_COMPANY
    if before == IN_COMPANY:
        return ALONE[0]
    return ALONE[min(ALONE.index(before) + 1, MOST_ENDED - 1)]
