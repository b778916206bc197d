"""Calls of the command line, and a small case."""

from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner

from medals_rt.cli import app

Result = Any  # of typer's runner, whose module has moved between versions


LIVER = {"1": "Liver in abdominal CT", "instance_label": 0}


SHAPE = (12, 20, 24)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


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
