"""VoxTell's protocol, as `napari-voxtell` speaks it.

The client turns images to the axes right, anterior, superior and reverses their order, `(Z, Y, X)`,
and wants masks so. The id of an image is the secret of a session that holds it alone; that of a
job begins with it. The client shows the messages of a job's events, and of other answers only their
status: a job that is refused becomes one whose events say why.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.responses import Response

from medals_rt.common.errors import CaseError, MedalsError
from medals_rt.common.optional_deps import import_optional
from medals_rt.io.nifti_geometry import RAS_TO_LPS
from medals_rt.io.volume import Volume
from medals_rt.postprocessing.connected_components import measure_components
from medals_serve.images import ServedImage, write_on_grid
from medals_serve.job_requests import JobRequest
from medals_serve.jobs import ServedJob
from medals_serve.protocols import frames
from medals_serve.protocols.sessions import new_session, peek, session_of
from medals_serve.routes import BEAT_S, POLL_S, Here
from medals_serve.service import Service
from medals_serve.sessions import ClientSession
from medals_serve.strict_json import StrictRoute

_GZIP: Final = b"\x1f\x8b"
_AS_IS: Final = np.array([[0, 1], [1, 1], [2, 1]])
"""NiBabel's way to write that axes run to right, anterior and superior."""

router = APIRouter(include_in_schema=False, route_class=StrictRoute)

UPLOADS: Final = ("/images", "/images/{image_id}/export")
"""Paths that take files."""


@dataclass(eq=False)
class _Opened:
    """A session's image, jobs that keep the largest components, and why jobs were refused."""

    image: ServedImage
    largest: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Asked:
    """What a request names."""

    secret: str
    owner: ClientSession
    state: _Opened


async def _of_image(image_id: str, service: Here) -> AsyncIterator[_Asked]:
    owner, state = session_of(service, image_id, _Opened, what="image")
    with owner.in_use():
        yield _Asked(image_id, owner, state)


async def _of_job(job_id: str, service: Here) -> AsyncIterator[tuple[_Asked, str]]:
    secret, _, name = job_id.rpartition(".")
    owner, state = session_of(service, secret, _Opened, what="job")
    if name not in state.refused:
        owner.job(name)
    with owner.in_use():
        yield _Asked(secret, owner, state), name


async def _watching(
    asked: Annotated[tuple[_Asked, str], Depends(_of_job)], service: Here
) -> AsyncIterator[None]:
    with asked[0].owner.watching(service.settings.max_watchers):
        yield


@router.post("/images")
async def upload_image(request: Request, service: Here, include_image: bool = True) -> Response:
    """Take a NIfTI file, gzipped or not; answer with its shape, and the image if asked to."""
    with new_session(service) as (secret, owner):
        first, body = await peek(request.stream())
        name = "image.nii.gz" if first.startswith(_GZIP) else "image.nii"
        image = await service.add_image(body, owner, name, None, ())
        owner.state = _Opened(image)
        meta, content = await service.in_thread(_described, service, image, include_image)
    meta["image_id"] = secret
    headers = {frames.META_HEADER: json.dumps(meta)}
    return Response(content, media_type=frames.MEDIA_TYPE, headers=headers)


class _JobBody(BaseModel):
    image_id: str = Field(max_length=128)
    prompts: list[str]
    keep_largest: bool = False


@router.post("/jobs")
async def start_job(body: _JobBody, service: Here) -> Response:
    """Put a job into the queue."""
    owner, state = session_of(service, body.image_id, _Opened, what="image")
    asked = JobRequest(body.prompts, None, {})
    try:
        with owner.in_use():
            job = await service.add_job(owner, state.image, asked)
    except MedalsError as error:
        if len(state.refused) >= service.settings.max_jobs:
            raise
        name = secrets.token_hex(8)
        state.refused[name] = str(error)
    else:
        name = job.name
        if body.keep_largest:
            state.largest.add(name)
    return JSONResponse({"job_id": f"{body.image_id}.{name}"})


@router.get("/jobs/{job_id}/events", dependencies=[Depends(_watching)])
async def watch_job(asked: Annotated[tuple[_Asked, str], Depends(_of_job)]) -> Response:
    """Send progress, warnings and how the job ended, a line of JSON each."""
    of, name = asked
    if name in of.state.refused:
        lines = _lines_of_refused(of.state.refused[name])
    else:
        lines = _lines(of.owner.job(name))
    return StreamingResponse(lines, media_type="application/x-ndjson")


@router.get("/jobs/{job_id}/result")
async def download_masks(
    asked: Annotated[tuple[_Asked, str], Depends(_of_job)], service: Here
) -> Response:
    """Return a mask for each prompt, `(n, Z, Y, X)` uint8."""
    of, name = asked
    job = of.owner.job(name)
    content = await service.in_thread(_masks, service, job, name in of.state.largest)
    return Response(content, media_type=frames.MEDIA_TYPE)


@router.post("/jobs/{job_id}/cancel")
async def cancel_job(asked: Annotated[tuple[_Asked, str], Depends(_of_job)]) -> Response:
    """Cancel a job: at once while it waits, in the middle of a window while it runs."""
    of, name = asked
    if name not in of.state.refused:
        of.owner.job(name).cancel()
    return JSONResponse({"ok": True})


