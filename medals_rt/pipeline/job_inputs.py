"""What a job reads: the case, its prompts, and labels drawn by hand."""

from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import Any

from medals_rt.bundle.bundle import Bundle, resolve_bundle
from medals_rt.common.cores import usable_cores
from medals_rt.common.errors import InputError, PromptError
from medals_rt.common.limits import MAX_VOXELS
from medals_rt.common.notes import Note
from medals_rt.common.progress import Progress
from medals_rt.common.stopwatch import Stopwatch
from medals_rt.inference.corrections import Correction, check_corrections
from medals_rt.inference.hybrid_prompts import check_start
from medals_rt.io.case import Case
from medals_rt.io.grids import grid_of
from medals_rt.io.registry import (
    read_case,
    read_labels,
)
from medals_rt.io.volume import Volume
from medals_rt.pipeline.drawn_labels import placed_labels
from medals_rt.pipeline.job_outputs import check_prompted_outputs
from medals_rt.pipeline.job_request import Job, ReadJob
from medals_rt.pipeline.lesions_over_anatomy import check_combination
from medals_rt.pipeline.options import PromptSource, RunOptions
from medals_rt.pipeline.window_groups import check_window
from medals_rt.prompts.prompt_set import (
    PLAIN_READING,
    PromptReading,
    PromptSet,
    parse_prompts,
)


def read_job(job: Job, progress: Progress | None = None) -> ReadJob:
    """Read the case, its prompts and its annotation.

    `progress` is called if the model is downloaded, whose classes groups of prompts depend on.

    Raises
    ------
    InputError
        A file can't be used, or the prompts name no class.
    """
    watch = Stopwatch()
    with watch.step("read"):
        case = read_case(
            job.input, max_voxels=job.options.max_voxels, series=job.series, select=job.select
        )
        read = prepare_job(job, case, progress)
    return replace(read, seconds=watch.seconds)


def prepare_job(job: Job, case: Case, progress: Progress | None = None) -> ReadJob:
    """Choose the prompts of a case that was read before, read its annotation, and check both.

    `progress` is as for `read_job`.

    Raises
    ------
    InputError
        The prompts name no class, or the annotation or an option can't be used.
    """
    prompts = _prompts_of(case, job.source, job.options, progress)
    annotation = result_dhw = None
    corrections: tuple[Correction, ...] = ()
    if job.corrects is not None:
        correction, result_dhw, notes = _read_correction(job, job.corrects, case.volume, prompts)
        corrections = (correction,)
        case = replace(case, notes=(*case.notes, *notes))
    elif job.spatial_prompts is not None:
        annotation, notes = read_annotation(
            job.spatial_prompts,
            case.volume,
            prompts,
            resample=job.resample,
            max_voxels=job.options.max_voxels,
        )
        case = replace(case, notes=(*case.notes, *notes))
    preset = job.options.segment.algorithm
    check_window(job.options.segment.window, prompts.modality, preset)
    check_start(preset, annotated=annotation is not None or bool(corrections))
    check_corrections(corrections, grid_of(case.volume), prompts, preset)
    notes = (
        *check_prompted_outputs(job, case, prompts),
        *_thread_notes(job.options),
    )
    case = replace(case, notes=(*case.notes, *notes))
    check_combination(prompts, preset)
    return ReadJob(job, case, prompts, annotation, {}, corrections, result_dhw)


def _read_correction(
    job: Job, result: Path, volume: Volume, prompts: PromptSet
) -> tuple[Correction, Any, tuple[Note, ...]]:
    """Compare a result, which is returned too, with what a person made of it; note what differs.

    Raises
    ------
    InputError
        There is nothing to compare, or the two are no labels of these prompts on the case's grid.
    """
    corrected = job.spatial_prompts
    if corrected is None:
        raise InputError(
            f"what became of {result.name}? give the corrected labels with --spatial-prompts",
            code="nothing-corrected",
        )
    if job.resample:
        raise InputError(
            "resampled labels differ from a result at every edge: leave out --resample, and "
            f"correct {result.name} on its own grid",
            code="correction-resampled",
        )
    before, after = (
        read_labels(path, max_voxels=job.options.max_voxels) for path in (result, corrected)
    )
    if not after.segment_names:  # a viewer that keeps no names keeps the numbers
        after = replace(after, segment_names=before.segment_names)
    before_dhw, notes = placed_labels(before, result.name, volume, prompts)
    after_dhw, more = placed_labels(after, corrected.name, volume, prompts)
    made = Correction.of(before_dhw, after_dhw, prompts.labels)
    count = "1 voxel" if made.voxels == 1 else f"{made.voxels:,} voxels"
    text = f"{corrected.name} corrects {count} of {result.name}"
    return made, before_dhw, (*notes, *more, Note("corrects", text))


