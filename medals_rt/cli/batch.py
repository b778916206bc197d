"""`medals-rt batch`: segment a folder of cases with one opened model."""

from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medals_rt.cli._console import (
    EXIT_FAILURE,
    EXIT_INCOMPLETE,
    EXIT_INTERRUPTED,
    Debug,
    print_table,
)
from medals_rt.cli._options import prompt_source, run_options, takes
from medals_rt.common.errors import InputError, OutputError
from medals_rt.pipeline.options import PromptSource, RunOptions

if TYPE_CHECKING:
    from medals_rt.pipeline.batch import Entry

_MOST_ROWS = 100
_STATUS_WORDS = {"done": "done", "kept": "finished before", "failed": "failed"}


class Format(StrEnum):
    """Formats of results."""

    SAME = "same"
    NPZ = "npz"
    NIFTI = "nii"
    NIFTI_GZ = "nii.gz"
    NRRD = "nrrd"
    SEG_NRRD = "seg.nrrd"
    DICOM_SEG = "dcm"


@takes(source=prompt_source, options=run_options)
def batch_command(
    *,
    inputs: Annotated[
        list[Path],
        typer.Argument(
            help="Folders, cases, patterns like 'scans/*.nii.gz', or a .txt that lists such.",
        ),
    ],
    outputs: Annotated[Path, typer.Argument(help="The folder of results.")],
    jobs: Annotated[
        Path | None,
        typer.Option(help="JSON or CSV, one case a row, with prompts and names of its own."),
    ] = None,
    source: PromptSource,
    output_format: Annotated[
        Format, typer.Option("--format", help="Of results; same: as the case.")
    ] = Format.SAME,
    preview: Annotated[
        bool, typer.Option("--preview/--no-preview", help="Draw pictures and write index.html.")
    ] = True,
    statistics: Annotated[
        bool, typer.Option("--statistics", help="Write statistics.csv: each class of each case.")
    ] = False,
    reports: Annotated[
        Path | None,
        typer.Option(help="Where reports, pictures and records go [default: OUTPUTS]."),
    ] = None,
    options: RunOptions,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    debug: Debug = False,
) -> None:
    """Segment many cases; run it again and it goes on where it stopped.

    A case whose input, prompts, options and model are those of a finished one is not run again. The
    exit code is 1 if a case failed, else 3 if stages or windows are missing for want of time.
    """
    del debug  # read by one_line_errors
    from medals_rt.cli._batch_progress import batch_listener
    from medals_rt.common.atomic_io import prepare_output, remove_leftovers
    from medals_rt.common.optional_deps import require
    from medals_rt.pipeline.batch import (
        lock_folders,
        plan_batch,
        run_batch,
        summary_files,
        write_summaries,
    )
    from medals_rt.prompts.prompt_set import read_prompts

    if preview:
        require("--preview", "Matplotlib", "Jinja2")
    if source.file is not None and source.sentences:
        raise InputError("give either a prompts file or sentences, not both")
    if source.file is not None:
        read_prompts(source.file, options.reading)
    plan = plan_batch(
        inputs,
        outputs,
        jobs=jobs,
        reports=reports,
        source=source,
        options=options,
        ending=None if output_format is Format.SAME else f".{output_format.value}",
        preview=preview,
    )
    tables = summary_files(plan, statistics=statistics, page=preview)
    with lock_folders(plan):
        for file in tables:
            prepare_output(file)
        remove_leftovers(tables)
        with batch_listener(len(plan.cases), quiet=quiet) as listener:
            try:
                entries = run_batch(plan.cases, options, listener)
            except KeyboardInterrupt:
                typer.echo(f"interrupted; {listener.standing()}", err=True)
                raise typer.Exit(EXIT_INTERRUPTED) from None
            except OutputError as error:
                raise OutputError(f"{error}; {listener.standing()}") from error
        write_summaries(plan, entries, statistics=statistics, page=preview)
    if not quiet:
        _print_summary(entries)
        for file in tables:
            typer.echo(f"wrote {file}")
    _end(entries)


def _end(entries: Sequence["Entry"]) -> None:
    """End with an exit code of its own where cases failed, or lack stages or windows."""
    failed = sum(entry.status == "failed" for entry in entries)
    if failed:
        typer.echo(f"error: {failed} of {len(entries)} cases failed", err=True)
        raise typer.Exit(EXIT_FAILURE)
    incomplete = sum(entry.incomplete is not None for entry in entries)
    if incomplete:
        typer.echo(f"incomplete: {incomplete} of {len(entries)} cases, for want of time", err=True)
        raise typer.Exit(EXIT_INCOMPLETE)


def _print_summary(entries: Sequence["Entry"]) -> None:
    """Print one row a case; of very many only those that failed."""
    counts = Counter(entry.status for entry in entries)
    shown = entries
    if len(entries) > _MOST_ROWS:
        shown = [entry for entry in entries if entry.status == "failed"][:_MOST_ROWS]
    rows = []
    for entry in shown:
        found = sum(each.voxels > 0 for each in entry.classes)
        result = f"{found} of {len(entry.classes)}" if entry.classes else ""
        seconds = "" if entry.seconds is None else f"{entry.seconds:.1f}"
        rows.append([entry.name, _STATUS_WORDS[entry.status], result, seconds, _remark(entry)])
    columns = {"case": "left", "status": "left", "classes": "right", "s": "right", "": "wrap"}
    title = ", ".join(f"{count} {_STATUS_WORDS[status]}" for status, count in counts.items())
    if rows:
        print_table(title, columns, rows)
    else:
        typer.echo(title)


def _remark(entry: "Entry") -> str:
    if entry.error:
        return entry.error
    late = ["over the time limit"] if entry.late else []
    return "; ".join([*late, *entry.notes])
