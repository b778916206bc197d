"""The sink of all output: which stream, what --quiet leaves, colors, control characters."""

import io
import json
import logging
import re
import sys
import warnings

import pytest

from medals_rt.cli._output import Output
from medals_rt.common.notes import Note, warning


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def out() -> Output:
    return Output()


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Put a terminal with colors in the place of standard error (in the test: pytest resets it)."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    return stream


def print_all(out: Output) -> None:
    out.line("a result")
    out.wrote(None)
    out.table("numbers", {"name": "left", "value": "right"}, [["one", "1"]])
    out.json({"value": 1})
    out.remark("a remark")
    out.note(Note("assumed", "an assumption"))
    out.note(warning("repaired", "a repair"))
    out.failure("error: a\nfailure")


def test_results_and_remarks_go_to_their_streams(
    out: Output, capsys: pytest.CaptureFixture[str]
) -> None:
    print_all(out)
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [
        "a remark",
        "note: an assumption",
        "warning: a repair",
        "error: a failure",
    ]
    first, title, *_ = shown.out.splitlines()
    assert (first, title.strip()) == ("a result", "numbers")
    assert "wrote" not in shown.out


def test_every_line_is_json_where_programs_read_them(
    out: Output, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    out.start(json_progress=True)
    request.addfinalizer(out.start)
    print_all(out)
    out.failure("error: no file", code="file-missing")
    out.traceback("a\nb\n")
    with out.progress() as progress:
        assert progress is not None
        progress("coarse", 1, 4)
    with out.bars("elapsed") as bars:
        assert bars is None
    logging.getLogger("made.up").warning("of a %s", "library")
    warnings.showwarning("soon gone", FutureWarning, "a.py", 1)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert all(next(iter(line)) == "event" and line.pop("seconds") >= 0 for line in lines)
    warned = {"event": "note", "severity": "warning"}
    assert lines == [
        {"event": "note", "severity": "info", "text": "a remark"},
        {"event": "note", "severity": "info", "code": "assumed", "text": "an assumption"},
        {**warned, "code": "repaired", "text": "a repair"},
        {"event": "error", "text": "a failure"},
        {"event": "error", "code": "file-missing", "text": "no file"},
        {"event": "traceback", "text": "a\nb\n"},
        {"event": "progress", "stage": "coarse", "done": 1, "total": 4},
        {"event": "log", "level": "warning", "logger": "made.up", "text": "of a library"},
        {**warned, "text": "FutureWarning: soon gone"},
    ]


def test_json_lines_when_quiet(out: Output, capsys: pytest.CaptureFixture[str]) -> None:
    out.start(quiet=True, json_progress=True)
    print_all(out)
    out.start()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["text"] for line in lines] == ["a repair", "a failure"]
    logging.getLogger("made.up").warning("to whoever listens now")
    assert "made.up" not in capsys.readouterr().err


def test_quiet_leaves_json_warnings_and_errors(
    out: Output, capsys: pytest.CaptureFixture[str]
) -> None:
    out.start(quiet=True)
    print_all(out)
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"value": 1}
    assert shown.err.splitlines() == ["warning: a repair", "error: a failure"]
    with out.progress() as progress:
        assert progress is None


def test_warnings_are_amber_on_a_terminal(out: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    out.warning("a repair")
    # in true color or in the nearest of 256: what the terminal offers is asked once a process
    amber = r"\x1b\[1;38;(2;255;191;0|5;214)mwarning:\x1b\[0m a repair\n"
    assert re.fullmatch(amber, stream.getvalue())


def test_no_color(out: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    out.warning("a repair")
    assert "38;2" not in stream.getvalue()
    assert "a repair" in stream.getvalue()


def test_a_long_line_stays_one(out: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    out.warning("word " * 100)
    assert stream.getvalue().count("\n") == 1


def test_a_terminal_shows_progress(out: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    with out.progress() as progress:
        assert progress is not None
        progress("coarse", 1, 4)
        progress("coarse", 4, 4)
    assert "coarse" in stream.getvalue()
    assert "4/4" in stream.getvalue()


def test_control_characters_of_a_file_reach_no_terminal(
    out: Output, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = terminal(monkeypatch)
    hostile = "name\x1b]0;title\x07\x9b31m"
    out.line(hostile)
    out.table(hostile, {"name": "left"}, [[hostile]])
    out.remark(hostile)
    shown = capsys.readouterr().out + stream.getvalue()
    assert "name" in shown
    assert not set("\x1b\x07\x9b") & set(shown)


def test_tables_for_programs_end_no_line_in_blanks(
    out: Output, capsys: pytest.CaptureFixture[str]
) -> None:
    out.table("t", {"a": "left", "b": "left"}, [["x", "y" * 300], ["x", ""]])
    *_, last = lines = capsys.readouterr().out.splitlines()
    assert last == "x"
    assert lines == [line.rstrip() for line in lines]


def test_tables_hold_any_text(out: Output, capsys: pytest.CaptureFixture[str]) -> None:
    long = "[bold]" + "x" * 300
    out.table("t", {"name": "left"}, [[long]])
    assert long in capsys.readouterr().out  # no markup, and cut nowhere where it is no terminal


def table_on_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> list[str]:
    """The lines of a table of long names and of numbers."""
    stream = terminal(monkeypatch)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    headings = {"case": "left", "class": "left", "DSC": "right", "spacing": "right"}
    rows = [[f"{'long_name_' * 7}{end}", "Liver", "0.1234", "0.627, 0.627, 3"] for end in "ab"]
    Output().table("anatomy", headings, rows)
    return re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines()


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_a_narrow_terminal_folds_names_and_cuts_no_number(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    lines = table_on_terminal(monkeypatch, columns)
    assert max(map(len, lines)) <= max(columns, 55)
    assert sum("0.1234   0.627, 0.627, 3" in line for line in lines) == 2
    names = "".join(line.split("   ")[0] for line in lines[3:])
    assert names.replace(" ", "") == "".join("long_name_" * 7 + end for end in "ab")
    assert "DSC" in lines[1]
    assert "Liver" in lines[3]


def test_a_wide_terminal_folds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(table_on_terminal(monkeypatch, 200)) == 5
