"""What a node has received and made, on disk: what is there survives the process.

A series has a folder. Its images are there before they are acknowledged; `state.json` says what
became of them, and is written when all results are there, and again after each delivery. Whatever
was not finished is found again at the next start, from the files alone.
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Final, Literal, TypeAlias

import msgspec
import numpy as np
from msgspec.structs import replace

from medals_rt.common.atomic_io import write_json
from medals_rt.common.errors import InputError
from medals_rt.common.optional_deps import import_optional
from medals_rt.io.dicom.files import damage, silence
from medals_serve.disk import held_bytes

OUT_OF_RESOURCES: Final = 0xA700
CANNOT_UNDERSTAND: Final = 0xC000
MISMATCH: Final = 0xA900
DUPLICATE: Final = 0x0111
SUCCESS: Final = 0x0000

_UID: Final = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_LONGEST_UID: Final = 64
_SPARE_BYTES: Final = 2**30
_MOST_STARTS: Final = 3
_REMEMBER_S: Final = 30 * 86400.0
_ABANDONED_S: Final = 3600.0

Status: TypeAlias = Literal["started", "delivering", "done", "skipped", "failed"]


class NotStoredError(Exception):
    """An object can't be kept; `status` is what its sender is told."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Delivery(msgspec.Struct):
    """A result on its way: its file's name, who gets it, and whether they have."""

    file: str
    to: str
    sent: bool = False


class State(msgspec.Struct):
    """What became of a series.

    Attributes
    ----------
    status
        ``"started"``: the model works on it, or did when the process died. ``"delivering"``:
        results are there and on their way. ``"skipped"``: no rule fits.
    objects
        Names of the images that it is about.
    run
        How often results were made or begun.
    starts
        How often the model began without an end; of one that failed, 0 unless the process died of
        it.
    why
        Of a failure, one line.
    deliveries
        Of the results; where this run has none, of those before it that have not arrived.
    at
        When this was written, seconds of the epoch.
    """

    status: Status
    objects: tuple[str, ...]
    run: int = 0
    starts: int = 0
    why: str = ""
    deliveries: list[Delivery] = []
    at: float = 0.0

    @property
    def died_of(self) -> bool:
        """Whether the model began so often without an end that it isn't tried again."""
        return self.status == "started" and self.is_deadly

    @property
    def is_deadly(self) -> bool:
        """Whether the process died of it, again and again."""
        return self.starts >= _MOST_STARTS

    @property
    def unsent(self) -> list[Delivery]:
        """What is on its way."""
        return [each for each in self.deliveries if not each.sent]

    @property
    def came_to_nothing(self) -> bool:
        """Whether it ended without results, until it is sent again or the node starts again."""
        return self.status in {"failed", "skipped"}

    def begin_again(self) -> None:
        """Make it work to do."""
        self.status, self.starts, self.why = "started", 0, ""


@dataclass(frozen=True)
class SpooledSeries:
    """The folder of a series."""

    folder: Path

    @property
    def name(self) -> str:
        """UIDs of study and series."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def objects(self) -> Path:
        """Folder of its images."""
        return self.folder / "objects"

    @property
    def results(self) -> Path:
        """Folder of its results."""
        return self.folder / "results"

    def names(self) -> tuple[str, ...]:
        """Names of its images, sorted."""
        with suppress(FileNotFoundError):
            found = (path.name for path in self.objects.iterdir())
            return tuple(sorted(found))
        return ()

    def removed(self, state: State) -> int:
        """Return how many of the images that something became of aren't there any more."""
        return len(set(state.objects).difference(self.names()))

    def newest(self) -> float:
        """Return when its last image came, seconds of the epoch; 0 where it has none."""
        times = [0.0]
        for name in self.names():
            with suppress(FileNotFoundError):
                times.append((self.objects / name).stat().st_mtime)
        return max(times)

    def state(self) -> State | None:
        """Return what became of it; None where nothing did yet, or the file is damaged."""
        try:
            return msgspec.json.decode((self.folder / "state.json").read_bytes(), type=State)
        except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
            return None

    def put_state(self, state: State) -> None:
        """Write down what became of it, to the disk."""
        state.at = time.time()
        write_json(self.folder / "state.json", msgspec.to_builtins(state))
        _sync(self.folder)


