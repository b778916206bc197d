"""nnInteractive's protocol, version 2: a mask and scribbles guide one class (hybrid mode).

The protocol has no text: the class is named by the address that clients are given,
``/nninteractive/CT/anatomy/liver``. It has no orientation either, so that classes of one side are
refused, and axes `(z, y, x)` are taken to run to head, back and left. A lease is a session, its
token the session's secret. Clients show the messages of 410 (the lease is over) and 503 alone:
whatever is refused is answered so.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.responses import Response

from medals_rt.common.arrays import bounding_box, box_slices
from medals_rt.common.choices import Kind, Modality
from medals_rt.common.errors import CaseError, MedalsError, PromptError
from medals_rt.common.optional_deps import import_optional
from medals_rt.prompts.matching import find_class
from medals_serve.catalog import sentence_of
from medals_serve.images import ServedImage, ServedMask, displayed
from medals_serve.job_requests import JobRequest
from medals_serve.jobs import ServedJob
from medals_serve.problems import ServiceError
from medals_serve.protocols import frames
from medals_serve.protocols.masks import drop_mask, write_mask
from medals_serve.protocols.sessions import check_done, new_session, session_of, wait_for
from medals_serve.routes import POLL_S, Here
from medals_serve.service import Service
from medals_serve.sessions import ClientSession
from medals_serve.strict_json import StrictRoute, read_json

Mask = npt.NDArray[np.bool_]

PATIENCE_S: Final = 40.0
"""After which an answer begins before there is a result."""

TRICKLE_S: Final = 20.0
"""Between the bytes that keep a client waiting."""

_MOST_UNDONE: Final = 16
_SIDES: Final = frozenset({"left", "right"})


class _ShownRoute(StrictRoute):
    """Answers with what clients show."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, with other errors."""
        handle = super().get_route_handler()

        async def shown(request: Request) -> Response:
            try:
                return await handle(request)
            except MedalsError as error:
                if isinstance(error, ServiceError) and error.status == HTTPStatus.GONE:
                    raise
                raise ServiceError(
                    str(error),
                    code=error.code,
                    status=HTTPStatus.SERVICE_UNAVAILABLE,
                    headers=error.headers if isinstance(error, ServiceError) else None,
                ) from error

        return shown


router = APIRouter(
    prefix="/nninteractive/{modality}/{kind}/{name}",
    include_in_schema=False,
    route_class=_ShownRoute,
)

UPLOADS: Final = tuple(
    f"{router.prefix}/{name}"
    for name in (
        "set_image",
        "add_lasso_interaction",
        "add_scribble_interaction",
        "add_initial_seg_interaction",
    )
)
"""Paths that take files."""


@dataclass(frozen=True)
class _Drawing:
    """What guides the next run and what the client sees, `(z, y, x)`, both compressed.

    `job` is the one whose result is seen, if it is one's: what is drawn then corrects it. Nothing
    drawn is no bytes.
    """

    guide: bytes = b""
    shown: bytes = b""
    job: ServedJob | None = None


@dataclass(eq=False)
class _Lease:
    """What is kept of a lease; `masks` are those that guided jobs which may be corrected yet."""

    sentence: str
    kind: str
    image: ServedImage | None = None
    shape_zyx: tuple[int, ...] = ()
    drawing: _Drawing | None = None
    before: list[_Drawing] = field(default_factory=list)
    masks: list[ServedMask] = field(default_factory=list)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def draw(self, drawing: _Drawing) -> None:
        """Take a drawing that can be undone."""
        self.before.append(self.drawing or _Drawing())
        del self.before[:-_MOST_UNDONE]
        self.drawing = drawing

    @property
    def jobs(self) -> set[ServedJob]:
        """Those whose results can be seen again."""
        drawings = [*self.before, *filter(None, [self.drawing])]
        return {each.job for each in drawings if each.job is not None}

    def clear(self) -> None:
        """Forget what was drawn and found."""
        self.drawing = None
        self.before.clear()

    def take_image(self) -> ServedImage | None:
        """Forget the image with all that was drawn on it, and return it."""
        image, self.image = self.image, None
        self.clear()
        self.masks.clear()
        return image

    def seen(self, mask: bytes) -> Mask:
        """Return a mask of a drawing."""
        if not mask:
            return np.zeros(self.shape_zyx, np.bool_)
        bits = np.frombuffer(zlib.decompress(mask), np.uint8)
        size = int(np.prod(self.shape_zyx))
        return np.unpackbits(bits, count=size).view(np.bool_).reshape(self.shape_zyx)


