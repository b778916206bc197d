"""Which stages a case goes through, on which box, and how thoroughly (system rules 5 to 7)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from medals_rt.common.arrays import bounding_box, namespace, settle
from medals_rt.common.choices import STAGE_NAMES, StageNumber
from medals_rt.common.progress import Progress
from medals_rt.common.stopwatch import Stopwatch
from medals_rt.common.typing import Array, Box, Shape, Spacing
from medals_rt.inference.hybrid_prompts import fine_prompts, labels_in
from medals_rt.inference.network import Network
from medals_rt.inference.stage import StageResult, StageTask, run_stage
from medals_rt.io.volume import to_dhw, to_hwd
from medals_rt.planning.geometry import region_of_interest
from medals_rt.planning.stage_plan import (
    CaseOutline,
    StagePlan,
    seconds_of_both,
    smallest_region_of,
    stage_plans,
)
from medals_rt.planning.time_budget import QUALITY_LEVELS, Budget, Watchdog, choose_stage


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
    keep_probability
        The last stage's largest probability is needed.
    watch, progress
        Where seconds and windows are reported.
    budget
        The case's time; None: there is no limit.
    seconds_per_pass
        What a pass of each stage took before, as far as known.
    """

    image_dhw: Array
    outline: CaseOutline
    task: StageTask
    keep_probability: bool
    watch: Stopwatch
    progress: Progress | None = None
    budget: Budget | None = None
    seconds_per_pass: Mapping[int, float] | None = None


@dataclass(frozen=True)
class StageSummary:
    """What one stage did. Axes are (H, W, D), but for the box, which is (D, H, W) of the case.

    `spacing_mm_hwd` is the image's spacing as dynamic resampling read it. `passes` counts the
    network's encoder passes; `iterations` the masked refinements of a window. For memory, results
    were aggregated in `column_blocks` blocks of the image and in `class_groups` groups of classes,
    each of which runs the windows that reach into it: `window_runs` in all. The sums of one took
    `accumulators_mib`; classes were classified `classes_per_chunk` at a time.
    """

    name: str
    box_dhw: Box
    spacing_mm_hwd: Spacing
    target_spacing_mm_hwd: Spacing
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


@dataclass(frozen=True)
class StageOutcome:
    """A stage's labels (and probability) on the whole grid, and its record."""

    labels_dhw: Array
    probability_dhw: Array | None
    record: StageSummary


def run_stages(
    networks: Mapping[StageNumber, Network], case: CaseRun, annotation_dhw: Array | None
) -> list[StageOutcome]:
    """Run the stages that a case needs; the last one's labels count (section 6).

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
    seconds = _seconds_per_pass(networks, case)
    outcomes: list[StageOutcome] = []
    prompt_map = annotation_dhw
    if not rules.skip_coarse and (rules.skip_fine or set(case.task.labels) - annotated):
        shown = annotation_dhw if rules.skip_fine else None
        plans = _plans(networks[1], case, outline.whole, prompted=shown is not None)
        stage_plan = _choose_coarse(networks[2], case, plans, seconds)
        outcomes.append(_run(networks[1], case, outline.whole, shown, stage_plan, seconds))
        if rules.skip_fine:
            return outcomes
        prompt_map = fine_prompts(outcomes[0].labels_dhw, annotation_dhw, lesion=rules.lesion)
    box = None if prompt_map is None else bounding_box(prompt_map > 0)
    region = outline.whole
    if box is None:
        prompt_map = None
    else:
        region = region_of_interest(
            box,
            outline.shape_dhw,
            outline.spacing_hwd_mm,
            networks[2].spec,
            rules,
            outline.preset,
        )
    plans = _plans(networks[2], case, region, prompted=prompt_map is not None)
    fine_seconds = [each.passes * seconds[2] for each in plans]
    chosen = _choose(case, "fine", fine_seconds, may_be_left_out=bool(outcomes))
    if chosen is None and outcomes:
        return outcomes
    stage_plan = plans[-1 if chosen is None else chosen]
    return [*outcomes, _run(networks[2], case, region, prompt_map, stage_plan, seconds)]


def _plans(network: Network, case: CaseRun, box: Box, *, prompted: bool) -> list[StagePlan]:
    """Plan a stage on a box, from the highest quality level to the lowest."""
    return stage_plans(
        case.outline,
        network.spec,
        box,
        QUALITY_LEVELS if case.budget is not None else QUALITY_LEVELS[:1],
        prompted=prompted,
        precision=network.info.precision,
    )


def _choose_coarse(
    fine: Network, case: CaseRun, plans: list[StagePlan], seconds: Mapping[int, float]
) -> StagePlan:
    """Choose the coarse stage's quality level so that the smallest fine stage fits after it."""
    after: list[float] = []
    if not case.outline.rules.skip_fine and case.budget is not None:
        region = smallest_region_of(case.outline, fine.spec)
        smallest = _plans(fine, case, region, prompted=True)
        after = [each.passes * seconds[2] for each in smallest]
    alone = [each.passes * seconds[1] for each in plans]
    chosen = _choose(case, "coarse", alone, after)
    return plans[-1 if chosen is None else chosen]


