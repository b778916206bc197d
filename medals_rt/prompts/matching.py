"""Which class a sentence names (the released rule, made strict).

A wrong organ is the worst answer and a refusal with suggestions a fair one. So every word of a
sentence gets a role (`word_roles`, lists in `data/prompt_words.json`), and the words that could
name or change an organ have to be those of *one* class (`match_words`, terms in
`data/classes.json`); the others are its side, the modality, a region of the body, or harmless. A
word that could change what is meant ("vessel", "cyst", "stem", "without", a second organ, a word
never seen) and that isn't part of the term makes the reader refuse, and so does what stands in a
relation (`refusals`). Sentences of the public challenge that break this rule and whose meaning is
settled are in `data/known_sentences.json`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from medals_rt.common.choices import KINDS, MODALITIES, check_kind, modality_named, traits_of
from medals_rt.common.errors import PromptError
from medals_rt.prompts.candidates import ClassCandidate, candidates
from medals_rt.prompts.classes import (
    FREE_TEXT_ID,
    ClassKey,
    by_bank_key,
    classes_of,
    nearest_names,
    read_data,
)
from medals_rt.prompts.refusals import (
    refuse_part,
    refuse_region,
    refuse_relation,
    refuse_side_of_display,
)
from medals_rt.prompts.tokenization import prompt_words, tokenize
from medals_rt.prompts.word_roles import USABLE, WEIGHTY, Word, assign_roles, find_modality

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_SENTENCE: Final = 1000
"""Longest prompt accepted, in characters."""

_ASKED_BY: Final = {
    "anatomy": "ask for it as anatomy (--prompt, --kind anatomy; in a file, instance_label 0)",
    "lesion": "ask for it as lesion (--lesion, or --kind lesion; in a file, instance_label 1)",
}
_VAGUE: Final = {"no-class": 1, "wrong-kind": 2, "no-modality": 3}
"""Errors that say less of a sentence than others, the vaguest with the highest number."""

_HALF_CHARACTER: Final = re.compile("[\\ud800-\\udfff]")


@dataclass(frozen=True)
class Match:
    """A class, and the words of the sentence that named it."""

    class_key: ClassKey
    matched: str

    @property
    def modality(self) -> str:
        """The class's modality."""
        return self.class_key.modality


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
        Used where the sentence names none; in any case, or DICOM's name of it.

    Raises
    ------
    PromptError
        If no class fits (code `no-class`, `no-structure`, `wrong-kind`, `wrong-modality`,
        `word-unexplained` where a word is left over that could mean another structure,
        `part-of-class`, `relation`), several
        do (`several-classes`, `both-sides`), the side is missing or the class has none of that
        side (`side-missing`, `side-contradiction`), the side is the picture's (`side-of-display`),
        or the modality isn't clear (see `find_modality`). The message names the nearest classes.
    """
    quoted, modality = _checked(text, kind), modality_named(modality)
    known = known_sentences().get(text.strip())
    if known is not None and known.kind == kind and modality in {None, known.modality}:
        return Match(known, text.strip())
    tokens = tokenize(text)
    found = find_modality(tokens, quoted, modality)
    tolerant = kind == "anatomy" or not traits_of(found).has_body
    words = assign_roles(tokens, found, tolerant=tolerant)
    refuse_side_of_display(words, quoted)
    return match_words(words, quoted, found, kind)


def readings(text: str, kind: str | None = None, modality: str | None = None) -> list[Match]:
    """Find every class that a sentence may name, where it leaves its kind or the modality open.

    For a person who looks up a class. What is run needs `find_class`, which refuses what is open.

    Parameters
    ----------
    text
        As for `find_class`.
    kind, modality
        As for `find_class`; None: any kind, and any modality where the sentence names none.

    Returns
    -------
    list of Match
        At least one.

    Raises
    ------
    PromptError
        If it names no class in any of them; the message is about the nearest.
    """
    found, errors = [], []
    asked = [(each, modality) for each in ((kind,) if kind else KINDS)]
    for each_kind, each_modality in asked:  # grows where the modality turns out to be open
        try:
            found.append(find_class(text, each_kind, each_modality))
        except PromptError as error:
            errors.append(error)
            if error.code == "no-modality":
                asked += [(each_kind, each) for each in MODALITIES]
    if not found:
        raise min(errors, key=lambda error: _VAGUE.get(error.code, 0))
    return found


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
    quoted, modality = _checked(text, kind), modality_named(modality)
    found = find_modality(tokenize(text), quoted, modality)
    return Match(ClassKey(found, kind, " ".join(text.split()), FREE_TEXT_ID), "free text")


def _checked(text: str, kind: str) -> str:
    """Refuse what no sentence can be; return the sentence as messages show it."""
    check_kind(kind)
    quoted = _quote(text)
    if not text.strip():
        raise PromptError(
            "a prompt is empty; write a sentence such as 'Spleen in abdominal CT'",
            code="prompt-empty",
        )
    if _HALF_CHARACTER.search(text):  # no report could hold it
        raise PromptError(
            f"prompt {quoted} isn't Unicode; write it in UTF-8", code="prompt-not-unicode"
        )
    if len(text) > MAX_SENTENCE:
        raise PromptError(
            f"prompt {quoted} is longer than {MAX_SENTENCE} characters; shorten it",
            code="prompt-too-long",
        )
    return quoted


@lru_cache(maxsize=1)
def known_sentences() -> dict[str, ClassKey]:
    """Challenge sentences whose class the rules wouldn't give, with that class."""
    table: dict[str, str] = read_data("known_sentences.json", dict[str, str])
    return {text: by_bank_key(key) for text, key in table.items()}


