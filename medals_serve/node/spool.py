"""What a node has received and made, on disk: what is there survives the process.

A series has a folder. Its images are there before they are acknowledged; `state.json` says what
became of them, and is written when all results are there, and again after each delivery. Whatever
was not finished is found again at the next start, from the files alone.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Final, Literal, TypeAlias

import msgspec

from medals_rt.common.atomic_io import write_json
from medals_rt.common.errors import InputError
from medals_serve.disk import held_bytes

OUT_OF_RESOURCES: Final = 0xA700
CANNOT_UNDERSTAND: Final = 0xC000
MISMATCH: Final = 0xA900
DUPLICATE: Final = 0x0111
SUCCESS: Final = 0x0000

_UID: Final = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_LONGEST_UID: Final = 64
_PARTIAL: Final = ".partial-"
_SPARE_BYTES: Final = 2**30
_MOST_STARTS: Final = 3
_REMEMBER_S: Final = 30 * 86400.0

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
        How often the model began without an end.
    why
        Of a failure, one line.
    deliveries
        Of the results.
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
        return self.status == "started" and self.starts >= _MOST_STARTS


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
            return tuple(sorted(name for name in found if not name.startswith(_PARTIAL)))
        return ()

    def state(self) -> State | None:
        """Return what became of it; None where nothing did yet, or the file is damaged."""
        try:
            return msgspec.json.decode((self.folder / "state.json").read_bytes(), type=State)
        except (FileNotFoundError, msgspec.DecodeError):
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
        Where they lie.
    max_waiting, max_bytes
        Series that may wait, and what all files may take.
    """

    folder: Path
    max_waiting: int
    max_bytes: int
    _lock: Lock = field(default_factory=Lock, repr=False)
    _waiting: set[Path] = field(default_factory=set, repr=False)
    _held: dict[Path, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        _make_folder(self.folder)
        for path in self.folder.rglob(f"{_PARTIAL}*"):
            path.unlink()  # was never acknowledged
        self._held = {each.folder: held_bytes(each.folder) for each in self.series()}
        self._waiting = {each.folder for each in self.series() if _is_open(each)}

    def series(self) -> Iterator[SpooledSeries]:
        """Go through all series."""
        for study in sorted(self.folder.iterdir()):
            if study.is_dir():
                for folder in sorted(study.iterdir()):
                    yield SpooledSeries(folder)

    def keep(self, study: str, series: str, uid: str, content: bytes) -> None:
        """Keep an image: it is on the disk when this returns. One that is there already is left.

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
        with self._lock:
            if path.exists():
                if path.read_bytes() != content:
                    raise NotStoredError(f"{uid} is here with other content", DUPLICATE)
                return
            self._check_room(found, len(content))
            try:
                _write_through(path, content)
            except OSError as error:
                raise NotStoredError(str(error), OUT_OF_RESOURCES) from error
            self._held[found.folder] = self._held.get(found.folder, 0) + len(content)
            self._waiting.add(found.folder)

    def _check_room(self, found: SpooledSeries, size: int) -> None:
        waiting = len(self._waiting)
        if waiting >= self.max_waiting and found.folder not in self._waiting:
            raise NotStoredError(f"{waiting} series wait already", OUT_OF_RESOURCES)
        free = shutil.disk_usage(self.folder).free
        if sum(self._held.values()) + size > self.max_bytes or free < size + _SPARE_BYTES:
            raise NotStoredError("the disk is as full as it may be", OUT_OF_RESOURCES)

    def complete(self, quiet_s: float) -> list[SpooledSeries]:
        """Return the series with new images, none of them younger than `quiet_s`; oldest first.

        Those that the model never survived are left out.
        """
        found = []
        for each in self._open():
            if not _has_work(each, each.state()):
                continue
            newest = max((each.objects / name).stat().st_mtime for name in each.names())
            if time.time() - newest >= quiet_s:
                found.append((newest, each))
        return [each for _, each in sorted(found, key=lambda pair: pair[0])]

    def delivering(self) -> Iterator[tuple[SpooledSeries, State]]:
        """Go through the series whose results are on their way."""
        for each in self._open():
            state = each.state()
            if state is not None and state.status == "delivering":
                yield each, state

    def _open(self) -> list[SpooledSeries]:
        """Series with something to do; those sent again after they were finished are none."""
        with self._lock:
            self._waiting = {each for each in self._waiting if _is_open(SpooledSeries(each))}
            return [SpooledSeries(each) for each in sorted(self._waiting)]

    def delivered(self, series: SpooledSeries, delivery: Delivery) -> None:
        """Note that a result has arrived, unless newer ones took its place meanwhile."""
        with self._lock:
            state = series.state()
            if state is None:
                return
            for each in state.deliveries:
                if (each.file, each.to) == (delivery.file, delivery.to):
                    each.sent = True
            if state.status == "delivering" and all(each.sent for each in state.deliveries):
                state.status = "done"
            series.put_state(state)

    def settle(self, series: SpooledSeries, state: State) -> None:
        """Write down what became of a series, whose results are on the disk."""
        with self._lock:
            series.put_state(state)
            self._waiting.add(series.folder)
            self._held[series.folder] = held_bytes(series.folder)

    def prune(self, retain_s: float) -> None:
        """Remove images and results of what was finished so long ago; that it was is remembered."""
        for each in list(self.series()):
            with self._lock:  # for one series at a time: images come meanwhile
                state = each.state()
                if state is None or _is_open(each):
                    continue
                age_s = time.time() - state.at
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
    """Whether there are images that the model hasn't seen."""
    names = series.names()
    if not names:
        return False
    if state is None or set(names) - set(state.objects):
        return True
    return state.status == "started" and not state.died_of


def _is_open(series: SpooledSeries) -> bool:
    """Whether something is still to be done with a series."""
    state = series.state()
    return _has_work(series, state) or (state is not None and state.status == "delivering")


def _write_through(path: Path, content: bytes) -> None:
    """Write a file so that it is on the disk, whole and under its name, when this returns."""
    new = not path.parent.is_dir()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{_PARTIAL}{path.name}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    for folder in path.parents[: 4 if new else 1]:
        _sync(folder)


def _sync(folder: Path) -> None:
    """Put the names in a folder on the disk, where the system lets a program do so."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
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
