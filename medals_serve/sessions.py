"""Sessions: what a client owns, in memory and in a folder of its own on disk.

A session is named by a secret that only its client has; only its hash is kept here. Its folder
lies in one that belongs to the server alone, under names made here, and is removed with the
session. What a server that was killed left behind, the next one removes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, TypeVar

from filelock import FileLock, Timeout

from medals_rt.common.errors import InputError
from medals_serve.disk import held_bytes
from medals_serve.problems import ServiceError, not_found
from medals_serve.settings import RETRY_S, ServeSettings

if TYPE_CHECKING:
    from medals_serve.images import ServedImage, ServedMask, Upload
    from medals_serve.jobs import ServedJob

_Owned = TypeVar("_Owned")

Kind: TypeAlias = Literal["uploads", "images", "masks", "jobs"]
"""What a session may have so many of."""

_LOCK: Final = ".lock"
_REMOVED: Final = ".removed-"
"""How names of folders begin that are about to go."""
_REMOVALS: Final = 4
REPLICA_END: Final = "."
"""Between the name of a replica and what makes a session's id a secret, neither of which has one.

No client escapes it, in an address, a form or JSON: a proxy finds it as it is.
"""


@dataclass(eq=False)
class ClientSession:
    """What one client owns.

    Attributes
    ----------
    folder
        Its own folder.
    uploads, images, masks, jobs
        By their ids; uploads are those of which a series is still to be chosen.
    coming
        How many of each are being made.
    bytes
        What it holds on disk, as far as it was reserved.
    last_used
        On the monotonic clock.
    requests, watchers
        How many of its requests are being answered, and how many of these are streams of progress.
    ended
        Whether its data are gone, or about to be.
    state
        What the protocol that opened it keeps about it; see `medals_serve.protocols`.
    """

    digest: bytes = field(repr=False)
    folder: Path
    uploads: dict[str, Upload] = field(default_factory=dict)
    images: dict[str, ServedImage] = field(default_factory=dict)
    masks: dict[str, ServedMask] = field(default_factory=dict)
    jobs: dict[str, ServedJob] = field(default_factory=dict)
    coming: Counter[Kind] = field(default_factory=Counter)
    bytes: int = 0
    last_used: float = field(default_factory=time.monotonic)
    requests: int = 0
    watchers: int = 0
    ended: bool = False
    state: object = None

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the session while one of its requests is answered."""
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1
            self.last_used = time.monotonic()

    @contextlib.contextmanager
    def place(self, what: Kind, most: int) -> Iterator[None]:
        """Hold a place for something that is being made while the session has fewer than `most`.

        Raises
        ------
        ServiceError
            It has as many, or requests that are being answered make as many.
        """
        if len(getattr(self, what)) + self.coming[what] >= most:
            raise ServiceError(
                f"a session may have {most} {what}; delete an image, or open another session",
                code=f"too-many-{what}",
                status=HTTPStatus.TOO_MANY_REQUESTS,
                retry_after_s=RETRY_S,
            )
        self.coming[what] += 1
        try:
            yield
        finally:
            self.coming[what] -= 1

    @contextlib.contextmanager
    def watching(self, most: int) -> Iterator[None]:
        """Hold one of the session's streams of progress while it has fewer than `most`.

        Raises
        ------
        ServiceError
            It has as many.
        """
        if self.watchers >= most:
            raise ServiceError(
                f"{most} streams of progress are open in this session; close one, or ask for the "
                "job's state now and then",
                code="too-many-watchers",
                status=HTTPStatus.TOO_MANY_REQUESTS,
                retry_after_s=RETRY_S,
            )
        self.watchers += 1
        try:
            yield
        finally:
            self.watchers -= 1

    def upload(self, name: str) -> Upload:
        """Return an upload of this session of which a series is still to be chosen."""
        return _named(self.uploads, name, "upload")

    def image(self, name: str) -> ServedImage:
        """Return an image of this session."""
        return _named(self.images, name, "image")

    def mask(self, name: str) -> ServedMask:
        """Return a mask of this session."""
        return _named(self.masks, name, "mask")

    def job(self, name: str) -> ServedJob:
        """Return a job of this session."""
        return _named(self.jobs, name, "job")

    def check_open(self) -> None:
        """Refuse to go on where the session ended meanwhile.

        Raises
        ------
        ServiceError
        """
        if self.ended:
            raise unknown_session()

    @property
    def is_busy(self) -> bool:
        """Whether one of its jobs waits or runs, or a request is being answered."""
        return self.requests > 0 or any(not job.is_over for job in tuple(self.jobs.values()))


def _named(known: dict[str, _Owned], name: str, what: str) -> _Owned:
    found = known.get(name)
    if found is None:
        raise not_found(what)
    return found