def _packed(mask: Mask) -> bytes:
    return zlib.compress(np.packbits(mask).tobytes(), 1)


@dataclass(frozen=True)
class _Asked:
    """What a request names, in its turn."""

    owner: ClientSession
    lease: _Lease

    @property
    def image(self) -> ServedImage:
        """The image that was sent."""
        if self.lease.image is None:
            raise CaseError("no image was sent; send one first", code="no-image")
        return self.lease.image


async def _of_lease(
    service: Here, x_lease_token: Annotated[str, Header(max_length=128)] = ""
) -> AsyncIterator[_Asked]:
    owner, lease = session_of(service, x_lease_token, _Lease, what="lease", status=HTTPStatus.GONE)
    with owner.in_use():
        async with lease.turn:
            yield _Asked(owner, lease)


Leased = Annotated[_Asked, Depends(_of_lease)]


def _meta(request: Request) -> dict[str, Any]:
    try:
        found = read_json(request.headers.get(frames.META_HEADER, "{}"))
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise CaseError(f"the header {frames.META_HEADER} is no JSON object", code="params-invalid")
    return found


Meta = Annotated[dict[str, Any], Depends(_meta)]

# Leases -------------------------------------------------------------------------------------------


@router.get("/healthz")
async def health() -> dict[str, Any]:
    """Say that the server answers."""
    return {"ok": True}


@router.post("/claim")
async def claim(service: Here, modality: str, kind: str, name: str) -> dict[str, Any]:
    """Open a session for the class that the address names."""
    lease = _Lease(_sentence(service, modality, kind, name), kind)
    with new_session(service) as (secret, owner):
        owner.state = lease
    return {
        "lease_token": secret,
        "idle_timeout_seconds": service.settings.idle_s,
        "liveness_timeout_seconds": 0.0,  # no heartbeats: a session that is not used ends
    }


def _sentence(service: Service, modality: Modality | str, kind: Kind | str, name: str) -> str:
    """Find the class that an address names.

    Raises
    ------
    PromptError
        There is none, or it is one of a side.
    """
    key = find_class(name.replace("_", " "), kind, modality).class_key
    if key.bank_key not in {each["id"] for each in service.catalog.classes()}:
        raise PromptError(f"the model doesn't know {sentence_of(key)}", code="class-not-covered")
    if not _SIDES.isdisjoint(key.name.lower().split()):
        raise PromptError(
            f"{key.name} is a class of one side, and nnInteractive's clients don't say where left "
            "is; use the page or another client",
            code="side-unknown",
        )
    return sentence_of(key)


@router.post("/release")
async def release(asked: Leased, service: Here) -> dict[str, Any]:
    """End a session and remove its data."""
    await service.in_passing(service.end_session, asked.owner)
    return {"ok": True}


@router.post("/heartbeat")
@router.get("/lease_status")
async def lease_status(asked: Leased, service: Here) -> dict[str, Any]:  # noqa: ARG001 - its check
    """Say how long a lease lasts; asking is a use of it."""
    return {
        "remaining_seconds": service.settings.idle_s,
        "idle_timeout_seconds": service.settings.idle_s,
    }


@router.get("/capabilities")
async def capabilities(service: Here) -> dict[str, Any]:
    """Return what clients may offer."""
    return {
        "supported_interactions": {
            "points": False, "bbox": False, "bbox2d": False, "bbox3d": False,
            "scribbles": True, "scribble": True, "lasso": True,
        },
        "channel_mapping": {"initial_seg": 0, "lasso": [1, 2], "scribble": [1, 2]},
        "num_interaction_channels": 3,
        "supports_initial_label": True,
        "supports_zero_shot_label_refinement": True,
        "supports_undo": True,
        "preferred_scribble_thickness": [2, 2, 2],
        "interaction_decay": 1.0,
        "inference_session_version": 2,
        "do_autozoom": False,
        "license": service.segmenter.bundle.notice or "!!MISSING!!",
    }  # fmt: skip


