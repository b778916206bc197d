"""A server in a thread of the tests, on a port of the loopback that is free."""

import json
import os
import queue
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import httpx
import numpy as np
import numpy.typing as npt
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.interruption import check_interruption
from medals_rt.common.progress import Progress
from medals_rt.io.volume import Volume
from medals_rt.pipeline.job_request import Job
from medals_rt.pipeline.options import PromptSource, RunOptions, SegmentOptions
from medals_rt.pipeline.report import Provenance
from medals_rt.pipeline.segmenter import Result, Segmenter
from medals_rt.prompts.prompt_set import PromptSet
from medals_serve import readers, service
from medals_serve.client import ServedProblemError, ServiceClient
from medals_serve.metrics import Metrics
from medals_serve.readers import Readers, _ReaderProcess
from medals_serve.server import Server, address_of, bind
from medals_serve.sessions import ClientSession
from medals_serve.settings import ServeSettings

SHAPE = (12, 24, 20)
SENTENCE = "Liver in abdominal CT"
RUNNER = {"runner": "onnxruntime", "precision": "fp32"}
SETTINGS = {"min_free_bytes": 0, "readers": 1, "last_events_s": 0.1}
"""One process that reads, since it takes seconds to start."""
PATIENCE_S = 180.0
"""Of tests, on machines that are busy."""


def image(seed: int = 0) -> npt.NDArray[np.int16]:
    """Hounsfield units `(k, j, i)`."""
    rng = np.random.default_rng(seed)
    return rng.integers(-200, 300, SHAPE, dtype=np.int16)


def write_nifti(path: Path, seed: int = 0) -> Path:
    """A scan that lies somewhere, its axes turned."""
    import nibabel

    affine = np.array([[-3.0, 0, 0, 20], [0, 2.0, 0, -30], [0, 0, 4.0, 7], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(image(seed).transpose(), affine), path)
    return path


class HeldSegmenter(Segmenter):
    """Waits in the middle of its first window until it is let go."""

    gate: threading.Event
    cases: int

    def segment(
        self,
        volume: Volume,
        prompts: PromptSet | Mapping[str, object] | Sequence[str] | str,
        options: SegmentOptions | None = None,
        *,
        spatial_prompts: npt.NDArray[Any] | None = None,
        provenance: Provenance | None = None,
        progress: Progress | None = None,
        **more: Any,
    ) -> Result:
        self.cases += 1
        if progress is not None and not self.gate.is_set():
            progress("coarse", 0, 100)
        while not self.gate.is_set():
            check_interruption()
            time.sleep(0.01)
        return super().segment(
            volume,
            prompts,
            options,
            spatial_prompts=spatial_prompts,
            provenance=provenance,
            progress=progress,
            **more,
        )


SCRIPT = """
import json
import sys
from pathlib import Path
from medals_rt.pipeline.options import RunOptions
from medals_serve.command import serve

say = lambda line: print(line, flush=True)
ended = serve(
    RunOptions(bundle=Path(sys.argv[1]), runner="onnxruntime", precision="fp32"),
    host="127.0.0.1", port=0, token_file=None, announce=say, warn=say,
    data_dir=Path(sys.argv[2]), **json.loads(sys.argv[3]),
)
print("ended by", ended, flush=True)
"""


@contextmanager
def child(bundle: Bundle, data: Path, **settings: Any) -> Iterator[tuple[Any, str]]:
    """A server in a process of its own, and its address."""
    given = json.dumps({**SETTINGS, **settings})
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(bundle.folder), str(data), given],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        assert process.stdout is not None
        found = re.fullmatch(r"serving at (http://127\.0\.0\.1:\d+)/\n", process.stdout.readline())
        assert found is not None
        assert "Ctrl-C" in process.stdout.readline()
        yield process, found[1]
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@dataclass
class Running:
    """A server that runs; `gate` is set unless a test holds its model."""

    address: str
    server: Server
    data_dir: Path
    gate: threading.Event = field(default_factory=threading.Event)
    segmenter: HeldSegmenter | None = None

    def client(self, **given: Any) -> ServiceClient:
        return ServiceClient(self.address, timeout_s=PATIENCE_S, **given)

    def http(self, **given: Any) -> httpx.Client:
        return httpx.Client(base_url=self.address, timeout=PATIENCE_S, **given)

    def files(self) -> list[str]:
        """What lies in the sessions' folders."""
        root = self.server.config.app.state.service.sessions.root
        return sorted(str(path.relative_to(root)) for path in lying(root) if path.name != ".lock")

    def cookie(self, name: str) -> str:
        """The name of a cookie here."""
        return f"{name}_{self.place[1]}"

    @property
    def place(self) -> tuple[str, int]:
        """Its address for a socket."""
        return "127.0.0.1", int(self.address.rpartition(":")[2])

    @contextmanager
    def asked(self, request: httpx.Request) -> Iterator[None]:
        """Send a request as a client that goes when the block ends, answered or not."""
        lines = [f"{request.method} {request.url.raw_path.decode()} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in request.headers.items()]
        with socket.create_connection(self.place, PATIENCE_S) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode() + request.read())
            yield


