"""The routes of the API under /v1, and what watches the server asks for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Final, get_args, get_origin
from urllib.parse import quote

import anyio
from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from medals_rt.common.choices import MODALITY_TRAITS, PRESETS, Kind
from medals_rt.common.distribution import VERSION
from medals_rt.common.errors import InputError
from medals_rt.io.registry import DICOM_ENDINGS, ENDINGS, TWO_FILE_ENDINGS
from medals_rt.pipeline.output_grid import GridRequest, read_spacing
from medals_serve import metrics as figures
from medals_serve.catalog import MAX_TEXT
from medals_serve.images import ServedImage
from medals_serve.job_files import JobFile, JobFiles
from medals_serve.job_requests import (
    OUTPUT_FORMATS,
    JobRequest,
    format_choices,
    option_defaults,
)
from medals_serve.jobs import OVER, ServedJob
from medals_serve.problems import ServiceError, not_found
from medals_serve.schemas import (
    AskedModality,
    ChoiceState,
    Form,
    ImageState,
    JobBody,
    JobList,
    JobState,
    MaskState,
    ModelState,
    PromptsState,
    SessionContent,
    SessionState,
    Table,
)
from medals_serve.security import (
    SAFE_METHODS,
    SESSION_COOKIE,
    cookie_of,
    problem_response,
    set_cookie,
)
from medals_serve.service import Service
from medals_serve.sessions import ClientSession
from medals_serve.strict_json import StrictRoute

POLL_S: Final = 0.2
"""How often a job is looked at for its watchers."""

BEAT_S: Final = 15.0
"""Pause after which watchers are sent a line that says nothing, so that proxies keep the line."""

_MEDIA_TYPES: Final = {
    ".json": "application/json",
    ".csv": "text/csv; charset=utf-8",
    ".png": "image/png",
    ".gz": "application/gzip",
    ".dcm": "application/dicom",
    ".zip": "application/zip",
}
"""By the last ending of a file; others are bytes."""
_BYTES: Final = "application/octet-stream"


class ServedFile(FileResponse):
    """A file, or a part of it; a part that it doesn't have is refused as all else is."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, unless its job or image was deleted since it was found."""
        if not await anyio.Path(self.path).is_file():
            await problem_response(not_found("file"))(scope, receive, send)
            return
        refused: Message | None = None

        async def send_unless_refused(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] >= 400:
                refused = message
            if refused is None:
                await send(message)

        await super().__call__(scope, receive, send_unless_refused)
        if refused is not None:
            error = ServiceError(
                "the header Range names no part of the file; leave it out, or ask for bytes=0-",
                code="range-invalid",
                status=HTTPStatus(refused["status"]),
            )
            answer = problem_response(error)
            size = Headers(raw=refused["headers"]).get("content-range")
            if size is not None:
                answer.headers["Content-Range"] = size
            await answer(scope, receive, send)


def _files(*endings: str) -> dict[int | str, dict[str, Any]]:
    """Describe files with these endings as what a route answers."""
    schema = {"schema": {"type": "string", "format": "binary"}}
    kinds = {_MEDIA_TYPES.get(each, _BYTES): schema for each in endings}
    return {200: {"description": "The file", "content": kinds}}


_BODY: Final = {
    "requestBody": {
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    }
}
"""OpenAPI's description of a file as the body."""


def service_of(request: Request) -> Service:
    """Return the service that a request is for."""
    service: Service = request.app.state.service
    return service


Here = Annotated[Service, Depends(service_of)]


def _known_query(request: Request) -> None:
    """Refuse parameters that would be ignored without a word: unknown, or given twice.

    Raises
    ------
    InputError
    """
    places = list(_query_fields(request.scope["route"].dependant))
    known = {each.alias for each in places}
    if unknown := sorted(set(request.query_params) - known):
        there = f"there are {', '.join(sorted(known))}" if known else "it has none"
        raise InputError(
            f"there is no parameter {', '.join(f'{each:.60}' for each in unknown[:5])} of "
            f"{request.url.path}; {there}",
            code="parameter-unknown",
        )
    single = {each.alias for each in places if not _is_list(each.field_info.annotation)}
    given = request.query_params
    if repeated := sorted(name for name in single if len(given.getlist(name)) > 1):
        raise InputError(
            f"the parameter {', '.join(repeated)} is given more than once; keep one of them",
            code="parameter-repeated",
        )


