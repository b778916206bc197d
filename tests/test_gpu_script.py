"""`benchmarks/gpu.sh` on a machine without what it needs: one clear line, and nothing written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.sh"

pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or not SCRIPT.is_file(), reason="needs bash and the benchmarks"
)


def run(python: str, out: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(shutil.which("bash")), str(SCRIPT)],
        env={**os.environ, "PYTHON": python, "OUT": str(out), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_card_it_says_so(tmp_path: Path) -> None:
    ended = run(sys.executable, tmp_path / "gpu", CUDA_VISIBLE_DEVICES="-1")
    assert ended.returncode == 2
    assert ended.stderr.startswith("gpu.sh: ")
    assert "no CUDA card" in ended.stderr or "lacks" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "gpu").exists()


def test_without_python_it_says_so(tmp_path: Path) -> None:
    ended = run(str(tmp_path / "python"), tmp_path / "gpu")
    assert ended.returncode == 2
    assert ended.stderr == f"gpu.sh: no {tmp_path / 'python'}: set PYTHON\n"
    assert not (tmp_path / "gpu").exists()
