"""How a batch reports its progress: a line per case, bars on a terminal, failures when quiet."""

import json
import sys
from collections.abc import Iterator

import pytest

from medals_rt.cli._batch_progress import Bars, Events, Lines, batch_listener
from medals_rt.cli._output import out
from medals_rt.common.notes import Note, warning
from medals_rt.pipeline.batch import Entry
from tests.cli.test_output import Terminal

NOTES = (Note("cut-by-edge", "at the edge"), warning("time-budget", "less was computed"))
DONE = Entry("a", "a.npz", "a_seg.npz", "done", seconds=1.25, notes=NOTES)
KEPT = Entry("b", "b.npz", "b_seg.npz", "kept")
FAILED = Entry("c", "c.npz", "c_seg.npz", "failed", error="no spacing")
SKIPPED = Entry("d", "d", "d.dcm", "skipped", error="no image in it")


@pytest.fixture(autouse=True)
def loud() -> Iterator[None]:
    out.start()
    yield
    out.start()


def test_a_line_per_case(capsys: pytest.CaptureFixture[str]) -> None:
    with batch_listener(4) as listener:
        assert type(listener) is Lines
        for index, entry in enumerate((DONE, KEPT, FAILED, SKIPPED)):
            listener.ended(index, entry)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "[1/4] a: 0 of 0 classes found, 1.2 s; at the edge",
        "warning: a: less was computed",
        "[2/4] b: finished before",
        "[3/4] c: failed: no spacing",
        "[4/4] d: passed over: no image in it",
    ]


def test_cases_of_others_count(capsys: pytest.CaptureFixture[str]) -> None:
    with batch_listener(4) as listener:
        listener.elsewhere(2)
        listener.ended(0, KEPT)
    assert capsys.readouterr().err == "[3/4] b: finished before\n"


def test_lines_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    out.start(json_progress=True)
    with batch_listener(4) as listener:
        assert type(listener) is Events
        listener.windows("coarse", 1, 8)
        for index, entry in enumerate((DONE, FAILED)):
            listener.ended(index, entry)
        listener.elsewhere(2)
    window, done, failed, all_cases = map(json.loads, capsys.readouterr().err.splitlines())
    events = {each.pop("event") for each in (window, done, failed, all_cases)}
    assert events == {"progress"}
    seconds = [each.pop("seconds") for each in (window, done, failed, all_cases)]
    assert seconds == sorted(seconds)
    assert window == {"stage": "coarse", "done": 1, "total": 8, "case": ""}
    cases = {"stage": "cases", "total": 4}
    assert done == {
        **cases, "done": 1, "case": "a", "status": "done", "warnings": ["less was computed"]
    }  # fmt: skip
    assert failed == {
        **cases, "done": 2, "case": "c", "status": "failed", "error": "no spacing", "warnings": []
    }  # fmt: skip
    assert all_cases == {**cases, "done": 4}


def test_failures_and_warnings_are_shown_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    out.start(quiet=True)
    with batch_listener(4) as listener:
        for index, entry in enumerate((DONE, KEPT, FAILED, SKIPPED)):
            listener.ended(index, entry)
    assert capsys.readouterr().err.splitlines() == [
        "warning: a: less was computed",
        "[3/4] c: failed: no spacing",
    ]


def test_bars_keep_what_was_noted_on_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    with batch_listener(3) as listener:
        assert type(listener) is Bars
        listener.windows("coarse", 1, 8)
        for index, entry in enumerate((DONE, KEPT, FAILED)):
            listener.ended(index, entry)
    assert "3/3" in stream.getvalue()
    assert "less was computed" in stream.getvalue()
    assert "no spacing" in stream.getvalue()
    assert "finished before" not in stream.getvalue()
