"""Seconds by named step, logged as they pass: the first time as information, then for debugging."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger("medals_rt")


class Stopwatch:
    """Adds up the seconds of named steps, in the order in which they first ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Count the time of the block towards `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            level = logging.DEBUG if name in self.seconds else logging.INFO
            _log.log(level, "%s: %.3f s", name, elapsed)
            self.seconds[name] = self.seconds.get(name, 0.0) + elapsed

    def total(self) -> float:
        """Seconds since the watch was made."""
        return time.perf_counter() - self._start
