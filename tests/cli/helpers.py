"""Calls of the command line, what they ended on, and a small case."""

from pathlib import Path
from typing import Any

import numpy as np
import typer
from typer.testing import CliRunner

from medals_rt.cli import app
from medals_rt.common.errors import InputError

Result = Any  # of typer's runner, whose module has moved between versions

LIVER = {"1": "Liver in abdominal CT", "instance_label": 0}
SHAPE = (12, 20, 24)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def error_of(result: Result) -> BaseException | None:
    """The error that a command ended on, as it was raised; None where it ended by itself."""
    found = result.exception
    while isinstance(found, SystemExit | typer.Exit):
        found = found.__cause__ or found.__context__
    return found


def assert_refused(result: Result, kind: type[InputError]) -> None:
    """One line on standard error, exit code 2, nothing on standard output, this kind of error."""
    assert_one_line(result, 2)
    assert isinstance(error_of(result), kind), repr(error_of(result))


def assert_one_line(result: Result, code: int, *words: str) -> None:
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr
    assert result.stdout == ""


def write_case(path: Path, **changes: object) -> Path:
    rng = np.random.default_rng(0)
    fields = {
        "imgs": (rng.random(SHAPE) * 255).astype(np.float32),
        "spacing": np.array([2.0, 2.0, 3.0]),
        "text_prompts": np.array(LIVER, dtype=object),
        **changes,
    }
    np.savez(path, **{key: value for key, value in fields.items() if value is not None})
    return path
