"""One case whose classes want different CT windows: once a window, then merged.

The network sees 256 gray values. Lungs and liver can't both be seen in one Hounsfield window, so
that classes are grouped by the window that they want (paper 3.2; the policy says which), each group
is segmented by itself, and the results are laid over each other. It costs the time of a case a
window; whoever wants one pass names a window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from medals_rt.common.errors import InputError
from medals_rt.common.notes import Note
from medals_rt.common.progress import Progress
from medals_rt.inference.hybrid_prompts import checked_annotation
from medals_rt.pipeline.report import class_records
from medals_rt.planning.policy import load_policy
from medals_rt.preprocessing.intensity import AUTO, is_prepared, parse_window
from medals_rt.prompts.prompt_set import PromptSet

if TYPE_CHECKING:
    from medals_rt.io.volume import Volume
    from medals_rt.pipeline.report import RunReport
    from medals_rt.pipeline.segmenter import Result

Labels: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Pass:
    """One call of the segmenter.

    Attributes
    ----------
    prompts
        The classes of this pass.
    window
        As `Segmenter.segment` takes it.
    annotation_dhw
        Labels drawn by the user that belong to these classes, or None.
    keep_probability
        Whether the result's probabilities are needed.
    progress
        Told of windows done.
    """

    prompts: PromptSet
    window: str
    annotation_dhw: Labels | None
    keep_probability: bool
    progress: Progress | None


@dataclass(frozen=True, eq=False)
class _Merged:
    """Labels that passes agreed on so far, and what voxels that two of them claim hang on."""

    labels_dhw: Labels
    instances_dhw: npt.NDArray[np.uint32] | None
    probability_dhw: npt.NDArray[np.float32]
    contested: int


def check_window(window: str, modality: str) -> None:
    """Check a window before any work is done.

    Raises
    ------
    InputError
        If it is neither `"auto"`, a window's name nor `"WIDTH,LEVEL"`, or is a Hounsfield window's
        name and the case is no CT.
    """
    if window == AUTO:
        return
    named = parse_window(window).name
    if named is not None and modality != "CT":
        raise InputError(
            f"the window {named!r} is one of Hounsfield units, but the prompts say {modality}; "
            "give WIDTH,LEVEL in the image's own units, or leave it out for percentiles"
        )


def group_by_window(volume: Volume, prompts: PromptSet, window: str) -> dict[str, PromptSet]:
    """Split prompts by the CT window that each class wants, in the order of the prompts.

    There is one group where a window was named, where the image isn't CT or was prepared (its
    window was chosen by whoever made it), and where all classes agree; its window is as given.
    """
    whole = {window: prompts}
    if window != AUTO or prompts.modality != "CT":
        return whole
    policy = load_policy()
    groups: dict[str, list[Any]] = {}
    for prompt in prompts.prompts:
        groups.setdefault(policy.window_of(prompt.class_key), []).append(prompt)
    if len(groups) == 1 or is_prepared(volume):
        return whole
    return {name: PromptSet(tuple(group)) for name, group in groups.items()}


def segment_by_window(
    volume: Volume,
    prompts: PromptSet,
    window: str,
    annotation_dhw: Labels | None,
    progress: Progress | None,
    run: Callable[[Pass], Result],
) -> Result:
    """Segment a case, once for each CT window that its classes want.

    A voxel that two passes claim goes to the likelier class, as within one pass (system section 5).
    Within a pass all is as if its classes were the only ones asked for: rules for a single class
    apply to a group of one.

    Parameters
    ----------
    volume, prompts
        The case.
    window
        `"auto"`, or a window for all classes.
    annotation_dhw
        Labels `(D, H, W)` drawn by the user, or None.
    progress
        Told the window and stage, the sliding windows done, and those in all.
    run
        Does one pass: calls `Segmenter.segment`.

    Returns
    -------
    Result
        Of all classes, with one report: stages and steps are named `window: stage`. Where there is
        one group only, it is what `run` gave.

    Raises
    ------
    InputError
        As `check_window`, and as `run`.
    """
    check_window(window, prompts.modality)
    groups = group_by_window(volume, prompts, window)
    if len(groups) == 1:
        return run(Pass(prompts, window, annotation_dhw, keep_probability=False, progress=progress))
    annotation = checked_annotation(annotation_dhw, volume.shape_dhw, prompts)
    merged: _Merged | None = None
    reports: list[RunReport] = []
    stage_labels: dict[str, Labels] = {}
    for name, group in groups.items():
        drawn = _only(annotation, group.labels)
        result = run(
            Pass(group, name, drawn, keep_probability=True, progress=_named(progress, name))
        )
        merged = _merge(merged, result)
        reports.append(result.report)
        for stage, labels in result.stage_labels_dhw.items():
            stage_labels[f"{name}: {stage}"] = labels
    if merged is None:
        raise InputError("no class was asked for: give at least one prompt")
    report = _one_report(tuple(groups), reports, prompts, merged, volume.voxel_ml)
    return replace(
        result,
        labels_dhw=merged.labels_dhw,
        instances_dhw=merged.instances_dhw,
        stage_labels_dhw=stage_labels,
        report=report,
        probability_dhw=None,
    )


def _only(annotation_dhw: Labels | None, labels: Sequence[int]) -> Labels | None:
    """Keep the part of an annotation that has these labels; None where that is nothing."""
    if annotation_dhw is None:
        return None
    kept = np.where(np.isin(annotation_dhw, labels), annotation_dhw, 0)
    return kept.astype(annotation_dhw.dtype) if kept.any() else None


def _named(progress: Progress | None, window: str) -> Progress | None:
    if progress is None:
        return None
    return lambda stage, done, total: progress(f"{window}: {stage}", done, total)


def _merge(merged: _Merged | None, result: Result) -> _Merged:
    """Lay a pass's result over those before; the likelier class keeps a contested voxel."""
    labels, probability = result.labels_dhw, result.probability_dhw
    if probability is None:
        raise InputError("a pass to be merged gave no probabilities; ask for them")
    if merged is None:
        return _Merged(labels, result.instances_dhw, probability, 0)
    claimed = labels > 0
    both = claimed & (merged.labels_dhw > 0)
    taken = claimed & (~both | (probability > merged.probability_dhw))
    instances = merged.instances_dhw
    if instances is not None and result.instances_dhw is not None:
        shift = np.uint32(instances.max(initial=0))
        instances = np.where(taken, result.instances_dhw + shift, instances)
    return _Merged(
        np.where(taken, labels, merged.labels_dhw),
        instances,
        np.where(taken, probability, merged.probability_dhw),
        merged.contested + int(np.count_nonzero(both)),
    )


