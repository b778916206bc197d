"""Which class a sentence names (system section 2; the released rule, made strict).

A wrong organ is the worst answer and a refusal with suggestions a fair one. So every word of a
sentence has to be accounted for: the words of *one* class's term in any order, its side, the
modality, a region of the body, or a word from a list of harmless ones. A word that could change
what is meant ("vessel", "cyst", "stem", "without", a second organ, a word never seen) and that
isn't part of the term makes the reader refuse. Sentences of the public challenge that break this
rule and whose meaning is settled stand in `data/known_sentences.json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from medals_rt.common.choices import KINDS, MODALITIES
from medals_rt.common.errors import PromptError
from medals_rt.prompts.classes import (
    FREE_TEXT_ID,
    ClassKey,
    by_bank_key,
    check_kind,
    check_modality,
    class_table,
    classes_of,
    nearest_names,
    read_data,
)
from medals_rt.prompts.token_roles import USABLE, WEIGHTY, Word, assign_roles, find_modality
from medals_rt.prompts.tokenization import expand, prompt_words, tokenize

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_SENTENCE: Final = 1000
"""Longest prompt accepted, in characters."""


@dataclass(frozen=True)
class Match:
    """A class, and the words of the sentence that named it."""

    class_key: ClassKey
    matched: str

    @property
    def modality(self) -> str:
        """The class's modality."""
        return self.class_key.modality


@dataclass(frozen=True)
class Candidate:
    """One class as the reader sees it: plain terms, and words that may stand beside them."""

    key: ClassKey
    side: str | None
    either_side: bool
    spans_regions: bool
    terms: tuple[frozenset[str], ...]
    allowed: frozenset[str]


def find_class(text: str, kind: str, modality: str | None = None) -> Match:
    """Find the one class that a sentence names.

    Parameters
    ----------
    text
        Such as "Liver in abdominal CT". Case, plurals, hyphens, punctuation, British or American
        spelling and word order ("kidney, left") don't matter.
    kind
        `"anatomy"` or `"lesion"` (`instance_label` 0 or 1 of a challenge case).
    modality
        Used where the sentence names none.

    Raises
    ------
    PromptError
        If nothing fits, several classes do, a side is missing, or a word is left over that could
        mean another structure. The message names the nearest classes.
    """
    quoted = _checked(text, kind, modality)
    known = known_sentences().get(text.strip())
    if known is not None and known.kind == kind and modality in {None, known.modality}:
        return Match(known, text.strip())
    tokens = tokenize(text)
    found = find_modality(tokens, quoted, modality)
    words = assign_roles(tokens, found, tolerant=kind == "anatomy" or found == "Microscopy")
    return match_words(words, quoted, found, kind)


def free_text(text: str, kind: str, modality: str | None = None) -> Match:
    """Take a sentence as it is, whatever it names; only a text encoder can embed it.

    No rule about a class applies to it, and its words are not looked at but for the modality.

    Parameters
    ----------
    text, kind
        As for `find_class`.
    modality
        Used where the sentence names none.

    Raises
    ------
    PromptError
        If the sentence is empty or too long, or the modality is neither in it nor given, or both
        and not the same.
    """
    quoted = _checked(text, kind, modality)
    found = find_modality(tokenize(text), quoted, modality)
    return Match(ClassKey(found, kind, " ".join(text.split()), FREE_TEXT_ID), "free text")


def _checked(text: str, kind: str, modality: str | None) -> str:
    """Refuse what no sentence can be, and give the sentence as messages show it."""
    check_kind(kind)
    check_modality(modality)
    quoted = _quote(text)
    if not text.strip():
        raise PromptError("a prompt is empty; write a sentence such as 'Spleen in abdominal CT'")
    if len(text) > MAX_SENTENCE:
        raise PromptError(f"prompt {quoted} is longer than {MAX_SENTENCE} characters; shorten it")
    return quoted


@lru_cache(maxsize=1)
def known_sentences() -> dict[str, ClassKey]:
    """Challenge sentences whose class the rules wouldn't give, with that class."""
    table: dict[str, str] = read_data("known_sentences.json", dict[str, str])
    return {text: by_bank_key(key) for text, key in table.items()}


