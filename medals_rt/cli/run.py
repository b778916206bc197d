"""`medals-rt run`: segment one case."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medals_rt.cli._console import EXIT_INCOMPLETE, Debug, print_table, progress_bar
from medals_rt.cli._options import prompt_source, run_options, takes
from medals_rt.pipeline.options import PromptSource, RunOptions

if TYPE_CHECKING:
    from medals_rt.pipeline.report import RunReport


@takes(source=prompt_source, options=run_options)
def run_command(
    *,
    input_file: Annotated[
        Path,
        typer.Option("--input", help="The case: .npz, .nii, .nii.gz, .nrrd, or a DICOM folder."),
    ],
    source: PromptSource,
    output: Annotated[
        Path | None, typer.Option(help="Where the labels go [default: NAME_seg.npz].")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write a JSON report here.")] = None,
    preview: Annotated[Path | None, typer.Option(help="Write a picture (PNG) here.")] = None,
    statistics: Annotated[
        Path | None, typer.Option(help="Write volume, intensity and place of each class (CSV).")
    ] = None,
    series: Annotated[
        str | None, typer.Option(help="Which series of a DICOM folder: its number or its UID.")
    ] = None,
    spatial_prompts: Annotated[
        Path | None, typer.Option(help="Labels that you have drawn, to start from (hybrid mode).")
    ] = None,
    options: RunOptions,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    debug: Debug = False,
) -> None:
    """Segment one case by text prompts."""
    del debug  # read by one_line_errors
    from medals_rt.pipeline.job import Job, default_output, run_job

    job = Job(
        input=input_file,
        output=output or default_output(input_file),
        source=source,
        report=report,
        preview=preview,
        statistics=statistics,
        series=series,
        spatial_prompts=spatial_prompts,
        options=options,
    )
    with progress_bar(quiet=quiet) as progress:
        result = run_job(job, progress)
    for note in result.report.notes:
        needs_a_look = note.severity == "warning"
        if needs_a_look or not quiet:
            typer.echo(f"{'warning' if needs_a_look else 'note'}: {note.text}", err=True)
    if not quiet:
        print_summary(result.report)
        for path in (job.output, job.report, job.preview, job.statistics):
            if path is not None:
                typer.echo(f"wrote {path}")
    if result.report.incomplete is not None:
        typer.echo(f"incomplete: {result.report.incomplete}", err=True)
        raise typer.Exit(EXIT_INCOMPLETE)


def print_summary(report: "RunReport") -> None:
    """Print what was found, for people."""
    columns = {"label": "right", "class": "left", "voxels": "right", "mL": "right"}
    lesions = any(found.components is not None for found in report.classes)
    if lesions:
        columns["lesions"] = "right"
    rows = []
    for found in report.classes:
        row = [str(found.label), found.name, f"{found.voxels:,}", f"{found.volume_ml:,.2f}"]
        rows.append([*row, str(found.components or 0)] if lesions else row)
    print_table(report.case, columns, rows)
    typer.echo(
        f"{report.seconds['total']:.1f} s, {report.seconds_per_class:.1f} s a class "
        f"({report.runner} {report.precision} on {report.device}, preset {report.preset})"
    )
