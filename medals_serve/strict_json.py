"""JSON as clients send it, read so that nothing in it is dropped or breaks an answer later."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from medals_rt.common.errors import InputError
from medals_rt.common.json_text import RepeatedKeyError, decode_json


def read_json(text: str | bytes) -> Any:
    """Decode JSON.

    Raises
    ------
    json.JSONDecodeError
        It is none.
    InputError
        A key occurs twice in one object, a text holds half a character (a lone surrogate), which
        no answer could repeat, or it can't be decoded for another reason.
    """
    try:
        found = decode_json(text)
        json.dumps(found, ensure_ascii=False).encode()
    except json.JSONDecodeError:
        raise
    except RepeatedKeyError as error:
        raise InputError(f"{error}; keep one of them", code="json-key-repeated") from error
    except UnicodeEncodeError as error:
        raise InputError(
            f"the JSON holds {error.object[error.start]!r}, which is half a character; send texts "
            "as Unicode",
            code="json-not-unicode",
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            "the JSON can't be read: it isn't UTF-8, is nested too deep, or holds a number of "
            "thousands of digits",
            code="json-unreadable",
        ) from error
    return found


class _StrictRequest(Request):
    async def json(self) -> Any:
        return read_json(await self.body())


class StrictRoute(APIRoute):
    """A route whose body is read by `read_json`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return answer
