"""JSON of which nothing is dropped."""

import json
from typing import Annotated, Any, Literal

import msgspec
import pytest

from medals_rt.common.json_text import RepeatedKeyError, decode_json, validation_words


@pytest.mark.parametrize("text", ['{"a": [1, 2.5, null], "b": {"a": "\\u00e4"}}', "[]", '"a"'])
def test_what_is_json_is_decoded(text: str) -> None:
    assert decode_json(text) == decode_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize("text", ['{"1": 1, "2": 2, "1": 1}', '[{"a": {"b": 1, "b": 2}}]'])
def test_a_key_that_occurs_twice_is_refused(text: str) -> None:
    with pytest.raises(RepeatedKeyError, match="twice"):
        decode_json(text)


class Part(msgspec.Struct, forbid_unknown_fields=True):
    port: Annotated[int, msgspec.Meta(ge=1, le=9)]
    title: Annotated[str, msgspec.Meta(pattern="^a$")] = "a"


class Whole(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=1)]
    crop: float | None = None
    kind: Literal["x", "y"] | None = None
    several: tuple[Annotated[str, msgspec.Meta(min_length=1)], ...] = ()
    parts: dict[str, Part] = {}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1, "an object with members is wanted, not a whole number"),
        ({}, "'name' is missing"),
        ({"name": ""}, "name: it is empty"),
        ({"name": "a", "crop": "much"}, "crop: a number is wanted, not text"),
        ({"name": "a", "kind": "z"}, "kind: 'z' is none of its values"),
        ({"name": "a", "several": "b"}, "several: a list is wanted, not text"),
        ({"name": "a", "several": ["b", ""]}, "several[1]: it is empty"),
        ({"name": "a", "other": 1}, "there is no member 'other'"),
        ({"name": "a", "parts": {"b": {}}}, "parts: 'port' is missing"),
        ({"name": "a", "parts": {"b": {"port": 0}}}, "parts.port: a whole number of at least 1 is"),
        ({"name": "a", "parts": {"b": {"port": 10}}}, "parts.port: a whole number of at most 9 is"),
        ({"name": "a", "parts": {"b": {"port": 1, "title": "b"}}}, "parts.title: it is of another"),
    ],
)
def test_what_is_wrong_with_a_value_is_said_in_plain_words(value: Any, words: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(value, Whole)
    said = validation_words(caught.value)
    assert said.startswith(words)
    assert "`" not in said
