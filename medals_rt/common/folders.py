"""Folders with all that lies below them, also where links lead."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final, NoReturn

STATE_FOLDER: Final = ".medals-rt"
"""What a batch keeps for itself, in its folders of results and reports."""


def from_home(path: str) -> str:
    """Read a first part ``~`` as a shell does, which leaves it in ``--output=~/x`` and in files."""
    return os.path.expanduser(path) if path.split("/", 1)[0] == "~" else path  # noqa: PTH111 - as it is without a home


def walk_once(
    top: Path,
    skip: Collection[Path] = (),
    *,
    closed: Callable[[OSError], object] | None = None,
    again: Callable[[Path], object] | None = None,
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Go through a folder and all below it, then where links lead, each folder once.

    A link to a folder that holds this one leads to what nobody asked for, and is not followed. What
    batches keep for themselves is passed over: to close a file that is locked ends the locks of
    this process.

    Parameters
    ----------
    top
        The folder.
    skip
        Real paths of folders that are passed over, with what is below them.
    closed
        Called with the reason why a folder can't be read; None: that is raised.
    again
        Called with links that lead to what is gone through under another name.

    Yields
    ------
    folder
        A folder.
    folders
        Names of those in it that come next, sorted; what is taken out is passed over.
    files
        Names of its files, sorted.

    Raises
    ------
    OSError
        A folder can't be read.
    """
    itself = Path(os.path.realpath(top))
    above = {*skip, itself, *itself.parents}
    seen: set[Path] = set()
    starts = [top]
    for start in starts:  # grows as links are found
        for parent, folders, files in os.walk(start, onerror=closed or _raise):
            folder = Path(parent)
            place = Path(os.path.realpath(folder))
            if folder != top and (place in seen or place in above):
                folders.clear()
                if again is not None and folder == start and place not in above:
                    again(folder)
                continue
            seen.add(place)
            folders[:] = sorted(name for name in folders if name != STATE_FOLDER)
            yield folder, folders, sorted(files)
            starts += [folder / name for name in folders if (folder / name).is_symlink()]


def _raise(error: OSError) -> NoReturn:
    raise error
