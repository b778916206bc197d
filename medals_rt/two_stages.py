"""Which stages a case goes through, on which box, and how thoroughly (system rules 5 to 7)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, TypeAlias

from medals_rt.annotation import fine_prompts, labels_in
from medals_rt.arrays import Array, Box, bounding_box, namespace, settle
from medals_rt.budget import EFFORTS, Budget, Watchdog, choose_effort, given_up_words
from medals_rt.geometry import Spacing, StagePlan, plan_stage, region_of_interest, smallest_region
from medals_rt.memory import MemoryLimit, MemoryPlan, plan_memory
from medals_rt.network import StageNetwork
from medals_rt.policy import CaseRules, Preset
from medals_rt.progress import Progress
from medals_rt.refinement import passes_per_window
from medals_rt.report import StageRecord, Stopwatch
from medals_rt.stage import StageResult, StageTask, run_stage, window_pass
from medals_rt.volume import to_dhw, to_hwd

StageNumber: TypeAlias = Literal[1, 2]
STAGE_NAMES: dict[StageNumber, str] = {1: "coarse", 2: "fine"}


@dataclass(frozen=True)
class CaseRun:
    """One case on the network's device, and everything that its stages share.

    Attributes
    ----------
    image_dhw
        `(D, H, W)` float32 in 0..255.
    spacing_hwd_mm
        Cleaned by rule 4.1.
    rules, preset, task
        What the classes decide, and how windows are refined.
    channels
        C, of the network's feature map.
    keep_probability
        The last stage's largest probability is needed.
    memory, classes_per_chunk
        What may be held, and the most classes that are classified at once.
    watch, progress
        Where seconds and windows are told.
    budget
        The case's time; None: there is no limit.
    seconds_per_pass
        What a pass of each stage took before, as far as known.
    """

    image_dhw: Array
    spacing_hwd_mm: Spacing
    rules: CaseRules
    preset: Preset
    task: StageTask
    channels: int
    keep_probability: bool
    memory: MemoryLimit
    classes_per_chunk: int
    watch: Stopwatch
    progress: Progress | None = None
    budget: Budget | None = None
    seconds_per_pass: Mapping[int, float] | None = None


@dataclass(frozen=True)
class StageOutcome:
    """A stage's labels (and probability) on the whole grid, and its record."""

    labels_dhw: Array
    probability_dhw: Array | None
    record: StageRecord


@dataclass(frozen=True)
class _Way:
    """A stage at one effort: its plan, how it is cut for memory, and its passes at most."""

    plan: StagePlan
    memory: MemoryPlan
    passes: int


