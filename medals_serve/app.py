"""The API under /v1, the page at /, and what watches the server asks for."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import quote

import anyio
from fastapi import Depends, FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from medals_rt.common.choices import PRESETS, Kind, Modality
from medals_rt.common.distribution import VERSION
from medals_rt.common.errors import MedalsError, OutputError
from medals_rt.io.registry import DICOM_ENDINGS, ENDINGS, FORMATS
from medals_rt.pipeline.job import read_annotation
from medals_rt.pipeline.options import RunOptions
from medals_rt.pipeline.segmenter import Segmenter
from medals_serve import metrics as figures
from medals_serve.catalog import MAX_TEXT, Catalog
from medals_serve.engine import Engine
from medals_serve.images import (
    CaseCache,
    ServedImage,
    ServedMask,
    shown_name,
    stored_name,
    write_volume,
)
from medals_serve.jobs import MEDIA_TYPES, JobRequest, ServedJob, option_defaults
from medals_serve.metrics import Metrics
from medals_serve.problems import MEDIA_TYPE, ServiceError, not_found, problem
from medals_serve.readers import Readers
from medals_serve.schemas import (
    Form,
    ImageState,
    JobBody,
    JobList,
    JobState,
    MaskState,
    ModelState,
    ProblemState,
    PromptsState,
    SessionContent,
    SessionState,
    Table,
)
from medals_serve.security import (
    SAFE_METHODS,
    SESSION_COOKIE,
    Gate,
    cookies_of,
    log_failure,
    problem_response,
    set_cookie,
)
from medals_serve.sessions import ClientSession, Sessions, remove_folder
from medals_serve.settings import ServeSettings

PAGE: Final = Path(__file__).parent / "page"
POLL_S: Final = 0.2
"""How often a job is looked at for its watchers."""

BEAT_S: Final = 15.0
"""Pause after which watchers are sent a line that says nothing, so that proxies keep the line."""

SWEEP_S: Final = 5.0

_T = TypeVar("_T")
_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    "default": {"model": ProblemState, "description": "A problem (RFC 9457)"}
}


@dataclass(eq=False)
class Service:
    """What the routes of one server share."""

    settings: ServeSettings
    options: RunOptions
    engine: Engine
    segmenter: Segmenter
    sessions: Sessions
    readers: Readers
    cases: CaseCache
    catalog: Catalog
    metrics: Metrics

    def end_session(self, session: ClientSession) -> None:
        """End a session and forget its images."""
        self.sessions.end(session)
        for image in session.images.values():
            self.cases.forget(image)


def create_app(
    settings: ServeSettings, options: RunOptions, engine: Engine, metrics: Metrics
) -> FastAPI:
    """Make the application of an engine that was started.

    Parameters
    ----------
    settings
        Limits.
    options
        What a job that says nothing gets.
    engine
        Runs the jobs; it is stopped by whoever started it.
    metrics
        The engine's.
    """
    segmenter = engine.start()
    service = Service(
        settings,
        options,
        engine,
        segmenter,
        Sessions(settings),
        Readers(settings, metrics),
        CaseCache(settings.cases_bytes, settings.max_voxels),
        Catalog(segmenter.bundle),
        metrics,
    )
    metrics.watch(
        {
            "medals_jobs_waiting": lambda: engine.jobs_waiting,
            "medals_jobs_running": lambda: engine.jobs_running,
            "medals_sessions": lambda: len(service.sessions),
            "medals_disk_bytes": lambda: service.sessions.bytes,
            "medals_cases_bytes": lambda: service.cases.bytes,
        }
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(_sweep(service))
        try:
            yield
        finally:
            sweeping.cancel()
            await anyio.to_thread.run_sync(service.sessions.close)
            await anyio.to_thread.run_sync(service.readers.close)

    app = FastAPI(
        title="medals-rt",
        version=VERSION,
        summary="Segment 3D medical images by text.",
        description=segmenter.bundle.notice or "",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        openapi_url="/v1/openapi.json",
        lifespan=lifespan,
        responses=_ERRORS,
    )
    app.state.service = service
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    _add_watching(app, service)
    _add_model(app, service)
    _add_sessions(app, service)
    _add_images(app, service)
    _add_jobs(app, service)
    if PAGE.is_dir():
        app.mount("/page", StaticFiles(directory=PAGE), name="page")
    app.add_middleware(Gate, settings=settings, metrics=metrics)
    return app


async def _sweep(service: Service) -> None:
    """End idle sessions, now and then."""
    while True:
        await asyncio.sleep(SWEEP_S)
        try:
            await anyio.to_thread.run_sync(service.sessions.end_idle)
        except OSError as error:
            log_failure(error)


# Errors -------------------------------------------------------------------------------------------


async def _on_known(_: Request, error: Exception) -> Response:
    log_failure(error)
    return problem_response(error)


async def _on_http(_: Request, error: Exception) -> Response:
    """Answer with what the framework raised; sometimes that hides an error of ours."""
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


async def _on_invalid(_: Request, error: Exception) -> Response:
    """Answer to a request that doesn't fit its description, in one line."""
    if not isinstance(error, RequestValidationError):
        raise error
    found = []
    for each in error.errors()[:3]:
        place = ".".join(str(part) for part in each["loc"][1:]) or str(each["loc"][0])
        found.append(f"{place}: {each['msg']}")
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    return JSONResponse(
        problem(status, "request-invalid", "; ".join(found)),
        status_code=status,
        media_type=MEDIA_TYPE,
    )


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


