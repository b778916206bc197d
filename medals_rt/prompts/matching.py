"""Which class a sentence names (system section 2; the released rule, made strict).

A wrong organ is the worst answer and a refusal with suggestions a fair one. So every word of a
sentence gets a role (`assign_roles`, lists in `data/prompt_words.json`), and the words that could
name or change an organ have to be those of *one* class (`match_words`, terms in
`data/classes.json`); the others are its side, the modality, a region of the body, or harmless. A
word that could change what is meant ("vessel", "cyst", "stem", "without", a second organ, a word
never seen) and that isn't part of the term makes the reader refuse. Sentences of the public
challenge that break this rule and whose meaning is settled are in `data/known_sentences.json`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from medals_rt.common.choices import KINDS, MODALITIES, check_kind, check_modality
from medals_rt.common.errors import PromptError
from medals_rt.prompts.classes import (
    FREE_TEXT_ID,
    ClassKey,
    by_bank_key,
    class_table,
    classes_of,
    nearest_names,
    read_data,
)
from medals_rt.prompts.tokenization import (
    Token,
    expand,
    known_words,
    plain_phrase,
    plain_phrases,
    prompt_words,
    tokenize,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_SENTENCE: Final = 1000
"""Longest prompt accepted, in characters."""

_LIGHT: Final = frozenset({"the", "a", "an", "this", "that", "these", "and", "or"})

WEIGHTY: Final = frozenset({"hard", "unknown", "number"})
"""Roles of words that must be accounted for."""

USABLE: Final = WEIGHTY | {"neutral", "region", "modality"}
"""Roles of words that a term may use."""

_ASKED_BY: Final = {
    "anatomy": "ask for it as anatomy (--prompt, --kind anatomy; in a file, instance_label 0)",
    "lesion": "ask for it as lesion (--lesion, or --kind lesion; in a file, instance_label 1)",
}
_HALF_CHARACTER: Final = re.compile("[\\ud800-\\udfff]")
_NUMBER: Final = re.compile(r"\d+")
_MEASURE: Final = re.compile(r"\d+(mm|cm|t|kvp?|yo|y|s|ms|hu|bit|st|nd|rd|th)|\d+x\d+(x\d+)?")


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
class Word:
    """A token and its role.

    Roles: `hard` (a known word that can name or change an organ), `unknown`, `number`, `neutral`,
    `region` and `modality` (which a term may use), `fixed` (part of a harmless phrase),
    `side:left`, `side:right`, `both`.
    """

    token: Token
    role: str

    @property
    def word(self) -> str:
        """The token's plain form."""
        return self.token.word


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
        If no class fits (code `no-class`, `no-structure`, `wrong-kind`, `word-unexplained` where a
        word is left over that could mean another structure, `part-of-class`, `relation`), several
        do (`several-classes`, `both-sides`), the side is missing or the class has none of that
        side (`side-missing`, `side-contradiction`), the side is the picture's (`side-of-display`),
        or the modality isn't clear (see `find_modality`). The message names the nearest classes.
    """
    quoted = _checked(text, kind, modality)
    known = known_sentences().get(text.strip())
    if known is not None and known.kind == kind and modality in {None, known.modality}:
        return Match(known, text.strip())
    tokens = tokenize(text)
    found = find_modality(tokens, quoted, modality)
    words = assign_roles(tokens, found, tolerant=kind == "anatomy" or found == "Microscopy")
    _refuse_side_of_display(words, quoted)
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
    """Refuse what no sentence can be; return the sentence as messages show it."""
    check_kind(kind)
    check_modality(modality)
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


# Modality -----------------------------------------------------------------------------------------


def find_modality(tokens: Sequence[Token], quoted: str, stated: str | None) -> str:
    """Modality that the tokens name as whole words.

    `stated` is taken where they name none, and where it is one of several ("PET/CT").

    Raises
    ------
    PromptError
        If there is none (code `no-modality`), several (`several-modalities`), one that no model
        knows (`modality-unsupported`), or another than `stated` (`modality-contradiction`).
    """
    strong, weak = _spoken_modalities(tokens, quoted)
    names = strong or weak
    if len(names) > 1 and not strong:
        # "tomographic" and "cross-sectional" are said of other modalities too.
        names = {name: text for name, text in names.items() if name != MODALITIES[0]}
    if stated in names:
        return stated
    if len(names) > 1:
        listed = " and ".join(f"{name} ({text!r})" for name, text in names.items())
        raise PromptError(
            f"prompt {quoted} names several modalities, {listed}; name the image's",
            code="several-modalities",
        )
    if not names:
        if stated is not None:
            return stated
        raise PromptError(
            f"prompt {quoted} names no modality, nor does the file; name it with --modality "
            f"({', '.join(MODALITIES)}), or in one sentence of the prompts, as in 'Spleen in "
            "abdominal CT'",
            code="no-modality",
        )
    (name,) = names
    if stated is not None and stated != name:
        raise PromptError(
            f"prompt {quoted} is about {name}, but the modality was stated as {stated}; "
            "change one of them",
            code="modality-contradiction",
        )
    return name


def _spoken_modalities(
    tokens: Sequence[Token], quoted: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Modalities said and hinted at, each with the word that did."""
    strong: dict[str, str] = {}
    weak: dict[str, str] = {}
    for index, (token, role) in enumerate(zip(tokens, _phrase_roles(tokens), strict=True)):
        level, _, name = role.partition(":")
        if level == "other":
            raise PromptError(
                f"prompt {quoted} names an image of another kind ({token.text!r}); "
                f"the classes are of {', '.join(MODALITIES)}",
                code="modality-unsupported",
            )
        # "show us the ..." holds a pronoun, "... on US" a modality.
        short = len(token.text) == 2
        pronoun = short and index > 0 and tokens[index - 1].word in prompt_words().requests
        if level == "strong" or (level == "weak" and short and token.text.isupper()):
            (weak if pronoun else strong).setdefault(name, token.text)
        elif level == "weak" and not pronoun:
            weak.setdefault(name, token.text)
    return strong, weak


