"""A model in a process of its own: the same results, and another one where its GPU fails."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.errors import DeviceLostError, MedalsError, PromptError, RunnerError
from medals_rt.common.interruption import interrupted_by
from medals_rt.inference.corrections import Correction
from medals_rt.io.volume import Volume
from medals_rt.pipeline.options import RunOptions, SegmentOptions
from medals_rt.pipeline.segmenter import Segmenter
from medals_serve import model_process
from medals_serve.client import ServedProblemError, ServiceClient
from medals_serve.model_process import ModelProcess, open_served
from medals_serve.server import Server, address_of, bind
from medals_serve.settings import ServeSettings
from tests.errors import raises
from tests.serve import fake_model
from tests.serve.serving import RUNNER, SENTENCE, image, until

VOLUME = Volume(image(), (2.0, 2.0, 4.0))


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file that the fake in the child reads."""
    file = tmp_path_factory.mktemp("fake") / "faults"
    file.touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(fake_model.FAULTS, str(file))
        patch.setattr(model_process, "_work", fake_model.work)
        yield file


@pytest.fixture
def faults(fake: Path) -> Iterator[Callable[..., None]]:
    """Say what becomes of the next windows."""

    def say(*names: str) -> None:
        fake.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")

    yield say
    say()


@pytest.fixture(scope="module")
def options(tiny_bundle: Bundle) -> RunOptions:
    return RunOptions(bundle=tiny_bundle.folder, **RUNNER)


@pytest.fixture(scope="module")
def model(
    options: RunOptions,
    tiny_bundle: Bundle,
    fake: Path,  # noqa: ARG001 - puts the fake there
) -> Iterator[ModelProcess]:
    """One for all tests: each child takes seconds to start."""
    with ModelProcess(options, tiny_bundle, pytest.fail) as found:
        yield found


def test_the_same_result_as_in_this_process(model: ModelProcess, tiny_bundle: Bundle) -> None:
    seen: list[tuple[str, int, int]] = []
    drawn = np.zeros(VOLUME.shape_dhw, np.uint8)
    drawn[4:8, 8:16, 8:16] = 1
    made = Correction.of(drawn, np.roll(drawn, 1, axis=0), [1])
    found = model.segment(
        VOLUME,
        SENTENCE,
        SegmentOptions(seed=3),
        spatial_prompts=drawn,
        corrections=[made],
        progress=lambda *each: seen.append(each),
    )
    with Segmenter.open(tiny_bundle, **RUNNER) as here:
        expected = here.segment(
            VOLUME,
            SENTENCE,
            SegmentOptions(seed=3),
            spatial_prompts=drawn,
            corrections=[made],
        )
        assert model.arithmetic == here.arithmetic
    np.testing.assert_array_equal(found.labels_dhw, expected.labels_dhw)
    assert [note.code for note in found.report.notes] == [
        note.code for note in expected.report.notes
    ]
    assert seen
    assert model.measured_passes is None  # the child has kept them
    assert model.memory_limit(1 << 30).total == 1 << 30
    with pytest.raises(PromptError):
        model.segment(VOLUME, "nonsense")
    assert model._process.is_alive()


@pytest.mark.parametrize("fault", ["lost", "killed"])
def test_a_job_in_which_the_gpu_fails_is_tried_once_more_in_another_process(
    model: ModelProcess, faults: Callable[..., None], fault: str
) -> None:
    expected = model.segment(VOLUME, SENTENCE).labels_dhw
    before = model._process.pid
    faults(fault)
    found = model.segment(VOLUME, SENTENCE).labels_dhw
    np.testing.assert_array_equal(found, expected)
    assert model._process.pid != before


def test_a_job_that_loses_two_processes_fails_and_the_next_one_runs(
    model: ModelProcess, faults: Callable[..., None]
) -> None:
    faults("lost", "killed")
    with raises(DeviceLostError, "device-lost", "SIGKILL"):
        model.segment(VOLUME, SENTENCE)
    assert model.segment(VOLUME, SENTENCE).labels_dhw.shape == VOLUME.shape_dhw


