"""One case from files to files: read, segment, write. The command `medals-rt run` is this."""

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from medals_rt.bundle.bundle import Bundle, resolve_bundle
from medals_rt.common.arrays import to_host
from medals_rt.common.atomic_io import prepare_output, write_json
from medals_rt.common.choices import OutputFormat
from medals_rt.common.errors import CaseError, InputError, PromptError
from medals_rt.common.notes import Note, warning
from medals_rt.common.optional_deps import require
from medals_rt.common.progress import Progress, whole
from medals_rt.common.stopwatch import Stopwatch
from medals_rt.inference.hybrid_prompts import check_start
from medals_rt.io.case import Case
from medals_rt.io.dicom.results import number_objects, object_name
from medals_rt.io.dicom.sr import SegmentMeasures, write_report
from medals_rt.io.dicom.web import check_store, store_files
from medals_rt.io.grids import fill_left_out, grid_of, same_grid
from medals_rt.io.meshes import MESHES
from medals_rt.io.registry import (
    FORMATS,
    OUTPUT_ENDINGS,
    case_stem,
    check_output,
    format_of_output,
    is_dicom,
    read_case,
    read_labels,
    write_segmentation,
)
from medals_rt.io.segment_metadata import segments_of
from medals_rt.io.volume import Volume
from medals_rt.pipeline.class_files import (
    check_class_files,
    class_files,
    split_ending,
    write_class_files,
)
from medals_rt.pipeline.class_statistics import ClassStatistics, class_statistics
from medals_rt.pipeline.csv_tables import (
    LESION_COLUMNS,
    STATISTICS_COLUMNS,
    lesion_row,
    statistics_row,
    write_csv,
)
from medals_rt.pipeline.lesion_statistics import LesionStatistics, lesion_statistics
from medals_rt.pipeline.lesions_over_anatomy import check_combination
from medals_rt.pipeline.options import PromptSource, RunOptions
from medals_rt.pipeline.preview import Orientation, save_preview
from medals_rt.pipeline.report import Provenance
from medals_rt.pipeline.segmenter import Result, Segmenter, load
from medals_rt.pipeline.window_groups import check_window
from medals_rt.planning import pass_timings
from medals_rt.planning.policy import load_policy
from medals_rt.preprocessing.intensity import prepare_intensities
from medals_rt.preprocessing.label_sampling import sample_labels
from medals_rt.prompts.prompt_set import (
    PLAIN_READING,
    PromptReading,
    PromptSet,
    parse_prompts,
)

_MOST_DRAWN: Final = 32
"""Objects that a picture draws in a color and line style each."""

SEGMENTATIONS: Final = ("dicom-seg", "dicom-labelmap-seg")
"""Formats of outputs that a DICOM report can refer to."""

_OF_OTHER_PROGRAMS = frozenset(
    {
        ".xlsx",
        ".xls",
        ".ods",
        ".jpg",
        ".jpeg",
        ".tif",
        ".tiff",
        ".gif",
        ".bmp",
        ".webp",
        ".svg",
        ".pdf",
    }
)
"""Endings by which programs take a picture or a table for what it isn't."""


