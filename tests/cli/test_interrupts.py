"""Ctrl-C and termination: one line, the right exit code, nothing half written."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.helpers import Result


def test_an_interrupt_that_a_library_wraps_is_one(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ImportError("initialization failed") from KeyboardInterrupt()

    monkeypatch.setattr("medals_rt.pipeline.segmenter.Segmenter.segment", fail)
    result = run()
    assert result.exit_code == 130
    assert result.stderr.startswith("interrupted")
    assert result.stderr.count("\n") == 1


def test_an_interrupt_while_writing_leaves_nothing(
    run: Callable[..., Result], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(file: object, **_: object) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("numpy.savez_compressed", interrupt)
    result = run()
    assert result.exit_code == 130
    assert result.stderr.count("\n") == 1
    assert "interrupted" in result.stderr
    assert not list(out.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "")]
)
def test_signals_end_a_real_process(number: int, code: int, said: str) -> None:
    script = (
        # a job in the background ignores Ctrl-C, and so do its children: begin as in a terminal
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys, time, medals_rt.pipeline.job\n"
        "def wait(*_):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(180)\n"
        "medals_rt.pipeline.job.run_job = wait\n"
        "sys.argv = ['medals-rt', 'run', '--input', 'x.npz']\n"
        "from medals_rt.cli import main\n"
        "main()\n"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=180)
    assert process.returncode == code
    assert said in errors
    assert "Traceback" not in errors
