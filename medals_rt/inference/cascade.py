"""Which stages a case goes through, on which box, how thoroughly (docs/algorithm.md, section 6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Final

from medals_rt.common.arrays import bounding_box, contiguous, enclosing, namespace
from medals_rt.common.choices import StageNumber
from medals_rt.common.errors import InputError
from medals_rt.common.notes import Note, warning
from medals_rt.common.typing import Array, Box, Shape, Spacing
from medals_rt.inference.corrections import Correction
from medals_rt.inference.hybrid_prompts import fine_prompts, labels_in
from medals_rt.inference.kept import Kept
from medals_rt.inference.network import Network
from medals_rt.inference.probability_maps import StageMaps
from medals_rt.inference.stage import StageInput, StageResult, StageTask, run_stage
from medals_rt.io.volume import to_dhw, to_hwd
from medals_rt.planning.geometry import region_of_interest
from medals_rt.planning.stage_plan import (
    CaseOutline,
    StagePlan,
    StagesOfGroup,
    check_memory,
    seconds_of_both,
    smallest_region_of,
    stage_plans,
)
from medals_rt.planning.time_budget import QUALITY_LEVELS, Budget, Watchdog, choose_stage

ONE_STAGE: Final = "one-stage"
"""Code of the note that says that a result is a single stage's."""
CORRECTED: Final = "corrected"
"""Code of the note that says how much of a result a correction reached."""


@dataclass(frozen=True)
class CaseRun:
    """One case on the network's device, and everything that its stages share.

    Attributes
    ----------
    image_dhw
        `(D, H, W)` float32 in 0..255.
    outline
        What planning has to know of it.
    task
        What every stage has to do.
    budget
        The case's time; None: there is no limit.
    seconds_per_pass
        What a pass of each stage took before, as far as known.
    kept
        What is kept of the image between runs. It is not used where there is a time budget, which
        makes what a window gets depend on the clock.
    on_coarse
        Called with the coarse stage's labels on its own grid `(H, W, D)`, as soon as they are
        known, where a fine stage may replace them.
    corrections
        What a person changed of earlier results of the case, in order.
    """

    image_dhw: Array
    outline: CaseOutline
    task: StageTask
    budget: Budget | None = None
    seconds_per_pass: Mapping[StageNumber, float] | None = None
    kept: Kept | None = None
    on_coarse: Callable[[Array], None] | None = None
    corrections: Sequence[Correction] = ()


@dataclass(frozen=True)
class StageSummary:
    """What one stage did. Axes are (H, W, D), but for the box, which is (D, H, W) of the case.

    `box_dhw` ends one past its last voxel. `spacing_hwd_mm` and `target_spacing_hwd_mm` are the
    image's spacing as dynamic resampling read it and the one that it was brought to
    (`StageGeometry`): only their ratio means anything. `passes` counts the network's encoder
    passes; `iterations` the refinements of a window that holds prompts, one after the other;
    `windows_kept` the windows that needed no pass, because what they need was kept of an earlier
    run; `windows_corrected` those that were shown what a person changed of a result. For memory,
    results were aggregated in `column_blocks` blocks of the image and in `class_groups` groups of
    classes, each of which runs the windows that reach into it: `window_runs` in all. The sums of
    one took `accumulators_mib`; classes were classified `classes_per_chunk` at a time. The process
    was expected to take `expected_peak_mib`.
    """

    name: str
    box_dhw: Box
    spacing_hwd_mm: Spacing
    target_spacing_hwd_mm: Spacing
    resampled_shape_hwd: Shape
    padded_shape_hwd: Shape
    window_hwd: Shape
    windows: int
    passes: int
    iterations: int
    prompts: str
    class_groups: int = 1
    column_blocks: int = 1
    window_runs: int = 0
    classes_per_chunk: int = 0
    accumulators_mib: float = 0.0
    expected_peak_mib: float = 0.0
    windows_kept: int = 0
    windows_corrected: int = 0


@dataclass(frozen=True)
class StageOutcome:
    """A stage's labels (and probability) on the whole grid, its record, and the classes' maps.

    `widened`: the last correction lies outside of what the stage would have looked at without it.
    """

    labels_dhw: Array
    probability_dhw: Array | None
    record: StageSummary
    maps: StageMaps | None = None
    widened: bool = False


