"""What the routes of one server share, and the work that they have in common."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio

from medals_rt.common.errors import InputError, MedalsError, OutputError
from medals_rt.common.heap import trim_heap
from medals_rt.inference.kept import FeatureCache, default_bytes
from medals_rt.pipeline.options import RunOptions
from medals_rt.pipeline.segmenter import CaseSegmenter
from medals_serve.catalog import Catalog
from medals_serve.engine import JobEngine
from medals_serve.images import (
    CaseCache,
    ServedImage,
    ServedMask,
    Upload,
    shown_name,
    stored_name,
    write_volume,
)
from medals_serve.job_files import JobFile
from medals_serve.job_requests import JobRequest
from medals_serve.jobs import ServedJob
from medals_serve.metrics import Metrics
from medals_serve.problems import SeriesChoiceError, ServiceError, not_found
from medals_serve.protocols import frames
from medals_serve.readers import Readers, with_users_name
from medals_serve.sessions import ClientSession, Sessions, remove_folder
from medals_serve.settings import RETRY_S, ServeSettings

_ARRAY_HEADER_BYTES: Final = 2**12
_PART_BYTES: Final = 2**20
_IN_PASSING: Final = 8
"""Threads for what is small."""

_T = TypeVar("_T")


@dataclass(eq=False)
class Service:
    """Everything that one server has.

    Work on files is done in threads: uploads are read as many at once as there are processes for
    it; what takes the memory of an image is done one after the other; what takes none waits for
    none of that.
    """

    settings: ServeSettings
    options: RunOptions
    engine: JobEngine
    segmenter: CaseSegmenter
    metrics: Metrics
    sessions: Sessions = field(init=False)
    readers: Readers = field(init=False)
    cases: CaseCache = field(init=False)
    features: FeatureCache = field(init=False)
    catalog: Catalog = field(init=False)

    def __post_init__(self) -> None:
        self.sessions = Sessions(self.settings)
        self.readers = Readers(self.settings, self.metrics)
        self.cases = CaseCache(self.settings.cases_bytes, self.settings.max_voxels)
        self.features = FeatureCache(self._cache_bytes())
        self.catalog = Catalog(self.segmenter.bundle)
        self._reading = anyio.CapacityLimiter(self.settings.readers)
        self._working = anyio.CapacityLimiter(1)
        self._passing = anyio.CapacityLimiter(_IN_PASSING)
        self._has_freed = threading.Event()
        self.metrics.watch(
            {
                "medals_jobs_waiting": lambda: self.engine.jobs_waiting,
                "medals_jobs_running": lambda: self.engine.jobs_running,
                "medals_sessions": lambda: len(self.sessions),
                "medals_disk_bytes": lambda: self.sessions.bytes,
                "medals_cases_bytes": lambda: self.cases.bytes,
                "medals_kept_bytes": lambda: self.features.bytes,
                "medals_kept_hits_total": lambda: self.features.counts.hits,
                "medals_kept_misses_total": lambda: self.features.counts.misses,
                "medals_kept_evictions_total": lambda: self.features.counts.evictions,
            }
        )

    def _cache_bytes(self) -> int:
        """Return what is asked for, else a quarter of what may be held now, up to 4 GiB."""
        asked = self.settings.cache_bytes
        if asked is not None:
            return asked
        return default_bytes(self.segmenter.memory_limit(self.options.segment.max_memory).total)

    async def in_thread(self, work: Callable[..., _T], *given: Any) -> _T:
        """Do work that takes the memory of an image in a thread, after what was asked before."""
        return await anyio.to_thread.run_sync(work, *given, limiter=self._working)

    async def in_passing(self, work: Callable[..., _T], *given: Any) -> _T:
        """Do work on files that takes hardly any memory in a thread, such as to remove them."""
        return await anyio.to_thread.run_sync(work, *given, limiter=self._passing)

    async def made(self, owner: ClientSession, job: ServedJob, file: JobFile) -> Path:
        """Have a file of a job made, unless it is there.

        Raises
        ------
        ServiceError
            The job was deleted meanwhile, or there is no room for the file.
        """
        with _or_gone(lambda: owner.job(job.name)):
            return file.path if file.is_there else await self.in_thread(file.make)

    async def close(self) -> None:
        """Remove all data and end the processes of readers."""
        await anyio.to_thread.run_sync(self.sessions.close)
        await anyio.to_thread.run_sync(self.readers.close)

    def end_session(self, owner: ClientSession) -> None:
        """End a session and forget its images."""
        self.sessions.end(owner)
        for image in tuple(owner.images.values()):
            self._forget(image)

    def tidy(self) -> None:
        """End the sessions that nobody uses, and return what was freed to the system.

        Arrays that jobs left for later ones lie between others, so that the C library would keep
        their memory for the process.
        """
        for owner in self.sessions.idle():
            self.end_session(owner)
        if self._has_freed.is_set():
            self._has_freed.clear()
            trim_heap()

    def _forget(self, image: ServedImage) -> None:
        """Keep nothing of an image in memory, now and later."""
        self.cases.forget(image)
        image.forget()
        self._has_freed.set()

    # Images and masks -----------------------------------------------------------------------------

    async def add_image(
        self,
        body: AsyncIterator[bytes],
        owner: ClientSession,
        filename: str,
        series: str | None,
        select: tuple[str, ...],
    ) -> ServedImage:
        """Store an upload and read it in a process of its own.

        Raises
        ------
        CaseError
            It can't be used.
        ServiceError
            There is no room for it; or it holds several series, and is kept for `choose_series`.
        """
        shown = shown_name(filename, "image")
        path = owner.folder / secrets.token_hex(8) / stored_name(shown)
        most = self.settings.max_images
        with owner.place("images", most), owner.place("uploads", most):
            async with self.stored(body, owner, path) as size:
                upload = Upload(path.parent.name, path, shown, size)
                try:
                    return await self._read_image(owner, upload, series, select)
                except SeriesChoiceError as error:
                    owner.check_open()
                    owner.uploads[upload.name] = upload
                    kept = _to_choose(upload, error)
        raise kept

    async def add_written_image(
        self, owner: ClientSession, filename: str, write: Callable[[Path], None]
    ) -> ServedImage:
        """Have a file written in a thread, and read it as an upload.

        Raises
        ------
        CaseError
            It can't be used.
        ServiceError
            There is no room for it.
        """
        path = owner.folder / secrets.token_hex(8) / stored_name(filename)
        try:
            with owner.place("images", self.settings.max_images):
                path.parent.mkdir(mode=0o700)
                await self.in_thread(write, path)
                self.sessions.keep(owner, path)
                upload = Upload(path.parent.name, path, filename, path.stat().st_size)
                return await self._read_image(owner, upload, None, ())
        except BaseException:
            self.sessions.drop(owner, path.parent)
            owner.check_open()
            raise

    async def choose_series(
        self, owner: ClientSession, name: str, series: str | None, select: tuple[str, ...]
    ) -> ServedImage:
        """Read one series of an upload that holds several.

        Raises
        ------
        CaseError
            It can't be used.
        ServiceError
            The choice doesn't fit one series, or there is no room for an image.
        """
        upload = owner.upload(name)
        del owner.uploads[name]  # before it is read: its id becomes that of one image
        most = self.settings.max_images
        try:
            with owner.place("images", most), owner.place("uploads", most):
                return await self._read_image(owner, upload, series, select)
        except BaseException as error:
            owner.uploads[name] = upload
            if isinstance(error, SeriesChoiceError):
                raise _to_choose(upload, error) from error
            raise

    async def _read_image(
        self, owner: ClientSession, upload: Upload, series: str | None, select: tuple[str, ...]
    ) -> ServedImage:
        found = await anyio.to_thread.run_sync(
            lambda: self.readers.read(
                "image", upload.path, upload.shown, series=series, select=select
            ),
            limiter=self._reading,
        )
        owner.check_open()
        kept = self.features.image() if self.features.max_bytes else None
        image = ServedImage(upload, found, kept, series, select)
        owner.images[image.name] = image
        return image

    async def display(self, owner: ClientSession, image: ServedImage) -> Path:
        """Make an image for display, once; return the file.

        Raises
        ------
        ServiceError
            The image was deleted meanwhile, or there is no room for the file.
        """
        path = image.folder / "volume.nii.gz"

        def make() -> None:
            if not path.exists():
                write_volume(path, self.cases.case(image).volume)
                self.sessions.keep(owner, path)

        with _or_gone(lambda: owner.image(image.name)):
            if not path.exists():
                await self.in_thread(make)
        return path

    async def add_mask(
        self, body: AsyncIterator[bytes], owner: ClientSession, image: ServedImage, filename: str
    ) -> ServedMask:
        """Store labels that were drawn on an image, and check that they lie on its grid.

        Raises
        ------
        CaseError
            They can't be used.
        ServiceError
            There is no room for them.
        """
        shown = shown_name(filename, "mask")
        path = image.folder / secrets.token_hex(8) / stored_name(shown, labels=True)

        with (
            owner.place("masks", self.settings.max_masks),
            _or_gone(lambda: owner.image(image.name)),
        ):
            async with self.stored(body, owner, path) as size:
                found = await anyio.to_thread.run_sync(
                    lambda: self.readers.read("labels", path, shown, on=image.grid),
                    limiter=self._reading,
                )
                upload = Upload(path.parent.name, path, shown, size)
                mask = ServedMask(upload, image.name, tuple(found["labels"]))
                owner.image(image.name)  # still there
                owner.masks[mask.name] = mask
        return mask

    async def delete_mask(self, owner: ClientSession, mask: ServedMask) -> None:
        """Delete a mask.

        Raises
        ------
        ServiceError
            It guides a job, or one that led to it.
        """
        if any(job.drawing == mask.upload.path for job in owner.jobs.values()):
            raise ServiceError(
                "the mask guides a job, and those that correct its result; delete the image",
                code="mask-in-use",
                status=HTTPStatus.CONFLICT,
            )
        owner.masks.pop(mask.name, None)
        await self.in_passing(self.sessions.drop, owner, mask.upload.path.parent)

    @contextlib.asynccontextmanager
    async def array(
        self, body: AsyncIterator[bytes], owner: ClientSession, folder: Path
    ) -> AsyncIterator[Path]:
        """Store an array (see `protocols.frames`) as a file of NumPy, until the block ends.

        Parameters
        ----------
        body
            The array as it is sent.
        owner
            Whose disk it takes.
        folder
            Is made for it, and removed with all that the block puts there.

        Raises
        ------
        CaseError
            It can't be read.
        ServiceError
            There is no room for it.
        """
        path = folder / "upload.frame"
        async with self.stored(body, owner, path):
            said = frames.announced_bytes(path, max_voxels=self.settings.max_voxels)
            most = _ARRAY_HEADER_BYTES + said
            self.sessions.reserve(owner, most)  # a few bytes may hold gigabytes
            try:
                await anyio.to_thread.run_sync(
                    lambda: self.readers.read("array", path, "the array", writes=most),
                    limiter=self._reading,
                )
            finally:
                self.sessions.release(owner, most)
        array = path.with_suffix(".npy")
        try:
            self.sessions.keep(owner, array)
            yield array
        finally:
            self.sessions.drop(owner, folder)

    def delete_image(self, owner: ClientSession, image: ServedImage) -> None:
        """Delete an image with its masks and jobs."""
        owner.images.pop(image.name, None)
        for job in [each for each in tuple(owner.jobs.values()) if each.image is image]:
            job.cancel()
            owner.jobs.pop(job.name, None)
        for mask in [each for each in tuple(owner.masks.values()) if each.image == image.name]:
            owner.masks.pop(mask.name, None)
        self._forget(image)
        self.sessions.drop(owner, image.folder)

    @contextlib.asynccontextmanager
    async def stored(
        self, body: AsyncIterator[bytes], owner: ClientSession, path: Path
    ) -> AsyncIterator[int]:
        """Write what is sent to a file whose folder goes again if the block fails."""
        held = 0
        try:
            path.parent.mkdir(mode=0o700)
            async with await anyio.open_file(path, "xb") as file:
                async for part in _gathered(body):
                    self.sessions.reserve(owner, len(part))
                    held += len(part)
                    await file.write(part)
            self.metrics.count("medals_uploaded_bytes_total", held)
            yield held
        except BaseException as error:
            remove_folder(path.parent)
            self.sessions.release(owner, held)
            owner.check_open()
            if isinstance(error, OSError) and not isinstance(error, MedalsError):
                reason = error.strerror or type(error).__name__
                raise OutputError(
                    f"the upload can't be stored: {reason}; try again later",
                    code="upload-not-stored",
                ) from error
            raise

    # Jobs -----------------------------------------------------------------------------------------

    async def add_job(
        self,
        owner: ClientSession,
        image: ServedImage,
        asked: JobRequest,
        *,
        mask: ServedMask | None = None,
        corrects: ServedJob | None = None,
    ) -> ServedJob:
        """Check what a job asks for, and put it into the queue.

        Parameters
        ----------
        owner, image, asked
            Whose it is, and what is asked.
        mask
            Labels drawn on the image.
        corrects
            The job whose result was corrected, and became `mask`.

        Raises
        ------
        InputError
            A prompt, a mask or an option can't be used.
        ServiceError
            The session has too many, or the queue is full.
        """
        active = sum(not job.is_over for job in owner.jobs.values()) + owner.coming["jobs"]
        if active >= self.settings.max_active_jobs:
            raise ServiceError(
                f"{active} jobs of this session wait or run already; wait for one, or cancel it",
                code="too-many-jobs",
                status=HTTPStatus.TOO_MANY_REQUESTS,
                retry_after_s=RETRY_S,
            )
        self.engine.check_room()
        folder = image.folder / secrets.token_hex(8)

        def check_there() -> None:
            owner.check_open()
            owner.image(image.name)
            if mask is not None and not mask.upload.path.exists():
                raise not_found("mask")
            if corrects is not None:
                owner.job(corrects.name)

        with owner.place("jobs", self.settings.max_jobs), _or_gone(check_there):
            try:
                reads = mask is not None or corrects is not None or image not in self.cases
                do = self.in_thread if reads else self.in_passing
                job = await do(self._make_job, owner, folder, image, mask, asked, corrects)
                owner.jobs[job.name] = job  # from here on, whoever ends the session cancels it
                owner.image(image.name)  # still there
                owner.check_open()
                self.engine.submit(job)
            except BaseException:
                owner.jobs.pop(folder.name, None)
                self.sessions.drop(owner, folder)
                raise
        return job

    def delete_job(self, owner: ClientSession, job: ServedJob) -> None:
        """Delete a job with its results."""
        job.cancel()
        owner.jobs.pop(job.name, None)
        self.sessions.drop(owner, job.folder)

    def _make_job(
        self,
        owner: ClientSession,
        folder: Path,
        image: ServedImage,
        mask: ServedMask | None,
        asked: JobRequest,
        corrects: ServedJob | None,
    ) -> ServedJob:
        folder.mkdir(mode=0o700)
        written = asked.job(folder, image, mask, self.options)
        if written.source.file is not None:
            self.sessions.keep(owner, written.source.file)
        job = ServedJob(
            image,
            written,
            self.cases,
            self.settings.job_s,
            lambda file: self.sessions.keep(owner, file),
            self.metrics,
            corrects,
        )
        try:
            job.prepare()
        except InputError as error:
            if mask is None:
                raise
            text = with_users_name(str(error), mask.upload.path, mask.upload.shown)
            raise type(error)(text, code=error.code) from error
        return job


async def _gathered(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Return a body in parts of a megabyte: it may be sent in chunks of one byte."""
    held = bytearray()
    async for chunk in body:
        held += chunk
        if len(held) >= _PART_BYTES:
            yield bytes(held)
            held.clear()
    yield bytes(held)


@contextlib.contextmanager
def _or_gone(check_there: Callable[[], object]) -> Iterator[None]:
    """Where something fails whose data were deleted meanwhile, say that they were.

    Raises
    ------
    ServiceError
        What `check_there` raises.
    """
    try:
        yield
    except Exception:
        check_there()
        raise


def _to_choose(upload: Upload, error: SeriesChoiceError) -> ServiceError:
    """Refuse an upload whose series are to be chosen from."""
    return ServiceError(
        str(error),
        code=error.code,
        status=HTTPStatus.CONFLICT,
        more={"upload": upload.name, "choices": error.choices},
    )
