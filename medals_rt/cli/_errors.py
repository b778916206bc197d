"""The exit codes, and the one map from exceptions to them and to the line that users see."""

import re
import traceback
from dataclasses import dataclass
from typing import Final

import typer

from medals_rt.cli._configuration import configuration_file
from medals_rt.cli._output import out
from medals_rt.common.errors import DeviceLostError, InputError, MedalsError
from medals_rt.common.gpu_faults import EXIT_DEVICE_LOST

EXIT_DONE: Final = 0
EXIT_FAILURE: Final = 1
EXIT_UNUSABLE_INPUT: Final = 2
EXIT_INCOMPLETE: Final = 3
"""There is a result, but whole stages of it are missing; a command returns it."""
EXIT_INTERRUPTED: Final = 130


@dataclass(frozen=True)
class Ending:
    """How an exception ends the command line.

    Attributes
    ----------
    kind
        The exception; the first entry that fits is taken.
    exit_code
        What the shell gets.
    line
        Template of the line on standard error: `message` is the exception's, `name` its class.
    """

    kind: type[BaseException]
    exit_code: int
    line: str


# click's UsageError, which typer doesn't export; some versions of typer bring a click of their own
USAGE_ERROR: Final[type[Exception]] = typer.BadParameter.__mro__[1]

ENDINGS: Final = (
    Ending(KeyboardInterrupt, EXIT_INTERRUPTED, "interrupted; no unfinished file is left behind"),
    Ending(USAGE_ERROR, EXIT_UNUSABLE_INPUT, "error: {message}"),
    Ending(InputError, EXIT_UNUSABLE_INPUT, "error: {message}"),
    Ending(DeviceLostError, EXIT_DEVICE_LOST, "error: {message}"),
    Ending(MedalsError, EXIT_FAILURE, "error: {message}"),
    Ending(
        MemoryError,
        EXIT_FAILURE,
        "error: out of memory ({message}); `medals-rt plan` estimates how much a case needs",
    ),
    Ending(
        Exception, EXIT_FAILURE, "error: {name}: {message}; run again with --debug for a traceback"
    ),
)


def report_error(error: BaseException) -> int:
    """Print an exception as one line on standard error, and return the exit code.

    With --debug its traceback is printed first.
    """
    if _comes_from_ctrl_c(error):
        error = KeyboardInterrupt()
    ending = next(each for each in ENDINGS if isinstance(error, each.kind))
    message = usage_message(error) if isinstance(error, USAGE_ERROR) else str(error)
    if out.debug:
        out.traceback("".join(traceback.format_exception(error)))
    code = error.code if isinstance(error, MedalsError) else None
    out.failure(ending.line.format(message=message, name=type(error).__name__), code=code)
    return ending.exit_code


def usage_message(error: Exception) -> str:
    """Describe what is wrong with a command's words, in one line that names the nearest flag."""
    context = getattr(error, "ctx", None)
    command = "medals-rt" if context is None else context.command_path
    if hasattr(error, "option_name") and hasattr(error, "possibilities"):
        problem = f"there is no option {error.option_name}"
        if error.possibilities:
            problem += f"; did you mean {error.possibilities[0]}?"
    else:
        problem = _as_clauses(error.format_message())  # type: ignore[attr-defined]
        if _is_from_file(error):
            problem = f"in {configuration_file()}: {problem.rstrip('.')}"
    more = f"ee `{command} --help`"
    return f"{problem} S{more}" if problem.endswith("?") else f"{problem.rstrip('.')}; s{more}"


def _is_from_file(error: Exception) -> bool:
    """Whether the value that is wrong stands in `medals-rt.toml`, not on the command line."""
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    if context is None or parameter is None:
        return False
    source = context.get_parameter_source(parameter.name)
    return source is not None and source.name == "DEFAULT_MAP"


def _as_clauses(sentences: str) -> str:
    """Join click's sentences by semicolons, as the messages of this package are."""
    joined = sentences.replace("Value error, ", "").replace(". ", "; ")
    return re.sub(r"(?:^|(?<=[:;] ))[A-Z](?=[a-z])", lambda found: found[0].lower(), joined)


def _comes_from_ctrl_c(error: BaseException | None) -> bool:
    """Whether an error is Ctrl-C, or what a library made of it while it was being imported."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
