"""The schedule, without files or processes: what is taken, in which order, and what is given up."""

import threading
import time
from collections import Counter

import pytest

from medals_rt.pipeline.batch.claims import (
    ALONE,
    IN_COMPANY,
    OPEN,
    Claim,
    Claims,
    LocalCells,
    settle_once,
    standing,
)
from medals_rt.pipeline.batch.records import Entry

DONE = Entry("a", "", "", "done")
FAILED = Entry("a", "", "", "failed")
LATE = Entry("a", "", "", "done", incomplete="fine")


class CountedCells(LocalCells):
    """Cells that count what is asked of them."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.asked: Counter[str] = Counter()

    def read(self, start: int, count: int) -> bytes:
        self.asked["read"] += 1
        return super().read(start, count)

    def hold(self, index: int, holder: object = None) -> bool:
        self.asked["hold"] += 1
        return super().hold(index, holder)


def take(claims: Claims) -> Claim:
    claim = claims.take()
    assert claim is not None
    return claim


def end_process(cells: LocalCells, claims: Claims) -> None:
    """Let the locks go as the system does when a process ends: bytes stay as they are."""
    for index in tuple(claims._held):
        cells.free(index)


def test_one_process_takes_all_in_order() -> None:
    cells = LocalCells(3)
    claims = Claims(cells, range(3))
    for index in range(3):
        claim = take(claims)
        assert claim == Claim(index, OPEN)
        claims.settle(claim, DONE)
    assert claims.take() is None
    assert cells.read(0, 3) == b"ddd"


def test_two_processes_share_and_nothing_is_taken_twice() -> None:
    cells = LocalCells(6)
    heard: list[int] = []
    first, second = Claims(cells, range(6), heard.append), Claims(cells, [3, 4, 5, 0, 1, 2])
    taken = [take(each).index for each in (first, second, first, second)]
    assert taken == [0, 3, 1, 4]
    for claims in (first, second):
        for claim in tuple(claims._held.values()):
            claims.settle(claim, DONE)
    rest = [take(first), take(first)]
    assert [claim.index for claim in rest] == [2, 5]
    assert sum(heard) == 2  # the two that the second has settled
    for claim in rest:
        first.settle(claim, FAILED)
    assert first.take() is None
    assert second.take() is None
    assert cells.read(0, 6) == b"ddfddf"


def test_what_a_process_had_in_hand_is_done_last_and_alone() -> None:
    cells = LocalCells(4)
    dying = Claims(cells, range(4))
    take(dying), take(dying)
    end_process(cells, dying)
    claims = Claims(cells, range(4))
    fresh = [take(claims), take(claims)]
    assert [claim.index for claim in fresh] == [2, 3]
    got: list[Claim | None] = []
    waiting = threading.Thread(target=lambda: got.append(claims.take()))
    waiting.start()
    time.sleep(0.1)
    assert not got  # others are in hand
    for claim in fresh:
        claims.settle(claim, DONE)
    waiting.join(180)
    (alone,) = got
    assert alone is not None
    assert alone.before == IN_COMPANY
    waiting = threading.Thread(target=lambda: got.append(claims.take()))
    waiting.start()
    time.sleep(0.1)
    assert len(got) == 1  # nothing beside it
    claims.settle(alone, DONE)
    waiting.join(180)
    last = got[1]
    assert last is not None
    assert {alone.index, last.index} == {0, 1}


def test_a_case_that_ends_three_processes_alone_is_given_up() -> None:
    cells = LocalCells(1)
    befores = []
    for _ in range(5):
        claims = Claims(cells, [0])
        claim = take(claims)
        befores.append(claim.before)
        if claim.given_up:
            claims.settle(claim, FAILED)
            break
        end_process(cells, claims)
    assert befores == [OPEN, IN_COMPANY, *ALONE]
    assert cells.read(0, 1) == b"f"


def test_what_is_let_go_was_never_taken() -> None:
    cells = LocalCells(2)
    claims = Claims(cells, range(2))
    take(claims), take(claims)
    claims.stop()
    claims.release()
    assert claims.take() is None
    assert cells.read(0, 2) == bytes([OPEN, OPEN])
    assert all(map(cells.hold, range(2)))


def test_who_waits_takes_what_another_lets_go() -> None:
    cells = LocalCells(1)
    holder, waiter = Claims(cells, [0]), Claims(cells, [0])
    take(holder)
    got: list[Claim | None] = []
    thread = threading.Thread(target=lambda: got.append(waiter.take()))
    thread.start()
    time.sleep(0.05)
    assert not got
    holder.release()
    thread.join(180)
    assert got == [Claim(0, OPEN)]


def test_stopping_ends_the_waiting() -> None:
    cells = LocalCells(1)
    take(Claims(cells, [0]))
    waiter = Claims(cells, [0])
    threading.Timer(0.05, waiter.stop).start()
    assert waiter.take() is None


@pytest.mark.parametrize("count", [10_000, 40_000])
def test_work_grows_with_the_cases_alone(count: int) -> None:
    cells = CountedCells(count)
    processes = [
        Claims(cells, [*range(start, count), *range(start)])
        for start in range(0, count, count // 8)
    ]
    while any([_settle_next(each) for each in processes]):  # noqa: C419 - each one in each round
        pass
    assert standing(cells.read(0, count)).by_status == {"done": count}
    assert cells.asked["hold"] <= 1.01 * count
    assert cells.asked["read"] <= 2.1 * count


def _settle_next(claims: Claims) -> bool:
    claim = claims.take()
    if claim is not None:
        claims.settle(claim, DONE)
    return claim is not None


def test_standing() -> None:
    now = standing(b"ddDk.?1fsS")
    assert now.by_status == {"done": 3, "kept": 1, "failed": 1, "skipped": 2}
    assert (now.finished, now.settled, now.incomplete) == (4, 7, 2)
    claims = Claims(cells := LocalCells(1), [0])
    claims.settle(take(claims), LATE)
    assert standing(cells.read(0, 1)).incomplete == 1


def test_one_of_all_writes_the_tables() -> None:
    cells = LocalCells(1)
    done: list[int] = []
    assert not settle_once(cells, 0, lambda: False)  # not all cases are settled
    threads = [
        threading.Thread(target=settle_once, args=(cells, 0, lambda: done.append(1) or True))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(180)
    assert done == [1]


def test_what_a_lost_holder_had_is_free() -> None:
    cells = LocalCells(3)
    assert cells.hold(0, "a")
    assert cells.hold(1, "b")
    assert cells.hold(2, "a")
    assert cells.drop("a") == (0, 2)
    assert [cells.hold(index) for index in range(3)] == [True, False, True]