def match_words(words: Sequence[Word], quoted: str, modality: str, kind: str) -> Match:
    """Find the class whose term accounts for every word that matters; see `find_class`."""
    hard = {word.word for word in words if word.role in WEIGHTY}
    usable = {word.word for word in words if word.role in USABLE}
    fits: list[tuple[ClassCandidate, frozenset[str]]] = []
    for candidate in candidates(modality, kind):
        for term in candidate.terms:
            if term <= usable and term & hard and hard - term <= candidate.allowed:
                fits.append((candidate, term))
                break
    longest = max((len(term) for _, term in fits), default=0)
    fits = [(candidate, term) for candidate, term in fits if len(term) == longest]
    if not fits:
        raise _why_nothing(words, hard, quoted, modality, kind)
    candidate, term = _pick_side(fits, words, quoted)
    refuse_region(candidate, words, quoted)
    refuse_part(candidate, term, words, quoted)
    refuse_relation(candidate, words, quoted)
    named = [
        word.token.text
        for word in words
        if word.word in term or (word.role.startswith("side") and candidate.side is not None)
    ]
    return Match(candidate.key, " ".join(named))


def _pick_side(
    fits: Sequence[tuple[ClassCandidate, frozenset[str]]], words: Sequence[Word], quoted: str
) -> tuple[ClassCandidate, frozenset[str]]:
    """Of classes that differ only in their side, the one whose side the sentence says."""
    sides = {word.role.partition(":")[2] for word in words if word.role.startswith("side")}
    names = " or ".join(repr(str(candidate.key)) for candidate, _ in fits)
    if len(sides) > 1 or any(word.role == "both" for word in words):
        raise PromptError(
            f"prompt {quoted} names both sides; a prompt names one class, give one for each side"
            + (f": {names}" if len(fits) > 1 else f"; the nearest class is {names}"),
            code="both-sides",
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
        raise PromptError(
            f"prompt {quoted} fits several classes, {names}; say which", code="several-classes"
        )
    if said is None:
        raise PromptError(
            f"prompt {quoted} doesn't say which side; ask for {names}", code="side-missing"
        )
    raise PromptError(
        f"prompt {quoted} says {said!r}, but there is only {names}; ask for that",
        code="side-contradiction",
    )


# Refusals -----------------------------------------------------------------------------------------


def _why_nothing(
    words: Sequence[Word], hard: set[str], quoted: str, modality: str, kind: str
) -> PromptError:
    """Why no class fits, in one line, with the nearest classes."""
    named = _named(words, candidates(modality, kind))
    near = _suggest(words, [str(candidate.key) for candidate in named], modality, kind)
    if not hard:
        such = near or repr(str(classes_of(modality)[0]))
        return PromptError(
            f"prompt {quoted} names no structure; name one class, such as {such}",
            code="no-structure",
        )
    if len(named) > 1:
        listed = " and ".join(repr(str(candidate.key)) for candidate in named)
        return PromptError(
            f"prompt {quoted} names several classes, {listed}; give each its own prompt",
            code="several-classes",
        )
    (other_kind,) = (each for each in KINDS if each != kind)
    of_other_kind = _named(words, candidates(modality, other_kind))
    if len(of_other_kind) == 1 and hard <= of_other_kind[0].allowed:
        return PromptError(
            f"prompt {quoted} fits {str(of_other_kind[0].key)!r}, a class of kind {other_kind}, "
            f"but {kind} was asked for; {_ASKED_BY[other_kind]}",
            code="wrong-kind",
        )
    if named:
        left = dict.fromkeys(w.token.text for w in words if w.word in hard - named[0].allowed)
        listed = ", ".join(repr(word) for word in left)
        return PromptError(
            f"prompt {quoted} reads like {str(named[0].key)!r}, but {listed} could make it "
            f"something else; leave that out if not. The nearest classes are: {near}",
            code="word-unexplained",
        )
    if elsewhere := _in_other_modalities(words, hard, modality, kind):
        return PromptError(
            f"prompt {quoted} names a class of other images, {elsewhere}, and there is none of it "
            f"in {modality}"
            + (f"; the nearest there are: {near}" if near else "; ask for another class"),
            code="wrong-modality",
        )
    return PromptError(
        f"prompt {quoted} names no class that is known; the nearest are: {near}"
        if near
        else f"prompt {quoted} names no class that is known, nor anything like one; classes have "
        f"English names, such as {str(classes_of(modality)[0])!r}",
        code="no-class",
    )


def _in_other_modalities(words: Sequence[Word], hard: set[str], modality: str, kind: str) -> str:
    """List the classes of other modalities whose names are all that the words say."""
    found = [
        repr(str(named[0].key))
        for each in MODALITIES
        if each != modality
        and len(named := _named(words, candidates(each, kind))) == 1
        and hard <= named[0].allowed
    ]
    return " or ".join(found)


def _named(words: Sequence[Word], pool: Sequence[ClassCandidate]) -> list[ClassCandidate]:
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
    """Up to three classes as a list to read.

    Those in `first`, those that the lists suggest for a phrase, then the nearest to what was
    written; the side decides only between classes that have one.
    """
    sides = {word.role.partition(":")[2] for word in words if word.role.startswith("side")}
    side = next(iter(sides)) if len(sides) == 1 else None
    other_sides = {"left", "right"} - {side} if side else set()
    wanted = set(_listed_suggestions([word.word for word in words]))
    suggested = [
        str(key) if key.kind == kind else f"{key} (kind {key.kind})"
        for key in classes_of(modality)
        if key.name in wanted and other_sides.isdisjoint(key.name.lower().split())
    ]
    text = " ".join(word.word for word in words if word.role in WEIGHTY)
    text = text or " ".join(word.word for word in words)
    nearest = nearest_names(text, modality, kind, side=side)
    return ", ".join(repr(name) for name in list(dict.fromkeys((*first, *suggested, *nearest)))[:3])


def _listed_suggestions(words: Sequence[str]) -> Iterator[str]:
    """Names of classes that the lists suggest for phrases among `words`."""
    for parts, names in _suggesting_phrases():
        if any(words[at : at + len(parts)] == parts for at in range(len(words))):
            yield from names


@lru_cache(maxsize=1)
def _suggesting_phrases() -> tuple[tuple[list[str], tuple[str, ...]], ...]:
    """Return the plain words of each phrase that suggests classes, with their names."""
    lists = prompt_words()
    return tuple(
        ([token.word for token in tokenize(phrase)], names)
        for phrase, names in (lists.suggestions | lists.other_languages).items()
    )


def _quote(text: str) -> str:
    """Format the prompt for a message: one line, not too long."""
    line = " ".join(text.split())
    return repr(line if len(line) <= 80 else line[:77] + "...")