# Roles --------------------------------------------------------------------------------------------


def _phrase_roles(tokens: Sequence[Token]) -> list[str]:
    """Role of each token by the longest listed phrase that it's part of; `""` where none.

    A phrase doesn't run across a comma: "vertebrae, lumbar, MRI" asks for the lumbar ones.
    """
    roles = [""] * len(tokens)
    plain = tuple(token.word for token in tokens)
    index = 0
    while index < len(tokens):
        length = 1
        for phrase, role in plain_phrases().get(plain[index], ()):
            end = index + len(phrase)
            if plain[index:end] == phrase and not any(
                token.stop for token in tokens[index + 1 : end]
            ):
                length = len(phrase)
                roles[index:end] = [role] * length
                break
        index += length
    return roles


def assign_roles(tokens: Sequence[Token], modality: str, *, tolerant: bool) -> tuple[Word, ...]:
    """Assign each token its role, see `Word`.

    `tolerant` lets unknown words pass in a phrase that follows what was named ("... of a
    Bernese mountain dog"), since they can't be what is asked for there.
    """
    words = [
        Word(token, _role(tokens, index, role, modality))
        for index, (token, role) in enumerate(zip(tokens, _phrase_roles(tokens), strict=True))
    ]
    words = [
        Word(word.token, "hard") if word.role == "region" and _is_part(words, index) else word
        for index, word in enumerate(words)
    ]
    if not tolerant:
        return tuple(words)
    return tuple(
        Word(word.token, "fixed")
        if word.role in {"unknown", "number"} and _is_context(words, index)
        else word
        for index, word in enumerate(words)
    )


def _role(tokens: Sequence[Token], index: int, phrase: str, modality: str) -> str:
    level = phrase.partition(":")[0]
    if phrase:
        return {"strong": "modality", "weak": "modality", "neutral": "fixed"}.get(level, phrase)
    lists = prompt_words()
    word = tokens[index].word
    if word in lists.sequences and modality == MODALITIES[1]:
        beside = {token.word for token in tokens[max(index - 1, 0) : index + 2]}
        return "hard" if beside & lists.not_sequences_beside else "neutral"
    if _NUMBER.fullmatch(word):
        return "fixed" if _is_count(tokens, index) else "number"
    if word in known_words():
        harmless = word in lists.neutral or _is_act(tokens, index)
        return "neutral" if harmless else "hard"
    return "fixed" if _MEASURE.fullmatch(word) else "unknown"


def _is_count(tokens: Sequence[Token], index: int) -> bool:
    """Whether a number counts something harmless: "5 mm", "slice 12"."""
    after = tokens[index + 1].word if index + 1 < len(tokens) else ""
    before = tokens[index - 1].word if index > 0 else ""
    return after in prompt_words().units or before in prompt_words().counted


def _is_act(tokens: Sequence[Token], index: int) -> bool:
    """Whether a word such as "segment" is what shall be done, not a part of an organ."""
    lists = prompt_words()
    if tokens[index].word not in lists.acts or index + 1 == len(tokens):
        return False
    opens = index == 0 or tokens[index].stop or tokens[index - 1].word in lists.before_acts
    return opens and tokens[index + 1].word != "of" and not tokens[index + 1].stop


def _is_part(words: Sequence[Word], index: int) -> bool:
    """Whether a region's name means a part of an organ here: "head of the ...", "... neck".

    It means the region beside a modality ("head CT") or after a preposition ("in the neck").
    """
    lists = prompt_words()
    word = words[index]
    if word.word not in lists.part_words | lists.parts_of:
        return False
    after = words[index + 1] if index + 1 < len(words) else None
    if after is not None and after.word == "of":
        named = (
            other
            for other in words[index + 2 :]
            if not other.role.startswith("side") and other.word not in _LIGHT
        )
        first = next(named, None)
        if first is not None and first.role == "hard":
            return True
    return word.word in lists.part_words and not _is_region(words, index)