@router.post("/images/{image_id}/export")
async def export_labels(
    request: Request, asked: Annotated[_Asked, Depends(_of_image)], service: Here
) -> Response:
    """Return a label map `(Z, Y, X)` as NIfTI on the grid of the image's own file."""
    folder = asked.state.image.folder / secrets.token_hex(8)
    async with service.array(request.stream(), asked.owner, folder) as array_path:
        path = folder / "labels.nii.gz"
        content = await service.in_thread(_export, service, asked, array_path, path)
    return Response(content, media_type="application/gzip")


# Progress -----------------------------------------------------------------------------------------


async def _lines(job: ServedJob) -> AsyncIterator[str]:
    seen, quiet = -1, 0.0
    while not job.is_over:
        if job.version != seen:
            seen, quiet = job.version, 0.0
            for line in _progress(job.state(None)):
                yield line
        elif quiet >= BEAT_S:
            quiet = 0.0
            yield "\n"
        await asyncio.sleep(POLL_S)
        quiet += POLL_S
    state = job.state(None)
    if state["status"] == "done":
        for line in _progress(state):
            yield line
        warnings = [note["text"] for note in state["notes"] if note["severity"] == "warning"]
        for text in filter(None, [*warnings, state["incomplete"]]):
            yield _line(
                event="oom_fallback", message=text
            )  # the only warning that the client knows
        yield _line(status="done")
    elif state["status"] == "canceled":
        yield _line(status="cancelled", message=state["problem"]["detail"])
    else:
        yield _line(status="error", message=state["problem"]["detail"])


def _progress(state: dict[str, Any]) -> Iterator[str]:
    if state["windows_total"]:
        yield _line(done=state["windows_done"], total=state["windows_total"])


async def _lines_of_refused(message: str) -> AsyncIterator[str]:
    yield _line(status="error", message=message)


def _line(**content: Any) -> str:
    return json.dumps(content) + "\n"


# Arrays -------------------------------------------------------------------------------------------


def _axes(volume: Volume) -> npt.NDArray[Any]:
    """Say how the axes `(i, j, k)` of a volume's file run, as NiBabel writes it."""
    nibabel = import_optional("NiBabel", "VoxTell's axes")
    return np.asarray(nibabel.io_orientation(RAS_TO_LPS @ volume.affine_lps))


def _turned(array_kji: npt.NDArray[Any], axes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Bring an array from the file's axes to the client's, `(Z, Y, X)`."""
    nibabel = import_optional("NiBabel", "VoxTell's axes")
    turned: npt.NDArray[Any] = nibabel.apply_orientation(array_kji.transpose(), axes)
    return turned.transpose()


def _described(
    service: Service, image: ServedImage, include_image: bool
) -> tuple[dict[str, Any], bytes]:
    volume = service.cases.case(image).volume
    array_zyx = _turned(volume.restore(volume.image_dhw), axes := _axes(volume))
    spacing_ijk_mm = np.linalg.norm(volume.affine_lps[:3, :3], axis=0)
    spacing_xyz_mm = np.empty(3)
    spacing_xyz_mm[axes[:, 0].astype(int)] = spacing_ijk_mm
    meta = {"spacing": spacing_xyz_mm[::-1].tolist(), "shape": list(array_zyx.shape)}
    if not include_image:
        return meta, b""
    return meta, b"".join(frames.pack(frames.VOXTELL, array_zyx.shape, [array_zyx]))


def _masks(service: Service, job: ServedJob, only_largest: bool) -> bytes:
    labels_zyx = _turned(job.files.labels_kji(), _axes(service.cases.case(job.image).volume))
    classes = job.state(None)["classes"]

    def masks() -> Iterator[npt.NDArray[np.uint8]]:
        for each in classes:
            mask = labels_zyx == each["label"]
            if only_largest and mask.any():
                found = measure_components(mask)
                mask = np.asarray(found.numbers == 1 + found.sizes.argmax())
            yield mask.astype(np.uint8)

    return b"".join(frames.pack(frames.VOXTELL, (len(classes), *labels_zyx.shape), masks()))


def _export(service: Service, asked: _Asked, array_path: Path, path: Path) -> bytes:
    nibabel = import_optional("NiBabel", "VoxTell's axes")
    volume = service.cases.case(asked.state.image).volume
    labels_zyx = np.load(array_path, mmap_mode="r", allow_pickle=False)
    axes = _axes(volume)
    shape_ijk = volume.restore(volume.image_dhw).shape[::-1]
    shape_zyx = tuple(shape_ijk[i] for i in np.argsort(axes[:, 0]))[::-1]
    fits = labels_zyx.shape == shape_zyx and labels_zyx.dtype.kind in "biu"
    most = labels_zyx.max() if fits else 0
    if not fits or labels_zyx.min() < 0 or most >= 2**16:
        raise CaseError(
            f"the labels have the shape {labels_zyx.shape} and the type {labels_zyx.dtype}; whole "
            f"numbers from 0 to 65535 in the image's shape {shape_zyx} are expected",
            code="annotation-on-another-grid",
        )
    kind = "uint8" if most < 2**8 else "uint16"
    back = nibabel.orientations.ornt_transform(_AS_IS, axes)
    labels_ijk = nibabel.apply_orientation(np.asarray(labels_zyx).transpose(), back)
    write_on_grid(path, labels_ijk.transpose().astype(kind), volume)
    service.sessions.keep(asked.owner, path)
    return path.read_bytes()
