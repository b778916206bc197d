"""Plans of a stage: geometry, cuts for memory and passes, at each quality level.

A run chooses among them (`inference.cascade`), a dry run counts them (`cost`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TypeAlias

from medals_rt.bundle.stage_spec import StageSpec
from medals_rt.common.byte_sizes import size_words
from medals_rt.common.choices import STAGE_NAMES, Refinement, StageNumber
from medals_rt.common.errors import InputError
from medals_rt.common.limits import CLASSES_PER_CHUNK
from medals_rt.common.typing import Box, Shape, Spacing
from medals_rt.planning.geometry import StageGeometry, plan_stage, smallest_region
from medals_rt.planning.memory import (
    MemoryDemand,
    MemoryLimit,
    MemoryPlan,
    case_bytes,
    joined_chains,
    plan_memory,
)
from medals_rt.planning.model_facts import ModelFacts
from medals_rt.planning.policy import CaseRules, NamedClass, Preset, load_policy
from medals_rt.planning.time_budget import QUALITY_LEVELS, QualityLevel
from medals_rt.planning.window_pass import WindowPass, passes_per_window

Chains: TypeAlias = frozenset[tuple[int, str]]
"""Chains of graphs, by stage and name: see `memory.joined_chains`."""


@dataclass(frozen=True)
class CaseSetup:
    """What planning has to know of a case, whichever classes are asked for.

    Attributes
    ----------
    shape_dhw
        Of the image.
    spacing_hwd_mm
        Repaired by rule 1 of docs/presets.md where the preset says so.
    image_bytes
        Of a voxel of the image as it is read.
    preset
        The algorithm.
    mode
        How windows are refined.
    model
        What runs it.
    memory
        What may be held.
    classes_per_chunk
        The most classes that are classified at once.
    keeps_maps
        Whether the probabilities of every class are kept.
    """

    shape_dhw: Shape
    spacing_hwd_mm: Spacing
    image_bytes: int
    preset: Preset
    mode: Refinement
    model: ModelFacts
    memory: MemoryLimit
    classes_per_chunk: int = CLASSES_PER_CHUNK
    keeps_maps: bool = False


@dataclass(frozen=True)
class CaseOutline:
    """A case with one group of its classes: everything but what its image shows.

    Attributes
    ----------
    setup
        Of the case.
    rules
        What the classes decide.
    classes
        N.
    case_bytes
        What the arrays on the case's own grid take (`memory.case_bytes`), and the probability maps
        of earlier groups.
    open_chains
        Chains of graphs that were compiled before, for other classes.
    """

    setup: CaseSetup
    rules: CaseRules
    classes: int
    case_bytes: int = 0
    open_chains: Chains = frozenset()

    @property
    def stages(self) -> list[StageSpec]:
        """The stages that the classes go through."""
        return [
            spec
            for spec in self.setup.model.stages
            if not (self.rules.skip_fine if spec.is_fine else self.rules.skip_coarse)
        ]

    def chains_by(self, stage: StageNumber) -> Chains:
        """Return the chains of graphs that are compiled by the end of a stage.

        Text-only chains of both stages are opened at the start. The coarse stage has prompts where
        lesions are iterated, and where no fine one follows that could have those drawn by hand, or
        that makes its own.
        """
        found = set(self.open_chains)
        for number in STAGE_NAMES:
            prompted = number == 2 or self.rules.lesion or self.rules.skip_fine
            chains = joined_chains(
                number, self.classes, prompted=prompted and self.setup.mode != "none"
            )
            found |= chains if number <= stage else joined_chains(number, 1, prompted=False)
        return frozenset(found)

    @property
    def whole(self) -> Box:
        """The box of the whole image."""
        return (0, 0, 0), self.setup.shape_dhw

    def starts_from_text(self, spec: StageSpec) -> bool:
        """Whether a stage makes its own prompts: the last one of the case, where that is asked."""
        is_last = spec.is_fine or self.rules.skip_fine
        return is_last and self.setup.preset.start_from == "text"


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
    threshold: float

    @property
    def passes(self) -> int:
        """Network passes at most; windows without any prompt will need fewer."""
        return passes_per_window(self.window_pass) * self.memory.window_runs


def outline_groups(
    setup: CaseSetup, groups: Iterable[Sequence[NamedClass]], open_chains: Chains = frozenset()
) -> list[CaseOutline]:
    """Outline a case group by group: each finds what earlier ones leave in memory.

    Parameters
    ----------
    setup
        Of the case.
    groups
        Classes that are segmented together, in the order of the runs.
    open_chains
        Chains of graphs that were compiled before, for other cases.
    """
    outlines: list[CaseOutline] = []
    voxels, earlier_maps = prod(setup.shape_dhw), 0
    for number, classes in enumerate(groups):
        outline = CaseOutline(
            setup,
            load_policy().rules(classes, setup.preset),
            len(classes),
            case_bytes(voxels, setup.image_bytes, number) + earlier_maps,
            open_chains,
        )
        open_chains = outline.chains_by(2)
        earlier_maps += _map_bytes(outline)
        outlines.append(outline)
    return outlines


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
    setup, preset = case.setup, case.setup.preset
    refined = setup.mode != "none"
    refined_from_text = refined and case.starts_from_text(spec)
    prompted = refined and (prompted or refined_from_text)
    plans = []
    for level in levels:
        geometry = plan_stage(
            (h, w, d),
            setup.spacing_hwd_mm,
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
            mode=setup.mode,
            combine=preset.combine,
            starts_from_text=refined_from_text,
            mirrored=preset.mirrored,
            count=case.classes,
        )
        repeats = len(window_pass.steps) > 1
        memory = plan_memory(
            MemoryDemand(
                setup.model,
                case.classes,
                case_bytes=case.case_bytes,
                open_chains=len(case.chains_by(spec.number)),
                prompted=prompted or repeats,
                held_classes=case.classes if repeats else 0,
                averaged=window_pass.averages,
                classes_per_chunk=setup.classes_per_chunk,
                keeps_maps=setup.keeps_maps,
            ),
            geometry.resampled_shape_hwd,
            geometry.windows,
            setup.memory,
        )
        plans.append(StagePlan(geometry, memory, window_pass, preset.threshold))
    return plans


def _map_bytes(case: CaseOutline) -> int:
    """Bytes of the probability maps that a group leaves, at most: those of the whole image."""
    if not case.setup.keeps_maps:
        return 0
    return max(
        case.classes * prod(plan.geometry.resampled_shape_hwd)
        for spec in case.stages
        for plan in stage_plans(case, spec, case.whole, QUALITY_LEVELS[:1], prompted=False)
    )


@dataclass(frozen=True)
class StagesOfGroup:
    """What a group of classes goes through.

    Attributes
    ----------
    outline
        The case with these classes.
    stages
        In the order of the runs.
    prompted
        Whether the first of them has spatial prompts; later ones always may.
    """

    outline: CaseOutline
    stages: Sequence[StageSpec]
    prompted: bool


def check_memory(groups: Sequence[StagesOfGroup]) -> None:
    """Refuse a limit that was asked for and does not hold every group of a case, before any work.

    The fine stage is held to the whole image and to the smallest region of interest. Any region
    needs about as much or less: what is fixed (network, weights, the case itself) does not depend
    on it, sums are cut to fit, and what is left is ten bytes a voxel of the resampled grid. That
    grid is largest for the whole image, but for rules that bring a large image, not its regions,
    down to coarser voxels; a region then has at most 1.8^3 windows, a tenth of a gigabyte more.

    Parameters
    ----------
    groups
        Of one case, at least one.

    Raises
    ------
    InputError
        ``memory-too-small``: the limit does not even hold one class at a time in the narrowest
        blocks (see `axis_cuts`). The message says what would do for all groups.
    """
    setup = groups[0].outline.setup
    memory, model = setup.memory, setup.model
    if not memory.asked:
        return
    need = max(_least_bytes(group) for group in groups)
    if need > memory.total:
        raise InputError(
            f"{size_words(memory.total)} of memory are too few for this case with "
            f"{model.runner} in {model.precision}: allow at least {size_words(need, up=True)}",
            code="memory-too-small",
        )


def _least_bytes(group: StagesOfGroup) -> int:
    """Bytes that the stages of a group take at the least."""
    case = group.outline
    return max(
        plan.memory.least_bytes
        for number, spec in enumerate(group.stages)
        for box in ([case.whole, smallest_region_of(case, spec)] if spec.is_fine else [case.whole])
        for plan in stage_plans(
            case, spec, box, QUALITY_LEVELS[:1], prompted=group.prompted or number > 0
        )
    )


def smallest_region_of(case: CaseOutline, fine: StageSpec) -> Box:
    """Return the smallest box that the fine stage may look at."""
    setup = case.setup
    return smallest_region(setup.shape_dhw, setup.spacing_hwd_mm, fine, case.rules, setup.preset)


def seconds_of_both(
    known: Mapping[StageNumber, float], window_voxels: Mapping[StageNumber, int]
) -> dict[StageNumber, float]:
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
