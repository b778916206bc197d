"""Outputs appear whole or not at all."""

import errno
import json
import os
from pathlib import Path

import pytest

from medals_rt.common.atomic_io import (
    atomic_output,
    check_writable,
    leftovers,
    outputs_told,
    prepare_output,
    write_json,
)
from medals_rt.common.errors import InputError, OutputError
from tests.errors import raises


def test_an_output_replaces_the_old_one_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_text("old", encoding="utf-8")
    with atomic_output(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.endswith("a.nii.gz")
        temporary.write_text("new", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
    assert path.read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_told_of_when_they_are_whole_and_not_in_their_place(tmp_path: Path) -> None:
    path, told = tmp_path / "a.json", []
    write_json(path, {"x": 1})
    with outputs_told(lambda temporary, place: told.append((place, _x(temporary), _x(place)))):
        write_json(path, {"x": 2})
    write_json(path, {"x": 3})
    assert told == [(path, 2, 1)]


def _x(path: Path) -> object:
    return json.loads(path.read_bytes())["x"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_output_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.npz"
    path.write_text("old", encoding="utf-8")

    def fail() -> None:
        with atomic_output(path) as temporary:
            temporary.write_text("half", encoding="utf-8")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_made(tmp_path: Path) -> None:
    path = check_writable(tmp_path / "new" / "deep" / "a.json")
    assert not list(tmp_path.iterdir())
    prepare_output(path)
    assert path.parent.is_dir()
    assert not path.exists()
    write_json(path, {"ä": 1.5, "none": None})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ä": 1.5, "none": None}


def test_what_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x", encoding="utf-8")
    with raises(InputError, "output-not-writable"):
        check_writable(file / "below" / "a.json")
    with raises(InputError, "output-not-writable"):
        prepare_output(file / "below" / "a.json")
    with raises(InputError, "is-a-folder"):
        prepare_output(tmp_path)


def test_a_check_disturbs_no_file_of_the_same_name_that_is_written(tmp_path: Path) -> None:
    """A folder that is still to be made is tried in the one above it."""
    with atomic_output(tmp_path / "a.json") as temporary:
        temporary.write_bytes(b"{}")
        check_writable(tmp_path / "later" / "a.json")
    assert (tmp_path / "a.json").read_bytes() == b"{}"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with raises(OutputError, "disk-full", "a.json"):
        write_json(path, {"new": 2})
    assert json.loads(path.read_text(encoding="utf-8")) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_said_in_one_line_whoever_noticed_it(tmp_path: Path) -> None:
    """pydicom wraps the system's error in one of its type, with a traceback for a message."""
    found = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with raises(OutputError, "disk-full") as refused, atomic_output(tmp_path / "a.dcm"):
        raise OSError("With tag got exception\nTraceback (most recent call last):") from found
    assert "\n" not in str(refused.value)
    assert os.strerror(errno.ENOSPC) in str(refused.value)


def test_leftovers_of_other_processes_are_found(tmp_path: Path) -> None:
    others = {".partial-1-0123abcd-a.npz", f".partial-{os.getpid()}-0123abcd-a.npz"}
    for name in others | {
        ".partial-1-0123abcd-b.npz",
        ".partial-1-a.npz",
        ".partial-x-0123abcd-a.npz",
        ".partial-" + 30 * "9" + "-0123abcd-a.npz",
        "a.npz",
    }:
        (tmp_path / name).touch()
    path = tmp_path / "a.npz"
    with atomic_output(path) as own:
        own.touch()
        found = dict(leftovers([path, tmp_path / "missing" / "c.npz"]))
    assert found == {tmp_path / name: path for name in others}


def test_names_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "caf\udce9"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": "caf\udce9"}