@dataclass(frozen=True)
class Job:
    """What is to be done with one case.

    Attributes
    ----------
    input
        The case's file, or the folder of a DICOM series.
    output
        Where the labels go.
    source
        Where its prompts come from.
    report, preview, statistics
        Where the report (JSON), the picture (PNG) and the statistics (CSV) go, if at all.
        Statistics of lesions go beside those of classes, see `lesion_table`.
    instances
        Where the numbered lesions go as a label map, if at all.
    sr
        Where the measurements go as a DICOM report, if at all; the output is then a DICOM SEG.
    split
        Folder of a file for each class, if at all; see `class_files`.
    spatial_prompts
        A file of labels drawn by the user (hybrid mode).
    resample
        Whether these are brought onto the case's grid where they lie on another one.
    series
        Which series of a DICOM folder, as for `registry.read_case`.
    select
        Which of its images, as ``KEY=VALUE``.
    options
        How it is read and segmented.
    format
        Name of the output's format (of `registry.FORMATS`); None: its ending decides.
    mesh_reduction
        Share of a surface's faces to leave out; see `meshes.reduced`.
    store
        Address of a DICOMweb server where the output is stored too, once it is written.
    """

    input: Path
    output: Path
    source: PromptSource = field(default_factory=PromptSource)
    report: Path | None = None
    preview: Path | None = None
    statistics: Path | None = None
    instances: Path | None = None
    sr: Path | None = None
    split: Path | None = None
    spatial_prompts: Path | None = None
    resample: bool = False
    series: str | None = None
    select: tuple[str, ...] = ()
    options: RunOptions = field(default_factory=RunOptions)
    format: OutputFormat | None = None
    mesh_reduction: float = 0.0
    store: str | None = None


@dataclass(frozen=True, eq=False)
class ReadJob:
    """A job whose files have been read.

    `annotation_dhw` are the labels drawn by the user, on the case's grid; `seconds` is what reading
    took, by step.
    """

    job: Job
    case: Case
    prompts: PromptSet
    annotation_dhw: Any | None
    seconds: dict[str, float]


def run_job(job: Job, progress: Progress | None = None) -> Result:
    """Segment one case and write what the job asks for, each file whole or not at all.

    All that can be wrong with the request is found before the model is opened.

    Parameters
    ----------
    job
        What to do.
    progress
        Called with a stage's name, the windows done and the windows in all; for "read", "open
        models" and "write" with 0 and 1 of 1.

    Raises
    ------
    InputError
        A file, prompt or option is unusable.
    MedalsError
        The work itself failed.
    """
    check_outputs(job)
    with whole(progress, "read"):
        read = read_job(job, progress)
    if job.preview is not None:
        require("a preview", "Matplotlib")
    watch = Stopwatch()
    with watch.step("open models"), whole(progress, "open models"):
        opened = open_models(job.options, progress)
    with opened as segmenter, passes_recorded(segmenter):
        result = segment_job(segmenter, read, progress, seconds_before=watch.seconds)
    with whole(progress, "write"):
        write_job(read, result)
    return result


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
    annotation = None
    if job.spatial_prompts is not None:
        annotation, moved = read_annotation(job.spatial_prompts, case.volume, resample=job.resample)
        case = replace(case, notes=(*case.notes, *moved))
    preset = job.options.segment.algorithm
    check_window(job.options.segment.window, prompts.modality, preset)
    check_start(preset, annotated=annotation is not None)
    _check_instances(job, prompts)
    unkept = check_output(job.output, case, prompts=prompts, format=job.format)
    others = check_class_files(files_of_classes(job, prompts), _resolved(*_named(job)))
    case = replace(case, notes=(*case.notes, *unkept, *others))
    check_combination(prompts, preset)
    return ReadJob(job, case, prompts, annotation, {})


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


def open_models(options: RunOptions, progress: Progress | None = None) -> Segmenter:
    """Open the models that the options name; see `resolve_bundle` and `Segmenter.open`."""
    return load(
        resolve_bundle(options.bundle, progress),
        runner=options.runner,
        precision=options.precision,
        threads=options.threads,
        convolution=options.convolution,
    )


def segment_job(
    segmenter: Segmenter,
    read: ReadJob,
    progress: Progress | None = None,
    *,
    seconds_before: Mapping[str, float] | None = None,
) -> Result:
    """Segment a case that was read; its report counts reading and what came before, by step.

    Raises
    ------
    MedalsError
        As `Segmenter.segment`.
    """
    return segmenter.segment(
        read.case.volume,
        read.prompts,
        read.job.options.segment,
        spatial_prompts=read.annotation_dhw,
        provenance=Provenance(
            seconds={**read.seconds, **(seconds_before or {})},
            notes=(*read.case.notes, *_modality_notes(read)),
            origin=read.case.origin,
        ),
        progress=progress,
    )


