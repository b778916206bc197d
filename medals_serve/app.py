"""The application: routes, the page, errors as answers, and what runs beside them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Any, Final

import anyio
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from medals_rt.common.distribution import VERSION
from medals_rt.common.errors import MedalsError
from medals_rt.pipeline.options import RunOptions
from medals_serve import routes
from medals_serve.engine import JobEngine
from medals_serve.metrics import Metrics
from medals_serve.openapi import describe
from medals_serve.page_files import PageFiles, token_page
from medals_serve.problems import MEDIA_TYPE, log_failure, problem
from medals_serve.protocols import capabilities, monailabel, nninteractive, voxtell
from medals_serve.schemas import ProblemState
from medals_serve.security import Gate, opened_page, problem_response, same_token, token_in
from medals_serve.service import Service
from medals_serve.settings import ServeSettings

SWEEP_S: Final = 5.0
"""How often idle sessions are looked for, and memory that was freed."""

UPLOADS: Final = (
    *routes.UPLOADS, *voxtell.UPLOADS, *monailabel.UPLOADS, *nninteractive.UPLOADS,
)  # fmt: skip
"""Paths of all routes that take files."""


def create_app(
    settings: ServeSettings, options: RunOptions, engine: JobEngine, metrics: Metrics
) -> FastAPI:
    """Start an engine, and make the application that hands it jobs.

    Parameters
    ----------
    settings
        Limits.
    options
        What a job gets that says nothing.
    engine
        Runs the jobs; whoever made it stops it.
    metrics
        The engine's.

    Raises
    ------
    MedalsError
        The model can't be opened, or there is no place for data.
    """
    segmenter = engine.start()
    service = Service(settings, options, engine, segmenter, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(_sweep(service))
        try:
            yield
        finally:
            sweeping.cancel()
            await service.close()

    app = FastAPI(
        title="medals-rt",
        version=VERSION,
        summary="Segment 3D medical images by text.",
        description=segmenter.bundle.notice or "",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        openapi_url="/v1/openapi.json",
        lifespan=lifespan,
        responses={"default": {"model": ProblemState, "description": "A problem (RFC 9457)"}},
    )
    app.state.service = service
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    for router in (
        routes.watching, routes.model, routes.sessions, routes.images, routes.jobs,
        capabilities.router, voxtell.router, monailabel.router, nninteractive.router,
    ):  # fmt: skip
        app.include_router(router)
    page, get = PageFiles(), ["GET", "HEAD"]
    app.add_api_route("/", page.index, methods=get, include_in_schema=False)
    app.add_api_route("/page/{path:path}", page.file, methods=get, include_in_schema=False)
    app.add_api_route("/", _log_in, methods=["POST"], include_in_schema=False)
    app.add_middleware(Gate, settings=settings, metrics=metrics, uploads=UPLOADS)
    return app


async def _log_in(request: Request) -> Response:
    """Take the token that a person typed (see `page_files.token_page`)."""
    given = token_in(await request.body())
    token = request.app.state.service.settings.token
    if token is None or same_token(given, token):
        return opened_page(request.scope, token)
    return token_page(wrong=True)


async def _sweep(service: Service) -> None:
    """Let the service tidy up, now and then; what fails once is logged, and tried again."""
    while True:
        await asyncio.sleep(SWEEP_S)
        try:
            await anyio.to_thread.run_sync(service.tidy)
        except Exception as error:  # noqa: BLE001 - else sessions would never end again
            log_failure(error)


# Errors -------------------------------------------------------------------------------------------


async def _on_known(_: Request, error: Exception) -> Response:
    log_failure(error)
    return problem_response(error)


async def _on_http(_: Request, error: Exception) -> Response:
    """Answer with what the framework raised, or with the error of ours that it hides."""
    if isinstance(error.__cause__, MedalsError):
        return problem_response(error.__cause__)
    if not isinstance(error, HTTPException):
        raise error
    status = HTTPStatus(error.status_code)
    code = status.phrase.lower().replace(" ", "-")
    return JSONResponse(
        problem(status, code, str(error.detail)),
        status_code=status,
        headers=dict(error.headers or {}),
        media_type=MEDIA_TYPE,
    )


async def _on_invalid(request: Request, error: Exception) -> Response:
    """Answer to a request that doesn't fit its description, in one line."""
    if not isinstance(error, RequestValidationError):
        raise error
    found = []
    for each in error.errors()[:3]:
        place = ".".join(str(part) for part in each["loc"][1:]) or str(each["loc"][0])
        if each["type"] == "json_invalid":
            found.append(f"the body isn't JSON (from byte {place}: {each['ctx']['error']})")
        elif tuple(each["loc"]) == ("body",) and not _says_json(request):
            found.append("send the body as JSON, with the header Content-Type: application/json")
        else:
            found.append(f"{place}: {each['msg'].removeprefix('Value error, ')}")
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    return JSONResponse(
        problem(status, "request-invalid", "; ".join(found)),
        status_code=status,
        media_type=MEDIA_TYPE,
    )


def _says_json(request: Request) -> bool:
    media_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return media_type == "application/json" or media_type.endswith("+json")


async def _on_disconnect(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


_HANDLERS: Final[dict[type[Exception], Callable[[Request, Exception], Any]]] = {
    MedalsError: _on_known,
    OSError: _on_known,
    MemoryError: _on_known,
    HTTPException: _on_http,
    RequestValidationError: _on_invalid,
    ClientDisconnect: _on_disconnect,
}
