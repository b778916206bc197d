"""Seconds by named step, logged as they pass: the first time as information, then for debugging."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_log = logging.getLogger("medals_rt")


@dataclass
class Step:
    """A step that is being timed; its name may still change."""

    name: str


class Stopwatch:
    """Adds up the seconds of named steps, in the order in which they first ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Count the time of the block towards `name`, or what the step is called by its end."""
        start, step = time.perf_counter(), Step(name)
        try:
            yield step
        finally:
            elapsed, name = time.perf_counter() - start, step.name
            level = logging.DEBUG if name in self.seconds else logging.INFO
            _log.log(level, "%s: %.3f s", name, elapsed)
            self.seconds[name] = self.seconds.get(name, 0.0) + elapsed

    def total(self) -> float:
        """Seconds since the watch was made."""
        return time.perf_counter() - self._start
