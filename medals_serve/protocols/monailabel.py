"""MONAI Label's protocol, as 3D Slicer's module and its Python client speak it.

An image is sent into a session, whose id is the secret of one here. What to segment is typed into
the options of the model; a second model takes what was drawn (hybrid mode). A request for labels is
answered when they are there, and its job canceled when its client is gone: the protocol has neither
progress nor cancel. There is no store of images, and nothing is trained.

OHIF's extension opens no session: it names a series of an archive, which is fetched from there
where the server was told of one. It names labels by their values among those of the model, so that
each class has a value of its own there.

Slicer names the labels that a file holds in the order of their values, so that the answer names
those that are there and no others.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import anyio
import numpy as np
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.background import BackgroundTask
from starlette.responses import Response

from medals_rt.common.choices import KINDS, MODALITIES
from medals_rt.common.distribution import VERSION
from medals_rt.common.errors import CaseError, PromptError
from medals_rt.common.optional_deps import import_optional
from medals_rt.io.dicom.web import save_series
from medals_rt.pipeline.job_inputs import read_annotation
from medals_serve.catalog import sentences_in
from medals_serve.images import ServedImage, ServedMask
from medals_serve.job_requests import JobRequest
from medals_serve.jobs import ServedJob
from medals_serve.problems import ServiceError, not_found
from medals_serve.protocols.masks import drop_mask, write_mask
from medals_serve.protocols.multipart import FormPart, parts_of
from medals_serve.protocols.sessions import check_done, new_session, session_of, wait_for
from medals_serve.routes import Here
from medals_serve.security import same_token, token_in
from medals_serve.service import Service
from medals_serve.sessions import ClientSession
from medals_serve.strict_json import read_json

TEXT_MODEL: Final = "medal-s"
HYBRID_MODEL: Final = "medal-s-hybrid"
_FOREGROUND: Final = "foreground_scribbles"
_UNKNOWN_MODALITY: Final = "as the image says"
_ENDINGS: Final = {".nrrd": "seg.nrrd", ".seg.nrrd": "seg.nrrd", ".nii.gz": "nii.gz"}
"""Formats of results by what clients call them; a reader of NRRD reads segments as well."""

router = APIRouter(include_in_schema=False)

UPLOADS: Final = ("/session/", "/infer/{model}")
"""Paths that take files."""


@dataclass(eq=False)
class _Opened:
    """A session's image, and the sentences behind the names of segments that it was sent."""

    image: ServedImage
    sentences: dict[str, str] = field(default_factory=dict)
    of_archive: bool = False


@dataclass(frozen=True)
class _Asked:
    """What a request names."""

    secret: str
    owner: ClientSession
    state: _Opened


async def _of_session(session_id: str, service: Here) -> AsyncIterator[_Asked]:
    owner, state = session_of(service, session_id, _Opened, what="session")
    with owner.in_use():
        yield _Asked(session_id, owner, state)


# The server ---------------------------------------------------------------------------------------


@router.get("/info/")
async def describe_server(service: Here) -> dict[str, Any]:
    """Return the models and their options."""
    bundle = service.segmenter.bundle
    said = service.options.reading.modality
    modalities = [said] if said else [_UNKNOWN_MODALITY]
    modalities += [each for each in MODALITIES if each not in modalities]
    options = {"modality": modalities, "kind": list(KINDS)}
    common = {"labels": [], "dimension": 3}
    return {
        "name": f"medals-rt, {bundle.name}",
        "description": bundle.notice or "Segments what a text names",
        "version": VERSION,
        "labels": [],  # Slicer would make a segment of each
        "models": {
            TEXT_MODEL: {
                **common,
                "labels": _values_of_classes(service),
                "type": "segmentation",
                "description": "Type what to segment into the option 'prompts', between semicolons",
                "config": {"prompts": "", **options},
            },
            HYBRID_MODEL: {
                **common,
                "type": "scribbles",
                "description": "Segments the chosen label again, guided by what is drawn of it",
                "config": options,
            },
        },
        "trainers": {},
        "strategies": {},
        "scoring": {},
        "train_stats": {},
        "datastore": {},
    }


