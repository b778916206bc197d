"""Uploads: files as they come, series to choose from, and what a file says of itself."""

import io
import socket
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.errors import MedalsError
from medals_rt.pipeline.job import run_job
from medals_serve.client import ServedProblemError, ServiceClient
from medals_serve.job_requests import OUTPUT_FORMATS
from tests.dicom import write_series
from tests.serve.serving import (
    PATIENCE_S,
    SENTENCE,
    Running,
    cli_job,
    image,
    owner_of,
    refused,
    until,
    write_nifti,
)


def zipped(folder: Path) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder))
    return out.getvalue()


def test_a_dicom_zip_with_several_series(
    tiny_bundle: Bundle, client: ServiceClient, tmp_path: Path
) -> None:
    """One is chosen without sending all again, and its SEG refers to its slices."""
    affine = np.diag([3.0, 3.0, 4.0, 1.0])
    for seed, number in ((0, 3), (1, 7)):

        def change(_: int, data: Any, number: int = number) -> None:
            data.SeriesNumber = number

        write_series(tmp_path / "study" / f"s{seed}", image(seed), affine, change=change, seed=seed)
    error = refused(client.upload, zipped(tmp_path / "study"), filename="study.zip")
    assert (error.status, error.code) == (409, "several-series")
    choices = error.problem["choices"]
    assert [each["number"] for each in choices] == [3, 7]
    assert choices[0]["images"] == len(image())
    wrong = refused(client.choose_series, error.problem["upload"], "99")
    assert (wrong.status, wrong.code) == (409, "series-not-found")
    uploaded = client.choose_series(error.problem["upload"], choices[1]["series"])
    assert uploaded["modality"] == "CT"
    assert uploaded["output_formats"] == list(OUTPUT_FORMATS)
    gone = refused(client.choose_series, error.problem["upload"], "3")
    assert (gone.status, gone.code) == (404, "upload-unknown")

    job = client.segment(uploaded, "Liver")  # the series says that it is CT
    output = tmp_path / "cli.nii.gz"
    run_job(cli_job(tiny_bundle, tmp_path / "study" / "s1", output, SENTENCE))
    client.save_labels(job, tmp_path / "served.nii.gz")
    assert (tmp_path / "served.nii.gz").read_bytes() == output.read_bytes()
    seg = dcmread(io.BytesIO(client.fetch(job, format="dcm")))
    (referred,) = seg.ReferencedSeriesSequence
    assert referred.SeriesInstanceUID == choices[1]["series"]
    for name in ("rtstruct", "labelmap.dcm"):
        assert dcmread(io.BytesIO(client.fetch(job, format=name))).PatientID == "none"


def test_a_zip_without_dicom_is_no_advice_on_commands(client: ServiceClient) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    error = refused(client.upload, out.getvalue(), filename="notes.zip")
    assert error.code == "no-dicom"
    assert str(error).endswith("give the folder of a series")


def test_one_series_of_an_upload_is_one_image(
    client: ServiceClient, served: Running, tmp_path: Path
) -> None:
    """Else two images had one id, and jobs on the one ran on the other."""
    for seed, depth in enumerate((5, 6)):
        folder = tmp_path / "study" / str(seed)
        write_series(folder, np.zeros((depth, 8, 8), np.int16), np.eye(4), seed=seed)
    found = refused(client.upload, zipped(tmp_path / "study"), filename="study.zip").problem
    service = served.server.config.app.state.service
    (owner,) = (each for each in service.sessions if found["upload"] in each.uploads)
    process = service.readers._idle.get()
    with ThreadPoolExecutor(2) as pool:
        asked = [
            pool.submit(client.choose_series, found["upload"], each["series"])
            for each in found["choices"]
        ]
        until(lambda: owner.requests == 2 or any(each.done() for each in asked))
        service.readers._idle.put(process)
    (error,) = filter(None, (each.exception() for each in asked))
    assert isinstance(error, ServedProblemError)
    assert (error.status, error.code) == (404, "upload-unknown")
    (made,) = (each.result() for each in asked if each.exception() is None)
    assert client._json("GET", f"/v1/images/{made['image']}")["shape_dhw"] == made["shape_dhw"]


