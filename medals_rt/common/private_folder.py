"""Temporary folders for scans: only this user reads them, and none outlives its process long."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

_PREFIX: Final = "medals-rt-scans-"
_LOCK: Final = "lock"
_NEW_LOCK: Final = "new-lock"
"""The lock until it is held: nobody may take the folder for an abandoned one before that."""


@contextmanager
def private_folder() -> Iterator[Path]:
    """Yield the real path of a temporary folder of mode 0700, which goes with the block.

    Folders that killed processes of this user have left on this machine go first.
    """
    _remove_abandoned()
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as made:
        folder = Path(made).resolve()
        with FileLock(folder / _NEW_LOCK, blocking=False):
            if os.name == "posix":  # elsewhere an open file keeps its name, and its folder
                (folder / _NEW_LOCK).rename(folder / _LOCK)
            yield folder


def _remove_abandoned() -> None:
    """Remove folders whose process has ended, which has ended its lock."""
    if os.name != "posix":
        return
    for lock in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        try:
            found = lock.parent.lstat()
            if found.st_uid == os.getuid():
                with FileLock(lock, blocking=False, fallback_to_soft=False):
                    shutil.rmtree(lock.parent, ignore_errors=True)
        except (OSError, Timeout):  # it goes just now, or is in use
            continue
