"""The user's cache folder, and how much of what libraries compile for this machine stays in it."""

import atexit
import os
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

KEPT_BYTES: Final = 8 * 2**30
"""What all compiled graphs and kernels may take on disk; those not used for longest go first."""

COMPILED: Final = ("openvino/*.blob", "tensorrt-rtx/kernels-*.cache")
"""Where they lie in the cache folder: the names that `openvino_cache` and `KernelCache` give."""


def cache_folder() -> Path:
    """Return the user's cache folder for this package ($MEDALS_RT_CACHE where that is set)."""
    if explicit := os.environ.get("MEDALS_RT_CACHE"):
        return Path(explicit)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "medals-rt"
    if local := os.environ.get("LOCALAPPDATA"):
        return Path(local) / "medals-rt"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medals-rt"


def provide_cupy_cache() -> None:
    """Name a folder that can be written for CuPy's kernels, before it is imported.

    CuPy makes `~/.cupy` as it is imported, and fails in a home that can't be written. It gets the
    folder `cupy` of the cache folder, or a temporary one where that can't be written either.
    `$CUPY_CACHE_DIR` is left alone if it is set.
    """
    if not os.environ.get("CUPY_CACHE_DIR"):
        os.environ["CUPY_CACHE_DIR"] = str(_writable(cache_folder() / "cupy"))


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return _temporary_folder()


@cache
def _temporary_folder() -> Path:
    """Make a folder that goes with this process; private, since code is loaded from it."""
    kept = tempfile.TemporaryDirectory(prefix="medals-rt-cupy-")
    atexit.register(kept.cleanup)
    return Path(kept.name)


def mark_used(file: Path) -> None:
    """Note that a compiled file was used, so that others are removed before it."""
    with suppress(OSError):  # a cache that is read only still serves
        os.utime(file)


def forget_old() -> None:
    """Remove the compiled files not used for longest, down to `KEPT_BYTES`; the newest stays.

    To be called when one was written.

    Raises
    ------
    OSError
        The folder can't be read.
    """
    found: list[tuple[float, int, Path]] = []
    for pattern in COMPILED:
        for file in cache_folder().glob(pattern):
            with suppress(FileNotFoundError):  # another process has just removed it
                stat = file.stat()
                found.append((stat.st_mtime, stat.st_size, file))
    total = 0
    for number, (_, size, file) in enumerate(sorted(found, reverse=True)):
        total += size
        if number and total > KEPT_BYTES:
            with suppress(PermissionError):  # Windows keeps what another process has open
                file.unlink(missing_ok=True)