def _choose(
    case: CaseRun,
    name: str,
    seconds: list[float],
    after: Sequence[float] = (),
    *,
    may_be_left_out: bool = False,
) -> int | None:
    """Choose how a stage is run in the time left (`choose_stage`), and note what that leaves out.

    None: nothing fits; a stage that may not be left out is then run as far as the watchdog lets it.
    """
    budget = case.budget
    if budget is None:
        return 0
    left = budget.left
    choice = choose_stage(seconds, left, after=after, lesions=case.outline.rules.lesion)
    budget.planned[name] = choice.seconds
    if choice.effort is None:
        what = "was not run" if may_be_left_out else "does not fit"
        budget.degrade(
            f"the {name} stage {what}: it takes about {choice.seconds:.1f} s at the least, "
            f"{max(0.0, left):.1f} s were left"
        )
    elif choice.gives_up:
        budget.degrade(f"the {name} stage was run {choice.gives_up}")
    return choice.effort


def _run(
    network: Network,
    case: CaseRun,
    box: Box,
    prompt_map_dhw: Array | None,
    stage_plan: StagePlan,
    seconds: Mapping[int, float],
) -> StageOutcome:
    """Run one stage on a box of the case and paste its result into the whole grid."""
    plan, number = stage_plan.plan, network.spec.number
    name = STAGE_NAMES[1 if number == 1 else 2]
    inside = tuple(slice(low, high) for low, high in zip(*box, strict=True))
    if case.outline.mode == "none":
        prompt_map_dhw = None
    shown = None if prompt_map_dhw is None else to_hwd(prompt_map_dhw[inside])
    result = run_stage(
        network,
        stage_plan,
        to_hwd(case.image_dhw[inside]),
        case.task,
        prompt_labels_hwd=shown,
        keep_probability=case.keep_probability,
        watch=case.watch,
        name=name,
        progress=case.progress,
        watchdog=None if case.budget is None else Watchdog(case.budget, seconds[number]),
    )
    if case.budget is not None:
        runs = stage_plan.memory.window_runs
        windows = "windows" if runs == len(plan.windows) else "window runs"
        kept = "the coarse result stands" if shown is not None else "they are background"
        if result.hastened:
            case.budget.degrade(
                f"{result.hastened} of {runs} {windows} of the {name} stage took fewer passes "
                "than planned, because time ran out"
            )
        if result.left_out:
            case.budget.degrade(
                f"{result.left_out} of {runs} {windows} of the {name} stage were left out, because "
                f"time ran out: where no other window reaches, {kept}"
            )
    record = StageSummary(
        name=name,
        box_dhw=box,
        spacing_mm_hwd=plan.spacing_hwd_mm,
        target_spacing_mm_hwd=plan.target_spacing_hwd_mm,
        resampled_shape_hwd=plan.resampled_shape_hwd,
        padded_shape_hwd=plan.padded_shape_hwd,
        window_hwd=plan.stage.window_hwd,
        windows=len(plan.windows),
        passes=result.passes,
        iterations=stage_plan.window_pass.further_iterations,
        prompts="text only" if shown is None else f"text and {case.outline.mode} spatial prompts",
        class_groups=stage_plan.memory.class_groups,
        column_blocks=stage_plan.memory.column_blocks,
        window_runs=stage_plan.memory.window_runs,
        classes_per_chunk=stage_plan.memory.classes_per_chunk,
        accumulators_mib=round(stage_plan.memory.slab_bytes / 2**20, 1),
    )
    return StageOutcome(*_pasted(result, inside, case.image_dhw), record)


def _seconds_per_pass(networks: Mapping[StageNumber, Network], case: CaseRun) -> dict[int, float]:
    """Seconds that a pass of each stage takes, measured where nothing is known and time counts.

    One pass of the coarse network from text alone is run on zeros.
    """
    known = dict(case.seconds_per_pass or {})
    if case.budget is None:
        return {1: known.get(1, 0.0), 2: known.get(2, 0.0)}
    sizes: dict[int, int] = {
        number: prod(each.spec.window_hwd) for number, each in networks.items()
    }
    if not known:
        with case.watch.step("measure a pass"):
            known[1] = _measured(networks[1], case)
    return seconds_of_both(known, sizes)


def _measured(network: Network, case: CaseRun) -> float:
    xp = namespace(case.image_dhw)
    shape = (1, 1, *network.spec.window_hwd)
    image = xp.zeros(shape, dtype=xp.float32, device=case.image_dhw.device)
    classes = slice(0, len(case.task.labels))
    network.prepare(classes.stop, classes, case.outline.classes_per_chunk, prompted=False)
    start = time.perf_counter()
    for _, probabilities in network.predict(
        image, case.task.queries, classes_per_chunk=case.outline.classes_per_chunk
    ):
        settle(probabilities)
    return time.perf_counter() - start


def _pasted(
    result: StageResult, inside: tuple[slice, ...], image_dhw: Array
) -> tuple[Array, Array | None]:
    """Put a box's labels and probability into arrays of the whole grid."""
    xp = namespace(image_dhw)
    labels = xp.zeros(image_dhw.shape, dtype=result.labels_hwd.dtype)
    labels[inside] = to_dhw(result.labels_hwd)
    if result.probability_hwd is None:
        return labels, None
    probability = xp.zeros(image_dhw.shape, dtype=xp.float32)
    probability[inside] = to_dhw(result.probability_hwd)
    return labels, probability
