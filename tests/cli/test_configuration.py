"""`medals-rt.toml`, progress for programs, and the log."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.cli._configuration import FILE, VARIABLE, configuration_file, read_defaults
from medals_rt.common.errors import InputError, MissingFileError
from tests.cli.helpers import Result, assert_one_line, call, error_of
from tests.errors import raises
from tests.paths import ROOT


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("MEDALS_RT_LOG", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_the_file_of_the_folder_or_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert configuration_file() is None
    write(Path(FILE), "threads = 1\n")
    assert configuration_file() == Path(FILE)
    other = write(tmp_path / "other.toml", "threads = 2\n")
    monkeypatch.setenv(VARIABLE, str(other))
    assert configuration_file() == other
    monkeypatch.setenv(VARIABLE, str(tmp_path / "absent.toml"))
    with raises(MissingFileError, "file-missing", "absent.toml"):
        configuration_file()


def test_paths_start_at_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "a.toml", 'bundle = "engines/mine"\nmax_memory = "6GB"\n')
    assert read_defaults(file) == {
        "bundle": str(tmp_path / "engines" / "mine"),
        "max_memory": "6GB",
    }
    assert read_defaults(write(file, 'bundle = "hf:a/b@main"')) == {"bundle": "hf:a/b@main"}


def test_a_file_of_windows_and_home_folders_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    file = write(tmp_path / "a.toml", '\ufeffbundle = "~/mine"\n')
    assert read_defaults(file) == {"bundle": str(tmp_path / "home" / "mine")}


@pytest.mark.parametrize("text", ["threads = ", "treads = 1", "\x00", "[run]"])
def test_files_that_are_refused(text: str, tmp_path: Path) -> None:
    with raises(InputError, "configuration-invalid", "a.toml"):
        read_defaults(write(tmp_path / "a.toml", text))


def test_a_wrong_value_is_said_where_it_stands(tmp_path: Path) -> None:
    write(Path(FILE), 'threads = "two"\n')
    words = ("run", "--input", tmp_path, "--prompt", "Liver in CT")
    assert_one_line(call(*words), 2, f"in {FILE}: ", "--threads")
    of_flag = call(*words, "--threads", "three")
    assert_one_line(of_flag, 2, "--threads")
    assert FILE not in of_flag.stderr


def test_the_command_line_goes_before_the_file(
    run: Callable[..., Result], tiny_bundle: Bundle
) -> None:
    write(Path(FILE), f"bundle = '{tiny_bundle.folder}'\nmax_voxels = 10\n")
    refused = run(bundle=None)
    assert error_of(refused).code == "too-many-voxels"  # type: ignore[union-attr]
    done = run("--max-voxels", "1000000", bundle=None)
    assert done.exit_code == 0, done.output
    assert FILE in done.stderr
    assert FILE not in run("--max-voxels", "1000000", "--quiet", bundle=None).stderr


def test_values_are_checked_as_flags_are(run: Callable[..., Result]) -> None:
    write(Path(FILE), 'runner = "fastest"\n')
    refused = run()
    assert refused.exit_code == 2
    assert "--runner" in refused.stderr


def test_progress_as_lines_of_json(run: Callable[..., Result]) -> None:
    done = run("--json-progress")
    assert done.exit_code == 0, done.output
    said = [json.loads(line) for line in done.stderr.splitlines()]
    notes = [line for line in said if line["event"] == "note"]
    assert "orientation-assumed" in {note["code"] for note in notes}
    lines = [line for line in said if line["event"] == "progress"]
    assert len(lines) + len(notes) == len(said)
    stages = list(dict.fromkeys(line["stage"] for line in lines))
    assert stages[:2] == ["read", "open models"]
    assert set(stages[2:-1]) >= {"coarse", "fine"}
    assert stages[-1] == "write"
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert all(0 <= line["done"] <= line["total"] for line in lines)
    assert lines[-1]["done"] == lines[-1]["total"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--input", "none.nii.gz", "--prompt", "Liver in CT"), "file-missing"),
        (("--input", "none.nii.gz", "--inputt", "x"), None),
        (("--input", "none.nii.gz", "--input", "x"), None),
        (("--input", "none.nii.gz", "--crop", "-1"), None),
    ],
)
def test_errors_as_lines_of_json(words: tuple[str, ...], code: str | None) -> None:
    """Also those of words that aren't understood, which come before any flag is looked at."""
    for given in ((*words, "--json-progress"), ("--json-progress", *words)):
        refused = call("run", *given)
        assert refused.exit_code == 2
        *progress, error = map(json.loads, refused.stderr.splitlines())
        assert {line["event"] for line in progress} <= {"progress"}
        assert (error["event"], error.get("code")) == ("error", code)
        assert error["text"]
        assert not error["text"].startswith("error")
    assert call("run", *words).stderr.startswith("error: ")


def test_a_file_of_options_is_named_in_json_too() -> None:
    write(Path(FILE), "max_voxels = 10\n")
    done = call("version", "--json-progress")
    (note,) = map(json.loads, done.stderr.splitlines())
    assert (note["event"], note["code"]) == ("note", "options-from-file")


def test_a_log_level_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDALS_RT_LOG", "loud")
    refused = call("version")
    assert refused.exit_code == 2
    assert error_of(refused).code == "log-level-unknown"  # type: ignore[union-attr]


def test_the_log_says_what_took_how_long(tiny_bundle: Bundle, case: Path, tmp_path: Path) -> None:
    words = ["run", "--input", case, "--output", tmp_path / "a.npz", "--bundle", tiny_bundle.folder]
    done = subprocess.run(
        [sys.executable, "-m", "medals_rt", *words, "--precision", "fp32", "--verbose"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert "INFO medals_rt: read: " in done.stderr
    assert "INFO medals_rt: open models: " in done.stderr
