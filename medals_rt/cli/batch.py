"""`medals-rt batch`: segment a folder of cases with one opened model."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

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
from medals_rt.common.errors import InputError, OutputError

if TYPE_CHECKING:
    from medals_rt.bundle.bundle import Bundle
    from medals_rt.pipeline.batch import BatchPlan, BatchStanding, Cells, Entry, Listener
    from medals_rt.pipeline.options import PromptSource, RunOptions
    from medals_rt.pipeline.output_grid import GridRequest

    Runner: TypeAlias = Callable[
        [BatchPlan, RunOptions, Listener, Cells, Sequence[int]], dict[int, Entry]
    ]

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
            "worker on each GPU, or as many as --processes says.",
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
    from medals_rt.bundle.bundle import Bundle, resolve_bundle
    from medals_rt.pipeline.batch import (
        BesideLabels,
        parse_part,
        plan_batch,
        staged,
    )
    from medals_rt.pipeline.job_outputs import ending_of

    _check_words(source, options, preview=preview)
    ending = ending_of(output_format)
    run = _runner(processes, gpus, ray)
    with staged(inputs, outputs, reports) as (files, in_places, out_place, reports_place):
        plan = plan_batch(
            in_places,
            out_place,
            jobs=jobs,
            reports=reports_place,
            source=source,
            options=options,
            series=series,
            select=tuple(select or ()),
            ending=ending,
            beside=BesideLabels(preview, split, probabilities, instances, sr, mesh_reduction),
            grid=grid,
            files=files,
            store=store,
        )
        with out.progress() as progress:
            folder = resolve_bundle(options.bundle, progress)
        bundle = Bundle.open(folder, verify=False)
        chosen = any(case.job.series or case.job.select for case in plan.cases)
        if (series or select) and not chosen:
            out.warning("no case is a DICOM folder or zip: --series and --select change nothing")
        for line in plan.passed_over:
            out.warning(line)
        if bundle.notice is not None:
            out.warning(bundle.notice)
        own = range(len(plan.cases)) if part is None else parse_part(part).indices(plan.cases)
        return _work(
            plan,
            options,
            bundle,
            run,
            own,
            on_ray=ray is not None,
            statistics=statistics,
            page=preview,
        )


def _work(
    plan: "BatchPlan",
    options: "RunOptions",
    bundle: "Bundle",
    run: "Runner",
    own: Sequence[int],
    *,
    on_ray: bool,
    statistics: bool,
    page: bool,
) -> int:
    """Run the cases beside others who do the same batch, and write the tables if none is left."""
    from medals_rt.cli._batch_progress import batch_listener
    from medals_rt.common.atomic_io import prepare_output
    from medals_rt.pipeline.batch import (
        identity_of,
        settle_once,
        share_folders,
        standing,
        summary_files,
        write_tables,
    )

    tables = summary_files(plan, statistics=statistics, page=page)
    identity = identity_of(
        plan,
        options.deciding(),
        bundle.hash,
        tables=[file.name for file in tables],
        on_ray=on_ray,
    )
    count = len(plan.cases)
    with share_folders(plan, identity, tables) as cells:
        for file in tables:
            prepare_output(file)
        with batch_listener(len(own)) as listener:
            try:
                entries = run(plan, options, listener, cells, own)
            except KeyboardInterrupt:
                out.failure(f"interrupted; {_continues(cells.read(0, count))}")
                return EXIT_INTERRUPTED
            except OutputError as error:
                raise OutputError(
                    f"{error}; {_continues(cells.read(0, count))}", code=error.code
                ) from error
        written = settle_once(
            cells,
            count,
            lambda: write_tables(
                plan, entries, cells, statistics=statistics, page=page, notice=bundle.notice
            ),
        )
        now = standing(cells.read(0, count))
    _print_summary(list(entries.values()))
    if now.settled < count:
        out.line(f"{count - now.settled} of {count} cases are left to other parts")
    if written:
        for file in tables:
            out.line(f"wrote {plan.store.shown(file)}")
    return _end(now, entries)


def _check_words(source: "PromptSource", options: "RunOptions", *, preview: bool) -> None:
    """Refuse what can't be used before any folder is looked at."""
    from medals_rt.common.optional_deps import require
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


def _runner(processes: int | None, gpus: str | None, ray: str | None) -> "Runner":
    """Return what runs the cases: in this process, in others of this machine, or on a cluster."""
    from medals_rt.common.gpu import visible_gpus
    from medals_rt.common.optional_deps import require
    from medals_rt.pipeline.batch import (
        claims_file,
        places_on_cores,
        places_on_gpu,
        places_on_gpus,
        run_batch,
        run_on_ray,
        run_workers,
    )

    if gpus is not None and (processes is not None or ray is not None):
        raise InputError(
            "--gpus starts a process on each GPU of this machine; leave out --processes and --ray",
            code="processes-twice",
        )
    if ray is not None:
        require("--ray", "Ray")
    places = () if gpus is None else places_on_gpus(gpus, visible_gpus())
    if processes is not None:
        places = places_on_cores(processes)

    def on_ray(
        plan: "BatchPlan",
        options: "RunOptions",
        listener: "Listener",
        cells: "Cells",
        own: Sequence[int],
    ) -> "dict[int, Entry]":
        return run_on_ray(
            plan.cases,
            options,
            listener,
            address=ray or "",
            workers=processes,
            cells=cells,
            own=own,
        )

    def by_processes(
        plan: "BatchPlan",
        options: "RunOptions",
        listener: "Listener",
        cells: "Cells",
        own: Sequence[int],
    ) -> "dict[int, Entry]":
        here = places or places_on_gpu(options)
        if not here:
            return run_batch(plan.cases, options, listener, cells=cells, own=own)
        return run_workers(
            plan.cases,
            options,
            listener,
            places=here[: max(1, len(own))],
            cells=cells,
            cells_file=claims_file(plan),
            own=own,
        )

    return by_processes if ray is None else on_ray


def _continues(cells: bytes) -> str:
    """Say how far the batch came, where it ends early."""
    from medals_rt.pipeline.batch import standing

    return (
        f"{standing(cells).finished} of {len(cells)} cases are finished; the same command "
        "continues with the others"
    )


def _end(now: "BatchStanding", here: "dict[int, Entry]") -> int:
    """Print last what failed or lacks stages or windows, and return the exit code for it.

    What this command has seen itself counts also where the folder's locks are not shared.
    """
    failed = max(now.by_status["failed"], sum(each.status == "failed" for each in here.values()))
    count = max(now.settled, len(here))
    if failed:
        out.failure(f"error: {failed} of {count} cases failed")
        return EXIT_FAILURE
    incomplete = max(now.incomplete, sum(each.incomplete is not None for each in here.values()))
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