@contextmanager
def passes_recorded(segmenter: Segmenter) -> Iterator[None]:
    """Keep in the user's cache what passes took, however the block ends."""
    try:
        yield
    finally:
        measured = segmenter.measured_passes
        if measured is not None:
            pass_timings.record(segmenter.bundle.hash, measured)


def _modality_notes(read: ReadJob) -> tuple[Note, ...]:
    """Warn where the file says that it is of another modality than the prompts."""
    found, asked = read.case.modality, read.prompts.modality
    if found in {None, asked}:
        return ()
    text = f"the file says that it is {found}, the prompts say {asked}: results are doubtful"
    return (warning("modality-contradicted", text),)


def write_job(read: ReadJob, result: Result) -> None:
    """Write labels and what else the job asks for, each file whole or not at all.

    Raises
    ------
    OutputError
        A file can't be written, as when the disk is full.
    ServerError
        The output can't be stored on a server.
    """
    job = read.job
    write_labels(job.output, read, result, format=job.format)
    write_class_files(
        files_of_classes(job, read.prompts),
        read.case,
        result.labels_dhw,
        read.prompts,
        model=result.report.bundle["name"],
        notice=result.report.bundle["notice"],
        mesh_reduction=job.mesh_reduction,
    )
    if job.report is not None:
        write_json(job.report, result.report.to_dict())
    if job.preview is not None:
        write_preview(job.preview, read, result)
    if job.statistics is not None:
        rows = [statistics_row(found) for found in measure(read, result)]
        write_csv(job.statistics, STATISTICS_COLUMNS, rows)
    _write_lesions(read, result)
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


def measure_segments(read: ReadJob, result: Result) -> list[SegmentMeasures]:
    """Measure what a DICOM SEG of the result holds, in the order of its segments."""
    volume, instances = read.case.volume, result.instances_dhw
    lesions: dict[int | None, LesionStatistics] = {
        each.instance: each for each in measure_lesions(read, result)
    }
    segments = segments_of(read.prompts, result.labels_dhw)
    numbers, objects = number_objects(result.labels_dhw, instances, segments, read.job.output.name)
    voxels = np.zeros(len(objects) + 1, np.int64)
    for plane in numbers:
        voxels += np.bincount(plane.reshape(-1), minlength=len(objects) + 1)
    measured = []
    for number, (_, instance) in enumerate(objects, 1):
        lesion = lesions.get(instance)
        axes = () if lesion is None else (lesion.axial_longest_mm, lesion.axial_short_mm)
        measured.append(SegmentMeasures(int(voxels[number]) * volume.voxel_ml, *axes))
    return measured


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
    draw_preview(
        path,
        read.case.volume,
        result.labels_dhw,
        read.prompts,
        read.job.options.segment.window,
        read.job.options.segment.preset,
        notice=result.report.bundle["notice"],
        instances_dhw=result.instances_dhw,
    )


def _write_lesions(read: ReadJob, result: Result) -> None:
    """Write what the job asks for of each lesion."""
    job, instances = read.job, result.instances_dhw
    if instances is None or (job.statistics is None and job.instances is None):
        return
    lesions = measure_lesions(read, result)
    if job.statistics is not None:
        write_csv(lesion_table(job.statistics), LESION_COLUMNS, map(lesion_row, lesions))
    if job.instances is not None:
        write_segmentation(
            job.instances,
            read.case,
            instances,
            prompts={str(each.instance): f"{each.name} {each.instance}" for each in lesions},
            model=result.report.bundle["name"],
            notice=result.report.bundle["notice"],
        )


def files_of_classes(job: Job, prompts: PromptSet) -> dict[int, Path]:
    """Name the file of each label, if the job asks for them."""
    if job.split is None:
        return {}
    return class_files(job.split, prompts, split_ending(job.output))


