"""Cases one after the other, reading, running and writing side by side.

One thread reads the next case while the network runs this one and another thread writes the last
one. At most one case waits on each side, so that memory doesn't grow with the number of cases.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Protocol

from medals_rt.bundle.bundle import Bundle, resolve_bundle
from medals_rt.common.atomic_io import remove_leftovers
from medals_rt.common.errors import MedalsError, OutputError
from medals_rt.pipeline.batch.find import BatchCase
from medals_rt.pipeline.batch.records import (
    Entry,
    fingerprint,
    forget,
    kept_entry,
    remember,
    remove_files,
    shown,
)
from medals_rt.pipeline.job import (
    ReadJob,
    check_outputs,
    files_of_classes,
    measure,
    open_models,
    passes_recorded,
    read_job,
    segment_job,
    write_job,
)
from medals_rt.pipeline.options import RunOptions
from medals_rt.pipeline.report import NOTICE
from medals_rt.pipeline.segmenter import Result, Segmenter


class Listener(Protocol):
    """Who hears how a batch goes on. Calls may come from the thread that writes."""

    def windows(self, stage: str, done: int, total: int) -> None:
        """Hear how many windows of a stage are done and in all, of the case that runs."""

    def started(self, case: BatchCase) -> None:
        """Hear that the network begins with a case."""

    def ended(self, entry: Entry) -> None:
        """Hear that a case is finished, was finished before, holds no image, or has failed."""


@dataclass(frozen=True, eq=False)
class _Ready:
    """A case that was read and is to be run, and the fingerprint of what it is made from."""

    case: BatchCase
    read: ReadJob
    made_from: str


def run_batch(
    cases: Sequence[BatchCase], options: RunOptions, listener: Listener
) -> tuple[Entry, ...]:
    """Run the cases that aren't finished, and return the entries of all in their order.

    A case that fails is an entry with its reason; the others go on. The models are opened once,
    and not at all where every case is finished.

    Parameters
    ----------
    cases
        What there is to do.
    options
        Which models are opened, and how.
    listener
        Hears how it goes.

    Raises
    ------
    InputError
        The bundle can't be used.
    OutputError
        A file can't be written; what is finished stays so.
    MedalsError
        The models can't be opened.
    """
    bundle_hash = Bundle.open(resolve_bundle(options.bundle), verify=False).hash
    remove_leftovers(
        path
        for case in cases
        for path in (case.job.output, case.job.report, case.job.preview, case.record)
        if path is not None
    )
    entries: dict[str, Entry] = {}

    def end(case: BatchCase, entry: Entry) -> None:
        entries[case.name] = entry
        listener.ended(entry)

    def write(ready: _Ready, result: Result) -> None:
        end(ready.case, _written(ready, result))

    # Each pool has one thread. On the way out, also by Ctrl-C, both finish what they have begun and
    # begin nothing new: the case that is being written is not lost.
    with ExitStack() as stack:
        reader, writer = (_one_thread(stack, name) for name in ("reader", "writer"))
        segmenter: Segmenter | None = None
        writing: Future[None] | None = None
        ahead = reader.submit(_prepared, cases[0], bundle_hash)
        for number, case in enumerate(cases, start=1):
            prepared = ahead.result()
            if number < len(cases):
                ahead = reader.submit(_prepared, cases[number], bundle_hash)
            if isinstance(prepared, Entry):
                end(case, prepared)
                continue
            if segmenter is None:
                segmenter = stack.enter_context(open_models(options))
                stack.enter_context(passes_recorded(segmenter))
            listener.started(case)
            try:
                result = segment_job(segmenter, prepared.read, listener.windows)
            except Exception as error:  # noqa: BLE001 - one case's failure is its own
                end(case, _failed(case, error))
                continue
            if writing is not None:
                writing.result()
            writing = writer.submit(write, prepared, result)
            del prepared, result
        if writing is not None:
            writing.result()
    return tuple(entries[case.name] for case in cases)


def _one_thread(stack: ExitStack, name: str) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
    stack.callback(pool.shutdown, wait=True, cancel_futures=True)
    return pool


def _prepared(case: BatchCase, bundle_hash: str) -> _Ready | Entry:
    """Read a case, unless it is finished or can't be read."""
    try:
        check_outputs(case.job)
        made_from = fingerprint(case.job, bundle_hash)
        return kept_entry(case, made_from) or _Ready(case, read_job(case.job), made_from)
    except Exception as error:  # noqa: BLE001 - one case's failure is its own
        return _failed(case, error)


def _written(ready: _Ready, result: Result) -> Entry:
    """Write a case's files, and last of all the record that it is finished."""
    case = ready.case
    class_files = files_of_classes(case.job, ready.read.prompts).values()
    try:
        write_job(ready.read, result)
        entry = _entry(ready, result)
        remember(case, ready.made_from, entry, class_files)
    except OutputError:  # the next case would have no room either
        raise
    except Exception as error:  # noqa: BLE001 - one case's failure is its own
        remove_files(case.job, class_files)
        return _failed(case, error)
    return entry


def _entry(ready: _Ready, result: Result) -> Entry:
    job, report = ready.case.job, result.report
    return Entry(
        name=shown(ready.case.name),
        input=shown(job.input),
        output=shown(job.output),
        status="done",
        modality=ready.read.prompts.modality,
        kind=ready.read.prompts.kind,
        shape_dhw=ready.read.case.volume.shape_dhw,
        spacing_hwd_mm=ready.read.case.volume.spacing_hwd_mm,
        seconds=report.seconds["total"],
        seconds_per_class=report.seconds_per_class,
        within_challenge=report.within_challenge,
        within_asked=report.within_asked,
        incomplete=report.incomplete,
        notes=tuple(
            replace(note, text=shown(note.text)) for note in report.notes if note.code != NOTICE
        ),
        classes=measure(ready.read, result),
    )


NO_IMAGES = "no-images"
"""Code of the error that says that what was read holds no image at all."""


def _failed(case: BatchCase, error: Exception) -> Entry:
    """Make the entry of a case that failed, with the reason in one line.

    No result of earlier content stays under its name.
    """
    forget(case)
    reason = str(error) if isinstance(error, MedalsError) else f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError):
        reason = f"out of memory ({error}); `medals-rt plan` estimates the need"
    return Entry(
        name=shown(case.name),
        input=shown(case.job.input),
        output=shown(case.job.output),
        status="skipped" if getattr(error, "code", None) == NO_IMAGES else "failed",
        error=shown(reason),
    )