# Images -------------------------------------------------------------------------------------------


@router.post("/set_image")
async def set_image(request: Request, asked: Leased, service: Here) -> dict[str, Any]:
    """Take an image `(1, z, y, x)` with its spacing in the same order, in millimeters.

    The one before goes first: were this one refused, what is drawn next would be found in that, of
    another patient perhaps.
    """
    owner, lease = asked.owner, asked.lease
    if (before := lease.take_image()) is not None:
        await service.in_passing(service.delete_image, owner, before)
    spacing_zyx_mm = _spacing_zyx_mm(_meta(request))
    folder = owner.folder / secrets.token_hex(8)
    async with service.array(request.stream(), owner, folder) as array_path:

        def write(path: Path) -> None:
            _write_image(path, array_path, spacing_zyx_mm)

        lease.image = await service.add_written_image(owner, "image.nii.gz", write)
    lease.shape_zyx = tuple(lease.image.found["shape_dhw"])
    return {"original_image_shape": [1, *lease.shape_zyx]}


def _spacing_zyx_mm(meta: dict[str, Any]) -> npt.NDArray[np.float32]:
    """Read an image's spacing as NIfTI holds it.

    Raises
    ------
    CaseError
    """
    try:
        with np.errstate(over="ignore"):
            spacing = np.array(meta["image_properties"]["spacing"], np.float32)
    except (LookupError, TypeError, ValueError, OverflowError):
        spacing = np.zeros(0, np.float32)
    if spacing.shape != (3,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise CaseError(
            "the image comes without its spacing; send it as image_properties: three lengths in mm",
            code="no-spacing",
        )
    return spacing


def _write_image(path: Path, array_path: Path, spacing_zyx_mm: npt.NDArray[Any]) -> None:
    """Write an image as NIfTI that says its spacing, and not how it lies."""
    nibabel = import_optional("NiBabel", "nnInteractive's images")
    array = np.load(array_path, mmap_mode="r", allow_pickle=False)
    if array.ndim != 4 or array.shape[0] != 1 or not array.size:
        raise CaseError(
            f"the image has the shape {array.shape}; one of (1, z, y, x) is expected",
            code="image-shape",
        )
    image = nibabel.Nifti1Image(displayed(array[0]).transpose(), None)
    image.header.set_zooms(spacing_zyx_mm[::-1])
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


class _BufferBody(BaseModel):
    shape: list[int]


@router.post("/set_target_buffer")
async def set_target_buffer(body: _BufferBody, asked: Leased) -> dict[str, Any]:
    """Check that the client's buffer has the image's shape."""
    _ = asked.image
    if tuple(body.shape) != asked.lease.shape_zyx:
        raise CaseError(
            f"the buffer has the shape {tuple(body.shape)}, the image {asked.lease.shape_zyx}",
            code="shapes-differ",
        )
    return {"ok": True}


@router.post("/set_do_autozoom")
async def set_do_autozoom(asked: Leased) -> dict[str, Any]:  # noqa: ARG001 - its check
    """Pass over an option that has no meaning here."""
    return {"ok": True}


# Interactions -------------------------------------------------------------------------------------


@router.post("/reset_interactions")
async def reset_interactions(asked: Leased, service: Here) -> dict[str, Any]:
    """Forget what was drawn and found."""
    asked.lease.clear()
    await service.in_thread(_forget_jobs, service, asked)
    return {"ok": True}


@router.post("/undo")
async def undo(asked: Leased, service: Here) -> Response:
    """Go back before the last interaction."""
    lease = asked.lease
    if not lease.before:
        return _answer(None, None)
    now = lease.drawing or _Drawing()
    lease.drawing = then = lease.before.pop()
    return await service.in_thread(lambda: _answer(lease.seen(now.shown), lease.seen(then.shown)))


@router.post("/predict")
async def predict(request: Request, asked: Leased, service: Here) -> Response:
    """Run with what was drawn so far."""
    drawing = asked.lease.drawing
    if drawing is None:
        return _answer(None, None)
    return await _predict(request, service, asked, drawing)


@router.post("/add_point_interaction")
@router.post("/add_bbox_interaction")
async def refuse(asked: Leased) -> None:
    """Refuse points and boxes.

    Raises
    ------
    CaseError
    """
    raise CaseError(
        f"{asked.lease.sentence} is found by name, a mask and scribbles; points and boxes have no "
        "meaning here",
        code="interaction-unknown",
    )


@router.post("/add_lasso_interaction")
@router.post("/add_scribble_interaction")
async def add_scribble(request: Request, asked: Leased, service: Here, meta: Meta) -> Response:
    """Add what is drawn to what is seen, or take it away."""
    lease = asked.lease
    now = lease.drawing or _Drawing()

    def changed(drawn: Mask) -> _Drawing:
        guide = lease.seen(now.guide)
        guide = guide | drawn if meta.get("include_interaction", True) else guide & ~drawn
        return replace(now, guide=_packed(guide))

    drawing = await _drawn(request, service, asked, meta.get("interaction_bbox"), changed)
    return await _added(request, service, asked, drawing, meta)


@router.post("/add_initial_seg_interaction")
async def add_initial_mask(request: Request, asked: Leased, service: Here, meta: Meta) -> Response:
    """Take a mask to begin with; the client shows it already."""

    def begun(drawn: Mask) -> _Drawing:
        mask = _packed(drawn)
        return _Drawing(mask, mask)

    drawing = await _drawn(request, service, asked, None, begun)
    return await _added(request, service, asked, drawing, meta)


async def _drawn(
    request: Request,
    service: Service,
    asked: _Asked,
    box: Any,
    drawing_of: Callable[[Mask], _Drawing],
) -> _Drawing:
    """Make a drawing of the mask that is sent."""
    folder = asked.image.folder / secrets.token_hex(8)
    async with service.array(request.stream(), asked.owner, folder) as path:
        return await service.in_thread(
            lambda: drawing_of(_read_mask(path, asked.lease.shape_zyx, box))
        )


def _read_mask(path: Path, shape: tuple[int, ...], box: Any) -> Mask:
    """Read a mask of the image, or of a box of it."""
    part = np.load(path, mmap_mode="r", allow_pickle=False)  # read only where it fits
    if part.shape == shape:
        return np.asarray(part != 0)
    mask = np.zeros(shape, np.bool_)
    try:
        place = tuple(slice(max(0, int(start)), int(stop)) for start, stop in box)
        fits = mask[place].shape == part.shape
    except (TypeError, ValueError, IndexError, OverflowError):
        fits = False
    if not fits:
        raise CaseError(
            f"the drawing has the shape {part.shape}, the image {shape}", code="shapes-differ"
        )
    mask[place] = part != 0
    return mask


async def _added(
    request: Request, service: Service, asked: _Asked, drawing: _Drawing, meta: dict[str, Any]
) -> Response:
    if not meta.get("run_prediction", True):
        asked.lease.draw(drawing)
        return _answer(None, None)
    return await _predict(request, service, asked, drawing)


async def _predict(
    request: Request, service: Service, asked: _Asked, drawing: _Drawing
) -> Response:
    """Segment, guided by a drawing; what the client sees changes if that succeeds."""
    owner, lease = asked.owner, asked.lease
    mask = await service.in_thread(_guide, service, asked, drawing)
    run: _Run | None
    run = _Run(service, asked, drawing, mask)
    try:
        run.job = await service.add_job(
            owner,
            asked.image,
            JobRequest([lease.sentence], None, {"kind": lease.kind}),
            mask=mask,
            corrects=drawing.job,
        )
        if not await wait_for(request, run.job, PATIENCE_S):
            box = [[0, size] for size in lease.shape_zyx]
            content = _slowly(run)
            run = None
            return StreamingResponse(
                content,
                media_type=frames.MEDIA_TYPE,
                headers=_meta_header(ran_prediction=True, bbox=box),
            )
        found = await run.result()
        return await service.in_thread(lambda: _answer(lease.seen(drawing.shown), found))
    finally:
        if run is not None:
            run.end()


@dataclass(eq=False)
class _Run:
    """A job, and what goes with it."""

    service: Service
    asked: _Asked
    drawing: _Drawing
    mask: ServedMask | None
    job: ServedJob | None = None

    async def result(self) -> Mask:
        """Return what was found, once the job is over; from now on the client sees it."""
        if self.job is None:
            raise AssertionError(self.asked.lease.sentence)
        check_done(self.job)
        found, shown = await self.service.in_thread(_found, self.job)
        self.asked.lease.draw(_Drawing(shown, shown, self.job))
        return found

    def end(self) -> None:
        """Remove what can't be seen again: this job, unless it is shown, older ones, masks."""
        if self.mask is not None:
            self.asked.lease.masks.append(self.mask)
        _forget_jobs(self.service, self.asked, self.job)


def _forget_jobs(service: Service, asked: _Asked, ended: ServedJob | None = None) -> None:
    """Remove the jobs whose results can't be seen again, and the masks that guide none."""
    owner, lease = asked.owner, asked.lease
    kept = lease.jobs
    for job in tuple(owner.jobs.values()):
        if job not in kept and (job.is_over or job is ended):
            service.delete_job(owner, job)
    guides = {job.drawing for job in owner.jobs.values()}
    for mask in [each for each in lease.masks if each.upload.path not in guides]:
        lease.masks.remove(mask)
        drop_mask(service, owner, mask)


async def _slowly(run: _Run) -> AsyncIterator[bytes]:
    """Send the whole mask; until it is there, its first bytes now and then.

    Clients give up after 60 seconds without a byte. What fails now ends the connection.
    """
    shape = run.asked.lease.shape_zyx
    first = frames.head(frames.NNINTERACTIVE, shape, np.dtype(np.uint8))
    sent, quiet = 0, 0.0
    try:
        while run.job is not None and not run.job.is_over:
            if quiet >= TRICKLE_S and sent < len(first):
                yield first[sent : sent + 1]
                sent, quiet = sent + 1, 0.0
            await asyncio.sleep(POLL_S)
            quiet += POLL_S
        content = await run.service.in_thread(_content, await run.result())
        yield content[sent:]
    finally:
        run.end()


def _guide(service: Service, asked: _Asked, drawing: _Drawing) -> ServedMask | None:
    """Write the mask that guides a run, or corrects its result; None where nothing does."""
    if drawing.job is not None and drawing.guide == drawing.shown:
        return None
    guide = asked.lease.seen(drawing.guide)
    if drawing.job is None and not guide.any():
        return None
    return write_mask(service, asked.owner, asked.image, guide)


def _found(job: ServedJob) -> tuple[Mask, bytes]:
    """Return what a job found, and the same compressed."""
    found: Mask = job.files.labels_kji() == 1
    return found, _packed(found)


def _content(mask: Mask) -> bytes:
    return b"".join(frames.pack(frames.NNINTERACTIVE, mask.shape, [mask.astype(np.uint8)]))


def _answer(before: Mask | None, after: Mask | None) -> Response:
    """Answer with the box that changed; with nothing where nothing ran."""
    if before is None or after is None:
        return _with_meta({"ran_prediction": False, "bbox": None}, b"")
    box = bounding_box(before != after)
    if box is None:
        return _with_meta({"ran_prediction": True, "bbox": None}, b"")
    content = _content(after[box_slices(box)])
    return _with_meta({"ran_prediction": True, "bbox": list(zip(*box, strict=True))}, content)


def _with_meta(meta: dict[str, Any], content: bytes) -> Response:
    return Response(content, media_type=frames.MEDIA_TYPE, headers=_meta_header(**meta))


def _meta_header(**meta: Any) -> dict[str, str]:
    return {frames.META_HEADER: json.dumps(meta)}