def _values_of_classes(service: Service) -> dict[str, int]:
    """Return each class's value in labels of images of the archive; nothing where there is none."""
    if service.settings.studies is None:
        return {}
    names = sorted({str(each["name"]) for each in service.catalog.classes()})
    return {name: value for value, name in enumerate(names, 1)}


@router.get("/auth/")
async def describe_login(service: Here) -> dict[str, Any]:
    """Return whether a token is demanded; clients then ask for a user and a password."""
    return {"enabled": service.settings.token is not None}


@router.post("/auth/token")
async def log_in(request: Request, service: Here) -> dict[str, Any]:
    """Take the token as the password of any user."""
    given = token_in(await request.body(), "password")
    token = service.settings.token
    if token is None or not same_token(given, token):
        raise ServiceError(
            "the password is not this server's token",
            code="token-wrong",
            status=HTTPStatus.UNAUTHORIZED,
        )
    return {"access_token": token, "token_type": "bearer"}


@router.get("/auth/token/valid")
async def check_login() -> dict[str, Any]:
    """Say that the token is right, which every request needs."""
    return {"valid": True}


@router.get("/datastore/")
async def list_images() -> dict[str, Any]:
    """Return that there are no images but those of sessions."""
    return {"objects": {}}


@router.put("/datastore/")
@router.put("/datastore/label")
async def refuse_to_store() -> None:
    """Refuse to keep images and labels.

    Raises
    ------
    ServiceError
    """
    raise ServiceError(
        "this server keeps no images and no labels; save them where you are",
        code="no-datastore",
        status=HTTPStatus.NOT_IMPLEMENTED,
    )


# Sessions -----------------------------------------------------------------------------------------


@router.put("/session/")
async def create_session(request: Request, service: Here) -> dict[str, Any]:
    """Open a session with an image."""
    with new_session(service) as (secret, owner):
        async for part in parts_of(request):
            if part.filename is None:
                continue
            if owner.state is not None:
                raise CaseError(
                    "several files were sent; send one, a DICOM folder as a zip",
                    code="several-files",
                )
            owner.state = _Opened(await _add_image(service, owner, part))
        if owner.state is None:
            raise _no_image()
    return {"session_id": secret, "session_info": _session_info(service, secret)}


@router.get("/session/{session_id}")
async def describe_session(
    asked: Annotated[_Asked, Depends(_of_session)], service: Here
) -> dict[str, Any]:
    """Return that a session is there."""
    return _session_info(service, asked.secret)


@router.delete("/session/{session_id}")
async def end_session(
    asked: Annotated[_Asked, Depends(_of_session)], service: Here
) -> dict[str, Any]:
    """End a session and remove its data."""
    await service.in_passing(service.end_session, asked.owner)
    return _session_info(service, asked.secret)


def _session_info(service: Service, secret: str) -> dict[str, Any]:
    return {"name": secret, "expiry": service.settings.idle_s}


async def _add_image(service: Service, owner: ClientSession, part: FormPart) -> ServedImage:
    return await service.add_image(part.body, owner, part.filename or "image", None, ())


# Segmentation -------------------------------------------------------------------------------------


@router.post("/infer/{model}")
async def infer(
    request: Request,
    service: Here,
    model: Literal["medal-s", "medal-s-hybrid"],
    session_id: Annotated[str, Query(max_length=128)] = "",
    image: Annotated[str, Query(max_length=128)] = "",
    output: Literal["image", "json", "all", "dicom_seg"] = "all",
) -> Response:
    """Segment the image of a session, one that is sent along, or a series of the archive."""
    if output == "dicom_seg":
        raise CaseError(
            "DICOM results are to be had under /v1; ask for image", code="output-not-offered"
        )
    if session_id:
        owner, state = session_of(service, session_id, _Opened, what="session")
        with owner.in_use():
            return await _infer(request, service, _Asker(owner, state), model, output)
    with new_session(service) as (_, owner):
        answer = await _infer(request, service, _Asker(owner, None, image), model, output)
    answer.background = BackgroundTask(service.in_passing, service.end_session, owner)
    return answer


@dataclass(frozen=True)
class _Asker:
    """Who asks, and about what: an image that is there, or a series of the archive."""

    owner: ClientSession
    state: _Opened | None
    series: str = ""


