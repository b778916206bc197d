"""A few processes that read uploaded files first; see `reader_process`."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from medals_rt.common.errors import CaseError, MedalsError
from medals_rt.io.format import stem
from medals_rt.io.registry import FORMATS
from medals_serve.metrics import Metrics
from medals_serve.problems import SeriesChoiceError
from medals_serve.settings import ServeSettings

START_S: Final = 60.0
"""Seconds that a process may take to start."""

_MODULE: Final = "medals_serve.reader_process"


class Readers:
    """Processes that read; each takes one file at a time. May be used by several threads.

    A process that does not answer in time is ended with its child, and another is started when the
    next file comes.
    """

    def __init__(self, settings: ServeSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._idle: queue.LifoQueue[_ReaderProcess | None] = queue.LifoQueue()
        for _ in range(settings.readers):
            self._idle.put(_ReaderProcess())

    def read(
        self,
        reader: str,
        path: Path,
        shown: str,
        *,
        series: str | None = None,
        select: tuple[str, ...] = (),
        on: Mapping[str, Any] | None = None,
        writes: int = 0,
    ) -> dict[str, Any]:
        """Read a file and return what its reader says.

        Parameters
        ----------
        reader
            ``"image"``, ``"labels"`` or ``"array"``.
        path
            The file, under the server's own name for it.
        shown
            Its user's name for it, for messages.
        series, select
            As for `registry.read_case`.
        on
            Of labels: the name and grid of the image that they were drawn on.
        writes
            Bytes that the reader may write to a file.

        Raises
        ------
        SeriesChoiceError
            Its series are to be chosen from.
        CaseError
            The file can't be used, or its reader crashed or took too long or too much.
        """
        request = {
            "reader": reader,
            "path": str(path),
            "max_voxels": self._settings.max_voxels,
            "series": series,
            "select": list(select),
            "on": on,
            "seconds": self._settings.read_s,
            "bytes": self._settings.read_bytes,
            "writes": writes,
        }
        process = self._idle.get()
        try:
            if process is None or not process.is_alive:  # it may have ended while it was idle
                process = self._another(process)
            answer = process.ask(request, self._settings.read_s)
            if answer is None or not process.is_alive:
                process = self._ended(process)
        except BaseException:
            process = self._ended(process)
            raise
        finally:
            self._idle.put(process)
        return self._found(answer, path, shown)

    def _another(self, process: _ReaderProcess | None) -> _ReaderProcess:
        self._ended(process)
        return _ReaderProcess()

    @staticmethod
    def _ended(process: _ReaderProcess | None) -> None:
        """End a process; the next file gets another."""
        if process is not None:
            process.end()

    def close(self) -> None:
        """End the processes that wait for files."""
        for _ in range(self._settings.readers):
            with contextlib.suppress(queue.Empty):
                process = self._idle.get(timeout=1.0)
                if process is not None:
                    process.end()

    def _found(self, answer: dict[str, Any] | None, path: Path, shown: str) -> dict[str, Any]:
        if answer is not None and "found" in answer:
            found: dict[str, Any] = answer["found"]
            return found
        if answer is not None and "error" in answer:
            message = with_users_name(answer["error"], path, shown)
            if answer["choices"]:
                raise SeriesChoiceError(message, code=answer["code"], choices=answer["choices"])
            kind = CaseError if answer["input"] else MedalsError
            raise kind(message, code=answer["code"])
        self._metrics.count("medals_reader_failures_total")
        if answer is None or answer["ended"] in {-signal.SIGXCPU, -signal.SIGKILL}:
            raise CaseError(
                f"reading {shown} took more than {self._settings.read_s:g} s or more memory than "
                "the server allows; upload a smaller image",
                code="reader-limit",
            )
        raise CaseError(
            f"reading {shown} ended its process; copy or export it again", code="reader-crashed"
        )


def with_users_name(message: str, path: Path, shown: str) -> str:
    """Name a file as its user does, also where a message gives it another ending."""
    bare = path.name.partition(".")[0]
    names = "|".join(map(re.escape, (str(path), path.name)))
    return re.sub(
        rf"{names}|\b{re.escape(bare)}(?=\.[a-z])",
        lambda found: stem(Path(shown), FORMATS) if found[0] == bare != path.name else shown,
        message,
    )


class _ReaderProcess:
    """One process of readers."""

    def __init__(self) -> None:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self._process = subprocess.Popen(
            [sys.executable, "-m", _MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # libraries name what they read
            env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        """Send a request and wait for its answer; None where none came in time."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise AssertionError(_MODULE)
        said = b""
        with contextlib.suppress(BrokenPipeError):  # it says no more, either
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
        until = time.monotonic() + seconds + START_S
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while not said.endswith(b"\n"):
                if not selector.select(max(0.0, until - time.monotonic())):
                    return None
                part = os.read(stdout.fileno(), 2**16)
                if not part:
                    return {"ended": self._process.wait()}
                said += part
        answer: dict[str, Any] = json.loads(said)
        return answer

    def end(self) -> None:
        """End the process and its child."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
