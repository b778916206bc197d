"""One case whose classes want different CT windows: grouped, segmented apart, merged.

The network sees 256 gray values. Lungs and liver can't both be seen in one Hounsfield window, so
classes are grouped by the window that they want (paper 3.2; the policy says which), each group is
segmented by itself, and the results are merged. It costs the time of a case per window; whoever
wants one pass names a window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from medals_rt.common.choices import traits_of
from medals_rt.common.errors import InputError
from medals_rt.common.notes import Note
from medals_rt.common.progress import Progress
from medals_rt.inference.cascade import StageSummary
from medals_rt.inference.hybrid_prompts import only_labels
from medals_rt.inference.probability_maps import StageMaps
from medals_rt.io.volume import Volume
from medals_rt.planning.memory import MemoryLimit
from medals_rt.planning.policy import Preset, load_policy
from medals_rt.planning.time_budget import Budget
from medals_rt.postprocessing.component_filter import ComponentRemoval
from medals_rt.preprocessing.intensity import AUTO, is_prepared, parse_window
from medals_rt.prompts.classes import ClassKey
from medals_rt.prompts.embedding import EmbeddingSource
from medals_rt.prompts.prompt_set import PromptSet

Labels: TypeAlias = npt.NDArray[Any]
MergeRule: TypeAlias = Literal["probability", "larger label"]
"""Whose a voxel is that several groups claim: `Preset.merge`."""


@dataclass(frozen=True, eq=False)
class WindowGroup:
    """Classes that are segmented in one intensity window.

    Attributes
    ----------
    window
        As `SegmentOptions.window` has it: a name, width and level, or ``"auto"`` for what can't be
        seen in several (its one window follows from the classes).
    prompts
        The classes.
    name
        Of the group in progress and report; empty where it is the only one of its case.
    """

    window: str
    prompts: PromptSet
    name: str = ""

    def named(self, what: str) -> str:
        """Name a stage or a step of this group."""
        return f"{self.name}: {what}" if self.name else what


@dataclass(frozen=True, eq=False)
class GroupResult:
    """What segmenting one group came to; arrays ``(D, H, W)`` on the host, on the case's grid.

    Attributes
    ----------
    group
        What was asked for.
    sources
        Of each prompt, whose text embedding it used.
    intensities
        What the network was shown, as the report has it.
    labels_dhw, instances_dhw
        The labels, and the numbered lesions or None.
    probability_dhw
        Each voxel's largest probability, float32; None where neither the merge nor the caller
        needs it.
    stage_labels_dhw, stages
        What each stage came to, by name, and what it did.
    removals
        What post-processing removed, for each label that was treated and is there.
    notes
        Remarks on the image's values.
    memory, budget
        What the group might hold and how its time was spent.
    seconds
        By step.
    maps
        Probabilities of every class, where they are kept.
    """

    group: WindowGroup
    sources: tuple[EmbeddingSource, ...]
    intensities: Mapping[str, object]
    labels_dhw: Labels
    instances_dhw: npt.NDArray[np.uint32] | None
    probability_dhw: npt.NDArray[np.float32] | None
    stage_labels_dhw: Mapping[str, Labels]
    stages: tuple[StageSummary, ...]
    removals: tuple[ComponentRemoval, ...]
    notes: tuple[Note, ...]
    memory: MemoryLimit
    budget: Budget | None
    seconds: Mapping[str, float]
    maps: StageMaps | None = None


@dataclass(frozen=True, eq=False)
class Merged:
    """Labels of all groups.

    `contested` counts the voxels that more than one group claimed, `covered` those of anatomy that
    lesions replaced. `overruled_dhw` are those that a person corrected and the model answered
    otherwise; None: none was corrected.
    """

    labels_dhw: Labels
    instances_dhw: npt.NDArray[np.uint32] | None
    probability_dhw: npt.NDArray[np.float32] | None
    contested: int = 0
    covered: int = 0
    overruled_dhw: npt.NDArray[np.bool_] | None = None


def check_window(window: str, modality: str, preset: str | Preset = "paper") -> None:
    """Check a window before any work is done.

    Raises
    ------
    InputError
        If it is neither ``"auto"``, the name of a window of the preset nor ``"WIDTH,LEVEL"``, or is
        the name of a Hounsfield window and the case is no CT.
    """
    if window == AUTO:
        return
    named = parse_window(window, load_policy().hounsfield_windows(preset)).name
    if named is not None and not traits_of(modality).in_hounsfield:
        raise InputError(
            f"the window {named!r} is in Hounsfield units, but the prompts say {modality}; "
            "give WIDTH,LEVEL in the image's own units, or leave it out for percentiles",
            code="window-not-for-modality",
        )


def group_by_window(
    volume: Volume, prompts: PromptSet, window: str, preset: str | Preset = "paper"
) -> tuple[WindowGroup, ...]:
    """Split prompts by the CT window that each class wants, in the order of the prompts.

    There is one group where a window was named, where the image isn't CT or was prepared (its
    window was chosen by whoever made it), and where all classes agree.
    """
    groups = classes_by_window(prompts.class_keys, window, preset)
    if len(groups) == 1 or is_prepared(volume, load_policy().preset(preset).intensities):
        return (WindowGroup(window, prompts),)
    return tuple(
        WindowGroup(
            name, PromptSet(tuple(p for p in prompts.prompts if p.class_key in classes)), name
        )
        for name, classes in groups.items()
    )


def classes_by_window(
    classes: Sequence[ClassKey], window: str, preset: str | Preset = "paper"
) -> dict[str, list[ClassKey]]:
    """Group classes by the CT window that each wants, in their order.

    There is one group, of the window as given, where a window was named, where a class is not one
    of CT, and where all agree.
    """
    if window != AUTO or not all(traits_of(key.modality).in_hounsfield for key in classes):
        return {window: list(classes)}
    groups: dict[str, list[ClassKey]] = {}
    for key in classes:
        groups.setdefault(load_policy().window_under(key, preset), []).append(key)
    return groups if len(groups) > 1 else {window: list(classes)}


def part_of_annotation(annotation_dhw: Labels | None, labels: Sequence[int]) -> Labels | None:
    """Keep the part of an annotation that has these labels; None where that is nothing."""
    if annotation_dhw is None:
        return None
    kept = only_labels(annotation_dhw, labels)
    return kept.astype(annotation_dhw.dtype, copy=False) if kept.any() else None


def progress_of(progress: Progress | None, group: WindowGroup) -> Progress | None:
    """Put a group's name before its stages, where it has one."""
    if progress is None or not group.name:
        return progress
    return lambda stage, done, total: progress(group.named(stage), done, total)