# Routes -------------------------------------------------------------------------------------------


def _session(
    request: Request,
    medals_session: Annotated[
        str | None, Header(description="The session's secret; its cookie is accepted as well.")
    ] = None,
) -> ClientSession:
    """Find the session that a request names.

    Raises
    ------
    ServiceError
        It names none.
    """
    secret = medals_session
    if secret is None:
        secret = cookies_of(request.headers).get(SESSION_COOKIE, "")
        browser = "origin" in request.headers or "sec-fetch-site" in request.headers
        if request.method not in SAFE_METHODS and not browser:
            secret = ""  # a page elsewhere could have sent the cookie without either
    service: Service = request.app.state.service
    return service.sessions.find(secret)


Owner = Annotated[ClientSession, Depends(_session)]


async def _in_thread(work: Callable[..., _T], *given: Any) -> _T:
    return await anyio.to_thread.run_sync(work, *given)


def _add_watching(app: FastAPI, service: Service) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        index = PAGE / "index.html"
        if not index.is_file():
            raise not_found("page")
        return FileResponse(index)

    @app.get("/healthz", tags=["watching"], response_class=PlainTextResponse)
    async def health() -> str:
        """Whether the server answers."""
        return "ok\n"

    @app.get("/readyz", tags=["watching"], response_class=PlainTextResponse)
    async def ready() -> Response:
        """Whether jobs are taken."""
        if service.engine.is_ready:
            return PlainTextResponse("ready\n")
        return PlainTextResponse("stopping\n", HTTPStatus.SERVICE_UNAVAILABLE)

    @app.get("/metrics", tags=["watching"], response_class=PlainTextResponse)
    async def measured() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), media_type=figures.MEDIA_TYPE)


def _add_model(app: FastAPI, service: Service) -> None:
    bundle = service.segmenter.bundle
    model = ModelState(
        name=bundle.name,
        hash=bundle.hash,
        version=VERSION,
        notice=bundle.notice,
        arithmetic=service.segmenter.arithmetic,
        free_text=bundle.manifest.text_encoder is not None,
        classes=service.catalog.classes(),
        groups=service.catalog.groups(),
        presets=list(PRESETS),
        default_preset=service.options.segment.preset,
        options={**option_defaults(), **service.options.deciding()["segment"]},
        output_formats=[
            each.endings[0].removeprefix(".") for each in FORMATS if each.write is not None
        ],
        input_endings=list(dict.fromkeys((*ENDINGS, *DICOM_ENDINGS))),
        max_prompts=bundle.manifest.prompt_limit,
        max_upload_bytes=service.settings.max_upload_bytes,
        max_voxels=service.settings.max_voxels,
    )

    @app.get("/v1/model", tags=["model"])
    async def describe_model() -> ModelState:
        """Return the model, its classes, and what a job may ask for."""
        return model

    @app.get("/v1/prompts", tags=["model"])
    async def read_prompts(
        q: Annotated[str, Query(max_length=MAX_TEXT, description="Sentences, one a line.")],
        modality: Modality | None = None,
        kind: Kind = "anatomy",
    ) -> PromptsState:
        """Return how a text is read, as `medals-rt prompts` does, and what may be meant."""
        return PromptsState.model_validate(
            await _in_thread(service.catalog.read, q, kind, modality)
        )


