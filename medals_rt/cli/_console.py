"""What the commands share: one line an error, exit codes, common options, the progress bar."""

import functools
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from medals_rt.common.errors import InputError, MedalsError

EXIT_FAILURE = 1
EXIT_BAD_INPUT = 2
EXIT_INCOMPLETE = 3
EXIT_INTERRUPTED = 130

_LONGEST_LINE = 2000

Command = TypeVar("Command", bound=Callable[..., Any])


class Kind(StrEnum):
    """What prompts are about."""

    ANATOMY = "anatomy"
    LESION = "lesion"


class Modality(StrEnum):
    """Kinds of image."""

    CT = "CT"
    MRI = "MRI"
    US = "US"
    PET = "PET"
    MICROSCOPY = "Microscopy"


class Preset(StrEnum):
    """How the algorithm is run."""

    PAPER = "paper"
    RELEASE = "release"


class Refinement(StrEnum):
    """What the fine stage does with the coarse result."""

    MASKED = "masked"
    UNMASKED = "unmasked"
    NONE = "none"


Bundle = Annotated[
    Path | None,
    typer.Option(
        "--bundle",
        help="Folder of the exported model. Without it: $MEDALS_RT_BUNDLE, else the demo model.",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
PromptsFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        help='JSON file: {"1": "Liver in abdominal CT", "instance_label": 0}.',
    ),
]
Sentences = Annotated[
    list[str] | None,
    typer.Option("--prompt", help="A sentence; repeat it for more. Labels are 1, 2, ..."),
]
PresetOption = Annotated[
    Preset, typer.Option("--preset", help="The paper's algorithms, or the released code's rules.")
]
RefinementOption = Annotated[
    Refinement,
    typer.Option(
        "--refinement", help="How the fine stage uses the coarse result as spatial prompts."
    ),
]


def one_line_errors(command: Command) -> Command:
    """Turn what a command raises into one line on standard error and an exit code.

    2 for input that can't be used, 130 for Ctrl-C, 1 for everything else. The traceback is shown
    where the command's `debug` is set.
    """

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> Any:
        debug = bool(options.get("debug"))
        try:
            return command(*args, **options)
        except (typer.Exit, typer.Abort):
            raise
        except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001 - the last stop before the user
            message, code = _verdict(error, debug=debug)
            if debug:
                traceback.print_exc(file=sys.stderr)
            typer.echo(" ".join(message.split()), err=True)
            raise typer.Exit(code) from None

    return run  # type: ignore[return-value]


def _verdict(error: BaseException, *, debug: bool) -> tuple[str, int]:
    """Give what an error is called on the command line, and its exit code."""
    if _comes_from_ctrl_c(error):
        return "interrupted; no unfinished file is left behind", EXIT_INTERRUPTED
    if isinstance(error, MedalsError):
        code = EXIT_BAD_INPUT if isinstance(error, InputError) else EXIT_FAILURE
        return f"error: {error}", code
    if isinstance(error, MemoryError):
        return f"error: out of memory ({error}); `medals-rt plan` estimates the need", EXIT_FAILURE
    hint = "" if debug else "; run again with --debug for the traceback"
    return f"error: {type(error).__name__}: {error}{hint}", EXIT_FAILURE


def _comes_from_ctrl_c(error: BaseException | None) -> bool:
    """Whether an error is Ctrl-C, or what a library made of it while it was being imported."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


@contextmanager
def progress_bar(*, quiet: bool = False) -> Iterator[Callable[[str, int, int], None] | None]:
    """Give a function that draws windows done and time left; None where there is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        tasks: dict[str, TaskID] = {}

        def advance(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done, total=total)

        yield advance


def print_table(title: str, columns: dict[str, str], rows: list[list[str]]) -> None:
    """Print a table on standard output, whatever its texts hold.

    `columns` maps headings to "left", "right" or "wrap" (left, in several lines where it is long).
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading, side in columns.items():
        justify: Literal["left", "right"] = "right" if side == "right" else "left"
        table.add_column(heading, justify=justify, no_wrap=side != "wrap", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(highlight=False)
    if not console.is_terminal:
        whole = console.options.update(max_width=_LONGEST_LINE)
        console.width = max(1, console.measure(table, options=whole).maximum)
    console.print(Text(title, style="bold"))
    console.print(table)
