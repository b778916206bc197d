"""Sessions that clients know by the id of an image, of a session or of a lease."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus
from typing import TypeVar

from medals_serve.problems import ServiceError
from medals_serve.service import Service
from medals_serve.sessions import ClientSession

_State = TypeVar("_State")


@contextlib.contextmanager
def opened(service: Service) -> Iterator[tuple[str, ClientSession]]:
    """Open a session with its secret; it ends with the block if that fails."""
    secret, owner = service.sessions.create()
    try:
        with owner.in_use():
            yield secret, owner
    except BaseException:
        service.end_session(owner)
        raise


def found(
    service: Service,
    secret: str,
    kind: type[_State],
    *,
    what: str,
    status: HTTPStatus = HTTPStatus.NOT_FOUND,
) -> tuple[ClientSession, _State]:
    """Return the session with a secret, if the protocol with this kind of state opened it.

    Raises
    ------
    ServiceError
        There is none.
    """
    with contextlib.suppress(ServiceError):
        owner = service.sessions.find(secret)
        if isinstance(owner.state, kind):
            return owner, owner.state
    raise ServiceError(
        f"there is no such {what}, or its time is over: nothing was asked of it for "
        f"{service.settings.idle_s / 60:.0f} minutes; send the image again",
        code=f"{what}-unknown",
        status=status,
    )


async def peeked(stream: AsyncIterator[bytes]) -> tuple[bytes, AsyncIterator[bytes]]:
    """Return the first bytes of a stream, and the whole stream."""
    first = b""
    async for chunk in stream:
        first = chunk
        if first:
            break

    async def whole() -> AsyncIterator[bytes]:
        yield first
        async for chunk in stream:
            yield chunk

    return first, whole()