def _add_sessions(app: FastAPI, service: Service) -> None:
    @app.post("/v1/sessions", status_code=HTTPStatus.CREATED, tags=["sessions"])
    async def open_session(request: Request, response: Response) -> SessionState:
        """Open a session; its secret comes in the answer and as a cookie."""
        secret, _ = service.sessions.create()
        set_cookie(response, request.scope, SESSION_COOKIE, secret)
        return SessionState(session=secret, expires_in_s=service.settings.idle_s)

    @app.get("/v1/sessions/current", tags=["sessions"])
    async def look_at_session(owner: Owner) -> SessionContent:
        """Return what this session holds, for a page that was loaded again."""
        return SessionContent(
            expires_in_s=service.settings.idle_s,
            images=[_image_state(image) for image in owner.images.values()],
            jobs=[_job_state(service, job) for job in owner.jobs.values()],
        )

    @app.delete("/v1/sessions/current", status_code=HTTPStatus.NO_CONTENT, tags=["sessions"])
    async def end_session(owner: Owner) -> Response:
        """End this session: its jobs are canceled and all its data removed."""
        await _in_thread(service.end_session, owner)
        answer = Response(status_code=HTTPStatus.NO_CONTENT)
        answer.delete_cookie(SESSION_COOKIE, httponly=True, samesite="strict")
        return answer


_RAW: Final = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def _add_images(app: FastAPI, service: Service) -> None:
    @app.post("/v1/images", status_code=HTTPStatus.CREATED, tags=["images"], openapi_extra=_RAW)
    async def upload_image(
        request: Request,
        owner: Owner,
        filename: Annotated[str, Query(max_length=512, examples=["scan.nii.gz"])],
        series: Annotated[str | None, Query(max_length=128)] = None,
        select: Annotated[list[str] | None, Query(max_length=16)] = None,
    ) -> ImageState:
        """Upload an image as the body, in any format that is read; a DICOM folder as a zip."""
        _check_count(owner.images, service.settings.max_images, "images")
        shown = shown_name(filename, "image")
        name = secrets.token_hex(8)
        folder = owner.folder / name
        path = folder / stored_name(shown)
        async with _stored(request, service, owner, path) as size:
            found = await _in_thread(
                lambda: service.readers.read(
                    "image", path, shown, series=series, select=tuple(select or ())
                )
            )
            image = ServedImage(name, path, shown, size, found, series, tuple(select or ()))
            _check_open(owner)
            owner.images[name] = image
        return _image_state(image)

    @app.get("/v1/images/{image}", tags=["images"])
    async def describe_image(image: str, owner: Owner) -> ImageState:
        """Return what an image is."""
        return _image_state(owner.image(image))

    @app.get("/v1/images/{image}/volume.nii.gz", tags=["images"], response_class=FileResponse)
    async def show_image(image: str, owner: Owner) -> Response:
        """Return an image for display: NIfTI with the scan's affine."""
        found = owner.image(image)
        path = found.path.with_name("volume.nii.gz")

        def make() -> None:
            with found.writing:
                if not path.exists():
                    volume = service.cases.case(found).volume
                    _write(service, owner, path, lambda: write_volume(path, volume))

        await _in_thread(make)
        return _file(path, f"{shown_name(found.shown, 'image')}.display.nii.gz")

    @app.delete("/v1/images/{image}", status_code=HTTPStatus.NO_CONTENT, tags=["images"])
    async def delete_image(image: str, owner: Owner) -> Response:
        """Delete an image with its masks and jobs."""
        found = owner.image(image)
        await _in_thread(_delete_image, service, owner, found)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    @app.post("/v1/masks", status_code=HTTPStatus.CREATED, tags=["images"], openapi_extra=_RAW)
    async def upload_mask(
        request: Request,
        owner: Owner,
        image: Annotated[str, Query(max_length=64)],
        filename: Annotated[str, Query(max_length=512, examples=["drawing.nii.gz"])],
    ) -> MaskState:
        """Upload labels drawn on an image, on its grid, as the body."""
        found = owner.image(image)
        _check_count(owner.masks, service.settings.max_masks, "masks")
        shown = shown_name(filename, "mask")
        name = secrets.token_hex(8)
        path = found.path.parent / name / stored_name(shown, labels=True)

        def check() -> tuple[int, ...]:
            labels = service.readers.read("labels", path, shown)["labels"]
            read_annotation(path, service.cases.case(found).volume)
            return tuple(labels)

        async with _stored(request, service, owner, path) as size:
            mask = ServedMask(name, found.name, path, size, await _in_thread(check))
            _check_open(owner)
            owner.image(image)
            owner.masks[name] = mask
        return MaskState(mask=name, image=mask.image, labels=list(mask.labels))


