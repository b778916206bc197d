"""The API over HTTP: the same results, messages and files as the command line."""

import asyncio
import gc
import io
import json
import socket
import threading
import time
import weakref
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
from pydicom import dcmread
from starlette.testclient import TestClient

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.choices import MODALITIES, STAGE_NAMES
from medals_rt.common.errors import MedalsError
from medals_rt.inference.corrections import Correction
from medals_rt.io.palette import class_color, hex_color
from medals_rt.io.registry import read_case, read_labels
from medals_rt.pipeline import job_inputs
from medals_rt.pipeline.job import run_job
from medals_rt.pipeline.job_request import Job
from medals_rt.pipeline.options import PromptSource, RunOptions
from medals_rt.pipeline.output_grid import GridRequest
from medals_rt.pipeline.segmenter import load
from medals_rt.prompts.prompt_set import parse_prompts
from medals_serve import images, job_files, routes
from medals_serve import service as service_module
from medals_serve.client import ServedProblemError, ServiceClient
from medals_serve.job_requests import OUTPUT_FORMATS
from medals_serve.problems import ServiceError
from medals_serve.schemas import JobState
from medals_serve.sessions import ClientSession
from tests.dicom import write_series
from tests.serve.serving import (
    PATIENCE_S,
    RUNNER,
    SENTENCE,
    Running,
    image,
    running,
    until,
    write_nifti,
)

DIFFERS = ("seconds", "seconds_per_class", "peak_memory_mib", "memory", "stages", "limits", "case")
"""Of reports: times, and what the process held."""


def cli_job(bundle: Bundle, case: Path, output: Path, *sentences: str, **more: Any) -> Job:
    options = RunOptions(bundle=bundle.folder, **RUNNER)
    return Job(case, output, PromptSource(sentences=sentences), options=options, **more)


def refused(work: Any, *given: Any, **more: Any) -> ServedProblemError:
    with pytest.raises(ServedProblemError) as caught:
        work(*given, **more)
    return caught.value


def zipped(folder: Path) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder))
    return out.getvalue()


def test_results_are_those_of_the_command_line(
    tiny_bundle: Bundle, client: ServiceClient, scan: Path, tmp_path: Path
) -> None:
    """Not a voxel differs, nor a byte of the file; reports differ in times alone."""
    asked = [SENTENCE, "Right kidney in abdominal CT"]
    files = {
        "report": tmp_path / "r.json",
        "statistics": tmp_path / "s.csv",
        "preview": tmp_path / "p.png",
    }
    output = tmp_path / "labels.nii.gz"
    result = run_job(cli_job(tiny_bundle, scan, output, *asked, **files))
    assert len(np.unique(result.labels_dhw)) == 3

    job = client.segment(client.upload(scan), asked)
    client.save_labels(job, tmp_path / "served.nii.gz")
    assert (tmp_path / "served.nii.gz").read_bytes() == output.read_bytes()
    assert client.fetch(job, "statistics", format="csv") == files["statistics"].read_bytes()
    assert client.fetch(job, "preview.png") == files["preview"].read_bytes()
    expected, report = json.loads(files["report"].read_text(encoding="utf-8")), client.report(job)
    assert report["case"] == expected["case"] == "scan of someone"
    assert {k: v for k, v in report.items() if k not in DIFFERS} == {
        k: v for k, v in expected.items() if k not in DIFFERS
    }
    assert report["seconds"].keys() == expected["seconds"].keys() - {"open models"}
    (liver, _) = job["classes"]
    assert liver["voxels"] == int((result.labels_dhw == 1).sum())
    assert liver["color"] == hex_color(class_color("Liver"))
    assert [note["code"] for note in job["notes"]] == [note["code"] for note in expected["notes"]]


