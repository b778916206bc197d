"""What a run within a time budget would do, before it is run: by the choices that a run makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from medals_rt.planning.time_budget import Budget, choose_stage, seconds_of_case

SecondsByQuality: TypeAlias = Mapping[int, Sequence[float]]
"""By stage number, what it is expected to take at each of `budget.QUALITY_LEVELS`."""


@dataclass(frozen=True)
class StageChoice:
    """What a run within a time budget would do with a stage.

    Attributes
    ----------
    stage
        1 or 2.
    runs
        Whether it would be run at all.
    fits
        Whether it would end in time. A stage that is run without that is cut short as it goes.
    gives_up
        What it would leave out, in words; empty for nothing.
    expected_seconds
        What it would take; of a stage that is not run, the least that it could.
    """

    stage: int
    runs: bool
    fits: bool
    gives_up: str
    expected_seconds: float


@dataclass(frozen=True)
class BudgetPlan:
    """What a run within a time budget would do.

    `seconds` is for the case, of which `network_seconds` are left to the networks; what reading the
    case and opening the models takes comes off that. The stages' choices are for the smallest
    region of interest and for the whole image; None where no pass of the bundle was measured.
    """

    seconds_per_class: float
    seconds: float
    network_seconds: float
    smallest_region: tuple[StageChoice, ...] | None = None
    whole_image: tuple[StageChoice, ...] | None = None


def plan_budget(
    seconds_per_class: float,
    classes: int,
    *,
    smallest: SecondsByQuality | None,
    whole: SecondsByQuality | None,
    lesions: bool,
) -> BudgetPlan:
    """Choose as a run would whose passes take what is expected and whose other steps take nothing.

    Parameters
    ----------
    seconds_per_class
        The budget.
    classes
        N.
    smallest, whole
        Of the stages that the case goes through, for the smallest region of interest and for the
        whole image; None: not known.
    lesions
        Whether there are further iterations to give up.

    Raises
    ------
    InputError
        The time is not positive.
    """
    budget = Budget(seconds_of_case(seconds_per_class, classes), started=0.0, clock=lambda: 0.0)
    return BudgetPlan(
        seconds_per_class,
        budget.seconds,
        round(budget.left, 2),
        *(
            None
            if seconds is None or smallest is None
            else _choices(seconds, smallest, budget.left, lesions=lesions)
            for seconds in (smallest, whole)
        ),
    )


def _choices(
    seconds: SecondsByQuality, smallest: SecondsByQuality, left: float, *, lesions: bool
) -> tuple[StageChoice, ...]:
    """Go through the stages as a run does: the coarse one leaves time for the smallest fine one."""
    choices: list[StageChoice] = []
    for stage, of_efforts in sorted(seconds.items()):
        after = smallest.get(2, ()) if stage == 1 else ()
        choice = choose_stage(of_efforts, left, after=after, lesions=lesions)
        fits = choice.effort is not None
        runs = fits or not choices
        choices.append(StageChoice(stage, runs, fits, choice.gives_up, round(choice.seconds, 2)))
        left -= choice.seconds
    return tuple(choices)
