"""How a batch reports its progress: a line per case, bars on a terminal, failures when quiet."""

import sys
from collections.abc import Iterator

import pytest

from medals_rt.cli._batch_progress import Bars, Lines, batch_listener
from medals_rt.cli._output import out
from medals_rt.pipeline.batch import Entry
from tests.cli.test_output import Terminal

DONE = Entry("a", "a.npz", "a_seg.npz", "done", seconds=1.25, notes=("less was computed",))
KEPT = Entry("b", "b.npz", "b_seg.npz", "kept")
FAILED = Entry("c", "c.npz", "c_seg.npz", "failed", error="no spacing")


@pytest.fixture(autouse=True)
def loud() -> Iterator[None]:
    out.start()
    yield
    out.start()


def test_a_line_per_case(capsys: pytest.CaptureFixture[str]) -> None:
    with batch_listener(3) as listener:
        assert type(listener) is Lines
        for entry in (DONE, KEPT, FAILED):
            listener.ended(entry)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "[1/3] a: 0 of 0 classes found, 1.2 s; less was computed",
        "[2/3] b: finished before",
        "[3/3] c: failed: no spacing",
    ]
    assert listener.standing().startswith("2 of 3 cases are finished")


def test_failures_are_shown_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    out.start(quiet=True)
    with batch_listener(3) as listener:
        for entry in (DONE, KEPT, FAILED):
            listener.ended(entry)
    assert capsys.readouterr().err == "[3/3] c: failed: no spacing\n"


def test_bars_keep_what_was_noted_on_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    with batch_listener(3) as listener:
        assert type(listener) is Bars
        listener.windows("coarse", 1, 8)
        for entry in (DONE, KEPT, FAILED):
            listener.ended(entry)
    assert "3/3" in stream.getvalue()
    assert "less was computed" in stream.getvalue()
    assert "no spacing" in stream.getvalue()
    assert "finished before" not in stream.getvalue()