def test_hybrid_mode_is_that_of_the_command_line(
    tiny_bundle: Bundle, client: ServiceClient, scan: Path, tmp_path: Path
) -> None:
    """A drawing made on the image that is shown, in another orientation than that file's."""
    uploaded = client.upload(scan)
    shown = client.http.get(f"/v1/images/{uploaded['image']}/volume.nii.gz").content
    displayed = nibabel.Nifti1Image.from_bytes(__import__("gzip").decompress(shown))
    original = nibabel.load(scan)
    np.testing.assert_array_equal(displayed.get_fdata(), original.get_fdata())
    np.testing.assert_allclose(displayed.affine, original.affine)
    drawn = np.zeros(displayed.shape, np.uint8)
    drawn[5:12, 4:14, 2:8] = 1
    drawing = tmp_path / "drawing.nii.gz"
    turned = nibabel.Nifti1Image(drawn, displayed.affine).as_reoriented(
        np.array([[0, -1], [2, 1], [1, 1]])
    )
    nibabel.save(turned, drawing)

    output = tmp_path / "labels.npz"
    run_job(cli_job(tiny_bundle, scan, output, SENTENCE, spatial_prompts=drawing))
    plain = client.segment(uploaded, SENTENCE)
    mask = client.upload_mask(uploaded, drawing)
    assert mask["labels"] == [1]
    job = client.segment(uploaded, SENTENCE, spatial_prompts=mask)
    client.save_labels(job, tmp_path / "served.npz")
    labels = read_labels(tmp_path / "served.npz").labels_dhw
    np.testing.assert_array_equal(labels, read_labels(output).labels_dhw)
    assert job["classes"][0]["voxels"] != plain["classes"][0]["voxels"]


def test_a_corrected_result(
    tiny_bundle: Bundle, client: ServiceClient, scan: Path, tmp_path: Path
) -> None:
    """As the library corrects it, once and twice, and kept when nothing more is drawn."""
    other = "Right kidney in abdominal CT"
    asked = {"2": SENTENCE, "5": other}
    uploaded = client.upload(scan)
    volume = read_case(scan).volume
    prompts = parse_prompts(asked)
    jobs = [client.segment(uploaded, asked)]
    corrections: list[Correction] = []
    with load(tiny_bundle.folder, **RUNNER) as segmenter:
        result = segmenter.segment(volume, prompts)
        for corner in (np.s_[:2, :3, :3], np.s_[-2:, -3:, -3:]):
            corrected = result.labels_dhw.copy()
            corrected[corner] = np.where(corrected[corner] == 5, 0, 5)
            corrections.append(Correction.of(result.labels_dhw, corrected, prompts.labels))
            result = segmenter.segment(volume, prompts, corrections=corrections)
            drawing = tmp_path / "corrected.nii.gz"
            restored = volume.restore(corrected).transpose()
            nibabel.save(nibabel.Nifti1Image(restored, nibabel.load(scan).affine), drawing)
            mask = client.upload_mask(uploaded, drawing)
            jobs.append(client.segment(uploaded, asked, corrects=jobs[-1], spatial_prompts=mask))
            assert jobs[-1]["corrects"] == jobs[-2]["job"]
            client.save_labels(jobs[-1], tmp_path / "served.npz")
            labels = read_labels(tmp_path / "served.npz").labels_dhw
            np.testing.assert_array_equal(labels, result.labels_dhw)
    again = client.segment(uploaded, asked, corrects=jobs[-1])
    assert again["classes"] == jobs[-1]["classes"]
    notes = {note["code"] for note in again["notes"]}
    assert {"corrected", "corrected-by-hand"} <= notes

    one = client.segment(uploaded, {"5": other}, corrects=jobs[-1])
    assert [each["label"] for each in one["classes"]] == [5]
    error = refused(client.segment, uploaded, {"5": SENTENCE}, corrects=jobs[-1])
    assert (error.status, error.code) == (409, "corrects-other-classes")
    error = refused(
        client.segment,
        uploaded,
        asked,
        corrects=jobs[1],
        spatial_prompts=mask_of(client, uploaded, jobs[1], tmp_path),
    )
    assert (error.status, error.code) == (422, "correction-empty")
    elsewhere = client.upload(scan)
    error = refused(client.segment, elsewhere, asked, corrects=jobs[0])
    assert error.status == 404


def corner_of(
    client: ServiceClient, image: dict[str, Any], job: dict[str, Any], scan: Path, label: int
) -> dict[str, Any]:
    """Send a job's result as a mask, its first corner of a label where it wasn't of that."""
    stored = client.fetch(job, format="nii.gz")
    found = nibabel.Nifti1Image.from_bytes(__import__("gzip").decompress(stored))
    labels = np.asarray(found.dataobj).astype(np.uint8)
    corner = labels[:3, :3, :2]
    corner[...] = np.where(corner == label, 0, label)
    file = scan.with_name("corner.nii.gz")
    nibabel.save(nibabel.Nifti1Image(labels, found.affine), file)
    return client.upload_mask(image, file)