def _is_list(annotation: Any) -> bool:
    return any(get_origin(each) is list for each in (annotation, *get_args(annotation)))


def _query_fields(dependant: Any) -> Iterator[Any]:
    yield from dependant.query_params
    for each in dependant.dependencies:
        yield from _query_fields(each)


_CHECKED: Final = [Depends(_known_query)]


async def _owner(
    request: Request,
    service: Here,
    medals_session: Annotated[
        str | None, Header(description="The session's secret; its cookie is accepted as well.")
    ] = None,
) -> AsyncIterator[ClientSession]:
    """Find the session that a request names, which lasts at least until it is answered.

    Raises
    ------
    ServiceError
        It names none.
    """
    secret = medals_session
    if secret is None:
        secret = cookie_of(request.headers, SESSION_COOKIE)
        says_where_from = "origin" in request.headers or "sec-fetch-site" in request.headers
        if request.method not in SAFE_METHODS and not says_where_from:
            secret = ""  # a page elsewhere could have made an old browser send the cookie
    owner = service.sessions.find(secret)
    with owner.in_use():
        yield owner


Owner = Annotated[ClientSession, Depends(_owner)]


async def _watching(service: Here, owner: Owner) -> AsyncIterator[None]:
    """Hold one of the session's streams of progress until it has been sent.

    Raises
    ------
    ServiceError
        It has as many as it may.
    """
    with owner.watching(service.settings.max_watchers):
        yield


# Watching -----------------------------------------------------------------------------------------

watching = APIRouter(tags=["watching"], default_response_class=PlainTextResponse)


@watching.get("/healthz", response_class=JSONResponse)
async def health() -> Response:
    """Whether the server answers."""
    return JSONResponse({"ok": True})  # as clients of other servers expect it


@watching.get("/readyz")
async def ready(service: Here) -> Response:
    """Whether jobs are taken."""
    if service.engine.is_ready:
        return PlainTextResponse("ready\n")
    return PlainTextResponse("stopping\n", HTTPStatus.SERVICE_UNAVAILABLE)


@watching.get("/metrics")
async def measured(service: Here) -> Response:
    """Figures for Prometheus."""
    return Response(service.metrics.text(), media_type=figures.MEDIA_TYPE)


# Model --------------------------------------------------------------------------------------------

model = APIRouter(prefix="/v1", tags=["model"], dependencies=_CHECKED)


@model.get("/model")
async def describe_model(service: Here) -> ModelState:
    """Return the model, its classes, and what a job may ask for."""
    bundle = service.segmenter.bundle
    return ModelState.model_validate(
        {
            "name": bundle.name,
            "hash": bundle.hash,
            "version": VERSION,
            "notice": bundle.notice,
            "arithmetic": service.segmenter.arithmetic,
            "free_text": bundle.manifest.text_encoder is not None,
            "modalities": [
                {"name": name, "in_hounsfield": traits.in_hounsfield}
                for name, traits in MODALITY_TRAITS.items()
            ],
            "classes": service.catalog.classes(),
            "groups": service.catalog.groups(),
            "presets": PRESETS,
            "default_preset": service.options.segment.preset,
            "options": option_defaults(service.options),
            "output_formats": OUTPUT_FORMATS,
            "formats": format_choices(),
            "input_endings": [
                each
                for each in dict.fromkeys((*ENDINGS, *DICOM_ENDINGS))
                if each not in TWO_FILE_ENDINGS
            ],
            "max_prompts": bundle.manifest.prompt_limit,
            "max_upload_bytes": service.settings.max_upload_bytes,
            "max_voxels": service.settings.max_voxels,
        }
    )


@model.get("/prompts")
async def read_prompts(
    service: Here,
    q: Annotated[str, Query(max_length=MAX_TEXT, description="Sentences, one a line.")],
    modality: AskedModality | None = None,
    kind: Kind = "anatomy",
) -> PromptsState:
    """Return how a text is read, as `medals-rt prompts` does, and what may be meant."""
    return PromptsState.model_validate(service.catalog.read(q, kind, modality))


