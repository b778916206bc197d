"""Output files appear whole or not at all."""

import errno
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

from medals_rt.common.errors import InputError, MedalsError, OutputError

_PARTIAL: Final = re.compile(r"\.partial-([0-9]{1,9}-[0-9a-f]{8})-(.+)", re.DOTALL)
_TOKEN: Final = secrets.token_hex(4)
"""Of this process: on a shared disk, processes of several machines have the same number."""
_TELL: ContextVar[Callable[[Path, Path], object]] = ContextVar("tell", default=lambda *_: None)
"""Who hears of the files that are written; see `outputs_told`."""


def check_writable(path: Path) -> Path:
    """Try that a file can be written, before any long work starts; make no folder for it.

    Of folders that don't exist it is tried whether the nearest one above that does can be written,
    so that work that is refused or interrupted leaves none behind.

    Parameters
    ----------
    path
        A file that may exist (it is replaced later) or not.

    Raises
    ------
    InputError
        The path is a folder, or its folder can't be written.
    """
    if path.is_dir():
        raise InputError(
            f"{path} is a folder; give the name of a file to write", code="is-a-folder"
        )
    with _unwritable_refused(path):
        # a name of its own: that of `_beside` may be another file's, which is written meanwhile
        name = f".partial-{os.getpid()}-{secrets.token_hex(4)}-{path.name}"
        trial = _nearest_folder(path) / name
        trial.touch()
        trial.unlink(missing_ok=True)  # others may take it for a leftover
    return path


def prepare_output(path: Path) -> Path:
    """Make a file's folder, and try as `check_writable` that it can be written.

    Raises
    ------
    InputError
        The path is a folder, or its folder can't be made or written.
    """
    check_writable(path)
    with _unwritable_refused(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def _unwritable_refused(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"can't write {path}: {error.strerror or error}; choose another place",
            code="output-not-writable",
        ) from error


@contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends well.

    The temporary name keeps the file's endings, for libraries that choose a format by them. If the
    block raises (or is interrupted), the temporary file is removed and `path` is as it was. Content
    has reached the disk before the name appears, so that a full disk is noticed here.

    Raises
    ------
    OutputError
        The file can't be written, as when the disk is full.
    """
    temporary = _beside(path)
    try:
        with failures_named(path):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            _TELL.get()(temporary, path)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def outputs_told(tell: Callable[[Path, Path], object]) -> Iterator[None]:
    """Hear of each file that this thread writes by `atomic_output` during the block.

    Parameters
    ----------
    tell
        Called with the temporary file, when it is whole, and with the place that it will take.
    """
    token = _TELL.set(tell)
    try:
        yield
    finally:
        _TELL.reset(token)


@contextmanager
def failures_named(path: Path) -> Iterator[None]:
    """Say of what the system reports while a file or folder is written that it can't be.

    Raises
    ------
    OutputError
        In the place of any `OSError` that is no error of this package.
    """
    try:
        yield
    except MedalsError:
        raise
    except OSError as error:
        first = _first_of(error)
        reason = first.strerror or next(iter(str(first).splitlines()), type(first).__name__)
        raise OutputError(
            f"can't write {path}: {reason}; make room or choose another place",
            code="disk-full" if first.errno == errno.ENOSPC else "output-not-writable",
        ) from error


def _first_of(error: OSError) -> OSError:
    """Return the system's own error, which libraries wrap in others without its number."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, OSError) and below.errno is not None:
            return below
        below = below.__cause__ or below.__context__
    return error


def leftovers(paths: Iterable[Path]) -> Iterator[tuple[Path, Path]]:
    """Find temporary files that other processes left beside these files, or still write there.

    Which of the two it is, only a lock can tell: a process number means nothing on another machine
    or in another container. Each folder is listed once.

    Yields
    ------
    tuple[Path, Path]
        A temporary file, and the one of `paths` whose place it would have taken.
    """
    names: dict[Path, set[str]] = {}
    for path in paths:
        names.setdefault(path.parent, set()).add(path.name)
    for folder, known in names.items():
        if not folder.is_dir():
            continue
        for file in list(folder.iterdir()):
            partial = _PARTIAL.fullmatch(file.name)
            if partial is not None and partial[1] != _own_mark() and partial[2] in known:
                yield file, folder / partial[2]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON, atomically.

    A file's name may hold bytes that are no text; they are written as JSON's escapes.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_output(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def _nearest_folder(path: Path) -> Path:
    """Return the deepest folder above a path that exists."""
    for folder in path.parents:
        try:
            folder.stat()
        except FileNotFoundError:
            continue
        return folder
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def _beside(path: Path) -> Path:
    return path.with_name(f".partial-{_own_mark()}-{path.name}")


def _own_mark() -> str:
    return f"{os.getpid()}-{_TOKEN}"
