"""What a batch leaves to read: `summary.csv`, tables of classes and lesions, and `index.html`."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from medals_rt.pipeline.batch.claims import Cells, status_of
from medals_rt.pipeline.batch.page import write_page
from medals_rt.pipeline.batch.plan import BatchPlan
from medals_rt.pipeline.batch.records import (
    Entry,
    finished_before,
    recorded_entry,
    remove_empty_folders,
)
from medals_rt.pipeline.batch.shared_cells import remove_leftovers
from medals_rt.pipeline.csv_tables import (
    LESION_COLUMNS,
    STATISTICS_COLUMNS,
    Cell,
    lesion_row,
    statistics_row,
    write_csv,
)

SUMMARY_FILE: Final = "summary.csv"
STATISTICS_FILE: Final = "statistics.csv"
LESIONS_FILE: Final = "lesions.csv"
PAGE_FILE: Final = "index.html"
_READERS: Final = 16
"""Records that are read at once: on a shared disk each waits for the server."""

SUMMARY_COLUMNS: Final = (
    "case", "status", "error", "input", "output", "modality", "kind", "classes", "classes_found",
    "d", "h", "w", "spacing_h_mm", "spacing_w_mm", "spacing_d_mm", "seconds", "seconds_per_class",
    "within_challenge", "within_asked", "incomplete", "warnings", "notes",
)  # fmt: skip


def summary_files(plan: BatchPlan, *, statistics: bool, page: bool) -> tuple[Path, ...]:
    """Name the files that `write_summaries` writes."""
    names = [SUMMARY_FILE]
    if statistics:
        names += [STATISTICS_FILE, LESIONS_FILE]
    if page:
        names.append(PAGE_FILE)
    return tuple(plan.reports / name for name in names)


def all_entries(
    plan: BatchPlan, here: Mapping[int, Entry], cells: bytes
) -> tuple[Entry, ...] | None:
    """Return an entry for each case of a batch, whoever settled it; None where some are open.

    Parameters
    ----------
    plan
        The batch.
    here
        Entries of those that this process settled, by place.
    cells
        Of all cases, see `claims`. Cases that nobody works on now, such as those of other parts,
        count as settled if they have a record.
    """
    statuses = [status_of(cell) for cell in cells]
    if not all(
        status or case.remote.exists(case.record)
        for case, status in zip(plan.cases, statuses, strict=True)
    ):
        return None

    def entry_of(index: int) -> Entry:
        return here.get(index) or recorded_entry(plan.cases[index], statuses[index])

    with ThreadPoolExecutor(_READERS) as readers:
        return tuple(readers.map(entry_of, range(len(plan.cases))))


def write_tables(
    plan: BatchPlan,
    here: Mapping[int, Entry],
    cells: Cells,
    *,
    statistics: bool,
    page: bool,
    notice: str | None = None,
) -> bool:
    """Write what `write_summaries` does if all cases are settled, whoever did it.

    What killed processes have left half written is removed first.

    Parameters
    ----------
    plan, here
        As for `all_entries`.
    cells
        Of all cases.
    statistics, page, notice
        As for `write_summaries`.

    Raises
    ------
    OutputError
        A file can't be written.
    """
    entries = all_entries(plan, here, cells.read(0, len(plan.cases)))
    if entries is not None:
        remove_leftovers(plan, cells)
        remove_empty_folders(plan, entries)
        write_summaries(plan, entries, statistics=statistics, page=page, notice=notice)
    return entries is not None


def write_summaries(
    plan: BatchPlan,
    entries: Sequence[Entry],
    *,
    statistics: bool,
    page: bool,
    notice: str | None = None,
) -> tuple[Path, ...]:
    """Write what was asked for, each file whole or not at all, and return their paths.

    They list all that the folders hold: after the cases of this batch, those that earlier ones
    finished and this one doesn't ask for.

    Parameters
    ----------
    plan
        The batch.
    entries
        One a case, in the order of the plan's.
    statistics
        Whether the classes of every case are written to `statistics.csv`, and its lesions to
        `lesions.csv`.
    page
        Whether `index.html` is written.
    notice
        Of the model, for the head of the page.

    Raises
    ------
    OutputError
        A file can't be written.
    """
    files = summary_files(plan, statistics=statistics, page=page)
    cases = (*zip(plan.cases, entries, strict=True), *finished_before(plan))
    entries = [entry for _, entry in cases]
    write_csv(plan.reports / SUMMARY_FILE, SUMMARY_COLUMNS, map(_summary_row, entries))
    if statistics:
        classes = (
            (each.name, *statistics_row(found)) for each in entries for found in each.classes
        )
        write_csv(plan.reports / STATISTICS_FILE, ("case", *STATISTICS_COLUMNS), classes)
        lesions = ((each.name, *lesion_row(found)) for each in entries for found in each.lesions)
        write_csv(plan.reports / LESIONS_FILE, ("case", *LESION_COLUMNS), lesions)
    if page:
        title = plan.results.resolve().name or "results"
        write_page(plan.reports / PAGE_FILE, title, cases, notice)
    for file in files:
        plan.remote.put(file)
    return files


def _summary_row(entry: Entry) -> tuple[Cell, ...]:
    nothing = (None, None, None)
    return (
        entry.name,
        entry.status,
        entry.error,
        entry.input,
        entry.output,
        entry.modality,
        entry.kind,
        len(entry.classes) or None,
        sum(found.voxels > 0 for found in entry.classes) if entry.classes else None,
        *(entry.shape_dhw or nothing),
        *(entry.spacing_hwd_mm or nothing),
        entry.seconds,
        entry.seconds_per_class,
        entry.within_challenge,
        entry.within_asked,
        entry.incomplete,
        "; ".join(entry.warnings),
        "; ".join(entry.remarks),
    )
