"""Output files appear whole or not at all."""

import errno
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from medals_rt.common.errors import InputError, MedalsError, OutputError

_PARTIAL: Final = re.compile(r"\.partial-([0-9]{1,9}-[0-9a-f]{8})-(.+)", re.DOTALL)
_TOKEN: Final = secrets.token_hex(4)
"""Of this process: on a shared disk, processes of several machines have the same number."""


def prepare_output(path: Path) -> Path:
    """Make a file's folder and try that it can be written, before any long work starts.

    Parameters
    ----------
    path
        A file that may exist (it is replaced later) or not.

    Raises
    ------
    InputError
        The path is a folder, or its folder can't be made or written.
    """
    if path.is_dir():
        raise InputError(
            f"{path} is a folder; give the name of a file to write", code="is-a-folder"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        trial = _beside(path)
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise InputError(
            f"can't write {path}: {error.strerror or error}; choose another place",
            code="output-not-writable",
        ) from error
    return path


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
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except MedalsError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"can't write {path}: {reason}; make room or choose another place",
            code="disk-full" if error.errno == errno.ENOSPC else "output-not-writable",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


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


def _beside(path: Path) -> Path:
    return path.with_name(f".partial-{_own_mark()}-{path.name}")


def _own_mark() -> str:
    return f"{os.getpid()}-{_TOKEN}"