# Matching -----------------------------------------------------------------------------------------


@lru_cache(maxsize=len(MODALITIES) * len(KINDS))
def candidates(modality: str, kind: str) -> tuple[Candidate, ...]:
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
            Candidate(
                ClassKey(modality, kind, entry.name, entry.ids[modality]),
                entry.side,
                entry.either_side,
                entry.spans_regions,
                tuple(sorted(terms, key=lambda term: (-len(term), sorted(term)))),
                frozenset().union(*terms, *beside),
            )
        )
    return tuple(found)


def match_words(words: Sequence[Word], quoted: str, modality: str, kind: str) -> Match:
    """Find the class whose term accounts for every word that matters; see `find_class`."""
    hard = {word.word for word in words if word.role in WEIGHTY}
    usable = {word.word for word in words if word.role in USABLE}
    fits: list[tuple[Candidate, frozenset[str]]] = []
    for candidate in candidates(modality, kind):
        for term in candidate.terms:
            if term <= usable and term & hard and hard - term <= candidate.allowed:
                fits.append((candidate, term))
                break
    longest = max((len(term) for _, term in fits), default=0)
    fits = [(candidate, term) for candidate, term in fits if len(term) == longest]
    if not fits:
        raise PromptError(_why_nothing(words, hard, quoted, modality, kind))
    candidate, term = _pick_side(fits, words, quoted)
    _refuse_part(candidate, term, words, quoted)
    _refuse_relation(candidate, words, quoted)
    named = [
        word.token.text
        for word in words
        if word.word in term or (word.role.startswith("side") and candidate.side is not None)
    ]
    return Match(candidate.key, " ".join(named))


def _pick_side(
    fits: Sequence[tuple[Candidate, frozenset[str]]], words: Sequence[Word], quoted: str
) -> tuple[Candidate, frozenset[str]]:
    """Of classes that differ only in their side, the one whose side the sentence says."""
    sides = {word.role.partition(":")[2] for word in words if word.role.startswith("side")}
    names = " or ".join(repr(str(candidate.key)) for candidate, _ in fits)
    if len(sides) > 1 or any(word.role == "both" for word in words):
        raise PromptError(
            f"prompt {quoted} names both sides; a prompt names one class, give one for each side"
            + (f": {names}" if len(fits) > 1 else f"; the nearest class is {names}")
        )
    said = next(iter(sides), None)
    agreeing = [
        (candidate, term)
        for candidate, term in fits
        if candidate.side == said or (candidate.side is None and candidate.either_side)
    ]
    if len(agreeing) == 1:
        return agreeing[0]
    if agreeing:
        raise PromptError(f"prompt {quoted} fits several classes, {names}; say which")
    if said is None:
        raise PromptError(f"prompt {quoted} doesn't say which side; ask for {names}")
    raise PromptError(f"prompt {quoted} says {said!r}, but there is only {names}; ask for that")


def _refuse_part(
    candidate: Candidate, term: frozenset[str], words: Sequence[Word], quoted: str
) -> None:
    """Refuse "abdominal ..." of a structure that runs through several regions."""
    if not candidate.spans_regions:
        return
    for before, word in pairwise(words):
        if (
            word.word in term
            and not word.token.stop
            and before.word in prompt_words().region_adjectives
            and before.word not in term
        ):
            raise PromptError(
                f"prompt {quoted} seems to mean only the {before.token.text!r} part of "
                f"{str(candidate.key)!r}; leave that word out to ask for the whole"
            )


def _refuse_relation(candidate: Candidate, words: Sequence[Word], quoted: str) -> None:
    """Refuse what uses a class's words for two things, or for what lies beside it.

    "Kidney with cyst" isn't "kidney cyst", "kidney and cyst" neither, and "left of the kidney"
    isn't "left kidney". A class that has "and" or "/" in its own name may be joined.
    """
    lists = prompt_words()
    joined = " and " in candidate.key.name or "/" in candidate.key.name
    for index, word in enumerate(words):
        beside = word.role.startswith("side") and index + 1 < len(words)
        if beside and words[index + 1].word == "of" and not words[index + 1].token.stop:
            said = f"{word.token.text} of"
        elif word.word in lists.havings or (word.word in lists.joins and not joined):
            said = word.token.text
            if not _weighs_on_both_sides(words, index, word.word in lists.havings):
                continue
        else:
            continue
        raise PromptError(
            f"prompt {quoted} holds {said!r}, so that it could mean something beside "
            f"{str(candidate.key)!r}; name one class, as in {candidate.key.name!r}"
        )