def _thread_notes(options: RunOptions) -> tuple[Note, ...]:
    """Note that more threads were asked for than there are cores; see `open_models`."""
    cores = usable_cores()
    if options.threads is None or options.threads <= cores:
        return ()
    text = f"{options.threads:,} threads are asked for; as many as the {cores} cores here are used"
    return (Note("threads-bounded", text),)


def read_prompted_case(
    path: Path,
    source: PromptSource,
    options: RunOptions,
    series: str | None = None,
    select: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> tuple[Case, PromptSet]:
    """Read a case and choose its prompts.

    Raises
    ------
    InputError
        A file can't be used, or the prompts name no class.
    """
    case = read_case(path, max_voxels=options.max_voxels, series=series, select=select)
    return case, _prompts_of(case, source, options, progress)


def _prompts_of(
    case: Case, source: PromptSource, options: RunOptions, progress: Progress | None
) -> PromptSet:
    """Choose the prompts of a case; groups of classes are those that the bundle covers."""
    covered = None
    if source.asks_for_groups:
        covered = Bundle.open(resolve_bundle(options.bundle, progress), verify=False).class_rows
    return choose_prompts(case, source, options.reading, covered)


def choose_prompts(
    case: Case,
    source: PromptSource,
    reading: PromptReading = PLAIN_READING,
    covered: Container[str] | None = None,
) -> PromptSet:
    """Take the prompts from a file, from sentences and groups, or from inside the case.

    `covered` are bank keys of the model's classes, for groups.

    Raises
    ------
    PromptError
        There are none, both a file and sentences, or one of them names no class.
    """
    if reading.modality is None and case.modality is not None:
        try:
            return _read_prompts(case, source, reading, covered)
        except PromptError:  # what the sentences leave open, the file may state
            stated = replace(reading, modality=case.modality)
            return _read_prompts(case, source, stated, covered)
    return _read_prompts(case, source, reading, covered)


def _read_prompts(
    case: Case, source: PromptSource, reading: PromptReading, covered: Container[str] | None
) -> PromptSet:
    stated = source.read(reading, covered)
    if stated is not None:
        return stated
    if case.prompts is None:
        raise PromptError(
            f"{case.path} holds no text_prompts: pass --prompts FILE "
            'or --prompt "Liver in abdominal CT", or --all',
            code="no-prompts",
        )
    return parse_prompts(case.prompts, reading)


def read_annotation(
    path: Path,
    volume: Volume,
    prompts: PromptSet | None = None,
    *,
    resample: bool = False,
    max_voxels: int = MAX_VOXELS,
) -> tuple[Any, tuple[Note, ...]]:
    """Read labels that were drawn on `volume`.

    Parameters
    ----------
    path
        The file of labels.
    volume
        The image.
    prompts
        What labels mean: those that the file gives another number are renumbered.
    resample
        Whether labels on another grid are brought onto the image's, by the nearest voxel.
    max_voxels
        Larger files are refused.

    Returns
    -------
    labels_dhw
        On the grid of `volume`, `(D, H, W)`.
    notes
        That they were resampled or renumbered.

    Raises
    ------
    CaseError
        The file is broken; ``annotation-on-another-grid``, or with `resample` ``place-unknown``
        where a file knows no place and ``annotation-outside`` where no label reaches the image;
        ``annotation-names`` where names contradict the prompts and don't settle every label.
    """
    labels = read_labels(path, max_voxels=max_voxels)
    return placed_labels(labels, path.name, volume, prompts, resample=resample)