def lesion_table(statistics: Path) -> Path:
    """Name the table of lesions beside that of classes: NAME_lesions.csv."""
    return statistics.with_name(f"{statistics.stem}_lesions{statistics.suffix}")


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


def default_output(path: Path) -> Path:
    """Name the result of a case: NAME_seg in the current folder, in the format of the case."""
    return Path(f"{case_stem(path)}_seg{own_ending(path)}")


def own_ending(path: Path) -> str:
    """Return the ending of the format in which a case's result goes back to where it came from."""
    if is_dicom(path):
        return ".dcm"
    found = (each.ending_of(path.name) for each in FORMATS if each.write is not None)
    return max((ending for ending in found if ending), key=len, default=".npz")


def check_outputs(job: Job) -> None:
    """Refuse outputs that can't be written or would overwrite what the job reads.

    Raises
    ------
    InputError, ServerError
    """
    inputs, outputs = _named(job)
    read = _resolved(inputs)
    for path in outputs:
        if path.resolve() in read:
            raise InputError(
                f"{path} would overwrite an input; choose another name", code="input-overwritten"
            )
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise InputError(
            "output, report, preview, statistics, instances and sr need different names",
            code="outputs-alike",
        )
    for named, ending in ((job.preview, ".png"), (job.statistics, ".csv")):
        if named is not None and named.suffix.lower() in _OF_OTHER_PROGRAMS:
            raise InputError(
                f"{named.name} would hold {ending[1:].upper()}; end its name in {ending}",
                code="ending-of-another-format",
            )
    if not job.output.name.lower().endswith(OUTPUT_ENDINGS):
        raise InputError(
            f"don't know how to write {job.output.name}; end it in {', '.join(OUTPUT_ENDINGS)}",
            code="format-unknown",
        )
    for path in outputs:
        prepare_output(path)
    check_output(job.output, format=job.format)
    _check_mesh(job)
    _check_dicom(job)
    if job.instances is not None:
        check_output(job.instances)
    if job.split is not None:
        prepare_output(job.split / f"class{split_ending(job.output)}")


def _named(job: Job) -> tuple[list[Path], list[Path]]:
    """Return the files that a job names: those that it reads, and those that it writes."""
    inputs = (job.input, job.source.file, job.spatial_prompts)
    outputs = (job.output, job.report, job.preview, job.statistics, job.instances, job.sr)
    table = None if job.statistics is None else lesion_table(job.statistics)
    return (
        [path for path in inputs if path is not None],
        [path for path in (*outputs, table) if path is not None],
    )


def _resolved(*paths: list[Path]) -> set[Path]:
    return {path.resolve() for part in paths for path in part}


def _check_mesh(job: Job) -> None:
    """Check that the output has faces, where some are to be left out."""
    if not job.mesh_reduction:
        return
    if format_of_output(job.output, job.format) not in MESHES:
        raise InputError(
            f"{job.output.name} holds voxels, which have no faces to leave out; end it in .glb or "
            ".stl, or leave out --mesh-reduction",
            code="no-mesh-to-reduce",
        )
    require("--mesh-reduction", "fast-simplification")


def _check_dicom(job: Job) -> None:
    """Refuse a report about no DICOM SEG, and to store what no DICOM server takes.

    Raises
    ------
    InputError, ServerError
    """
    if job.sr is not None and format_of_output(job.output, job.format) not in SEGMENTATIONS:
        raise InputError(
            f"{job.sr.name} would refer to a DICOM SEG, and {job.output.name} is none; end "
            "--output in .dcm",
            code="report-without-seg",
        )
    if job.store is not None:
        if not job.output.name.lower().endswith(".dcm"):
            raise InputError(
                f"{job.output.name} is no DICOM file, and a DICOMweb server stores nothing else; "
                "end --output in .dcm",
                code="store-not-dicom",
            )
        check_store(job.store)


