"""Corrections of results through the service, and the masks that say them."""

import gc
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.inference.corrections import Correction
from medals_rt.io.registry import read_case, read_labels
from medals_rt.pipeline import job_inputs
from medals_rt.pipeline.segmenter import load
from medals_rt.prompts.prompt_set import parse_prompts
from medals_serve.client import ServiceClient
from tests.serve.serving import (
    RUNNER,
    SENTENCE,
    Running,
    owner_of,
    refused,
    until,
)


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
    owner = owner_of(served, uploaded)
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
    owner = owner_of(served, uploaded)
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
