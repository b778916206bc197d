"""A short version of benchmarks/serve_load.py: clients of all kinds at once, and broken files."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.io.registry import DICOM_ENDINGS, ENDINGS
from medals_rt.pipeline.job import run_job
from medals_rt.pipeline.job_request import Job
from medals_rt.pipeline.options import PromptSource, RunOptions
from medals_serve.client import ServedProblemError, ServiceClient
from tests.fuzz.targets import TARGETS
from tests.fuzz.watch import inputs_of
from tests.serve.serving import (
    RUNNER,
    SENTENCE,
    Running,
    child,
    lying,
    running,
    until,
    write_nifti,
)

BROKEN = 90
CLIENTS = 12


@pytest.fixture(scope="module")
def bounded(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tiny_bundle, tmp_path_factory.mktemp("bounded"), max_voxels=1 << 18) as found:
        yield found


def broken_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    targets = [each for each in TARGETS if each.ending in {*ENDINGS, *DICOM_ENDINGS}]
    for number, target in enumerate(targets):
        own = folder / str(number)
        own.mkdir()
        for data in inputs_of(target, target.seeds(own), 5, BROKEN // len(targets)):
            yield target.ending, data


def test_broken_files_are_refused_one_after_the_other(bounded: Running, tmp_path: Path) -> None:
    """A few can still be read; none is the server's failure, and none leaves a file."""
    statuses: Counter[int] = Counter()
    with bounded.client() as client:
        for ending, data in broken_files(tmp_path):
            given = {"filename": f"scan{ending}"}
            answer = client.http.post("/v1/images", params=given, content=data)
            statuses[answer.status_code] += 1
            assert answer.status_code in {201, 409, 422}, answer.text
            assert str(bounded.data_dir) not in answer.text
            if answer.status_code == 201:
                client.delete_image(answer.json())
    assert statuses[422] > BROKEN // 3
    assert bounded.files() == []


def torn(data: bytes) -> Iterator[bytes]:
    """A body that breaks off."""
    yield data[:100]
    raise httpx.TransportError("gone")


def live(address: str, number: int, scan: Path, expected: bytes) -> None:
    """Be a client that goes, cancels, waits for its result, or breaks an upload off."""
    kind = number % 4
    with ExitStack() as closing:
        client = closing.enter_context(ServiceClient(address))
        job = client.submit(client.upload(scan), SENTENCE)
        if kind == 0:
            next(client.watch(job))
            client.http.close()  # it goes and never comes back
            closing.pop_all()
        elif kind == 1:
            client.cancel(job)
            with suppress(ServedProblemError):
                client.wait(job)
        else:
            assert client.fetch(client.wait(job)) == expected
        if kind == 3:
            with suppress(httpx.HTTPError):
                client.http.post("/v1/images?filename=a.nii", content=torn(scan.read_bytes()))


@pytest.mark.slow  # waits for sessions to end by themselves; each kind is tested alone elsewhere
def test_clients_of_all_kinds_at_once(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Every result is right, and afterwards the server holds what it held before."""
    scan, output = write_nifti(tmp_path / "scan.nii.gz"), tmp_path / "labels.nii.gz"
    options = RunOptions(bundle=tiny_bundle.folder, **RUNNER)
    run_job(Job(scan, output, PromptSource(sentences=(SENTENCE,)), options=options))
    expected = output.read_bytes()
    data = tmp_path / "data"
    with child(tiny_bundle, data, idle_s=8.0, readers=2) as (process, address):
        for number in range(4):  # what the first use keeps
            live(address, number, scan, expected)
        server = psutil.Process(process.pid)
        before = settled(server)
        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(live, address, n, scan, expected) for n in range(CLIENTS)]
            for each in clients:
                each.result()
        until(lambda: [path.name for path in lying(data) if "." in path.name] == [".lock"])
        after = settled(server)
        assert after["descriptors"] <= before["descriptors"] + 2
        assert after["children"] <= before["children"]
        assert after["mib"] < before["mib"] + 100


def settled(server: psutil.Process) -> dict[str, Any]:
    """What a server holds once the connections of clients that went are closed."""
    until(lambda: len(server.net_connections("tcp")) == 1)
    return {
        "descriptors": server.num_fds(),
        "children": len(server.children(recursive=True)),
        "mib": server.memory_info().rss / 2**20,
    }
