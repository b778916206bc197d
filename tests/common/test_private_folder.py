"""Folders that nobody else reads, and that go with their process."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from medals_rt.common.private_folder import private_folder

HOLD = """
import sys
from medals_rt.common.private_folder import private_folder
with private_folder() as folder:
    (folder / "deep").mkdir()
    (folder / "deep" / "scan").write_bytes(b"scan")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_it_goes_with_the_block(temporary: Path) -> None:
    with private_folder() as first, private_folder() as second:
        assert first.is_dir()
        assert second.is_dir()
        (first / "scan").write_bytes(b"scan")
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="modes, and processes that are killed by signals")
def test_one_of_a_killed_process_goes_with_the_next() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        assert left.stat().st_mode & 0o777 == 0o700
        with private_folder():
            assert (left / "deep" / "scan").is_file()
        process.send_signal(signal.SIGKILL)
    assert left.is_dir()
    with private_folder():
        assert not left.exists()