def _check_instances(job: Job, prompts: PromptSet) -> None:
    """Refuse to write numbered lesions where there will be none.

    Raises
    ------
    InputError
    """
    if job.instances is None:
        return
    preset = job.options.segment.algorithm
    if not any(key.kind == "lesion" for key in prompts.class_keys):
        why = "the prompts ask for anatomy; ask for lesions (--kind lesion)"
    elif preset.lesions != "labels and instances":
        why = f"the preset {preset.name} doesn't number them; take another"
    else:
        return
    raise InputError(
        f"there will be no numbered lesions for {job.instances}: {why}", code="no-instances"
    )


def read_annotation(
    path: Path, volume: Volume, *, resample: bool = False
) -> tuple[Any, tuple[Note, ...]]:
    """Read labels that were drawn on `volume`.

    Parameters
    ----------
    path
        The file of labels.
    volume
        The image.
    resample
        Whether labels on another grid are brought onto the image's, by the nearest voxel.

    Returns
    -------
    labels_dhw
        On the grid of `volume`, `(D, H, W)`.
    notes
        That they were resampled.

    Raises
    ------
    CaseError
        The file is broken; ``annotation-on-another-grid``, or with `resample` ``place-unknown``
        where a file knows no place and ``annotation-outside`` where no label reaches the image.
    """
    wanted = grid_of(volume)
    drawn = fill_left_out(read_labels(path), wanted)
    found = grid_of(drawn)
    difference = same_grid(wanted, found)
    if difference is None:
        return drawn.labels_dhw, ()
    problem = f"{path.name} is not on the grid of {volume.name}: {difference}"
    if not resample:
        raise CaseError(
            f"{problem}; draw on the image itself, or use --resample to bring it there",
            code="annotation-on-another-grid",
        )
    if wanted.affine_lps is None or found.affine_lps is None:
        raise CaseError(
            f"{problem}; --resample needs files that know their place", code="place-unknown"
        )
    labels = np.asarray(
        sample_labels(drawn.labels_dhw, found.affine_lps, wanted.affine_lps, wanted.shape_dhw)
    )
    if drawn.labels_dhw.any() and not labels.any():
        raise CaseError(
            f"no label of {path.name} lies in {volume.name}: {difference}; give the annotation of "
            "this image",
            code="annotation-outside",
        )
    text = f"{path.name} was resampled onto the grid of the scan ({difference})"
    return labels, (Note("annotation-resampled", text),)


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


def draw_preview(
    path: Path,
    volume: Volume,
    labels_dhw: Any,
    prompts: PromptSet,
    window: str = "auto",
    preset: str = "paper",
    notice: str | None = None,
    instances_dhw: Any | None = None,
) -> None:
    """Draw a result on its image, in the intensities that the model saw.

    Lesions have a color and a number each, unless there are more than can be told apart.
    """
    if window == "auto":
        window = load_policy().intensity_window(prompts.parts[0].class_keys, preset)
    shown = prepare_intensities(volume, prompts.modality, window, preset)
    orientation: Orientation = "known"
    if prompts.modality == "Microscopy":
        orientation = "none"
    elif volume.source.affine_lps is None:
        orientation = "assumed"
    names = {prompt.label: prompt.class_key.name for prompt in prompts.prompts}
    if instances_dhw is not None:
        segments = segments_of(prompts, labels_dhw)
        numbers, objects = number_objects(labels_dhw, instances_dhw, segments, path.name)
        if len(objects) <= _MOST_DRAWN:
            labels_dhw = numbers
            names = {number: object_name(*each) for number, each in enumerate(objects, 1)}
    save_preview(
        path,
        to_host(shown.image_dhw),
        labels_dhw,
        volume.spacing_dhw_mm,
        names,
        title=volume.name,
        orientation=orientation,
        notice=notice,
    )