def test_corrections_of_a_class_come_back_with_it(client: ServiceClient, scan: Path) -> None:
    asked = {"2": SENTENCE, "5": "Right kidney in abdominal CT"}
    uploaded = client.upload(scan)
    first = client.segment(uploaded, asked)
    mask = corner_of(client, uploaded, first, scan, 5)
    corrected = client.segment(uploaded, asked, corrects=first, spatial_prompts=mask)
    without = client.segment(uploaded, {"2": SENTENCE}, corrects=corrected)
    back = client.segment(uploaded, asked, corrects=without)
    assert back["classes"] == corrected["classes"] != first["classes"]
    assert client.fetch(back, format="npz") == client.fetch(corrected, format="npz")
    assert "corrected" not in {note["code"] for note in without["notes"]}


def test_a_result_of_other_options_may_be_corrected_and_says_so(
    client: ServiceClient, scan: Path
) -> None:
    uploaded = client.upload(scan)
    first = client.segment(uploaded, SENTENCE, seed=3)
    for options, expected in (({"seed": 3}, []), ({"preset": "native"}, ["preset, seed"])):
        found = client.segment(uploaded, SENTENCE, corrects=first, **options)
        notes = [each for each in found["notes"] if each["code"] == "corrects-other-options"]
        assert [each["text"].partition("(")[2].partition(")")[0] for each in notes] == expected
        assert all(each["severity"] == "warning" for each in notes)


def test_labels_keep_their_meaning_from_correction_to_correction(
    client: ServiceClient, scan: Path
) -> None:
    """A drawing of one class is never shown as another, nor are corrections lost on the way."""
    kidney = "Right kidney in abdominal CT"
    uploaded = client.upload(scan)
    first = client.segment(uploaded, {"2": SENTENCE, "5": kidney})
    one = client.segment(uploaded, {"2": SENTENCE}, corrects=first)
    for asked in ({"5": SENTENCE}, {"2": kidney}, {"2": SENTENCE, "7": kidney}):
        error = refused(client.submit, uploaded, asked, corrects=one)
        assert (error.status, error.code) == (409, "corrects-other-classes"), asked


def test_what_can_not_be_corrected_is_said_before_it_waits(
    client: ServiceClient, scan: Path, served: Running
) -> None:
    uploaded = client.upload(scan)
    first = client.segment(uploaded, SENTENCE)
    mask = corner_of(client, uploaded, first, scan, 1)
    asked = {"corrects": first, "spatial_prompts": mask}
    error = refused(client.submit, uploaded, SENTENCE, start_from="text", **asked)
    assert (error.status, error.code) == (422, "annotation-not-used")
    corrected = client.segment(uploaded, SENTENCE, **asked)
    error = refused(client.submit, uploaded, SENTENCE, corrects=corrected, start_from="text")
    assert (error.status, error.code) == (422, "annotation-not-used")
    served.gate.clear()
    try:
        running = client.submit(uploaded, SENTENCE)
        waiting = client.submit(uploaded, SENTENCE, **asked)
        for job in (running, waiting):
            error = refused(client.submit, uploaded, SENTENCE, corrects=job)
            assert (error.status, error.code) == (409, "job-not-done")
        client.cancel(waiting)
        error = refused(client.submit, uploaded, SENTENCE, corrects=waiting)
        assert (error.status, error.code) == (409, "job-not-done")
        client.delete_mask(mask)  # which the job that waits needs no more
        again = client.submit(uploaded, SENTENCE, corrects=corrected)
    finally:
        served.gate.set()
    assert client.wait(again)["classes"] == corrected["classes"]


def test_a_mask_is_deleted_unless_it_guides(client: ServiceClient, scan: Path) -> None:
    uploaded = client.upload(scan)
    first = client.segment(uploaded, SENTENCE)
    mask = corner_of(client, uploaded, first, scan, 1)
    guided = client.segment(uploaded, SENTENCE, spatial_prompts=mask)
    assert refused(client.delete_mask, mask).code == "mask-in-use"
    other = corner_of(client, uploaded, guided, scan, 1)
    corrected = client.segment(uploaded, SENTENCE, corrects=guided, spatial_prompts=other)
    client.delete_mask(other)
    assert refused(client.delete_mask, other).code == "mask-unknown"
    assert client.segment(uploaded, SENTENCE, corrects=corrected)["classes"] == corrected["classes"]


