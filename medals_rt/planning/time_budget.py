"""Keeping a case within its time: what is planned, and what is left out when it would not fit.

The challenge scores a case zero that takes more than 60 seconds a class, so a
worse segmentation in time is worth more than a better one too late. Quality is reduced in this
order:

1. no further iterations of lesions,
2. half of the windows' overlap (25 % instead of 50 %),
3. no fine stage: the coarse result is the result.

That is chosen before each stage, from what a pass is known to take. While it runs a watchdog looks
at the clock before each window and each further iteration: windows that would come too late are run
from the text alone in one pass, and those for which even that is too slow are left out. What the
fine stage leaves out keeps the coarse result; what the coarse stage leaves out is background.
Nothing interrupts a pass that runs, so the last one may end late by less than a pass.

A budget that does not hold a single pass is refused before any work where it is known what a pass
takes. Where nothing is known, the first window is run as planned and measures it: the coarse stage
then keeps its overlap, since its windows are laid by then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil

from medals_rt.common.errors import InputError
from medals_rt.planning.sliding_window import HALF_OVERLAP

Clock = Callable[[], float]

QUARTER_OVERLAP = 0.25

_RESERVED_SHARE = 0.1
_RESERVED_SECONDS = 0.5
_MOST_RESERVED = 0.5


@dataclass(frozen=True)
class QualityLevel:
    """How thoroughly a stage is run.

    Attributes
    ----------
    iterates
        Lesions get the plan's further iterations.
    overlap
        The largest share of a window that it has in common with the next.
    """

    iterates: bool = True
    overlap: float = 1.0


QUALITY_LEVELS = (
    QualityLevel(),
    QualityLevel(iterates=False),
    QualityLevel(iterates=False, overlap=QUARTER_OVERLAP),
)
"""From everything to the least."""


def degraded_words(level: QualityLevel, *, lesions: bool) -> str:
    """Describe what a level leaves out; iterations only where there would have been some."""
    words = []
    if not level.iterates and lesions:
        words.append("without further iterations")
    if level.overlap < HALF_OVERLAP:
        words.append(f"with windows overlapping by {level.overlap:.0%}")
    return " and ".join(words)


@dataclass
class Budget:
    """The time of one case, counted from `started` on `clock`.

    Attributes
    ----------
    seconds
        In all.
    started
        What the clock showed when the case's time began.
    clock
        Seconds that never go back.
    may_refuse
        Whether a budget that is too small for a pass is refused; not once work has been done for
        the case.
    degraded
        Where quality was reduced to keep the time, in words, for the report.
    missing
        Those of them by which a whole stage or whole windows are missing.
    planned
        Seconds that each stage was expected to take, by stage name.
    taken
        Seconds that it came to, noted when its stages have ended.
    """

    seconds: float
    started: float
    clock: Clock = time.perf_counter
    may_refuse: bool = True
    degraded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    planned: dict[str, float] = field(default_factory=dict)
    taken: float = 0.0

    @property
    def reserved(self) -> float:
        """Seconds kept for what follows the network: going back to the case's grid, writing."""
        return min(
            _RESERVED_SHARE * self.seconds + _RESERVED_SECONDS, _MOST_RESERVED * self.seconds
        )

    @property
    def left(self) -> float:
        """Seconds that the network may still take."""
        return self.started + self.seconds - self.reserved - self.clock()

    def degrade(self, what: str, *, missing: bool = False) -> None:
        """Note once where quality is reduced; `missing`: a whole stage or whole windows are."""
        if what not in self.degraded:
            self.degraded.append(what)
            if missing:
                self.missing.append(what)

    def shortfall(self, of_pass: float, least: float, classes: int) -> str | None:
        """Describe why a budget is too small to hold one pass of the network; None: it is not.

        Parameters
        ----------
        of_pass
            Seconds that the first pass is known to take.
        least
            Seconds of the network that the quickest complete result takes.
        classes
            N, by which the budget is divided.
        """
        left = max(0.0, self.left)
        if of_pass <= left:
            return None
        need = max(of_pass, least) + self.clock() - self.started
        enough = min((need + _RESERVED_SECONDS) / (1 - _RESERVED_SHARE), need / _MOST_RESERVED)
        return (
            f"a time budget of {self.seconds / classes:g} s a class leaves {left:.3g} s for the "
            f"network, one pass of which takes {of_pass:.3g} s here by earlier measurements; allow "
            f"at least {ceil(10 * enough / classes) / 10:g} s a class"
        )

    def record(self) -> dict[str, object]:
        """Return what a report says of it."""
        return {
            "seconds": round(self.seconds, 3),
            "planned_seconds": {name: round(each, 3) for name, each in self.planned.items()},
            "taken_seconds": round(self.taken, 3),
            "degraded": list(self.degraded),
            "missing": list(self.missing),
        }


