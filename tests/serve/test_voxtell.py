"""VoxTell's client itself, unmodified, against a server."""

import importlib.util
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import nibabel
import numpy as np
import pytest
from scipy import ndimage

from medals_rt.bundle.bundle import Bundle
from medals_rt.io.registry import read_labels
from medals_rt.pipeline.job import run_job
from medals_rt.pipeline.job_request import Job
from medals_rt.pipeline.options import PromptSource, RunOptions
from tests.serve.serving import PATIENCE_S, RUNNER, SENTENCE, Running, running, until

ASKED = [SENTENCE, "Right kidney in abdominal CT"]


def remote_module() -> ModuleType:
    """The client, past a package whose own import wants a window system."""
    if "napari_voxtell" not in sys.modules:
        spec = importlib.util.find_spec("napari_voxtell")
        if spec is None or spec.submodule_search_locations is None:
            pytest.skip("napari-voxtell isn't installed")
        package = ModuleType("napari_voxtell")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["napari_voxtell"] = package
    return importlib.import_module("napari_voxtell.remote.client")


@pytest.fixture
def voxtell(served: Running) -> Iterator[Any]:
    client = remote_module().VoxTellRemoteClient(served.address)
    yield client
    client.close()


def reoriented(path: Path) -> nibabel.Nifti1Image:
    """An image as the plug-in's reader turns it."""
    image = nibabel.load(path)
    return image.as_reoriented(nibabel.io_orientation(image.affine))


def expected_labels(bundle: Bundle, scan: Path, tmp_path: Path, *asked: str) -> Path:
    output = tmp_path / "cli.nii.gz"
    options = RunOptions(bundle=bundle.folder, **RUNNER)
    run_job(Job(scan, output, PromptSource(sentences=asked), options=options))
    return output


def ended(client: Any, job: str) -> dict[str, Any]:
    *_, last = client.stream_events(job)
    return dict(last)


def test_a_session_of_the_plugin(
    tiny_bundle: Bundle, voxtell: Any, scan: Path, tmp_path: Path
) -> None:
    """Connect, open, segment, save: voxels are those of the command line, in both orientations."""
    assert voxtell.healthz() is True
    assert voxtell.capabilities()["model"] == tiny_bundle.name
    image_id, array, spacing, shape = voxtell.upload_image(scan.read_bytes())
    seen = reoriented(scan)
    np.testing.assert_array_equal(array, seen.get_fdata().transpose())
    assert shape == array.shape == seen.shape[::-1]
    np.testing.assert_allclose(spacing, seen.header.get_zooms()[::-1])

    job = voxtell.start_job(image_id, ASKED)
    events = list(voxtell.stream_events(job))
    assert events[-1] == {"status": "done"}
    assert any(event.get("done") == event.get("total", -1) for event in events)
    masks = voxtell.get_result(job)
    cli = expected_labels(tiny_bundle, scan, tmp_path, *ASKED)
    labels_zyx = np.asarray(reoriented(cli).dataobj).transpose()
    assert masks.dtype == np.uint8
    np.testing.assert_array_equal(masks, [labels_zyx == 1, labels_zyx == 2])
    assert masks.any(axis=(1, 2, 3)).all()

    combined = (masks[0] + 2 * masks[1]).astype(np.uint16)
    saved = tmp_path / "saved.nii.gz"
    saved.write_bytes(voxtell.export(image_id, combined))
    np.testing.assert_array_equal(read_labels(saved).labels_dhw, read_labels(cli).labels_dhw)
    np.testing.assert_allclose(nibabel.load(saved).affine, nibabel.load(scan).affine)


def test_an_image_that_the_plugin_has_isnt_sent_back(voxtell: Any, tmp_path: Path) -> None:
    from tests.serve.serving import write_nifti

    sent = write_nifti(tmp_path / "plain.nii").read_bytes()
    _, array, _, shape = voxtell.upload_image(sent, include_image=False)
    assert array is None
    assert len(shape) == 3


def test_only_the_largest_component(voxtell: Any, scan: Path) -> None:
    image_id, *_ = voxtell.upload_image(scan.read_bytes(), include_image=False)
    jobs = [voxtell.start_job(image_id, [SENTENCE], keep_largest=each) for each in (False, True)]
    assert [ended(voxtell, job)["status"] for job in jobs] == ["done", "done"]
    (whole,), (largest,) = (voxtell.get_result(job) for job in jobs)
    numbers, _ = ndimage.label(whole)
    sizes = np.bincount(numbers.ravel())
    sizes[0] = 0
    np.testing.assert_array_equal(largest, numbers == sizes.argmax())