def _is_region(words: Sequence[Word], index: int) -> bool:
    """Whether a region's name stands beside a modality or region, or after a preposition."""
    word = words[index]
    before = words[index - 1] if index > 0 else None
    after = words[index + 1] if index + 1 < len(words) else None
    if before is not None and not word.token.stop and before.role in {"hard", "modality", "region"}:
        return before.role != "hard"
    if after is not None and after.role in {"modality", "region"} and not after.token.stop:
        return True
    start = index - 1
    while start >= 0 and (words[start].word in _LIGHT or words[start].role == "region"):
        start -= 1
    return start >= 0 and words[start].word in prompt_words().context_prepositions


def _is_context(words: Sequence[Word], index: int) -> bool:
    """Whether an unknown word is in a phrase after the named structure, far from it.

    Such a phrase begins with a preposition, holds no word that can name an organ, and follows one
    that does; and the word isn't a near miss of one that matters.
    """
    start = index
    while start >= 0 and words[start].word not in prompt_words().context_prepositions:
        if words[start].token.stop or words[start].role == "hard":
            return False
        start -= 1
    if start < 0 or not any(word.role == "hard" for word in words[:start]):
        return False
    for word in words[index + 1 :]:
        if word.token.stop or word.word in prompt_words().context_prepositions:
            break
        if word.role == "hard":
            return False
    return not _near_miss(words[index].word)


@lru_cache(maxsize=4096)
def _near_miss(word: str) -> bool:
    """Whether an unknown word looks like a misspelling of one that names or changes an organ."""
    from rapidfuzz import fuzz, process

    if _NUMBER.fullmatch(word):
        return False
    weighty = known_words() - prompt_words().neutral
    return process.extractOne(word, weighty, scorer=fuzz.ratio, score_cutoff=80) is not None


# Matching -----------------------------------------------------------------------------------------


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


def _refuse_side_of_display(words: Sequence[Word], quoted: str) -> None:
    """Refuse a side of the picture: a slice is usually shown with the patient's left at its right.

    Raises
    ------
    PromptError
        Code `side-of-display`.
    """
    onlooker = any(word.word in prompt_words().onlookers for word in words)
    for index, word in enumerate(words):
        if word.role.startswith("side") and (onlooker or _is_of_display(words, index)):
            raise PromptError(
                f"prompt {quoted} names a side of the picture or of who looks at it "
                f"({word.token.text!r}), which may be the patient's other one; name the patient's, "
                "as in 'Left kidney in abdominal CT'",
                code="side-of-display",
            )


def _is_of_display(words: Sequence[Word], index: int) -> bool:
    """Whether a side is the picture's: "image left", "left half of the CT slice", "shown left"."""
    lists = prompt_words()
    start = index - 1
    while start >= 0 and not words[start + 1].token.stop:
        if words[start].word in lists.displayed and not _names_next(words, index):
            return True
        if words[start].word not in _LIGHT | {"on", "at", "to"}:
            break
        start -= 1
    before = words[index - 1] if index > 0 and not words[index].token.stop else None
    if before is not None and before.word in lists.displays:
        # "CT image left kidney" leaves a comma out, "image-left kidney" doesn't.
        return index == 1 or not _names_next(words, index)
    stop = next((i for i, word in enumerate(words) if i > index and word.token.stop), len(words))
    rest = words[index + 1 : stop]
    part = bool(rest) and rest[0].word in lists.display_parts
    rest = rest[part:]
    if rest and rest[0].word in lists.displays:
        return True
    if not rest or rest[0].word not in {"of", "in", "on", "at"}:
        return False
    # "Lung left in CT image" is the patient's left, but not "... left half of the CT image".
    of_display = part or rest[0].word == "of"
    named = [word for word in rest[1:] if word.word not in _LIGHT]
    until = next((i for i, word in enumerate(named) if word.word in lists.displays), None)
    if until is None or any(word.role in WEIGHTY for word in named[:until]):
        return False
    return of_display or until == 0 or named[until].word != "image"


def _names_next(words: Sequence[Word], index: int) -> bool:
    """Whether a side is followed by what it is the side of: "left kidney"."""
    after = words[index + 1] if index + 1 < len(words) else None
    return after is not None and not after.token.stop and after.role in WEIGHTY


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
    _refuse_region(candidate, words, quoted)
    _refuse_part(candidate, term, words, quoted)
    _refuse_relation(candidate, words, quoted)
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