async def _infer(
    request: Request, service: Service, asker: _Asker, model: str, output: str
) -> Response:
    owner = asker.owner
    with ExitStack() as drawings:  # they go when the job is over, or refused
        params, state, drawn = await _sent(request, service, asker, drawings)
        asked, mask = await _asked(service, owner, state, params, drawn, model)
        if mask is not None:
            drawings.callback(drop_mask, service, owner, mask)
        job = await service.add_job(owner, state.image, asked, mask=mask)
        try:
            if state.of_archive:
                _check_values(service, job)
            await wait_for(request, job)
            check_done(job)
            ending = _ENDINGS.get(str(params.get("result_extension")), "nii.gz")
            path = await service.made(owner, job, job.files.labels(ending))
            if state.of_archive and ending == "seg.nrrd":
                path = await service.in_thread(_with_values_of_classes, service, owner, job, path)
        except BaseException:
            service.delete_job(owner, job)
            raise
    answer = _answer(job, state, path, output)
    answer.background = BackgroundTask(service.in_passing, service.delete_job, owner, job)
    return answer


async def _sent(
    request: Request, service: Service, asker: _Asker, drawings: ExitStack
) -> tuple[dict[str, Any], _Opened, ServedMask | None]:
    """Read what was sent: the options, the image, and what was drawn."""
    owner, state = asker.owner, asker.state
    params: dict[str, Any] = {}
    drawn: ServedMask | None = None
    async for part in parts_of(request):
        if part.name == "params":
            params = _params(await part.text())
        elif part.name == "file" and state is None:
            state = _Opened(await _add_image(service, owner, part))
        elif part.name == "label" and part.filename is not None:
            if state is None:
                raise _no_image()
            drawn = await service.add_mask(part.body, owner, state.image, part.filename)
            drawings.callback(drop_mask, service, owner, drawn)
    if state is None and asker.series and service.settings.studies is not None:
        state = await _of_archive(service, owner, asker.series, service.settings.studies)
    if state is None:
        raise _no_image()
    return params, state, drawn


async def _of_archive(service: Service, owner: ClientSession, series: str, studies: str) -> _Opened:
    """Fetch a series of the archive, in a thread that keeps nobody else's work waiting."""
    fetched = owner.folder / f"{secrets.token_hex(8)}.zip"
    try:
        await anyio.to_thread.run_sync(
            lambda: save_series(
                series, studies, fetched, max_bytes=service.settings.max_upload_bytes
            )
        )
        image = await service.add_written_image(
            owner, "series.zip", lambda path: _move(fetched, path)
        )
    finally:
        fetched.unlink(missing_ok=True)
    return _Opened(image, of_archive=True)


def _move(source: Path, target: Path) -> None:
    shutil.move(source, target)


def _check_values(service: Service, job: ServedJob) -> None:
    """Refuse classes that have no value among those of the model: OHIF would not show them.

    Raises
    ------
    PromptError
    """
    known = _values_of_classes(service)
    others = [key.name for key in job.class_keys if key.name not in known]
    if others:
        raise PromptError(
            f"OHIF shows the model's own classes only, and not {', '.join(others)}; ask for one "
            "of those that it lists, or use another client",
            code="class-not-listed",
        )


def _with_values_of_classes(
    service: Service, owner: ClientSession, job: ServedJob, path: Path
) -> Path:
    """Write labels again, each class with its value among those of the model, uncompressed."""
    nrrd = import_optional("pynrrd", "labels for OHIF")
    values = _values_of_classes(service)
    labels, header = nrrd.read(str(path))
    table = np.zeros(int(labels.max()) + 1, np.uint8)
    for each in job.state(None)["classes"]:
        if each["label"] < len(table):
            table[each["label"]] = values[each["name"]]
    places = ("space", "space directions", "space origin")
    kept = {name: header[name] for name in places}
    written = path.with_name(f"classes-{path.name}")
    nrrd.write(str(written), table[labels], {**kept, "encoding": "raw"})
    service.sessions.keep(owner, written)
    return written


