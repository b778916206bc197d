"""What a case will cost, before it is run: geometry, passes, memory, time, and a budget's choices.

The same plans and choices that a run makes (`stage_plan`, `time_budget`), on the figures known
beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

from medals_rt.bundle.stage_spec import StageSpec
from medals_rt.common.choices import StageNumber
from medals_rt.common.errors import InputError
from medals_rt.common.notes import Note
from medals_rt.common.typing import Shape, Spacing
from medals_rt.planning.pass_timings import MeasuredPasses
from medals_rt.planning.stage_plan import (
    CaseOutline,
    CaseSetup,
    StagePlan,
    StagesOfGroup,
    check_memory,
    outline_groups,
    seconds_of_both,
    smallest_region_of,
    stage_plans,
)
from medals_rt.planning.time_budget import QUALITY_LEVELS, Budget, choose_stage, seconds_of_case
from medals_rt.prompts.classes import ClassKey


@dataclass(frozen=True)
class StageCost:
    """One stage of a dry run, axes (H, W, D).

    All figures are those of the whole image. The fine stage usually looks at a region of interest
    that only the coarse result tells: `windows_smallest_region` and `passes_smallest_region` are
    those of the smallest one. A pass is one run of the image encoder with what follows it; windows
    without any coarse prediction will need fewer. For memory, results are aggregated in
    `column_blocks` blocks of the image and in `class_groups` groups of classes, each of which runs
    the windows that reach into it: `window_runs` in all. The sums of one take `accumulators_mib`.
    `passes_by_quality` are those of each quality level, for the whole image and for the smallest
    region, the first of which are `passes` and `passes_smallest_region`.

    A case whose classes want several CT windows is run once for each: `intensity_window` names the
    one (None: there is only one), and `classes` counts those that want it.
    `further_iterations` are those of lesions; without `lesions` none are run.
    """

    stage: StageNumber
    intensity_window: str | None
    classes: int
    lesions: bool
    spacing_hwd_mm: Spacing
    target_spacing_hwd_mm: Spacing
    input_shape_hwd: Shape
    resampled_shape_hwd: Shape
    padded_shape_hwd: Shape
    window_hwd: Shape
    windows: int
    windows_smallest_region: int
    further_iterations: int
    passes: int
    passes_smallest_region: int
    passes_by_quality: tuple[int, ...]
    passes_by_quality_smallest_region: tuple[int, ...]
    window_runs: int
    class_groups: int
    column_blocks: int
    accumulators_mib: int
    peak_memory_mib: int
    seconds_per_pass: float | None = None


@dataclass(frozen=True)
class StageChoice:
    """What a run within a time budget would do with a stage.

    Attributes
    ----------
    stage
        1 or 2.
    intensity_window
        Of which group of classes, as in `StageCost`.
    runs
        Whether it would be run at all.
    fits
        Whether it would end in time. A stage that is run without that is cut short as it goes.
    degraded
        What it would leave out, in words; empty for nothing.
    expected_seconds
        What it would take; of a stage that is not run, the least that it could.
    """

    stage: StageNumber
    intensity_window: str | None
    runs: bool
    fits: bool
    degraded: str
    expected_seconds: float


@dataclass(frozen=True)
class BudgetPlan:
    """What a run within a time budget would do.

    `seconds` is for the case, of which `network_seconds` are left to the networks; what reading the
    case and opening the models takes comes off that. The stages' choices are for the smallest
    region of interest and for the whole image; None where no pass of the bundle was measured, or
    where a run would be refused, `refused` then says why.
    """

    seconds_per_class: float
    seconds: float
    network_seconds: float
    smallest_region: tuple[StageChoice, ...] | None = None
    whole_image: tuple[StageChoice, ...] | None = None
    refused: str | None = None


@dataclass(frozen=True)
class CasePlan:
    """The dry run of a case.

    `algorithm` are the values of the preset that options may replace. `expected_seconds` is (least,
    most), for the smallest region of interest and for the whole image: passes times the bundle's
    last measured pass on this machine. None where none was measured. `expected_peak_memory_mib` is
    the estimated peak of the process with `runner` in `precision`. `time_budget` is None where none
    was set.
    """

    preset: str
    algorithm: dict[str, object]
    refinement: str
    runner: str
    precision: str
    classes: tuple[str, ...]
    stages: tuple[StageCost, ...]
    expected_peak_memory_mib: int
    expected_seconds: tuple[float, float] | None = None
    measured_on: str | None = None
    time_budget: BudgetPlan | None = None
    notes: tuple[Note, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def plan_case(
    setup: CaseSetup, groups: Mapping[str, Sequence[ClassKey]], *, stage: StageNumber | None = None
) -> CasePlan:
    """Plan a case of which only shape, spacing and classes are known.

    Parameters
    ----------
    setup
        The case, what will run it, and what it may hold (`memory.dry_run_limit`).
    groups
        The classes by the intensity window in which they are run, each as if it were the only one.
    stage
        1 or 2: that stage, whatever the classes go through; None: those that they go through.

    Raises
    ------
    InputError
        ``not-positive``: a size or spacing is not; there is no class, or ``memory-too-small`` (see
        `check_memory`).
    """
    shape_dhw, spacing_hwd_mm, model = setup.shape_dhw, setup.spacing_hwd_mm, setup.model
    if min(shape_dhw) < 1 or not all(0 < s < float("inf") for s in spacing_hwd_mm):
        raise InputError(
            f"a shape needs three positive sizes and a spacing three positive lengths, "
            f"not {shape_dhw} and {spacing_hwd_mm}",
            code="not-positive",
        )
    costs: list[StageCost] = []
    outlines = outline_groups(setup, groups.values())
    planned = [
        StagesOfGroup(
            outline, outline.stages if stage is None else [model.stages[stage - 1]], prompted=False
        )
        for outline in outlines
    ]
    check_memory(planned)
    for window, group in zip(groups, planned, strict=True):
        name = window if len(groups) > 1 else None
        costs += [_cost(group.outline, name, spec) for spec in group.stages]
    return CasePlan(
        preset=setup.preset.name,
        algorithm=setup.preset.values(),
        refinement=setup.mode,
        runner=model.runner,
        precision=model.precision,
        classes=tuple(str(key) for classes in groups.values() for key in classes),
        stages=tuple(costs),
        expected_peak_memory_mib=max((cost.peak_memory_mib for cost in costs), default=0),
    )


def with_seconds(plan: CasePlan, measured: MeasuredPasses | None) -> CasePlan:
    """Add the expected seconds to a plan, where every stage of it was measured."""
    if measured is None:
        return plan
    costs = tuple(
        replace(cost, seconds_per_pass=measured.seconds_per_pass.get(cost.stage))
        for cost in plan.stages
    )
    expected = None
    if all(cost.seconds_per_pass is not None for cost in costs):
        smallest = sum((cost.seconds_per_pass or 0) * cost.passes_smallest_region for cost in costs)
        whole = sum((cost.seconds_per_pass or 0) * cost.passes for cost in costs)
        # Dynamic resampling may enlarge a small box so much that it takes longer than the whole.
        expected = (round(min(smallest, whole), 2), round(max(smallest, whole), 2))
    return replace(plan, stages=costs, expected_seconds=expected, measured_on=measured.runner)


def with_time_budget(plan: CasePlan, seconds_per_class: float | None) -> CasePlan:
    """Add what a run would do to keep a time budget, if its passes take what is expected.

    Other steps are taken to need no time.

    Parameters
    ----------
    plan
        With its seconds, of all stages that the case goes through.
    seconds_per_class
        The budget; None: the plan stays as it is.

    Raises
    ------
    InputError
        ``budget-not-positive``: the time is not positive.
    """
    if seconds_per_class is None:
        return plan
    groups: dict[str | None, list[StageCost]] = {}
    for cost in plan.stages:
        groups.setdefault(cost.intensity_window, []).append(cost)
    budgets = [_budget(seconds_per_class, costs, spent=0.0) for costs in groups.values()]
    budget = BudgetPlan(
        seconds_per_class,
        seconds_of_case(seconds_per_class, len(plan.classes)),
        round(sum(each.left for each in budgets), 2),
    )
    known = {c.stage: c.seconds_per_pass for c in plan.stages if c.seconds_per_pass is not None}
    if known:
        of_pass = seconds_of_both(known, {c.stage: prod(c.window_hwd) for c in plan.stages})
        first = plan.stages[0]
        least = first.passes_by_quality_smallest_region[-1] * of_pass[first.stage]
        budget = replace(
            budget, refused=budgets[0].shortfall(of_pass[first.stage], least, first.classes)
        )
        if budget.refused is None:
            budget = replace(
                budget,
                smallest_region=_choices(seconds_per_class, groups, of_pass, smallest_region=True),
                whole_image=_choices(seconds_per_class, groups, of_pass, smallest_region=False),
            )
    return replace(plan, time_budget=budget)


def _budget(seconds_per_class: float, costs: Sequence[StageCost], spent: float) -> Budget:
    """Return the budget of a group of classes, of which some seconds are spent."""
    seconds = seconds_of_case(seconds_per_class, costs[0].classes)
    return Budget(seconds, started=-spent, clock=lambda: 0.0)


def _choices(
    seconds_per_class: float,
    groups: Mapping[str | None, Sequence[StageCost]],
    of_pass: Mapping[StageNumber, float],
    *,
    smallest_region: bool,
) -> tuple[StageChoice, ...]:
    """Go through groups and stages as a run does.

    A group has the time of its classes, and what earlier groups left of theirs. The coarse stage
    leaves time for the smallest fine one.
    """
    choices: list[StageChoice] = []
    spent = allotted = 0.0
    for window, costs in groups.items():
        left = _budget(seconds_per_class, costs, spent - allotted).left
        allotted += seconds_of_case(seconds_per_class, costs[0].classes)
        for number, cost in enumerate(costs):
            passes = cost.passes_by_quality
            if smallest_region:
                passes = cost.passes_by_quality_smallest_region
            seconds = [each * of_pass[cost.stage] for each in passes]
            after = [
                each * of_pass[later.stage]
                for later in costs[number + 1 :]
                for each in later.passes_by_quality_smallest_region
            ]
            choice = choose_stage(seconds, left, after=after, lesions=cost.lesions)
            fits = choice.level is not None
            runs = fits or number == 0
            choices.append(
                StageChoice(
                    cost.stage, window, runs, fits, choice.degraded, round(choice.seconds, 2)
                )
            )
            taken = choice.seconds if fits else max(0.0, left) if runs else 0.0
            left -= taken
            spent += taken
    return tuple(choices)


def _cost(outline: CaseOutline, intensity_window: str | None, spec: StageSpec) -> StageCost:
    """Count windows and passes of a stage at each quality level."""
    prompted = spec.is_fine and not outline.rules.skip_coarse
    region = smallest_region_of(outline, spec) if prompted else outline.whole
    whole, smallest = (
        stage_plans(outline, spec, box, QUALITY_LEVELS, prompted=prompted)
        for box in (outline.whole, region)
    )
    geometry, memory = whole[0].geometry, whole[0].memory
    return StageCost(
        stage=spec.number,
        intensity_window=intensity_window,
        classes=outline.classes,
        lesions=outline.rules.lesion,
        spacing_hwd_mm=geometry.spacing_hwd_mm,
        target_spacing_hwd_mm=geometry.target_spacing_hwd_mm,
        input_shape_hwd=geometry.input_shape_hwd,
        resampled_shape_hwd=geometry.resampled_shape_hwd,
        padded_shape_hwd=geometry.padded_shape_hwd,
        window_hwd=spec.window_hwd,
        windows=len(geometry.windows),
        windows_smallest_region=len(smallest[0].geometry.windows),
        further_iterations=geometry.iterations,
        passes=whole[0].passes,
        passes_smallest_region=smallest[0].passes,
        passes_by_quality=_passes(whole),
        passes_by_quality_smallest_region=_passes(smallest),
        window_runs=memory.window_runs,
        class_groups=memory.class_groups,
        column_blocks=memory.column_blocks,
        accumulators_mib=memory.slab_bytes // 2**20,
        peak_memory_mib=memory.expected_bytes // 2**20,
    )


def _passes(plans: Sequence[StagePlan]) -> tuple[int, ...]:
    return tuple(plan.passes for plan in plans)