def _add_jobs(app: FastAPI, service: Service) -> None:
    @app.post("/v1/jobs", status_code=HTTPStatus.ACCEPTED, tags=["jobs"])
    async def submit(body: JobBody, owner: Owner) -> JobState:
        """Ask for a segmentation; all that can be wrong with it is found before it waits."""
        image = owner.image(body.image)
        mask = None if body.spatial_prompts is None else owner.mask(body.spatial_prompts)
        if mask is not None and mask.image != image.name:
            raise not_found("mask")
        _check_count(owner.jobs, service.settings.max_jobs, "jobs")
        active = sum(not job.is_over for job in owner.jobs.values())
        if active >= service.settings.max_active_jobs:
            raise ServiceError(
                f"{active} jobs of this session wait or run already; wait for one, or cancel it",
                code="too-many-jobs",
                status=HTTPStatus.TOO_MANY_REQUESTS,
                retry_after_s=10,
            )
        service.engine.check_room()
        name = secrets.token_hex(8)
        folder = image.path.parent / name
        asked = JobRequest(body.prompts, body.modality, body.options)

        def make() -> ServedJob:
            folder.mkdir(mode=0o700)
            try:
                job = asked.job(folder, image, mask, service.options)
                served = ServedJob(name, image, job, service.cases, service.settings.job_s)
                served.prepare()
            except BaseException:
                remove_folder(folder)
                raise
            return served

        job = await _in_thread(make)
        _check_open(owner)
        try:
            service.engine.submit(job)
        except ServiceError:
            remove_folder(folder)
            raise
        owner.jobs[name] = job
        return _job_state(service, job)

    @app.get("/v1/jobs", tags=["jobs"])
    async def list_jobs(owner: Owner) -> JobList:
        """Return all jobs of this session."""
        return JobList(jobs=[_job_state(service, job) for job in owner.jobs.values()])

    @app.get("/v1/jobs/{job}", tags=["jobs"])
    async def describe_job(job: str, owner: Owner) -> JobState:
        """Return how far a job is."""
        return _job_state(service, owner.job(job))

    @app.get("/v1/jobs/{job}/events", tags=["jobs"], response_class=StreamingResponse)
    async def watch_job(job: str, owner: Owner) -> Response:
        """Return server-sent events `progress`, each the job's state, until it is over."""
        return StreamingResponse(
            _events(service, owner, owner.job(job)), media_type="text/event-stream"
        )

    @app.post("/v1/jobs/{job}/cancel", tags=["jobs"])
    async def cancel_job(job: str, owner: Owner) -> JobState:
        """Cancel a job: at once while it waits, with the next window while it runs."""
        found = owner.job(job)
        found.cancel()
        return _job_state(service, found)

    @app.get("/v1/jobs/{job}/result", tags=["jobs"], response_class=FileResponse)
    async def download_labels(
        job: str,
        owner: Owner,
        format: Annotated[str, Query(max_length=32)] = "nii.gz",  # noqa: A002
    ) -> Response:
        """Return the labels, in one of the image's `output_formats`, on the scan's own grid."""
        found = owner.job(job)
        return await _made(service, owner, found, lambda: found.labels(format))

    @app.get("/v1/jobs/{job}/instances", tags=["jobs"], response_class=FileResponse)
    async def download_instances(job: str, owner: Owner) -> Response:
        """Return the numbered lesions as NIfTI."""
        found = owner.job(job)
        return await _made(service, owner, found, found.instances)

    @app.get("/v1/jobs/{job}/statistics", tags=["jobs"], response_class=FileResponse)
    async def download_statistics(
        job: str,
        owner: Owner,
        format: Form = "json",  # noqa: A002
        table: Table = "classes",
    ) -> Response:
        """Return volume, intensity and position of each class, or of each lesion."""
        found = owner.job(job)
        return await _made(service, owner, found, lambda: found.statistics(format, table))

    @app.get("/v1/jobs/{job}/report", tags=["jobs"], response_class=FileResponse)
    async def download_report(job: str, owner: Owner) -> Response:
        """Return the report: everything that is needed to repeat and to judge the result."""
        found = owner.job(job)
        return await _made(service, owner, found, found.report)

    @app.get("/v1/jobs/{job}/preview.png", tags=["jobs"], response_class=FileResponse)
    async def download_preview(job: str, owner: Owner) -> Response:
        """Return a picture of the labels in three planes."""
        found = owner.job(job)
        return await _made(service, owner, found, found.preview)


