"""`medals-rt run`: segment one case."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from medals_rt.cli._errors import EXIT_DONE, EXIT_INCOMPLETE
from medals_rt.cli._options import (
    MeshReduction,
    Select,
    Series,
    Store,
    grid_request,
    prompt_source,
    run_options,
    takes,
)
from medals_rt.cli._output import out
from medals_rt.common.choices import OutputFormat

if TYPE_CHECKING:
    from medals_rt.pipeline.job_request import Job
    from medals_rt.pipeline.options import PromptSource, RunOptions
    from medals_rt.pipeline.output_grid import GridRequest
    from medals_rt.pipeline.report import RunReport
    from medals_rt.pipeline.segmenter import Result

EXAMPLES: Final = (
    'medals-rt run --input scan.nii.gz --prompt "Liver in CT" --prompt "Spleen in CT"',
    "medals-rt run --input scan.nii.gz --all --modality CT --split organs",
    "medals-rt run --input dicom_folder --group 'abdominal organs' --output organs.seg.nrrd",
    'medals-rt run --input scan.nii.gz --prompt "Liver in CT" --lesion "Liver tumors in CT"',
    "medals-rt run --input case.npz --prompts prompts.json --output labels.npz --preview a.png",
)


@takes(source=prompt_source, grid=grid_request, options=run_options)
def run_command(
    *,
    input_file: Annotated[
        Path,
        typer.Option(
            "--input",
            help="The case: a file such as .nii.gz or .npz, a DICOM folder or zip, or "
            "dicomweb+https://HOST/dicom-web?StudyInstanceUID=UID.",
        ),
    ],
    source: "PromptSource",
    output: Annotated[
        Path | None,
        typer.Option(help="File of the labels [default: NAME_seg in this folder, as the input]."),
    ] = None,
    output_format: Annotated[
        OutputFormat | None,
        typer.Option("--format", help="Format of the labels [default: as the output ends]."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write a report (JSON) here.")] = None,
    preview: Annotated[Path | None, typer.Option(help="Write a picture (PNG) here.")] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(
            help="Write volume, intensity and position of each class (CSV) here; for lesions also "
            "NAME_lesions.csv with the diameters of each."
        ),
    ] = None,
    instances: Annotated[
        Path | None, typer.Option(help="Write the numbered lesions as a label map here.")
    ] = None,
    sr: Annotated[
        Path | None,
        typer.Option(
            help="Write volumes, and of lesions both axes, as a DICOM report that refers to the "
            "DICOM SEG of --output."
        ),
    ] = None,
    split: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Also write a file for each class into this folder, such as left_kidney.nii.gz: 1 "
            "where the class is. Their format is that of the output.",
        ),
    ] = None,
    probabilities: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Also write how likely each class is at each voxel into this folder, one a class, "
            "such as left_kidney.nii.gz: bytes that read as 0 to 1.",
        ),
    ] = None,
    mesh_reduction: MeshReduction = 0.0,
    grid: "GridRequest",
    series: Series = None,
    select: Select = None,
    spatial_prompts: Annotated[
        Path | None, typer.Option(help="Labels drawn by hand to start from (hybrid mode).")
    ] = None,
    corrects: Annotated[
        Path | None,
        typer.Option(
            metavar="RESULT",
            help="The result, found from the text alone, that --spatial-prompts corrects: what "
            "differs stays, windows that decide about it are shown it, and the rest stays too.",
        ),
    ] = None,
    resample: Annotated[
        bool,
        typer.Option(
            "--resample",
            help="Bring spatial prompts on another grid onto the scan's (nearest voxel).",
        ),
    ] = False,
    store: Store = None,
    options: "RunOptions",
) -> int:
    """Segment one case by text prompts."""
    from medals_rt.common.errors import InputError
    from medals_rt.pipeline.job import run_job
    from medals_rt.pipeline.job_outputs import default_output
    from medals_rt.pipeline.job_request import Job

    if resample and spatial_prompts is None:
        raise InputError(
            "there is nothing to resample: --resample is for the labels of --spatial-prompts",
            code="nothing-to-resample",
        )
    job = Job(
        input=input_file,
        output=output or default_output(input_file),
        format=output_format,
        source=source,
        report=report,
        preview=preview,
        statistics=statistics,
        instances=instances,
        sr=sr,
        split=split,
        probabilities=probabilities,
        grid=grid,
        mesh_reduction=mesh_reduction,
        series=series,
        select=tuple(select or ()),
        spatial_prompts=spatial_prompts,
        corrects=corrects,
        resample=resample,
        options=options,
        store=store,
    )
    with out.progress() as progress:
        result = run_job(job, progress)
    return report_result(job, result)


def report_result(job: "Job", result: "Result") -> int:
    """Print the notes, what was found and which files were written; return the exit code."""
    from medals_rt.pipeline.job_request import lesion_table

    for note in result.report.notes:
        out.note(note)
    print_summary(result.report)
    out.wrote(job.output, job.report, job.preview, job.statistics)
    if job.statistics is not None and result.instances_dhw is not None:
        out.wrote(lesion_table(job.statistics))
    out.wrote(job.instances, job.split, job.probabilities, job.sr)
    if job.store is not None:
        out.line(f"stored {job.output.name} on {job.store}")
    if result.report.incomplete is None:
        return EXIT_DONE
    out.failure(f"incomplete: {result.report.incomplete}")
    return EXIT_INCOMPLETE


def print_summary(report: "RunReport") -> None:
    """Print what was found, for people."""
    columns = {
        "label": "right",
        "class": "left",
        "voxels": "right",
        "mL": "right",
    }
    lesions = any(found.components is not None for found in report.classes)
    if lesions:
        columns["lesions"] = "right"
    rows = []
    for found in report.classes:
        row = [str(found.label), found.name, f"{found.voxels:,}", f"{found.volume_ml:,.2f}"]
        count = "" if found.components is None else str(found.components)
        rows.append([*row, count] if lesions else row)
    out.table(report.case, columns, rows)
    out.line(
        f"{report.seconds['total']:.1f} s, {report.seconds_per_class:.1f} s per class "
        f"({report.runner} {report.precision} on {report.device}, preset {report.preset})"
    )
