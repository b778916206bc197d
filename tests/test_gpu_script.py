"""`benchmarks/gpu.sh`: what it says where something lacks, and what it runs where nothing does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.paths import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu.sh"

pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or not SCRIPT.is_file(), reason="needs bash and the benchmarks"
)


FAKE_PYTHON = """#!/usr/bin/env bash
# Python on a machine with a GPU: writes down what it is to run, and says what it is asked
case "$1 $2" in
  "- "*)
    cat >"$SEEN/stdin"
    if grep -q machine_facts "$SEEN/stdin"; then echo "| part | result | seconds |"; fi ;;
  "-c "*usable*) for kind in $RUNNERS; do echo "$kind"; done ;;
  "-c "*)
    for name in "${@:3}"; do
      if [[ " $LACKS " == *" $name "* ]]; then printf '%s ' "$name"; fi
    done ;;
  *) echo "$*" >>"$SEEN/calls"; [[ "$*" != *" $FAILS "* ]] ;;
esac
"""


@pytest.fixture
def script(
    tmp_path: Path,
) -> Callable[..., tuple[subprocess.CompletedProcess[str], list[str], str]]:
    """Run the script with a Python that only notes its calls; gives the calls and the report."""
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON, encoding="utf-8")
    python.chmod(0o755)

    def run_there(*parts: str, **variables: str) -> Any:
        seen = {"SEEN": str(tmp_path), "RUNNERS": "", "LACKS": "", "FAILS": "nothing"}
        ended = run(str(python), tmp_path / "gpu", *parts, **{**seen, **variables})
        calls = tmp_path / "calls"
        lines = calls.read_text(encoding="utf-8").splitlines() if calls.is_file() else []
        return ended, lines, (tmp_path / "gpu" / "report.md").read_text(encoding="utf-8")

    return run_there


def run(python: str, out: Path, *parts: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(shutil.which("bash")), str(SCRIPT), *parts],
        env={**os.environ, "PYTHON": python, "OUT": str(out), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_card_it_says_so(tmp_path: Path) -> None:
    ended = run(sys.executable, tmp_path / "gpu", CUDA_VISIBLE_DEVICES="-1")
    assert ended.returncode == 2
    assert ended.stderr.startswith("gpu.sh: ")
    assert "no CUDA GPU" in ended.stderr or "lacks" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "gpu").exists()


def test_without_python_it_says_so(tmp_path: Path) -> None:
    ended = run(str(tmp_path / "python"), tmp_path / "gpu")
    assert ended.returncode == 2
    assert ended.stderr == f"gpu.sh: no {tmp_path / 'python'}: set PYTHON\n"
    assert not (tmp_path / "gpu").exists()


def test_all_parts_run_and_engines_are_built_into_a_copy(script: Any) -> None:
    ended, calls, report = script(RUNNERS="tensorrt onnxruntime-cuda")
    assert (ended.returncode, ended.stderr) == (0, "")
    tests, arrays, engines, latency, bench = calls
    files = [word for word in tests.split() if word.endswith(".py")]
    assert {"tests/runners/test_on_gpu.py", "tests/common/test_pinned_memory.py"} < set(files)
    assert not any("io/dicom" in file or "test_formats" in file for file in files)
    assert "device_arrays.py" in arrays
    bundle = engines.split()[engines.split().index("--bundle") + 1]
    assert not Path(bundle).exists()  # the copy went with the script
    assert engines.endswith("--target tensorrt")
    assert f"--bundle {bundle}" in latency
    assert f"--bundle {bundle}" in bench
    assert "--runner=tensorrt --runner=onnxruntime-cuda --stage1 benchmarks/checkpoints" in bench
    assert report.count("| passed |") == 5


def test_a_part_that_fails_is_told_and_the_others_go_on(script: Any) -> None:
    ended, calls, report = script("tests", "bench", RUNNERS="onnxruntime-cuda", FAILS="pytest")
    assert ended.returncode == 1
    assert len(calls) == 2
    assert "| tests | **failed** (1), see tests.log |" in report
    assert "| bench | passed |" in report


def test_what_lacks_leaves_its_part_out(script: Any) -> None:
    ended, calls, report = script("tests", "arrays", "bench", LACKS="msgspec hypothesis")
    assert ended.returncode == 0
    assert len(calls) == 1
    assert "| tests | left out: this Python lacks msgspec hypothesis" in report
    assert "| bench | left out: this Python lacks msgspec" in report
    assert "| arrays | passed |" in report


def test_another_bundle_without_case_and_checkpoints(script: Any, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    own = {"BUNDLE": str(tmp_path / "bundle"), "RUNNERS": "onnxruntime-cuda"}
    ended, calls, report = script("latency", "bench", **own)
    assert (ended.returncode, calls) == (0, [])
    assert "needs the bundle's checkpoints: set STAGE1 and STAGE2" in report
    assert "the bundle holds no case: set CASE (and PROMPTS)" in report
    _, (bench,), _ = script("bench", **own, CASE="my case.npz")
    assert bench.endswith("--runner=onnxruntime-cuda --input my case.npz")
    ended, _, report = script("bench", BUNDLE=own["BUNDLE"])
    assert "no runner for a GPU" in report
