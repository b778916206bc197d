"""A model hub on the loopback: the endpoints of Hugging Face that downloads use, over real HTTP."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "someone/weights"
LARGE = 1000
"""Files of at least so many bytes have a SHA-256 and come from another path, as with Git LFS."""
_INFO = re.compile(r"/api/models/([^/]+/[^/]+)/revision/(.+)")
_FILE = re.compile(r"/(stored/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class FakeHub:
    """What the hub holds and how it behaves; tests change it while it runs.

    Attributes
    ----------
    files
        Content of the one repository, by name.
    sent
        Content that is sent instead of what `files` announces.
    cut_at
        Offset where the connection is cut while a file is sent; None: never.
    cuts
        How often it is cut there; later requests get through. Negative: always.
    ignores_ranges
        Whether every answer begins at the first byte.
    status
        Answer every request with this status instead; "": with a page that is no JSON.
    error_code
        What goes with the status.
    """

    files: dict[str, bytes]
    endpoint: str = ""
    sent: dict[str, bytes] = field(default_factory=dict)
    cut_at: int | None = None
    cuts: int = -1
    ignores_ranges: bool = False
    commit: str = COMMIT
    status: int | None = None
    error_code: str = ""
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"hf:{REPOSITORY}@{self.commit}"


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Let it answer at `hub.endpoint`, a free port of the loopback, until the block ends."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.requests.append(path)
        if hub.status is not None:
            self._send(hub.status, b"<html>not a hub</html>", {"X-Error-Code": hub.error_code})
        elif found := _INFO.fullmatch(path):
            self._info(found[1], found[2])
        elif found := _FILE.fullmatch(path):
            self._file(found)
        else:
            self._send(404, b"")

    def _known(self, repository: str, revision: str) -> bool:
        if repository != REPOSITORY:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif revision not in {self.hub.commit, "main"}:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            return True
        return False

    def _info(self, repository: str, revision: str) -> None:
        if self._known(repository, revision):
            siblings = [_sibling(name, data) for name, data in self.hub.files.items()]
            answer = {"id": repository, "sha": self.hub.commit, "siblings": siblings, "tags": []}
            self._send(200, json.dumps(answer).encode())

    def _file(self, found: re.Match[str]) -> None:
        stored, repository, revision, name = found.groups()
        hub = self.hub
        if not self._known(repository, revision):
            return
        if name not in hub.files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        if len(hub.files[name]) >= LARGE and not stored:
            self._send(302, b"", {"Location": f"{hub.endpoint}/stored{self.path}"})
            return
        data = hub.sent.get(name, hub.files[name])
        asked = self.headers.get("Range")
        start = 0
        if asked:
            hub.ranges.append(asked)
            if not hub.ignores_ranges:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
        headers = {"X-Repo-Commit": hub.commit, "ETag": f'"{git_sha1(data)}"'}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._send(206 if start else 200, data[start:], headers, start)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, start: int = 0
    ) -> None:
        hub = self.hub
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        is_file = status in {200, 206} and "/resolve/" in self.path
        if is_file and hub.cut_at is not None and hub.cuts and start + len(body) > hub.cut_at:
            hub.cuts -= 1
            body = body[: max(0, hub.cut_at - start)]
        self.wfile.write(body)
        self.close_connection = True


def _sibling(name: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_sha1(data)}
    if len(data) >= LARGE:
        entry["lfs"] = {"sha256": _sha256(data), "size": len(data), "pointerSize": 134}
    return entry


@lru_cache(maxsize=64)
def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@lru_cache(maxsize=64)
def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
