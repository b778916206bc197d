"""A node's file and process, for tests."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from medals_serve.node.delivery import Courier
from medals_serve.node.spool import Spool
from medals_serve.node.worker import Worker
from tests.paths import ROOT
from tests.serve.serving import until

TITLE = "MEDALSRT"
RULE = """
[rules.liver]
modality = "CT"
description = "made up"
prompts = ["Liver in abdominal CT"]
outputs = ["sr", "rtstruct", "dicom-seg"]
send_to = ["ORTHANC"]
"""
RUN = """
import sys
from pathlib import Path
from medals_rt.pipeline.options import RunOptions
from medals_serve.node.command import listen

say = lambda line: print(line, flush=True)
options = RunOptions(bundle=Path(sys.argv[2]), precision="fp32", threads=1)
sys.exit(listen(Path(sys.argv[1]), options, announce=say, warn=say))
"""


@contextlib.contextmanager
def sockets_left_open() -> Iterator[None]:
    """Let pynetdicom leave sockets to the garbage collector: of attempts that failed, it does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
        gc.collect()


def write_configuration(folder: Path, port: int, orthanc_port: int = 4242, more: str = "") -> Path:
    path = folder / "node.toml"
    path.write_text(
        f"""
title = "{TITLE}"
callers = ["ORTHANC", "SCANNER"]
folder = '{folder / "node"}'
port = {port}
quiet_seconds = 1.0
{more}
[peers.ORTHANC]
host = "127.0.0.1"
port = {orthanc_port}
{RULE}""",
        encoding="utf-8",
    )
    return path


class Node:
    """A running node."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self.log = process, log

    def says(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(180)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(180)


@contextlib.contextmanager
def running_node(configuration: Path, bundle: Path) -> Iterator[Node]:
    """Start a node in a process of its own, and wait until it listens."""
    log = configuration.with_name(f"log-{time.monotonic_ns()}")
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, configuration, bundle],
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    node = Node(process, log)
    try:
        wait_for(lambda: "listens at" in node.says(), node)
        yield node
    finally:
        if process.poll() is None:
            node.kill()


def wait_for(condition: Callable[[], Any], node: Node, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, node.says()
        assert node.process.poll() is None, node.says()
        time.sleep(0.1)


def run_until(part: Courier | Worker, condition: Callable[[], bool]) -> float:
    """Run a part of a node in a thread; return how many seconds it took to end."""
    stop = threading.Event()
    thread = threading.Thread(target=part.run, args=(stop,))
    thread.start()
    try:
        until(condition)
    finally:
        began = time.monotonic()
        stop.set()
        thread.join()
    return time.monotonic() - began


def receive(spool: Spool, study: str, series: str, uid: str, content: bytes) -> None:
    """Let a spool keep what came."""
    path = spool.incoming / uuid4().hex
    path.write_bytes(content)
    try:
        spool.keep(study, series, uid, path)
    finally:
        path.unlink(missing_ok=True)  # as pynetdicom does
