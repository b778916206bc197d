"""The ways to run a stage of a case: geometry, cuts for memory and passes at each effort.

A run chooses among them (`two_stages`), a dry run counts them (`plan`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from medals_rt.bundle.stage_spec import StageSpec
from medals_rt.common.choices import Refinement
from medals_rt.common.limits import CLASSES_PER_CHUNK
from medals_rt.common.typing import Box, Spacing
from medals_rt.planning.geometry import StageGeometry, plan_stage, smallest_region
from medals_rt.planning.memory import MemoryLimit, MemoryPlan, plan_memory
from medals_rt.planning.policy import CaseRules, Preset
from medals_rt.planning.time_budget import QualityLevel
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

    @property
    def whole(self) -> Box:
        """The box of the whole image."""
        return (0, 0, 0), self.shape_dhw


@dataclass(frozen=True)
class StagePlan:
    """A stage at one effort.

    Attributes
    ----------
    plan
        Its geometry.
    memory
        How it is cut.
    window_pass
        What is done to each window.
    """

    plan: StageGeometry
    memory: MemoryPlan
    window_pass: WindowPass

    @property
    def passes(self) -> int:
        """Network passes at most; windows without any prompt will need fewer."""
        return passes_per_window(self.window_pass) * self.memory.window_runs


def stage_plans(
    case: CaseOutline,
    spec: StageSpec,
    box_dhw: Box,
    efforts: Sequence[QualityLevel],
    *,
    prompted: bool,
    precision: str = "bf16",
) -> list[StagePlan]:
    """Plan a stage on a box of the image, once an effort.

    Parameters
    ----------
    case
        What is asked for.
    spec
        The stage.
    box_dhw
        What it looks at.
    efforts
        How thoroughly.
    prompted
        Whether there are spatial prompts.
    precision
        Arithmetic of the network.

    Raises
    ------
    InputError
        The memory does not hold one class.
    """
    d, h, w = (high - low for low, high in zip(*box_dhw, strict=True))
    ways = []
    for effort in efforts:
        plan = plan_stage(
            (h, w, d), case.spacing_hwd_mm, spec, case.rules, case.preset, effort.overlap
        )
        if not effort.iterates:
            plan = replace(plan, iterations=0)
        window_pass = WindowPass(
            stage=spec.number,
            window_index=0,
            window_hwd=spec.window_hwd,
            prompted=case.preset.prompted if prompted and case.mode != "none" else None,
            further=case.preset.further,
            further_iterations=plan.iterations if case.rules.lesion else 0,
            mode=case.mode,
            combine=case.preset.combine,
            count=case.classes,
        )
        iterates = window_pass.further_iterations > 0 and case.mode != "none"
        memory = plan_memory(
            case.classes,
            plan.resampled_shape_hwd,
            plan.windows,
            case.channels,
            case.memory,
            precision=precision,
            held=case.classes if iterates else 0,
            classes_per_chunk=case.classes_per_chunk,
        )
        ways.append(StagePlan(plan, memory, window_pass))
    return ways


def smallest_region_of(case: CaseOutline, fine: StageSpec) -> Box:
    """Give the smallest box that the fine stage may look at."""
    return smallest_region(case.shape_dhw, case.spacing_hwd_mm, fine, case.rules, case.preset)


def seconds_of_both(
    known: Mapping[int, float], window_voxels: Mapping[int, int]
) -> dict[int, float]:
    """Give the seconds of a pass of each stage; an unknown one costs as much a voxel as the other.

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
