"""The queue and the one thread that owns the model."""

import contextlib
import threading
from pathlib import Path
from typing import Any, Self

import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.errors import BundleError, RunnerError
from medals_serve import engine as module
from medals_serve.client import ServedProblemError, ServiceClient
from medals_serve.engine import JobEngine
from medals_serve.problems import ServiceError
from tests.errors import raises
from tests.serve.serving import PATIENCE_S, SENTENCE, Running, ending, running, until


@pytest.fixture
def held(served: Running) -> Any:
    """The model waits in its first window."""
    served.gate.clear()
    yield served
    served.gate.set()


def statuses(client: ServiceClient) -> list[str]:
    return [job["status"] for job in client._json("GET", "/v1/jobs")["jobs"]]


def test_jobs_wait_for_each_other(held: Running, scan: Path) -> None:
    with held.client() as first, held.client() as second:
        one, two = first.upload(scan), second.upload(scan)
        a = first.submit(one, SENTENCE)
        until(lambda: first.job(a)["stage"] == "coarse")
        b = second.submit(two, SENTENCE)
        c = first.submit(one, SENTENCE)
        assert (b["position"], c["position"]) == (1, 2)
        assert first.job(a)["position"] is None
        assert second.cancel(b)["status"] == "canceled"
        assert first.job(c)["position"] == 1
        held.gate.set()
        assert first.wait(a)["status"] == first.wait(c)["status"] == "done"
        assert second.job(b)["problem"]["code"] == "job-canceled"


def test_a_running_job_is_canceled_and_the_model_stays_usable(held: Running, scan: Path) -> None:
    with held.client() as client:
        image = client.upload(scan)
        job = client.submit(image, SENTENCE)
        until(lambda: client.job(job)["stage"] == "coarse")
        client.cancel(job)
        with pytest.raises(ServedProblemError) as caught:
            client.wait(job)
        assert (caught.value.status, caught.value.code) == (409, "job-canceled")
        answer = client.http.get(f"/v1/jobs/{job['job']}/result")
        assert (answer.status_code, answer.json()["code"]) == (409, "job-not-done")
        held.gate.set()
        assert client.segment(image, SENTENCE)["status"] == "done"
        assert client.cancel(job)["status"] == "canceled"  # twice is once


def test_a_full_queue_is_said(tiny_bundle: Bundle, tmp_path: Path, scan: Path) -> None:
    limits = {"max_queue": 2, "max_active_jobs": 2}
    with running(tiny_bundle, tmp_path / "data", **limits) as served:
        served.gate.clear()
        with served.client() as other:
            second = other.upload(scan)
            with served.client() as client:
                image = client.upload(scan)
                first = client.submit(image, SENTENCE)
                until(lambda: client.job(first)["status"] == "running")
                client.submit(image, SENTENCE)
                with pytest.raises(ServedProblemError) as caught:
                    client.submit(image, SENTENCE)
                assert (caught.value.status, caught.value.code) == (429, "too-many-jobs")
                job = other.submit(second, SENTENCE)
                with pytest.raises(ServedProblemError) as caught:
                    other.submit(second, SENTENCE)
                assert (caught.value.status, caught.value.code) == (503, "queue-full")
            until(lambda: other.job(job)["status"] == "running")  # the jobs of the first are gone
            served.gate.set()
            assert other.wait(job)["status"] == "done"
        assert served.files() == []


def test_watchers_of_a_waiting_job_see_it_move_up(held: Running, scan: Path) -> None:
    """And one that is canceled as it waits counts as a job that ended."""
    with held.client() as client:
        image = client.upload(scan)
        jobs = [client.submit(image, SENTENCE) for _ in range(3)]
        until(lambda: client.job(jobs[0])["status"] == "running")
        states = client.watch(jobs[2])
        assert next(states)["position"] == 2
        before = canceled_of(client)
        client.cancel(jobs[1])
        assert canceled_of(client) == before + 1
        assert next(states)["position"] == 1
        held.gate.set()
        assert [state["status"] for state in states][-1] == "done"


def canceled_of(client: ServiceClient) -> float:
    """How many jobs were canceled, by the server's figures."""
    name = 'medals_jobs_total{status="canceled"} '
    lines = client.http.get("/metrics").text.splitlines()
    return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


def test_a_canceled_job_leaves_room() -> None:
    """At once, not only when the next one is taken."""
    let_go = threading.Event()

    class Job:
        status, is_over, seconds_run = "queued", False, 0.0

        def run(self, _: object) -> None:
            self.status = "running"
            assert let_go.wait(PATIENCE_S)
            self.is_over = True

        def cancel(self, _: str) -> None:
            self.is_over = True

    engine = JobEngine(contextlib.nullcontext, 1)  # type: ignore[arg-type]
    engine.start()
    try:
        running, waiting, third = (Job() for _ in range(3))
        engine.submit(running)  # type: ignore[arg-type]
        until(lambda: running.status == "running")
        engine.submit(waiting)  # type: ignore[arg-type]
        with raises(ServiceError, "queue-full"):
            engine.check_room()
        waiting.is_over = True
        assert engine.jobs_waiting == 0
        engine.check_room()
        engine.submit(third)  # type: ignore[arg-type]
        assert engine.jobs_waiting == 1
    finally:
        let_go.set()
        engine.stop(PATIENCE_S)


