"""What a case will cost, before it is run: the geometry of each stage and the passes it takes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from medals_rt.errors import InputError
from medals_rt.geometry import StagePlan, StageSpec, clean_spacing, plan_stage, smallest_region
from medals_rt.memory import (
    ANY_MACHINE,
    LARGEST_DEFAULT_SLAB,
    MemoryLimit,
    MemoryPlan,
    memory_limit,
    plan_memory,
)
from medals_rt.policy import CaseRules, Preset, load_policy
from medals_rt.refinement import Mode, WindowPass, passes_per_window
from medals_rt.timings import MeasuredPasses, recall

if TYPE_CHECKING:
    from medals_rt.bundle import Bundle
    from medals_rt.cases import Case
    from medals_rt.prompts import PromptSet
    from medals_rt.vocabulary import ClassKey

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
    those of the smallest one. A pass is one run of the image encoder with what follows it. For
    memory, classes are gathered in `class_groups` walks over the windows, whose sums take
    `accumulators_mib`.
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
    class_groups: int = 1
    accumulators_mib: int = 0
    seconds_per_pass: float | None = None


@dataclass(frozen=True)
class CasePlan:
    """The dry run of a case.

    `expected_seconds` is (least, most), for the smallest region of interest and for the whole
    image: passes times the bundle's last measured pass on this machine. None where none was
    measured. `expected_peak_memory_mib` is an estimate for bf16.
    """

    preset: str
    refinement: str
    classes: tuple[str, ...]
    stages: tuple[StageCost, ...]
    expected_peak_memory_mib: int
    expected_seconds: tuple[float, float] | None = None
    measured_on: str | None = None

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
    refinement: Mode = "masked",
    features: int = RELEASED_FEATURES,
    max_memory: int | None = None,
) -> CasePlan:
    """Plan a case of which only shape, spacing and classes are known.

    Parameters
    ----------
    shape_dhw : the image's shape (D, H, W)
    spacing_hwd_mm : its spacing (H, W, D) in mm, already cleaned by rule 1 of system section 4
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
    d, h, w = shape_dhw
    limit = MemoryLimit(ANY_MACHINE, "a dry run", LARGEST_DEFAULT_SLAB)
    if max_memory is not None:
        limit = memory_limit(max_memory, "cpu")
    costs, peaks = [], [0]
    for spec in stages:
        whole = plan_stage((h, w, d), spacing_hwd_mm, spec, rules, how)
        smallest = whole
        if spec.is_fine and not rules.skip_coarse:
            smallest = _smallest_plan(shape_dhw, spacing_hwd_mm, spec, rules, how)
        iterates = rules.lesion and whole.iterations > 0 and refinement != "none"
        memory = plan_memory(
            len(classes),
            whole.padded_shape_hwd,
            spec.window_hwd,
            features,
            limit,
            held=len(classes) if iterates else 0,
        )
        costs.append(_cost(whole, smallest, rules, how, refinement, memory))
        peaks.append(memory.expected_bytes + 3 * 4 * prod(shape_dhw))
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
    refinement: Mode = "masked",
    max_memory: int | None = None,
) -> CasePlan:
    """Plan a case that was read, on a bundle or (None) on models of the released windows.

    The stages are those that the classes go through. The time comes from the bundle's last
    measured pass on this machine, on whichever runner that was.

    Parameters
    ----------
    case, prompts : as for a run
    bundle : the bundle that will run it
    preset, refinement, max_memory : as for `plan_shape`
    """
    rules = load_policy().rules(prompts.class_keys, preset)
    both = RELEASED_STAGES if bundle is None else (bundle.stage_spec(1), bundle.stage_spec(2))
    specs = [spec for spec in both if not (rules.skip_fine if spec.is_fine else rules.skip_coarse)]
    volume = case.volume
    plan = plan_shape(
        volume.shape_dhw,
        clean_spacing(volume.shape_dhw, volume.spacing_hwd_mm),
        prompts.class_keys,
        stages=specs,
        preset=preset,
        refinement=refinement,
        features=RELEASED_FEATURES if bundle is None else feature_channels(bundle),
        max_memory=max_memory,
    )
    measured = None if bundle is None else recall(bundle.hash)
    return plan if measured is None else with_seconds(plan, measured)


def with_seconds(plan: CasePlan, measured: MeasuredPasses) -> CasePlan:
    """Add the expected seconds to a plan, where every stage of it was measured."""
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


def _smallest_plan(
    shape_dhw: Shape3, spacing_hwd_mm: Spacing3, spec: StageSpec, rules: CaseRules, how: Preset
) -> StagePlan:
    """Plan the fine stage on the region of interest of a single voxel in the middle."""
    low, high = smallest_region(shape_dhw, spacing_hwd_mm, spec, rules, how)
    d, h, w = (b - a for a, b in zip(low, high, strict=True))
    return plan_stage((h, w, d), spacing_hwd_mm, spec, rules, how)


def _cost(
    whole: StagePlan,
    smallest: StagePlan,
    rules: CaseRules,
    how: Preset,
    refinement: Mode,
    memory: MemoryPlan,
) -> StageCost:
    """Count windows and passes; windows without any coarse prediction will need fewer."""
    prompted = whole.stage.is_fine and not rules.skip_coarse
    window_pass = WindowPass(
        stage=whole.stage.number,
        window_index=0,
        window_hwd=whole.stage.window_hwd,
        prompted=how.prompted if prompted else None,
        further=how.further,
        further_iterations=whole.iterations if rules.lesion else 0,
        mode=refinement,
        combine=how.combine,
    )
    per_window = passes_per_window(window_pass)
    return StageCost(
        stage=whole.stage.number,
        spacing_mm_hwd=whole.spacing_hwd_mm,
        target_spacing_mm_hwd=whole.target_spacing_hwd_mm,
        input_shape_hwd=whole.input_shape_hwd,
        resampled_shape_hwd=whole.resampled_shape_hwd,
        padded_shape_hwd=whole.padded_shape_hwd,
        window_hwd=whole.stage.window_hwd,
        windows=len(whole.windows),
        windows_smallest_region=len(smallest.windows),
        iterations=whole.iterations,
        passes=per_window * len(whole.windows) * len(memory.groups),
        passes_smallest_region=per_window * len(smallest.windows),
        class_groups=len(memory.groups),
        accumulators_mib=memory.slab_bytes // 2**20,
    )


def feature_channels(bundle: "Bundle") -> int:
    """Read the number of feature channels from the image encoder's first output."""
    channels = bundle.graph(2, "image_encoder").outputs[0].shape[1]
    return channels if isinstance(channels, int) else RELEASED_FEATURES
