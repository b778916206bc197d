"""Two batches into one folder: the second stops, and nothing is left of a first that was killed."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from medals_rt.bundle.bundle import Bundle
from tests.pipeline.batch.helpers import Result, files_below, statuses

# A batch that never ends: it says when its first case runs.
ENDLESS = """
import time
from medals_rt.pipeline.batch import run
from medals_rt.cli import main

def segment(*_):
    print("running", flush=True)
    time.sleep(120)

run.segment_job = segment
main()
"""


def words(bundle: Bundle, *given: object) -> list[str]:
    fixed = ["--bundle", bundle.folder, "--runner", "onnxruntime", "--precision", "fp32"]
    return ["batch", *map(str, [*given, "--no-preview", *fixed])]


@contextmanager
def running(arguments: list[str]) -> Iterator[None]:
    """Have a batch at work in a process of its own; it is killed at the end."""
    command = [sys.executable, "-c", ENDLESS, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "running\n"
            yield
        finally:
            process.kill()


def second(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "medals_rt", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_second_stops_and_a_killed_first_leaves_nothing(
    tiny_bundle: Bundle, scans: Path, out: Path
) -> None:
    with running(words(tiny_bundle, scans, out)):
        stopped = second(words(tiny_bundle, scans, out))
        elsewhere = second(words(tiny_bundle, scans, out.with_name("other")))
    assert (stopped.returncode, stopped.stdout) == (2, "")
    assert stopped.stderr == (
        f"error: another batch is writing to {out}; wait until it has ended, or name another "
        "folder of outputs\n"
    )
    assert elsewhere.returncode == 0
    assert files_below(out) == []
    after = second(words(tiny_bundle, scans, out))
    assert after.returncode == 0, after.stderr
    assert set(statuses(out).values()) == {"done"}


def test_results_and_reports_are_both_locked(tiny_bundle: Bundle, scans: Path, out: Path) -> None:
    reports = out.with_name("reports")
    with running(words(tiny_bundle, scans, out, "--reports", reports)):
        for given, folder in (
            ([out], out),
            ([out, "--reports", out.with_name("new")], out),
            ([out.with_name("new"), "--reports", reports], reports),
            ([reports], reports),
        ):
            stopped = second(words(tiny_bundle, scans, *given))
            assert stopped.returncode == 2
            assert f"another batch is writing to {folder};" in stopped.stderr


@pytest.mark.skipif(os.name != "posix", reason="the system's call is another elsewhere")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_disk_without_locks(
    run: Callable[..., Result], out: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    result = run()
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: can't lock {out} against other batches: {os.strerror(number)}; name a folder on "
        "another disk\n"
    )
    assert files_below(out) == []


def test_a_folder_that_cannot_be_written(run: Callable[..., Result], out: Path) -> None:
    out.write_text("a file in the way", encoding="utf-8")
    result = run()
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: can't write {out}")
    assert result.stderr.count("\n") == 1