def _one_report(
    windows: Sequence[str],
    reports: Sequence[RunReport],
    prompts: PromptSet,
    merged: _Merged,
    voxel_ml: float,
) -> RunReport:
    """Make one report of several passes: counts of the merged labels, times added up."""
    sources = {record.label: record.embedding for each in reports for record in each.classes}
    labels_of = [[record.label for record in each.classes] for each in reports]
    seconds: dict[str, float] = {}
    for window, each in zip(windows, reports, strict=True):
        for step, taken in each.seconds.items():
            if step != "total":
                seconds[f"{window}: {step}"] = taken
    total = sum(each.seconds["total"] for each in reports)
    peaks = [each.peak_memory_mib for each in reports if each.peak_memory_mib is not None]
    budgets = {window: each.budget for window, each in zip(windows, reports, strict=True)}
    passes = "; ".join(
        f"{window} for labels {', '.join(map(str, labels))}"
        for window, labels in zip(windows, labels_of, strict=True)
    )
    text = (
        f"the classes want {len(windows)} CT windows, so the case was run once for each ({passes}) "
        f"and merged; {merged.contested} voxels claimed by two passes went to the likelier class"
    )
    return replace(
        reports[0],
        intensities={
            "action": "windows",
            "windows": [
                {**each.intensities, "labels": labels}
                for each, labels in zip(reports, labels_of, strict=True)
            ],
            "contested_voxels": merged.contested,
        },
        classes=class_records(
            prompts,
            tuple(sources[label] for label in prompts.labels),
            merged.labels_dhw,
            merged.instances_dhw,
            voxel_ml,
        ),
        stages=tuple(
            replace(stage, name=f"{window}: {stage.name}")
            for window, each in zip(windows, reports, strict=True)
            for stage in each.stages
        ),
        seconds={**seconds, "total": total},
        seconds_per_class=total / len(prompts.labels),
        peak_memory_mib=max(peaks, default=None),
        budget={"passes": budgets} if any(budgets.values()) else None,
        notes=(
            Note("windows-merged", text),
            *dict.fromkeys(note for each in reports for note in each.notes),
        ),
    )