# Sessions -----------------------------------------------------------------------------------------

sessions = APIRouter(prefix="/v1/sessions", tags=["sessions"], dependencies=_CHECKED)


@sessions.post("", status_code=HTTPStatus.CREATED)
async def open_session(request: Request, response: Response, service: Here) -> SessionState:
    """Open a session; its secret comes in the answer and as a cookie."""
    secret, _ = service.sessions.create()
    set_cookie(response, request.scope, SESSION_COOKIE, secret)
    return SessionState(session=secret, expires_in_s=service.settings.idle_s)


@sessions.get("/current")
async def describe_session(service: Here, owner: Owner) -> SessionContent:
    """Return what this session holds, for a page that was loaded again."""
    return SessionContent(
        expires_in_s=service.settings.idle_s,
        images=[_image_state(image) for image in owner.images.values()],
        jobs=[_job_state(service, job) for job in owner.jobs.values()],
    )


@sessions.delete("/current", status_code=HTTPStatus.NO_CONTENT)
async def end_session(request: Request, service: Here, owner: Owner) -> Response:
    """End this session: its jobs are canceled and all its data removed."""
    await service.in_passing(service.end_session, owner)
    answer = Response(status_code=HTTPStatus.NO_CONTENT)
    set_cookie(answer, request.scope, SESSION_COOKIE, None)
    return answer


# Images and masks ---------------------------------------------------------------------------------

images = APIRouter(prefix="/v1", tags=["images"], dependencies=_CHECKED)

UPLOADS: Final = ("/v1/images", "/v1/masks")
"""Paths that take files."""


@images.post(
    "/images",
    status_code=HTTPStatus.CREATED,
    openapi_extra=_BODY,
    responses={409: {"model": ChoiceState, "description": "Several series"}},
)
async def upload_image(
    request: Request,
    service: Here,
    owner: Owner,
    filename: Annotated[
        str | None, Query(max_length=512, description="Whose body is sent.", examples=["ct.nii.gz"])
    ] = None,
    upload: Annotated[
        str | None,
        Query(max_length=64, description="Of a problem with `choices`, in place of a body."),
    ] = None,
    series: Annotated[
        str | None, Query(max_length=128, description="Number or UID of a DICOM series.")
    ] = None,
    select: Annotated[
        list[str] | None, Query(max_length=16, description="Of its images, such as ECHO=2.")
    ] = None,
) -> ImageState:
    """Upload an image as the body, in any format that is read; a DICOM folder as a zip.

    Several series are answered 409 with `choices` and an `upload`, which is named with one of them
    in a second request without a body.
    """
    chosen = tuple(select or ())
    if upload is not None:
        image = await service.choose_series(owner, upload, series, chosen)
    else:
        image = await service.add_image(_body(request), owner, filename or "image", series, chosen)
    if await request.is_disconnected():  # nobody gets to know of it, as where one is canceled
        await service.in_passing(service.delete_image, owner, image)
        raise ClientDisconnect
    return _image_state(image)


@images.get("/images/{image}")
async def describe_image(image: str, owner: Owner) -> ImageState:
    """Return what an image is."""
    return _image_state(owner.image(image))


@images.get("/images/{image}/volume.nii.gz", response_class=ServedFile, responses=_files(".gz"))
async def show_image(image: str, service: Here, owner: Owner) -> Response:
    """Return an image for display: NIfTI with the scan's affine."""
    found = owner.image(image)
    return _file(await service.display(owner, found), "volume.nii.gz")


@images.delete("/images/{image}", status_code=HTTPStatus.NO_CONTENT)
async def delete_image(image: str, service: Here, owner: Owner) -> Response:
    """Delete an image with its masks and jobs."""
    await service.in_passing(service.delete_image, owner, owner.image(image))
    return Response(status_code=HTTPStatus.NO_CONTENT)


@images.post("/masks", status_code=HTTPStatus.CREATED, openapi_extra=_BODY)
async def upload_mask(
    request: Request,
    service: Here,
    owner: Owner,
    image: Annotated[str, Query(max_length=64)],
    filename: Annotated[str, Query(max_length=512, examples=["drawing.nii.gz"])],
) -> MaskState:
    """Upload labels drawn on an image, on its grid, as the body."""
    mask = await service.add_mask(_body(request), owner, owner.image(image), filename)
    return MaskState(mask=mask.name, image=mask.image, labels=list(mask.labels))


