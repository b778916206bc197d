"""How long work tells what it has done."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@contextmanager
def whole(progress: Progress | None, name: str) -> Iterator[None]:
    """Report a block that is done all at once: as begun, and unless it fails, as done."""
    if progress is not None:
        progress(name, 0, 1)
    yield
    if progress is not None:
        progress(name, 1, 1)
