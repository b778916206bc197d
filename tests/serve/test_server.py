"""The command: its address, its refusals, and how it ends."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.errors import (
    DeviceLostError,
    InputError,
    MissingDependencyError,
)
from medals_rt.pipeline.options import RunOptions
from medals_serve import command
from medals_serve.client import ServiceClient
from medals_serve.command import read_token, serve
from medals_serve.metrics import Metrics
from medals_serve.security import Gate
from medals_serve.server import address_of, bind, is_loopback
from tests.errors import raises
from tests.serve.serving import PATIENCE_S, RUNNER, SENTENCE, child, ending, until


def children_of(process: Any) -> list[psutil.Process]:
    return list(psutil.Process(process.pid).children(recursive=True))


def lives(process: psutil.Process) -> bool:
    """Whether a process runs: one that ended may wait for someone to ask how."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(("number", "said"), [(signal.SIGTERM, "None"), (signal.SIGINT, "2")])
def test_signals_end_it_and_leave_nothing(
    tiny_bundle: Bundle, tmp_path: Path, scan: Path, number: int, said: str
) -> None:
    data = tmp_path / "data"
    with child(tiny_bundle, data) as (process, address), ServiceClient(address) as client:
        job = client.submit(client.upload(scan), SENTENCE)
        until(lambda: client.job(job)["status"] != "queued")
        readers = children_of(process)
        assert readers
        ended = ending(client, job, lambda: process.send_signal(number))
        assert ended["status"] == "done"  # it has its grace
        assert process.wait(PATIENCE_S) == 0
        assert f"ended by {said}" in process.stdout.read()
        until(lambda: not any(lives(reader) for reader in readers))
    assert list(data.iterdir()) == []


def test_what_a_killed_server_left_the_next_one_removes(
    tiny_bundle: Bundle, tmp_path: Path, scan: Path
) -> None:
    data = tmp_path / "data"
    with child(tiny_bundle, data) as (process, address), ServiceClient(address) as client:
        client.submit(client.upload(scan), SENTENCE)
        readers = children_of(process)
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE_S)
        until(lambda: not any(lives(reader) for reader in readers))
    assert any(path.name == "upload.nii.gz" for path in data.rglob("*"))
    with child(tiny_bundle, data) as (process, _):
        assert not any(path.name == "upload.nii.gz" for path in data.rglob("*"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    assert list(data.iterdir()) == []


def start(bundle: Path, **given: Any) -> int | None:
    fixed = {"host": "127.0.0.1", "port": 0, "token_file": None}
    return serve(
        RunOptions(bundle=bundle, **RUNNER),
        announce=pytest.fail,
        warn=pytest.fail,
        **{**fixed, **given},
    )


def test_a_port_in_use(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError) as caught:
            start(tiny_bundle.folder, port=port, data_dir=tmp_path)
    assert caught.value.code == "address-unusable"
    assert str(port) in str(caught.value)


def test_an_address_of_another_machine(tiny_bundle: Bundle) -> None:
    with pytest.raises(InputError) as caught:
        start(tiny_bundle.folder, host="192.0.2.1")
    assert caught.value.code == "address-unusable"


def test_a_bundle_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        start(tmp_path / "nothing", data_dir=tmp_path / "data")
    assert "nothing" in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_a_folder_for_data_that_is_none(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """The model is closed again."""
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError) as caught:
        start(tiny_bundle.folder, data_dir=file)
    assert caught.value.code == "data-dir-unusable"
    assert not [each for each in threading.enumerate() if each.name == "medals-engine"]


def test_a_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(what: str, *names: str) -> None:
        raise MissingDependencyError(f"{what} needs {names}")

    monkeypatch.setattr(command, "require", absent)
    with pytest.raises(MissingDependencyError) as caught:
        start(tmp_path)
    assert "medals-rt serve" in str(caught.value)


@pytest.mark.parametrize("has_place", [True, False])
def test_requests_are_logged_where_the_program_logs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], has_place: bool
) -> None:
    """With `--json-progress` every line on standard error is JSON."""
    records: list[logging.LogRecord] = []
    place = logging.Handler()
    monkeypatch.setattr(place, "emit", records.append)
    monkeypatch.setattr(logging.getLogger(), "handlers", [place] if has_place else [])
    log = logging.getLogger("medals_serve")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "propagate", True)
    monkeypatch.setattr(log, "level", log.level)
    command._log_requests()
    log.info("GET /healthz 200")
    assert ("GET /healthz 200\n" in capsys.readouterr().err) is not has_place
    assert [record.getMessage() for record in records] == ["GET /healthz 200"] * has_place


