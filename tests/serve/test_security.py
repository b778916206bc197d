"""An attack list: names, tokens, origins, other people's data, sizes, times, and logs."""

import asyncio
import contextlib
import gzip
import io
import logging
import os
import re
import socket
import stat
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import nibabel
import numpy as np
import pytest
from starlette.datastructures import Headers

from medals_rt.bundle.bundle import Bundle
from medals_serve import routes
from medals_serve.app import UPLOADS
from medals_serve.client import ServedProblemError, ServiceClient
from medals_serve.images import shown_name, stored_name
from medals_serve.protocols import monailabel, nninteractive, voxtell
from medals_serve.security import HEADERS, SESSION_COOKIE, TOKEN_COOKIE, cookie_name
from medals_serve.server import PatientProtocol
from tests.serve.serving import PATIENCE_S, SENTENCE, Running, lying, running, until

TOKEN = "a-token-that-nobody-guesses"  # noqa: S105 - made up


def code(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == answer.status_code
    found: str = problem["code"]
    return found


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "",
        "[::1",
        "a b",
        "[::1]evil.example",
        "localhost:80:evil.example",
        "127.0.0.1:80x",
    ],
)
def test_other_names_are_refused(served: Running, host: str) -> None:
    """A page elsewhere may have its own name lead to the loopback (DNS rebinding)."""
    with served.http(headers={"Host": host}) as http:
        answer = http.get("/v1/model")
    assert (answer.status_code, code(answer)) == (421, "host-unknown")


@pytest.mark.parametrize("host", ["localhost", "localhost:8700", "127.0.0.1", "[::1]:99"])
def test_own_names_are_taken(served: Running, host: str) -> None:
    with served.http(headers={"Host": host}) as http:
        assert http.get("/v1/model").status_code == 200


def test_two_names_are_refused(served: Running) -> None:
    request = b"GET /v1/model HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    assert b" 421 " in raw(served, request) or b" 400 " in raw(served, request)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_other_origins_are_refused(served: Running, headers: dict[str, str]) -> None:
    with served.http(headers=headers) as http:
        for method, path in (("POST", "/v1/sessions"), ("GET", "/v1/model")):
            answer = http.request(method, path)
            assert (answer.status_code, code(answer)) == (403, "cross-origin")
            assert "access-control-allow-origin" not in answer.headers


def test_the_own_origin_is_taken(served: Running) -> None:
    headers = {"Origin": served.address, "Sec-Fetch-Site": "same-origin"}
    with served.http(headers=headers) as http:
        assert http.post("/v1/sessions").status_code == 201
        assert http.get("/v1/sessions/current").status_code == 200  # by its cookie
        assert http.delete("/v1/sessions/current").status_code == 204


def test_a_cookie_alone_changes_nothing(served: Running) -> None:
    """An old browser sends cookies, but does not say which page made it do so."""
    with served.http() as http:
        opened = http.post("/v1/sessions")
        cookie = opened.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert http.get("/v1/sessions/current").status_code == 200
        assert code(http.delete("/v1/sessions/current")) == "session-unknown"
        headers = {"Medals-Session": opened.json()["session"]}
        assert http.delete("/v1/sessions/current", headers=headers).status_code == 204