def test_a_job_has_its_time(tiny_bundle: Bundle, tmp_path: Path, scan: Path) -> None:
    with running(tiny_bundle, tmp_path / "data", job_s=0.3) as served, served.client() as client:
        served.gate.clear()
        image = client.upload(scan)
        with pytest.raises(ServedProblemError) as caught:
            client.segment(image, SENTENCE)
        assert (caught.value.status, caught.value.code) == (503, "job-overdue")
        assert client._json("GET", "/v1/jobs")["jobs"][0]["status"] == "failed"


def test_what_fails_fails_alone(
    served: Running, client: ServiceClient, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = client.upload(scan)
    for error, status, code in (
        (RunnerError("the library gave up", code="runner-broke"), 500, "runner-broke"),
        (MemoryError("1 TB"), 503, "out-of-memory"),
        (ZeroDivisionError("secret"), 500, "failure"),
    ):

        def broken(*_: Any, error: Exception = error, **__: Any) -> Any:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(served.segmenter, "segment", broken)
            with pytest.raises(ServedProblemError) as caught:
                client.segment(image, SENTENCE)
        assert (caught.value.status, caught.value.code) == (status, code)
        assert "secret" not in str(caught.value)
    assert client.segment(image, SENTENCE)["status"] == "done"


def test_stopping_lets_the_running_job_end(tiny_bundle: Bundle, tmp_path: Path, scan: Path) -> None:
    """Those that wait are told; nothing more is taken; then the server is gone."""
    with (
        running(tiny_bundle, tmp_path / "data", grace_s=PATIENCE_S) as served,
        served.client() as client,
    ):
        image = client.upload(scan)
        served.gate.clear()
        one = client.submit(image, SENTENCE)
        until(lambda: client.job(one)["status"] == "running")
        two = client.submit(image, SENTENCE)
        served.server.stop_soon()
        until(lambda: client.job(two)["status"] == "canceled")
        assert "stopped" in client.job(two)["problem"]["detail"]
        with pytest.raises(ServedProblemError) as caught:
            client.submit(image, SENTENCE)
        assert (caught.value.status, caught.value.code) == (503, "server-stopping")
        with served.http() as http:
            assert http.get("/readyz").status_code == 503
            assert http.get("/healthz").status_code == 200
        assert ending(client, one, served.gate.set)["status"] == "done"
    assert list((tmp_path / "data").rglob("*")) == []


def test_stopping_has_an_end(tiny_bundle: Bundle, tmp_path: Path, scan: Path) -> None:
    with (
        running(tiny_bundle, tmp_path / "data", grace_s=0.2) as served,
        served.client() as client,
    ):
        served.gate.clear()
        job = client.submit(client.upload(scan), SENTENCE)
        until(lambda: client.job(job)["status"] == "running")
        ended = ending(client, job, served.server.stop_soon)
        assert (ended["status"], ended["problem"]["code"]) == ("canceled", "job-canceled")
        assert "stopped" in ended["problem"]["detail"]


def test_stopping_ends_where_the_model_never_does(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()

    class Stuck:
        status, is_over, seconds_run = "running", False, 0.0

        def run(self, _: object) -> None:
            assert let_go.wait(PATIENCE_S)

        def cancel(self, _: str) -> None:
            pass

    monkeypatch.setattr(module, "_TO_STOP_S", 0.1)
    engine = JobEngine(contextlib.nullcontext, 1)  # type: ignore[arg-type]
    engine.start()
    engine.submit(Stuck())  # type: ignore[arg-type]
    until(lambda: engine.jobs_running == 1)
    rescue = threading.Timer(20, let_go.set)
    rescue.start()
    engine.stop(0.1)
    assert not let_go.is_set()
    rescue.cancel()
    let_go.set()
    engine._thread.join()


def test_one_thread_opens_uses_and_closes() -> None:
    threads: list[str] = []

    class Model:
        measured_passes = None

        def __enter__(self) -> Self:
            threads.append(threading.current_thread().name)
            return self

        def __exit__(self, *_: object) -> None:
            threads.append(threading.current_thread().name)

    class Quick:
        status, is_over, seconds_run = "done", False, 0.0

        def run(self, _: object) -> None:
            threads.append(threading.current_thread().name)
            self.is_over = True

    def open_model() -> Any:
        threads.append(threading.current_thread().name)
        return Model()

    engine = JobEngine(open_model, 1)
    engine.start()
    job: Any = Quick()
    engine.submit(job)
    until(lambda: job.is_over)
    engine.stop(1.0)
    assert threads == ["medals-engine"] * 4
    assert not engine.is_ready


def test_a_model_that_can_not_be_opened() -> None:
    def fail() -> Any:
        raise BundleError("no such bundle", code="bundle-missing")

    engine = JobEngine(fail, 1)
    with pytest.raises(BundleError):
        engine.start()
    assert not engine.is_ready
    engine.stop(1.0)