def case_budget(
    seconds_per_class: float | None,
    classes: int,
    spent: float,
    clock: Clock = time.perf_counter,
    *,
    may_refuse: bool = True,
) -> Budget | None:
    """Make the budget of a case of so many classes, of which some seconds are already spent.

    Parameters
    ----------
    seconds_per_class
        None: there is no limit, and no budget.
    classes
        N.
    spent
        Seconds.
    clock
        Seconds that never go back.
    may_refuse
        See `Budget`.

    Raises
    ------
    InputError
        ``budget-not-positive``: the time is not positive.
    """
    if seconds_per_class is None:
        return None
    seconds = seconds_of_case(seconds_per_class, classes)
    return Budget(seconds, clock() - spent, clock, may_refuse)


def seconds_of_case(seconds_per_class: float, classes: int) -> float:
    """Return the seconds of a case of so many classes.

    Raises
    ------
    InputError
        ``budget-not-positive``: the time is not positive.
    """
    if not 0 < seconds_per_class < float("inf"):
        raise InputError(
            f"a time budget needs a positive number of seconds, not {seconds_per_class}",
            code="budget-not-positive",
        )
    return seconds_per_class * classes


def choose_quality(seconds: Sequence[float], left: float) -> int | None:
    """Choose the first of several levels, from the most thorough to the least, that fits.

    Parameters
    ----------
    seconds
        What each level is expected to take.
    left
        What there is.

    Returns
    -------
    int or None
        Its position; None where none fits.
    """
    return next((k for k, expected in enumerate(seconds) if expected <= left), None)


@dataclass(frozen=True)
class QualityChoice:
    """How thoroughly a stage is run to keep the time.

    Attributes
    ----------
    level
        Position in `QUALITY_LEVELS`; None: none fits.
    seconds
        What it is expected to take; where none fits, what the least would.
    degraded
        What it leaves out, in words; empty where that is nothing.
    """

    level: int | None
    seconds: float
    degraded: str = ""


def choose_stage(
    seconds: Sequence[float], left: float, *, after: Sequence[float] = (), lesions: bool
) -> QualityChoice:
    """Choose the most thorough quality level of a stage that fits.

    Parameters
    ----------
    seconds
        What each of `QUALITY_LEVELS` is expected to take.
    left
        What there is.
    after
        What the stage that follows takes at each of them, at the least. Where no level leaves time
        for that, this stage is to be the result, and gets the time.
    lesions
        Whether there would be further iterations.
    """
    chosen = None
    if after:
        chosen = choose_quality([a + b for a, b in zip(seconds, after, strict=True)], left)
    if chosen is None:
        chosen = choose_quality(seconds, left)
    if chosen is None:
        return QualityChoice(None, seconds[-1])
    # a level that saves nothing over a more thorough one leaves nothing out
    saves = seconds[chosen] < seconds[0]
    words = degraded_words(QUALITY_LEVELS[chosen], lesions=lesions) if saves else ""
    return QualityChoice(chosen, seconds[chosen], words)


class Watchdog:
    """Looks at the clock while a stage runs its windows.

    Parameters
    ----------
    budget
        The case's time.
    seconds_per_pass
        What a pass of this stage is expected to take; None: not known, the first window tells.
    """

    def __init__(self, budget: Budget, seconds_per_pass: float | None) -> None:
        self._budget = budget
        self._expected = seconds_per_pass
        self._passes = 0
        self._seconds = 0.0
        self._began = budget.clock()

    @property
    def seconds_per_pass(self) -> float | None:
        """What a pass takes, as far as known: the slower of all so far and the last window's."""
        if self._passes == 0 or self._expected is None:
            return self._expected
        return max(self._seconds / self._passes, self._expected)

    def choose(self, passes: Sequence[int], windows_left: int) -> int | None:
        """Decide how the next window is run.

        Parameters
        ----------
        passes
            Of one window, for each of several plans, from the most thorough to the least.
        windows_left
            This one and those after it.

        Returns
        -------
        int or None
            The first plan by which all that are left end in time; where none does, the least as
            long as one window of it does; else None: the window is left out.
        """
        left, of_pass = self._budget.left, self.seconds_per_pass
        if of_pass is None:
            return 0
        found = choose_quality([each * windows_left * of_pass for each in passes], left)
        if found is None and passes[-1] * of_pass <= left:
            return len(passes) - 1
        return found

    def allows(self, passes: int, done: int) -> bool:
        """Whether further passes of the window that runs end in time, after those done."""
        of_pass = self.seconds_per_pass
        if of_pass is None:
            of_pass = (self._budget.clock() - self._began) / done
        return passes * of_pass <= self._budget.left

    def window_begins(self) -> None:
        """Start the time of a window."""
        self._began = self._budget.clock()

    def window_ended(self, passes: int) -> None:
        """Count a window of so many passes, which ended now."""
        seconds = self._budget.clock() - self._began
        self._passes += passes
        self._seconds += seconds
        self._expected = seconds / passes
