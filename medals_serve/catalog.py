"""What can be asked for: the classes of the model, and what a text may mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.errors import InputError, PromptError
from medals_rt.io.palette import class_color, hex_color
from medals_rt.prompts.classes import ClassKey, by_bank_key, class_groups, nearest_names
from medals_rt.prompts.embedding import PromptEmbedder
from medals_rt.prompts.matching import find_class
from medals_rt.prompts.prompt_set import Prompt
from medals_serve.problems import problem_of

MAX_TEXT: Final = 2000
_MAX_SENTENCES: Final = 64
_MAX_SUGGESTIONS: Final = 12


class Catalog:
    """The classes that a bundle covers."""

    def __init__(self, bundle: Bundle) -> None:
        self._embedder = PromptEmbedder(bundle)
        self._keys = {record.bank_key: by_bank_key(record.bank_key) for record in bundle.classes}
        self._groups = [
            (
                group.name,
                [
                    key.bank_key
                    for key in self._keys.values()
                    if key.kind == "anatomy" and key.name in group.classes
                ],
            )
            for group in class_groups()
        ]

    def classes(self) -> list[dict[str, Any]]:
        """Return all classes; see `schemas.ClassState`."""
        of_class: dict[str, list[str]] = {}
        for name, members in self._groups:
            for member in members:
                of_class.setdefault(member, []).append(name)
        return [
            {
                "id": key.bank_key,
                "modality": key.modality,
                "kind": key.kind,
                "name": key.name,
                "sentence": sentence_of(key),
                "groups": of_class.get(key.bank_key, []),
                "color": hex_color(class_color(key.name)),
            }
            for key in self._keys.values()
        ]

    def groups(self) -> list[dict[str, Any]]:
        """Return the groups that have a class here; see `schemas.GroupState`."""
        return [{"name": name, "class_ids": ids} for name, ids in self._groups if ids]

    def read(self, text: str, kind: str, modality: str | None) -> dict[str, Any]:
        """Read sentences, one a line or between semicolons; see `schemas.PromptsState`."""
        sentences = sentences_in(text)
        reading, problem = [], None
        try:
            if len(sentences) > _MAX_SENTENCES:
                raise PromptError(
                    f"{len(sentences)} sentences are more than the {_MAX_SENTENCES} that are read "
                    "at once",
                    code="too-many-prompts",
                )
            for sentence in sentences:
                found = find_class(sentence, kind, modality)
                key = found.class_key
                self._embedder.sources([Prompt(1, sentence, key, found.matched)])
                reading.append({"sentence": sentence, **self._named(key), "matched": found.matched})
        except InputError as error:
            problem = problem_of(error)
        last = sentences[-1] if sentences else ""
        suggestions = [
            {**self._named(key), "sentence": sentence_of(key)}
            for key in self._suggest(last, kind, modality)
        ]
        return {"reading": reading, "suggestions": suggestions, "problem": problem}

    def _suggest(self, text: str, kind: str, modality: str | None) -> Sequence[ClassKey]:
        """Classes for what was typed so far: those that begin so, hold it, then the most alike."""
        there = [
            key
            for key in self._keys.values()
            if key.kind == kind and modality in {None, key.modality}
        ]
        typed = text.casefold()
        if not typed:
            return ()
        begin = [key for key in there if key.name.casefold().startswith(typed)]
        hold = [key for key in there if all(word in key.name.casefold() for word in typed.split())]
        by_name = {str(key): key for key in there}
        alike = _known(nearest_names(text[:200], modality, kind, _MAX_SUGGESTIONS), by_name)
        return tuple(dict.fromkeys((*begin, *hold, *alike)))[:_MAX_SUGGESTIONS]

    @staticmethod
    def _named(key: ClassKey) -> dict[str, Any]:
        return {
            "class_id": key.bank_key,
            "modality": key.modality,
            "kind": key.kind,
            "name": key.name,
            "color": hex_color(class_color(key.name)),
        }


def sentences_in(text: str) -> list[str]:
    """Return the sentences of a text, one a line or between semicolons."""
    return [each.strip() for each in re.split(r"[;\n]", text) if each.strip()]


def sentence_of(key: ClassKey) -> str:
    """Return a prompt that names a class."""
    return f"{key.name} in {key.modality}"


def _known(names: Iterable[str], keys: dict[str, ClassKey]) -> list[ClassKey]:
    return [keys[name] for name in names if name in keys]
