"""Routes: the model, prompts as they are read, streams of progress, parts of files, OpenAPI."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.choices import MODALITIES, STAGE_NAMES
from medals_serve import routes
from medals_serve.client import ServiceClient
from medals_serve.schemas import JobState
from tests.serve.serving import (
    SENTENCE,
    Running,
    refused,
    until,
)


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


def test_a_file_that_was_deleted_since_it_was_found(tmp_path: Path) -> None:
    """It is no error of the server's."""
    answer = TestClient(routes.ServedFile(tmp_path / "gone.json")).get("/")
    assert (answer.status_code, answer.json()["code"]) == (404, "file-unknown")
