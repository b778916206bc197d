"""A run that goes on from a result in a file, which a person corrected.

The file says nothing of how it came to be. So the run makes the result once more, and what the file
has otherwise (an earlier correction, mostly) is taken for one: nothing that a person did is lost.
Windows that nothing of it touches are not computed twice.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from medals_rt.common.arrays import present_values
from medals_rt.common.notes import Note, warning
from medals_rt.common.progress import Progress
from medals_rt.common.stopwatch import Stopwatch
from medals_rt.inference.corrections import Correction
from medals_rt.inference.hybrid_prompts import only_labels
from medals_rt.inference.kept import FeatureCache, default_bytes
from medals_rt.pipeline.job_request import ReadJob
from medals_rt.pipeline.report import Provenance
from medals_rt.pipeline.segmenter import CaseSegmenter, Result
from medals_rt.prompts.prompt_set import PromptSet

STEP = "result before"
"""What making the result once more is called in the report and in the progress."""


def segment_corrected(
    segmenter: CaseSegmenter,
    read: ReadJob,
    result_dhw: npt.NDArray[Any],
    provenance: Provenance,
    progress: Progress | None = None,
) -> Result:
    """Segment a case whose result was corrected.

    Parameters
    ----------
    segmenter
        The models.
    read
        The job; its corrections are of the result.
    result_dhw
        The result as the file has it, on the case's grid.
    provenance, progress
        As for `Segmenter.segment`.

    Raises
    ------
    MedalsError
        As `Segmenter.segment`.
    """
    volume, options = read.case.volume, read.job.segment_options
    name = "the result" if read.job.corrects is None else read.job.corrects.name
    if options.time_budget is not None:
        text = (
            f"a time budget leaves no time to see whether {name} is what this run makes: what was "
            "corrected in it before may be lost"
        )
        notes = (*provenance.notes, warning("result-not-compared", text))
        return segmenter.segment(
            volume,
            read.prompts,
            options,
            corrections=read.corrections,
            provenance=replace(provenance, notes=notes),
            progress=progress,
        )
    # What is kept takes of the memory: none where that was bounded, and may not do for both.
    free = segmenter.memory_limit(None).total if options.max_memory is None else 0
    watch = Stopwatch()
    with FeatureCache(default_bytes(free)).image() as kept:
        with watch.step(STEP):
            made = segmenter.segment(
                volume, read.prompts, options, progress=_named(progress), kept=kept
            )
        corrections = read.corrections
        asked_dhw, added = _with_added(made.labels_dhw, result_dhw, read.prompts, name)
        relabeled = _relabeled(made.labels_dhw, asked_dhw, read.prompts, name)
        notes = (*provenance.notes, *added, *relabeled)
        differs = int(np.count_nonzero(made.labels_dhw != asked_dhw))
        if differs:
            before = Correction.of(made.labels_dhw, asked_dhw, read.prompts.labels)
            corrections = (replace(before, is_earlier=True), *corrections)
            text = (
                f"{name} differs from what this run makes in {differs:,} voxels (corrected before, "
                "or made with other options or elsewhere): they stay, too"
            )
            notes = (*notes, warning("corrected-before", text))
        return segmenter.segment(
            volume,
            read.prompts,
            options,
            corrections=corrections,
            provenance=replace(
                provenance, notes=notes, seconds={**provenance.seconds, **watch.seconds}
            ),
            progress=progress,
            kept=kept,
        )


def _named(progress: Progress | None) -> Progress | None:
    if progress is None:
        return None
    return lambda stage, done, total: progress(f"{STEP}: {stage}", done, total)


def _with_added(
    made_dhw: npt.NDArray[Any], result_dhw: npt.NDArray[Any], prompts: PromptSet, name: str
) -> tuple[npt.NDArray[Any], tuple[Note, ...]]:
    """Return a result's labels with those that it has nowhere as this run makes them.

    They were not asked for before, or not found: that a person erased all of one can't be told.
    """
    asked_dhw = only_labels(result_dhw, prompts.labels)
    there = present_values(asked_dhw)
    added = [each for each in prompts.prompts if each.label not in there]
    found_dhw = only_labels(made_dhw, [each.label for each in added])
    if not found_dhw.any():
        return asked_dhw, ()
    names = ", ".join(each.class_key.name for each in added)
    text = f"{name} holds nothing of {names}: taken as this run finds them"
    return np.where(asked_dhw > 0, asked_dhw, found_dhw), (Note("classes-added", text),)


def _relabeled(
    made_dhw: npt.NDArray[Any], result_dhw: npt.NDArray[Any], prompts: PromptSet, name: str
) -> tuple[Note, ...]:
    """Warn of a result most of one label of which this run gives another.

    A person may have changed them; or the prompts stand in another order than those that made it.
    """
    labels = prompts.labels
    highest = max(labels)
    number = np.zeros(highest + 1, np.intp)  # of a label; 0 for the background
    number[list(labels)] = np.arange(1, len(labels) + 1)
    size = len(labels) + 1
    table = np.zeros(size * size, np.int64)
    for made, known in zip(made_dhw, result_dhw, strict=True):
        codes = number[made] * size + number[known]
        table += np.bincount(codes.ravel(), minlength=len(table))
    found = []
    for row, prompt in enumerate(prompts.prompts, 1):
        of_label = table[row * size : (row + 1) * size]
        other = int(of_label[1:].argmax()) + 1
        if other != row and 2 * of_label[other] > of_label.sum():
            found.append(f"label {labels[other - 1]} where this run finds {prompt.class_key.name}")
    if not found:
        return ()
    text = (
        f"{name} has {'; '.join(found)}: it stays so. If nobody changed that, give the prompts "
        "that made it, in their order"
    )
    return (warning("result-relabeled", text),)