def test_importing_the_command_needs_no_extra() -> None:
    code = "import sys, medals_serve.command; print([m for m in sys.modules if 'fastapi' in m])"
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.stdout == "[]\n"


def test_tokens_from_files(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("a" * 20 + "\n", encoding="utf-8")
    file.chmod(0o600)
    assert read_token(file) == "a" * 20
    for content, mode, code in (
        ("short", 0o600, "token-too-short"),
        ("a" * 20 + " b", 0o600, "token-too-short"),
        ("ä" * 20, 0o600, "token-unreadable"),
        ("a" * 20, 0o644, "token-readable-by-others"),
    ):
        file.write_text(content, encoding="utf-8")
        file.chmod(mode)
        with pytest.raises(InputError) as caught:
            read_token(file)
        assert caught.value.code == code
    with pytest.raises(InputError) as caught:
        read_token(tmp_path / "none")
    assert caught.value.code == "token-unreadable"


@pytest.mark.parametrize("name", ["", "R1", "r1.", "-r", "r 1", "r1\n", "r" * 33, "../r"])
def test_names_of_replicas(name: str) -> None:
    """They become part of secrets, headers, paths and cookies."""
    with raises(InputError, "replica-name"):
        serve(
            RunOptions(), host="127.0.0.1", port=0, token_file=None, announce=print, warn=print,
            replica=name,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["http://x", "x:8700", "x/", "a b", "", "x."])
def test_names_that_no_request_can_call_are_refused(name: str) -> None:
    with raises(InputError, "host-name", "without"):
        serve(
            RunOptions(), host="127.0.0.1", port=0, token_file=None, announce=print, warn=print,
            host_names=("scans.example.org", name),
        )  # fmt: skip


def test_every_address_but_the_loopback_demands_a_token(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is made where none was given, and is part of the address that is printed."""
    from medals_serve import server as server_module

    seen: list[Any] = []

    class FakeServer:
        stopped_by = signal.SIGTERM
        failure: Exception | None = None

        def __init__(self, settings: Any, _: Any, **given: Any) -> None:
            seen.append(settings)
            self.announce = given["announce"]

        def run(self, **_: Any) -> None:
            self.announce()

    monkeypatch.setattr(server_module, "Server", FakeServer)
    said: list[str] = []
    for host in ("0.0.0.0", "127.0.0.1", "::1"):  # noqa: S104 - what is tested
        given = {"host": host, "announce": said.append, "warn": said.append}
        fixed = {"port": 0, "token_file": None}
        assert serve(RunOptions(bundle=tiny_bundle.folder), **{**fixed, **given}) is None
    anywhere, loopback, loopback6 = seen
    assert len(anywhere.token) >= 32
    assert anywhere.token not in repr(anywhere)
    assert said[0].endswith(f"?token={anywhere.token}")
    for settings, line in zip((anywhere, loopback, loopback6), said[::2], strict=True):
        gate = Gate(PlainTextResponse("in"), settings, Metrics(), ())
        bearer = {"Authorization": f"Bearer {settings.token}"}
        address = line.removeprefix("serving at ")
        assert TestClient(gate, address, headers=bearer).get("/").text == "in", address
    assert loopback.token is loopback6.token is None
    assert "token" not in said[2]
    FakeServer.failure = DeviceLostError("the model was lost")
    with raises(DeviceLostError, "device-lost"):
        serve(RunOptions(bundle=tiny_bundle.folder), **{**fixed, **given})


def test_addresses_as_they_are_printed() -> None:
    for host, shown in (("127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1"), ("::1", "[::1]")):
        with bind(host, 0) as bound:
            assert is_loopback(bound)
            assert shown in address_of(bound) or host == "localhost"
    with bind("0.0.0.0", 0) as bound:  # noqa: S104 - what is tested
        assert not is_loopback(bound)


def test_stopping_takes_no_longer_than_it_says(
    tiny_bundle: Bundle, tmp_path: Path, scan: Path
) -> None:
    """Watchers of jobs and clients that keep their connection do not hold it."""
    with (
        child(tiny_bundle, tmp_path / "data", grace_s=1.0) as (process, address),
        contextlib.ExitStack() as closing,
    ):
        clients = [closing.enter_context(ServiceClient(address)) for _ in range(5)]
        jobs = [client.submit(client.upload(scan), SENTENCE) for client in clients]
        watchers = [client.watch(job) for client, job in zip(clients, jobs, strict=True)]
        for watcher in watchers:
            next(watcher)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
