"""Data that go: after a session, after a crash, and when the disk is full."""

import errno
import logging
import os
import shutil
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.errors import InputError
from medals_rt.io.registry import read_case
from medals_serve import app, images, problems, service
from medals_serve.client import ServedProblemError
from medals_serve.disk import held_bytes
from medals_serve.images import CaseCache, ServedImage, Upload
from medals_serve.problems import ServiceError
from medals_serve.sessions import Sessions, remove_folder
from medals_serve.settings import ServeSettings
from tests.errors import raises
from tests.serve.serving import PATIENCE_S, SENTENCE, running, until


def settings(folder: Path, **more: Any) -> ServeSettings:
    return ServeSettings(data_dir=folder, min_free_bytes=0, **more)


def test_leftovers_of_a_killed_server_are_removed(tmp_path: Path) -> None:
    """Those of a server that runs stay, and so do files that are none of a server's."""
    first = Sessions(settings(tmp_path))
    _, session = first.create()
    (session.folder / "upload.nii").write_bytes(b"x")
    (tmp_path / "mine.txt").write_text("x", encoding="utf-8")
    (tmp_path / "mine").mkdir()
    second = Sessions(settings(tmp_path))
    assert session.folder.exists()
    first._lock.release()  # as the kernel does for a process that is gone
    third = Sessions(settings(tmp_path))
    assert not first.root.exists()
    assert second.root.exists()
    assert (tmp_path / "mine.txt").exists()
    assert (tmp_path / "mine").exists()
    second.close()
    third.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine.txt"]


def test_a_link_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    """Someone else could have put it there before us."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError) as caught:
        Sessions(settings(tmp_path / "link"))
    assert caught.value.code == "data-dir-unsafe"
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_folders_are_for_this_user_alone(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    sessions = Sessions(settings(tmp_path / "open"))
    _, session = sessions.create()
    for folder in (tmp_path / "open", sessions.root, session.folder):
        assert folder.stat().st_mode & 0o777 == 0o700
    sessions.close()


def test_secrets_are_kept_nowhere(tmp_path: Path) -> None:
    sessions = Sessions(settings(tmp_path))
    secrets = {sessions.create()[0] for _ in range(20)}
    assert len(secrets) == 20
    for secret in secrets:
        session = sessions.find(secret)
        assert secret not in str(vars(session))
        assert secret not in repr(session)
    for wrong in ("", "x", "\udcff"):
        with pytest.raises(ServiceError):
            sessions.find(wrong)
    sessions.close()


def test_unused_sessions_end(
    tiny_bundle: Bundle, tmp_path: Path, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not while a job of theirs runs."""
    monkeypatch.setattr(app, "SWEEP_S", 0.05)
    with running(tiny_bundle, tmp_path / "data") as served, served.client() as client:
        image = client.upload(scan)
        served.gate.clear()
        job = client.submit(image, SENTENCE)
        sessions = served.server.config.app.state.service.sessions
        (session,) = sessions
        sessions._settings = replace(sessions._settings, idle_s=0.0)
        used = session.last_used
        until(lambda: session.last_used > used)  # it was looked at
        assert client.job(job)["status"] in {"queued", "running"}
        served.gate.set()
        until(lambda: session.ended and served.files() == [])
        with pytest.raises(ServedProblemError) as caught:
            client.job(job)
        assert caught.value.code == "session-unknown"


