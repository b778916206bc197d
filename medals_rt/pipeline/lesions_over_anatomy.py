"""One case that asks for anatomy and lesions: two passes, each as if asked for alone, then merged.

The network is trained for one kind at a time, so each kind is segmented by itself, with its own
rules and windows. Where a lesion was found the label is the lesion's: it lies in the organ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from medals_rt.common.errors import PromptError
from medals_rt.common.notes import Note
from medals_rt.inference.corrections import Correction, parts_of
from medals_rt.io.volume import Volume
from medals_rt.pipeline.corrected_voxels import drawn_last, keep_corrected
from medals_rt.pipeline.window_groups import (
    GroupResult,
    Merged,
    MergeRule,
    WindowGroup,
    group_by_window,
    merge,
)
from medals_rt.planning.policy import Preset
from medals_rt.prompts.prompt_set import PromptSet

_NAMES: Final = {"anatomy": "organs", "lesion": "lesions"}


def check_combination(prompts: PromptSet, preset: Preset) -> None:
    """Check before any work that a preset can keep anatomy and lesions apart.

    Raises
    ------
    PromptError
        ``lesions-without-labels``: both are asked for, and the preset gives all lesions the label
        1.
    """
    if len(prompts.parts) > 1 and preset.lesions == "binary":
        raise PromptError(
            f"under the preset {preset.name!r} every lesion has the label 1, so that lesions "
            "can't be told from organs; run them one after the other, or use another preset",
            code="lesions-without-labels",
        )


def case_groups(
    volume: Volume, prompts: PromptSet, window: str, preset: Preset
) -> tuple[WindowGroup, ...]:
    """Split a case into the groups that are segmented one after the other, by kind and window."""
    parts = prompts.parts
    if len(parts) == 1:
        return group_by_window(volume, prompts, window, preset)
    return tuple(
        replace(group, name=", ".join(filter(None, (_NAMES[part.kind], group.name))))
        for part in parts
        for group in group_by_window(volume, part, window, preset)
    )


def covering_labels(part: PromptSet, prompts: PromptSet) -> frozenset[int]:
    """Return the labels of a case that lie over those of a part of it: lesions over anatomy."""
    if part.kind != "anatomy":
        return frozenset()
    return frozenset(each.label for each in prompts.prompts if each.class_key.kind == "lesion")


def merge_case(
    results: Sequence[GroupResult],
    rule: MergeRule = "probability",
    corrections: Sequence[Correction] = (),
) -> Merged:
    """Merge the labels of all groups: those of a kind by a preset's rule, lesions over anatomy.

    Voxels that were corrected keep what they were made, in each kind by itself: where a lesion was
    erased, the organ below it is found.
    """
    by_kind: dict[str, list[GroupResult]] = {}
    for result in results:
        by_kind.setdefault(result.group.prompts.kind, []).append(result)
    labels = {
        kind: {label for each in of_kind for label in each.group.prompts.labels}
        for kind, of_kind in by_kind.items()
    }
    merged = []
    for kind, of_kind in by_kind.items():
        covering = labels.get("lesion", set()) if kind == "anatomy" else set()
        own = parts_of(corrections, labels[kind], covering)
        merged.append(keep_corrected(merge(of_kind, rule), own))
    return merged[0] if len(merged) == 1 else drawn_last(_cover(*merged), corrections)


def covered_notes(merged: Merged, voxel_ml: float) -> tuple[Note, ...]:
    """Note how much of the anatomy lesions replaced."""
    if not merged.covered:
        return ()
    text = (
        f"lesions lie over {merged.covered:,} voxels ({merged.covered * voxel_ml:.3g} mL) of "
        "organs, whose volumes are without them"
    )
    return (Note("lesions-over-organs", text),)


def _cover(anatomy: Merged, lesions: Merged) -> Merged:
    covers = lesions.labels_dhw > 0
    probability = None
    if anatomy.probability_dhw is not None and lesions.probability_dhw is not None:
        probability = np.where(covers, lesions.probability_dhw, anatomy.probability_dhw)
    return Merged(
        np.where(covers, lesions.labels_dhw, anatomy.labels_dhw),
        lesions.instances_dhw,
        probability,
        anatomy.contested + lesions.contested,
        int(np.count_nonzero(covers & (anatomy.labels_dhw > 0))),
        _either(anatomy.overruled_dhw, lesions.overruled_dhw),
    )


def _either(
    first: npt.NDArray[np.bool_] | None, second: npt.NDArray[np.bool_] | None
) -> npt.NDArray[np.bool_] | None:
    if first is None or second is None:
        return second if first is None else first
    return first | second
