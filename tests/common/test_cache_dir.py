"""The cache folder, and that what is compiled doesn't fill the disk."""

import os
from pathlib import Path

import pytest

from medals_rt.common import cache_dir
from medals_rt.common.cache_dir import (
    cache_folder,
    forget_old,
    mark_used,
    provide_cupy_cache,
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path))
    monkeypatch.setattr(cache_dir, "KEPT_BYTES", 25)
    return tmp_path


def write_file(path: Path, used_s: float) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(10))
    os.utime(path, (used_s, used_s))
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_a_folder_for_cupy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUPY_CACHE_DIR", "mine")
    provide_cupy_cache()
    assert os.environ["CUPY_CACHE_DIR"] == "mine"
    monkeypatch.delenv("CUPY_CACHE_DIR")
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path))
    provide_cupy_cache()
    assert os.environ["CUPY_CACHE_DIR"] == str(tmp_path / "cupy")
    assert list((tmp_path / "cupy").iterdir()) == []
    monkeypatch.delenv("CUPY_CACHE_DIR")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path / "file"))
    provide_cupy_cache()
    private = Path(os.environ["CUPY_CACHE_DIR"])
    assert private.is_dir()
    if os.name == "posix":
        assert private.stat().st_mode & 0o077 == 0


def test_the_folder_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("MEDALS_RT_CACHE")
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "medals-rt"
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache_folder().parts[-3:] == ("Library", "Caches", "medals-rt")


def test_the_libraries_share_one_bound_and_what_is_used_stays(cache: Path) -> None:
    write_file(cache / "openvino" / "a.blob", 100)
    oldest = write_file(cache / "tensorrt-rtx" / "kernels-b.cache", 50)
    write_file(cache / "openvino" / "c.blob", 200)
    mark_used(oldest)
    forget_old()
    assert names(cache) == {"kernels-b.cache", "c.blob"}


def test_nothing_else_is_removed(cache: Path) -> None:
    others = {"tensorrt/timing-10.cache", "openvino/notes.txt", "measured_passes.json"}
    for name in others:
        write_file(cache / name, 1)
    for number in range(4):
        write_file(cache / "openvino" / f"{number}.blob", number)
    forget_old()
    assert names(cache) == {Path(name).name for name in others} | {"3.blob", "2.blob"}


def test_the_newest_stays_however_large(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_dir, "KEPT_BYTES", 1)
    write_file(cache / "openvino" / "a.blob", 1)
    write_file(cache / "openvino" / "b.blob", 2)
    forget_old()
    assert names(cache) == {"b.blob"}


def test_a_cache_that_is_not_there_or_cannot_be_touched(cache: Path) -> None:
    forget_old()
    mark_used(cache / "gone.blob")
    assert names(cache) == set()