@images.delete("/masks/{mask}", status_code=HTTPStatus.NO_CONTENT)
async def delete_mask(mask: str, service: Here, owner: Owner) -> Response:
    """Delete a mask that guides no job; a job that corrects another's result needs it no more."""
    await service.delete_mask(owner, owner.mask(mask))
    return Response(status_code=HTTPStatus.NO_CONTENT)


# Jobs ---------------------------------------------------------------------------------------------

jobs = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=_CHECKED, route_class=StrictRoute)


@jobs.post("", status_code=HTTPStatus.ACCEPTED)
async def submit_job(body: JobBody, service: Here, owner: Owner) -> JobState:
    """Ask for a segmentation; all that can be wrong with it is found before it waits."""
    image = owner.image(body.image)
    mask = None if body.spatial_prompts is None else owner.mask(body.spatial_prompts)
    if mask is not None and mask.image != image.name:
        raise not_found("mask")
    corrects = None if body.corrects is None else owner.job(body.corrects)
    if corrects is not None and corrects.image is not image:
        raise not_found("job")
    asked = JobRequest(body.prompts, body.modality, body.options)
    job = await service.add_job(owner, image, asked, mask=mask, corrects=corrects)
    return _job_state(service, job)


@jobs.get("")
async def list_jobs(service: Here, owner: Owner) -> JobList:
    """Return all jobs of this session."""
    return JobList(jobs=[_job_state(service, job) for job in owner.jobs.values()])


@jobs.get("/{job}")
async def describe_job(job: str, service: Here, owner: Owner) -> JobState:
    """Return how far a job is."""
    return _job_state(service, owner.job(job))


@jobs.delete("/{job}", status_code=HTTPStatus.NO_CONTENT)
async def delete_job(job: str, service: Here, owner: Owner) -> Response:
    """Delete a job with its results, canceled if need be; those that correct it stay."""
    await service.in_passing(service.delete_job, owner, owner.job(job))
    return Response(status_code=HTTPStatus.NO_CONTENT)


class _EventStream(StreamingResponse):
    media_type = "text/event-stream"


@jobs.get("/{job}/events", response_class=_EventStream, dependencies=[Depends(_watching)])
async def watch_job(job: str, service: Here, owner: Owner) -> Response:
    """Return server-sent events `progress`, each the job's state, until it is over."""
    return _EventStream(_events(service, owner.job(job)))


@jobs.post("/{job}/cancel")
async def cancel_job(job: str, service: Here, owner: Owner) -> JobState:
    """Cancel a job: at once while it waits, in the middle of a window while it runs."""
    found = owner.job(job)
    found.cancel()
    return _job_state(service, found)


@jobs.get("/{job}/result", response_class=ServedFile, responses=_files(".gz", ".dcm", ""))
async def download_labels(
    job: str,
    service: Here,
    owner: Owner,
    format: Annotated[str, Query(max_length=32)] = "nii.gz",  # noqa: A002
    crop: Annotated[float | None, Query(ge=0, le=1000)] = None,
    spacing: Annotated[list[str] | None, Query(max_length=3)] = None,
    mesh_reduction: Annotated[float, Query(ge=0, lt=1)] = 0.0,
) -> Response:
    """Return the labels, in one of the image's `output_formats`, on the scan's own grid.

    With `crop` only the box of what was found and so many mm around it; with `spacing` (one length,
    or `H,W,D`) on a grid of that spacing in mm; with `mesh_reduction` without that share of a
    mesh's faces. What is too small for the grid is named by the header `Medals-Warning`.
    """
    found = owner.job(job)
    lengths = None if spacing is None else read_spacing(",".join(spacing))
    grid = GridRequest(lengths, crop)
    answer = await _made(
        service, owner, found, lambda files: files.labels(format, grid, mesh_reduction)
    )
    if lost := found.files.warnings(Path(answer.path)):
        answer.headers["Medals-Warning"] = quote("; ".join(lost), safe=" ,;:()")
    return answer


