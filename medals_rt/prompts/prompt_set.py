"""The prompts of a case: which label stands for which class.

A challenge case and `prompts.json` hold `{"1": "Liver in abdominal CT", "2": ..., "instance_label":
0}`: label values as keys, sentences as values, and `instance_label` 0 for anatomy (semantic
labels) or 1 for lesions (instances); system section 3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from medals_rt.common.choices import KINDS
from medals_rt.common.errors import MissingFileError, PromptError
from medals_rt.prompts.classes import ClassKey, check_kind
from medals_rt.prompts.matching import Match, find_class, free_text

if TYPE_CHECKING:
    from os import PathLike

INSTANCE_LABEL: Final = "instance_label"
MAX_LABEL: Final = 65535
"""Label values are stored as 16-bit integers at most."""

MAX_PROMPTS: Final = 1000
_MAX_FILE_BYTES: Final = 4 * 2**20


@dataclass(frozen=True)
class PromptReading:
    """How sentences are read.

    Attributes
    ----------
    modality
        Of the image, for sentences that name none.
    free_text
        Whether a sentence that names no known class is taken as it is, for a bundle that has a text
        encoder, instead of being refused.
    """

    modality: str | None = None
    free_text: bool = False


PLAIN_READING: Final = PromptReading()


@dataclass(frozen=True)
class Prompt:
    """One label of a case: its value, its sentence, and the class that the sentence names."""

    label: int
    text: str
    class_key: ClassKey
    matched: str


@dataclass(frozen=True)
class PromptSet:
    """The prompts of one case, in the order given; all of one modality and one kind.

    Raises
    ------
    PromptError
        If it is empty, mixes modalities or kinds, or gives a label or a class twice.
    """

    prompts: tuple[Prompt, ...]

    def __post_init__(self) -> None:
        if not self.prompts:
            raise PromptError(
                "there is no prompt; give at least one, such as "
                '{"1": "Spleen in abdominal CT", "instance_label": 0}'
            )
        _refuse_mixture(self.prompts)
        _refuse_repetition(self.prompts)

    @property
    def kind(self) -> str:
        """`"anatomy"` or `"lesion"`."""
        return self.prompts[0].class_key.kind

    @property
    def modality(self) -> str:
        """Modality of the image."""
        return self.prompts[0].class_key.modality

    @property
    def class_keys(self) -> tuple[ClassKey, ...]:
        """Class of each prompt."""
        return tuple(prompt.class_key for prompt in self.prompts)

    @property
    def labels(self) -> tuple[int, ...]:
        """Label value of each prompt."""
        return tuple(prompt.label for prompt in self.prompts)

    @property
    def texts(self) -> tuple[str, ...]:
        """Sentence of each prompt."""
        return tuple(prompt.text for prompt in self.prompts)

    @property
    def single(self) -> bool:
        """Whether the case asks for exactly one class (`single` of system section 4)."""
        return len(set(self.class_keys)) == 1

    def as_mapping(self) -> dict[str, object]:
        """Give the prompts as a challenge case and `prompts.json` hold them."""
        mapping: dict[str, object] = {str(prompt.label): prompt.text for prompt in self.prompts}
        mapping[INSTANCE_LABEL] = KINDS.index(self.kind)
        return mapping


def _refuse_mixture(prompts: Sequence[Prompt]) -> None:
    for of, name in (("modality", "modalities"), ("kind", "kinds")):
        found: dict[str, Prompt] = {}
        for prompt in prompts:
            found.setdefault(getattr(prompt.class_key, of), prompt)
        if len(found) > 1:
            listed = ", ".join(f"{value} (label {prompt.label})" for value, prompt in found.items())
            raise PromptError(
                f"the prompts of one case are of {len(found)} {name}: {listed}; "
                "a case is one image, split the prompts"
            )


def _refuse_repetition(prompts: Sequence[Prompt]) -> None:
    by_label: dict[int, Prompt] = {}
    by_class: dict[ClassKey, Prompt] = {}
    for prompt in prompts:
        if not 1 <= prompt.label <= MAX_LABEL:
            raise PromptError(
                f"label {prompt.label} isn't a label value; use whole numbers from 1 to {MAX_LABEL}"
            )
        twin = by_label.setdefault(prompt.label, prompt)
        if twin is not prompt:
            raise PromptError(
                f"label {prompt.label} is given twice, for {twin.text!r} and {prompt.text!r}; "
                "give each class its own label"
            )
        twin = by_class.setdefault(prompt.class_key, prompt)
        if twin is not prompt:
            raise PromptError(
                f"labels {twin.label} and {prompt.label} both mean {str(prompt.class_key)!r} "
                f"({twin.text!r}, {prompt.text!r}); keep one of them"
            )


def parse_prompts(
    mapping: Mapping[str, object], reading: PromptReading = PLAIN_READING
) -> PromptSet:
    """Read the mapping of a challenge case or of `prompts.json`.

    A sentence without a modality takes the one in `reading`, else that of the other prompts, since
    a case is one image.
    A missing `instance_label` means 0, anatomy.

    Raises
    ------
    PromptError
        If a key isn't a positive whole number or stands twice ("1" and "01"), a value isn't a
        sentence, `instance_label` isn't 0 or 1, a sentence names no class or several (the nearest
        are given), two labels mean one class, or two modalities are named.
    """
    if not isinstance(mapping, Mapping):
        raise PromptError(
            f"prompts are a {type(mapping).__name__}; give an object such as "
            '{"1": "Spleen in abdominal CT", "instance_label": 0}'
        )
    if len(mapping) > MAX_PROMPTS:
        raise PromptError(f"{len(mapping)} prompts are more than {MAX_PROMPTS}; split the case")
    kind = _read_kind(mapping.get(INSTANCE_LABEL, 0))
    texts: dict[int, str] = {}
    for key, text in mapping.items():
        if key == INSTANCE_LABEL:
            continue
        label = _read_label(key)
        if not isinstance(text, str):
            raise PromptError(f"the prompt of label {label} is {text!r}; write a sentence")
        if label in texts:
            raise PromptError(
                f"label {label} is given twice, for {texts[label]!r} and {text!r}; "
                "give each class its own label"
            )
        texts[label] = text
    return _resolve(texts, kind, reading)


def _read_kind(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str) or str(value) not in {"0", "1"}:
        raise PromptError(
            f"instance_label is {value!r}; use 0 (anatomy, one label a class) or 1 (lesions)"
        )
    return KINDS[int(value)]


def _read_label(key: object) -> int:
    text = str(key).strip()
    if isinstance(key, bool) or not re.fullmatch(r"[0-9]{1,9}", text) or int(text) == 0:
        raise PromptError(
            f"label {key!r} isn't a label value; use whole numbers from 1 to {MAX_LABEL} as keys"
        )
    return int(text)


def _resolve(texts: Mapping[int, str], kind: str, reading: PromptReading) -> PromptSet:
    """Read every sentence; those without a modality take the one that the others name."""
    found: dict[int, Match] = {}
    refused: dict[int, PromptError] = {}
    for label, text in texts.items():
        try:
            found[label] = find_class(text, kind, reading.modality)
        except PromptError as error:
            refused[label] = error
    modalities = {match.modality for match in found.values()}
    (modality,) = modalities if len(modalities) == 1 else (reading.modality,)
    for label, refusal in refused.items():
        try:
            if modality is None:
                raise refusal
            found[label] = find_class(texts[label], kind, modality)
        except PromptError:
            if not reading.free_text:
                raise
            found[label] = free_text(texts[label], kind, modality)
    return PromptSet(
        tuple(
            Prompt(label, text, found[label].class_key, found[label].matched)
            for label, text in texts.items()
        )
    )


def read_prompts(path: str | PathLike[str], reading: PromptReading = PLAIN_READING) -> PromptSet:
    """Read a `prompts.json`.

    Raises
    ------
    MissingFileError
        If there is no such file.
    PromptError
        If it isn't JSON of the right form; see `parse_prompts`.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingFileError(f"there is no prompts file {file}; check the path")
    if file.stat().st_size > _MAX_FILE_BYTES:
        raise PromptError(f"{file} is larger than {_MAX_FILE_BYTES} bytes; is it a prompts file?")
    try:
        pairs = _decode_pairs(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise PromptError(
            f"{file} isn't a JSON object of prompts ({error}); write "
            '{"1": "Spleen in abdominal CT", "instance_label": 0}'
        ) from error
    return parse_prompts(pairs, reading)


def _decode_pairs(data: bytes) -> dict[str, object]:
    """Decode one JSON object; a key that stands twice would silently win, so it's refused."""
    import json

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        decoded = dict(pairs)
        if len(decoded) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"key {twice!r} stands twice")
        return decoded

    decoded = json.loads(data.decode("utf-8-sig"), object_pairs_hook=unique)
    if not isinstance(decoded, dict):
        raise ValueError(f"it holds a {type(decoded).__name__}")  # noqa: TRY004 - caught as one
    return decoded


