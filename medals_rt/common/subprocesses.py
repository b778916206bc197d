"""Work that may end its process is done in a child: a library that crashes, a GPU that faults."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes
    ----------
    code
        Its exit code; None where it was stopped because it took too long.
    signal
        Name of the signal that ended it; None where none did.
    said, complained
        Lines on its standard output and standard error, those left out that are blank.
    """

    code: int | None
    signal: str | None
    said: tuple[str, ...]
    complained: tuple[str, ...]


def run_python(arguments: Sequence[str], timeout_s: float) -> Ended:
    """Run this Python in a child that finds the same modules, and wait for it.

    Parameters
    ----------
    arguments
        As after ``python``, such as ``["-c", "import this"]``.
    timeout_s
        Seconds after which it is stopped.
    """
    path = os.pathsep.join(entry for entry in sys.path if entry)
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired:
        return Ended(None, None, (), ())
    return Ended(
        done.returncode,
        signal_name(-done.returncode) if done.returncode < 0 else None,
        _lines(done.stdout),
        _lines(done.stderr),
    )


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def signal_name(number: int) -> str:
    """Return the name of a signal, such as "SIGKILL"."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