def _weighs_on_both_sides(words: Sequence[Word], index: int, anywhere_before: bool) -> bool:
    """Whether words that can name an organ stand on both sides of the one at `index`."""
    after = (word for word in words[index + 1 :] if not _is_light(word))
    following = next(after, None)
    if following is None or following.role != "hard":
        return False
    if anywhere_before:
        return any(word.role == "hard" for word in words[:index])
    leading = next((word for word in reversed(words[:index]) if not _is_light(word)), None)
    return leading is not None and leading.role == "hard"


def _is_light(word: Word) -> bool:
    return word.role.startswith("side") or (word.role == "neutral" and len(word.word) <= 3)


# Refusals -----------------------------------------------------------------------------------------


def _why_nothing(
    words: Sequence[Word], hard: set[str], quoted: str, modality: str, kind: str
) -> str:
    """Say why no class fits, in one line, with the nearest classes."""
    named = _named(words, candidates(modality, kind))
    near = _suggest(words, [str(candidate.key) for candidate in named], modality, kind)
    if not hard:
        return f"prompt {quoted} names no structure; name one class, such as {near}"
    if len(named) > 1:
        listed = " and ".join(repr(str(candidate.key)) for candidate in named)
        return f"prompt {quoted} names several classes, {listed}; give each its own prompt"
    other_kind = KINDS[1 - KINDS.index(kind)]
    elsewhere = _named(words, candidates(modality, other_kind))
    if len(elsewhere) == 1 and hard <= elsewhere[0].allowed:
        return (
            f"prompt {quoted} fits {str(elsewhere[0].key)!r}, a class of kind {other_kind}, but "
            f"{kind} was asked for; change the kind (instance_label 0 is anatomy, 1 is lesion)"
        )
    if named:
        left = dict.fromkeys(w.token.text for w in words if w.word in hard - named[0].allowed)
        listed = ", ".join(repr(word) for word in left)
        return (
            f"prompt {quoted} reads like {str(named[0].key)!r}, but {listed} could make it "
            f"something else; leave that out if not. The nearest classes are: {near}"
        )
    return f"prompt {quoted} names no class that is known; the nearest are: {near}"


def _named(words: Sequence[Word], pool: Sequence[Candidate]) -> list[Candidate]:
    """Classes whose terms the words hold, longest first, no word used twice."""
    sides = {word.role.partition(":")[2] for word in words if word.role.startswith("side")}
    present = {word.word for word in words if word.role in USABLE}
    terms = sorted(
        ((term, one) for one in pool for term in one.terms if term <= present),
        key=lambda pair: (-len(pair[0]), pair[1].side not in sides, pair[1].key),
    )
    weighty = {word.word for word in words if word.role in WEIGHTY}
    chosen = []
    for term, candidate in terms:
        if term & weighty and term <= present:
            chosen.append(candidate)
            present -= term
            weighty -= candidate.allowed
    return chosen


def _suggest(words: Sequence[Word], first: list[str], modality: str, kind: str) -> str:
    """Three classes as a list to read: those in `first`, then the nearest to what was written."""
    weighty = [word.word for word in words if word.role in WEIGHTY or word.role.startswith("side")]
    text = " ".join(weighty) or " ".join(word.word for word in words)
    nearest = nearest_names(text, modality, kind) or map(str, classes_of(modality))
    return ", ".join(repr(name) for name in list(dict.fromkeys((*first, *nearest)))[:3])


def _quote(text: str) -> str:
    """Show the prompt as it stands in a message: one line, not too long."""
    line = " ".join(text.split())
    return repr(line if len(line) <= 80 else line[:77] + "...")