def merge(results: Sequence[GroupResult], rule: MergeRule = "probability") -> Merged:
    """Merge the labels of all groups.

    A voxel that two groups claim goes to the likelier class, as within one group; of equally likely
    ones the earlier group keeps it. The authors' script takes the larger label instead
    (docs/presets.md, `native`).

    Raises
    ------
    ValueError
        Probabilities are to decide, and of several groups one has none.
    """
    first = results[0]
    merged = Merged(first.labels_dhw, first.instances_dhw, first.probability_dhw)
    for result in results[1:]:
        merged = _merge_two(merged, result, rule)
    return merged


def _merge_two(merged: Merged, result: GroupResult, rule: MergeRule) -> Merged:
    labels, probability, before = result.labels_dhw, result.probability_dhw, merged.probability_dhw
    claimed = labels > 0
    both = claimed & (merged.labels_dhw > 0)
    if rule == "larger label":
        taken = labels > merged.labels_dhw
    elif probability is None or before is None:
        raise ValueError("groups are merged by their probabilities, and one has none")
    else:
        taken = claimed & (~both | (probability > before))
    instances = merged.instances_dhw
    if instances is not None and result.instances_dhw is not None:
        shift = np.uint32(instances.max(initial=0))
        instances = np.where(taken, result.instances_dhw + shift, instances)
    kept = None
    if probability is not None and before is not None:
        kept = np.where(taken, probability, before)
    return Merged(
        np.where(taken, labels, merged.labels_dhw),
        instances,
        kept,
        merged.contested + int(np.count_nonzero(both)),
    )
