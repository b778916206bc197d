"""JSON of clients: nothing is dropped from it, and nothing in it breaks a session."""

import json
from pathlib import Path

import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute

from medals_rt.common.errors import InputError
from medals_serve import routes
from medals_serve.client import ServiceClient
from medals_serve.protocols import capabilities, monailabel, nninteractive, voxtell
from medals_serve.strict_json import StrictRoute, read_json
from tests.errors import raises
from tests.serve.serving import SENTENCE

HEADERS = {"Content-Type": "application/json"}


def is_router(found: object) -> bool:
    return isinstance(found, APIRouter)


def test_what_is_json_is_read() -> None:
    text = '{"a": [1, 2.5, null], "b": {"a": "\\ud83d\\ude00 \u00e4"}}'
    assert read_json(text) == json.loads(text)
    assert read_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"1": "Liver", "1": "Spleen"}', "json-key-repeated"),
        ('[{"a": {"b": 1, "b": 1}}]', "json-key-repeated"),
        ('["\\ud800 liver"]', "json-not-unicode"),
        ('{"\\udfff": 1}', "json-not-unicode"),
        (b'["\xff"]', "json-unreadable"),
        ("[" * 200_000, "json-unreadable"),
        ("9" * 5_000, "json-unreadable"),
    ],
)
def test_what_could_not_be_answered_is_refused(text: str | bytes, code: str) -> None:
    with raises(InputError, code):
        read_json(text)


def test_what_is_no_json_says_where() -> None:
    with pytest.raises(json.JSONDecodeError):
        read_json('{"a": }')


def test_every_json_body_is_read_strictly() -> None:
    modules = (routes, capabilities, voxtell, monailabel, nninteractive)
    routers = [each for module in modules for each in vars(module).values() if is_router(each)]
    found = [each for router in routers for each in router.routes if isinstance(each, APIRoute)]
    taking = [each for each in found if each.body_field is not None]
    assert len(taking) >= 3
    assert [each.path for each in taking if not isinstance(each, StrictRoute)] == []


def test_a_job_keeps_each_class_or_is_refused(client: ServiceClient, scan: Path) -> None:
    image = client.upload(scan)["image"]
    for prompts, code in (
        ('{"1": "Liver in abdominal CT", "1": "Spleen in abdominal CT"}', "json-key-repeated"),
        ('["\\ud800 liver in abdominal CT"]', "json-not-unicode"),
    ):
        body = f'{{"image": "{image}", "prompts": {prompts}}}'
        answer = client.http.post("/v1/jobs", content=body, headers=HEADERS)
        assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert client.http.get("/v1/jobs").json() == {"jobs": []}


def test_parameters_of_one_value_are_given_once(client: ServiceClient, scan: Path) -> None:
    job = client.segment(client.upload(scan), SENTENCE)["job"]
    answer = client.http.get(f"/v1/jobs/{job}/result?format=npz&format=nii.gz")
    assert (answer.status_code, answer.json()["code"]) == (422, "parameter-repeated")
    lengths = "spacing=2&spacing=2&spacing=4"
    assert client.http.get(f"/v1/jobs/{job}/result?{lengths}").status_code == 200