def test_a_session_is_closed_to_others(served: Running, scan: Path) -> None:
    with served.client() as owner, served.client() as other:
        image = owner.upload(scan)
        mask_of = {"image": image["image"], "filename": "m.nii.gz"}
        job = owner.segment(image, SENTENCE)
        owner.save_labels(job, scan.with_name("m.nii.gz"))
        mask = owner.upload_mask(image, scan.with_name("m.nii.gz"))
        for method, path, given in (
            ("GET", f"/v1/images/{image['image']}", {}),
            ("GET", f"/v1/images/{image['image']}/volume.nii.gz", {}),
            ("DELETE", f"/v1/images/{image['image']}", {}),
            ("POST", "/v1/masks", {"params": mask_of, "content": b"x"}),
            ("DELETE", f"/v1/masks/{mask['mask']}", {}),
            ("POST", "/v1/jobs", {"json": {"image": image["image"], "prompts": SENTENCE}}),
            ("GET", f"/v1/jobs/{job['job']}", {}),
            ("DELETE", f"/v1/jobs/{job['job']}", {}),
            ("GET", f"/v1/jobs/{job['job']}/events", {}),
            ("POST", f"/v1/jobs/{job['job']}/cancel", {}),
            ("GET", f"/v1/jobs/{job['job']}/result", {}),
            ("GET", f"/v1/jobs/{job['job']}/report", {}),
            ("GET", f"/v1/jobs/{job['job']}/statistics", {}),
            ("GET", f"/v1/jobs/{job['job']}/preview.png", {}),
        ):
            answer = other.http.request(method, path, **given)
            assert answer.status_code == 404, path
            assert code(answer) in {"image-unknown", "mask-unknown", "job-unknown"}
            nobody = httpx.request(method, served.address + path, **given)
            assert (nobody.status_code, code(nobody)) == (401, "session-unknown")
        assert other._json("GET", "/v1/jobs")["jobs"] == []
        assert owner.job(job)["status"] == "done"


def test_nothing_is_left_of_a_session(served: Running, scan: Path) -> None:
    before = served.files()
    with served.client() as client:
        secret = client.http.headers["Medals-Session"]
        job = client.segment(client.upload(scan), SENTENCE)
        client.fetch(job, "preview.png")
        assert served.files() != before
    assert served.files() == before
    with served.http(headers={"Medals-Session": secret}) as http:
        assert code(http.get("/v1/sessions/current")) == "session-unknown"
        assert code(http.get(f"/v1/jobs/{job['job']}/result")) == "session-unknown"


@pytest.mark.parametrize(
    "filename",
    [
        "../../../tmp/evil.nii.gz",
        "/etc/cron.d/evil.nii.gz",
        "..\\..\\evil.nii.gz",
        "C:\\evil.nii.gz",
        "a\x00b.nii.gz",
        "a\r\nSet-Cookie: x=y\r\n.nii.gz",
        "…" * 300 + ".nii.gz",
        ".nii.gz",
        "\u202eevil.nii.gz",
    ],
)
def test_names_never_become_paths(
    served: Running, client: ServiceClient, scan: Path, filename: str
) -> None:
    image = client.upload(scan.read_bytes(), filename=filename)
    assert "/" not in image["filename"]
    assert "\\" not in image["filename"]
    assert image["filename"].isprintable()
    names = {Path(name).name for name in served.files()}
    assert "upload.nii.gz" in names
    assert not any("evil" in name or "…" in name for name in names)
    job = client.segment(image, SENTENCE)
    answer = client.http.get(f"/v1/jobs/{job['job']}/result")
    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers
    assert answer.headers["content-disposition"].isascii()


def test_names_as_they_are_shown_and_stored() -> None:
    assert shown_name("a/b/c.nii.gz", "image") == "c.nii.gz"
    assert shown_name("..", "image") == ".."
    assert shown_name("", "image") == "image"
    assert stored_name("Scan.NII.GZ") == "upload.nii.gz"
    assert stored_name("scan.exe") == stored_name("..") == "upload_"
    assert stored_name("scan.zip") == "upload.zip"
    assert stored_name("scan.seg.nrrd", labels=True) == "upload.seg.nrrd"


