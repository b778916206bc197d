"""Folders that are gone through once, links and all."""

from pathlib import Path

import pytest

from medals_rt.common.folders import STATE_FOLDER, from_home, walk_once
from tests.folders import close_folder


@pytest.fixture
def top(tmp_path: Path) -> Path:
    for name in ("top/b/1", "top/a/2", "elsewhere/deep/3"):
        file = tmp_path / name
        file.parent.mkdir(parents=True)
        file.touch()
    top = tmp_path / "top"
    (top / "up").symlink_to(tmp_path)
    (top / "itself").symlink_to(top)
    (top / "linked").symlink_to(tmp_path / "elsewhere")
    (top / "twin").symlink_to(tmp_path / "elsewhere" / "deep")
    (top / "0").symlink_to(top / "b")
    return top


def test_each_folder_once_and_links_last(top: Path) -> None:
    again: list[Path] = []
    found = [
        (folder.relative_to(top).as_posix(), files)
        for folder, _, files in walk_once(top, again=again.append)
    ]
    assert found == [
        (".", []),
        ("a", ["2"]),
        ("b", ["1"]),
        ("linked", []),
        ("linked/deep", ["3"]),
    ]
    assert [path.name for path in again] == ["0", "twin"]


def test_what_is_taken_out_is_passed_over(top: Path) -> None:
    found = []
    for folder, folders, _ in walk_once(top, {top.parent / "elsewhere"}):
        folders[:] = [name for name in folders if name != "a"]
        found.append(folder.name)
    assert found == ["top", "b", "twin"]


def test_a_folder_that_cant_be_read_is_told(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    close_folder("a", monkeypatch)
    with pytest.raises(PermissionError):
        list(walk_once(top))
    closed: list[OSError] = []
    assert "b" in {folder.name for folder, _, _ in walk_once(top, closed=closed.append)}
    assert [Path(each.filename).name for each in closed] == ["a"]


def test_what_batches_keep_for_themselves_is_passed_over(top: Path) -> None:
    """Also below, whoever else would read it: it may hold locks."""
    before = list(walk_once(top))
    for folder in (top, top / "a"):
        (folder / STATE_FOLDER / "deep").mkdir(parents=True)
        (folder / STATE_FOLDER / ".claims").touch()
    assert list(walk_once(top)) == before


def test_a_first_part_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of/me")
    assert from_home("~/a/~") == "/home/of/me/a/~"
    assert from_home("~") == "/home/of/me"
    for path in ("a/~/b", "~a", "~lock.nii.gz", "./~"):
        assert from_home(path) == path
