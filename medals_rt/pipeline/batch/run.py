"""Cases one after the other, reading, running and writing side by side.

One thread reads the next case while the network runs this one and another thread writes the last
one. At most one case waits on each side, so that memory doesn't grow with the number of cases.
Which case is the next one, `claims` says: other processes may work on the same batch.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Protocol

from medals_rt.bundle.bundle import Bundle, resolve_bundle
from medals_rt.common.errors import DeviceLostError, MedalsError, OutputError
from medals_rt.pipeline.batch.claims import MOST_ENDED, Cells, Claim, Claims, LocalCells, is_suspect
from medals_rt.pipeline.batch.plan import BatchCase
from medals_rt.pipeline.batch.records import (
    RESULT_NOT_OURS,
    Earlier,
    Entry,
    check_earlier_files,
    fingerprint,
    forget_end,
    kept_entry,
    note_end,
    noted_end,
    remember,
    remember_failure,
    remove_files,
    roles_of_classes,
    shown,
    writing_noted,
)
from medals_rt.pipeline.job import open_models, passes_recorded, segment_job
from medals_rt.pipeline.job_inputs import read_job
from medals_rt.pipeline.job_outputs import check_outputs
from medals_rt.pipeline.job_request import ReadJob
from medals_rt.pipeline.job_writing import measure, measure_lesions, write_job
from medals_rt.pipeline.options import RunOptions
from medals_rt.pipeline.report import NOTICE
from medals_rt.pipeline.segmenter import Result, Segmenter


class Listener(Protocol):
    """Who hears how a batch goes on. Calls may come from the threads that read and write."""

    def taken(self, index: int) -> None:
        """Hear that the case of this place is in hand."""

    def started(self, case: BatchCase) -> None:
        """Hear that the network begins with a case."""

    def windows(self, stage: str, done: int, total: int) -> None:
        """Hear how many windows of a stage are done and in all, of the case that runs."""

    def ended(self, index: int, entry: Entry) -> None:
        """Hear that a case is finished, was so before, holds no image, or has failed."""

    def elsewhere(self, count: int) -> None:
        """Hear how many cases, of those that this process could take, others have settled."""


class Silent:
    """A `Listener` that says nothing."""

    def taken(self, index: int) -> None:
        """Do nothing, as all methods."""

    def started(self, case: BatchCase) -> None:
        """See `taken`."""

    def windows(self, stage: str, done: int, total: int) -> None:
        """See `taken`."""

    def ended(self, index: int, entry: Entry) -> None:
        """See `taken`."""

    def elsewhere(self, count: int) -> None:
        """See `taken`."""


@dataclass(frozen=True, eq=False)
class _Ready:
    """A case that was read and is to be run.

    `made_from` is the fingerprint of what it is made from, `earlier` what earlier runs have left.
    """

    case: BatchCase
    read: ReadJob
    made_from: str
    earlier: Earlier


def run_cases(
    cases: Sequence[BatchCase],
    options: RunOptions,
    listener: Listener,
    *,
    cells: Cells | None = None,
    own: Sequence[int] | None = None,
) -> dict[int, Entry]:
    """Run the cases that nobody has finished; return entries of those that ended here, by place.

    A case that fails is an entry with its reason; the others go on. The models are opened once,
    and not at all where every case is finished. Returns when all cases are settled, whoever did
    that: those of another process that ends are taken up.

    Parameters
    ----------
    cases
        What there is to do.
    options
        Which models are opened, and how.
    listener
        Hears how it goes.
    cells
        Shared with others who work on the same cases; None: there are none.
    own
        Places in `cases` of those that this process may take, in its order; None: all.

    Raises
    ------
    InputError
        The bundle can't be used.
    OutputError
        A file can't be written; what is finished stays so.
    DeviceLostError
        The GPU failed in a case, which another process is to try once more.
    MedalsError
        The models can't be opened.
    """
    bundle_hash = Bundle.open(resolve_bundle(options.bundle), verify=False).hash
    work = _Work(cases, bundle_hash, listener, cells, own)
    # Each pool has one thread. On the way out, also by Ctrl-C, both finish what they have begun and
    # begin nothing new: the case that is being written is not lost. What was only read goes back.
    with ExitStack() as stack:
        stack.callback(work.claims.release)
        reader, writer = (_one_thread(stack, name) for name in ("reader", "writer"))
        stack.callback(work.claims.stop)
        segmenter: Segmenter | None = None
        writing: Future[None] | None = None
        ahead = reader.submit(work.prepare)
        while (taken := ahead.result()) is not None:
            ahead = reader.submit(work.prepare)
            claim, ready = taken
            if isinstance(ready, Entry):
                work.end(claim, ready)
                continue
            if segmenter is None:
                segmenter = stack.enter_context(open_models(options))
                stack.enter_context(passes_recorded(segmenter))
            result = work.segment(segmenter, claim, ready)
            if result is None:
                continue
            if writing is not None:
                writing.result()
            writing = writer.submit(work.write, claim, ready, result)
            del taken, ready, result
        if writing is not None:
            writing.result()
    return dict(sorted(work.entries.items()))


class _Work:
    """The steps of a batch in one process, each for one case, and the entries of those that ended.

    `prepare` runs in the thread that reads, `write` in the one that writes.
    """

    def __init__(
        self,
        cases: Sequence[BatchCase],
        bundle_hash: str,
        listener: Listener,
        cells: Cells | None,
        own: Sequence[int] | None,
    ) -> None:
        self.cases = cases
        self.bundle_hash = bundle_hash
        self.listener = listener
        self.claims = Claims(
            LocalCells(len(cases)) if cells is None else cells,
            range(len(cases)) if own is None else own,
            listener.elsewhere,
        )
        self.entries: dict[int, Entry] = {}

    def prepare(self) -> tuple[Claim, _Ready | Entry] | None:
        """Take and read a case; None: none is left."""
        claim = self.claims.take()
        if claim is None:
            return None
        case = self.cases[claim.index]
        self.listener.taken(claim.index)
        return claim, _given_up(case) if claim.given_up else _prepared(case, self.bundle_hash)

    def segment(self, segmenter: Segmenter, claim: Claim, ready: _Ready) -> Result | None:
        """Run the network; None where the case failed."""
        self.listener.started(ready.case)
        try:
            return segment_job(segmenter, ready.read, self.listener.windows)
        except DeviceLostError as error:  # no case of this process could be run any more
            note_end(ready.case, str(error))
            self.claims.abandon(claim)
            raise
        except Exception as error:  # noqa: BLE001 - one case's failure is its own
            self.end(claim, _failed(ready.case, error, ready.earlier))
            return None

    def write(self, claim: Claim, ready: _Ready, result: Result) -> None:
        """Write what came out."""
        self.end(claim, _written(ready, result))

    def end(self, claim: Claim, entry: Entry) -> None:
        """Let a case go, with what became of it."""
        self.entries[claim.index] = entry
        case = self.cases[claim.index]
        for path in case.job.input_files().values():
            case.remote.drop(path)
        if is_suspect(claim.before):
            forget_end(case)
        self.claims.settle(claim, entry)
        self.listener.ended(claim.index, entry)


def _one_thread(stack: ExitStack, name: str) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
    stack.callback(pool.shutdown, wait=True, cancel_futures=True)
    return pool


def _prepared(case: BatchCase, bundle_hash: str) -> _Ready | Entry:
    """Read a case, unless it is finished or can't be read."""
    earlier = Earlier(case)
    try:
        check_outputs(case.job)
        made_from = fingerprint(case, bundle_hash)
        kept = kept_entry(case, made_from, earlier)
        return kept or _Ready(case, _read(case, made_from, earlier), made_from, earlier)
    except Exception as error:  # noqa: BLE001 - one case's failure is its own
        return _failed(case, error, earlier)


