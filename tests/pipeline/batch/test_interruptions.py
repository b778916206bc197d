"""A batch that is killed, stopped or out of room: nothing half written, at most one case lost."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import file_sha256
from tests.paths import ROOT
from tests.pipeline.batch.helpers import files_below, statuses, write_case

CASES = 10

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and limits are POSIX's")

# A job in the background ignores Ctrl-C, and so do its children: begin as in a terminal.
SCRIPT = """
import resource, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
limit, cases = int(sys.argv.pop(1)), int(sys.argv.pop(1))
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from medals_rt.cli import main
from tests.pipeline.batch.fake_work import hold_after
hold_after(cases)
main()
"""


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for number in range(CASES):
        write_case(tmp_path / "scans" / f"case{number}.npz", number)
    return tmp_path / "scans"


@contextmanager
def started(
    bundle: Bundle, scans: Path, out: Path, *, limit: int = 0, cases: int = CASES
) -> Iterator[subprocess.Popen]:
    """Start a batch in a process of its own.

    `limit`: bytes of a file at most, 0 for any; `cases`: how many it runs before it lingers.
    """
    words = ["batch", scans, out, "--bundle", bundle.folder, "--no-preview"]
    words += ["--runner", "onnxruntime", "--precision", "fp32"]
    command = [sys.executable, "-c", SCRIPT, *map(str, [limit, cases, *words])]
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def finished(out: Path) -> dict[str, str]:
    """Hash of the result of every case that a record says is finished."""
    records = (out / ".medals-rt").glob("case*.json")
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))["files"]["labels"]
        for path in records
    }


def wait_for_more(process: subprocess.Popen, out: Path, than: int) -> None:
    until = time.monotonic() + 300
    while len(finished(out)) <= than and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.002)


def check_results(out: Path) -> None:
    """Whatever stands under a result's name is whole, and what is recorded is as recorded."""
    for path in out.glob("case*.npz"):
        with np.load(path) as found:
            assert found["segs"].ndim == 3
    for name, digest in finished(out).items():
        assert file_sha256(out / f"{name}.npz") == digest


def test_killed_at_random_moments_and_taken_up_again(
    tiny_bundle: Bundle, scans: Path, tmp_path: Path
) -> None:
    out, moment = tmp_path / "out", random.Random(4)  # noqa: S311 - a test's dice
    written: dict[str, int] = {}
    for _ in range(2):
        with started(tiny_bundle, scans, out) as process:
            wait_for_more(process, out, len(written))
            time.sleep(moment.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
            process.wait(180)
        check_results(out)
        now = {name: (out / f"{name}.npz").stat().st_mtime_ns for name in finished(out)}
        assert written.items() <= now.items()  # what was finished is not done again
        # at most one result is there without its record
        assert len(list(out.glob("case*.npz"))) <= len(now) + 1
        written = now
    with started(tiny_bundle, scans, out) as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert len(finished(out)) == CASES
    check_results(out)
    kept = {name for name, status in statuses(out).items() if status == "kept"}
    assert kept == set(written)
    assert not list(out.rglob(".partial*"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_a_signal(
    tiny_bundle: Bundle, scans: Path, tmp_path: Path, number: int, code: int
) -> None:
    out = tmp_path / "out"
    with started(tiny_bundle, scans, out, cases=4) as process:
        wait_for_more(process, out, 0)
        process.send_signal(number)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == code
    assert "Traceback" not in errors
    said = f"interrupted; {len(finished(out))} of {CASES} cases are finished"
    assert errors.splitlines()[-1].startswith(said)
    assert len(list(out.glob("case*.npz"))) == len(finished(out))
    assert not list(out.rglob(".partial*"))
    check_results(out)


def test_no_room_for_a_file(tiny_bundle: Bundle, scans: Path, tmp_path: Path) -> None:
    """The kernel refuses to write more than some bytes, as it does on a full disk."""
    out = tmp_path / "out"
    with started(tiny_bundle, scans, out, limit=300) as process:
        stdout, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert stdout == ""
    (line,) = (line for line in errors.splitlines() if not line.lstrip("\x1b").startswith("["))
    assert line.startswith("error: can't write ")
    assert "File too large; make room or choose another place; 0 of 10 cases" in line
    assert files_below(out) == []
    assert not list(out.rglob(".partial*"))
