"""What every request passes (names, tokens, origins, sizes, times), and what every answer says."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medals_serve.metrics import Metrics
from medals_serve.page_files import STYLES, token_page
from medals_serve.problems import MEDIA_TYPE, ServiceError, log, log_failure, problem_of, status_of
from medals_serve.settings import RETRY_S, ServeSettings

TOKEN_COOKIE: Final = "medals_token"  # noqa: S105 - its name
SESSION_COOKIE: Final = "medals_session"
"""Their names where an address has no port; see `cookie_name`."""

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
WATCHED_PATHS: Final = frozenset({"/healthz", "/readyz"})
OPEN_PATHS: Final = STYLES | WATCHED_PATHS | {"/auth/", "/auth/token"}
"""Asked by what watches the server, or for a token, without one."""

_HOST: Final = re.compile(
    r"(\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[^][:/@]+))(:(?P<port>[0-9]{0,5}))?"
)
"""A name or an address, and perhaps a port."""

HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
"""Of every answer that doesn't say otherwise."""


class Gate:
    """Refuses requests before the application sees them, and answers where it fails.

    Parameters
    ----------
    app
        The application.
    settings
        Limits.
    metrics
        Where requests are counted.
    uploads
        Paths of the routes that take files, as routes have them: their bodies have a limit of
        their own.
    """

    def __init__(
        self, app: ASGIApp, settings: ServeSettings, metrics: Metrics, uploads: Iterable[str]
    ) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._uploads = tuple(compile_path(path)[0] for path in uploads)
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, answered = time.perf_counter(), 0
        self._requests += 1

        async def send_with_headers(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            async with asyncio.timeout(self._settings.body_idle_s):  # a client that reads nothing
                await send(message)

        try:
            answer = self._refusal(scope)
            if answer is not None:
                await answer(scope, receive, send_with_headers)
            else:
                await self._app(scope, self._limited(scope, receive), send_with_headers)
        except Exception as error:  # noqa: BLE001 - the last place where a request can end
            log_failure(error)
            if not answered:
                await problem_response(error)(scope, receive, send_with_headers)
        finally:
            self._requests -= 1
            route = getattr(scope.get("route"), "path", "other")
            status = answered or 499  # the client went before it was answered
            self._metrics.count(
                "medals_requests_total", method=_method(scope), route=route, status=str(status)
            )
            # the route's template: paths hold ids of sessions' data, queries names of files
            log.info(
                "%s %s %d %.0f ms",
                _method(scope), route, status, 1e3 * (time.perf_counter() - began),
            )  # fmt: skip

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        try:
            self._check_room(scope)
            self._check_size(scope, headers)
            self._check_host(headers)
            self._check_origin(scope, headers)
            answer = self._check_token(scope, headers)
        except ServiceError as error:
            return problem_response(error)
        return answer

    def _check_room(self, scope: Scope) -> None:
        """Refuse requests while too many are answered; what watches the server asks for little."""
        if self._requests > self._settings.max_requests and scope["path"] not in WATCHED_PATHS:
            raise ServiceError(
                f"{self._settings.max_requests} requests are answered already; try again later",
                code="too-many-requests",
                status=HTTPStatus.SERVICE_UNAVAILABLE,
                retry_after_s=RETRY_S,
            )

    def _check_host(self, headers: Headers) -> None:
        """Refuse names that aren't this server's: a page elsewhere may have its name lead here."""
        given = headers.getlist("host")
        host = _without_port(given[0]) if len(given) == 1 else ""
        if host == "localhost" or host in self._settings.host_names or _is_ip(host):
            return
        raise ServiceError(
            "this server is not called by that name; use its address, or start it with --host-name",
            code="host-unknown",
            status=HTTPStatus.MISDIRECTED_REQUEST,
        )

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        """Refuse what pages of other origins send."""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if scope["method"] in SAFE_METHODS and origin is None:
            # a link from elsewhere may open the page, but nothing else
            if site in {None, "same-origin", "none"} or not scope["path"].startswith("/v1"):
                return
        elif _same_origin(origin, headers) and site in {None, "same-origin", "none"}:
            return
        raise ServiceError(
            "requests from pages of other origins are refused",
            code="cross-origin",
            status=HTTPStatus.FORBIDDEN,
        )

    def _check_token(self, scope: Scope, headers: Headers) -> Response | None:
        token = self._settings.token
        place = scope["method"], scope["path"]
        if token is None or scope["path"] in OPEN_PATHS or place == ("POST", "/"):
            return None
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else ""
        given = given or cookie_of(headers, TOKEN_COOKIE)
        if same_token(given, token):
            return None
        if place == ("GET", "/"):
            asked = token_in(scope["query_string"])
            if same_token(asked, token):
                return opened_page(scope, token)
            if "text/html" in headers.get("accept", ""):
                return token_page(wrong=bool(asked or given))
        raise ServiceError(
            "this server demands a token: Authorization: Bearer TOKEN, or open its page as "
            "/?token=TOKEN",
            code="token-missing" if not given else "token-wrong",
            status=HTTPStatus.UNAUTHORIZED,
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _check_size(self, scope: Scope, headers: Headers) -> None:
        """Refuse a body that says that it is too large; an upload when it is asked for.

        What an upload takes the place of is to go even if the upload is refused.
        """
        _check_length(headers)
        most = self._settings.max_body_bytes
        if _length(headers) > most and not self._is_upload(scope):
            raise too_large(most)

    def _is_upload(self, scope: Scope) -> bool:
        return scope["method"] in {"POST", "PUT"} and any(
            path.match(scope["path"]) for path in self._uploads
        )

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """Bound the size of a request's body, its pauses, and its time."""
        limits = self._settings
        most = limits.max_upload_bytes if self._is_upload(scope) else limits.max_body_bytes
        said = _length(Headers(scope=scope))
        received, complete = 0, False
        until = time.monotonic() + limits.body_s

        async def receive_limited() -> Message:
            nonlocal received, complete
            if complete:  # what comes now is that the client is gone
                return await receive()
            if said > most:
                raise too_large(most)
            left = min(limits.body_idle_s, until - time.monotonic())
            try:
                message = await asyncio.wait_for(receive(), max(left, 0))
            except TimeoutError:
                raise ServiceError(
                    "the request's body took too long",
                    code="body-too-slow",
                    status=HTTPStatus.REQUEST_TIMEOUT,
                    headers={"Connection": "close"},
                ) from None
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if received > most:
                    raise too_large(most)
            return message

        return receive_limited


def _length(headers: Headers) -> int:
    return int(headers.get("content-length", "0"))


def _check_length(headers: Headers) -> None:
    """Refuse bodies whose length is no number, or is said in two ways.

    Raises
    ------
    ServiceError
    """
    said = headers.get("content-length", "0")
    if "content-length" in headers and "transfer-encoding" in headers:
        message = "the request says the length of its body twice"
    elif not said.isascii() or not said.isdigit():
        message = "the length of the request's body is no number"
    else:
        return
    raise ServiceError(
        message,
        code="length-ambiguous",  # where a proxy read another, it would be two requests
        status=HTTPStatus.BAD_REQUEST,
        headers={"Connection": "close"},
    )


def too_large(most: int) -> ServiceError:
    """Refuse a body."""
    return ServiceError(
        f"the request's body may have {most:,} bytes",
        code="body-too-large",
        status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        headers={"Connection": "close"},
    )


def problem_response(error: BaseException) -> Response:
    """Answer with an error."""
    headers = error.headers if isinstance(error, ServiceError) else {}
    return JSONResponse(
        problem_of(error),
        status_code=status_of(error),
        headers=headers,
        media_type=MEDIA_TYPE,
    )


def opened_page(scope: Scope, token: str | None) -> Response:
    """Lead to the page, with the token in a cookie instead of an address."""
    answer = RedirectResponse("/", status_code=HTTPStatus.SEE_OTHER)
    if token is not None:
        set_cookie(answer, scope, TOKEN_COOKIE, token)
    return answer


def cookie_name(headers: Headers, name: str) -> str:
    """Return a cookie's name at the address that a client calls, such as ``medals_token_8700``.

    Browsers send the cookies of a host to all its ports: those of two servers need two names.
    """
    found = _HOST.fullmatch(headers.get("host", ""))
    return f"{name}_{found['port']}" if found is not None and found["port"] else name


def cookie_of(headers: Headers, name: str) -> str:
    """Return a request's cookie, whatever those of other programs on this host look like."""
    return cookie_parser(headers.get("cookie", "")).get(cookie_name(headers, name), "")


def set_cookie(answer: Response, scope: Scope, name: str, value: str | None) -> None:
    """Set a cookie that scripts can't read and other sites don't send; None deletes it."""
    answer.set_cookie(
        cookie_name(Headers(scope=scope), name),
        value or "",
        max_age=0 if value is None else None,
        httponly=True,
        samesite="strict",
        secure=scope.get("scheme") == "https",
    )


def token_in(form: bytes, name: str = "token") -> str:
    """Return the token that a query or a form names.

    No token has spaces, so that a + is one, whether it came escaped or not.
    """
    return parse_qs(form.decode("latin-1").replace("+", "%2B")).get(name, [""])[0].strip()


def _method(scope: Scope) -> str:
    method: str = scope["method"]
    return method if method in {*SAFE_METHODS, "POST", "PUT", "PATCH", "DELETE"} else "other"


def same_token(given: str, token: str) -> bool:
    """Compare in a time that doesn't depend on how much is the same."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _same_origin(origin: str | None, headers: Headers) -> bool:
    """Whether an origin is this server; programs that are no browsers send none."""
    if origin is None:
        return True
    scheme, _, place = origin.partition("://")
    return scheme in {"http", "https"} and place == headers.get("host")


def _without_port(host: str) -> str:
    found = _HOST.fullmatch(host)
    if found is None:
        return ""
    return found["v6"] or found["name"].lower().removesuffix(".")


def is_host_name(name: str) -> bool:
    """Whether requests can call a server by a name, which has neither scheme nor port."""
    return _without_port(name) == name and not any(map(str.isspace, name)) and bool(name)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
