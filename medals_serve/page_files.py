"""The page's files as answers: compressed, and sent again only where they changed."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from medals_serve.problems import not_found

PAGE: Final = Path(__file__).parent / "page"
STYLES: Final = frozenset({"/page/style.css", "/page/icon.svg"})
"""Paths of what the question for the token is shown with."""

_MEDIA_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""By ending; others are plain text. Not `mimetypes`, which asks the machine."""

_ASKING_POLICY: Final = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_WRONG: Final = '<p class="problem" role="alert">This is not the token of this service.</p>'


@dataclass(frozen=True, eq=False)
class _File:
    media_type: str
    content: bytes

    @cached_property
    def tag(self) -> str:
        """What names the content, whichever replica sends it."""
        return hashlib.sha256(self.content).hexdigest()[:32]

    @cached_property
    def compressed(self) -> bytes:
        return gzip.compress(self.content, mtime=0)


class PageFiles:
    """All files of the page, held in memory by their paths: a path that isn't there is nowhere."""

    def __init__(self) -> None:
        self._files = {
            file.relative_to(PAGE).as_posix(): _File(
                _MEDIA_TYPES.get(file.suffix, "text/plain; charset=utf-8"), file.read_bytes()
            )
            for file in sorted(PAGE.rglob("*"))
            if file.is_file()
        }

    async def index(self, request: Request) -> Response:
        """Answer with the page itself."""
        return self._answer(request, "index.html")

    async def file(self, request: Request, path: str) -> Response:
        """Answer with a file of the page.

        Raises
        ------
        ServiceError
            There is none of that name.
        """
        return self._answer(request, path)

    def _answer(self, request: Request, path: str) -> Response:
        file = self._files.get(path)
        if file is None:
            raise not_found("file")
        packed = _takes_gzip(request.headers.get("Accept-Encoding", ""))
        tag = f'"{file.tag}-gzip"' if packed else f'"{file.tag}"'
        headers = {"ETag": tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        known = request.headers.get("If-None-Match", "")
        if tag in {each.strip().removeprefix("W/") for each in known.split(",")}:
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        if packed:
            headers["Content-Encoding"] = "gzip"
        content = file.compressed if packed else file.content
        return Response(content, media_type=file.media_type, headers=headers)


def _takes_gzip(accepted: str) -> bool:
    for each in accepted.lower().split(","):
        name, _, quality = each.partition(";")
        if name.strip() == "gzip":
            return quality.replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False


def token_page(*, wrong: bool) -> Response:
    """Ask for the token, as a person's browser shows it.

    Parameters
    ----------
    wrong
        Whether one was given, and isn't it.
    """
    text = (PAGE / "token.html").read_text(encoding="utf-8")
    return HTMLResponse(
        text.replace("<!-- problem -->", _WRONG if wrong else ""),
        status_code=HTTPStatus.UNAUTHORIZED,
        headers={
            "WWW-Authenticate": "Bearer",
            "Content-Security-Policy": _ASKING_POLICY,
            "Referrer-Policy": "same-origin",  # else the form comes from the origin "null"
        },
    )
