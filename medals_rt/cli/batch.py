"""`medals-rt batch`: segment a folder of cases with one opened model."""

from collections import Counter
from collections.abc import Sequence
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
from medals_rt.cli._options import Select, Series, Store, prompt_source, run_options, takes
from medals_rt.cli._output import out
from medals_rt.common.errors import InputError, OutputError

if TYPE_CHECKING:
    from medals_rt.pipeline.batch import Entry
    from medals_rt.pipeline.options import PromptSource, RunOptions

EXAMPLES: Final = (
    'medals-rt batch scans results --prompt "Liver in CT" --prompt "Spleen in CT"',
    'medals-rt batch "scans/*.nii.gz" results --prompts prompts.json --statistics',
    "medals-rt batch scans results --jobs jobs.csv --format seg.nrrd",
)
_MOST_ROWS = 100
_STATUS_WORDS = {
    "done": "done",
    "kept": "finished before",
    "skipped": "without an image",
    "failed": "failed",
}
_SAME: Final = "same"


@takes(source=prompt_source, options=run_options)
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
    ] = _SAME,
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
    statistics: Annotated[
        bool, typer.Option("--statistics", help="Write statistics.csv, a row per class and case.")
    ] = False,
    reports: Annotated[
        Path | None,
        typer.Option(help="Folder of reports, pictures and records [default: OUTPUTS]."),
    ] = None,
    store: Store = None,
    options: "RunOptions",
) -> int:
    """Segment many cases; run again, it continues where it stopped.

    A case that is finished is not run again unless its input, prompts, options or model changed.
    Folders of DICOM objects that are no images (RTSTRUCT, SR, documents) are passed over. The exit
    code is 1 if a case failed, else 3 if stages or windows are missing for lack of time.
    """
    from medals_rt.bundle.bundle import Bundle, resolve_bundle
    from medals_rt.cli._batch_progress import batch_listener
    from medals_rt.common.atomic_io import prepare_output, remove_leftovers
    from medals_rt.common.optional_deps import require
    from medals_rt.io.registry import OUTPUT_ENDINGS
    from medals_rt.pipeline.batch import (
        lock_folders,
        plan_batch,
        run_batch,
        summary_files,
        unread_words,
        write_summaries,
    )
    from medals_rt.prompts.prompt_set import read_prompts

    if preview:
        require("--preview", "Matplotlib", "Jinja2")
    if source.file is not None and source.sentences:
        raise InputError(
            "prompts come from --prompts or from --prompt, not both; leave out one of them",
            code="prompts-twice",
        )
    if source.file is not None:
        read_prompts(source.file, options.reading)
    ending = None if output_format == _SAME else f".{output_format}"
    if ending is not None and not ending.endswith(OUTPUT_ENDINGS):
        raise InputError(
            f"there is no format {output_format!r}; use {_SAME} or one of "
            f"{', '.join(each.removeprefix('.') for each in OUTPUT_ENDINGS)}",
            code="format-unknown",
        )
    plan = plan_batch(
        inputs,
        outputs,
        jobs=jobs,
        reports=reports,
        source=source,
        options=options,
        series=series,
        select=tuple(select or ()),
        ending=ending,
        preview=preview,
        store=store,
        split=split,
    )
    with out.progress() as progress:
        folder = resolve_bundle(options.bundle, progress)
    notice = Bundle.open(folder, verify=False).notice
    if plan.unread:
        out.warning(unread_words(plan.unread))
    if notice is not None:
        out.warning(notice)
    tables = summary_files(plan, statistics=statistics, page=preview)
    with lock_folders(plan):
        for file in tables:
            prepare_output(file)
        remove_leftovers(tables)
        with batch_listener(len(plan.cases)) as listener:
            try:
                entries = run_batch(plan.cases, options, listener)
            except KeyboardInterrupt:
                out.failure(f"interrupted; {listener.standing()}")
                return EXIT_INTERRUPTED
            except OutputError as error:
                raise OutputError(f"{error}; {listener.standing()}", code=error.code) from error
        write_summaries(plan, entries, statistics=statistics, page=preview, notice=notice)
    _print_summary(entries)
    out.wrote(*tables)
    return _end(entries)


def _end(entries: Sequence["Entry"]) -> int:
    """Print last what failed or lacks stages or windows, and return the exit code for it."""
    failed = sum(entry.status == "failed" for entry in entries)
    if failed:
        out.failure(f"error: {failed} of {len(entries)} cases failed")
        return EXIT_FAILURE
    incomplete = sum(entry.incomplete is not None for entry in entries)
    if incomplete:
        out.failure(f"incomplete: {incomplete} of {len(entries)} cases, for lack of time")
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
    columns = {"case": "left", "status": "left", "classes": "right", "s": "right", "": "wrap"}
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