def run_stages(
    networks: Mapping[StageNumber, Network], case: CaseRun, annotation_dhw: Array | None
) -> list[StageOutcome]:
    """Run the stages that a case needs; the last one's labels are the result (section 6).

    Parameters
    ----------
    networks
        Of both stages.
    case
        What to run.
    annotation_dhw
        Labels drawn by the user, or None.
    """
    outline = case.outline
    rules = outline.rules
    annotated = labels_in(annotation_dhw)
    outcomes: list[StageOutcome] = []
    prompt_map = annotation_dhw
    runs_coarse = not rules.skip_coarse and bool(
        rules.skip_fine or set(case.task.labels) - annotated
    )
    first: list[StageNumber] = [1] if runs_coarse else []
    stages = first if rules.skip_fine else [*first, 2]
    drawn = annotation_dhw is not None or bool(case.corrections)
    shown_first = drawn and (not runs_coarse or rules.skip_fine)
    _check_limits(networks, case, stages, prompted=shown_first)
    if runs_coarse:
        shown = annotation_dhw if rules.skip_fine else None
        plans = _plans(networks[1], case, outline.whole, prompted=drawn and rules.skip_fine)
        plan = _choose_coarse(networks, case, plans)
        outcomes.append(_run(networks, 1, case, outline.whole, shown, plan))
        if rules.skip_fine:
            return outcomes
        prompt_map = fine_prompts(outcomes[0].labels_dhw, annotation_dhw, lesion=rules.lesion)
    box = None if prompt_map is None else bounding_box(prompt_map > 0)
    changed = [each.changed_box_dhw for each in case.corrections if not each.is_earlier]
    region, widened = outline.whole, False
    if box is None:
        if prompt_map is not None and outcomes and outline.setup.preset.empty_coarse == "final":
            if not changed:
                return [replace(outcomes[0], labels_dhw=prompt_map)]
            region, widened = _region_around(case, networks[2], changed)
        prompt_map = None
    elif outcomes or annotated.issuperset(case.task.labels):
        region, widened = _region_around(case, networks[2], [box, *changed])
    prompted = prompt_map is not None or bool(changed)
    plans = _plans(networks[2], case, region, prompted=prompted)
    of_pass = _seconds_per_pass(networks, case).get(2)
    chosen = _choose(case, "fine", plans, of_pass, may_be_left_out=bool(outcomes))
    if chosen is None and outcomes:
        return outcomes
    # Only the last stage's probability is read; at four bytes a voxel it isn't held for nothing.
    outcomes = [replace(each, probability_dhw=None, maps=None) for each in outcomes]
    last = _run(networks, 2, case, region, prompt_map, chosen or plans[-1])
    return [*outcomes, replace(last, widened=widened)]


def _region_around(case: CaseRun, fine: Network, boxes: Sequence[Box]) -> tuple[Box, bool]:
    """Return what the fine stage looks at, and whether the last of several boxes has widened it.

    A box that lies in what is looked at for those before it changes nothing: windows stay where
    they are, with what they are shown and what is kept of them.
    """
    outline = case.outline

    def around(count: int) -> Box:
        return region_of_interest(
            enclosing(*boxes[:count]),
            outline.setup.shape_dhw,
            outline.setup.spacing_hwd_mm,
            fine.spec,
            outline.rules,
            outline.setup.preset,
        )

    region, widened = around(1), False
    for count, box in enumerate(boxes[1:], 2):
        widened = enclosing(region, box) != region
        if widened:
            region = around(count)
    return region, widened


def stage_notes(case: CaseRun, outcomes: Sequence[StageOutcome]) -> tuple[Note, ...]:
    """Note how far corrections reach, and if a result is a single stage's, why.

    Time that ran out is noted by the budget.
    """
    return (*_correction_notes(case, outcomes[-1]), *_one_stage_notes(case, outcomes))


def _correction_notes(case: CaseRun, last: StageOutcome) -> tuple[Note, ...]:
    """Note which part of a stage was shown corrections."""
    if not case.corrections or case.outline.setup.mode == "none":
        return ()
    record, notes = last.record, []
    if record.windows_corrected:
        text = (
            f"the model looked again in {record.windows_corrected} of the {record.windows} parts "
            f"of the {record.name} stage, those that decide about what was corrected"
        )
        notes.append(Note(CORRECTED, text))
    else:
        text = "there was no time for the model to look again: only the voxels themselves changed"
        notes.append(warning(CORRECTED, text))
    if last.widened:
        text = (
            f"the last correction lies outside of what the {record.name} stage looked at; it "
            "looked at more now, so that the result may have changed elsewhere too"
        )
        notes.append(warning("corrected-outside", text))
    return tuple(notes)