def test_a_job_is_deleted_and_what_corrects_it_stays(
    client: ServiceClient, scan: Path, served: Running
) -> None:
    uploaded = client.upload(scan)
    first = client.segment(uploaded, SENTENCE)
    mask = corner_of(client, uploaded, first, scan, 1)
    expected = client.segment(uploaded, SENTENCE, corrects=first, spatial_prompts=mask)
    served.gate.clear()
    try:
        waiting = client.submit(uploaded, SENTENCE, corrects=first, spatial_prompts=mask)
        behind = client.submit(uploaded, SENTENCE, corrects=first, spatial_prompts=mask)
        also = client.submit(uploaded, SENTENCE, corrects=expected)
        client.delete_job(first)
        client.delete_job(also)
    finally:
        served.gate.set()
    for job in (waiting, behind):
        assert client.wait(job)["classes"] == expected["classes"]
    for job in (first, also):
        assert refused(client.job, job).code == "job-unknown"
    error = refused(client.submit, uploaded, SENTENCE, corrects=first)
    assert (error.status, error.code) == (404, "job-unknown")
    held = {path.split("/")[2] for path in served.files() if path.count("/") > 2}
    assert held.isdisjoint({first["job"], also["job"]})
    assert {waiting["job"], expected["job"]} <= held


