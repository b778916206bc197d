"""Two servers behind HAProxy, with the configuration that the documentation has."""

import json
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.pipeline.job import run_job
from medals_rt.pipeline.job_request import Job
from medals_rt.pipeline.options import PromptSource, RunOptions
from medals_serve.client import ServedProblemError, ServiceClient
from medals_serve.sessions import REPLICA_END
from tests.paths import ROOT
from tests.serve.page.visit import visit
from tests.serve.serving import (
    RUNNER,
    SENTENCE,
    SHAPE,
    Running,
    child,
    image,
    running,
    until,
    write_nifti,
)
from tests.serve.test_monailabel import client_module
from tests.serve.test_voxtell import ended, remote_module

CONFIGURATION = ROOT / "docs" / "examples" / "haproxy.cfg"
HAPROXY = shutil.which("haproxy") or shutil.which("/usr/sbin/haproxy")
NAMES = ("r1", "r2")
pytestmark = [
    pytest.mark.skipif(HAPROXY is None, reason="there is no haproxy: apt-get install haproxy"),
    pytest.mark.usefixtures("careless_client"),  # clients of other tools leave connections open
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@contextmanager
def proxied(folder: Path, *addresses: str) -> Iterator[str]:
    """The proxy before servers, and its address."""
    text = CONFIGURATION.read_text(encoding="utf-8")
    for number, address in enumerate(addresses, 1):
        here = f"127.0.0.1:870{number}"
        assert f"server r{number} {here}\n" in text
        text = text.replace(f"server r{number} {here}", f"server r{number} {address[7:]}")
    with socket.create_server(("127.0.0.1", 0)) as bound:
        assert "bind 127.0.0.1:8700\n" in text
        text = text.replace("bind 127.0.0.1:8700", f"bind fd@{bound.fileno()}")
        port = bound.getsockname()[1]
        assert "medals_session_8700" in text
        text = text.replace("medals_session_8700", f"medals_session_{port}")
        (folder / "haproxy.cfg").write_text(text, encoding="utf-8")
        process = subprocess.Popen(
            [str(HAPROXY), "-db", "-f", str(folder / "haproxy.cfg")],
            pass_fds=[bound.fileno()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        place = f"http://127.0.0.1:{port}"
        try:
            until(lambda: httpx.get(f"{place}/readyz", timeout=60).status_code == 200)
            yield place
        finally:
            process.kill()
            process.wait()


@dataclass
class Replicas:
    """Two servers by their names, and the address before them."""

    address: str
    by_name: dict[str, Running]

    def client(self, **given: Any) -> ServiceClient:
        return ServiceClient(self.address, timeout_s=60, **given)

    def clients(self) -> dict[str, ServiceClient]:
        """A session of each."""
        found: dict[str, ServiceClient] = {}
        for _ in range(20):
            client = self.client()
            name = replica_of(client.http.headers["Medals-Session"])
            if name in found:
                client.close()
            else:
                found[name] = client
            if found.keys() == set(NAMES):
                return found
        raise AssertionError(found)


def replica_of(session: str) -> str:
    return session.partition(REPLICA_END)[0]


def turns(address: str, seen: set[str]) -> Iterator[None]:
    """Try again until both replicas had their turn, whichever way the proxy counts."""
    for number in range(12):
        if seen == set(NAMES):
            return
        for _ in range(number % 3):
            httpx.get(f"{address}/healthz", timeout=60)
        yield
    raise AssertionError(seen)


@contextmanager
def replicated(bundle: Bundle, folder: Path, **settings: Any) -> Iterator[Replicas]:
    with (
        running(bundle, folder / "r1", replica="r1", **settings) as first,
        running(bundle, folder / "r2", replica="r2", **settings) as second,
        proxied(folder, first.address, second.address) as address,
    ):
        yield Replicas(address, {"r1": first, "r2": second})


@pytest.fixture(scope="module")
def replicas(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    with replicated(tiny_bundle, tmp_path_factory.mktemp("replicas")) as found:
        yield found


@pytest.fixture(scope="module")
def expected(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The labels that the command line writes of the scan."""
    folder = tmp_path_factory.mktemp("expected")
    scan, output = write_nifti(folder / "scan.nii.gz"), folder / "labels.nii.gz"
    options = RunOptions(bundle=tiny_bundle.folder, **RUNNER)
    run_job(Job(scan, output, PromptSource(sentences=(SENTENCE,)), options=options))
    return output.read_bytes()


def test_a_session_stays_with_its_replica(replicas: Replicas, scan: Path, expected: bytes) -> None:
    """Uploads, jobs, events and results of sessions on both, in turn."""
    clients = replicas.clients()
    images = {name: client.upload(scan) for name, client in clients.items()}
    jobs = {name: client.submit(images[name], SENTENCE) for name, client in clients.items()}
    for name, client in clients.items():
        assert client.fetch(client.wait(jobs[name])) == expected
        assert client.report(jobs[name])["classes"]
        other = next(each for each in NAMES if each != name)
        with pytest.raises(ServedProblemError) as caught:
            clients[other].job(jobs[name])
        assert caught.value.code == "job-unknown"
    for client in clients.values():
        client.close()


def test_a_browser_is_known_by_its_cookie(replicas: Replicas, scan: Path, expected: bytes) -> None:
    seen: set[str] = set()
    headers = {"Origin": replicas.address, "Sec-Fetch-Site": "same-origin"}
    for _ in turns(replicas.address, seen):
        with httpx.Client(base_url=replicas.address, headers=headers, timeout=60) as http:
            assert http.get("/page/main.js").status_code == 200
            seen.add(replica_of(http.post("/v1/sessions").json()["session"]))
            given = {"filename": "scan.nii.gz"}
            found = http.post("/v1/images", params=given, content=scan.read_bytes()).json()
            asked = {"image": found["image"], "prompts": SENTENCE}
            job = http.post("/v1/jobs", json=asked).json()["job"]
            assert "event: progress" in http.get(f"/v1/jobs/{job}/events").text
            assert http.get(f"/v1/jobs/{job}/result").content == expected
            assert http.delete("/v1/sessions/current").status_code == 204


def test_events_come_as_they_happen_and_a_client_that_goes_is_noticed(
    replicas: Replicas, scan: Path
) -> None:
    for name, client in replicas.clients().items():
        gate = replicas.by_name[name].gate
        gate.clear()
        try:
            events = client.watch(client.submit(client.upload(scan), SENTENCE))
            until(lambda events=events: next(events)["status"] == "running")
        finally:
            gate.set()
        assert [each["status"] for each in events][-1] == "done"
        client.close()


def test_an_upload_is_passed_on_as_it_comes(replicas: Replicas) -> None:
    """Else the proxy would have to hold gigabytes."""

    def stored() -> int:
        files = [
            path
            for each in replicas.by_name.values()
            for path in each.data_dir.rglob("*")
            if path.name.startswith("upload")
        ]
        return sum(path.stat().st_size for path in files)

    def parts() -> Iterator[bytes]:
        yield b"x" * (1 << 20)
        until(lambda: stored() >= 1 << 19)
        yield b"x" * (1 << 20)

    for client in replicas.clients().values():
        answer = client.http.post("/v1/images?filename=scan.nii", content=parts())
        assert (answer.status_code, answer.json()["code"]) == (422, "not-nifti")
        client.close()


def test_voxtell_stays_with_its_replica(replicas: Replicas, scan: Path) -> None:
    """Its jobs are asked for in JSON, and named in paths."""
    seen: set[str] = set()
    for _ in turns(replicas.address, seen):
        voxtell = remote_module().VoxTellRemoteClient(replicas.address)
        assert voxtell.healthz()
        image_id, array, *_ = voxtell.upload_image(scan.read_bytes())
        seen.add(replica_of(image_id))
        job = voxtell.start_job(image_id, [SENTENCE])
        assert ended(voxtell, job) == {"status": "done"}
        (mask,) = voxtell.get_result(job)
        assert mask.any()
        assert voxtell.export(image_id, mask)[:2] == b"\x1f\x8b"
        assert array.shape == mask.shape
        voxtell.close()


def test_ids_reach_their_replica_however_clients_escape_them(
    replicas: Replicas, scan: Path
) -> None:
    """As forms and JavaScript do, and in JSON in any order; what can't be found is refused."""
    with httpx.Client(base_url=replicas.address, timeout=60) as http:
        seen: set[str] = set()
        for _ in turns(replicas.address, seen):
            sent = http.post("/images?include_image=false", content=scan.read_bytes())
            image_id = json.loads(sent.headers["X-Meta"])["image_id"]
            seen.add(replica_of(image_id))
            files = {"files": ("scan.nii.gz", scan.read_bytes())}
            session = http.put("/session/", files=files).json()["session_id"]
            asked = re.sub(r"[^\w*.-]", lambda found: f"%{ord(found[0]):02X}", session)
            for _ in range(4):
                assert http.get(f"/session/{asked}").status_code == 200
                params = {"params": (None, json.dumps({"prompts": SENTENCE}))}
                found = http.post(f"/infer/medal-s?session_id={asked}&output=json", files=params)
                assert found.status_code == 200, found.text
                long = {"prompts": [SENTENCE] * 1500, "image_id": image_id}
                assert 2**15 < len(json.dumps(long)) < 2**16
                assert http.post("/jobs", json=long).status_code == 200
                longer = {"prompts": [SENTENCE] * 5000, "image_id": image_id}
                late = http.post("/jobs", json=longer)
                assert (late.status_code, late.json()["code"]) == (422, "request-invalid")


def test_slicer_stays_with_its_replica(replicas: Replicas, scan: Path, tmp_path: Path) -> None:
    seen: set[str] = set()
    for _ in turns(replicas.address, seen):
        slicer = client_module("slicer").MONAILabelClient(replicas.address, str(tmp_path), "me")
        session = slicer.create_session(str(scan))["session_id"]
        seen.add(replica_of(session))
        assert slicer.get_session(session)["expiry"] > 0
        params = {"prompts": SENTENCE, "result_extension": ".nrrd", "result_dtype": "uint8"}
        _, answer = slicer.infer("medal-s", "scan", params, session_id=session)
        assert answer["label_names"] == {"Liver": 1}
        slicer.remove_session(session)


def test_nninteractive_stays_with_its_replica(replicas: Replicas) -> None:
    remote = pytest.importorskip(
        "nnInteractive.inference.remote", reason="nninteractive-client isn't installed"
    )
    place = f"{replicas.address}/nninteractive/CT/anatomy/liver"
    scribble = np.zeros(SHAPE, np.uint8)
    scribble[4, 4:14, 5:12] = 1
    seen: set[str] = set()
    for _ in turns(replicas.address, seen):
        before = {name: _cases(each) for name, each in replicas.by_name.items()}
        with remote.nnInteractiveRemoteInferenceSession(place) as session:
            spacing = {"spacing": np.array([4.0, 2.0, 3.0])}
            session.set_image(image()[None].astype(np.float32), spacing)
            session.set_target_buffer(np.zeros(SHAPE, np.uint8))
            session.add_scribble_interaction(scribble, include_interaction=True)
            assert session.target_buffer.any()
        seen |= {name for name, each in replicas.by_name.items() if _cases(each) > before[name]}


def _cases(served: Running) -> int:
    assert served.segmenter is not None
    return served.segmenter.cases


def halves(body: bytes) -> Iterator[bytes]:
    yield body[:20]
    time.sleep(0.3)
    yield body[20:]


def test_a_client_that_goes_cancels_its_job_through_the_proxy(
    replicas: Replicas, scan: Path
) -> None:
    """As Slicer does, which has no other cancel.

    The request comes in two parts: of one that HAProxy 2.6 reads at once, it may not look for the
    client's end any more.
    """
    with httpx.Client(base_url=replicas.address, timeout=60) as http:
        files = {"files": ("scan.nii.gz", scan.read_bytes())}
        session = http.put("/session/", files=files).json()["session_id"]
        served = replicas.by_name[replica_of(session)]
        owner = served.server.config.app.state.service.sessions.find(session)
        served.gate.clear()
        try:
            params = {"params": (None, json.dumps({"prompts": SENTENCE}))}
            whole = http.build_request("POST", f"/infer/medal-s?session_id={session}", files=params)
            with pytest.raises(httpx.ReadTimeout):
                http.post(whole.url, headers=whole.headers, content=halves(whole.read()), timeout=2)
            until(lambda: not owner.jobs)
        finally:
            served.gate.set()
        assert http.delete(f"/session/{session}").status_code == 200


def test_names_and_the_token_are_checked_behind_the_proxy(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """What a proxy adds of names, schemes and addresses is believed no more than any header."""
    token = "a-token-that-nobody-guesses"  # noqa: S105 - made up
    names = ("scans.example",)
    with (
        replicated(tiny_bundle, tmp_path, token=token, host_names=names) as replicas,
        httpx.Client(base_url=replicas.address, timeout=60) as http,
    ):
        for _ in range(2):  # on both
            assert http.get("/v1/model").json()["code"] == "token-missing"
            known = {"Authorization": f"Bearer {token}", "Host": "scans.example"}
            assert http.get("/v1/model", headers=known).status_code == 200
            for headers in (
                {"Host": "evil.example"},
                {"Host": "evil.example", "X-Forwarded-Host": "scans.example"},
            ):
                assert http.get("/v1/model", headers=known | headers).status_code == 421
            for headers in (
                {"Origin": "https://evil.example"},
                {"Origin": "https://evil.example", "X-Forwarded-Host": "evil.example"},
            ):
                assert http.post("/v1/sessions", headers=known | headers).status_code == 403
            secure = {"Origin": "https://scans.example", "X-Forwarded-Proto": "https"}
            assert http.post("/v1/sessions", headers=known | secure).status_code == 201
        with replicas.client(token=token) as client:
            assert client.model()["name"] == "tiny"


def test_a_replica_that_stops_takes_nothing_new_and_ends_its_jobs(
    tiny_bundle: Bundle, tmp_path: Path, scan: Path, expected: bytes
) -> None:
    with replicated(tiny_bundle, tmp_path, grace_s=60.0) as replicas:
        clients = replicas.clients()
        stopping = replicas.by_name["r1"]
        stopping.gate.clear()
        client = clients["r1"]
        job = client.submit(client.upload(scan), SENTENCE)
        until(lambda: client.job(job)["status"] == "running")
        stopping.server.stop_soon()
        until(lambda: httpx.get(f"{stopping.address}/readyz").status_code == 503)
        until(lambda: set(_new_sessions(replicas)) == {"r2"})
        assert client.job(job)["status"] == "running"
        events = client.watch(job)
        assert next(events)["status"] == "running"
        stopping.gate.set()
        assert [each["status"] for each in events][-1] == "done"
        other = clients["r2"]
        assert other.fetch(other.segment(other.upload(scan), SENTENCE)) == expected
        client.http.close()
        other.close()


def _new_sessions(replicas: Replicas) -> list[str]:
    """On which replicas four new sessions are opened."""
    names = []
    for _ in range(4):
        with replicas.client() as client:
            names.append(replica_of(client.http.headers["Medals-Session"]))
    return names


@pytest.mark.slow  # two processes with a model; the proxy's turn to another replica is tested above
def test_a_replica_that_dies_takes_its_sessions_alone(
    tiny_bundle: Bundle, tmp_path: Path, scan: Path, expected: bytes
) -> None:
    with (
        child(tiny_bundle, tmp_path / "r1", replica="r1") as (process, first),
        child(tiny_bundle, tmp_path / "r2", replica="r2") as (_, second),
        proxied(tmp_path, first, second) as address,
    ):
        clients = Replicas(address, {}).clients()
        jobs = {}
        for name, client in clients.items():
            jobs[name] = client.segment(client.upload(scan), SENTENCE)
        process.send_signal(signal.SIGKILL)
        process.wait()
        lost, kept = clients["r1"], clients["r2"]
        for _ in range(3):  # at once, and once the proxy knows
            with pytest.raises(ServedProblemError) as caught:
                lost.job(jobs["r1"])
            assert (caught.value.status, caught.value.code) == (401, "session-unknown")
            assert kept.fetch(jobs["r2"]) == expected
            time.sleep(1)
        voxtell = httpx.post(f"{address}/jobs", json={"image_id": "r1.x", "prompts": ["liver"]})
        assert (voxtell.status_code, voxtell.json()["code"]) == (404, "image-unknown")
        lease = {"X-Lease-Token": "r1.x"}
        place = f"{address}/nninteractive/CT/anatomy/liver/lease_status"
        assert httpx.get(place, headers=lease).status_code == 410
        with ServiceClient(address) as again:
            assert again.fetch(again.segment(again.upload(scan), SENTENCE)) == expected
        lost.http.close()
        kept.close()


@pytest.mark.slow
def test_the_page_behind_the_proxy(
    request: pytest.FixtureRequest, replicas: Replicas, tmp_path: Path
) -> None:
    scan = write_nifti(tmp_path / "scan.nii.gz")
    seen: set[str] = set()
    for _ in turns(replicas.address, seen):
        held = {name: len(each.files()) for name, each in replicas.by_name.items()}
        first = replicas.by_name["r1"]
        proxied_one = Running(replicas.address, first.server, first.data_dir)
        for found in visit(request.getfixturevalue("browser"), proxied_one):
            found.open()
            found.load(scan)
            found["#modality"].select_option("CT")
            found.choose("liver")
            found.run()
            found.expect("#class-rows tr").to_have_count(1)
            assert found.download("#download")[1]
            found.page.reload()
            found.page.wait_for_selector("body[data-ready]")
            found.expect("#class-rows tr").to_have_count(1)
        seen |= {name for name, each in replicas.by_name.items() if len(each.files()) > held[name]}
