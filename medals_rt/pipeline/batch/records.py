"""What a batch remembers of finished cases, so that it can be taken up again.

A case is finished when a record says so for the very content that it has now: the bytes of the
input, its prompts, the options that decide a result, the bundle and this package's version. The
record holds the SHA-256 of every file that was written; where one is missing, the case is made
again. One that was changed since is somebody's work: it stays, and so do files that no batch wrote.
Records are written after the files that they speak of; a mark beside them holds, before each file
takes its place, the SHA-256 of that, so that what a killed process leaves can be told from what is
somebody's.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import msgspec

from medals_rt.common.atomic_io import atomic_output, failures_named, outputs_told, write_json
from medals_rt.common.distribution import VERSION
from medals_rt.common.errors import InputError, MissingFileError, OutputError, PromptError
from medals_rt.common.folders import STATE_FOLDER
from medals_rt.common.notes import Note, warning
from medals_rt.pipeline.batch.find import first_of
from medals_rt.pipeline.batch.paths import (
    CasePaths,
    WrittenFiles,
    folder_of,
    mark_beside,
    read_written,
    role_in,
)
from medals_rt.pipeline.batch.plan import BatchCase, BatchPlan, one_name
from medals_rt.pipeline.batch.remote_files import LOCAL, content_sha256
from medals_rt.pipeline.class_statistics import ClassStatistics
from medals_rt.pipeline.job_outputs import files_of_classes, files_of_maps
from medals_rt.pipeline.job_request import Job
from medals_rt.pipeline.lesion_statistics import LesionStatistics
from medals_rt.pipeline.options import PromptSource
from medals_rt.prompts.prompt_set import PromptReading, PromptSet

RECORD_FORMAT: Final = 5
RESULT_CHANGED: Final = "result-changed"
"""Code of the warning that somebody changed a finished case's files."""
RESULT_NOT_OURS: Final = "result-not-ours"
"""Code of the error that says that a result would take the place of somebody's file."""

RESULT_STAYS: Final = "result-stays"
"""Code of the warning that what is no result any more, or may be none, can't be removed."""

Status = Literal["done", "kept", "failed", "skipped"]


