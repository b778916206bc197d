"""What options ask of planning, the same for a run and for its dry run."""

from __future__ import annotations

from medals_rt.common.typing import Shape, Spacing
from medals_rt.pipeline.options import SegmentOptions
from medals_rt.planning.memory import MemoryLimit
from medals_rt.planning.model_facts import ModelFacts
from medals_rt.planning.stage_plan import CaseSetup


def case_setup(
    shape_dhw: Shape,
    spacing_hwd_mm: Spacing,
    image_bytes: int,
    segment: SegmentOptions,
    model: ModelFacts,
    memory: MemoryLimit,
) -> CaseSetup:
    """Return what planning has to know of a case under options.

    Parameters
    ----------
    shape_dhw, spacing_hwd_mm, image_bytes, model, memory
        As in a `CaseSetup`.
    segment
        What is asked for.
    """
    return CaseSetup(
        shape_dhw,
        spacing_hwd_mm,
        image_bytes,
        segment.algorithm,
        segment.refinement,
        model,
        memory,
        segment.classes_per_chunk,
        keeps_maps=segment.probabilities,
    )