def test_cancel_is_shown_as_canceled(served: Running, voxtell: Any, scan: Path) -> None:
    image_id, *_ = voxtell.upload_image(scan.read_bytes(), include_image=False)
    served.gate.clear()
    try:
        job = voxtell.start_job(image_id, [SENTENCE])
        events: list[dict[str, Any]] = []
        watching = threading.Thread(target=lambda: events.extend(voxtell.stream_events(job)))
        watching.start()
        until(lambda: events)
        assert events[0] == {"done": 0, "total": 100}
        voxtell.cancel(job)
        watching.join(PATIENCE_S)
        assert events[-1]["status"] == "cancelled"
    finally:
        served.gate.set()
    with pytest.raises(httpx.HTTPStatusError, match="409"):
        voxtell.get_result(job)
    assert ended(voxtell, voxtell.start_job(image_id, [SENTENCE]))["status"] == "done"


def test_what_is_refused_says_why_where_the_plugin_shows_it(voxtell: Any, scan: Path) -> None:
    image_id, *_ = voxtell.upload_image(scan.read_bytes(), include_image=False)
    job = voxtell.start_job(image_id, ["Qwertyuiop in abdominal CT"])
    last = ended(voxtell, job)
    assert last["status"] == "error"
    assert "Qwertyuiop" in last["message"]
    voxtell.cancel(job)
    with pytest.raises(httpx.HTTPStatusError, match="404"):
        voxtell.get_result(job)


def test_warnings_are_shown(voxtell: Any, tmp_path: Path) -> None:
    """A file that doesn't say where it lies is segmented with a warning, as on the command line."""
    from tests.serve.serving import image

    path = tmp_path / "nowhere.nii"
    nowhere = nibabel.Nifti1Image(image().transpose(), None)
    nowhere.header.set_zooms((3, 2, 4))
    nibabel.save(nowhere, path)
    image_id, *_ = voxtell.upload_image(path.read_bytes(), include_image=False)
    events = list(voxtell.stream_events(voxtell.start_job(image_id, [SENTENCE])))
    assert events[-1]["status"] == "done"
    shown = [event["message"] for event in events if event.get("event") == "oom_fallback"]
    assert any("orientation" in text for text in shown)


def test_damage_and_strangers(served: Running, voxtell: Any, scan: Path) -> None:
    before = served.files()
    with pytest.raises(httpx.HTTPStatusError, match="422"):
        voxtell.upload_image(b"no image")
    assert served.files() == before
    image_id, *_ = voxtell.upload_image(scan.read_bytes(), include_image=False)
    before = served.files()
    with pytest.raises(httpx.HTTPStatusError, match="422"):
        voxtell.export(image_id, np.zeros((2, 3, 4), np.uint8))
    with served.http() as http:
        for body in (b"", b"VXA2", b"VXA2\x03<u1\x03" + b"\xff" * 40, b"\x00" * 100):
            answer = http.post(f"/images/{image_id}/export", content=body)
            assert (answer.status_code, answer.json()["code"]) in {
                (422, "array-damaged"), (422, "too-many-voxels"),
            }  # fmt: skip
    assert served.files() == before
    for strange in ("x", image_id[:-1]):
        with pytest.raises(httpx.HTTPStatusError, match="404"):
            voxtell.start_job(strange, [SENTENCE])
    with pytest.raises(httpx.HTTPStatusError, match="404"):
        voxtell.get_result(f"{image_id}.0123456789abcdef")


def test_limits_and_the_token_are_those_of_the_api(
    tiny_bundle: Bundle, scan: Path, tmp_path: Path
) -> None:
    client = remote_module().VoxTellRemoteClient
    content = scan.read_bytes()
    token = "a-token-of-twenty-letters"  # noqa: S105
    limits = {"token": token, "max_sessions": 1}
    with running(tiny_bundle, tmp_path, **limits) as served, ExitStack() as closing:
        stranger, friend = client(served.address), client(served.address, token)
        closing.callback(stranger.close)
        closing.callback(friend.close)
        assert stranger.healthz()
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            stranger.upload_image(content)
        image_id, *_ = friend.upload_image(content, include_image=False)
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            stranger.start_job(image_id, [SENTENCE])
        with pytest.raises(httpx.HTTPStatusError, match="503"):
            friend.upload_image(content)
