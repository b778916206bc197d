"""Progress of `medals-rt batch` on standard error: bars, or lines where there is no terminal.

With `--json-progress` each line is JSON.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from medals_rt.cli._output import out
from medals_rt.pipeline.batch import RESULT_CHANGED, BatchCase, Entry

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Lines:
    """Prints a line per case; when quiet only failures and warnings."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.ended_cases = 0

    def windows(self, stage: str, done: int, total: int) -> None:
        """Print nothing: a line per window would be too many."""

    def taken(self, _: int) -> None:
        """Print nothing: much is read ahead."""

    def started(self, case: BatchCase) -> None:
        """Print nothing: the line comes when the case has ended."""

    def ended(self, _: int, entry: Entry) -> None:
        """Count a case and print how it went."""
        self.ended_cases += 1
        self.show(entry)

    def elsewhere(self, count: int) -> None:
        """Count cases that others have settled."""
        self.ended_cases += count

    def show(self, entry: Entry) -> None:
        """Print how a case went, and its warnings unless they were printed when it was run."""
        line = f"[{self.ended_cases}/{self.total}] {_line(entry)}"
        if entry.status == "failed":
            out.failure(line)
        else:
            out.remark(line)
        for note in entry.notes:
            new = entry.status == "done" or note.code == RESULT_CHANGED
            if new and note.severity == "warning":
                out.warning(f"{entry.name}: {note.text}")


class Events(Lines):
    """Prints a line of JSON for each window and each case that has ended."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self._name = ""

    def started(self, case: BatchCase) -> None:
        """Name the case that runs."""
        self._name = case.name

    def windows(self, stage: str, done: int, total: int) -> None:
        """Print the windows of the case that runs."""
        out.event(stage, done, total, case=self._name)

    def elsewhere(self, count: int) -> None:
        """Print how many cases are settled, with those of others."""
        super().elsewhere(count)
        out.event("cases", self.ended_cases, self.total)

    def show(self, entry: Entry) -> None:
        """Print how a case went."""
        reason = {} if entry.error is None else {"error": entry.error}
        more = {"case": entry.name, "status": entry.status, **reason}
        out.event("cases", self.ended_cases, self.total, **more, warnings=list(entry.warnings))


class Bars(Lines):
    """Draws the cases done, and the windows of the case that runs."""

    def __init__(self, total: int, bars: "Progress") -> None:
        super().__init__(total)
        self._bars = bars
        self._cases = bars.add_task("cases", total=total)
        self._windows: TaskID | None = None
        self._name = ""

    def started(self, case: BatchCase) -> None:
        """Name the case that runs."""
        self._name = case.name

    def windows(self, stage: str, done: int, total: int) -> None:
        """Draw the windows of the case that runs."""
        if self._windows is None:
            self._windows = self._bars.add_task("", total=total)
        words = f"{self._name[-40:]}, {stage}"
        self._bars.update(self._windows, description=words, completed=done, total=total)

    def elsewhere(self, count: int) -> None:
        """Draw cases that others have settled."""
        super().elsewhere(count)
        self._bars.update(self._cases, completed=self.ended_cases)

    def show(self, entry: Entry) -> None:
        """Draw one more case; what failed or was noted stays on the screen."""
        self._bars.update(self._cases, completed=self.ended_cases)
        if entry.status in {"failed", "skipped"} or (entry.status == "done" and entry.notes):
            super().show(entry)


@contextmanager
def batch_listener(total: int) -> Iterator[Lines]:
    """Return the listener that suits the output: events, bars on a terminal, else lines."""
    if out.json_progress:
        yield Events(total)
        return
    with out.bars("elapsed") as bars:
        yield Lines(total) if bars is None else Bars(total, bars)


def _line(entry: Entry) -> str:
    """One line on how a case went."""
    if entry.status == "failed":
        return f"{entry.name}: failed: {entry.error}"
    if entry.status == "skipped":
        return f"{entry.name}: passed over: {entry.error}"
    if entry.status == "kept":
        return f"{entry.name}: finished before"
    found = sum(each.voxels > 0 for each in entry.classes)
    result = f"{entry.name}: {found} of {len(entry.classes)} classes found, {entry.seconds:.1f} s"
    return "; ".join((result, *entry.remarks))