# Parts of routes ----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _stored(
    request: Request, service: Service, owner: ClientSession, path: Path
) -> AsyncIterator[int]:
    """Write a request's body to a file whose folder goes again if the block fails."""
    path.parent.mkdir(mode=0o700)
    held = 0
    try:
        async with await anyio.open_file(path, "xb") as file:
            async for chunk in request.stream():
                service.sessions.reserve(owner, len(chunk))
                held += len(chunk)
                await file.write(chunk)
        service.metrics.count("medals_uploaded_bytes_total", held)
        yield held
    except BaseException as error:
        remove_folder(path.parent)
        service.sessions.release(owner, held)
        if isinstance(error, OSError) and not isinstance(error, MedalsError):
            reason = error.strerror or type(error).__name__
            raise OutputError(
                f"the upload can't be stored: {reason}; try again later", code="upload-not-stored"
            ) from error
        raise


def _write(service: Service, owner: ClientSession, path: Path, write: Callable[[], None]) -> None:
    """Write a file of a session and account for it."""
    write()
    size = path.stat().st_size
    try:
        service.sessions.reserve(owner, size)
    except ServiceError:
        path.unlink(missing_ok=True)
        raise


async def _made(
    service: Service, owner: ClientSession, job: ServedJob, make: Callable[[], Path]
) -> Response:
    """Make a file of a job and send it."""
    path = await _in_thread(make)
    return _file(path, job.download_name(path))


def _file(path: Path, name: str) -> Response:
    quoted = quote(name, safe="")
    return FileResponse(
        path,
        media_type=MEDIA_TYPES.get(path.suffix, "application/octet-stream"),
        headers={"Content-Disposition": f"attachment; filename*=UTF-8''{quoted}"},
    )


def _check_count(known: dict[str, Any], most: int, what: str) -> None:
    """Refuse more of a kind than a session may have."""
    if len(known) >= most:
        raise ServiceError(
            f"a session may have {most} {what}; delete an image, or open another session",
            code=f"too-many-{what}",
            status=HTTPStatus.TOO_MANY_REQUESTS,
            retry_after_s=30,
        )


def _check_open(owner: ClientSession) -> None:
    """Refuse to go on where the session ended meanwhile."""
    if owner.ended:
        raise not_found("session")


def _delete_image(service: Service, owner: ClientSession, image: ServedImage) -> None:
    owner.images.pop(image.name, None)
    for job in [each for each in owner.jobs.values() if each.image is image]:
        job.cancel()
        owner.jobs.pop(job.name, None)
    for mask in [each for each in owner.masks.values() if each.image == image.name]:
        owner.masks.pop(mask.name, None)
    held = sum(file.stat().st_size for file in image.path.parent.rglob("*") if file.is_file())
    remove_folder(image.path.parent)
    service.cases.forget(image)
    service.sessions.release(owner, min(held, owner.bytes))


def _image_state(image: ServedImage) -> ImageState:
    return ImageState(
        image=image.name, filename=image.shown, size_bytes=image.size_bytes, **image.found
    )


def _job_state(service: Service, job: ServedJob) -> JobState:
    return JobState.model_validate(job.state(service.engine.position(job)))


async def _events(service: Service, owner: ClientSession, job: ServedJob) -> AsyncIterator[str]:
    """Send a job's state whenever it changed, the present one first."""
    seen, quiet = -1, 0.0
    while True:
        version, over = job.version, job.is_over
        if version != seen:
            seen, quiet = version, 0.0
            state = _job_state(service, job)
            yield f"event: progress\ndata: {state.model_dump_json()}\n\n"
        elif quiet >= BEAT_S:
            quiet = 0.0
            yield ": still here\n\n"
        if over:
            return
        await asyncio.sleep(POLL_S)
        quiet += POLL_S
