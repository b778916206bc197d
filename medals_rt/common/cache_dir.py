"""The user's cache folder, and how much of what libraries compile for this machine stays in it."""

import os
import sys
from contextlib import suppress
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