def _one_stage_notes(case: CaseRun, outcomes: Sequence[StageOutcome]) -> tuple[Note, ...]:
    if len(outcomes) > 1 or (case.budget is not None and case.budget.missing):
        return ()
    rules, name = case.outline.rules, outcomes[0].record.name
    if rules.skip_coarse or rules.skip_fine:
        text = f"the result is that of the {name} stage alone"
        if case.outline.setup.preset.stages != name:
            text += ": the preset runs no other for these classes"
    elif name == "coarse":
        text = "the coarse stage found nothing, and the preset takes that as the result"
    else:
        text = "the result is that of the fine stage alone: spatial prompts were given"
    return (Note(ONE_STAGE, text),)


def _check_limits(
    networks: Mapping[StageNumber, Network],
    case: CaseRun,
    stages: Sequence[StageNumber],
    *,
    prompted: bool,
) -> None:
    """Refuse a case that its memory or time can't hold, before any work.

    Parameters
    ----------
    networks, case
        As for `run_stages`.
    stages
        Those that the case goes through.
    prompted
        Whether the first of them has spatial prompts.

    Raises
    ------
    InputError
        ``memory-too-small`` or ``budget-too-small``.
    """
    specs = [networks[number].spec for number in stages]
    check_memory([StagesOfGroup(case.outline, specs, prompted)])
    first, budget = networks[stages[0]], case.budget
    of_pass = _seconds_per_pass(networks, case).get(stages[0])
    if budget is None or of_pass is None or not budget.may_refuse:
        return
    box = smallest_region_of(case.outline, first.spec) if first.spec.is_fine else case.outline.whole
    least = _plans(first, case, box, prompted=prompted)[-1].passes * of_pass
    reason = budget.shortfall(of_pass, least, case.outline.classes)
    if reason is not None:
        raise InputError(reason, code="budget-too-small")


def _plans(network: Network, case: CaseRun, box: Box, *, prompted: bool) -> list[StagePlan]:
    """Plan a stage on a box, from the most thorough quality level to the least."""
    return stage_plans(
        case.outline,
        network.spec,
        box,
        QUALITY_LEVELS if case.budget is not None else QUALITY_LEVELS[:1],
        prompted=prompted,
    )


def _choose_coarse(
    networks: Mapping[StageNumber, Network], case: CaseRun, plans: list[StagePlan]
) -> StagePlan:
    """Choose the coarse stage's quality level so that the smallest fine stage fits after it."""
    seconds = _seconds_per_pass(networks, case)
    after: list[float] = []
    if seconds and not case.outline.rules.skip_fine:
        region = smallest_region_of(case.outline, networks[2].spec)
        smallest = _plans(networks[2], case, region, prompted=True)
        after = [plan.passes * seconds[2] for plan in smallest]
    return _choose(case, "coarse", plans, seconds.get(1), after) or plans[-1]


def _choose(
    case: CaseRun,
    name: str,
    plans: list[StagePlan],
    of_pass: float | None,
    after: Sequence[float] = (),
    *,
    may_be_left_out: bool = False,
) -> StagePlan | None:
    """Choose how a stage is run in the time left (`choose_stage`), and note what it leaves out.

    None: nothing fits; a stage that may not be left out is then run as far as the watchdog lets it.
    """
    budget = case.budget
    if budget is None or of_pass is None:
        return plans[0]
    left = budget.left
    seconds = [plan.passes * of_pass for plan in plans]
    choice = choose_stage(seconds, left, after=after, lesions=case.outline.rules.lesion)
    budget.planned[name] = choice.seconds
    if choice.level is None:
        what = "was not run" if may_be_left_out else "does not fit"
        budget.degrade(
            f"the {name} stage {what}: it takes about {choice.seconds:.1f} s at the least, "
            f"{max(0.0, left):.1f} s were left",
            missing=may_be_left_out,
        )
        return None
    if choice.degraded:
        budget.degrade(f"the {name} stage was run {choice.degraded}")
    return plans[choice.level]


