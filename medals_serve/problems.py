"""The service's own errors, and errors as answers (RFC 9457) and in the log.

An answer has the command line's code, and its message but for advice on options. All others are in
`medals_rt.common.errors`.
"""

import logging
import re
import traceback
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from medals_rt.common.errors import (
    CaseError,
    InputError,
    MedalsError,
    MissingDependencyError,
    OutputError,
)

log: Final = logging.getLogger("medals_serve")

MEDIA_TYPE: Final = "application/problem+json"


class ServiceError(MedalsError):
    """A request that the service refuses for reasons of its own.

    Parameters
    ----------
    status
        Of the answer.
    retry_after_s
        When the same request may succeed; None where it will not.
    headers
        More headers of the answer.
    more
        More members of the problem.
    """

    code = "request-refused"

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: HTTPStatus,
        retry_after_s: int | None = None,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.status = status
        self.more = dict(more or {})
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(retry_after_s)


class SeriesChoiceError(CaseError):
    """A file holds several series, and the one that was asked for, if any, is none of them.

    Attributes
    ----------
    choices
        What `reader_process.describe_series` said.
    """

    code = "series-choice"

    def __init__(self, message: str, *, code: str, choices: list[dict[str, Any]]) -> None:
        super().__init__(message, code=code)
        self.choices = choices


class JobEndedError(MedalsError):
    """Raised in the middle of a job to end it."""

    code = "job-ended"


class ServedProblemError(MedalsError):
    """What a client raises: the service refused a request, or a job failed.

    Attributes
    ----------
    status
        Of the answer.
    problem
        The whole problem; its `code` is the error's.
    """

    code = "served-problem"

    def __init__(self, problem: Mapping[str, Any]) -> None:
        super().__init__(str(problem.get("detail", "")), code=problem.get("code"))
        self.status = int(problem.get("status", 0))
        self.problem = dict(problem)


STATUS_OF_CODE: Final[Mapping[str, HTTPStatus]] = {
    "job-canceled": HTTPStatus.CONFLICT,
    "job-overdue": HTTPStatus.SERVICE_UNAVAILABLE,
    "device-lost": HTTPStatus.SERVICE_UNAVAILABLE,
}
"""Statuses of single codes; all others have that of their class."""

STATUSES: Final[tuple[tuple[type[BaseException], HTTPStatus], ...]] = (
    (InputError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (OutputError, HTTPStatus.INSUFFICIENT_STORAGE),
    (MissingDependencyError, HTTPStatus.NOT_IMPLEMENTED),
    (MemoryError, HTTPStatus.SERVICE_UNAVAILABLE),
    (Exception, HTTPStatus.INTERNAL_SERVER_ERROR),
)
"""The first entry that fits is taken. Where the command line exits with 2, the status is 4xx; where
it exits with 1, 5xx (`medals_rt.cli._errors.ENDINGS`)."""


def status_of(error: BaseException) -> HTTPStatus:
    """Return the HTTP status of an error."""
    if isinstance(error, ServiceError):
        return error.status
    if isinstance(error, MedalsError) and error.code in STATUS_OF_CODE:
        return STATUS_OF_CODE[error.code]
    return next(status for kind, status in STATUSES if isinstance(error, kind))


_OWN_WORDS: Final[Mapping[str, str]] = {
    "no-modality": "the text names no modality: choose the scan's, or name it, as in 'Spleen in "
    "abdominal CT'",
    "no-prompts": "the file asks for nothing: give prompts",
    "several-series": "the upload holds several series: choose one",
}
"""What is said instead of messages that advise options of the command line, by code."""

_OF_THE_SERVER: Final[Mapping[str, str]] = {
    "disk-full": "the server's disk is full; try again later, or delete an image",
    "output-not-writable": "the server can't write the file; try again later",
}
"""What is said instead of messages that name files of the server's own, by code."""

_FLAGS: Final = re.compile(
    r" \([^()]*--[a-z][^()]*\)|, or (?:use|give) --[a-z-]+[^;]*|; `medals-rt batch`[^;]*"
)


def _detail(error: MedalsError) -> str:
    """Return an error's message on one line, without advice on the command line."""
    message = _OF_THE_SERVER.get(error.code, " ".join(str(error).split()))
    if " --" in message:
        message = _OWN_WORDS.get(error.code, message)
    return _FLAGS.sub("", message)


def problem_of(error: BaseException) -> dict[str, Any]:
    """Describe an error as a problem; what was not raised on purpose is not described."""
    status = status_of(error)
    code, detail, more = "failure", "the server failed; its log names the place", {}
    if isinstance(error, MedalsError):
        code, detail = error.code, _detail(error)
        more = error.more if isinstance(error, ServiceError) else {}
    elif isinstance(error, MemoryError):
        code, detail = "out-of-memory", "out of memory; ask for fewer classes, or try again later"
    return problem(status, code, detail, **more)


def problem(status: HTTPStatus, code: str, detail: str, **more: Any) -> dict[str, Any]:
    """Make a problem."""
    return {
        "type": f"urn:medals-rt:problem:{code}",
        "title": status.phrase,
        "status": int(status),
        "detail": detail,
        "code": code,
        **more,
    }


def log_failure(error: BaseException) -> None:
    """Log what failed and where, but not its message, which may name a file or a patient."""
    if status_of(error) < HTTPStatus.INTERNAL_SERVER_ERROR or isinstance(error, ServiceError):
        return
    places = traceback.extract_tb(error.__traceback__)[-4:]
    where = " < ".join(f"{place.name}:{place.lineno}" for place in reversed(places))
    log.error("%s in %s", type(error).__name__, where)


def not_found(what: str) -> ServiceError:
    """Refuse to name something: it never was, is gone, or belongs to another session."""
    return ServiceError(
        f"there is no such {what} in this session",
        code=f"{what}-unknown",
        status=HTTPStatus.NOT_FOUND,
    )