def _refuse_region(candidate: ClassCandidate, words: Sequence[Word], quoted: str) -> None:
    """Refuse a region of the body that the class can't be in."""
    for word in words:
        if word.word in candidate.not_in:
            raise PromptError(
                f"prompt {quoted} names {word.token.text!r}, where {str(candidate.key)!r} is not; "
                "say which structure is meant",
                code="region-contradiction",
            )


def _refuse_part(
    candidate: ClassCandidate, term: frozenset[str], words: Sequence[Word], quoted: str
) -> None:
    """Refuse "abdominal ..." and "..., abdominal," of what runs through several regions."""
    if not candidate.spans_regions:
        return
    adjectives = prompt_words().region_adjectives - term
    for index, word in enumerate(words):
        if word.word not in adjectives:
            continue
        before, after = words[max(index - 1, 0)], words[index + 1 : index + 2]
        leads = any(one.word in term and not one.token.stop for one in after)
        alone = word.token.stop and all(one.token.stop for one in after)
        if leads or (alone and before.word in term):
            raise PromptError(
                f"prompt {quoted} seems to mean only the {word.token.text!r} part of "
                f"{str(candidate.key)!r}; leave that word out to ask for the whole",
                code="part-of-class",
            )


def _refuse_relation(candidate: ClassCandidate, words: Sequence[Word], quoted: str) -> None:
    """Refuse what uses a class's words for two things, or for what lies beside it.

    "Kidney with cyst" isn't "kidney cyst", "kidney and cyst" neither, "left of the kidney" isn't
    "left kidney", and "contrast in the stomach" isn't the stomach. A class that has "and" or "/"
    in its own name may be joined.
    """
    lists = prompt_words()
    name = candidate.key.name
    joined_by = lists.joins if "/" in name else frozenset(name.split()) & lists.joins
    for index, word in enumerate(words):
        beside = word.role.startswith("side") and index + 1 < len(words)
        if beside and words[index + 1].word == "of" and not words[index + 1].token.stop:
            said = f"{word.token.text} of"
        elif word.word not in candidate.allowed and _is_content(words, index):
            said = f"{word.token.text} {words[index + 1].token.text}"
        elif word.word in lists.havings or word.word in lists.joins - joined_by:
            said = word.token.text
            if not _weighs_on_both_sides(words, index, word.word in lists.havings):
                continue
        else:
            continue
        raise PromptError(
            f"prompt {quoted} holds {said!r}, so that it could mean something beside "
            f"{str(candidate.key)!r}; name one class, as in {candidate.key.name!r}",
            code="relation",
        )


def _is_content(words: Sequence[Word], index: int) -> bool:
    """Whether a word such as "contrast" is what is asked for, since "in the stomach" follows."""
    lists = prompt_words()
    if words[index].word not in lists.contents or index + 1 == len(words):
        return False
    if words[index + 1].word not in lists.context_prepositions:
        return False
    after = next((word for word in words[index + 2 :] if not _is_light(word)), None)
    return after is not None and after.role == "hard"


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
) -> PromptError:
    """Why no class fits, in one line, with the nearest classes."""
    named = _named(words, candidates(modality, kind))
    near = _suggest(words, [str(candidate.key) for candidate in named], modality, kind)
    if not hard:
        return PromptError(
            f"prompt {quoted} names no structure; name one class, such as {near}",
            code="no-structure",
        )
    if len(named) > 1:
        listed = " and ".join(repr(str(candidate.key)) for candidate in named)
        return PromptError(
            f"prompt {quoted} names several classes, {listed}; give each its own prompt",
            code="several-classes",
        )
    other_kind = KINDS[1 - KINDS.index(kind)]
    elsewhere = _named(words, candidates(modality, other_kind))
    if len(elsewhere) == 1 and hard <= elsewhere[0].allowed:
        return PromptError(
            f"prompt {quoted} fits {str(elsewhere[0].key)!r}, a class of kind {other_kind}, but "
            f"{kind} was asked for; {_ASKED_BY[other_kind]}",
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
    return PromptError(
        f"prompt {quoted} names no class that is known; the nearest are: {near}", code="no-class"
    )


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
    """Three classes as a list to read.

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
    nearest = nearest_names(text, modality, kind, side=side) or map(str, classes_of(modality))
    return ", ".join(repr(name) for name in list(dict.fromkeys((*first, *suggested, *nearest)))[:3])


def _listed_suggestions(words: Sequence[str]) -> Iterator[str]:
    """Names of classes that the lists suggest for phrases among `words`."""
    for phrase, names in prompt_words().suggestions.items():
        parts = list(plain_phrase(phrase))
        if any(words[at : at + len(parts)] == parts for at in range(len(words))):
            yield from names


def _quote(text: str) -> str:
    """Format the prompt for a message: one line, not too long."""
    line = " ".join(text.split())
    return repr(line if len(line) <= 80 else line[:77] + "...")
