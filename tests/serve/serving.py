"""A server in a thread of the tests, on a port of the loopback that is free."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.interruption import check_interruption
from medals_rt.common.progress import Progress
from medals_rt.io.volume import Volume
from medals_rt.pipeline.options import RunOptions, SegmentOptions
from medals_rt.pipeline.report import Provenance
from medals_rt.pipeline.segmenter import Result, Segmenter
from medals_rt.prompts.prompt_set import PromptSet
from medals_serve.client import ServiceClient
from medals_serve.server import Server, address_of, bind
from medals_serve.settings import ServeSettings

SHAPE = (12, 24, 20)
SENTENCE = "Liver in abdominal CT"
RUNNER = {"runner": "onnxruntime", "precision": "fp32"}


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
    data_dir=Path(sys.argv[2]), min_free_bytes=0, **json.loads(sys.argv[3]),
)
print("ended by", ended, flush=True)
"""


@contextmanager
def child(bundle: Bundle, data: Path, **settings: Any) -> Iterator[tuple[Any, str]]:
    """A server in a process of its own, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(bundle.folder), str(data), json.dumps(settings)],
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
        return ServiceClient(self.address, timeout_s=60, **given)

    def http(self, **given: Any) -> httpx.Client:
        return httpx.Client(base_url=self.address, timeout=60, **given)

    def files(self) -> list[str]:
        """What lies in the sessions' folders."""
        root = self.server.config.app.state.service.sessions.root
        found = [  # by `os.walk`, which passes over folders that go meanwhile
            (Path(place) / name).relative_to(root)
            for place, folders, names in os.walk(root)
            for name in (*folders, *names)
        ]
        return sorted(str(path) for path in found if path.name != ".lock")


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
        server = Server(
            ServeSettings(data_dir=data_dir, **{"min_free_bytes": 0, "grace_s": 5.0, **settings}),
            RunOptions(bundle=bundle.folder, **RUNNER),
            open_model=open_model,
            announce=started.set,
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            assert started.wait(60)
            yield Running(address_of(bound).rstrip("/"), server, data_dir, gate, opened[0])
        finally:
            gate.set()
            server.stop_soon()
            thread.join(60)
            assert not thread.is_alive()


def until(condition: Any, seconds: float = 20.0) -> None:
    """Wait for something that is about to be."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
