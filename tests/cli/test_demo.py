"""`medals-rt demo`: it needs nothing but the package; its picture opens where somebody looks."""

import json
import sys
from pathlib import Path

import pytest
import typer

from medals_rt.cli.demo import has_display
from medals_rt.common.errors import InputError
from medals_rt.io.registry import read_labels
from tests.cli.helpers import call, error_of


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was opened in the system's viewer."""
    found: list[str] = []
    monkeypatch.setattr(typer, "launch", found.append)
    return found


def test_the_demo_needs_no_file_and_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDALS_RT_BUNDLE", "another/bundle")
    result = call("demo")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "medals-rt-demo"
    assert f"wrote {Path('medals-rt-demo', 'preview.png')}" in result.stdout
    assert "not for diagnosis" in result.stderr
    assert (folder / "preview.png").read_bytes().startswith(b"\x89PNG")
    labels = read_labels(folder / "segmentation.npz").labels_dhw
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert set(range(1, len(report["classes"]) + 1)) <= set(labels.ravel().tolist())
    assert opened == [], "nobody is at a terminal"


def test_the_picture_is_opened_when_asked(tmp_path: Path, opened: list[str]) -> None:
    result = call("demo", "--case", "ct_liver_tumors", "--out", tmp_path / "a", "--open")
    assert result.exit_code == 0, result.output
    assert opened == [str(tmp_path / "a" / "preview.png")]


def test_the_demo_runs_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[str]
) -> None:
    monkeypatch.setattr(
        "medals_rt.common.optional_deps.is_installed", lambda name: name != "Matplotlib"
    )
    result = call("demo", "--out", tmp_path, "--open")
    assert result.exit_code == 0, result.output
    assert "preview]" in result.stderr
    assert not (tmp_path / "preview.png").exists()
    assert (tmp_path / "segmentation.npz").is_file()
    assert opened == []


@pytest.mark.parametrize("case", ["ct", "../ct_anatomy", ""])
def test_other_cases_are_refused(tmp_path: Path, case: str) -> None:
    result = call("demo", "--case", case, "--out", tmp_path / "a")
    error = error_of(result)
    assert isinstance(error, InputError)
    assert error.code == "case-unknown"
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("system", "variables", "terminal", "expected"),
    [
        ("linux", {"DISPLAY": ":0"}, True, True),
        ("linux", {"WAYLAND_DISPLAY": "wayland-0"}, True, True),
        ("linux", {"DISPLAY": ":0"}, False, False),
        ("linux", {}, True, False),
        ("darwin", {}, True, True),
        ("darwin", {"SSH_CONNECTION": "a b"}, True, False),
        ("win32", {}, True, True),
    ],
)
def test_where_a_picture_is_opened(
    monkeypatch: pytest.MonkeyPatch,
    system: str,
    variables: dict[str, str],
    terminal: bool,
    expected: bool,
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert has_display() is expected