@jobs.get("/{job}/probabilities", response_class=ServedFile, responses=_files(".zip"))
async def download_probabilities(job: str, service: Here, owner: Owner) -> Response:
    """Return the probability maps of a job with the option `probabilities`: a zip of NIfTI."""
    found = owner.job(job)
    return await _made(service, owner, found, JobFiles.probabilities)


@jobs.get("/{job}/coarse/{part}", response_class=ServedFile, responses=_files(".gz"))
async def download_coarse(job: str, part: int, owner: Owner) -> Response:
    """Return a part of the coarse result as NIfTI on a coarse grid that covers the scan.

    It is there as soon as the job's `coarse_parts` says so, before the fine stage refines it.
    """
    found = owner.job(job)
    path = found.coarse(part)
    return _file(path, found.download_name(path))


@jobs.get("/{job}/instances", response_class=ServedFile, responses=_files(".gz"))
async def download_instances(job: str, service: Here, owner: Owner) -> Response:
    """Return the numbered lesions as NIfTI."""
    found = owner.job(job)
    return await _made(service, owner, found, JobFiles.instances)


@jobs.get("/{job}/statistics", response_class=ServedFile, responses=_files(".json", ".csv"))
async def download_statistics(
    job: str,
    service: Here,
    owner: Owner,
    format: Form = "json",  # noqa: A002
    table: Table = "classes",
) -> Response:
    """Return volume, intensity and position of each class, or of each lesion."""
    found = owner.job(job)
    return await _made(service, owner, found, lambda files: files.statistics(format, table))


@jobs.get("/{job}/report", response_class=ServedFile, responses=_files(".json"))
async def download_report(job: str, service: Here, owner: Owner) -> Response:
    """Return the report: everything that is needed to repeat and to judge the result."""
    found = owner.job(job)
    return await _made(service, owner, found, JobFiles.report_file)


@jobs.get("/{job}/preview.png", response_class=ServedFile, responses=_files(".png"))
async def download_preview(job: str, service: Here, owner: Owner) -> Response:
    """Return a picture of the labels in three planes."""
    found = owner.job(job)
    return await _made(service, owner, found, JobFiles.preview)


# Parts --------------------------------------------------------------------------------------------


def _body(request: Request) -> AsyncIterator[bytes]:
    """Return an upload's body as it comes in."""
    if request.headers.get("Content-Type", "").startswith("multipart/"):
        raise InputError(
            "a form was sent; send the file itself as the body (curl --data-binary @FILE)",
            code="body-is-a-form",
        )
    return request.stream()


def _image_state(image: ServedImage) -> ImageState:
    content: dict[str, Any] = {
        "image": image.name,
        "filename": image.shown,
        "size_bytes": image.upload.size_bytes,
        **image.found,
    }
    return ImageState.model_validate(content)


def _job_state(service: Service, job: ServedJob) -> JobState:
    return JobState.model_validate(job.state(service.engine.position(job)))


async def _events(service: Service, job: ServedJob) -> AsyncIterator[str]:
    """Send a job's state whenever it changed, the present one first.

    Its place in the queue is the engine's, and changes without it.
    """
    seen: tuple[int, int | None] | None = None
    quiet = 0.0
    while True:
        found = job.version, service.engine.position(job)
        if found != seen:
            seen, quiet = found, 0.0
            state = _job_state(service, job)
            yield f"event: progress\ndata: {state.model_dump_json()}\n\n"
            if state.status in OVER:  # as it was sent: the job may end at any moment
                return
        elif quiet >= BEAT_S:
            quiet = 0.0
            yield ": still here\n\n"
        await asyncio.sleep(POLL_S)
        quiet += POLL_S


async def _made(
    service: Service, owner: ClientSession, job: ServedJob, name: Callable[[JobFiles], JobFile]
) -> ServedFile:
    """Send a file of a job, made if need be."""
    path = await service.made(owner, job, name(job.files))
    return _file(path, job.download_name(path))


def _file(path: Path, name: str) -> ServedFile:
    return ServedFile(
        path,
        media_type=_MEDIA_TYPES.get(path.suffix, _BYTES),
        headers={"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}"},
    )
