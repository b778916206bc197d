"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from medals_rt.errors import CaseError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; afterwards it takes the place of `path`.

    The temporary name ends as `path` does, since libraries choose a format by it. Whatever is
    raised inside, an interrupt too, leaves `path` as it was and no temporary file behind.

    Raises
    ------
    CaseError
        If the folder doesn't exist or can't be written to.
    """
    folder = path.parent
    if not folder.is_dir():
        raise CaseError(f"there is no folder {folder} to write {path.name} to; make it first")
    if path.is_dir():
        raise CaseError(f"{path} is a folder; name a file to write to")
    suffix = "".join(path.suffixes[-2:])
    try:
        handle, name = tempfile.mkstemp(prefix=".writing-", suffix=suffix, dir=folder)
    except OSError as error:
        raise CaseError(f"can't write to {folder}: {error.strerror or error}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes the file private; give it what a plain open() would have given.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
