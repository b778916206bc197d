"""A small client of the service, for Python programs (extra "serve").

>>> from medals_serve.client import ServiceClient
>>> with ServiceClient("http://127.0.0.1:8700") as client:  # doctest: +SKIP
...     image = client.upload("scan.nii.gz")
...     job = client.segment(image, ["Liver in abdominal CT"])
...     client.save_labels(job, "liver.nii.gz")
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from medals_rt.common.atomic_io import atomic_output
from medals_rt.common.optional_deps import missing
from medals_rt.io.dicom.web_address import LOOPBACK
from medals_rt.io.format import stem
from medals_rt.io.registry import FORMATS
from medals_serve.problems import ServedProblemError

try:
    import httpx
except ImportError as _error:
    raise missing("the client of the HTTP service", "HTTPX") from _error

__all__ = ["ServedProblemError", "ServiceClient"]

State = dict[str, Any]
"""JSON of the API: see `schemas`, or ``/v1/openapi.json`` of a server."""

_PAST_PROXIES: Final = {
    f"all://[{host}]" if ":" in host else f"all://{host}": None for host in LOOPBACK
}
"""A proxy would get tokens and images that are for this machine alone."""

_CUT_SHORT: Final = {
    "detail": "the stream of progress ended before the job did; wait for the job again",
    "code": "stream-cut-short",
}


class ServiceClient:
    """One session with a server; it ends with the block, and all its data with it.

    Parameters
    ----------
    address
        Of the server, such as ``"http://127.0.0.1:8700"``.
    token
        That the server demands, if it does.
    timeout_s
        For each answer to begin; an upload is read before it is answered.

    Attributes
    ----------
    http
        The client beneath, for what has no method here.

    Raises
    ------
    ServedProblemError
        The server refuses the token, or has no room for a session.
    httpx.TransportError
        It can't be reached.
    """

    def __init__(self, address: str, *, token: str | None = None, timeout_s: float = 300.0) -> None:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self.http = httpx.Client(
            base_url=address, headers=headers, timeout=timeout_s, mounts=_PAST_PROXIES
        )
        try:
            opened = self._json("POST", "/v1/sessions")
        except BaseException:
            self.http.close()
            raise
        self.http.cookies.clear()  # the header says it
        self.http.headers["Medals-Session"] = opened["session"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session, as far as the server can be reached."""
        try:
            self.http.delete("/v1/sessions/current")
        except httpx.HTTPError:
            pass  # it ends by itself when nobody uses it
        finally:
            self.http.close()

    def model(self) -> State:
        """Return the model, its classes, and what a job may ask for."""
        return self._json("GET", "/v1/model")

    def prompts(self, text: str, *, modality: str | None = None, kind: str = "anatomy") -> State:
        """Return how a text is read, and what may be meant."""
        given = {"q": text, "kind": kind, **({} if modality is None else {"modality": modality})}
        return self._json("GET", "/v1/prompts", params=given)

    def upload(
        self,
        file: str | Path | bytes,
        *,
        filename: str | None = None,
        series: str | None = None,
        select: Sequence[str] = (),
    ) -> State:
        """Upload an image.

        Parameters
        ----------
        file
            Its path, or its bytes.
        filename
            Its name where bytes are given: its ending says the format.
        series, select
            Which series of a DICOM zip, and which of its images.

        Raises
        ------
        ServedProblemError
            It can't be used. With the code ``"several-series"`` its `problem` holds `choices`, and
            an `upload` for `choose_series`.
        """
        given: State = {"filename": filename or _name(file), "select": list(select)}
        if series is not None:
            given["series"] = series
        return self._send("/v1/images", given, file)

    def choose_series(self, upload: str, series: str, *, select: Sequence[str] = ()) -> State:
        """Take one series of an upload that holds several; see `upload`."""
        given = {"upload": upload, "series": series, "select": list(select)}
        return self._json("POST", "/v1/images", params=given)

    def upload_mask(
        self, image: State, file: str | Path | bytes, *, filename: str | None = None
    ) -> State:
        """Upload labels drawn on an image, or a corrected result, for `submit`."""
        given = {"image": image["image"], "filename": filename or _name(file)}
        return self._send("/v1/masks", given, file)

    def delete_mask(self, mask: State) -> None:
        """Delete a mask that guides no job, such as that of a correction which was submitted."""
        self._json("DELETE", f"/v1/masks/{mask['mask']}")

    def delete_image(self, image: State) -> None:
        """Delete an image with its masks and jobs."""
        self._json("DELETE", f"/v1/images/{image['image']}")

    def submit(
        self,
        image: State,
        prompts: Sequence[str] | str | Mapping[str, str | Mapping[str, str]] | None,
        *,
        modality: str | None = None,
        spatial_prompts: State | None = None,
        corrects: State | None = None,
        **options: Any,
    ) -> State:
        """Ask for a segmentation and return the job as it waits.

        Parameters
        ----------
        image
            From `upload`.
        prompts
            Sentences, one sentence, or label to sentence, with lesions in a mapping of their own as
            `"lesions"`; None for those in the image's file.
        modality
            Of the image, for sentences that don't name it.
        spatial_prompts
            A mask from `upload_mask`.
        corrects
            The job whose result the mask is, corrected; without a mask, what the job was shown is
            kept.
        options
            As `model` lists them.
        """
        body: State = {"image": image["image"], "modality": modality, "options": options}
        body["prompts"] = (
            list(prompts)
            if isinstance(prompts, Sequence) and not isinstance(prompts, str)
            else prompts
        )
        if spatial_prompts is not None:
            body["spatial_prompts"] = spatial_prompts["mask"]
        if corrects is not None:
            body["corrects"] = corrects["job"]
        return self._json("POST", "/v1/jobs", json=body)

    def job(self, job: State) -> State:
        """Return a job as it is now."""
        return self._json("GET", f"/v1/jobs/{job['job']}")

    def watch(self, job: State) -> Iterator[State]:
        """Yield a job's states until it is over."""
        address = f"/v1/jobs/{job['job']}/events"
        with self.http.stream("GET", address, timeout=httpx.Timeout(60.0)) as answer:
            if answer.is_error:
                answer.read()
            _check(answer)
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))

    def wait(self, job: State, progress: Callable[[State], None] | None = None) -> State:
        """Wait for a job that was asked for, and return it as it ended.

        Raises
        ------
        ServedProblemError
            It failed or was canceled; or the stream of its states ended before it did.
        """
        for state in self.watch(job):
            job = state
            if progress is not None:
                progress(state)
        if job["status"] != "done":
            raise ServedProblemError(job["problem"] or _CUT_SHORT)
        return job

    def segment(
        self,
        image: State,
        prompts: Sequence[str] | str | Mapping[str, str | Mapping[str, str]] | None,
        *,
        progress: Callable[[State], None] | None = None,
        **asked: Any,
    ) -> State:
        """Ask for a segmentation and wait for it; see `submit` and `wait`."""
        return self.wait(self.submit(image, prompts, **asked), progress)

    def cancel(self, job: State) -> State:
        """Cancel a job."""
        return self._json("POST", f"/v1/jobs/{job['job']}/cancel")

    def delete_job(self, job: State) -> None:
        """Delete a job with its results; those that correct it stay."""
        self._json("DELETE", f"/v1/jobs/{job['job']}")

    def fetch(self, job: State, what: str = "result", **given: str) -> bytes:
        """Return a file of a job: ``result``, ``instances``, ``statistics``, ``report``, ..."""
        answer = self.http.get(f"/v1/jobs/{job['job']}/{what}", params=given)
        _check(answer)
        return answer.content

    def save_labels(self, job: State, path: str | Path) -> None:
        """Write a job's labels in the format that a file's name ends in, whole or not at all."""
        file = Path(path)
        ending = file.name.removeprefix(stem(file, FORMATS)) or file.suffix
        content = self.fetch(job, format=ending.removeprefix(".").lower())
        with atomic_output(file) as temporary:
            temporary.write_bytes(content)

    def report(self, job: State) -> State:
        """Return the report that ``medals-rt run --report`` writes."""
        return self._json("GET", f"/v1/jobs/{job['job']}/report")

    def statistics(self, job: State, table: str = "classes") -> list[State]:
        """Return the statistics of each class, or of each lesion."""
        address = f"/v1/jobs/{job['job']}/statistics"
        rows: list[State] = self._json("GET", address, params={"table": table})[table]
        return rows

    def _send(self, address: str, given: State, file: str | Path | bytes) -> State:
        if isinstance(file, bytes):
            return self._json("POST", address, params=given, content=file)
        with Path(file).open("rb") as opened:
            return self._json("POST", address, params=given, content=opened)

    def _json(self, method: str, address: str, **given: Any) -> State:
        answer = self.http.request(method, address, **given)
        _check(answer)
        content: State = answer.json() if answer.content else {}
        return content


def _name(file: str | Path | bytes) -> str:
    return "image" if isinstance(file, bytes) else Path(file).name


def _check(answer: httpx.Response) -> None:
    """Raise the problem that an answer holds.

    Raises
    ------
    ServedProblemError
    """
    if not answer.is_error:
        return
    try:
        problem = answer.json()
    except ValueError:
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    fallback = {"status": answer.status_code, "detail": answer.reason_phrase, "code": "failure"}
    raise ServedProblemError({**fallback, **problem})
