"""Where OpenVINO's compiled graphs are kept, so that a model opens in seconds the second time."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medals_rt.common.atomic_io import atomic_output
from medals_rt.common.cache_dir import cache_folder, forget_old


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


def keep_compiled(file: Path, export: Callable[[], Any]) -> tuple[str, ...]:
    """Write a compiled graph; what can't be kept becomes a note, and is not fatal.

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
        forget_old()
    except (OSError, RuntimeError) as error:
        return (f"compiled graphs are not kept: {error}",)
    return ()
