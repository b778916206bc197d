"""Classes as the reader of sentences sees them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from medals_rt.common.choices import KINDS, MODALITIES
from medals_rt.prompts.classes import ClassKey, class_table
from medals_rt.prompts.tokenization import expand, plain_phrase


@dataclass(frozen=True)
class ClassCandidate:
    """One class as the reader sees it: plain terms, and words that may stand beside them."""

    key: ClassKey
    side: str | None
    either_side: bool
    spans_regions: bool
    terms: tuple[frozenset[str], ...]
    allowed: frozenset[str]
    not_in: frozenset[str]


@lru_cache(maxsize=len(MODALITIES) * len(KINDS))
def candidates(modality: str, kind: str) -> tuple[ClassCandidate, ...]:
    """Classes of a modality and kind with their terms in plain words."""
    found = []
    for entry in class_table().classes:
        if entry.kind != kind or modality not in entry.ids:
            continue
        terms = {words for phrase in entry.terms for words in expand(entry, phrase)}
        beside = [
            words
            for phrase in (*entry.may_add, *entry.located_in)
            for words in expand(entry, phrase)
        ]
        found.append(
            ClassCandidate(
                ClassKey(modality, kind, entry.name, entry.ids[modality]),
                entry.side,
                entry.either_side,
                entry.spans_regions,
                tuple(sorted(terms, key=lambda term: (-len(term), sorted(term)))),
                frozenset().union(*terms, *beside),
                frozenset().union(*map(plain_phrase, entry.not_in)),
            )
        )
    return tuple(found)
