"""The one sink of everything that commands print.

Results go to standard output; progress, notes, warnings and errors to standard error. `--quiet`
silences all but JSON, warnings and errors. On a terminal, warnings are amber and errors red, unless
NO_COLOR is set. With `--json-progress` each line on standard error is a JSON object, what the log
and Python's warnings say too.
"""

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import typer

from medals_rt.common.errors import InputError
from medals_rt.common.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from medals_rt.common.notes import Note

LOG: Final = "MEDALS_RT_LOG"
"""Environment variable of the level that is logged, such as ``debug``."""

_LEVELS: Final = ("", "DEBUG", "INFO", "WARNING", "ERROR")

AMBER: Final = "bold #ffbf00"
RED: Final = "bold red"

_WIDEST_TABLE = 2000
_NARROWEST_TEXT = 12  # a column of texts is folded down to so many characters, not further
_CONTROL: Final = dict.fromkeys(
    (*range(9), *range(11, 32), *range(127, 160)), "\N{REPLACEMENT CHARACTER}"
)


class Output:
    """Where commands print; there is one, `out`."""

    def __init__(self) -> None:
        self.quiet = False
        self.debug = False
        self.json_progress = False
        self._began = time.monotonic()
        self._log = _LogEvents(self)

    def start(
        self,
        *,
        quiet: bool = False,
        debug: bool = False,
        verbose: bool = False,
        json_progress: bool = False,
    ) -> None:
        """Take the common flags of the command that runs.

        Raises
        ------
        InputError
            `LOG` names no level.
        """
        self.quiet, self.debug, self.json_progress = quiet, debug, json_progress
        self._began = time.monotonic()
        logging.getLogger().removeHandler(self._log)
        if json_progress:
            logging.getLogger().addHandler(self._log)
            warnings.showwarning = self._python_warning
        level = "INFO" if verbose else os.environ.get(LOG, "").upper()
        if level not in _LEVELS:
            known = ", ".join(each.lower() for each in _LEVELS if each)
            raise InputError(
                f"{LOG} is {level.lower()!r}, which is no level; use one of {known}",
                code="log-level-unknown",
            )
        if level and json_progress:
            logging.getLogger().setLevel(level)
        elif level:
            logging.basicConfig(
                level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
            )

    def line(self, text: str) -> None:
        """Print a line of the result."""
        if not self.quiet:
            typer.echo(_printable(text))

    def wrote(self, *paths: Path | None) -> None:
        """Print which files were written, of those that were asked for."""
        for path in paths:
            if path is not None:
                self.line(f"wrote {path}")

    def json(self, content: object) -> None:
        """Print the result as JSON, which was asked for: also when quiet."""
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False))

    def table(self, title: str, columns: Mapping[str, str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table.

        Parameters
        ----------
        title
            Printed above it.
        columns
            Headings, and how each column is set: "left", in several lines where the terminal is too
            narrow, or "right", for numbers, which never are: a table is rather wider than the
            terminal.
        rows
            Texts of the cells, which may hold anything.
        """
        if self.quiet:
            return
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for heading, side in columns.items():
            justify: Literal["left", "right"] = "right" if side == "right" else "left"
            table.add_column(heading, justify=justify, no_wrap=side == "right", overflow="fold")
        for row in rows:
            table.add_row(*(Text(_printable(cell)) for cell in row))
        console = Console(highlight=False)
        width = _natural_width(console, table)
        if console.is_terminal:
            foldable = (each for each in table.columns if not each.no_wrap)
            texts = (
                max((_natural_width(console, each) for each in column.cells), default=0)
                for column in foldable
            )
            least = width - sum(max(0, each - _NARROWEST_TEXT) for each in texts)
            width = min(width, max(least, console.width))
        console.size = (width, console.height)  # width alone isn't heard on a dumb terminal
        with console.capture() as printed:
            console.print(Text(_printable(title), style="bold"))
            console.print(table)
        lines = (line.rstrip() for line in printed.get().splitlines())  # blanks up to the width
        console.file.write("".join(f"{line}\n" for line in lines))

    def remark(self, text: str) -> None:
        """Print a line about the work on standard error."""
        if self.quiet:
            return
        if self.json_progress:
            self._json_line("note", severity="info", text=text)
        else:
            _to_stderr(text)

    def note(self, note: "Note") -> None:
        """Print a note on standard error: a warning also when quiet."""
        if self.quiet and note.severity != "warning":
            return
        if self.json_progress:
            self._json_line("note", severity=note.severity, code=note.code, text=note.text)
        elif note.severity == "warning":
            self.warning(note.text)
        else:
            self.remark(f"note: {note.text}")

    def warning(self, text: str) -> None:
        """Print a warning on standard error, also when quiet."""
        if self.json_progress:
            self._json_line("note", severity="warning", text=text)
        else:
            _to_stderr(f"warning: {text}", style=AMBER)

    def failure(self, line: str, code: str | None = None) -> None:
        """Print what failed in one line on standard error, also when quiet; `code` of its error."""
        line = " ".join(line.split())
        if self.json_progress:
            coded = {} if code is None else {"code": code}
            self._json_line("error", **coded, text=line.removeprefix("error: "))
        else:
            _to_stderr(line, style=RED)

    def traceback(self, text: str) -> None:
        """Print a traceback on standard error."""
        if self.json_progress:
            self._json_line("traceback", text=text)
        else:
            typer.echo(text, err=True, nl=False)

    def event(self, stage: str, done: int, total: int, **more: object) -> None:
        """Print progress as a line of JSON on standard error."""
        self._json_line("progress", stage=stage, done=done, total=total, **more)

    def log(self, record: logging.LogRecord) -> None:
        """Print what a library logs as a line of JSON on standard error."""
        text = logging.Formatter().format(record)
        self._json_line("log", level=record.levelname.lower(), logger=record.name, text=text)

    def _python_warning(
        self, message: Warning | str, category: type[Warning], *_: object, **__: object
    ) -> None:
        """Print what Python warns of."""
        self.warning(f"{category.__name__}: {message}")

    def _json_line(self, event: str, **members: object) -> None:
        """Print an object on standard error, with the seconds since the start."""
        seconds = round(time.monotonic() - self._began, 3)
        typer.echo(json.dumps({"event": event, **members, "seconds": seconds}), err=True)

    @contextmanager
    def bars(self, clock: Literal["elapsed", "remaining"]) -> Iterator["Bars | None"]:
        """Draw progress bars on standard error; None when quiet or where there is no terminal."""
        if self.quiet or self.json_progress or not sys.stderr.isatty():
            yield None
            return
        from rich import progress
        from rich.console import Console

        columns = (
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn() if clock == "elapsed" else progress.TimeRemainingColumn(),
        )
        with progress.Progress(*columns, console=Console(stderr=True)) as bars:
            yield bars

    @contextmanager
    def progress(self) -> Iterator[Progress | None]:
        """Draw one bar for each name with the time left, or print lines of JSON; None as `bars`."""
        if self.json_progress:
            yield self.event
            return
        with self.bars("remaining") as bars:
            if bars is None:
                yield None
                return
            tasks: dict[str, TaskID] = {}

            def advance(name: str, done: int, total: int) -> None:
                if name not in tasks:
                    tasks[name] = bars.add_task(name, total=total)
                bars.update(tasks[name], completed=done, total=total)

            yield advance


class _LogEvents(logging.Handler):
    """Hands the log to the sink."""

    def __init__(self, sink: Output) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        self._sink.log(record)


out: Final = Output()


def _natural_width(console: "Console", what: "RenderableType") -> int:
    """Return the columns that something takes where nothing bounds it."""
    unbounded = console.options.update(max_width=_WIDEST_TABLE)
    return max(1, console.measure(what, options=unbounded).maximum)


def _printable(text: str) -> str:
    """Return a text without control characters, which a file from outside may hold."""
    return text.translate(_CONTROL)


def _to_stderr(text: str, style: str = "") -> None:
    """Print a line; on a terminal the word before its first colon in the style."""
    text = _printable(text)
    if not sys.stderr.isatty():
        typer.echo(text, err=True)
        return
    from rich.console import Console
    from rich.text import Text

    head, colon, rest = text.partition(":")
    shown = Text.assemble((head + colon, style), rest) if colon else Text(text)
    Console(stderr=True, highlight=False).print(shown, soft_wrap=True)
