"""How `medals-rt batch` tells on standard error how it goes: bars, or lines without a terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from medals_rt.pipeline.batch import BatchCase, Entry

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Silent:
    """Counts and says nothing."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.finished = 0
        self.failed = 0

    def windows(self, stage: str, done: int, total: int) -> None:
        """Say nothing."""

    def started(self, case: BatchCase) -> None:
        """Say nothing."""

    def ended(self, entry: Entry) -> None:
        """Count a case that is behind us."""
        if entry.status == "failed":
            self.failed += 1
        else:
            self.finished += 1

    def standing(self) -> str:
        """Say how far the batch came, where it ends early."""
        return (
            f"{self.finished} of {self.total} cases are finished; "
            "the same command goes on with the others"
        )


class Lines(Silent):
    """Writes one line a case."""

    def ended(self, entry: Entry) -> None:
        """Count a case and say how it went."""
        super().ended(entry)
        typer.echo(f"[{self.finished + self.failed}/{self.total}] {_line(entry)}", err=True)


class Bars(Silent):
    """Draws the cases done, and the windows of the case that runs."""

    def __init__(self, total: int, progress: "Progress") -> None:
        super().__init__(total)
        self._progress = progress
        self._cases = progress.add_task("cases", total=total)
        self._windows: TaskID | None = None
        self._name = ""

    def started(self, case: BatchCase) -> None:
        """Name the case that runs."""
        self._name = case.name

    def windows(self, stage: str, done: int, total: int) -> None:
        """Draw the windows of the case that runs."""
        if self._windows is None:
            self._windows = self._progress.add_task("", total=total)
        words = f"{self._name[-40:]}, {stage}"
        self._progress.update(self._windows, description=words, completed=done, total=total)

    def ended(self, entry: Entry) -> None:
        """Count a case; what failed or was noted stays on the screen."""
        super().ended(entry)
        self._progress.update(self._cases, completed=self.finished + self.failed)
        if entry.status == "failed" or (entry.status == "done" and entry.notes):
            self._progress.console.print(_line(entry), markup=False, highlight=False)


@contextmanager
def batch_listener(total: int, *, quiet: bool) -> Iterator[Silent]:
    """Give the listener that suits: bars on a terminal, lines elsewhere, nothing when quiet."""
    if quiet:
        yield Silent(total)
    elif not sys.stderr.isatty():
        yield Lines(total)
    else:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        columns = (TextColumn("{task.description}", markup=False), BarColumn())
        console = Console(stderr=True)
        with Progress(
            *columns, MofNCompleteColumn(), TimeElapsedColumn(), console=console
        ) as progress:
            yield Bars(total, progress)


def _line(entry: Entry) -> str:
    """Say in one line how a case went."""
    if entry.status == "failed":
        return f"{entry.name}: failed: {entry.error}"
    if entry.status == "kept":
        return f"{entry.name}: finished before"
    found = sum(each.voxels > 0 for each in entry.classes)
    told = f"{entry.name}: {found} of {len(entry.classes)} classes found, {entry.seconds:.1f} s"
    return "; ".join((told, *entry.notes))