def test_other_errors_are_the_jobs_own(model: ModelProcess, faults: Callable[..., None]) -> None:
    before = model._process.pid
    faults("refused")
    with pytest.raises(RunnerError) as caught:
        model.segment(VOLUME, SENTENCE)
    assert "ZeroDivisionError" in str(caught.value)
    assert model._process.pid == before


def test_a_job_is_canceled_by_its_listener(model: ModelProcess) -> None:
    def cancel(*_: object) -> None:
        raise KeyboardInterrupt

    before = model._process.pid
    with pytest.raises(KeyboardInterrupt):
        model.segment(VOLUME, SENTENCE, progress=cancel)
    assert model.segment(VOLUME, SENTENCE).report is not None
    assert model._process.pid == before


def test_a_job_that_is_stuck_is_canceled_with_its_process(
    model: ModelProcess, faults: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_process, "_TO_CANCEL_S", 0.1)
    monkeypatch.setattr(model_process, "_LOOK_AFTER_S", 0.1)
    before = model._process.pid
    seen: list[object] = []

    def cancel(*windows: object) -> None:
        seen.append(windows)
        if seen[-2:] == [windows, windows]:  # it is asked, though nothing new is told
            raise KeyboardInterrupt

    def stick(*windows: object) -> None:
        if not seen:
            faults("stuck")
        cancel(*windows)

    with pytest.raises(KeyboardInterrupt):
        model.segment(VOLUME, SENTENCE, progress=stick)
    assert model.segment(VOLUME, SENTENCE).report is not None
    assert model._process.pid != before


LARGE = Volume(np.zeros((200, 64, 64), np.int16), (2.0, 2.0, 4.0))
"""More than a pipe holds."""


@pytest.mark.parametrize("volume", [VOLUME, LARGE], ids=["small", "large"])
def test_a_child_that_is_stuck_before_its_first_word_is_ended(
    model: ModelProcess, monkeypatch: pytest.MonkeyPatch, volume: Volume
) -> None:
    """Where it does not even read what it is asked."""
    monkeypatch.setattr(model_process, "_TO_CANCEL_S", 0.1)
    monkeypatch.setattr(model_process, "_LOOK_AFTER_S", 0.1)
    stuck = model._process.pid
    assert stuck is not None
    os.kill(stuck, signal.SIGSTOP)
    calls: list[int] = []

    def end() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    rescue = threading.Timer(60, os.kill, (stuck, signal.SIGKILL))
    rescue.start()
    with interrupted_by(end), pytest.raises(KeyboardInterrupt):
        model.segment(volume, SENTENCE)
    rescue.cancel()
    assert len(calls) == 3
    assert model.memory_limit(1 << 30).total == 1 << 30
    assert model.segment(VOLUME, SENTENCE).report is not None
    assert model._process.pid != stuck


@pytest.mark.parametrize(
    ("fault", "why"), [("closed", "there is no GPU any more"), ("hangs", "says nothing")]
)
def test_a_model_that_cannot_be_opened_again_is_said(
    options: RunOptions,
    tiny_bundle: Bundle,
    faults: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    why: str,
) -> None:
    gone: list[MedalsError] = []
    with ModelProcess(options, tiny_bundle, gone.append) as model:
        monkeypatch.setattr(model_process, "_TO_OPEN_AGAIN_S", 0.1)
        faults("lost", fault)
        with raises(DeviceLostError, "device-lost", "can't be opened again", why):
            model.segment(VOLUME, SENTENCE)
    assert [error.code for error in gone] == ["device-lost"]


def test_on_a_processor_the_model_stays_here(options: RunOptions) -> None:
    with open_served(options, lambda _: None) as model:
        assert type(model) is Segmenter


