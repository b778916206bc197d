"""Where OpenVINO's compiled graphs are kept, so that a model opens in seconds the second time."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from medals_rt.common.atomic_io import atomic_output
from medals_rt.common.cache_dir import cache_folder, forget_old, mark_used

_DIGEST_BYTES: Final = hashlib.sha256().digest_size


def compiled_file(key: Sequence[object]) -> tuple[Path | None, tuple[str, ...]]:
    """Return the file of a compiled graph, named by all that decides whether it fits, and notes.

    The key names the graphs' content, so that another graph under the same path never finds the
    old one's compilation. Where there is no place for caches, the file is None and a note says so.
    """
    digest = hashlib.sha256("\n".join(map(str, key)).encode()).hexdigest()
    try:
        return cache_folder() / "openvino" / f"{digest}.blob", ()
    except RuntimeError as error:  # no home folder
        return None, (f"compiled graphs are not kept: {error}",)


def open_kept(file: Path) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Map what `keep_compiled` left in a file, bytes as uint8, once it is found to be whole.

    Neither the library nor a network's labels would tell that a disk lost some of a graph's
    weights. The bytes are mapped, not read: their pages are shared with the system's cache.

    Returns
    -------
    content, notes
        The content is None where there is nothing, or something else than was kept, which a note
        says.
    """
    if not file.is_file():
        return None, ()
    try:
        mapped = np.memmap(file, np.uint8, mode="c")
    except (OSError, ValueError) as error:  # ValueError: it is empty
        return None, made_again(error)
    content, digest = mapped[:-_DIGEST_BYTES], mapped[-_DIGEST_BYTES:]
    if hashlib.sha256(content.data).digest() != digest.tobytes():
        return None, made_again("its content is not what was kept")
    mark_used(file)
    return content, ()


def made_again(why: object) -> tuple[str, ...]:
    """Return the note of what was kept and is of no use."""
    return (f"a compiled graph could not be used and was made again: {why}",)


def keep_compiled(file: Path, export: Callable[[], Any]) -> tuple[str, ...]:
    """Write a compiled graph and its SHA-256; what can't be kept becomes a note, and is not fatal.

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
            content = export().getbuffer()
            with temporary.open("wb") as stream:
                stream.write(content)
                stream.write(hashlib.sha256(content).digest())
        forget_old()
    except (OSError, RuntimeError) as error:
        return (f"compiled graphs are not kept: {error}",)
    return ()
