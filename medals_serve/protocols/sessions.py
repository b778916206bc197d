"""Sessions that clients know by the id of an image, of a session or of a lease."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus
from typing import TypeVar

from starlette.requests import Request

from medals_serve.jobs import ServedJob
from medals_serve.problems import ServiceError
from medals_serve.routes import POLL_S
from medals_serve.service import Service
from medals_serve.sessions import ClientSession

_State = TypeVar("_State")


@contextlib.contextmanager
def new_session(service: Service) -> Iterator[tuple[str, ClientSession]]:
    """Open a session with its secret; it ends with the block if that fails."""
    secret, owner = service.sessions.create()
    try:
        with owner.in_use():
            yield secret, owner
    except BaseException:
        service.end_session(owner)
        raise


def session_of(
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


async def wait_for(request: Request, job: ServedJob, seconds: float = math.inf) -> bool:
    """Wait for a job, or so long; cancel it when its client is gone. Return whether it is over."""
    until = time.monotonic() + seconds
    while not job.is_over:
        if time.monotonic() > until:
            return False
        if await request.is_disconnected():
            job.cancel("its client is gone")
        await asyncio.sleep(POLL_S)
    return True


def check_done(job: ServedJob) -> None:
    """Refuse a job that is over and has no result.

    Raises
    ------
    ServiceError
        The message says why.
    """
    problem = job.state(None)["problem"]
    if problem is not None:
        raise ServiceError(
            problem["detail"], code=problem["code"], status=HTTPStatus(problem["status"])
        )


async def peek(stream: AsyncIterator[bytes]) -> tuple[bytes, AsyncIterator[bytes]]:
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