def test_a_sweep_that_fails_is_logged_and_not_the_last(
    tiny_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(app, "SWEEP_S", 0.05)
    monkeypatch.setattr(problems.log, "propagate", True)
    with running(tiny_bundle, tmp_path / "data") as served:
        service = served.server.config.app.state.service
        tidied, tidy = [], service.tidy

        def fails_once() -> None:
            tidied.append(1)
            if len(tidied) == 1:
                raise KeyError("secret")
            tidy()

        monkeypatch.setattr(service, "tidy", fails_once)
        until(lambda: len(tidied) > 1)
    assert [each.getMessage()[:8] for each in caplog.records if each.levelname == "ERROR"] == [
        "KeyError"
    ]


@pytest.mark.parametrize("what", ["session", "image"])
def test_memory_of_what_was_forgotten_goes_back_to_the_system(
    tiny_bundle: Bundle, tmp_path: Path, scan: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Once each time, however often one looks."""
    kept_at_trim: list[int] = []
    monkeypatch.setattr(app, "SWEEP_S", 0.05)
    with running(tiny_bundle, tmp_path / "data") as served, served.client() as client:
        features = served.server.config.app.state.service.features
        monkeypatch.setattr(service, "trim_heap", lambda: kept_at_trim.append(features.bytes))
        image = client.upload(scan)
        client.segment(image, [SENTENCE])
        assert features.bytes > 0
        if what == "image":
            client.delete_image(image)
        else:
            client.http.delete("/v1/sessions/current")
        until(lambda: bool(kept_at_trim))
        served.server.config.app.state.service.tidy()
    assert kept_at_trim == [0]


def test_a_folder_goes_for_certain_while_others_write_in_it(tmp_path: Path) -> None:
    stop = threading.Event()
    folder = tmp_path / "folder"

    def write() -> None:
        number = 0
        while not stop.is_set():
            with suppress(FileNotFoundError):
                (folder / "job" / f"{number % 1000}").write_bytes(b"x")
            number += 1

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            (folder / "job").mkdir(parents=True)
            until(lambda: any((folder / "job").iterdir()))
            remove_folder(folder)
            assert list(tmp_path.iterdir()) == []
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert remove_folder(folder) == 0


def test_a_session_that_ends_while_its_job_writes_leaves_nothing(
    tiny_bundle: Bundle,
    tmp_path: Path,
    scan: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither on disk nor in memory; the job is canceled, and no failure of the server's."""
    writing, ended = threading.Event(), threading.Event()
    save = np.savez_compressed
    monkeypatch.setattr(problems.log, "propagate", True)

    def slowly(file: Path, **arrays: Any) -> None:
        Path(file).write_bytes(b"half of it")
        writing.set()
        assert ended.wait(PATIENCE_S)
        save(file, **arrays)

    with running(tiny_bundle, tmp_path / "data") as served:
        service = served.server.config.app.state.service
        with served.client() as client:
            image = client.upload(scan)
            monkeypatch.setattr(np, "savez_compressed", slowly)
            client.submit(image, SENTENCE)
            assert writing.wait(PATIENCE_S)
            (session,) = service.sessions
            assert service.cases.bytes > 0
        ended.set()
        (job,) = session.jobs.values()
        until(lambda: job.is_over)
        assert job.status == "canceled"
        assert served.files() == []
        assert service.cases.bytes == 0
    assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []


def test_a_session_that_ends_while_a_job_is_made_runs_none(
    tiny_bundle: Bundle, tmp_path: Path, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tiny_bundle, tmp_path / "data") as served, served.client() as client:
        service = served.server.config.app.state.service
        image = client.upload(scan)
        make = service._make_job

        def made_too_late(owner: Any, *more: Any) -> Any:
            job = make(owner, *more)
            service.end_session(owner)
            return job

        monkeypatch.setattr(service, "_make_job", made_too_late)
        with pytest.raises(ServedProblemError) as caught:
            client.submit(image, SENTENCE)
        assert caught.value.code == "session-unknown"
        assert served.files() == []
        assert served.segmenter is not None
        assert served.segmenter.cases == service.engine.jobs_waiting == 0


def test_an_image_that_goes_while_it_is_read_is_not_kept(
    scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = CaseCache(10**9, 10**9)
    image = ServedImage(Upload("name", scan, "scan.nii.gz", 1), {})

    def read(*given: Any, **more: Any) -> Any:
        cases.forget(image)  # by another thread
        return read_case(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(images, "read_case", read)
        assert cases.case(image).volume.name == "scan"
    assert cases.bytes == 0


def test_a_disk_that_is_nearly_full_is_spared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = Sessions(ServeSettings(data_dir=tmp_path, min_free_bytes=1000))
    _, session = sessions.create()
    usage = shutil.disk_usage(tmp_path)._replace(free=1500)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    sessions.reserve(session, 500)
    with pytest.raises(ServiceError) as caught:
        sessions.reserve(session, 501)
    assert (caught.value.status, caught.value.code) == (507, "no-room")
    sessions.close()


def test_what_a_session_holds_is_what_lies_on_the_disk(
    tiny_bundle: Bundle, tmp_path: Path, scan: Path
) -> None:
    """After each job that was done, refused or deleted; else the limit would let in ever more."""
    with running(tiny_bundle, tmp_path / "data") as served, served.client() as client:
        sessions = served.server.config.app.state.service.sessions
        image = client.upload(scan)
        (session,) = sessions
        asked = {"1": SENTENCE, "5": "Right kidney in abdominal CT"}

        def held() -> int:
            assert session.bytes == held_bytes(session.folder)
            return session.bytes

        before = held()
        for _ in range(2):
            job = client.segment(image, asked)
            client.fetch(job, "preview.png")
            assert held() > before
            client.delete_job(job)
            assert held() == before
        with pytest.raises(ServedProblemError):
            client.submit(image, {"1": SENTENCE, "2": "the moon in CT"})
        assert held() == before


def test_an_ended_session_gets_no_room(tmp_path: Path) -> None:
    """What its uploads still write is in a folder without a name, and counts nowhere."""
    sessions = Sessions(settings(tmp_path))
    _, session = sessions.create()
    sessions.reserve(session, 1)
    sessions.end(session)
    with raises(ServiceError, "session-unknown"):
        sessions.reserve(session, 1)
    sessions.close()


def test_a_disk_that_is_full_all_the_same(
    tiny_bundle: Bundle, tmp_path: Path, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uploads and results fail with a line, and leave nothing half-written."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with running(tiny_bundle, tmp_path / "data") as served, served.client() as client:
        image = client.upload(scan)
        before = served.files()
        with monkeypatch.context() as patch:
            patch.setattr(np, "savez_compressed", full)
            with pytest.raises(ServedProblemError) as caught:
                client.segment(image, SENTENCE)
            assert (caught.value.status, caught.value.code) == (507, "disk-full")
            assert str(tmp_path) not in str(caught.value)
        assert not [name for name in served.files() if "partial" in name]
        job = client.segment(image, SENTENCE)
        with monkeypatch.context() as patch:
            patch.setattr("medals_serve.service.anyio.open_file", full)
            with pytest.raises(ServedProblemError) as caught:
                client.upload(scan)
            assert (caught.value.status, caught.value.code) == (507, "upload-not-stored")
        assert client.fetch(job)
        assert set(before) < set(served.files())
