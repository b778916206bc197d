"""Ctrl-C and termination: one line, the right exit code, nothing half written."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from medals_rt.cli import main
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
    ("name", "code", "said"),
    [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, ""), ("SIGHUP", 129, "")],
)
def test_signals_end_a_real_process(name: str, code: int, said: str) -> None:
    script = (
        # a job in the background ignores Ctrl-C, and so do its children: begin as in a terminal
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
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
        process.send_signal(getattr(signal, name))
        _, errors = process.communicate(timeout=180)
    assert process.returncode == code
    assert said in errors
    assert "Traceback" not in errors


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_what_nohup_started_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medals_rt.cli._app.app", lambda **_: None)
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        main()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
