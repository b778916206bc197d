"""JSON of which nothing is dropped: of a key that occurs twice, Python keeps the last alone."""

import json
from typing import Any


class RepeatedKeyError(ValueError):
    """A key occurs twice in one object."""


def decode_json(text: str | bytes) -> Any:
    """Decode JSON.

    Raises
    ------
    RepeatedKeyError
        A key occurs twice in one object.
    ValueError, RecursionError
        As `json.loads`.
    """
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise RepeatedKeyError(f"the key {key[:60]!r} occurs twice in one JSON object")
        found[key] = value
    return found
