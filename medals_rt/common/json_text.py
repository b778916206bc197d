"""JSON of which nothing is dropped: of a key that occurs twice, Python keeps the last alone.

And what is wrong with a file's values in words for those who write such files.
"""

import json
import re
from typing import Any, Final

_TYPES: Final = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "an object with members",
}
_BOUNDS: Final = {">=": "of at least", "<=": "of at most", ">": "above", "<": "below"}
_SENTENCES: Final = {
    r"Object missing required field `(.+)`": "{0!r} is missing",
    r"Object contains unknown field `(.+)`": "there is no member {0!r}",
    r"Invalid enum value (.+)": "{0} is none of its values",
    r"Expected `(.+)` of length >= 1": "it is empty",
    r"Expected `(.+)` matching regex .+": "it is of another form",
    r"Expected `(.+)` ([<>]=?) (.+)": "{0} {1} {2} is wanted",
    r"Expected `(.+)`, got `(.+)`": "{0} is wanted, not {1}",
}
"""What msgspec says, and how it is said here."""


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


def validation_words(error: Exception) -> str:
    """Say in one line what msgspec finds wrong with a value, without its names of types and paths.

    What it says of text that can't be decoded at all is left as it is.
    """
    said, _, place = " ".join(str(error).split()).partition(" - at `")
    name = place.removeprefix("$").rstrip("`").replace("[...]", "").lstrip(".")
    for pattern, sentence in _SENTENCES.items():
        found = re.fullmatch(pattern, said)
        if found:
            said = sentence.format(*map(_plain_word, found.groups()))
            break
    return f"{name}: {said}" if name else said


def _plain_word(word: str) -> str:
    """Return the word for types, such as ``int | null``, or for a bound; any other as it is."""
    types = [each for each in word.split(" | ") if each != "null"]
    if all(each in _TYPES for each in types):
        return " or ".join(_TYPES[each] for each in types) or "nothing"
    return _BOUNDS.get(word, word)