def test_an_upload_whose_client_left_while_it_was_read(
    client: ServiceClient, served: Running, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would stay in the session, and nobody knows of it."""
    service = served.server.config.app.state.service
    owner = owner_of(served, client.upload(scan))
    before, right = set(owner.images), service.readers.read
    begun, gone, over = threading.Event(), threading.Event(), threading.Event()

    def read(*given: Any, **more: Any) -> Any:
        begun.set()
        assert gone.wait(PATIENCE_S)
        try:
            return right(*given, **more)
        finally:
            over.set()

    monkeypatch.setattr(service.readers, "read", read)
    place = client.http.base_url
    with socket.create_connection((place.host, place.port)) as connection:
        data, session = scan.read_bytes(), client.http.headers["Medals-Session"]
        head = (
            f"POST /v1/images?filename=left.nii.gz HTTP/1.1\r\nHost: {place.host}:{place.port}\r\n"
            f"Medals-Session: {session}\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        connection.sendall(head.encode() + data)
        assert begun.wait(PATIENCE_S)
    gone.set()
    assert over.wait(PATIENCE_S)
    until(lambda: set(owner.images) == before)
    until(lambda: {path.name for path in owner.folder.iterdir()} == before)


def test_an_upload_of_tiny_chunks_is_accounted_for_in_large_parts(
    client: ServiceClient, served: Running, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each asks for the disk's free space."""
    sessions = served.server.config.app.state.service.sessions
    reserve, sizes = sessions.reserve, []

    def counted(owner: Any, size: int) -> None:
        sizes.append(size)
        reserve(owner, size)

    monkeypatch.setattr(sessions, "reserve", counted)
    data = scan.read_bytes()
    parts = (data[at : at + 8] for at in range(0, len(data), 8))
    answer = client.http.post("/v1/images?filename=a.nii.gz", content=parts)
    assert answer.status_code == 201
    assert sizes == [len(data)]


def test_messages_are_those_of_the_command_line(
    tiny_bundle: Bundle, client: ServiceClient, tmp_path: Path
) -> None:
    """Also of what a child process read, under the name that its user gave it."""
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"\x1f\x8b nothing")
    with pytest.raises(MedalsError) as caught:
        run_job(cli_job(tiny_bundle, broken, tmp_path / "o.npz", SENTENCE))
    error = refused(client.upload, broken)
    assert (str(error), error.code) == (str(caught.value), caught.value.code)


def test_prompts_of_the_file_itself(client: ServiceClient) -> None:
    out = io.BytesIO()
    prompts = {"4": SENTENCE, "instance_label": 0}
    np.savez(
        out,
        imgs=image().astype(np.uint8),
        spacing=np.array([2.0, 3.0, 4.0]),
        text_prompts=np.array(prompts, dtype=object),
    )
    uploaded = client.upload(out.getvalue(), filename="case.npz")
    assert uploaded["has_prompts"]
    assert [each["label"] for each in client.segment(uploaded, None)["classes"]] == [4]
    mapped = client.segment(uploaded, {"9": SENTENCE})
    assert [each["label"] for each in mapped["classes"]] == [9]


def test_a_scan_may_be_uploaded_twice(client: ServiceClient, tmp_path: Path) -> None:
    first = client.upload(write_nifti(tmp_path / "a.nii"))
    second = client.upload(write_nifti(tmp_path / "b.nii", seed=1))
    assert first["image"] != second["image"]
    assert first["size_bytes"] == (tmp_path / "a.nii").stat().st_size


def test_bodies_that_are_sent_in_another_form(client: ServiceClient, scan: Path) -> None:
    form = client.http.post("/v1/images?filename=a.nii.gz", files={"file": scan.read_bytes()})
    assert (form.status_code, form.json()["code"]) == (422, "body-is-a-form")
    for content, header, word in (
        (b"{", "application/json", "isn't JSON"),
        (b"{}", "text/plain", "application/json"),
        (b"[]", "application/json", "dictionary"),
    ):
        answer = client.http.post("/v1/jobs", content=content, headers={"Content-Type": header})
        assert (answer.status_code, answer.json()["code"]) == (422, "request-invalid")
        assert word in answer.json()["detail"]
