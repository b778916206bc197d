"""Where OpenVINO's compiled graphs are kept, so that a model opens in seconds the second time."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medals_rt.files import atomic_output
from medals_rt.timings import cache_folder

KEPT_BYTES = 8 * 2**30
"""Compiled graphs take as much as this on disk; those not used for longest go first."""

_ENDING = ".blob"


def compiled_file(key: Sequence[object]) -> tuple[Path | None, tuple[str, ...]]:
    """Give the file of a compiled graph, named by all that decides whether it fits, and notes.

    The key names the graphs' content, so that another graph under the same path never finds the
    old one's compilation. Where there is no place for caches, the file is None and a note says so.
    """
    digest = hashlib.sha256("\n".join(map(str, key)).encode()).hexdigest()
    try:
        return cache_folder() / "openvino" / f"{digest}{_ENDING}", ()
    except RuntimeError as error:  # no home folder
        return None, (f"compiled graphs are not kept: {error}",)


def mark_used(file: Path) -> None:
    """Note that a compiled graph was used, so that others are removed before it."""
    try:
        os.utime(file)
    except OSError:  # a cache that is read only still serves
        return


def keep_compiled(file: Path, export: Callable[[], Any]) -> tuple[str, ...]:
    """Write a compiled graph; what can't be kept is told in a note, and is not fatal.

    Parameters
    ----------
    file
        From `compiled_file`.
    export
        Gives the compiled form as a stream.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_output(file) as temporary:
            temporary.write_bytes(export().getbuffer())
        _forget_old(file.parent)
    except (OSError, RuntimeError) as error:
        return (f"compiled graphs are not kept: {error}",)
    return ()


def _forget_old(folder: Path) -> None:
    """Remove what was not used for longest, down to `KEPT_BYTES`; the newest always stays."""
    files = sorted(folder.glob(f"*{_ENDING}"), key=lambda each: each.stat().st_mtime, reverse=True)
    total = 0
    for number, each in enumerate(files):
        total += each.stat().st_size
        if number and total > KEPT_BYTES:
            each.unlink(missing_ok=True)
