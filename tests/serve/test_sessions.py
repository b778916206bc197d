"""Data that go: after a session, after a crash, and when the disk is full."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.errors import InputError
from medals_serve.client import ServedProblemError
from medals_serve.problems import ServiceError
from medals_serve.sessions import Sessions
from medals_serve.settings import ServeSettings
from tests.serve.serving import SENTENCE, running, until


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


def test_unused_sessions_end(tiny_bundle: Bundle, tmp_path: Path, scan: Path) -> None:
    """But not while a job of theirs runs."""
    from medals_serve import app

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "SWEEP_S", 0.05)
        with running(tiny_bundle, tmp_path / "data", idle_s=0.5) as served:
            client = served.client()
            image = client.upload(scan)
            served.gate.clear()
            job = client.submit(image, SENTENCE)
            sessions = served.server.config.app.state.service.sessions
            (session,) = sessions
            until(lambda: not session.ended and session.last_used > 0)
            assert client.job(job)["status"] in {"queued", "running"}
            served.gate.set()
            until(lambda: session.ended and served.files() == [])
            with pytest.raises(ServedProblemError) as caught:
                client.job(job)
            assert caught.value.code == "session-unknown"
            client.close()


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


def test_a_disk_that_is_full_all_the_same(
    tiny_bundle: Bundle, tmp_path: Path, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uploads and results fail with a line, and leave nothing half-written."""
    import numpy as np

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with running(tiny_bundle, tmp_path / "data") as served, served.client() as client:
        image = client.upload(scan)
        before = served.files()
        with monkeypatch.context() as patch:
            patch.setattr(np, "savez_compressed", full)
            with pytest.raises(ServedProblemError) as caught:
                client.segment(image, SENTENCE)
            assert caught.value.status == 507
        assert not [name for name in served.files() if "partial" in name]
        job = client.segment(image, SENTENCE)
        with monkeypatch.context() as patch:
            patch.setattr("medals_serve.service.anyio.open_file", full)
            with pytest.raises(ServedProblemError) as caught:
                client.upload(scan)
            assert (caught.value.status, caught.value.code) == (507, "upload-not-stored")
        assert client.fetch(job)
        assert set(before) < set(served.files())
