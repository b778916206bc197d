"""What OpenAPI says beside what FastAPI finds by itself: who may ask, and how errors are sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from medals_serve.problems import MEDIA_TYPE
from medals_serve.security import OPEN_PATHS

_SESSION_HEADER: Final = "medals-session"
_SCHEMES: Final = {
    "token": {"type": "http", "scheme": "bearer", "description": "Where the server demands one."},
    "session": {
        "type": "apiKey",
        "in": "header",
        "name": "Medals-Session",
        "description": "The secret that POST /v1/sessions answers.",
    },
}


def describe(app: FastAPI) -> dict[str, Any]:
    """Describe an application as OpenAPI, once."""
    if app.openapi_schema is None:
        found = get_openapi(
            title=app.title,
            version=app.version,
            openapi_version=app.openapi_version,
            summary=app.summary,
            description=app.description,
            routes=app.routes,
        )
        found["components"]["securitySchemes"] = _SCHEMES
        for path, operation in _operations(found):
            _add_security(path, operation)
            _name_problems(operation)
        app.openapi_schema = found
    return app.openapi_schema


def _operations(described: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, verbs in described["paths"].items():
        for operation in verbs.values():
            yield path, operation


def _add_security(path: str, operation: dict[str, Any]) -> None:
    """Say which secrets an operation wants: a token where the server demands one."""
    named = {each["name"].lower() for each in operation.get("parameters", ())}
    wanted: dict[str, list[str]] = {"session": []} if _SESSION_HEADER in named else {}
    if path in OPEN_PATHS:
        operation["security"] = [{}]
    else:
        operation["security"] = [wanted, {**wanted, "token": []}]


def _name_problems(operation: dict[str, Any]) -> None:
    """Give errors the media type that they are sent as, whatever the route's own is."""
    for status, response in operation["responses"].items():
        if not status.startswith("2"):
            (schema,) = response["content"].values()
            response["content"] = {MEDIA_TYPE: schema}