def run_stages(
    networks: Mapping[StageNumber, StageNetwork], case: CaseRun, annotation_dhw: Array | None
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
    rules = case.rules
    shape = tuple(case.image_dhw.shape)
    whole: Box = ((0, 0, 0), shape)
    annotated = labels_in(annotation_dhw)
    seconds = _seconds_per_pass(networks, case)
    outcomes: list[StageOutcome] = []
    prompt_map = annotation_dhw
    if not rules.skip_coarse and (rules.skip_fine or set(case.task.labels) - annotated):
        shown = annotation_dhw if rules.skip_fine else None
        ways = _ways(networks[1], case, whole, prompted=shown is not None)
        way = ways[_choose_coarse(networks[2], case, ways, seconds)]
        outcomes.append(_run(networks[1], case, whole, shown, way, seconds))
        if rules.skip_fine:
            return outcomes
        prompt_map = fine_prompts(outcomes[0].labels_dhw, annotation_dhw, lesion=rules.lesion)
    box = None if prompt_map is None else bounding_box(prompt_map > 0)
    region = whole
    if box is None:
        prompt_map = None
    else:
        fine = networks[2].spec
        region = region_of_interest(box, shape, case.spacing_hwd_mm, fine, rules, case.preset)
    ways = _ways(networks[2], case, region, prompted=prompt_map is not None)
    fine_seconds = [way.passes * seconds[2] for way in ways]
    chosen = _choose(case, "fine", fine_seconds, may_be_left_out=bool(outcomes))
    if chosen is None and outcomes:
        return outcomes
    way = ways[-1 if chosen is None else chosen]
    return [*outcomes, _run(networks[2], case, region, prompt_map, way, seconds)]


def _ways(network: StageNetwork, case: CaseRun, box: Box, *, prompted: bool) -> list[_Way]:
    """Plan a stage on a box, from the most thorough effort to the least."""
    d, h, w = (high - low for low, high in zip(*box, strict=True))
    prompted = prompted and case.task.mode != "none"
    ways = []
    for effort in EFFORTS if case.budget is not None else EFFORTS[:1]:
        plan = plan_stage(
            (h, w, d), case.spacing_hwd_mm, network.spec, case.rules, case.preset, effort.overlap
        )
        if not effort.iterates:
            plan = replace(plan, iterations=0)
        what = window_pass(plan, case.task, prompted=prompted)
        iterates = what.further_iterations > 0 and case.task.mode != "none"
        memory = plan_memory(
            len(case.task.labels),
            plan.padded_shape_hwd,
            plan.stage.window_hwd,
            case.channels,
            case.memory,
            precision=network.info.precision,
            held=len(case.task.labels) if iterates else 0,
            classes_per_chunk=case.classes_per_chunk,
        )
        passes = passes_per_window(what) * len(plan.windows) * len(memory.groups)
        ways.append(_Way(plan, memory, passes))
    return ways


def _choose_coarse(
    fine: StageNetwork, case: CaseRun, ways: list[_Way], seconds: Mapping[int, float]
) -> int:
    """Choose the coarse stage's effort so that the smallest fine stage fits after it.

    Where no effort leaves time for that, the coarse stage is to be the result, and gets the time.
    """
    alone = [way.passes * seconds[1] for way in ways]
    after = [0.0] * len(ways)
    if not case.rules.skip_fine and case.budget is not None:
        region = smallest_region(
            tuple(case.image_dhw.shape), case.spacing_hwd_mm, fine.spec, case.rules, case.preset
        )
        after = [way.passes * seconds[2] for way in _ways(fine, case, region, prompted=True)]
    both = [a + b for a, b in zip(alone, after, strict=True)]
    fits = case.budget is None or choose_effort(both, case.budget.left) is not None
    chosen = _choose(case, "coarse", alone, after if fits else None)
    return len(ways) - 1 if chosen is None else chosen


def _choose(
    case: CaseRun,
    name: str,
    alone: list[float],
    after: list[float] | None = None,
    *,
    may_be_left_out: bool = False,
) -> int | None:
    """Choose the first way that fits in the time left, and note what that gives up.

    `alone` is what each way takes, `after` what must follow it. None: none fits; a stage that may
    not be left out is then run as far as the watchdog lets it.
    """
    budget = case.budget
    if budget is None:
        return 0
    needed = [a + b for a, b in zip(alone, after or [0.0] * len(alone), strict=True)]
    chosen = choose_effort(needed, budget.left)
    if chosen is None:
        budget.planned[name] = alone[-1]
        what = "was not run" if may_be_left_out else "does not fit"
        budget.give_up(
            f"the {name} stage {what}: it takes about {alone[-1]:.1f} s at the least, "
            f"{max(0.0, budget.left):.1f} s were left"
        )
        return None
    budget.planned[name] = alone[chosen]
    # a way that saves nothing over a more thorough one gives nothing up
    if chosen and alone[chosen] < alone[0]:
        words = given_up_words(EFFORTS[chosen], lesions=case.task.lesion)
        budget.give_up(f"the {name} stage was run {words}")
    return chosen


def _run(
    network: StageNetwork,
    case: CaseRun,
    box: Box,
    prompt_map_dhw: Array | None,
    way: _Way,
    seconds: Mapping[int, float],
) -> StageOutcome:
    """Run one stage on a box of the case and paste its result into the whole grid."""
    plan, number = way.plan, network.spec.number
    name = STAGE_NAMES[1 if number == 1 else 2]
    inside = tuple(slice(low, high) for low, high in zip(*box, strict=True))
    if case.task.mode == "none":
        prompt_map_dhw = None
    shown = None if prompt_map_dhw is None else to_hwd(prompt_map_dhw[inside])
    result = run_stage(
        network,
        plan,
        to_hwd(case.image_dhw[inside]),
        case.task,
        prompt_labels_hwd=shown,
        keep_probability=case.keep_probability,
        memory=way.memory,
        watch=case.watch,
        name=name,
        progress=case.progress,
        watchdog=None if case.budget is None else Watchdog(case.budget, seconds[number]),
    )
    if case.budget is not None:
        windows = len(plan.windows) * len(way.memory.groups)
        stands = "the coarse result stands" if shown is not None else "they are background"
        if result.hastened:
            case.budget.give_up(
                f"{result.hastened} of {windows} windows of the {name} stage were run in fewer "
                "passes, because time ran out"
            )
        if result.left_out:
            case.budget.give_up(
                f"{result.left_out} of {windows} windows of the {name} stage were not run, because "
                f"time ran out: where no other window reaches, {stands}"
            )
    record = StageRecord(
        name=name,
        box_dhw=box,
        spacing_mm_hwd=plan.spacing_hwd_mm,
        target_spacing_mm_hwd=plan.target_spacing_hwd_mm,
        resampled_shape_hwd=plan.resampled_shape_hwd,
        padded_shape_hwd=plan.padded_shape_hwd,
        window_hwd=plan.stage.window_hwd,
        windows=len(plan.windows),
        passes=result.passes,
        iterations=plan.iterations if case.task.lesion else 0,
        prompts="text only" if shown is None else f"text and {case.task.mode} spatial prompts",
        class_groups=len(way.memory.groups),
        classes_per_chunk=way.memory.classes_per_chunk,
        accumulators_mib=round(way.memory.slab_bytes / 2**20, 1),
    )
    return StageOutcome(*_pasted(result, inside, case.image_dhw), record)


def _seconds_per_pass(
    networks: Mapping[StageNumber, StageNetwork], case: CaseRun
) -> dict[int, float]:
    """Give what a pass of each stage takes; where nothing is known and time counts, measure it.

    One pass of the coarse network from text alone is run on zeros. An unknown fine pass is taken to
    cost as much a voxel.
    """
    known = dict(case.seconds_per_pass or {})
    if case.budget is None:
        return {1: known.get(1, 0.0), 2: known.get(2, 0.0)}
    sizes = {number: prod(each.spec.window_hwd) for number, each in networks.items()}
    if not known:
        with case.watch.step("measure a pass"):
            known[1] = _measured(networks[1], case)
    pairs: tuple[tuple[StageNumber, StageNumber], ...] = ((1, 2), (2, 1))
    for number, other in pairs:
        if number not in known:
            known[number] = known[other] * sizes[number] / sizes[other]
    return known


def _measured(network: StageNetwork, case: CaseRun) -> float:
    xp = namespace(case.image_dhw)
    shape = (1, 1, *network.spec.window_hwd)
    image = xp.zeros(shape, dtype=xp.float32, device=case.image_dhw.device)
    classes = slice(0, len(case.task.labels))
    network.prepare(classes.stop, classes, case.classes_per_chunk, prompted=False)
    start = time.perf_counter()
    for _, probabilities in network.predict(
        image, case.task.queries, classes_per_chunk=case.classes_per_chunk
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
