"""Both kinds of convolution are timed, and what is found decides."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medals_rt.cli import app
from medals_rt.runners.openvino import OPENVINO
from medals_rt.runners.winograd.choice import Timing, own_file, rule_here
from medals_rt.tools.bench import convolutions

pytest.importorskip("llvmlite")


def test_each_native_precision_is_timed() -> None:
    told: list[tuple[str, int, int]] = []
    found = list(
        convolutions.time_convolutions(
            1, lambda *step: told.append(step), channels=(16,), sides=(8, 32)
        )
    )
    native = set(OPENVINO.precisions("fp32"))
    assert {each.precision for each in found} == native
    assert [(each.channels, each.voxels) for each in found] == [(16, 8**3), (16, 32**3)] * len(
        native
    )
    assert len({each.processor for each in found}) == 1
    assert all(each.direct_seconds > 0 and each.winograd_seconds > 0 for each in found)
    assert told[-1] == ("done", len(found), len(found))


def test_the_command_keeps_what_it_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        Timing("mine", "fp32", 16, 1000, 1.0, 2.0),
        Timing("mine", "fp32", 64, 1000, 3.0, 2.0),
    ]
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path))
    monkeypatch.setattr(convolutions, "time_convolutions", lambda *_: made)
    answer = CliRunner().invoke(app, ["bench", "--convolution"])
    assert answer.exit_code == 0, answer.output
    assert "winograd" in answer.output
    rule = rule_here("fp32", "mine")
    assert (rule(16, 1000), rule(64, 1000)) == (False, True)
    file = own_file()
    assert file is not None
    assert file.parent == tmp_path


def test_what_was_measured_before_an_interruption_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> Iterator[Timing]:
        yield Timing("mine", "fp32", 16, 1000, 2.0, 1.0)
        raise KeyboardInterrupt

    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path))
    monkeypatch.setattr(convolutions, "time_convolutions", interrupted)
    assert CliRunner().invoke(app, ["bench", "--convolution"]).exit_code == 130
    assert rule_here("fp32", "mine")(16, 1000)


@pytest.mark.parametrize(
    "words", ["--quick", "--input x", "--output bench", "--runner openvino", "--repetitions 5"]
)
def test_what_convolutions_are_not_measured_by_is_refused(
    words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolutions, "time_convolutions", None)
    answer = CliRunner().invoke(app, ["bench", "--convolution", *words.split()])
    assert answer.exit_code == 2
    assert words.split(maxsplit=1)[0] in answer.output
