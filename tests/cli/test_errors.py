"""How errors end the command line: the exit code, one line, and what is left behind."""

import builtins
from collections.abc import Callable
from pathlib import Path

import pytest

from medals_rt.cli._errors import ENDINGS
from medals_rt.common import errors
from medals_rt.common.errors import DeviceLostError, InputError, RunnerError
from tests.cli.helpers import Result, assert_one_line, error_of

KINDS = [
    each
    for each in vars(errors).values()
    if isinstance(each, type) and each.__module__ == errors.__name__
]


@pytest.mark.parametrize("kind", [*KINDS, MemoryError, OSError, ValueError, builtins.ImportError])
def test_every_error_has_an_exit_code(kind: type[Exception]) -> None:
    ending = next(each for each in ENDINGS if issubclass(kind, each.kind))
    expected = 4 if kind is DeviceLostError else 2 if issubclass(kind, InputError) else 1
    assert ending.exit_code == expected


def test_each_entry_of_the_map_is_reached() -> None:
    for position, ending in enumerate(ENDINGS):
        assert not any(issubclass(ending.kind, each.kind) for each in ENDINGS[:position])


@pytest.mark.parametrize(
    "error", [RunnerError("the library refused\nthe graph"), ZeroDivisionError("surprise")]
)
def test_a_failure(
    run: Callable[..., Result], out: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("medals_rt.pipeline.segmenter.Segmenter.segment", fail)
    result = run()
    assert_one_line(result, 1)
    assert error_of(result) is error
    assert run("--quiet").stderr == result.stderr
    shown = run("--debug")
    assert shown.exit_code == 1
    assert shown.stderr.startswith("Traceback")
    assert not list(out.iterdir())