class SharedReaders(Readers):
    """Takes over processes of servers that ended: one takes seconds to start, and keeps nothing."""

    waiting: ClassVar[list[Any]] = []

    def __init__(self, settings: ServeSettings, metrics: Metrics) -> None:
        with patch.object(readers, "_ReaderProcess", self._taken_over):
            super().__init__(settings, metrics)

    @classmethod
    def _taken_over(cls) -> Any:
        return cls.waiting.pop() if cls.waiting else _ReaderProcess()

    def close(self) -> None:
        for _ in range(self._settings.readers):
            with suppress(queue.Empty):
                process = self._idle.get(timeout=1.0)
                if process is not None:
                    self.waiting.append(process)

    @classmethod
    def end(cls) -> None:
        """End the processes that wait for another server."""
        while cls.waiting:
            cls.waiting.pop().end()


@contextmanager
def running(bundle: Bundle, data_dir: Path, **settings: Any) -> Iterator[Running]:
    """Serve a bundle until the block ends."""
    gate = threading.Event()
    gate.set()
    opened: list[HeldSegmenter] = []

    def open_model() -> Segmenter:
        segmenter = HeldSegmenter.open(bundle, **RUNNER)
        segmenter.gate, segmenter.cases = gate, 0
        opened.append(segmenter)
        return segmenter

    started = threading.Event()
    with bind("127.0.0.1", 0) as bound:
        with patch.object(service, "Readers", SharedReaders):
            server = Server(
                ServeSettings(data_dir=data_dir, **{**SETTINGS, "grace_s": 5.0, **settings}),
                RunOptions(bundle=bundle.folder, **RUNNER),
                open_model=open_model,
                announce=started.set,
            )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            assert started.wait(PATIENCE_S)
            yield Running(address_of(bound).rstrip("/"), server, data_dir, gate, opened[0])
        finally:
            gate.set()
            server.stop_soon()
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def lying(folder: Path) -> list[Path]:
    """What lies in a folder while others write and remove: folders that go are passed over."""
    return [
        Path(place) / name
        for place, folders, names in os.walk(folder)
        for name in (*folders, *names)
    ]


def ending(client: ServiceClient, job: Mapping[str, Any], then: Callable[[], object]) -> Any:
    """Do something while a job is watched, and return the job as it was told last.

    The connection is there before: a server that stops takes no new one.
    """
    watched = client.watch(job)
    state = next(watched)
    then()
    for state in watched:  # noqa: B007 - the last one
        pass
    return state


def until(condition: Any, seconds: float = PATIENCE_S) -> None:
    """Wait for something that is about to be."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def cli_job(bundle: Bundle, case: Path, output: Path, *sentences: str, **more: Any) -> Job:
    """The job of the command line that is compared with the service's."""
    options = RunOptions(bundle=bundle.folder, **RUNNER)
    return Job(case, output, PromptSource(sentences=sentences), options=options, **more)


def refused(work: Any, *given: Any, **more: Any) -> ServedProblemError:
    """What a client raises where the service refuses something."""
    with pytest.raises(ServedProblemError) as caught:
        work(*given, **more)
    return caught.value


def owner_of(served: Running, image: dict[str, Any]) -> ClientSession:
    """The session that holds an image."""
    sessions = served.server.config.app.state.service.sessions
    (owner,) = (each for each in sessions if image["image"] in each.images)
    return owner
