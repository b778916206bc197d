"""Sums over folders in which others write and remove."""

import threading
from pathlib import Path

from medals_serve.disk import held_bytes


def test_files_of_all_folders_count(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(b"x" * 10)
    (tmp_path / "a" / "b" / "two").write_bytes(b"x" * 5)
    assert held_bytes(tmp_path) == 15
    assert held_bytes(tmp_path / "absent") == 0


def test_what_goes_meanwhile_is_no_error(tmp_path: Path) -> None:
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            folder = tmp_path / "x"
            folder.mkdir()
            (folder / "file").write_bytes(b"x" * 7)
            (folder / "file").unlink()
            folder.rmdir()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        assert {held_bytes(tmp_path) for _ in range(500)} <= {0, 7}
    finally:
        stop.set()
        thread.join()