def numbered(texts: Sequence[str], kind: str, reading: PromptReading = PLAIN_READING) -> PromptSet:
    """Prompts given one after the other, numbered from 1.

    Raises
    ------
    PromptError
        As `parse_prompts`.
    """
    check_kind(kind)
    return _resolve(dict(enumerate(texts, start=1)), kind, reading)


def as_prompt_set(
    prompts: PromptSet | Mapping[str, object] | Sequence[str] | str,
    kind: str = "anatomy",
    reading: PromptReading = PLAIN_READING,
) -> PromptSet:
    """Read prompts in any of the forms that the Python interface takes.

    Parameters
    ----------
    prompts
        A `PromptSet` (returned as it is), a mapping as in `prompts.json`, a list of sentences
        (labels 1, 2, ...), or one sentence.
    kind, reading
        Of sentences; see `numbered`.

    Raises
    ------
    TypeError
        It is none of these.
    PromptError
        As `parse_prompts`.
    """
    if isinstance(prompts, PromptSet):
        return prompts
    if isinstance(prompts, str):
        return numbered([prompts], kind, reading)
    if isinstance(prompts, Mapping):
        return parse_prompts(prompts, reading)
    if isinstance(prompts, Sequence) and all(isinstance(text, str) for text in prompts):
        return numbered(prompts, kind, reading)
    raise TypeError(
        f"prompts are a {type(prompts).__name__}; pass a sentence, a list of sentences, "
        '{"1": "Liver in abdominal CT"} or a PromptSet'
    )


def describe(found: Match | Prompt) -> dict[str, object]:
    """Say what a sentence was read as: `modality`, `class`, `id`, `matched`."""
    key = found.class_key
    return {"modality": key.modality, "class": key.name, "id": key.id, "matched": found.matched}


__all__ = [
    "INSTANCE_LABEL",
    "Match",
    "Prompt",
    "PromptReading",
    "PromptSet",
    "as_prompt_set",
    "describe",
    "find_class",
    "numbered",
    "parse_prompts",
    "read_prompts",
]