class Sessions:
    """All sessions of a server. Methods may be called by any thread.

    Raises
    ------
    InputError
        The folder for data can't be made, or belongs to someone else.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._by_digest: dict[bytes, ClientSession] = {}
        self._guard = threading.Lock()
        base = settings.data_dir or Path(tempfile.gettempdir()) / f"medals-rt-serve-{os.getuid()}"
        _make_private(base)
        _remove_leftovers(base)
        self.root = base / secrets.token_hex(8)
        self.root.mkdir(mode=0o700)
        self._lock = FileLock(self.root / _LOCK)
        self._lock.acquire(timeout=0)

    def __len__(self) -> int:
        return len(self._by_digest)

    def __iter__(self) -> Iterator[ClientSession]:
        with self._guard:
            return iter(tuple(self._by_digest.values()))

    @property
    def bytes(self) -> int:
        """What all sessions hold on disk."""
        return sum(session.bytes for session in self)

    def create(self) -> tuple[str, ClientSession]:
        """Open a session and return its secret, which is kept nowhere here.

        Of several servers behind a proxy, the secret's beginning names this one.

        Raises
        ------
        ServiceError
            There are too many.
        """
        replica = self._settings.replica
        secret = (replica and replica + REPLICA_END) + secrets.token_urlsafe(32)
        folder = self.root / secrets.token_hex(8)
        session = ClientSession(_digest(secret), folder)
        with self._guard:
            if len(self._by_digest) >= self._settings.max_sessions:
                raise ServiceError(
                    f"all {self._settings.max_sessions} sessions are taken; try again later",
                    code="too-many-sessions",
                    status=HTTPStatus.SERVICE_UNAVAILABLE,
                    retry_after_s=RETRY_S,
                )
            folder.mkdir(mode=0o700)
            self._by_digest[session.digest] = session
        return secret, session

    def find(self, secret: str) -> ClientSession:
        """Return the session with this secret, which counts as use of it.

        Raises
        ------
        ServiceError
            There is none: it ended, or never was.
        """
        session = self._by_digest.get(_digest(secret))
        if session is None or session.ended:
            raise unknown_session()
        session.last_used = time.monotonic()
        return session

    def reserve(self, session: ClientSession, size: int) -> None:
        """Account for bytes that are about to be written to a session's folder.

        Raises
        ------
        ServiceError
            The session, the server or the disk has no room for them; or the session ended.
        """
        limits = self._settings
        with self._guard:
            session.check_open()
            if session.bytes + size > limits.max_session_bytes:
                raise ServiceError(
                    f"the session would hold more than {limits.max_session_bytes:,} bytes; delete "
                    "an image, or end the session",
                    code="session-full",
                    status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                )
            total = sum(each.bytes for each in self._by_digest.values())
            if total + size > limits.max_disk_bytes:
                raise _no_room("the server's share of the disk is full; try again later")
            if shutil.disk_usage(self.root).free - size < limits.min_free_bytes:
                raise _no_room("the server's disk is full; try again later")
            session.bytes += size

    def release(self, session: ClientSession, size: int) -> None:
        """Account for bytes that were removed, or never written."""
        with self._guard:
            session.bytes = max(0, session.bytes - size)

    def keep(self, session: ClientSession, file: Path) -> None:
        """Account for a file that was written, or remove it.

        Raises
        ------
        ServiceError
            As `reserve`.
        """
        try:
            self.reserve(session, file.stat().st_size)
        except ServiceError:
            file.unlink(missing_ok=True)
            raise

    def drop(self, session: ClientSession, folder: Path) -> None:
        """Remove a folder of a session."""
        self.release(session, remove_folder(folder))

    def end(self, session: ClientSession) -> None:
        """End a session: its jobs are canceled and its data removed."""
        with self._guard:
            session.ended = True
            self._by_digest.pop(session.digest, None)
        for job in tuple(session.jobs.values()):
            job.cancel()
        remove_folder(session.folder)

    def idle(self) -> list[ClientSession]:
        """Return the sessions that nobody used for `ServeSettings.idle_s`."""
        now, found = time.monotonic(), []
        for session in self:
            if session.is_busy:
                session.last_used = now
            elif now - session.last_used > self._settings.idle_s:
                found.append(session)
        return found

    def close(self) -> None:
        """End all sessions and remove the server's folder."""
        for session in self:
            self.end(session)
        self._lock.release()
        remove_folder(self.root)


def unknown_session() -> ServiceError:
    """Refuse a session that never was, or is no more."""
    return ServiceError(
        "there is no such session, or it ended; open one with POST /v1/sessions",
        code="session-unknown",
        status=HTTPStatus.UNAUTHORIZED,
    )


def _no_room(message: str) -> ServiceError:
    return ServiceError(
        message,
        code="no-room",
        status=HTTPStatus.INSUFFICIENT_STORAGE,
        retry_after_s=RETRY_S,
    )


def remove_folder(folder: Path) -> int:
    """Remove a folder with all in it, whoever writes to it meanwhile; return the bytes it held.

    It loses its name first: what a job or a reader opens from then on fails, so that nothing comes
    after what is removed. A file that was being opened at that moment takes a second try.

    Raises
    ------
    OSError
        It can't be removed.
    """
    nameless = folder.with_name(_REMOVED + secrets.token_hex(8))
    try:
        folder.rename(nameless)
    except FileNotFoundError:  # it is gone, or goes with a folder around it
        return 0
    held = held_bytes(nameless)
    for _ in range(_REMOVALS - 1):
        shutil.rmtree(nameless, ignore_errors=True)
        if not nameless.exists():
            return held
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(nameless)
    return held


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _make_private(folder: Path) -> None:
    """Make a folder that only this user can look into, or check that it is one.

    Raises
    ------
    InputError
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        if status.st_uid != os.getuid() or not folder.is_dir() or folder.is_symlink():
            raise InputError(
                f"{folder} is not a folder of this user alone; choose another with --data-dir",
                code="data-dir-unsafe",
            )
        folder.chmod(0o700)
    except OSError as error:
        raise InputError(
            f"can't make {folder}: {error.strerror or error}; choose another with --data-dir",
            code="data-dir-unusable",
        ) from error


def _remove_leftovers(base: Path) -> None:
    """Remove what servers that were killed left behind; those that run hold a lock."""
    for folder in base.iterdir():
        lock = folder / _LOCK
        if folder.is_symlink():
            continue
        if not folder.name.startswith(_REMOVED):
            if not lock.is_file():
                continue
            try:
                with FileLock(lock, timeout=0):
                    pass
            except Timeout:
                continue
        remove_folder(folder)
