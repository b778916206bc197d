"""What jobs leave of their image for later ones: the same answers sooner, gone with the image."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.inference.kept import FeatureCache
from medals_rt.io.registry import read_labels
from medals_rt.pipeline.job import run_job
from medals_rt.pipeline.job_request import Job
from medals_rt.pipeline.options import PromptSource, RunOptions
from medals_serve.client import ServedProblemError, ServiceClient
from tests.serve.serving import RUNNER, SENTENCE, Running, running, until, write_nifti

OTHER = "Right kidney in abdominal CT"


def cache_of(served: Running) -> FeatureCache:
    features: FeatureCache = served.server.config.app.state.service.features
    return features


@pytest.fixture
def small(tiny_bundle: Bundle, tmp_path: Path) -> Iterator[Running]:
    with running(tiny_bundle, tmp_path / "data", cache_bytes=2**26) as found:
        yield found


def figures(served: Running) -> dict[str, float]:
    with served.http() as http:
        lines = http.get("/metrics").text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("medals_kept"))
    return {name: float(value) for name, value in pairs}


def from_nothing(bundle: Bundle, scan: Path, output: Path, sentence: str, **more: Any) -> Any:
    options = RunOptions(bundle=bundle.folder, **RUNNER)
    source = PromptSource(sentences=(sentence,))
    run_job(Job(scan, output, source, options=options, **more))
    return read_labels(output).labels_dhw


def served_labels(client: ServiceClient, job: dict[str, Any], path: Path) -> Any:
    client.save_labels(job, path)
    return read_labels(path).labels_dhw


def test_the_next_prompt_and_the_next_edit_are_those_of_the_command_line(
    tiny_bundle: Bundle, small: Running, scan: Path, tmp_path: Path
) -> None:
    import nibabel

    original = nibabel.load(scan)
    drawn = np.zeros(original.shape, np.uint8)
    drawn[5:12, 4:14, 2:8] = 1
    drawing = tmp_path / "drawing.nii.gz"
    nibabel.save(nibabel.Nifti1Image(drawn, original.affine), drawing)
    with small.client() as client:
        image = client.upload(scan)
        client.segment(image, SENTENCE)
        assert figures(small)["medals_kept_bytes"] == cache_of(small).bytes > 0
        before = figures(small)["medals_kept_hits_total"]
        second = client.segment(image, OTHER)
        assert figures(small)["medals_kept_hits_total"] > before
        mask = client.upload_mask(image, drawing)
        edits = [client.segment(image, OTHER, spatial_prompts=mask) for _ in range(2)]
        coarse, _ = client.report(second)["stages"]
        assert (coarse["passes"], coarse["windows_kept"]) == (0, coarse["windows"])
        (fine,) = client.report(edits[1])["stages"]
        assert (fine["passes"], fine["windows_kept"]) == (0, fine["windows"])
        expected = from_nothing(tiny_bundle, scan, tmp_path / "second.npz", OTHER)
        np.testing.assert_array_equal(
            served_labels(client, second, tmp_path / "served.npz"), expected
        )
        expected = from_nothing(
            tiny_bundle, scan, tmp_path / "edit.npz", OTHER, spatial_prompts=drawing
        )
        for edit in edits:
            np.testing.assert_array_equal(
                served_labels(client, edit, tmp_path / "served edit.npz"), expected
            )


def test_what_is_kept_goes_with_the_image_and_with_the_session(
    small: Running, tmp_path: Path
) -> None:
    cache = cache_of(small)
    with small.client() as client:
        first, second = (
            client.upload(write_nifti(tmp_path / f"{seed}.nii", seed)) for seed in (0, 1)
        )
        client.segment(first, SENTENCE)
        one = cache.bytes
        client.segment(second, SENTENCE)
        assert cache.bytes > one > 0
        client.delete_image(first)
        assert 0 < cache.bytes < 2 * one
        client.delete_image(second)
        assert cache.bytes == 0
        client.segment(client.upload(tmp_path / "0.nii"), SENTENCE)
        assert cache.bytes > 0
    until(lambda: cache.bytes == 0 and len(cache) == 0)


def test_a_session_that_ends_in_the_middle_of_a_job_leaves_nothing(
    small: Running, scan: Path
) -> None:
    cache = cache_of(small)
    small.gate.clear()
    with small.client() as client:
        job = client.submit(client.upload(scan), SENTENCE)
        until(lambda: client.job(job)["status"] == "running")
    small.gate.set()
    until(lambda: small.server.config.app.state.service.engine.jobs_running == 0)
    assert (cache.bytes, len(cache)) == (0, 0)


def test_nothing_is_kept_where_that_is_asked(
    tiny_bundle: Bundle, tmp_path: Path, scan: Path
) -> None:
    with (
        running(tiny_bundle, tmp_path / "data", cache_bytes=0) as served,
        served.client() as client,
    ):
        image = client.upload(scan)
        for sentence in (SENTENCE, OTHER):
            job = client.segment(image, sentence)
            assert client.report(job)["stages"][0]["windows_kept"] == 0
        assert set(figures(served).values()) == {0.0}


def test_the_coarse_result_can_be_had_before_the_fine_one(
    served: Running, client: ServiceClient, scan: Path
) -> None:
    import nibabel

    job = client.segment(client.upload(scan), SENTENCE)
    assert job["coarse_parts"] == 1
    found = nibabel.Nifti1Image.from_bytes(gzip.decompress(client.fetch(job, "coarse/1")))
    original = nibabel.load(scan)
    corners = [np.array([0, 0, 0]), np.array([1, 1, 1])]
    for each in (found, original):  # edges of both grids, in any order of their axes
        size = np.array(each.shape)
        corners.append(
            np.sort([(each.affine @ [*(size * corner - 0.5), 1])[:3] for corner in corners[:2]], 0)
        )
    np.testing.assert_allclose(corners[2], corners[3], atol=1e-3)
    for part in (0, 2):
        with pytest.raises(ServedProblemError) as caught:
            client.fetch(job, f"coarse/{part}")
        assert (caught.value.status, caught.value.code) == (409, "coarse-not-there")
    drawn_only = client.segment(client.upload(scan), SENTENCE, stages="fine")
    assert drawn_only["coarse_parts"] == 0
    del served