def test_a_job_that_is_deleted_while_its_result_is_compared(
    client: ServiceClient, scan: Path, served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded = client.upload(scan)
    first = client.segment(uploaded, SENTENCE)
    mask = corner_of(client, uploaded, first, scan, 1)
    sessions = served.server.config.app.state.service.sessions
    (owner,) = (each for each in sessions if uploaded["image"] in each.images)
    job = owner.jobs[first["job"]]

    def gone() -> Any:
        owner.jobs.pop(first["job"])
        raise FileNotFoundError

    monkeypatch.setattr(job.files, "labels_dhw", gone)
    error = refused(client.submit, uploaded, SENTENCE, corrects=first, spatial_prompts=mask)
    assert (error.status, error.code) == (404, "job-unknown")


def test_a_chain_of_corrections_takes_no_more_than_its_corrections(
    client: ServiceClient, scan: Path, served: Running
) -> None:
    """Jobs share them, and none keeps those before it."""
    uploaded = client.upload(scan)
    jobs = [client.segment(uploaded, SENTENCE)]
    for _ in range(3):
        mask = corner_of(client, uploaded, jobs[-1], scan, 1)
        jobs.append(client.segment(uploaded, SENTENCE, corrects=jobs[-1], spatial_prompts=mask))
    sessions = served.server.config.app.state.service.sessions
    (owner,) = (each for each in sessions if uploaded["image"] in each.images)
    pasts = [owner.jobs[job["job"]].past() for job in jobs]
    assert [len(past.corrections) for past in pasts] == [0, 1, 2, 3]
    for before, after in pairwise(pasts):
        assert all(
            mine is theirs
            for mine, theirs in zip(after.corrections, before.corrections, strict=False)
        )
    ends = [weakref.ref(owner.jobs.pop(job["job"])) for job in jobs[:-1]]
    until(lambda: gc.collect() >= 0 and not any(each() for each in ends))


def mask_of(
    client: ServiceClient, image: dict[str, Any], job: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Send a job's result back as a mask."""
    client.save_labels(job, folder / "result.nii.gz")
    return client.upload_mask(image, folder / "result.nii.gz")


def test_a_mask_on_another_grid_is_refused(
    client: ServiceClient,
    scan: Path,
    tmp_path: Path,
    served: Running,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the process of readers: the server itself would take the memory of any grid."""
    uploaded = client.upload(scan)
    before = served.files()
    monkeypatch.setattr(job_inputs, "read_labels", pytest.fail)
    other = tmp_path / "other.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 5, 6), np.uint8), np.eye(4)), other)
    error = refused(client.upload_mask, uploaded, other)
    assert (error.status, error.code) == (422, "annotation-on-another-grid")
    assert str(error).startswith("other.nii.gz is not on the grid of scan of someone: shape")
    assert "other.nii.gz" not in "".join(served.files())
    assert served.files() == before


def test_what_contradicts_a_mask_is_said_with_its_users_name(
    client: ServiceClient, scan: Path
) -> None:
    uploaded = client.upload(scan)
    kidney = client.segment(uploaded, "Right kidney in abdominal CT")
    drawn = scan.with_name("drawn by hand.seg.nrrd")
    client.save_labels(kidney, drawn)
    mask = client.upload_mask(uploaded, drawn)
    error = refused(client.submit, uploaded, SENTENCE, spatial_prompts=mask)
    assert (error.status, error.code) == (422, "annotation-names")
    assert str(error).startswith("drawn by hand.seg.nrrd has labels")


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


def owner_of(served: Running, image: dict[str, Any]) -> ClientSession:
    """The session that holds an image."""
    sessions = served.server.config.app.state.service.sessions
    (owner,) = (each for each in sessions if image["image"] in each.images)
    return owner


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


def test_lesions_with_their_instances(client: ServiceClient, scan: Path) -> None:
    job = client.segment(client.upload(scan), "adrenocortical carcinoma on CT", kind="lesion")
    (found,) = job["classes"]
    assert found["lesions"] > 0
    assert len(client.statistics(job, "lesions")) == found["lesions"]
    content = __import__("gzip").decompress(client.fetch(job, "instances"))
    numbers = np.asarray(nibabel.Nifti1Image.from_bytes(content).dataobj)
    assert numbers.max() == found["lesions"]
    assert client.statistics(job)[0]["class"] == found["name"]


def test_probability_maps_and_another_grid_are_those_of_run(
    tiny_bundle: Bundle, client: ServiceClient, scan: Path, tmp_path: Path
) -> None:
    grid = GridRequest((2.0, 2.0, 2.0), 1.0)
    output, maps = tmp_path / "labels.nii.gz", tmp_path / "maps"
    run_job(replace(cli_job(tiny_bundle, scan, output, SENTENCE), probabilities=maps))
    run_job(replace(cli_job(tiny_bundle, scan, output, SENTENCE), grid=grid))
    uploaded = client.upload(scan)
    job = client.segment(uploaded, SENTENCE, probabilities=True)
    with zipfile.ZipFile(io.BytesIO(client.fetch(job, "probabilities"))) as archive:
        assert archive.namelist() == [path.name for path in maps.iterdir()]
        assert archive.read("liver.nii.gz") == (maps / "liver.nii.gz").read_bytes()
    served = client.fetch(job, crop="1", spacing="2")
    assert served == output.read_bytes()
    assert client.fetch(job, crop="1", spacing="2,2,2") == served
    assert refused(client.fetch, job, format="dcm", crop="1").code == "grid-of-the-source"
    for what, query in (("result", {"crops": "10"}), ("probabilities", {"crop": "10"})):
        error = refused(client.fetch, job, what, **query)
        assert (error.status, error.code) == (422, "parameter-unknown")
    assert refused(client.fetch, job, spacing="5000").code == "output-spacing-too-large"
    less = client.fetch(job, format="glb", mesh_reduction="0.02")
    assert len(less) < len(client.fetch(job, format="glb"))
    assert refused(client.fetch, job, mesh_reduction="0.5").code == "no-mesh-to-reduce"
    assert client.fetch(job, "coarse/1")[3:8] == bytes(5)  # neither a name nor a time
    assert refused(client.fetch, job, "coarse/0").code == "coarse-not-there"
    plain = client.segment(uploaded, SENTENCE)
    assert refused(client.fetch, plain, "probabilities").code == "no-probabilities"
    assert refused(client.segment, uploaded, SENTENCE, probabilities=1).code == "option-invalid"


@pytest.mark.parametrize("name", ["npz", "nii.gz", "seg.nrrd", "mha", "nifti"])
def test_formats_hold_the_same_labels(
    client: ServiceClient, scan: Path, tmp_path: Path, name: str
) -> None:
    job = client.segment(client.upload(scan), SENTENCE)
    path = tmp_path / f"x.{'nii' if name == 'nifti' else name}"
    content = client.fetch(job, format=name)
    path = tmp_path / f"x.{'nii.gz' if name == 'nifti' else name}"
    path.write_bytes(content)
    labels = read_labels(path).labels_dhw
    assert int((labels == 1).sum()) == job["classes"][0]["voxels"]


@pytest.mark.parametrize("name", ["case.01.nii.gz", "CASE.NII.GZ", "case.1.seg.nrrd"])
def test_labels_are_saved_in_the_format_of_their_name(
    client: ServiceClient, scan: Path, tmp_path: Path, name: str
) -> None:
    job = client.segment(client.upload(scan), SENTENCE)
    client.save_labels(job, tmp_path / name)
    labels = read_labels(tmp_path / name).labels_dhw
    assert int((labels == 1).sum()) == job["classes"][0]["voxels"]
    assert refused(client.save_labels, job, tmp_path / "case.xyz").code == "unknown-format"


@pytest.mark.parametrize(
    ("prompts", "options", "code"),
    [
        (["Liver in CT", "Liver in CT"], {}, "class-repeated"),
        (["the moon in CT"], {}, None),
        ([], {}, "no-prompts"),
        (None, {}, "no-prompts"),
        ({"1": "Liver in CT", "x": "Spleen in CT"}, {}, None),
        ("Liver", {}, "no-modality"),
        (SENTENCE, {"seed": "x"}, "option-invalid"),
        (SENTENCE, {"preset": "nothing"}, "preset-unknown"),
        (SENTENCE, {"lesions": 3}, "option-invalid"),
        (SENTENCE, {"max_memory": 3}, "option-unknown"),
        (SENTENCE, {"masks": 3}, "option-unknown"),
        (SENTENCE, {"time_budget": -1.0}, "time-budget-out-of-range"),
        (SENTENCE, {"window": "nothing"}, None),
    ],
)
def test_what_can_not_be_asked_for(
    client: ServiceClient, scan: Path, served: Running, prompts: Any, options: Any, code: str | None
) -> None:
    """It is refused before it waits, and leaves nothing."""
    uploaded = client.upload(scan)
    before = served.files()
    error = refused(client.submit, uploaded, prompts, **options)
    assert error.status == 422
    assert error.code == (code or error.code)
    assert error.problem["type"].endswith(error.code)
    assert "\n" not in str(error)
    assert served.files() == before


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


def test_the_model_lists_what_it_covers(client: ServiceClient, tiny_bundle: Bundle) -> None:
    model = client.model()
    assert {each["id"] for each in model["classes"]} == set(tiny_bundle.class_rows)
    assert model["notice"] == tiny_bundle.notice
    for each in model["classes"]:
        read = client.prompts(each["sentence"], kind=each["kind"])
        assert [found["class_id"] for found in read["reading"]] == [each["id"]]
        assert read["problem"] is None
    for group in model["groups"]:
        assert set(group["class_ids"]) <= {each["id"] for each in model["classes"]}


def test_the_model_says_what_formats_and_modalities_are(client: ServiceClient) -> None:
    model = client.model()
    formats = {each["name"]: each for each in model["formats"]}
    assert list(formats) == model["output_formats"]
    assert [name for name, each in formats.items() if each["one_class"]] == ["stl"]
    assert {formats[name]["title"] for name in ("nii.gz", "mgz", "dcm")} == {
        "NIfTI (.nii.gz)",
        "FreeSurfer (.mgz)",
        "DICOM SEG",
    }
    assert {".mgz", ".mgh"} < set(model["input_endings"])
    assert [each["name"] for each in model["modalities"]] == list(MODALITIES)
    assert [each["name"] for each in model["modalities"] if each["in_hounsfield"]] == ["CT"]


def test_suggestions_while_one_types(client: ServiceClient) -> None:
    for typed in ("l", "liv", "Liver", "lver"):
        found = client.prompts(typed, modality="CT")["suggestions"]
        assert "Liver" in [each["name"] for each in found], typed
    read = client.prompts("liver in CT; right kidn")
    assert [each["name"] for each in read["reading"]] == ["Liver"]
    assert read["problem"]["code"]
    assert read["suggestions"][0]["name"] == "Right kidney"
    assert client.prompts("")["suggestions"] == []


def test_a_modality_is_asked_for_by_any_of_its_names(client: ServiceClient, scan: Path) -> None:
    assert client.prompts("Liver", modality="ct") == client.prompts("Liver", modality="CT")
    uploaded = client.upload(scan)
    assert client.submit(uploaded, "Liver", modality="ct")["status"]
    error = refused(client.submit, uploaded, "Liver", modality="XR")
    assert (error.status, error.code) == (422, "request-invalid")
    assert str(error).startswith("modality: no modality 'XR'; choose from CT")
    assert refused(client.submit, uploaded, "Liver", modality=3).code == "request-invalid"


@pytest.mark.parametrize(
    ("text", "modality", "code"),
    [
        ("left kidney", None, "no-modality"),
        ("brain tumor", "MRI", "wrong-kind"),
        ("spleen", "CT", "class-not-covered"),
    ],
)
def test_what_a_text_lacks_is_said_without_options_of_the_command_line(
    client: ServiceClient, text: str, modality: str | None, code: str
) -> None:
    problem = client.prompts(text, modality=modality)["problem"]
    assert problem["code"] == code
    assert "--" not in problem["detail"]


def test_progress_comes_in_order_and_ends(client: ServiceClient, scan: Path) -> None:
    seen: list[Any] = []
    job = client.segment(client.upload(scan), SENTENCE, progress=seen.append)
    assert seen[-1]["status"] == job["status"] == "done"
    assert {each["stage"] for each in seen} <= {None, *STAGE_NAMES.values()}
    assert all(each["windows_done"] <= each["windows_total"] for each in seen)
    again = list(client.watch(job))  # one that comes back late gets the end at once
    assert [each["status"] for each in again] == ["done"]


def test_the_last_event_says_how_the_job_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """However its end falls between two looks at it, which the engine's thread decides."""

    class Ending:
        looks = 0

        @property
        def version(self) -> int:
            self.looks += 1
            return 3 + (self.looks > 2)

        @property
        def is_over(self) -> bool:
            return self.looks > 1  # it ends right behind the second look at its version

    def state(_: Any, job: Any) -> Any:
        return JobState.model_construct(status="done" if job.is_over else "running")

    monkeypatch.setattr(routes, "_job_state", state)
    monkeypatch.setattr(routes, "POLL_S", 0.0)

    service: Any = SimpleNamespace(engine=SimpleNamespace(position=lambda _: None))

    async def events(job: Any) -> list[str]:
        return [each async for each in routes._events(service, job)]

    assert '"status":"done"' in asyncio.run(events(Ending()))[-1]


def test_a_stream_that_breaks_off_is_no_end(
    client: ServiceClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"job": "x", "status": "running", "problem": None}
    monkeypatch.setattr(client, "watch", lambda _: iter([state]))
    assert refused(client.wait, state).code == "stream-cut-short"


def test_a_session_lasts_while_its_jobs_are_watched(
    client: ServiceClient, served: Running, scan: Path
) -> None:
    """Until the end of the stream, not its beginning."""
    served.gate.clear()
    try:
        watched = client.watch(client.submit(client.upload(scan), SENTENCE))
        next(watched)
        (session,) = [each for each in _sessions(served) if each.images]
        assert session.requests == 1
    finally:
        served.gate.set()
    assert list(watched)[-1]["status"] == "done"
    until(lambda: session.requests == 0)


def test_a_page_that_was_loaded_again_finds_its_things(client: ServiceClient, scan: Path) -> None:
    uploaded = client.upload(scan)
    job = client.segment(uploaded, SENTENCE)
    content = client._json("GET", "/v1/sessions/current")
    assert content["images"] == [uploaded]
    assert content["jobs"] == client._json("GET", "/v1/jobs")["jobs"] == [client.job(job)]


def test_a_deleted_image_takes_its_jobs_along(
    client: ServiceClient, scan: Path, served: Running
) -> None:
    before = served.files()
    uploaded = client.upload(scan)
    job = client.segment(uploaded, SENTENCE)
    client.fetch(job, format="npz")
    client.delete_image(uploaded)
    assert served.files() == before
    assert refused(client.job, job).code == "job-unknown"
    assert refused(client.submit, uploaded, SENTENCE).code == "image-unknown"
    (session,) = [each for each in _sessions(served) if not each.images]
    assert session.bytes == 0


def _sessions(served: Running) -> list[Any]:
    return list(served.server.config.app.state.service.sessions)


def test_the_api_describes_itself(served: Running) -> None:
    with served.http() as http:
        described = http.get("/v1/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    routes = {(path, verb) for path, verbs in described["paths"].items() for verb in verbs}
    assert ("/v1/jobs/{job}/events", "get") in routes
    for path, verb in routes:
        entry = described["paths"][path][verb]
        assert entry["summary"]
        assert list(entry["responses"]["default"]["content"]) == ["application/problem+json"], path
        (found,) = [each for status, each in entry["responses"].items() if status[0] == "2"]
        assert found.get("content") or verb == "delete", path
        named = {each["name"] for each in entry.get("parameters", ())}
        wants = ["session"] if "medals-session" in named else []
        assert sorted(entry["security"][0]) == wants
        assert ("token" in entry["security"][-1]) is (path not in {"/healthz", "/readyz"}), path

    def kinds(path: str, status: str = "200", verb: str = "get") -> list[str]:
        return list(described["paths"][path][verb]["responses"][status]["content"])

    assert kinds("/healthz") == kinds("/v1/jobs/{job}/report") == ["application/json"]
    assert kinds("/v1/jobs/{job}/events") == ["text/event-stream"]
    assert kinds("/v1/jobs/{job}/preview.png") == ["image/png"]
    assert kinds("/v1/images", "409", "post") == ["application/problem+json"]
    assert described["components"]["securitySchemes"].keys() == {"token", "session"}
    assert {"upload", "choices"} <= described["components"]["schemas"]["ChoiceState"][
        "properties"
    ].keys()
    sent = described["paths"]["/v1/images"]["post"]["requestBody"]["content"]
    assert "application/octet-stream" in sent


@pytest.mark.parametrize(("asked", "status"), [("bytes=9-1", 400), ("bytes=99999999-", 416)])
def test_a_part_that_a_file_does_not_have(
    client: ServiceClient, scan: Path, asked: str, status: int
) -> None:
    image = client.upload(scan)["image"]
    path = f"/v1/images/{image}/volume.nii.gz"
    whole = client.http.get(path).content
    part = client.http.get(path, headers={"Range": "bytes=1-9"})
    assert (part.status_code, part.content) == (206, whole[1:10])
    answer = client.http.get(path, headers={"Range": asked})
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (problem["status"], "range-invalid")
    assert answer.status_code == status
    if status == 416:
        assert answer.headers["Content-Range"] == f"bytes */{len(whole)}"


def test_what_watches_the_server(served: Running, client: ServiceClient, scan: Path) -> None:
    client.segment(client.upload(scan), SENTENCE)
    with served.http() as http:
        assert http.get("/healthz").json() == {"ok": True}
        assert http.get("/readyz").status_code == 200
        counted = ('medals_jobs_total{status="done"}', 'route="/v1/images"')  # after the answers
        until(lambda: all(each in http.get("/metrics").text for each in counted))
        figures = http.get("/metrics").text
    assert "someone" not in figures
    for line in figures.splitlines():
        assert line.startswith("#") or float(line.rpartition(" ")[2]) >= 0


def test_options_of_a_job_are_those_of_a_run(
    tiny_bundle: Bundle, client: ServiceClient, scan: Path, tmp_path: Path
) -> None:
    output = tmp_path / "labels.npz"
    job = cli_job(tiny_bundle, scan, output, SENTENCE)
    segment = replace(job.options.segment, refinement="none", postprocess="off", window="400,40")
    run_job(replace(job, options=replace(job.options, segment=segment)))
    served = client.segment(
        client.upload(scan), SENTENCE, refinement="none", postprocess="off", window="400,40"
    )
    client.save_labels(served, tmp_path / "served.npz")
    np.testing.assert_array_equal(
        read_labels(tmp_path / "served.npz").labels_dhw, read_labels(output).labels_dhw
    )
    assert client.report(served)["refinement"] == "none"


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


def test_a_file_that_was_deleted_since_it_was_found(tmp_path: Path) -> None:
    """It is no error of the server's."""
    answer = TestClient(routes.ServedFile(tmp_path / "gone.json")).get("/")
    assert (answer.status_code, answer.json()["code"]) == (404, "file-unknown")
