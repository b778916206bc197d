"""What a job writes once the network has run, and what it measures for that."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from medals_rt.common.arrays import label_counts, to_host
from medals_rt.common.atomic_io import prepare_output, write_json
from medals_rt.common.choices import traits_of
from medals_rt.inference.cascade import ONE_STAGE
from medals_rt.io.case import Case
from medals_rt.io.dicom.results import number_objects, object_color, object_name
from medals_rt.io.dicom.sr import SegmentMeasures, write_report
from medals_rt.io.dicom.web import store_files
from medals_rt.io.nifti import write_probability
from medals_rt.io.registry import write_segmentation
from medals_rt.io.segment_metadata import Segment, segments_of
from medals_rt.io.volume import Volume
from medals_rt.pipeline.class_files import write_class_files
from medals_rt.pipeline.class_statistics import ClassStatistics, class_statistics
from medals_rt.pipeline.csv_tables import (
    LESION_COLUMNS,
    STATISTICS_COLUMNS,
    lesion_row,
    statistics_row,
    write_csv,
)
from medals_rt.pipeline.job_outputs import (
    all_outputs,
    files_of_classes,
    files_of_maps,
)
from medals_rt.pipeline.job_request import ReadJob, lesion_table
from medals_rt.pipeline.lesion_statistics import LesionStatistics, lesion_statistics
from medals_rt.pipeline.output_grid import OutputGrid, lost_notes, on_grid
from medals_rt.pipeline.preview import Orientation, save_preview
from medals_rt.pipeline.segmenter import Result
from medals_rt.planning.policy import load_policy
from medals_rt.preprocessing.intensity import prepare_intensities
from medals_rt.prompts.prompt_set import PromptSet

_MOST_DRAWN: Final = 32
"""Objects that a picture draws in a color and line style each."""


def write_job(read: ReadJob, result: Result) -> Result:
    """Write labels and what else the job asks for, each file whole or not at all.

    Folders are made now. Returned is the result with a note of what its files can't hold.

    Raises
    ------
    InputError
        A folder can't be made or written any more.
    OutputError
        A file can't be written, as when the disk is full.
    ServerError
        The output can't be stored on a server.
    """
    job = read.job
    for path in all_outputs(job):
        prepare_output(path)
    case, written, grid = on_grid(read.case, result, job.grid)
    report = result.report
    lost = lost_notes(result, written)
    result = replace(result, report=replace(report, notes=(*report.notes, *lost)))
    write_labels(job.output, replace(read, case=case), written, format=job.format)
    write_class_files(
        files_of_classes(job, read.prompts),
        case,
        written.labels_dhw,
        read.prompts,
        model=result.report.bundle["name"],
        notice=result.report.bundle["notice"],
        mesh_reduction=job.mesh_reduction,
    )
    write_maps(files_of_maps(job, read.prompts), case, result, grid)
    if job.report is not None:
        write_json(job.report, result.report.to_dict())
    if job.preview is not None:
        write_preview(job.preview, read, result)
    if job.statistics is not None:
        rows = [statistics_row(found) for found in measure(read, result)]
        write_csv(job.statistics, STATISTICS_COLUMNS, rows)
    _write_lesions(read, result, case, written.instances_dhw)
    if job.sr is not None:
        write_report(
            job.sr,
            job.output,
            measure_segments(read, result),
            modality=read.prompts.modality,
            notice=result.report.bundle["notice"],
        )
    if job.store is not None:
        store_files(job.store, [job.output] if job.sr is None else [job.output, job.sr])
    return result


def write_labels(
    path: Path,
    read: ReadJob,
    result: Result,
    *,
    format: str | None = None,  # noqa: A002 - as in `write_segmentation`
) -> None:
    """Write the labels of a job; see `registry.write_segmentation`."""
    write_segmentation(
        path,
        read.case,
        result.labels_dhw,
        instances_dhw=result.instances_dhw,
        prompts=read.prompts,
        model=result.report.bundle["name"],
        notice=result.report.bundle["notice"],
        format=format,
        mesh_reduction=read.job.mesh_reduction,
    )


def write_preview(path: Path, read: ReadJob, result: Result) -> None:
    """Draw the picture of a job; see `draw_preview`."""
    report = result.report
    notices = [note.text for note in report.notes if note.code == ONE_STAGE]
    draw_preview(
        path,
        read.case.volume,
        result.labels_dhw,
        read.prompts,
        read.job.options.segment.window,
        read.job.options.segment.preset,
        notices=[each for each in (*notices, report.incomplete, report.bundle["notice"]) if each],
        instances_dhw=result.instances_dhw,
    )


def draw_preview(
    path: Path,
    volume: Volume,
    labels_dhw: Any,
    prompts: PromptSet,
    window: str = "auto",
    preset: str = "paper",
    notices: Sequence[str] = (),
    instances_dhw: Any | None = None,
) -> None:
    """Draw a result on its image, in the intensities that the model saw.

    Lesions have a color and a number each, unless there are more than can be told apart.
    """
    if window == "auto":
        window = load_policy().intensity_window(prompts.parts[0].class_keys, preset)
    shown = prepare_intensities(volume, prompts.modality, window, preset)
    orientation: Orientation = "known"
    if not traits_of(prompts.modality).has_body:
        orientation = "none"
    elif not volume.has_orientation:
        orientation = "assumed"
    names = {prompt.label: prompt.class_key.name for prompt in prompts.prompts}
    colors = tags = None
    if instances_dhw is not None:
        segments = segments_of(prompts, labels_dhw)
        numbers, objects = number_objects(labels_dhw, instances_dhw, segments, path.name)
        if len(objects) <= _MOST_DRAWN:
            labels_dhw = numbers
            by_label = sorted(enumerate(objects, 1), key=lambda each: each[1][0].label)
            names = {number: object_name(*each) for number, each in by_label}
            colors = {number: object_color(*each) for number, each in by_label}
            tags = {
                number: f"{segment.label}" if instance is None else f"{segment.label}.{instance}"
                for number, (segment, instance) in by_label
            }
    save_preview(
        path,
        to_host(shown.image_dhw),
        labels_dhw,
        volume.spacing_dhw_mm,
        names,
        title=volume.name,
        voxel_ml=volume.voxel_ml,
        tags=tags,
        colors=colors,
        orientation=orientation,
        notices=notices,
    )


def write_maps(
    files: Mapping[int, Path], case: Case, result: Result, grid: OutputGrid | None = None
) -> None:
    """Write the probability map of each label, on the grid of the labels that are written."""
    for label, path in files.items():
        if result.probabilities is None:
            raise AssertionError(path)
        found = result.probabilities[label]
        write_probability(path, case, found if grid is None else grid.probability(found))


def _write_lesions(
    read: ReadJob, result: Result, case: Case, instances: npt.NDArray[np.uint32] | None
) -> None:
    """Write what the job asks for of each lesion; the numbers on the grid of `case`."""
    job = read.job
    if instances is None or (job.statistics is None and job.instances is None):
        return
    lesions = measure_lesions(read, result)
    if job.statistics is not None:
        write_csv(lesion_table(job.statistics), LESION_COLUMNS, map(lesion_row, lesions))
    if job.instances is not None:
        write_segmentation(
            job.instances,
            case,
            instances,
            prompts={str(each.instance): f"{each.name} {each.instance}" for each in lesions},
            segments=_segments_of_lesions(read, result),
            model=result.report.bundle["name"],
            notice=result.report.bundle["notice"],
        )


def _segments_of_lesions(read: ReadJob, result: Result) -> tuple[Segment, ...]:
    """Describe each numbered lesion as a label of its own, with the codes of its class."""
    labels, instances = result.labels_dhw, result.instances_dhw
    segments = segments_of(read.prompts, labels)
    _, objects = number_objects(labels, instances, segments, read.job.output.name)
    return tuple(
        replace(
            segment,
            label=instance,
            name=object_name(segment, instance),
            rgb=object_color(segment, instance),
        )
        for segment, instance in objects
        if instance is not None
    )


def measure(read: ReadJob, result: Result) -> tuple[ClassStatistics, ...]:
    """Measure what was found of each class on the image as it was read."""
    names = {found.label: found.name for found in result.report.classes}
    return class_statistics(read.case.volume, result.labels_dhw, names)


def measure_lesions(read: ReadJob, result: Result) -> tuple[LesionStatistics, ...]:
    """Measure each numbered lesion on the image as it was read; none where there are none."""
    if result.instances_dhw is None:
        return ()
    names = {found.label: found.name for found in result.report.classes}
    return lesion_statistics(read.case.volume, result.labels_dhw, result.instances_dhw, names)


def measure_segments(read: ReadJob, result: Result) -> list[SegmentMeasures]:
    """Measure what a DICOM SEG of the result holds, in the order of its segments."""
    volume, instances = read.case.volume, result.instances_dhw
    lesions: dict[int | None, LesionStatistics] = {
        each.instance: each for each in measure_lesions(read, result)
    }
    segments = segments_of(read.prompts, result.labels_dhw)
    numbers, objects = number_objects(result.labels_dhw, instances, segments, read.job.output.name)
    voxels = label_counts(numbers, len(objects) + 1)
    measured = []
    for number, (_, instance) in enumerate(objects, 1):
        lesion = lesions.get(instance)
        axes = () if lesion is None else (lesion.axial_longest_mm, lesion.axial_short_mm)
        measured.append(SegmentMeasures(int(voxels[number]) * volume.voxel_ml, *axes))
    return measured
