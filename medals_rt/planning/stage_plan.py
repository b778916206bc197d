"""Plans of a stage: geometry, cuts for memory and passes, at each quality level.

A run chooses among them (`inference.cascade`), a dry run counts them (`cost`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from medals_rt.bundle.stage_spec import StageSpec
from medals_rt.common.byte_sizes import size_words
from medals_rt.common.choices import Convolution, Refinement
from medals_rt.common.errors import InputError
from medals_rt.common.limits import CLASSES_PER_CHUNK
from medals_rt.common.typing import Box, Spacing
from medals_rt.planning.geometry import StageGeometry, plan_stage, smallest_region
from medals_rt.planning.memory import (
    MemoryDemand,
    MemoryLimit,
    MemoryPlan,
    joined_chains,
    plan_memory,
)
from medals_rt.planning.policy import CaseRules, Preset
from medals_rt.planning.time_budget import QUALITY_LEVELS, QualityLevel
from medals_rt.planning.window_pass import WindowPass, passes_per_window


@dataclass(frozen=True)
class CaseOutline:
    """What planning has to know of a case: everything but what its image shows.

    Attributes
    ----------
    shape_dhw
        Of the image.
    spacing_hwd_mm
        Cleaned by rule 4.1.
    rules, preset
        What the classes decide.
    mode
        How windows are refined.
    classes
        N.
    channels
        C, of the network's feature map.
    memory
        What may be held.
    classes_per_chunk
        The most classes that are classified at once.
    weights
        Of the networks of both stages together, how many numbers.
    runner, precision
        Inference library and arithmetic of the network.
    case_bytes
        What the arrays on the case's own grid take (`memory.case_bytes`).
    open_chains
        Chains of graphs that were compiled before, for other classes.
    keeps_maps
        Whether the probabilities of every class are kept.
    """

    shape_dhw: tuple[int, int, int]
    spacing_hwd_mm: Spacing
    rules: CaseRules
    preset: Preset
    mode: Refinement
    classes: int
    channels: int
    memory: MemoryLimit
    classes_per_chunk: int = CLASSES_PER_CHUNK
    weights: int = 0
    runner: str = "openvino"
    precision: str = "bf16"
    convolution: Convolution = "direct"
    case_bytes: int = 0
    open_chains: frozenset[tuple[int, str]] = frozenset()
    keeps_maps: bool = False

    def chains_by(self, stage: int) -> frozenset[tuple[int, str]]:
        """Return the chains of graphs that are compiled by the end of a stage.

        Text-only chains of both stages are opened at the start. The coarse stage has prompts where
        lesions are iterated, and where no fine one follows that could have those drawn by hand, or
        that makes its own.
        """
        found = set(self.open_chains)
        for number in (1, 2):
            prompted = number == 2 or self.rules.lesion or self.rules.skip_fine
            chains = joined_chains(number, self.classes, prompted=prompted and self.mode != "none")
            found |= chains if number <= stage else joined_chains(number, 1, prompted=False)
        return frozenset(found)

    @property
    def whole(self) -> Box:
        """The box of the whole image."""
        return (0, 0, 0), self.shape_dhw

    def starts_from_text(self, spec: StageSpec) -> bool:
        """Whether a stage makes its own prompts: the last one of the case, where that is asked."""
        is_last = spec.is_fine or self.rules.skip_fine
        return is_last and self.preset.start_from == "text"


@dataclass(frozen=True)
class StagePlan:
    """A stage at one quality level.

    Attributes
    ----------
    geometry
        Shapes, spacings and windows.
    memory
        How it is cut.
    window_pass
        What is done to each window.
    threshold
        The least probability of a class that is no background.
    """

    geometry: StageGeometry
    memory: MemoryPlan
    window_pass: WindowPass
    threshold: float = 0.5

    @property
    def passes(self) -> int:
        """Network passes at most; windows without any prompt will need fewer."""
        return passes_per_window(self.window_pass) * self.memory.window_runs


def stage_plans(
    case: CaseOutline,
    spec: StageSpec,
    box_dhw: Box,
    levels: Sequence[QualityLevel],
    *,
    prompted: bool,
) -> list[StagePlan]:
    """Plan a stage on a box of the image, once a quality level.

    Parameters
    ----------
    case
        What is asked for.
    spec
        The stage.
    box_dhw
        What it looks at.
    levels
        How thoroughly.
    prompted
        Whether there are spatial prompts.
    """
    d, h, w = (high - low for low, high in zip(*box_dhw, strict=True))
    refined = case.mode != "none"
    preset, refined_from_text = case.preset, refined and case.starts_from_text(spec)
    prompted = refined and (prompted or refined_from_text)
    plans = []
    for level in levels:
        geometry = plan_stage(
            (h, w, d),
            case.spacing_hwd_mm,
            spec,
            case.rules,
            preset,
            min(level.overlap, preset.overlap),
        )
        if not level.iterates:
            geometry = replace(geometry, iterations=0)
        window_pass = WindowPass(
            stage=spec.number,
            window_index=0,
            window_hwd=spec.window_hwd,
            prompted=preset.prompted if prompted else None,
            further=preset.further,
            further_iterations=geometry.iterations if case.rules.lesion else 0,
            mode=case.mode,
            combine=preset.combine,
            starts_from_text=refined_from_text,
            mirrored=preset.mirrored,
            count=case.classes,
        )
        repeats = len(window_pass.steps) > 1
        memory = plan_memory(
            MemoryDemand(
                classes=case.classes,
                channels=case.channels,
                runner=case.runner,
                precision=case.precision,
                convolution=case.convolution,
                weights=case.weights,
                case_bytes=case.case_bytes,
                open_chains=len(case.chains_by(spec.number)),
                prompted=prompted or repeats,
                held_classes=case.classes if repeats else 0,
                averaged=window_pass.averages,
                classes_per_chunk=case.classes_per_chunk,
                keeps_maps=case.keeps_maps,
            ),
            geometry.resampled_shape_hwd,
            geometry.windows,
            case.memory,
        )
        plans.append(StagePlan(geometry, memory, window_pass, preset.threshold))
    return plans


def map_bytes(case: CaseOutline, specs: Iterable[StageSpec]) -> int:
    """Bytes of the probability maps that a case leaves, at most: those of the whole image."""
    if not case.keeps_maps:
        return 0
    return max(
        case.classes * prod(plan.geometry.resampled_shape_hwd)
        for spec in specs
        for plan in stage_plans(case, spec, case.whole, QUALITY_LEVELS[:1], prompted=False)
    )


def stages_of(rules: CaseRules, specs: Iterable[StageSpec]) -> list[StageSpec]:
    """Choose the stages that a case goes through."""
    return [spec for spec in specs if not (rules.skip_fine if spec.is_fine else rules.skip_coarse)]


def check_memory(case: CaseOutline, specs: Sequence[StageSpec], *, prompted: bool) -> None:
    """Refuse a limit that was asked for and does not hold the stages of a case, before any work.

    The fine stage is held to the whole image and to the smallest region of interest. Any region
    needs about as much or less: what is fixed (network, weights, the case itself) does not depend
    on it, sums are cut to fit, and what is left is ten bytes a voxel of the resampled grid. That
    grid is largest for the whole image, but for rules that bring a large image, not its regions,
    down to coarser voxels; a region then has at most 1.8^3 windows, a tenth of a gigabyte more.

    Parameters
    ----------
    case
        What is asked for.
    specs
        The stages that it goes through.
    prompted
        Whether the first of them has spatial prompts; later ones always may.

    Raises
    ------
    InputError
        ``memory-too-small``: the limit does not even hold one class at a time in the narrowest
        blocks (see `axis_cuts`). The message says what would do.
    """
    if not case.memory.asked:
        return
    need = max(
        plan.memory.least_bytes
        for number, spec in enumerate(specs)
        for box in ([case.whole, smallest_region_of(case, spec)] if spec.is_fine else [case.whole])
        for plan in stage_plans(
            case, spec, box, QUALITY_LEVELS[:1], prompted=prompted or number > 0
        )
    )
    if need > case.memory.total:
        raise InputError(
            f"{size_words(case.memory.total)} of memory are too few for this case with "
            f"{case.runner} in {case.precision}: allow at least {size_words(need, up=True)}",
            code="memory-too-small",
        )


def smallest_region_of(case: CaseOutline, fine: StageSpec) -> Box:
    """Return the smallest box that the fine stage may look at."""
    return smallest_region(case.shape_dhw, case.spacing_hwd_mm, fine, case.rules, case.preset)


def seconds_of_both(
    known: Mapping[int, float], window_voxels: Mapping[int, int]
) -> dict[int, float]:
    """Return the seconds of a pass of each stage; an unknown one takes the other's a voxel.

    Parameters
    ----------
    known
        Seconds by stage number, at least one.
    window_voxels
        Voxels of each stage's window.
    """
    a_voxel = {number: known[number] / window_voxels[number] for number in known}
    other = next(iter(a_voxel.values()))
    return {number: known.get(number, other * voxels) for number, voxels in window_voxels.items()}