@pytest.fixture
def server(
    options: RunOptions,
    faults: Callable[..., None],  # noqa: ARG001 - puts the fake there
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[Server, str, threading.Thread]]:
    """Serve as where the networks run on a GPU."""
    monkeypatch.setattr(model_process, "runs_on_gpu", lambda *_: True)
    started = threading.Event()
    with bind("127.0.0.1", 0) as bound:
        settings = ServeSettings(data_dir=tmp_path / "data", min_free_bytes=0, grace_s=5.0)
        server = Server(settings, options, announce=started.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            assert started.wait(60)
            yield server, address_of(bound).rstrip("/"), thread
        finally:
            with suppress(RuntimeError):  # it has stopped, and its loop is closed
                server.stop_soon()
            thread.join(60)
            assert not thread.is_alive()


def test_a_server_loses_nothing_when_its_gpu_fails(
    server: tuple[Server, str, threading.Thread], faults: Callable[..., None], scan: Path
) -> None:
    """Neither uploads nor results of before nor jobs that wait."""
    _, address, _ = server
    with ServiceClient(address, timeout_s=60) as client:
        uploaded = client.upload(scan)
        earlier = client.segment(uploaded, SENTENCE)
        faults("lost")
        jobs = [client.submit(uploaded, SENTENCE) for _ in range(2)]
        assert [client.wait(job)["status"] for job in jobs] == ["done", "done"]
        results = [
            client.http.get(f"/v1/jobs/{job['job']}/result?format=npz").content
            for job in (earlier, *jobs)
        ]
        assert results[0] == results[1] == results[2]
        assert client.http.get("/readyz").status_code == 200


def test_a_job_that_is_tried_again_has_no_coarse_part_twice(
    server: tuple[Server, str, threading.Thread],
    fake: Path,
    faults: Callable[..., None],
    scan: Path,
) -> None:
    _, address, _ = server
    with ServiceClient(address, timeout_s=60) as client:
        faults(*["none"] * 1000)
        expected = client.segment(client.upload(scan), SENTENCE)
        windows = 1000 - len(fake.read_text(encoding="utf-8").splitlines())
        faults(*["none"] * (windows - 1), "lost")
        found = client.segment(client.upload(scan), SENTENCE)
        assert fake.read_text(encoding="utf-8") == ""
        assert found["coarse_parts"] == expected["coarse_parts"] == 1
        assert found["classes"] == expected["classes"]


def test_a_server_without_a_gpu_says_so_and_ends(
    server: tuple[Server, str, threading.Thread], faults: Callable[..., None], scan: Path
) -> None:
    served, address, thread = server
    with ServiceClient(address, timeout_s=60) as client:
        uploaded = client.upload(scan)
        faults("lost", "closed")
        job = client.submit(uploaded, SENTENCE)
        until(lambda: served.failure is not None)
        problem: Any = None
        try:
            client.wait(job)
        except ServedProblemError as error:
            problem = error
        assert (problem.status, problem.code) == (503, "device-lost")
        thread.join(60)
    assert isinstance(served.failure, DeviceLostError)


class _Cache:
    """As much of a cache of what jobs leave of images as the child uses."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes

    def image(self) -> "_Image":
        return _Image(self)


class _Image:
    def __init__(self, cache: _Cache) -> None:
        self.cache = cache
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


def test_what_is_kept_of_images_is_kept_in_the_child() -> None:
    """By number, for as long as the server has not closed it."""
    images = model_process._KeptImages()
    first = images.of(model_process._Kept(_Cache, 7, 0, frozenset({0})))
    assert first.cache.max_bytes == 7
    second = images.of(model_process._Kept(_Cache, 7, 1, frozenset({0, 1})))
    assert images.of(model_process._Kept(_Cache, 7, 0, frozenset({0, 1}))) is first
    assert second.cache is first.cache
    assert images.of(model_process._Kept(_Cache, 7, 1, frozenset({1}))) is second
    assert first.is_closed
    assert not second.is_closed


def test_images_have_numbers_until_they_are_closed(model: ModelProcess) -> None:
    cache = _Cache(5)
    one, two = cache.image(), cache.image()
    assert model._kept_there(None) is None
    assert model._kept_there(one) == (_Cache, 5, 0, {0})
    assert model._kept_there(two) == (_Cache, 5, 1, {0, 1})
    one.close()
    assert model._kept_there(two) == (_Cache, 5, 1, {1})
    del one
    assert model._kept_there(two) == (_Cache, 5, 1, {1})