def test_every_answer_carries_the_headers(served: Running) -> None:
    with served.http() as http:
        for path in ("/healthz", "/v1/model", "/v1/jobs", "/nowhere", "/v1/openapi.json"):
            answer = http.get(path)
            for name, value in HEADERS.items():
                assert answer.headers[name] == value, path
            assert "server" not in answer.headers
    policy = HEADERS["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy


def test_a_token_is_demanded_where_there_is_one(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with running(tiny_bundle, tmp_path, token=TOKEN) as served:
        with served.http() as http:
            assert http.get("/healthz").status_code == 200
            for path in ("/", "/v1/model", "/metrics", "/v1/openapi.json", "/page/x"):
                answer = http.get(path)
                assert (answer.status_code, code(answer)) == (401, "token-missing")
                assert answer.headers["www-authenticate"] == "Bearer"
            wrong = http.get("/v1/model", headers={"Authorization": f"Bearer {TOKEN}x"})
            assert (wrong.status_code, code(wrong)) == (401, "token-wrong")
            assert code(http.get("/", params={"token": "wrong"})) == "token-missing"
            opened = http.get("/", params={"token": TOKEN})
            assert opened.status_code == 303
            assert opened.headers["location"] == "/"
            assert "httponly" in opened.headers["set-cookie"].lower()
            assert http.cookies[served.cookie(TOKEN_COOKIE)] == TOKEN
            assert http.get("/v1/model").status_code == 200
        with served.http() as http:  # beside a cookie of another program at this host
            cookies = {"Cookie": f'prefs={{"a": 1}}; {served.cookie(TOKEN_COOKIE)}="{TOKEN}"'}
            assert http.get("/v1/model", headers=cookies).status_code == 200
        with pytest.raises(ServedProblemError) as caught:
            served.client(token="no")  # noqa: S106
        assert caught.value.status == 401
        with served.client(token=TOKEN) as client:
            assert client.model()["name"] == "tiny"


def test_names_that_the_operator_states(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with running(tiny_bundle, tmp_path, host_names=("scans.example",)) as served:
        for host, status in (("scans.example:80", 200), ("other.example", 421)):
            with served.http(headers={"Host": host}) as http:
                assert http.get("/v1/model").status_code == status


def test_what_takes_files_takes_more_than_others(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Paths of the protocols too, each of which is one that is there."""
    routers = (routes.images, voxtell.router, monailabel.router, nninteractive.router)
    assert set(UPLOADS) <= {each.path for router in routers for each in router.routes}
    too_much = b"x" * 3000
    with running(tiny_bundle, tmp_path, max_body_bytes=2000) as served, served.http() as http:
        for path in UPLOADS:
            named = re.sub(r"{.*?}", "x", path)
            answers = [http.request(each, named, content=too_much) for each in ("POST", "PUT")]
            assert 413 not in {answer.status_code for answer in answers}, path
        for path in ("/v1/jobs", "/jobs", "/datastore/", "/v1/images/x", "/images/x/y/export"):
            assert http.post(path, content=too_much).status_code == 413


def test_sizes_are_limited(tiny_bundle: Bundle, tmp_path: Path, scan: Path) -> None:
    size = scan.stat().st_size
    limits: dict[str, Any] = {
        "max_upload_bytes": size,
        "max_session_bytes": 2 * size,
        "max_disk_bytes": 3 * size,
        "max_body_bytes": 2000,
        "max_images": 3,
    }
    with running(tiny_bundle, tmp_path / "data", **limits) as served:
        with served.client() as client:
            for sent in (b"x" * (size + 1), iter([b"x" * 100] * (size // 100 + 1))):
                answer = client.http.post("/v1/images?filename=a.nii.gz", content=sent)
                assert (answer.status_code, code(answer)) == (413, "body-too-large")
            answer = client.http.post("/v1/jobs", json={"image": "x" * 3000})
            assert (answer.status_code, code(answer)) == (413, "body-too-large")
            answer = client.http.post(
                "/v1/jobs", content=iter([b" " * 500] * 5), headers={"Content-Type": "text/json"}
            )
            assert (answer.status_code, code(answer)) == (413, "body-too-large")
            client.upload(scan)
            client.upload(scan)
            error = _refused(client.upload, scan)
            assert (error.status, error.code) == (413, "session-full")
            with served.client() as other:
                other.upload(scan)
                error = _refused(other.upload, scan)
                assert (error.status, error.code) == (507, "no-room")
        assert not [name for name in served.files() if "upload" in name]


def _refused(work: Any, *given: Any) -> ServedProblemError:
    with pytest.raises(ServedProblemError) as caught:
        work(*given)
    return caught.value


def test_counts_are_limited(tiny_bundle: Bundle, tmp_path: Path, scan: Path) -> None:
    limits = {"max_images": 2, "max_sessions": 2, "max_jobs": 1, "max_masks": 0}
    with running(tiny_bundle, tmp_path / "data", **limits) as served:
        with served.client() as client, served.client():
            with pytest.raises(ServedProblemError) as caught:
                served.client()
            assert (caught.value.status, caught.value.code) == (503, "too-many-sessions")
            image = client.upload(scan)
            client.upload(scan)
            error = _refused(client.upload, scan)
            assert (error.status, error.code) == (429, "too-many-images")
            assert _refused(client.upload_mask, image, scan).code == "too-many-masks"
            client.segment(image, SENTENCE)
            assert _refused(client.submit, image, SENTENCE).code == "too-many-jobs"
            answer = client.http.post("/v1/images?filename=a.nii", content=b"x")
            assert int(answer.headers["retry-after"]) > 0
        with served.client():
            pass


def raw(served: Running, request: bytes, *, whole: bool = False) -> bytes:
    """Send bytes as they are and return the head of the answer, or b"" where the server closes.

    Or all that comes back until then, after having said that no more will be sent.
    """
    with socket.create_connection(served.place, PATIENCE_S) as connection:
        connection.sendall(request)
        if whole:
            connection.shutdown(socket.SHUT_WR)
        said = b""
        while part := connection.recv(65536):
            said += part
            if b"\r\n\r\n" in said and not whole:
                break
        return said


def test_a_slow_body_is_ended(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with running(tiny_bundle, tmp_path, body_idle_s=0.3) as served, served.client() as client:
        session = client.http.headers["Medals-Session"].encode()
        head = (
            b"POST /v1/images?filename=a.nii HTTP/1.1\r\nHost: localhost\r\n"
            b"Medals-Session: " + session + b"\r\nContent-Length: 99\r\n\r\nslow"
        )
        assert b" 408 " in raw(served, head).partition(b"\r\n")[0]
        assert not [name for name in served.files() if "upload" in name]
        assert client.model()["name"] == "tiny"


def test_a_client_that_reads_nothing_keeps_no_connection(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """Of an answer that is longer than what lies between it and the server."""
    noise = np.random.default_rng(0).integers(-(2**15), 2**15, (256, 256, 96), np.int16)
    nibabel.save(nibabel.Nifti1Image(noise, np.eye(4)), tmp_path / "noise.nii")
    with (
        running(tiny_bundle, tmp_path / "data", body_idle_s=1.0) as served,
        served.client() as client,
        socket.socket() as deaf,
    ):
        image = client.upload(tmp_path / "noise.nii")["image"]
        session = client.http.headers["Medals-Session"]
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(served.place)
        port = deaf.getsockname()[1]

        def is_held() -> bool:
            held = tuple(served.server.server_state.connections)
            return port in {each.client[1] for each in held if each.client is not None}

        deaf.sendall(
            f"GET /v1/images/{image}/volume.nii.gz HTTP/1.1\r\nHost: localhost\r\n"
            f"Medals-Session: {session}\r\n\r\n".encode()
        )
        until(is_held)
        until(lambda: not is_held(), 30)


def test_a_slow_head_is_ended(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with running(tiny_bundle, tmp_path, header_s=0.6) as served:
        assert raw(served, b"GET / HTTP/1.1\r\nHost: loc") == b""


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /nowhere HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: x\r\n\r\n",
        b"GET /v1/../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /page/%2e%2e/app.py HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /page/..%2fapp.py HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_requests_that_are_none(served: Running, request_bytes: bytes) -> None:
    status = raw(served, request_bytes).partition(b"\r\n")[0]
    assert status == b"" or status.split()[1][:1] == b"4", status
    with served.http() as http:
        assert http.get("/healthz").status_code == 200


def test_logs_name_nobody(
    served: Running,
    client: ServiceClient,
    scan: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither a file, nor a session, nor what was asked for, whatever went well or wrong."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(logging.getLogger("medals_serve"), "propagate", True)
    job = client.segment(client.upload(scan), SENTENCE)
    client.fetch(job, format="npz")
    _refused(client.upload, b"x" * 50)
    client.prompts("Doe's liver in CT")
    _break_the_next_result(served)
    with served.client() as other:
        image = other.upload(scan.read_bytes(), filename="Doe^John.nii.gz")
        _refused(other.segment, image, SENTENCE)
    ours = [each for each in caplog.records if not each.name.startswith(("http", "filelock"))]
    text = "\n".join(each.getMessage() for each in ours)
    secret = client.http.headers["Medals-Session"]
    for what in ("someone", "Doe", "iver in", secret, job["job"], "filename", "in the image"):
        assert what not in text, what
    assert "POST /v1/jobs 202" in text
    assert "RuntimeError in" in text


def _break_the_next_result(served: Running) -> None:
    segmenter = served.segmenter
    assert segmenter is not None

    def broken(*_: Any, **__: Any) -> Any:
        segmenter.__dict__.pop("segment")
        raise RuntimeError("Doe^John is in the image")

    segmenter.segment = broken  # type: ignore[method-assign]


def test_folders_are_closed_to_other_users(
    served: Running, client: ServiceClient, scan: Path
) -> None:
    client.upload(scan)
    for folder in [served.data_dir, *lying(served.data_dir)]:
        if folder.is_dir():
            assert folder.stat().st_mode & 0o077 == 0, folder
    assert served.data_dir.stat().st_uid == os.getuid()


def test_a_client_that_goes_leaves_nothing(served: Running) -> None:
    before = served.files()
    with served.client() as client:
        session = client.http.headers["Medals-Session"].encode()
        with socket.create_connection(served.place, PATIENCE_S) as connection:
            connection.sendall(
                b"POST /v1/images?filename=a.nii HTTP/1.1\r\nHost: localhost\r\n"
                b"Medals-Session: " + session + b"\r\nContent-Length: 99999\r\n\r\n" + b"x" * 5000
            )
            until(lambda: any("upload" in name for name in served.files()))
        until(lambda: not any("upload" in name for name in served.files()))
    assert served.files() == before


def test_the_cookie_has_its_name(served: Running) -> None:
    with served.http() as http:
        http.post("/v1/sessions")
        assert list(http.cookies) == [served.cookie(SESSION_COOKIE)]


def test_services_on_one_host_leave_each_other_alone(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """A browser sends the cookies of a host to all its ports; and a session that ended says so."""
    token = {"token": TOKEN}
    with (
        running(tiny_bundle, tmp_path / "a", **token) as first,
        running(tiny_bundle, tmp_path / "b", **token) as second,
        httpx.Client(headers={"Sec-Fetch-Site": "same-origin"}, timeout=PATIENCE_S) as browser,
    ):
        places = [f"{each.address}/v1/sessions" for each in (first, second)]
        for served, place in zip((first, second), places, strict=True):
            browser.get(f"{served.address}/", params=token)
            assert browser.post(place).status_code == 201
        assert [browser.get(f"{place}/current").status_code for place in places] == [200, 200]
        assert browser.delete(f"{places[1]}/current").status_code == 204
        assert [browser.get(f"{place}/current").status_code for place in places] == [200, 401]
        assert list(browser.cookies) == [
            *map(first.cookie, (TOKEN_COOKIE, SESSION_COOKIE)), second.cookie(TOKEN_COOKIE)
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("scans.example", "x"),
        ("scans.example:443", "x_443"),
        ("[::1]:8700", "x_8700"),
        ("[::1]", "x"),
        ("127.0.0.1:", "x"),
        ("", "x"),
    ],
)
def test_cookies_are_named_by_the_port_that_is_called(host: str, name: str) -> None:
    assert cookie_name(Headers({"host": host}), "x") == name


def test_a_token_with_a_plus_is_taken_as_it_is(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """As `openssl rand -base64` makes it, escaped or not."""
    token = "abcDEF+0123456789/xyz=="  # noqa: S105 - made up
    with running(tiny_bundle, tmp_path, token=token) as served, served.http() as http:
        for given in (token, quote(token, safe="")):
            http.cookies.clear()
            assert http.get(f"/?token={given}").status_code == 303, given
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            opened = http.post("/", content=f"token={given}", headers=form)
            assert opened.status_code == 303, given
            login = http.post("/auth/token", content=f"username=u&password={given}", headers=form)
            assert login.json()["access_token"] == token, given
        assert http.get("/v1/model").status_code == 200


# What else is tried on services ----------------------------------------------------------------


def zipped(*members: tuple[str, bytes, int]) -> bytes:
    """A zip of members, each with its name, content and Unix mode."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return packed.getvalue()


LINK, FILE = stat.S_IFLNK | 0o777, stat.S_IFREG | 0o644


@pytest.mark.parametrize(
    ("filename", "packed"),
    [
        ("a.zip", lambda: zipped(("link.dcm", b"/etc/passwd", LINK))),
        ("a.zip", lambda: zipped(("to", b"/etc", LINK), ("to/passwd.dcm", b"x", FILE))),
        ("a.zip", lambda: zipped(("../../up.dcm", b"x", FILE))),
        ("a.zip", lambda: zipped(("/abs.dcm", b"x", FILE))),
        ("a.zip", lambda: zipped(("C:\\abs.dcm", b"x", FILE))),
        ("a.zip", lambda: zipped(("bomb.dcm", bytes(1 << 28), FILE))),
        ("a.zip", lambda: zipped(*[(f"{n}.dcm", b"", FILE) for n in range(30_000)])),
        ("a.zip", lambda: zipped(("in.zip", zipped(("in.dcm", bytes(1 << 20), FILE)), FILE))),
        ("a.nii.gz", lambda: gzip.compress(bytes(1 << 28))),
    ],
    ids=["link", "through a link", "up", "absolute", "drive", "bomb", "many", "nested", "gzip"],
)
def test_archives_that_mean_harm(
    served: Running, filename: str, packed: Callable[[], bytes]
) -> None:
    before = served.files()
    with served.client() as client:
        answer = client.http.post("/v1/images", params={"filename": filename}, content=packed())
        assert (answer.status_code, answer.json()["status"]) == (422, 422)
        assert "root:" not in answer.text
        assert str(served.data_dir) not in answer.text
        assert [name for name in served.files() if "/" in name] == []
    assert served.files() == before


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\nContent-Length: 40\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n",
        b"Content-Length: +5\r\n",
    ],
)
def test_no_second_request_is_smuggled_in_a_first(served: Running, head: bytes) -> None:
    """A proxy that reads a head in another way must not make it two requests."""
    hidden = b"GET /v1/model HTTP/1.1\r\nHost: localhost\r\n\r\n"
    body = b"0\r\n\r\n" + hidden
    said = raw(
        served, b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n" + body, whole=True
    )
    answers = said.count(b"HTTP/1.1 ")
    assert answers <= 1
    assert b'"classes"' not in said


def test_json_may_be_nested_as_deep_as_it_likes(served: Running, client: ServiceClient) -> None:
    deep = b"[" * 400_000
    headers = {"Content-Type": "application/json"}
    for body in (deep, b'{"image":' + deep, b'{"options":{"a":' + b'{"a":' * 100_000):
        answer = client.http.post("/v1/jobs", content=body, headers=headers)
        assert (answer.status_code, code(answer)) == (422, "json-unreadable")
    with served.http() as http:
        answer = http.post("/infer/medal-s", files={"params": (None, deep[:60_000])})
        assert (answer.status_code, code(answer)) == (422, "json-unreadable")
        place = "/nninteractive/CT/anatomy/liver"
        lease = http.post(f"{place}/claim").json()["lease_token"]
        given = {"X-Lease-Token": lease, "X-Meta": "[" * 10_000}
        answer = http.post(f"{place}/set_image", content=b"x", headers=given)
        assert answer.json()["code"] == "json-unreadable"
        http.post(f"{place}/release", headers={"X-Lease-Token": lease})


def test_names_add_no_headers_to_downloads(client: ServiceClient) -> None:
    from tests.serve.serving import write_nifti

    with tempfile.TemporaryDirectory() as folder:
        content = write_nifti(Path(folder) / "scan.nii.gz").read_bytes()
    evil = 'a"; x="\r\nSet-Cookie: evil=1\r\n\u202e.nii.gz'
    job = client.segment(client.upload(content, filename=evil), SENTENCE)
    answer = client.http.get(f"/v1/jobs/{job['job']}/result")
    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers
    assert not re.search(r'[\r\n"]', answer.headers["content-disposition"].replace('"', "", 2))


def test_a_session_has_so_many_streams_of_progress(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Or one client could hold every connection."""
    from tests.serve.serving import write_nifti

    scan = write_nifti(tmp_path / "scan.nii.gz")
    with running(tiny_bundle, tmp_path / "data", max_watchers=3) as served:
        served.gate.clear()
        try:
            with (
                served.client() as client,
                served.client() as other,
                contextlib.ExitStack() as open_,
            ):
                job = client.submit(client.upload(scan), SENTENCE)
                address = f"/v1/jobs/{job['job']}/events"
                held = []  # an iterator that is dropped closes its stream
                for _ in range(3):
                    stream = open_.enter_context(client.http.stream("GET", address))
                    held.append(stream.iter_lines())
                    assert next(held[-1]) == "event: progress"
                refused = client.http.get(address)
                assert (refused.status_code, code(refused)) == (429, "too-many-watchers")
                assert int(refused.headers["retry-after"]) > 0
                assert client.job(job)["status"] == "running"
                image = other.upload(scan)
                waiting = other.submit(image, SENTENCE)
                assert next(other.watch(waiting))["status"] == "queued"
                open_.close()
                until(lambda: _may_watch(client, job), 60)
        finally:
            served.gate.set()


def test_streams_that_are_asked_for_at_once_keep_to_their_number(
    tiny_bundle: Bundle, tmp_path: Path, scan: Path
) -> None:
    async def answers(job: str, session: str) -> list[bytes]:
        async def one() -> tuple[bytes, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection(*served.place)
            head = f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: localhost\r\n"
            writer.write(f"{head}Medals-Session: {session}\r\n\r\n".encode())
            return (await reader.readline()).split()[1], writer

        got = await asyncio.gather(*(one() for _ in range(40)))
        for _, writer in got:
            writer.close()
        return [status for status, _ in got]

    with running(tiny_bundle, tmp_path / "data", max_watchers=3) as served:
        served.gate.clear()
        try:
            with served.client() as client:
                job = client.submit(client.upload(scan), SENTENCE)
                session = client.http.headers["Medals-Session"]
                found = asyncio.run(answers(job["job"], session))
                assert sorted(found) == [b"200"] * 3 + [b"429"] * 37
                until(lambda: _may_watch(client, job))
        finally:
            served.gate.set()


def _may_watch(client: ServiceClient, job: dict[str, Any]) -> bool:
    with contextlib.suppress(ServedProblemError):
        return bool(next(client.watch(job))["status"] == "running")
    return False


def test_heads_that_never_end_keep_nobody_out(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Slowloris: of connections that send no request or half of one, the oldest make room."""
    with (
        running(tiny_bundle, tmp_path, max_waiting=8, max_requests=8) as served,
        contextlib.ExitStack() as open_,
    ):
        silent = [
            open_.enter_context(socket.create_connection(served.place, PATIENCE_S))
            for _ in range(40)
        ]
        for connection in silent[20:]:
            with contextlib.suppress(ConnectionError):  # it was closed
                connection.sendall(b"GET /v1/model HTTP/1.1\r\nHost: localhost\r\nX: ")
        with served.http() as http:
            for path in ("/healthz", "/readyz", "/v1/model"):
                assert http.get(path).status_code == 200
            for connection in silent[:-8]:
                with contextlib.suppress(ConnectionError):
                    assert connection.recv(1) == b""
            assert len(served.server.server_state.connections) <= 9


def test_more_requests_than_are_answered_at_once(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """They are told so as all else is; what watches the server is answered still."""
    with (
        running(tiny_bundle, tmp_path, max_requests=2) as served,
        served.client() as client,
        contextlib.ExitStack() as open_,
    ):
        session = client.http.headers["Medals-Session"].encode()
        for _ in range(2):
            upload = open_.enter_context(socket.create_connection(served.place, PATIENCE_S))
            upload.sendall(
                b"POST /v1/images?filename=a.nii HTTP/1.1\r\nHost: localhost\r\n"
                b"Medals-Session: " + session + b"\r\nContent-Length: 99\r\n\r\nslow"
            )
        until(lambda: len(served.files()) == 5)  # the session's folder, and two uploads in theirs
        refused = client.http.get("/v1/model")
        assert (refused.status_code, code(refused)) == (503, "too-many-requests")
        assert int(refused.headers["retry-after"]) > 0
        for path in ("/healthz", "/readyz"):
            assert client.http.get(path).status_code == 200
        open_.close()
        until(lambda: client.http.get("/v1/model").status_code == 200)


def test_what_is_sent_is_taken_in_small_parts(
    client: ServiceClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of a byte take long to parse, and everybody else waits meanwhile."""
    sizes: list[int] = []
    take = PatientProtocol.data_received

    def counted(self: PatientProtocol, data: bytes) -> None:
        sizes.append(len(data))
        take(self, data)

    monkeypatch.setattr(PatientProtocol, "data_received", counted)
    answer = client.http.post("/v1/images?filename=a.nii", content=bytes(2**20))
    assert answer.status_code == 422
    assert sum(sizes) > 2**20
    assert max(sizes) <= 2**14


def test_a_session_is_made_here_and_guessed_nowhere(served: Running) -> None:
    """Ids are 256 random bits, a client can't choose one, and neither are found part by part."""
    chosen = "a" * 43
    given = {
        "headers": {"Medals-Session": chosen},
        "cookies": {served.cookie(SESSION_COOKIE): chosen},
    }
    with served.http(**given) as http:
        made = {http.post("/v1/sessions").json()["session"] for _ in range(4)}
        assert chosen not in made
        assert len(made) == 4
        assert all(len(secret) == 43 for secret in made)
        for guess in (chosen, "", ".", "é".encode(), b"\xff" * 43, *[s[:-1] for s in made]):
            answer = http.get("/v1/sessions/current", headers={"Medals-Session": guess})
            assert (answer.status_code, code(answer)) == (401, "session-unknown")
        for secret in made:
            http.delete("/v1/sessions/current", headers={"Medals-Session": secret})


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PROPFIND", "OPTIONS", "PUT"])
def test_other_methods_do_nothing(served: Running, method: str) -> None:
    with served.http() as http:
        answer = http.request(method, "/v1/sessions")
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]
