"""Output files appear whole or not at all."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medals_rt.errors import InputError


def prepare_output(path: Path) -> Path:
    """Make a file's folder and try that it can be written, before any long work starts.

    Parameters
    ----------
    path : a file that may exist (it is replaced later) or not

    Raises
    ------
    InputError : the path is a folder, or its folder can't be made or written
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        trial = _beside(path)
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise InputError(
            f"can't write {path}: {error.strerror or error}; choose another place"
        ) from error
    return path


@contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` that takes its place when the block ends well.

    The temporary name keeps the file's endings, for libraries that choose a format by them. If the
    block raises (or is interrupted), the temporary file is removed and `path` is as it was.
    """
    temporary = _beside(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON, atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_output(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _beside(path: Path) -> Path:
    return path.with_name(f".partial-{os.getpid()}-{path.name}")
