"""Forms of several parts, read as they come: a file goes where it belongs without a copy before."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from starlette.requests import Request

from medals_rt.common.optional_deps import import_optional
from medals_serve.problems import ServiceError

_MOST_PARTS: Final = 16
_MOST_TEXT: Final = 2**16


@dataclass(frozen=True)
class FormPart:
    """A part of a form.

    Attributes
    ----------
    name
        Of the field.
    filename
        Its client's name for the file; None for a text.
    body
        What it holds; can be read until the next part is asked for.
    """

    name: str
    filename: str | None
    body: AsyncIterator[bytes]

    async def text(self) -> str:
        """Return the whole part as text.

        Raises
        ------
        ServiceError
            It is too long for one.
        """
        held = b""
        async for chunk in self.body:
            held += chunk
            if len(held) > _MOST_TEXT:
                raise _refused(f"the field {self.name:.40} has more than {_MOST_TEXT:,} bytes")
        return held.decode("utf-8", "replace")


async def parts_of(request: Request) -> AsyncIterator[FormPart]:
    """Return the parts of a request's form, one after the other.

    Raises
    ------
    ServiceError
        The body is no such form, or a damaged one.
    """
    form = _Form(request)
    for _ in range(_MOST_PARTS):
        header = await form.next_header()
        if header is None:
            return
        _, named = form.library.multipart.parse_options_header(
            header.get(b"content-disposition", b"")
        )
        filename = named.get(b"filename")
        yield FormPart(
            named.get(b"name", b"").decode("utf-8", "replace"),
            None if filename is None else filename.decode("utf-8", "replace"),
            form.body(),
        )
    raise _refused(f"the form has more than {_MOST_PARTS} parts")


class _Form:
    """The parser's calls as a queue: headers, data, the end of a part, the end of all."""

    def __init__(self, request: Request) -> None:
        self.library = import_optional("python-multipart", "forms of other clients")
        kind, options = self.library.multipart.parse_options_header(
            request.headers.get("content-type")
        )
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise _refused("the body isn't multipart/form-data")
        self._stream = request.stream()
        self._queue: deque[tuple[str, Any]] = deque()
        self._field = self._value = b""
        self._headers: dict[bytes, bytes] = {}
        calls = {
            "on_part_begin": self._begin,
            "on_header_field": self._add_field,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_headers_finished": lambda: self._queue.append(("header", self._headers)),
            "on_part_data": self._add_data,
            "on_part_end": lambda: self._queue.append(("part-end", None)),
            "on_end": lambda: self._queue.append(("end", None)),
        }
        with self._damage_refused():
            self._parser = self.library.MultipartParser(options[b"boundary"], calls)

    @contextmanager
    def _damage_refused(self) -> Iterator[None]:
        try:
            yield
        except self.library.exceptions.FormParserError as error:
            raise _refused("the form is damaged") from error

    def _begin(self) -> None:
        self._headers = {}

    def _add_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._queue.append(("data", data[start:end]))

    async def _next(self) -> tuple[str, Any]:
        while not self._queue:
            with self._damage_refused():
                try:
                    self._parser.write(await anext(self._stream))
                except StopAsyncIteration:
                    raise _refused("the form ends early") from None
        return self._queue.popleft()

    async def next_header(self) -> dict[bytes, bytes] | None:
        """Pass over what is left of a part, and return the next one's headers."""
        while True:
            kind, held = await self._next()
            if kind == "header":
                headers: dict[bytes, bytes] = held
                return headers
            if kind == "end":
                return None

    async def body(self) -> AsyncIterator[bytes]:
        """Return the data of the part whose headers were read last."""
        while True:
            kind, held = await self._next()
            if kind == "part-end":
                return
            yield held


def _refused(message: str) -> ServiceError:
    return ServiceError(
        f"{message}; send it again", code="form-invalid", status=HTTPStatus.BAD_REQUEST
    )
