"""JSON of which nothing is dropped."""

import json

import pytest

from medals_rt.common.json_text import RepeatedKeyError, decode_json


@pytest.mark.parametrize("text", ['{"a": [1, 2.5, null], "b": {"a": "\\u00e4"}}', "[]", '"a"'])
def test_what_is_json_is_decoded(text: str) -> None:
    assert decode_json(text) == decode_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize("text", ['{"1": 1, "2": 2, "1": 1}', '[{"a": {"b": 1, "b": 2}}]'])
def test_a_key_that_occurs_twice_is_refused(text: str) -> None:
    with pytest.raises(RepeatedKeyError, match="twice"):
        decode_json(text)