@dataclass(frozen=True)
class Entry:
    """How one case went, as the summary lists it.

    Attributes
    ----------
    name, input, output
        The case's name, and where it was read from and written to.
    status
        ``"done"`` now, ``"kept"`` from an earlier run, ``"failed"``, or ``"skipped"``: there is no
        image in it (a folder of RTSTRUCT, reports or documents).
    error
        Of a failed or skipped case the reason, one line.
    modality, kind, shape_dhw, spacing_hwd_mm
        Of the image and the prompts; None for a failed case.
    seconds, seconds_per_class, within_challenge, within_asked, incomplete
        From reading to labels, as in the report of the run that made them.
    notes
        The report's, without the model's notice, which is about all cases.
    classes, lesions
        What was found.
    """

    name: str
    input: str
    output: str
    status: Status
    error: str | None = None
    modality: str | None = None
    kind: str | None = None
    shape_dhw: tuple[int, int, int] | None = None
    spacing_hwd_mm: tuple[float, float, float] | None = None
    seconds: float | None = None
    seconds_per_class: float | None = None
    within_challenge: bool | None = None
    within_asked: bool | None = None
    incomplete: str | None = None
    notes: tuple[Note, ...] = ()
    classes: tuple[ClassStatistics, ...] = ()
    lesions: tuple[LesionStatistics, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What needs a look before the result is used."""
        return tuple(note.text for note in self.notes if note.severity == "warning")

    @property
    def remarks(self) -> tuple[str, ...]:
        """The other notes."""
        return tuple(note.text for note in self.notes if note.severity != "warning")

    @property
    def late(self) -> bool:
        """Whether it took longer than was asked for, else than the challenge's time."""
        kept = self.within_challenge if self.within_asked is None else self.within_asked
        return kept is False


@dataclass(frozen=True)
class MadeFrom:
    """What a case is made from.

    Attributes
    ----------
    request
        As of `request_sha256`; empty where it couldn't be read.
    inputs
        As of `inputs.inputs_sha256`; None where they couldn't be read.
    """

    request: str = ""
    inputs: str | None = None


@dataclass(frozen=True)
class Record:
    """A case that was finished, or one that failed.

    Attributes
    ----------
    format
        Of the record.
    made_from
        What the case was made from.
    files
        SHA-256 of what was written, by role.
    entry
        How it went.
    ending
        Of the result's name, which begins with the case's.
    left
        As of `WrittenFiles`.
    before
        Of a case that failed, and whose earlier result stays: its record when it was finished,
        which speaks of the same files.
    """

    format: int
    made_from: MadeFrom
    files: dict[str, str]
    entry: Entry
    ending: str
    left: dict[str, str] = field(default_factory=dict)
    before: "Record | None" = None

    @property
    def finished(self) -> "Record | None":
        """The record of the time when the case was finished last."""
        return self if self.entry.status == "done" else self.before


def stated_prompts(source: PromptSource, reading: PromptReading) -> object:
    """Return the classes that are asked for, as JSON has them, whatever file they stand in.

    Of prompts inside the input nothing, of groups the names, and sentences that leave the modality
    to the image as they are written.
    """
    groups = (source.groups, source.everything, source.kind) if source.asks_for_groups else None
    stated = replace(source, groups=(), everything=False)
    try:
        prompts = stated.read(reading)
    except PromptError:
        file = None if stated.file is None else content_sha256(stated.file)
        return [groups, file, stated.sentences, stated.kind, stated.lesions]
    return [groups, None if prompts is None else list(prompts.as_mapping().items())]


def asked_of(
    job: Job, prompts_of: Callable[[PromptSource, PromptReading], object] = stated_prompts
) -> dict[str, object]:
    """Return, as JSON has it, all that decides a result but the inputs, the bundle and the version.

    Parameters
    ----------
    job
        What is to be done.
    prompts_of
        As `stated_prompts`, such as one that reads no prompts twice.

    Raises
    ------
    InputError
        The prompts can't be read.
    """
    return {
        **job.deciding(),
        "source": prompts_of(job.source, job.options.reading),
        "options": job.options.deciding(),
    }


def request_sha256(
    job: Job,
    bundle_hash: str,
    prompts_of: Callable[[PromptSource, PromptReading], object] = stated_prompts,
) -> str:
    """SHA-256 (hex) of everything that decides a result but the inputs.

    Parameters
    ----------
    job, prompts_of
        As of `asked_of`.
    bundle_hash
        Of the model.

    Raises
    ------
    InputError
        The prompts can't be read.
    """
    parts = {
        "format": RECORD_FORMAT,
        "version": VERSION,
        "bundle": bundle_hash,
        "asked": asked_of(job, prompts_of),
    }
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()


class Earlier:
    """What earlier runs have left of a case; each file is read once, when it is first asked for.

    Parameters
    ----------
    case
        The case, which nobody else has in hand.
    """

    def __init__(self, case: BatchCase) -> None:
        self._case = case

    @cached_property
    def _content(self) -> bytes | None:
        return self._case.remote.read(self._case.record)

    @cached_property
    def _mark(self) -> bytes | None:
        return self._case.remote.read(self._case.paths.mark)

    @cached_property
    def record(self) -> Record | None:
        """The case's record."""
        return _read(self._content)

    @cached_property
    def written(self) -> WrittenFiles | None:
        """The files that the record speaks of, whatever format it is of."""
        return read_written(self._content)

    @property
    def last(self) -> Record | None:
        """The record of the time when the case was finished last."""
        return None if self.record is None else self.record.finished

    @property
    def finished(self) -> Record | None:
        """The record of a case that is finished, if no newer files of it are half written."""
        return None if self._mark else self.last

    def own_files(self, but: Collection[Path] = ()) -> dict[Path, str]:
        """Return the files that are now as a batch wrote them, with the SHA-256 of each.

        Of those in `but` nothing is read.
        """
        if self.written is None:
            return {}
        recorded = dict(self._case.paths.all_of(self.written))
        return {
            path: digest
            for path, digest in recorded.items()
            if path not in but and self._case.remote.identity(path) == digest
        }

    def half_written(self) -> dict[Path, str]:
        """Return the files that are now as a process which ended without a word has written them.

        With the SHA-256 of each.
        """
        begun = read_written(self._mark)
        if begun is None:
            return {}
        return {
            path: digest
            for path, digest in self._case.paths.all_of(begun)
            if self._case.remote.sha256(path) == digest
        }


def kept_entry(case: BatchCase, made_from: MadeFrom, earlier: Earlier) -> Entry | None:
    """Return the entry of a case that is finished and whose files are all there.

    Where it has failed since, otherwise made, its record is again that of a finished case.

    Raises
    ------
    OutputError
        The record can't be written.
    """
    record = earlier.finished
    if record is None or record.made_from != made_from:
        return None
    kept = _kept(case, record)
    if kept is None:
        return None
    if record is not earlier.record:
        _write(case, record)
    return replace(kept, input=_input_shown(case))


def check_earlier_files(
    case: BatchCase, prompts: PromptSet, made_from: MadeFrom, earlier: Earlier
) -> tuple[Note, ...]:
    """Refuse to write over files that no batch wrote; note what becomes of those that one did.

    They are replaced, or left beside the new. Files that were changed since are not the batch's any
    more, and nothing is said of those that stay.

    Parameters
    ----------
    case
        The case, which will be segmented.
    prompts
        Its prompts.
    made_from
        What it is made from.
    earlier
        What earlier runs have left of it.

    Raises
    ------
    InputError
        ``result-not-ours``.
    """
    own = earlier.own_files()
    new = set(case.files(roles_of_classes(case, prompts)).values())
    ours = own.keys() | earlier.half_written().keys()
    others = sorted(path for path in new if path not in ours and case.remote.exists(path))
    if others:
        written = earlier.written
        was_ours = written is not None and others[0] in dict(case.paths.all_of(written))
        why = "was changed since it was written" if was_ours else "was not written by a batch"
        raise InputError(
            f"{first_of(map(case.paths.below, others))} {why}, and would be lost: move it away or "
            "remove it, or choose another folder of outputs",
            code=RESULT_NOT_OURS,
        )
    record = earlier.finished
    if record is None:
        return ()
    told = case.job.output_folders().values()  # what else lies in them `check_class_files` tells
    stay = [path for path in own if path not in new and path.parent not in told]
    labels = replace(case.paths, ending=record.ending).labels
    before = {each.label: each.name for each in record.entry.classes}
    asked = {each.label: each.class_key.name for each in prompts.prompts}
    had = "" if before == asked else f", which had {', '.join(before.values())},"
    if not _may_be_one(record.entry.input, _input_shown(case)):
        had = f"{had or ','} of {record.entry.input},"
    notes = []
    if had and labels in own and labels in new:
        notes.append(warning("result-replaced", f"an earlier batch's result{had} is replaced"))
    if stay:
        named = first_of(map(case.paths.below, stay))
        verb = "stays" if len(stay) == 1 else "stay"
        text = (
            f"of an earlier batch's result{had} {named} {verb} beside this one, and no table "
            "lists it"
        )
        alike = record.made_from == made_from
        notes.append((Note if alike else warning)("earlier-files-stay", text))
    return tuple(notes)


def _may_be_one(before: str, now: str) -> bool:
    """Whether two paths may name one file, from different folders."""
    parts = [[part for part in Path(each).parts if part != ".."] for each in (before, now)]
    shorter, longer = sorted(parts, key=len)
    return longer[len(longer) - len(shorter) :] == shorter


def finished_before(plan: BatchPlan) -> tuple[tuple[BatchCase, Entry], ...]:
    """Return the cases that earlier batches finished in a batch's folders, by name, not its own.

    Those whose files are there. Whether their inputs changed since is not asked.
    """
    folder = plan.reports / STATE_FOLDER
    own = {one_name(case.name) for case in plan.cases}
    found = []
    for path in sorted(folder.rglob("*.json")):
        name = path.relative_to(folder).as_posix().removesuffix(".json")
        skipped = one_name(name) in own or path.name.startswith(".")
        found_record = None if skipped else _read(LOCAL.read(path))
        record = None if found_record is None else found_record.finished
        if record is None or mark_beside(path).exists():
            continue
        paths = CasePaths(name, plan.results, plan.reports, record.ending)
        job = Job(
            input=Path(record.entry.input),
            output=paths.labels,
            report=paths.files()["report"],
            preview=paths.files()["preview"] if "preview" in record.files else None,
        )
        case = BatchCase(job, paths, remote=plan.remote)
        kept = _kept(case, record)
        if kept is not None:
            found.append((case, kept))
    return tuple(found)


def roles_of_classes(case: BatchCase, prompts: PromptSet) -> list[str]:
    """Name the roles of the files that a case gets for each class."""
    named = {"class": files_of_classes, "map": files_of_maps}
    return [
        role_in(folder, path)
        for folder, files_of in named.items()
        for path in files_of(case.job, prompts).values()
    ]


def remember(
    case: BatchCase,
    made_from: MadeFrom,
    entry: Entry,
    earlier: Earlier,
    roles: Collection[str] = (),
    digests: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Note that a case is finished, with the files that were written.

    Parameters
    ----------
    case, made_from, entry
        The case, what it was made from, and how it went.
    earlier
        What earlier runs had left of it before.
    roles
        Of the files of its classes.
    digests
        SHA-256 of files by role, as of `writing_noted`.

    Raises
    ------
    OutputError
        The record can't be written.
    """
    written, files = case.files(roles), {}
    now = set(written.values())
    left = {
        case.paths.below(path): case.remote.identity(path) or ""
        for path in (*earlier.own_files(but=now), *earlier.half_written())
        if path not in now
    }
    case.remote.put(case.paths.mark)
    for role, path in written.items():
        known = digests.get(role) if case.remote.url(path) is None else None
        case.remote.put(path)
        files[role] = known or case.remote.identity(path) or ""
    _write(case, Record(RECORD_FORMAT, made_from, files, entry, case.paths.ending, left))
    case.remote.remove_mark(case.paths.mark)


def remember_failure(
    case: BatchCase,
    made_from: MadeFrom,
    entry: Entry,
    earlier: Earlier,
    *,
    keeps_files: bool = False,
) -> Entry:
    """Note that a case has no result, for the tables that another process may write.

    An earlier result stays, as far as nobody knows that the inputs were changed since. Else it is
    removed where it is as it was written: a result of another content must not pass for its own.
    The entry is returned with notes of what can't be removed. Where a store doesn't say what is
    noted of the case, nothing is changed.

    Parameters
    ----------
    case, made_from, entry
        The case, what it would have been made from, and how it went.
    earlier
        What earlier runs have left of it.
    keeps_files
        Whether all files stay in any case.

    Returns
    -------
    Entry
        The entry, which says so of a result that stays.

    Raises
    ------
    OutputError
        The record can't be written.
    """
    try:
        last, written = earlier.last, earlier.written
        own = {} if keeps_files else earlier.own_files()
        half_written = set() if keeps_files else {*earlier.half_written()}
    except MissingFileError as error:
        return replace(entry, notes=(*entry.notes, warning(RESULT_STAYS, shown(error))))
    inputs = None if last is None else last.made_from.inputs
    stays = keeps_files or None in {inputs, made_from.inputs} or inputs == made_from.inputs
    gone = half_written - own.keys() if stays else half_written | own.keys()
    entry = replace(entry, notes=(*entry.notes, *_removed(case, sorted(gone))))
    if not keeps_files and not entry.notes:  # of what stays the mark says what it is
        case.remote.remove_mark(case.paths.mark)
    if stays and written and replace(case.paths, ending=written.ending).labels in own:
        entry = replace(entry, error=f"{entry.error}; the result of an earlier run stays")
    record = Record(RECORD_FORMAT, made_from, {}, entry, "")
    if written is not None and (stays or entry.notes):
        record = replace(
            record, files=written.files, ending=written.ending, left=written.left, before=last
        )
    _write(case, record)
    return entry


@contextmanager
def writing_noted(
    case: BatchCase, earlier: Earlier, roles: Collection[str] = ()
) -> Iterator[Mapping[str, str]]:
    """Keep a mark of what files of a case are like, each before it takes its place.

    It stays until the case is settled. Yields the SHA-256 of those that are there, by role.

    Parameters
    ----------
    case
        The case, whose files this thread writes in the block.
    earlier
        What earlier runs have left of it.
    roles
        Of the files of its classes.
    """
    before = {case.paths.below(path): digest for path, digest in earlier.half_written().items()}
    roles_of = {path: role for role, path in case.files(roles).items()}
    digests: dict[str, str] = {}

    def note() -> None:
        content = msgspec.json.encode(WrittenFiles(digests, case.paths.ending, before))
        with atomic_output(case.paths.mark) as temporary:
            temporary.write_bytes(content)

    def told(temporary: Path, path: Path) -> None:
        if path in roles_of:
            digests[roles_of[path]] = content_sha256(temporary)
            note()

    case.paths.mark.parent.mkdir(parents=True, exist_ok=True)
    note()
    with outputs_told(told):
        yield digests


def settled_entry(case: BatchCase, status: str) -> Entry:
    """Return what the record of a case says of it that another process has settled like this."""
    earlier, found = Earlier(case), None
    reason = "its record or its files are gone; run the batch again"
    try:
        if status == "kept":
            found = None if earlier.finished is None else _kept(case, earlier.finished)
        elif earlier.record is not None and earlier.record.entry.status == status:
            found = earlier.record.entry
    except MissingFileError as error:
        reason = str(error)
    if found is not None:
        return _read_elsewhere(case, found)
    return Entry(
        name=shown(case.name),
        input=_input_shown(case),
        output=shown(case.remote.shown(case.job.output)),
        status="failed",
        error=shown(reason),
    )


def earlier_entry(case: BatchCase, request: str) -> Entry | None:
    """Return what the record of a case says of it that nobody has looked at now.

    Parameters
    ----------
    case
        The case.
    request
        As of `request_sha256`. None is returned, as the case is still to be done, where the record
        is of another request, or files of a finished case are gone.
    """
    earlier = Earlier(case)
    record = earlier.record
    if record is None or record.made_from.request != request:
        return None
    if record.entry.status != "done":
        return _read_elsewhere(case, record.entry)
    kept = None if earlier.finished is None else _kept(case, earlier.finished)
    return None if kept is None else _read_elsewhere(case, kept)


def _read_elsewhere(case: BatchCase, entry: Entry) -> Entry:
    """Say of a result of another process where that found the input, if it may be another one."""
    here = _input_shown(case)
    if _may_be_one(entry.input, here):
        return replace(entry, input=here, output=shown(case.remote.shown(case.job.output)))
    text = (
        f"another process has read this case from {entry.input}, while it is {here} here: make "
        "sure that both are the same scan"
    )
    return replace(
        entry,
        output=shown(case.remote.shown(case.job.output)),
        notes=(*entry.notes, warning("input-elsewhere", text)),
    )


def note_end(case: BatchCase, reason: str) -> None:
    """Note how a process ended that had a case in hand, for the day on which it is given up."""
    path = _end_path(case)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_output(path) as temporary:
        temporary.write_text(shown(reason), encoding="utf-8")
    with suppress(OutputError):  # the case can do without
        case.remote.put(path)


def noted_end(case: BatchCase) -> str | None:
    """Return how the last process ended that had a case in hand; None where nobody saw it."""
    words = None
    with suppress(MissingFileError):  # that the case is given up can be said without
        words = case.remote.read(_end_path(case))
    return shown((words or b"").decode(errors="replace")) or None


def forget_end(case: BatchCase) -> None:
    """Remove the note, once the case is settled."""
    with suppress(OSError):  # an old one does no harm
        case.remote.remove_mark(_end_path(case))


def _end_path(case: BatchCase) -> Path:
    return case.record.with_name(f"{case.record.name}.end")


def remove_files(case: BatchCase, roles: Collection[str] = ()) -> tuple[Note, ...]:
    """Remove what was already written of a case that failed while it was written; note what stays.

    Of that the mark still says that it was being written.
    """
    stay = _removed(case, case.files(roles).values())
    return stay or _removed(case, (case.paths.mark,))


def _removed(case: BatchCase, paths: Iterable[Path]) -> tuple[Note, ...]:
    """Remove files; note which can't be."""
    notes = []
    for path in paths:
        try:
            case.remote.remove(path)
        except OSError as error:
            text = f"{case.paths.below(path)} is no result of this run, and stays: {error}"
            notes.append(warning(RESULT_STAYS, shown(text)))
    return tuple(notes)


def remove_empty_folders(plan: BatchPlan, entries: Iterable[Entry]) -> None:
    """Remove the folders that were made for cases that failed, where nothing lies in them."""
    tops = {plan.results.resolve(), plan.reports.resolve()}
    for case, entry in zip(plan.cases, entries, strict=True):
        if entry.status not in {"failed", "skipped"}:
            continue
        folders = case.job.output_folders().values()
        for folder in (*folders, *(path.parent for path in case.files().values())):
            _remove_empty(folder.resolve(), tops)


def _remove_empty(folder: Path, tops: set[Path]) -> None:
    """Remove a folder and those above it as far as they are empty and below `tops`."""
    while folder not in tops and not tops.isdisjoint(folder.parents):
        try:
            folder.rmdir()
        except FileNotFoundError:
            pass
        except OSError:  # something is in it
            return
        folder = folder.parent


def shown(text: object, length: int = 1000) -> str:
    """Text that may come from a file or its name, for people: one printable line."""
    words = " ".join(str(text).split())[:length]
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words
    )


def _kept(case: BatchCase, record: Record) -> Entry | None:
    """Return the entry of a finished case; None where a file that it should have is missing."""
    if record.ending != case.paths.ending:  # what lies under this name is not what it speaks of
        return None
    if not case.job.output_folders().keys() <= set(map(folder_of, record.files)):
        return None
    files = case.files(record.files)
    found = {role: case.remote.identity(path) for role, path in files.items()}
    if None in found.values() or not found.keys() <= record.files.keys():
        return None
    output = shown(case.remote.shown(case.job.output))
    entry = replace(record.entry, output=output, status="kept")
    changed = [files[role] for role in files if found[role] != record.files[role]]
    if not changed:
        return entry
    text = (
        f"{first_of(map(case.paths.below, changed))} was changed since it was written, and stays "
        "so; the tables are of what was written. Move it away to have the case made again"
    )
    return replace(entry, notes=(*entry.notes, warning(RESULT_CHANGED, text)))


def _input_shown(case: BatchCase) -> str:
    return shown(case.remote.shown(case.job.input))


def _write(case: BatchCase, record: Record) -> None:
    with failures_named(case.record):  # an earlier batch's file may lie where a folder must be
        case.record.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = msgspec.to_builtins(record)
    write_json(case.record, content)
    case.remote.put(case.record)


def _read(content: bytes | None) -> Record | None:
    """Read a record; one that is missing or damaged counts as none, and the case is made again."""
    try:
        record = None if content is None else msgspec.json.decode(content, type=Record)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return None if record is None or record.format != RECORD_FORMAT else record
