"""The page's files: compressed, sent once, and nothing else; and the question for the token."""

from pathlib import Path

import httpx
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_serve.page_files import PAGE, STYLES
from medals_serve.security import TOKEN_COOKIE
from tests.serve.serving import Running, running

TOKEN = "a-token-that-nobody-guesses"  # noqa: S105 - made up
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def plain(served: Running, path: str, **headers: str) -> httpx.Response:
    with served.http(headers={"Accept-Encoding": "", **headers}) as http:
        return http.get(path)


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/page/main.js", "text/javascript; charset=utf-8"),
        ("/page/style.css", "text/css; charset=utf-8"),
        ("/page/icon.svg", "image/svg+xml"),
        ("/page/vendor/niivue/niivue.umd.js", "text/javascript; charset=utf-8"),
    ],
)
def test_a_file_comes_compressed_and_once(served: Running, path: str, media_type: str) -> None:
    content = (PAGE / (path.removeprefix("/page").strip("/") or "index.html")).read_bytes()
    whole = plain(served, path)
    packed = plain(served, path, **{"Accept-Encoding": "br, gzip;q=0.8"})
    for answer in (whole, packed):
        assert answer.content == content
        assert answer.headers["content-type"] == media_type
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["vary"] == "Accept-Encoding"
    assert "content-encoding" not in whole.headers
    assert packed.headers["content-encoding"] == "gzip"
    if len(content) > 1000:
        assert int(packed.headers["content-length"]) < 0.5 * len(content)
    assert whole.headers["etag"] != packed.headers["etag"]
    for known in (whole, packed):
        encoding = "gzip" if known is packed else ""
        for tag in (known.headers["etag"], f'"x", W/{known.headers["etag"]}'):
            again = plain(served, path, **{"Accept-Encoding": encoding, "If-None-Match": tag})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == known.headers["etag"]
    changed = plain(served, path, **{"If-None-Match": '"another"'})
    assert changed.status_code == 200
    with served.http() as http:
        assert http.head(path).headers["content-length"]


def test_gzip_may_be_refused(served: Running) -> None:
    for accepted in ("identity", "gzip;q=0", "br"):
        answer = plain(served, "/page/main.js", **{"Accept-Encoding": accepted})
        assert "content-encoding" not in answer.headers


@pytest.mark.parametrize(
    "path",
    ["x", "", "../app.py", "%2e%2e/app.py", "..%2fapp.py", "%2Fetc%2Fpasswd", "vendor", "a%00.js"],
)
def test_nothing_else_is_a_file_of_the_page(served: Running, path: str) -> None:
    with served.http() as http:
        answer = http.get(f"/page/{path}")
    assert answer.status_code == 404
    assert b"import" not in answer.content


def test_a_browser_is_asked_for_the_token(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with running(tiny_bundle, tmp_path, token=TOKEN) as served, served.http() as http:
        asked = http.get("/", headers=BROWSER)
        assert asked.status_code == 401
        assert asked.headers["content-type"].startswith("text/html")
        assert 'name="token"' in asked.text
        assert TOKEN not in asked.text
        assert "'unsafe" not in asked.headers["content-security-policy"]
        for path in STYLES:
            assert http.get(path).status_code == 200
        assert http.get("/page/main.js").status_code == 401
        for data in ({"token": "wrong"}, {}, {"token": ["x", TOKEN]}):
            wrong = http.post("/", data=data)
            assert wrong.status_code == 401
            assert "not the token" in wrong.text
            assert "set-cookie" not in wrong.headers
        elsewhere = {"Origin": "https://evil.example"}
        assert http.post("/", data={"token": TOKEN}, headers=elsewhere).status_code == 403
        opened = http.post("/", data={"token": TOKEN}, headers={"Origin": served.address})
        assert (opened.status_code, opened.headers["location"]) == (303, "/")
        assert http.cookies[served.cookie(TOKEN_COOKIE)] == TOKEN
        assert "samesite=strict" in opened.headers["set-cookie"].lower()
        page = http.get("/", headers=BROWSER)
        assert (page.status_code, 'id="viewer"' in page.text) == (200, True)


def test_a_stale_cookie_is_told(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with running(tiny_bundle, tmp_path, token=TOKEN) as served, served.http() as http:
        http.cookies.set(served.cookie(TOKEN_COOKIE), "of-yesterday")
        answer = http.get("/", headers=BROWSER)
        assert (answer.status_code, "not the token" in answer.text) == (401, True)


def test_without_a_token_there_is_no_question(served: Running) -> None:
    with served.http() as http:
        assert http.post("/", data={"token": "x"}).headers["location"] == "/"