def _read(case: BatchCase, made_from: str, earlier: Earlier) -> ReadJob:
    """Read a case from where it lies."""
    for path in case.job.input_files().values():
        case.remote.fetch(path)
    read = read_job(case.job)
    told = check_earlier_files(case, read.prompts, made_from, earlier)
    return replace(read, case=replace(read.case, notes=(*read.case.notes, *told)))


def _written(ready: _Ready, result: Result) -> Entry:
    """Write a case's files, and last of all the record that it is finished."""
    case = ready.case
    roles = roles_of_classes(case, ready.read.prompts)
    try:
        with writing_noted(case, ready.earlier, roles) as digests:
            result = write_job(ready.read, result)
        entry = _entry(ready, result)
        remember(case, ready.made_from, entry, ready.earlier, roles, digests)
    except OutputError:  # the next case would have no room either
        raise
    except Exception as error:  # noqa: BLE001 - one case's failure is its own
        remove_files(case, roles)
        return _failed(case, error, ready.earlier)
    return entry


def _entry(ready: _Ready, result: Result) -> Entry:
    job, report = ready.case.job, result.report
    return Entry(
        name=shown(ready.case.name),
        input=shown(ready.case.remote.shown(job.input)),
        output=shown(ready.case.remote.shown(job.output)),
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
        lesions=measure_lesions(ready.read, result),
    )


NO_IMAGES = "no-images"
"""Code of the error that says that what was read holds no image at all."""


def _given_up(case: BatchCase) -> Entry:
    """Make the entry of a case that ended every process that tried it."""
    reason = f"given up: {MOST_ENDED} processes that had no other case in hand ended in it"
    last = noted_end(case)
    return _unusable(case, f"{reason}; the last: {last}" if last else reason, Earlier(case))


def _failed(case: BatchCase, error: Exception, earlier: Earlier) -> Entry:
    """Make the entry of a case that failed, with the reason in one line.

    No result of earlier content stays under its name.
    """
    reason = str(error) if isinstance(error, MedalsError) else f"{type(error).__name__}: {error}"
    if isinstance(error, OSError) and error.strerror and not isinstance(error, MedalsError):
        reason = f"{error.filename or case.job.input}: {error.strerror.lower()}; check the file"
    if isinstance(error, MemoryError):
        reason = f"out of memory ({error}); `medals-rt plan` estimates the need"
    code = getattr(error, "code", None)
    keeps_files = code == RESULT_NOT_OURS
    return _unusable(case, reason, earlier, skipped=code == NO_IMAGES, keeps_files=keeps_files)


def _unusable(
    case: BatchCase,
    reason: str,
    earlier: Earlier,
    *,
    skipped: bool = False,
    keeps_files: bool = False,
) -> Entry:
    entry = Entry(
        name=shown(case.name),
        input=shown(case.remote.shown(case.job.input)),
        output=shown(case.remote.shown(case.job.output)),
        status="skipped" if skipped else "failed",
        error=shown(reason),
    )
    remember_failure(case, entry, earlier, keeps_files=keeps_files)
    return entry