def _params(text: str) -> dict[str, Any]:
    try:
        params = read_json(text or "{}")
    except json.JSONDecodeError:
        params = None
    if not isinstance(params, dict):
        raise CaseError("the params are no JSON object", code="params-invalid")
    return params


async def _asked(
    service: Service,
    owner: ClientSession,
    state: _Opened,
    params: Mapping[str, Any],
    drawn: ServedMask | None,
    model: str,
) -> tuple[JobRequest, ServedMask | None]:
    """Read what a job is asked for, and make the mask of it."""
    modality = params.get("modality")
    modality = modality if modality in MODALITIES else None
    kind = params.get("kind")
    options = {"kind": kind} if kind in KINDS else {}
    if model == TEXT_MODEL:
        prompts = _prompts(params.get("prompts"))
        if not prompts:
            raise PromptError(
                "nothing is asked for; type what to segment into the option 'prompts' of the model "
                f"{TEXT_MODEL}",
                code="no-prompts",
            )
        return JobRequest(prompts, modality, options), None
    name = params.get("selected_label_name")
    if drawn is None or not isinstance(name, str):
        raise CaseError("nothing was drawn; choose a label and paint some of it", code="no-drawing")
    mask = await service.in_thread(_chosen_mask, service, owner, state, params, drawn)
    return JobRequest([state.sentences.get(name, name)], modality, options), mask


def _prompts(given: Any) -> list[str]:
    texts = given if isinstance(given, list) else [given]
    return [each for text in texts if isinstance(text, str) for each in sentences_in(text)]


def _chosen_mask(
    service: Service,
    owner: ClientSession,
    state: _Opened,
    params: Mapping[str, Any],
    drawn: ServedMask,
) -> ServedMask:
    """Make a mask of the chosen label and the scribbles in the foreground: label 1."""
    infos = params.get("label_info")
    ids = {
        each.get("name"): each.get("id")
        for each in (infos if isinstance(infos, list) else [])
        if isinstance(each, dict) and isinstance(each.get("name"), str)
    }
    wanted = [ids.get(params["selected_label_name"]), ids.get(_FOREGROUND)]
    volume = service.cases.case(state.image).volume
    labels_dhw, _ = read_annotation(drawn.upload.path, volume)
    mask_dhw = np.isin(labels_dhw, [each for each in wanted if isinstance(each, int)])
    if not mask_dhw.any():
        raise CaseError("nothing is drawn of the chosen label; paint some of it", code="no-drawing")
    return write_mask(service, owner, state.image, np.asarray(volume.restore(mask_dhw)))


def _answer(job: ServedJob, state: _Opened, path: Path, output: str) -> Response:
    result = job.state(None)
    there = [each for each in result["classes"] if each["voxels"]]
    names = [each["name"] for each in there]
    shown = {
        each["name"] if names.count(each["name"]) == 1 else each["sentence"]: each for each in there
    }
    state.sentences.update({name: each["sentence"] for name, each in shown.items()})
    params = {
        "label_names": {name: each["label"] for name, each in shown.items()},
        "not_found": [each["sentence"] for each in result["classes"] if not each["voxels"]],
        "classes": result["classes"],
        "notes": result["notes"],
        "incomplete": result["incomplete"],
    }
    if output == "json":
        return JSONResponse(params)
    ending = ".nrrd" if path.suffix == ".nrrd" else ".nii.gz"
    if output == "image":
        return FileResponse(path, media_type="application/octet-stream", filename=f"label{ending}")
    boundary = secrets.token_hex(16)
    part = f"--{boundary}\r\nContent-Disposition: form-data; name="
    head = (
        f'{part}"params"\r\nContent-Type: application/json\r\n\r\n{json.dumps(params)}\r\n'
        f'{part}"image"; filename="label-{job.name}{ending}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    tail = f"\r\n--{boundary}--\r\n".encode()
    length = len(head) + path.stat().st_size + len(tail)
    return StreamingResponse(
        _around(head, path, tail),
        media_type=f"multipart/form-data; boundary={boundary}",
        headers={"Content-Length": str(length)},  # clients don't expect chunks
    )


def _around(head: bytes, path: Path, tail: bytes) -> Iterator[bytes]:
    yield head
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            yield chunk
    yield tail


def _no_image() -> ServiceError:
    return not_found("image")
