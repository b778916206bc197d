"""`medals-rt batch`: segment a folder of cases with one opened model."""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from medals_rt.cli._completion import complete_format
from medals_rt.cli._errors import (
    EXIT_DONE,
    EXIT_FAILURE,
    EXIT_INCOMPLETE,
    EXIT_INTERRUPTED,
)
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
from medals_rt.common.choices import SAME_FORMAT

if TYPE_CHECKING:
    from medals_rt.pipeline.batch import BatchResult, Entry
    from medals_rt.pipeline.options import PromptSource, RunOptions
    from medals_rt.pipeline.output_grid import GridRequest

EXAMPLES: Final = (
    'medals-rt batch scans results --prompt "Liver in CT" --prompt "Spleen in CT"',
    'medals-rt batch "scans/*.nii.gz" results --prompts prompts.json --statistics',
    "medals-rt batch scans results --jobs jobs.csv --format seg.nrrd",
    "medals-rt batch scans results --prompts prompts.json --gpus all",
)
_MOST_ROWS = 100
_STATUS_WORDS = {
    "done": "done",
    "kept": "finished before",
    "skipped": "without an image",
    "failed": "failed",
}


@takes(source=prompt_source, grid=grid_request, options=run_options)
def batch_command(
    *,
    inputs: Annotated[
        list[Path],
        typer.Argument(
            help="Cases, folders, patterns such as 'scans/*.nii.gz', series of a DICOMweb server "
            "(dicomweb+https://HOST/dicom-web?PatientID=7&Modality=CT), or a .txt that lists such.",
        ),
    ],
    outputs: Annotated[Path, typer.Argument(help="Folder of the results.")],
    jobs: Annotated[
        Path | None,
        typer.Option(help="JSON or CSV, a case per row, with its own prompts and output name."),
    ] = None,
    source: "PromptSource",
    series: Series = None,
    select: Select = None,
    output_format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="ENDING",
            autocompletion=complete_format,
            help="Format of the results, such as nii.gz, seg.nrrd or dcm; same: that of the case.",
        ),
    ] = SAME_FORMAT,
    preview: Annotated[
        bool,
        typer.Option(
            "--preview/--no-preview", help="Draw a picture of each case and write index.html."
        ),
    ] = True,
    split: Annotated[
        bool,
        typer.Option(
            "--split",
            help="Also write a file for each class of each case: NAME/left_kidney.nii.gz.",
        ),
    ] = False,
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities",
            help="Also write a probability map of each class into the folder NAME_probabilities.",
        ),
    ] = False,
    instances: Annotated[
        bool,
        typer.Option("--instances", help="Also write the numbered lesions: NAME_lesions.nii.gz."),
    ] = False,
    sr: Annotated[
        bool,
        typer.Option(
            "--sr",
            help="Also write measurements as a DICOM report that refers to the DICOM SEG: "
            "NAME.sr.dcm.",
        ),
    ] = False,
    mesh_reduction: MeshReduction = 0.0,
    grid: "GridRequest",
    statistics: Annotated[
        bool,
        typer.Option(
            "--statistics",
            help="Write statistics.csv, a row per class and case, and lesions.csv, a row per "
            "lesion.",
        ),
    ] = False,
    reports: Annotated[
        Path | None,
        typer.Option(help="Folder of reports, pictures and records [default: OUTPUTS]."),
    ] = None,
    store: Store = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Only part I of N, chosen by case names; auto: the task of a SLURM array, auto/N: "
            "of a Kubernetes indexed job.",
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Processes that share the work and the cores."),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(metavar="all|0,1", help="A process on each of these GPUs."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Run on a Ray cluster: its address, auto, or local for one of this machine; a "
            "worker on each GPU or, without any, each machine, or as many as --processes says.",
        ),
    ] = None,
    options: "RunOptions",
) -> int:
    """Segment many cases; run again, it continues where it stopped.

    A case that is finished is not run again unless its input, prompts, options or model changed.
    Folders of DICOM objects that are no images (RTSTRUCT, SR, documents) are passed over. The same
    command, started several times on one machine or on many, shares the work. The exit code is 1 if
    a case failed, else 3 if stages or windows are missing for lack of time.
    """
    from medals_rt.cli._batch_progress import batch_listener
    from medals_rt.pipeline.batch import Batch, prepared_batch

    batch = Batch(
        inputs=tuple(inputs),
        outputs=outputs,
        source=source,
        options=options,
        jobs=jobs,
        reports=reports,
        series=series,
        select=tuple(select or ()),
        format=output_format,
        preview=preview,
        split=split,
        probabilities=probabilities,
        instances=instances,
        sr=sr,
        mesh_reduction=mesh_reduction,
        grid=grid,
        store=store,
        statistics=statistics,
        part=part,
        processes=processes,
        gpus=gpus,
        ray=ray,
    )
    with ExitStack() as stack:
        with out.progress() as progress:
            prepared = stack.enter_context(prepared_batch(batch, progress))
        for line in prepared.warnings:
            out.warning(line)
        with batch_listener(len(prepared.own)) as listener:
            try:
                result = prepared.run(listener)
            except (KeyboardInterrupt, SystemExit) as ended:
                told = "; ".join(getattr(ended, "__notes__", ()))
                if not told:  # nothing has begun
                    raise
                out.failure(f"interrupted; {told}")
                if isinstance(ended, SystemExit):
                    raise
                return EXIT_INTERRUPTED
    _print_summary(result.entries)
    if result.standing.settled < result.count:
        left = result.count - result.standing.settled
        out.line(f"{left} of {result.count} cases are left to other parts")
    for table in result.tables:
        out.line(f"wrote {table}")
    return _end(result)


def _end(result: "BatchResult") -> int:
    """Print last what failed or lacks stages or windows, and return the exit code for it.

    What this command has seen itself counts also where the folder's locks are not shared.
    """
    now, here = result.standing, result.entries
    failed = max(now.by_status["failed"], sum(each.status == "failed" for each in here))
    count = max(now.settled, len(here))
    if failed:
        out.failure(f"error: {failed} of {count} cases failed")
        return EXIT_FAILURE
    incomplete = max(now.incomplete, sum(each.incomplete is not None for each in here))
    if incomplete:
        out.failure(f"incomplete: {incomplete} of {count} cases, for lack of time")
        return EXIT_INCOMPLETE
    return EXIT_DONE


def _print_summary(entries: Sequence["Entry"]) -> None:
    """Print a row per case; of very many cases only those that failed."""
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
    columns = {"case": "left", "status": "left", "classes": "right", "s": "right", "": "left"}
    title = ", ".join(f"{count} {_STATUS_WORDS[status]}" for status, count in counts.items())
    if rows:
        out.table(title, columns, rows)
    else:
        out.line(title)


def _remark(entry: "Entry") -> str:
    if entry.error:
        return entry.error
    late = ["over the time limit"] if entry.late else []
    return "; ".join([*late, *entry.warnings, *entry.remarks])
