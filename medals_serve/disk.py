"""How much a folder holds, while others write and remove in it."""

import os
from contextlib import suppress
from pathlib import Path


def held_bytes(folder: Path) -> int:
    """Return the bytes of a folder's files; what goes meanwhile counts nothing."""
    total = 0
    for place, _, names in os.walk(folder):  # which passes over folders that are gone
        for name in names:
            with suppress(FileNotFoundError):
                total += (Path(place) / name).lstat().st_size
    return total
