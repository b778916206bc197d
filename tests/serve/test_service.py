"""Requests at once: their limits, what is deleted while it is used, and what waits for what."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from medals_rt.bundle.bundle import Bundle
from medals_serve import images, job_files
from medals_serve import service as service_module
from medals_serve.client import ServiceClient
from medals_serve.problems import ServiceError
from tests.serve.serving import (
    PATIENCE_S,
    SENTENCE,
    Running,
    owner_of,
    refused,
    running,
)


def test_requests_at_once_keep_to_the_limits(
    tiny_bundle: Bundle, tmp_path: Path, scan: Path
) -> None:
    """What is being made has its place already."""
    limits = {"max_images": 3, "max_active_jobs": 2}
    with (
        running(tiny_bundle, tmp_path / "data", **limits) as served,
        served.client() as client,
        ThreadPoolExecutor(8) as pool,
    ):
        service = served.server.config.app.state.service
        uploaded = client.upload(scan)
        served.gate.clear()
        make = service._make_job

        def make_slowly(*given: Any) -> Any:
            time.sleep(0.1)
            return make(*given)

        service._make_job = make_slowly

        def codes(work: Any, *given: Any) -> list[str]:
            asked = [pool.submit(work, *given) for _ in range(8)]
            return sorted(getattr(each.exception(), "code", "") for each in asked)

        assert codes(client.upload, scan) == [""] * 2 + ["too-many-images"] * 6
        assert codes(client.submit, uploaded, SENTENCE) == [""] * 2 + ["too-many-jobs"] * 6
        assert refused(client.upload, scan).code == "too-many-images"
        client.delete_image(uploaded)
        assert codes(client.upload, scan) == [""] + ["too-many-images"] * 7


@pytest.mark.parametrize("what", ["shown", "asked", "drawn", "fetched"])
def test_what_is_deleted_while_it_is_used_is_no_failure_of_the_server(
    client: ServiceClient,
    served: Running,
    scan: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    uploaded = client.upload(scan)
    owner = owner_of(served, uploaded)
    service = served.server.config.app.state.service
    job = client.segment(uploaded, SENTENCE)
    stored = client.fetch(job)
    place, name, delete, asked = {
        "shown": (service_module, "write_volume", "image", ()),
        "asked": (service.cases, "case", "image", (client.submit, uploaded, SENTENCE)),
        "drawn": (service.readers, "read", "image", (client.upload_mask, uploaded, scan)),
        "fetched": (job_files, "write_preview", "job", (client.fetch, job, "preview.png")),
    }[what]
    right = getattr(place, name)

    def deleting(*given: Any, **more: Any) -> Any:
        with suppress(ServiceError):
            found = getattr(owner, delete)({"image": uploaded, "job": job}[delete][delete])
            getattr(service, f"delete_{delete}")(owner, found)
        return right(*given, **more)

    monkeypatch.setattr(place, name, deleting)
    if what == "shown":
        answer = client.http.get(f"/v1/images/{uploaded['image']}/volume.nii.gz")
        found = (answer.status_code, answer.json()["code"])
    else:
        if what == "drawn":
            drawing = scan.with_name("drawn.nii.gz")
            drawing.write_bytes(stored)
            asked = (client.upload_mask, uploaded, drawing)
        error = refused(*asked)
        found = (error.status, error.code)
    assert found == (404, f"{delete}-unknown")


def test_what_takes_no_memory_waits_for_nothing_that_does(
    client: ServiceClient, served: Running, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another session's large image keeps nobody from deleting, or from a file that is there."""
    began, go = threading.Event(), threading.Event()
    write = service_module.write_volume

    def slowly(*given: Any) -> None:
        began.set()
        assert go.wait(60)
        write(*given)

    uploaded = client.upload(scan)
    job = client.segment(uploaded, SENTENCE)
    report = client.report(job)
    monkeypatch.setattr(service_module, "write_volume", slowly)
    path = f"/v1/images/{uploaded['image']}/volume.nii.gz"
    with served.client() as other, ThreadPoolExecutor(1) as pool:
        shown = pool.submit(client.http.get, path)
        try:
            assert began.wait(60)
            again = other.upload(scan)
            assert client.report(job) == report
            client.delete_job(job)
            other.delete_image(again)
            assert other.http.delete("/v1/sessions/current").status_code == 204
            assert not shown.done()
        finally:
            go.set()
        assert shown.result().status_code == 200
    assert client.http.get(path).status_code == 200


def test_a_job_on_an_image_that_is_in_memory_waits_for_no_other_image(
    client: ServiceClient, served: Running, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go = threading.Event(), threading.Event()
    read = images.read_case

    def slowly(*given: Any, **more: Any) -> Any:
        began.set()
        assert go.wait(PATIENCE_S)
        return read(*given, **more)

    uploaded = client.upload(scan)
    before = client.segment(uploaded, SENTENCE)
    with served.client() as other, ThreadPoolExecutor(2) as pool:
        another = other.upload(scan)
        monkeypatch.setattr(images, "read_case", slowly)
        reading = pool.submit(other.submit, another, SENTENCE)
        try:
            assert began.wait(PATIENCE_S)
            job = pool.submit(client.segment, uploaded, SENTENCE).result(60)
            assert not reading.done()
        finally:
            go.set()
        assert job["classes"] == before["classes"]
        assert other.wait(reading.result())["classes"] == before["classes"]