@dataclass
class Spool:
    """All series, and how much more may come.

    Attributes
    ----------
    folder
        Where they lie. Beside it is `incoming`, where objects lie while they are received.
    max_waiting, max_bytes
        Series that may wait for their results, and what all files may take.
    """

    folder: Path
    max_waiting: int
    max_bytes: int
    _lock: Lock = field(default_factory=Lock, repr=False)
    _waiting: set[Path] = field(default_factory=set, repr=False)
    _delivering: set[Path] = field(default_factory=set, repr=False)
    _late: set[Path] = field(default_factory=set, repr=False)
    _held: dict[Path, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        _make_folder(self.folder)
        shutil.rmtree(self.incoming, ignore_errors=True)  # was never acknowledged
        for path in self.folder.rglob(".partial-*"):  # nor was what earlier versions left there
            path.unlink()
        _make_folder(self.incoming)
        self._held = {each.folder: held_bytes(each.folder) for each in self.series()}
        every = {each.folder for each in self.series()}
        self._waiting, self._delivering, self._late = set(every), set(every), set(every)
        self._those(self._waiting, _has_work)

    @property
    def incoming(self) -> Path:
        """Folder of what is being received."""
        return self.folder.with_name("incoming")

    def series(self) -> Iterator[SpooledSeries]:
        """Go through all series."""
        for study in _folders_in(self.folder):
            yield from map(SpooledSeries, _folders_in(study))

    def keep(self, study: str, series: str, uid: str, received: Path) -> None:
        """Keep an image: it is on the disk when this returns. One that is there already is left.

        A series that came to nothing is work again when one of its images comes again.

        Parameters
        ----------
        study, series, uid
            Its identifiers.
        received
            Its file in `incoming`, which is moved to its place.

        Raises
        ------
        NotStoredError
            There is no room, too much waits, or an identifier is none.
        """
        for each in (study, series, uid):
            if len(each) > _LONGEST_UID or not _UID.fullmatch(each):
                raise NotStoredError("an identifier is no UID", CANNOT_UNDERSTAND)
        found = SpooledSeries(self.folder / study / series)
        path = found.objects / f"{uid}.dcm"
        try:
            size = received.stat().st_size
            with self._lock:
                is_new = not path.exists()
                if is_new:
                    self._check_room(found, size)
                    _move_through(received, path)
                    self._held[found.folder] = self._held.get(found.folder, 0) + size
                    self._waiting.add(found.folder)
                    self._late.add(found.folder)
            if not is_new and not is_same_object(path, received):
                raise NotStoredError(f"{uid} is here with other content", DUPLICATE)
            self._take_up_again(found, path)
        except OSError as error:
            raise NotStoredError(str(error), OUT_OF_RESOURCES) from error

    def _take_up_again(self, found: SpooledSeries, path: Path) -> None:
        """Make a series that came to nothing work again, of which an image came again."""
        with self._lock:
            state = found.state()
            if state is None or not state.came_to_nothing:
                return
            path.touch()  # others may come again, too
            state.begin_again()
            found.put_state(state)
            self._waiting.add(found.folder)

    def _check_room(self, found: SpooledSeries, size: int) -> None:
        waiting = len(self._waiting)
        if waiting >= self.max_waiting and found.folder not in self._waiting:
            raise NotStoredError(f"{waiting} series wait already", OUT_OF_RESOURCES)
        free = shutil.disk_usage(self.folder).free  # what was received is on it already
        if sum(self._held.values()) + size > self.max_bytes or free < _SPARE_BYTES:
            raise NotStoredError("the disk is as full as it may be", OUT_OF_RESOURCES)

    def complete(self, quiet_s: float) -> list[SpooledSeries]:
        """Return the series with new images, none of them younger than `quiet_s`; oldest first.

        Those that the model never survived are left out.
        """
        found = [(each.newest(), each) for each in self._those(self._waiting, _has_work)]
        quiet = [pair for pair in found if time.time() - pair[0] >= quiet_s]
        return [each for _, each in sorted(quiet, key=lambda pair: pair[0])]

    def delivering(self) -> Iterator[tuple[SpooledSeries, State]]:
        """Go through the series whose results are on their way."""
        for each in self._those(self._delivering, _is_delivering):
            state = each.state()
            if _is_delivering(each, state) and state is not None:
                yield each, state

    def late(self, quiet_s: float) -> Iterator[tuple[SpooledSeries, int]]:
        """Go, once, through series of which images came when earlier ones had been removed.

        Yields how many those are. The images that came are kept and no work: alone they would be
        taken for the series.
        """
        for each in self._those(self._late, _is_late):
            state = each.state()
            if state is not None and time.time() - each.newest() >= quiet_s:
                with self._lock:
                    self._late.discard(each.folder)
                yield each, each.removed(state)

    def _those(
        self, which: set[Path], holds: Callable[[SpooledSeries, State | None], bool]
    ) -> list[SpooledSeries]:
        """Series of a set for which something holds; the others leave the set."""
        with self._lock:
            for folder in tuple(which):
                series = SpooledSeries(folder)
                if not holds(series, series.state()):
                    which.discard(folder)
            return [SpooledSeries(each) for each in sorted(which)]

    def delivered(self, series: SpooledSeries, delivery: Delivery) -> None:
        """Note that a result has arrived, unless newer ones took its place meanwhile."""
        self._close(series, delivery, [replace(delivery, sent=True)])

    def withdrawn(self, series: SpooledSeries, delivery: Delivery) -> None:
        """Note that a result isn't sent any more."""
        self._close(series, delivery, [])

    def _close(self, series: SpooledSeries, delivery: Delivery, by: list[Delivery]) -> None:
        """Put what became of a delivery in its place."""
        with self._lock:
            state = series.state()
            if state is None or delivery not in state.deliveries:
                return
            at = state.deliveries.index(delivery)
            state.deliveries[at : at + 1] = by
            if state.status == "delivering" and not state.unsent:
                state.status = "done"
            series.put_state(state)

    def settle(self, series: SpooledSeries, state: State) -> None:
        """Write down what became of a series, whose results are on the disk.

        Earlier results that have not arrived stay on their way until there are new ones.
        """
        with self._lock:
            before = series.state()
            if state.status != "delivering":
                state.deliveries = [] if before is None else before.unsent
            series.put_state(state)
            for which, holds in ((self._waiting, _has_work), (self._delivering, _is_delivering)):
                which.discard(series.folder)
                if holds(series, state):
                    which.add(series.folder)
            self._held[series.folder] = held_bytes(series.folder)

    def prune(self, retain_s: float) -> None:
        """Remove images and results of what was finished so long ago; that it was is remembered.

        What was received in part, from a sender that broke off, goes too.
        """
        for path in self.incoming.iterdir():
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _ABANDONED_S:
                    path.unlink()
        for each in list(self.series()):
            with self._lock:  # for one series at a time: images come meanwhile
                state = each.state()
                if state is None or _has_work(each, state) or _is_delivering(each, state):
                    continue
                age_s = time.time() - max(state.at, each.newest())
                is_forgotten = age_s > max(_REMEMBER_S, retain_s)
                gone = [each.folder] if is_forgotten else [each.objects, each.results]
                if age_s < retain_s or not any(map(Path.exists, gone)):
                    continue
                for folder in gone:
                    shutil.rmtree(folder, ignore_errors=True)
                if is_forgotten:
                    self._held.pop(each.folder, None)
                else:
                    self._held[each.folder] = held_bytes(each.folder)


def _has_work(series: SpooledSeries, state: State | None) -> bool:
    """Whether there are images that the model hasn't seen, and all that it has seen are there."""
    names = series.names()
    if not names or (state is not None and series.removed(state)):
        return False
    if state is None or set(names) - set(state.objects):
        return True
    return state.status == "started" and not state.died_of


def _is_delivering(_: SpooledSeries, state: State | None) -> bool:
    """Whether results are on their way."""
    return state is not None and bool(state.unsent)


def _is_late(series: SpooledSeries, state: State | None) -> bool:
    """Whether images came when earlier ones had been removed."""
    return state is not None and bool(series.names()) and bool(series.removed(state))


def is_same_object(one: Path, other: Path) -> bool:
    """Whether two files hold the same DICOM object, whoever wrote them, in whatever syntax.

    Senders may choose another transfer syntax the second time. Private elements, whose types not
    every syntax names, say nothing about an image then.
    """
    if filecmp.cmp(one, other, shallow=False):
        return True
    pydicom = import_optional("pydicom", "medals-rt listen")
    from pydicom.filewriter import correct_ambiguous_vr

    try:
        with silence():
            both = [pydicom.dcmread(each) for each in (one, other)]
            syntaxes = {each.file_meta.TransferSyntaxUID for each in both}
            if len(syntaxes) == 1:
                return bool(both[0] == both[1])
            pixels = [each.pixel_array for each in both]
            for each in both:
                each.remove_private_tags()
                del each.PixelData
                correct_ambiguous_vr(each, is_little_endian=True)
            return bool(both[0] == both[1]) and np.array_equal(*pixels)
    except damage():
        return False


def _folders_in(folder: Path) -> list[Path]:
    """Folders in a folder, sorted; other things in it are none of ours."""
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _move_through(received: Path, path: Path) -> None:
    """Move a file to its place so that it is on the disk, whole and by its name, afterwards."""
    new = not path.parent.is_dir()
    path.parent.mkdir(parents=True, exist_ok=True)
    _sync(received)
    received.replace(path)
    for folder in path.parents[: 4 if new else 1]:
        _sync(folder)


def _sync(path: Path) -> None:
    """Put a file, or the names in a folder, on the disk, where the system lets a program do so."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_folder(folder: Path) -> None:
    """Make a folder, which others can't look into; one that is there keeps its mode."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def lock_spool(folder: Path) -> AbstractContextManager[object]:
    """Take a folder for this process alone, until it ends.

    Raises
    ------
    InputError
        Another process has it.
    """
    from filelock import FileLock, Timeout

    _make_folder(folder)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"another node works in {folder}; give it a folder of its own", code="folder-locked"
        ) from error
    return lock