def _run(
    networks: Mapping[StageNumber, Network],
    number: StageNumber,
    case: CaseRun,
    box: Box,
    prompt_map_dhw: Array | None,
    stage_plan: StagePlan,
) -> StageOutcome:
    """Run one stage on a box of the case and paste its result into the whole grid."""
    is_last = number == 2 or case.outline.rules.skip_fine
    inside = tuple(slice(low, high) for low, high in zip(*box, strict=True))
    if case.outline.setup.mode == "none":
        prompt_map_dhw = None
    shows_corrections = is_last and stage_plan.window_pass.mode != "none"  # also when time is short
    of_pass = _seconds_per_pass(networks, case).get(number)
    stage = StageInput(
        networks[number],
        stage_plan,
        case.task,
        box,
        to_hwd(case.image_dhw[inside]),
        prompt_labels_hwd=None if prompt_map_dhw is None else to_hwd(prompt_map_dhw[inside]),
        corrections=case.corrections if shows_corrections else (),
        watchdog=None if case.budget is None else Watchdog(case.budget, of_pass),
        kept=None if case.kept is None or case.budget is not None else case.kept.at(number, box),
        on_labels=None if is_last else case.on_coarse,
    )
    result = run_stage(stage)
    if case.budget is not None:
        _note_lack_of_time(case.budget, stage, result)
    maps = None
    if result.maps_nhwd is not None:
        maps = StageMaps(result.maps_nhwd, case.task.labels, box, case.outline.setup.shape_dhw)
    return StageOutcome(*_pasted(result, inside, case.image_dhw), _summary(stage, result), maps)


def _note_lack_of_time(budget: Budget, stage: StageInput, result: StageResult) -> None:
    """Note which windows of a stage were cut short or left out."""
    runs = stage.plan.memory.window_runs
    windows = "windows" if runs == len(stage.plan.geometry.windows) else "window runs"
    if result.hastened:
        budget.degrade(
            f"{result.hastened} of {runs} {windows} of the {stage.name} stage took fewer passes "
            "than planned, because time ran out"
        )
    if result.left_out:
        is_shown = stage.prompt_labels_hwd is not None
        kept = "the coarse result stands" if is_shown else "they are background"
        budget.degrade(
            f"{result.left_out} of {runs} {windows} of the {stage.name} stage were left out, "
            f"because time ran out: where no other window reaches, {kept}",
            missing=True,
        )


def _summary(stage: StageInput, result: StageResult) -> StageSummary:
    """Write down what a stage did."""
    geometry, memory = stage.plan.geometry, stage.plan.memory
    is_shown = stage.prompt_labels_hwd is not None or bool(stage.corrections)
    window_pass = stage.plan.window_pass if is_shown else stage.plan.window_pass.from_text
    return StageSummary(
        name=stage.name,
        box_dhw=stage.box_dhw,
        spacing_hwd_mm=geometry.spacing_hwd_mm,
        target_spacing_hwd_mm=geometry.target_spacing_hwd_mm,
        resampled_shape_hwd=geometry.resampled_shape_hwd,
        padded_shape_hwd=geometry.padded_shape_hwd,
        window_hwd=geometry.spec.window_hwd,
        windows=len(geometry.windows),
        passes=result.passes,
        iterations=sum(step is not None for step in window_pass.steps),
        prompts=_prompts_in_words(stage.plan, is_shown),
        class_groups=memory.class_groups,
        column_blocks=memory.column_blocks,
        window_runs=memory.window_runs,
        classes_per_chunk=memory.classes_per_chunk,
        accumulators_mib=round(memory.slab_bytes / 2**20, 1),
        expected_peak_mib=round(memory.expected_bytes / 2**20, 1),
        windows_kept=result.kept,
        windows_corrected=result.corrected,
    )


def _prompts_in_words(stage_plan: StagePlan, shown: bool) -> str:
    """Describe what a stage's network was shown beside the image."""
    window_pass = stage_plan.window_pass
    if window_pass.starts_from_text:
        return f"text, then its own labels as {window_pass.mode} spatial prompts"
    return f"text and {window_pass.mode} spatial prompts" if shown else "text only"


def _seconds_per_pass(
    networks: Mapping[StageNumber, Network], case: CaseRun
) -> dict[StageNumber, float]:
    """Return what a pass of each stage takes, as far as known: nothing, or of both stages."""
    known = {**(case.seconds_per_pass or {}), **case.task.measured}
    if not known:
        return {}
    return seconds_of_both(known, {n: prod(each.spec.window_hwd) for n, each in networks.items()})


def _pasted(
    result: StageResult, inside: tuple[slice, ...], image_dhw: Array
) -> tuple[Array, Array | None]:
    """Put a box's labels and probability into arrays of the whole grid."""
    xp = namespace(image_dhw)
    if result.labels_hwd.size == image_dhw.size:
        probability = result.probability_hwd
        whole = None if probability is None else contiguous(to_dhw(probability))
        return contiguous(to_dhw(result.labels_hwd)), whole
    labels = xp.zeros(image_dhw.shape, dtype=result.labels_hwd.dtype)
    labels[inside] = to_dhw(result.labels_hwd)
    if result.probability_hwd is None:
        return labels, None
    probability = xp.zeros(image_dhw.shape, dtype=xp.float32)
    probability[inside] = to_dhw(result.probability_hwd)
    return labels, probability
