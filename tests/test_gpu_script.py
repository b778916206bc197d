"""`benchmarks/gpu.sh`: what it says where something lacks, and what it runs where nothing does."""

from __future__ import annotations

import json
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
    if grep -q gpu_report "$SEEN/stdin"; then echo "| part | result | seconds |"; fi ;;
  "-c "*usable*) for kind in $RUNNERS; do echo "$kind"; done ;;
  "-c "*)
    for name in "${@:3}"; do
      if [[ " $LACKS " == *" $name "* ]]; then printf '%s ' "$name"; fi
    done ;;
  *gpu_report.py*) echo "$*" >>"$SEEN/reports" ;;
  *)
    echo "$*" >>"$SEEN/calls"
    if [[ "$*" == *gpu_models.py* ]]; then mkdir -p "$3/bundle"; touch "$3/bundle/bundle.json"; fi
    if [[ "$*" == *"$SLEEPS"* ]]; then exec sleep 60; fi
    [[ "$*" != *" $FAILS "* ]] ;;
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
        seen = {
            "SEEN": str(tmp_path),
            "RUNNERS": "",
            "LACKS": "",
            "FAILS": "nothing",
            "SLEEPS": "never",
        }
        ended = run(str(python), tmp_path / "gpu", *parts, **{**seen, **variables})
        calls = tmp_path / "calls"
        lines = calls.read_text(encoding="utf-8").splitlines() if calls.is_file() else []
        return ended, lines, (tmp_path / "gpu" / "report.md").read_text(encoding="utf-8")

    return run_there


def run(python: str, out: Path, *parts: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(shutil.which("bash")), str(SCRIPT), *parts],
        env={**os.environ, "PYTHON": python, "RESULTS": str(out), **variables},
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
    tests, models, case, full, profile, layers, memory, plans, *rest = calls
    arrays, engines, latency, bench = rest
    folder = models.split()[2]
    for part in (full, case, profile, layers, memory):
        assert f" --folder {folder} " in part
    assert "--device cpu" not in " ".join(calls)
    files = [word for word in tests.split() if word.endswith(".py")]
    assert {"tests/runners/test_on_gpu.py", "tests/runners/test_half_on_gpu.py"} < set(files)
    assert not any("io/dicom" in file or "test_formats" in file for file in files)
    assert "gpu_plans.py" in plans
    assert "device_arrays.py" in arrays
    bundle = engines.split()[engines.split().index("--bundle") + 1]
    assert not Path(bundle).exists()  # the copy went with the script
    assert engines.endswith("--target tensorrt")
    assert f"--bundle {bundle}" in latency
    assert f"--bundle {bundle}" in bench
    assert "--runner=tensorrt --runner=onnxruntime-cuda --stage1 benchmarks/checkpoints" in bench
    assert report.count("| passed |") == 12


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


def test_a_part_that_takes_too_long_is_stopped_and_the_next_one_runs(
    script: Any, tmp_path: Path
) -> None:
    limits = {"LIMIT_full": "1", "LIMIT": "30"}
    ended, calls, report = script(
        "models", "case", "full", "memory", SLEEPS="gpu_full.py", **limits
    )
    assert ended.returncode == 1
    assert [call.split()[0] for call in calls] == [
        f"benchmarks/gpu_{part}.py" for part in ("models", "case", "full", "memory")
    ]
    assert "| full | **stopped** after 1 s |" in report
    assert "| memory | passed |" in report
    written = (tmp_path / "reports").read_text(encoding="utf-8").splitlines()
    assert [line.endswith(("--limit 30", "--limit 1")) for line in written] == [True] * 4
    assert "**stopped**" in written[2]


def test_all_parts_fit_a_quarter_of_an_hour(script: Any) -> None:
    ended, _, _ = script(RUNNERS="onnxruntime-cuda")
    said = next(line for line in ended.stdout.splitlines() if "altogether" in line)
    words = said.partition(":")[2].split()
    limits = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    assert list(limits) == [
        "tests",
        "models",
        "case",
        "full",
        "profile",
        "layers",
        "memory",
        "plans",
        "arrays",
        "latency",
        "bench",
    ]
    assert sum(limits.values()) <= 15 * 60 - 30  # what comes between the parts
    assert said.startswith(f"== at most {sum(limits.values())} s altogether")


@pytest.mark.slow
def test_what_has_no_time_left_is_left_out(script: Any) -> None:
    ended, calls, report = script("models", "case", "full", SLEEPS="gpu_models.py", TOTAL="6")
    assert ended.returncode == 1
    assert len(calls) == 1
    assert "== at most 6 s altogether" in ended.stdout
    assert "| models | **stopped** after " in report
    assert "| full | left out: " in report


def test_a_folder_of_models_is_kept_and_taken_again(script: Any, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    _, calls, _ = script("models", "memory", MODELS=str(folder))
    assert [call.split()[0] for call in calls] == [
        f"benchmarks/gpu_{part}.py" for part in ("models", "memory")
    ]
    (tmp_path / "calls").unlink()
    _, (call,), _ = script("memory", MODELS=str(folder))
    assert call.startswith(f"benchmarks/gpu_memory.py --folder {folder} ")


def test_without_models_what_needs_them_is_left_out(script: Any) -> None:
    _, calls, report = script("full", "memory", LACKS="onnxscript")
    assert calls == []
    assert "| models | left out: this Python lacks onnxscript" in report
    assert report.count("left out: no models") == 2


def test_a_part_that_is_unknown_is_refused(tmp_path: Path) -> None:
    ended = run(sys.executable, tmp_path / "gpu", "everything")
    assert (ended.returncode, "there is no part everything" in ended.stderr) == (2, True)


def load_report(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(path.read_bytes())
    return report


@pytest.mark.slow
def test_every_part_is_rehearsed_on_the_processor(tmp_path: Path) -> None:
    """Minutes: small networks instead of the released ones, the fake of CuPy for arrays."""
    pytest.importorskip("torch", reason="makes models, which needs the extra 'export'")
    out = tmp_path / "gpu"
    ended = run(sys.executable, out, "--rehearse", LIMIT="3600", TOTAL="14400")
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]
    on_models = ("models", "full", "case", "profile", "layers", "memory")
    parts = ("tests", *on_models, "plans", "arrays", "latency", "bench")
    table = (out / "report.md").read_text(encoding="utf-8")
    for part in parts:
        assert f"| {part} | passed |" in table
        record = load_report(out / f"{part}.json")
        assert record["ended"]["result"] == "passed"
        assert record["date"]
        assert record["versions"]["medals-rt"]
        assert "Ended: passed" in (out / f"{part}.md").read_text(encoding="utf-8")
    rows = load_report(out / "full.json")["rows"]
    measured = {(row["pass"], row["runner"]) for row in rows if "ms" in row}
    for kind in ("text only", "text and prompts"):
        for runner in ("pytorch bf16 autocast", "medals-rt, onnxruntime", "onnxruntime"):
            assert (kind, runner) in measured
    for row in rows:
        # autocast in bf16 is the worst of them; what can't be measured here is said
        assert "need a GPU" in row.get("problem", "") or row["largest_difference"] < 0.1
    case = load_report(out / "case.json")["rows"]
    compared = [row["differing_voxels"] for row in case if "differing_voxels" in row]
    assert len(compared) >= 4
    assert set(compared) == {0}
    assert {row["run"] for row in case} > {"cold", "warm 1"}
    assert [row["classes"] for row in load_report(out / "memory.json")["rows"]] == [1, 13]
