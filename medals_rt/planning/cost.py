"""What a case will cost, before it is run: the geometry of each stage and the passes it takes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from medals_rt.bundle.stage_spec import StageSpec
from medals_rt.common.choices import Refinement
from medals_rt.common.errors import InputError
from medals_rt.common.notes import Note
from medals_rt.planning.cost_budget import BudgetPlan, plan_budget
from medals_rt.planning.geometry import spacing_for
from medals_rt.planning.memory import ANY_MACHINE, LARGEST_DEFAULT_SLAB, MemoryLimit, memory_limit
from medals_rt.planning.pass_timings import MeasuredPasses, recall
from medals_rt.planning.policy import CaseRules, load_policy
from medals_rt.planning.stage_plan import (
    CaseOutline,
    StagePlan,
    seconds_of_both,
    smallest_region_of,
    stage_plans,
)
from medals_rt.planning.time_budget import QUALITY_LEVELS

if TYPE_CHECKING:
    from medals_rt.bundle.bundle import Bundle
    from medals_rt.io.case import Case
    from medals_rt.prompts.classes import ClassKey
    from medals_rt.prompts.prompt_set import PromptSet

RELEASED_STAGES = (
    StageSpec(1, (224, 224, 128), (1.5, 1.5, 3.0)),
    StageSpec(2, (192, 192, 192), (1.0, 1.0, 1.0)),
)
"""Windows and spacings of the released models (system section 1)."""

RELEASED_FEATURES = 64
"""Channels of their feature map."""

Shape3 = tuple[int, int, int]
Spacing3 = tuple[float, float, float]


@dataclass(frozen=True)
class StageCost:
    """One stage of a dry run, axes (H, W, D).

    All figures are those of the whole image. The fine stage usually looks at a region of interest
    that only the coarse result tells: `windows_smallest_region` and `passes_smallest_region` are
    those of the smallest one. A pass is one run of the image encoder with what follows it; windows
    without any coarse prediction will need fewer. For memory, results are gathered in
    `column_blocks` blocks of the image and in `class_groups` groups of classes, each of which runs
    the windows that reach into it: `window_runs` in all. The sums of one take `accumulators_mib`.
    `passes_by_quality` are those of each quality level, for the whole image and for the smallest
    region, the first of which are `passes` and `passes_smallest_region`.
    """

    stage: int
    spacing_mm_hwd: Spacing3
    target_spacing_mm_hwd: Spacing3
    input_shape_hwd: Shape3
    resampled_shape_hwd: Shape3
    padded_shape_hwd: Shape3
    window_hwd: Shape3
    windows: int
    windows_smallest_region: int
    iterations: int
    passes: int
    passes_smallest_region: int
    passes_by_quality: tuple[int, ...]
    passes_by_quality_smallest_region: tuple[int, ...]
    window_runs: int
    class_groups: int = 1
    column_blocks: int = 1
    accumulators_mib: int = 0
    seconds_per_pass: float | None = None


@dataclass(frozen=True)
class CasePlan:
    """The dry run of a case.

    `expected_seconds` is (least, most), for the smallest region of interest and for the whole
    image: passes times the bundle's last measured pass on this machine. None where none was
    measured. `expected_peak_memory_mib` is an estimate for bf16. `time_budget` is None where none
    was given.
    """

    preset: str
    refinement: str
    classes: tuple[str, ...]
    stages: tuple[StageCost, ...]
    expected_peak_memory_mib: int
    expected_seconds: tuple[float, float] | None = None
    measured_on: str | None = None
    time_budget: BudgetPlan | None = None
    notes: tuple[Note, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        return asdict(self)


def plan_shape(
    shape_dhw: Shape3,
    spacing_hwd_mm: Spacing3,
    classes: Sequence["ClassKey"],
    *,
    stages: Sequence[StageSpec] = RELEASED_STAGES,
    preset: str = "paper",
    refinement: Refinement = "masked",
    features: int = RELEASED_FEATURES,
    max_memory: int | None = None,
) -> CasePlan:
    """Plan a case of which only shape, spacing and classes are known.

    Parameters
    ----------
    shape_dhw : the image's shape (D, H, W)
    spacing_hwd_mm : its spacing (H, W, D) in mm, as `spacing_for` decides it
    classes : what is asked for
    stages : the stages to plan, each on the whole image
    preset : "paper" or "release"
    refinement : "masked", "unmasked" or "none"
    features : channels of the network's feature map, for the memory estimate
    max_memory : bytes that the run may hold; None plans for a machine that has enough

    Raises
    ------
    InputError : a size or spacing is not positive, there is no class, the preset is unknown, or
        the memory does not hold one class
    """
    if min(shape_dhw) < 1 or not all(0 < s < float("inf") for s in spacing_hwd_mm):
        raise InputError(
            f"a shape needs three positive sizes and a spacing three positive lengths, "
            f"not {shape_dhw} and {spacing_hwd_mm}"
        )
    policy = load_policy()
    rules, how = policy.rules(classes, preset), policy.preset(preset)
    limit = MemoryLimit(ANY_MACHINE, "a dry run", LARGEST_DEFAULT_SLAB)
    if max_memory is not None:
        limit = memory_limit(max_memory, "cpu")
    outline = CaseOutline(
        shape_dhw, spacing_hwd_mm, rules, how, refinement, len(classes), features, limit
    )
    costs, peaks = [], [0]
    for spec in stages:
        prompted = spec.is_fine and not rules.skip_coarse
        region = smallest_region_of(outline, spec) if prompted else outline.whole
        whole, smallest = (
            stage_plans(outline, spec, box, QUALITY_LEVELS, prompted=prompted)
            for box in (outline.whole, region)
        )
        costs.append(_cost(whole, smallest))
        peaks.append(whole[0].memory.expected_bytes + 3 * 4 * prod(shape_dhw))
    return CasePlan(
        preset=preset,
        refinement=refinement,
        classes=tuple(str(key) for key in classes),
        stages=tuple(costs),
        expected_peak_memory_mib=max(peaks) // 2**20,
    )


def plan_case(
    case: "Case",
    prompts: "PromptSet",
    bundle: "Bundle | None" = None,
    *,
    preset: str = "paper",
    refinement: Refinement = "masked",
    max_memory: int | None = None,
    time_budget: float | None = None,
) -> CasePlan:
    """Plan a case that was read, on a bundle or (None) on models of the released windows.

    The stages are those that the classes go through. The time comes from the bundle's last
    measured pass on this machine, on whichever runner that was.

    Parameters
    ----------
    case, prompts : as for a run
    bundle : the bundle that will run it
    preset, refinement, max_memory : as for `plan_shape`
    time_budget : seconds a class, as for a run; None for no limit

    Raises
    ------
    InputError : as for `plan_shape`; or the time is not positive
    """
    rules = load_policy().rules(prompts.class_keys, preset)
    both = RELEASED_STAGES if bundle is None else (bundle.stage_spec(1), bundle.stage_spec(2))
    volume = case.volume
    spacing, notes = spacing_for(
        volume.shape_dhw,
        volume.spacing_hwd_mm,
        geometry_is_stated=volume.geometry_is_stated,
        preset=load_policy().preset(preset),
        modality=prompts.modality,
    )
    plan = plan_shape(
        volume.shape_dhw,
        spacing,
        prompts.class_keys,
        stages=stages_of(rules, both),
        preset=preset,
        refinement=refinement,
        features=RELEASED_FEATURES if bundle is None else feature_channels(bundle),
        max_memory=max_memory,
    )
    plan = with_seconds(replace(plan, notes=notes), None if bundle is None else recall(bundle.hash))
    return with_time_budget(plan, time_budget, lesions=rules.lesion)


def stages_of(rules: CaseRules, both: Sequence[StageSpec]) -> list[StageSpec]:
    """Give those of the two stages that a case goes through."""
    return [spec for spec in both if not (rules.skip_fine if spec.is_fine else rules.skip_coarse)]


def with_seconds(plan: CasePlan, measured: MeasuredPasses | None) -> CasePlan:
    """Add the expected seconds to a plan, where every stage of it was measured."""
    if measured is None:
        return plan
    costs = tuple(
        replace(cost, seconds_per_pass=measured.seconds_per_pass.get(cost.stage))
        for cost in plan.stages
    )
    expected = None
    known = [cost for cost in costs if cost.seconds_per_pass is not None]
    if len(known) == len(costs):
        smallest = sum((cost.seconds_per_pass or 0) * cost.passes_smallest_region for cost in known)
        whole = sum((cost.seconds_per_pass or 0) * cost.passes for cost in known)
        # Dynamic resampling may enlarge a small box so much that it takes longer than the whole.
        expected = (round(min(smallest, whole), 2), round(max(smallest, whole), 2))
    return replace(plan, stages=costs, expected_seconds=expected, measured_on=measured.runner)


def with_time_budget(plan: CasePlan, seconds_per_class: float | None, *, lesions: bool) -> CasePlan:
    """Add what a run of a plan's case would do to keep a time budget, by the run's own choices.

    Parameters
    ----------
    plan
        With its seconds, of the stages that the case goes through.
    seconds_per_class
        The budget; None: the plan stays as it is.
    lesions
        Whether there are further iterations to give up.

    Raises
    ------
    InputError
        The time is not positive.
    """
    if seconds_per_class is None:
        return plan
    known = {c.stage: c.seconds_per_pass for c in plan.stages if c.seconds_per_pass is not None}
    smallest = whole = None
    if known:
        of_pass = seconds_of_both(known, {c.stage: prod(c.window_hwd) for c in plan.stages})
        smallest = {
            c.stage: [passes * of_pass[c.stage] for passes in c.passes_by_quality_smallest_region]
            for c in plan.stages
        }
        whole = {
            c.stage: [passes * of_pass[c.stage] for passes in c.passes_by_quality]
            for c in plan.stages
        }
    budget = plan_budget(
        seconds_per_class, len(plan.classes), smallest=smallest, whole=whole, lesions=lesions
    )
    return replace(plan, time_budget=budget)


def _cost(whole: Sequence[StagePlan], smallest: Sequence[StagePlan]) -> StageCost:
    """Count windows and passes of a stage at each effort."""
    plan, memory = whole[0].plan, whole[0].memory
    return StageCost(
        stage=plan.stage.number,
        spacing_mm_hwd=plan.spacing_hwd_mm,
        target_spacing_mm_hwd=plan.target_spacing_hwd_mm,
        input_shape_hwd=plan.input_shape_hwd,
        resampled_shape_hwd=plan.resampled_shape_hwd,
        padded_shape_hwd=plan.padded_shape_hwd,
        window_hwd=plan.stage.window_hwd,
        windows=len(plan.windows),
        windows_smallest_region=len(smallest[0].plan.windows),
        iterations=plan.iterations,
        passes=whole[0].passes,
        passes_smallest_region=smallest[0].passes,
        passes_by_quality=tuple(way.passes for way in whole),
        passes_by_quality_smallest_region=tuple(way.passes for way in smallest),
        window_runs=memory.window_runs,
        class_groups=memory.class_groups,
        column_blocks=memory.column_blocks,
        accumulators_mib=memory.slab_bytes // 2**20,
    )


def feature_channels(bundle: "Bundle") -> int:
    """Read the number of feature channels from the image encoder's first output."""
    channels = bundle.graph(2, "image_encoder").outputs[0].shape[1]
    return channels if isinstance(channels, int) else RELEASED_FEATURES
