"""From the text of a prompt to plain tokens: spelling, plurals, punctuation, abbreviations, Latin.

The lists are in `data/prompt_words.json`. What a token *is* (part of a class name, a modality, a
filler word) is determined in `matching`; here it only gets its plain form.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import msgspec

from medals_rt.prompts.classes import ClassEntry, class_table, read_data


class ModalityWords(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Words that say a modality, and words that only hint at it where none is said."""

    strong: tuple[str, ...]
    weak: tuple[str, ...]


class PromptWords(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of `prompt_words.json`.

    Attributes
    ----------
    expansions
        Abbreviations and Latin terms with the words that they mean. A part with a capital letter
        must be written exactly so ("LA"), any other in whatever case.
    part_words, parts_of
        Regions whose name may mean a part of an organ: anywhere ("pancreas head"), or only before
        "of" ("head and neck of the pancreas").
    contents
        Harmless words that are what is asked for in "contrast in the stomach".
    suggestions
        Phrases that mean no class but are near one or several; those are named first when the
        phrase is refused.
    other_languages
        Organs in other languages, likewise.
    displays, display_parts, displayed, onlookers
        Words beside which "left" is a side of the picture or of who looks at it: "image left",
        "the left half of the slice", "shown on the left", "the viewer's left".
    """

    notice: str
    expansions: dict[str, str]
    suggestions: dict[str, tuple[str, ...]]
    other_languages: dict[str, tuple[str, ...]]
    modalities: dict[str, ModalityWords]
    other_modalities: tuple[str, ...]
    sides: dict[str, tuple[str, ...]]
    both_sides: tuple[str, ...]
    regions: tuple[str, ...]
    region_adjectives: frozenset[str]
    part_words: frozenset[str]
    parts_of: frozenset[str]
    neutral_phrases: tuple[str, ...]
    neutral: frozenset[str]
    organs: frozenset[str]
    spellings: dict[str, str]
    misleading: tuple[str, ...]
    joins: frozenset[str]
    havings: frozenset[str]
    contents: frozenset[str]
    sequences: frozenset[str]
    not_sequences_beside: frozenset[str]
    context_prepositions: frozenset[str]
    acts: frozenset[str]
    before_acts: frozenset[str]
    requests: frozenset[str]
    units: frozenset[str]
    counted: frozenset[str]
    keep_apart: frozenset[str]
    displays: frozenset[str]
    display_parts: frozenset[str]
    displayed: frozenset[str]
    onlookers: frozenset[str]


@dataclass(frozen=True)
class Token:
    """One word of a prompt.

    Attributes
    ----------
    text
        As it was written.
    word
        Its plain form: lower case, singular, American spelling, as far as it is known.
    stop
        Whether a comma, bracket, colon or the like stands before it.
    """

    text: str
    word: str
    stop: bool


@lru_cache(maxsize=1)
def prompt_words() -> PromptWords:
    """`prompt_words.json`, read once."""
    words: PromptWords = read_data("prompt_words.json", PromptWords)
    return words


_WORD: Final = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)?")
_STOPS: Final = frozenset(",;:()[]{}.!?|\u2013\u2014")


def tokenize(text: str) -> tuple[Token, ...]:
    """Cut a prompt into tokens; hyphens, slashes and underscores separate words.

    Abbreviations ("LUL") and Latin terms ("vesica urinaria") become the words that they mean.
    """
    plain = unicodedata.normalize("NFKD", text)
    plain = "".join(char for char in plain if not unicodedata.combining(char))
    tokens = []
    end = 0
    for found in _WORD.finditer(plain):
        gap = plain[end : found.start()]
        stop = any(char in _STOPS for char in gap) or " - " in gap or "\n" in gap
        bare = re.sub(r"['\u2019]s?$", "", found.group().lower().replace("\u2019", "'"))
        tokens.append(Token(found.group(), plain_word(bare.replace("'", "")), stop))
        end = found.end()
    return _expand_tokens(tokens)


def _expand_tokens(tokens: list[Token]) -> tuple[Token, ...]:
    """Put the plain words in place of abbreviations and of terms in Latin, longest first."""
    expanded: list[Token] = []
    index = 0
    while index < len(tokens):
        for phrase, meaning in _expansions().get(tokens[index].word, ()):
            run = tokens[index : index + len(phrase)]
            if len(run) == len(phrase) and all(map(_says, run, phrase)):
                written = " ".join(token.text for token in run)
                texts = (written,) if len(meaning) == 1 else meaning
                stops = (run[0].stop, *(False for _ in meaning[1:]))
                expanded += map(Token, texts, meaning, stops)
                index += len(phrase)
                break
        else:
            expanded.append(tokens[index])
            index += 1
    return tuple(expanded)


def _says(token: Token, part: str) -> bool:
    """Whether a token is a part of a listed phrase; one in capitals must be written so."""
    return token.text == part if part != part.lower() else token.word == plain_word(part)


@lru_cache(maxsize=1)
def _expansions() -> dict[str, tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]]:
    """Sort the listed expansions by first plain word, longest first."""
    found: dict[str, list[tuple[tuple[str, ...], tuple[str, ...]]]] = {}
    for phrase, meaning in prompt_words().expansions.items():
        parts = tuple(phrase.split())
        found.setdefault(plain_word(parts[0].lower()), []).append((parts, plain_phrase(meaning)))
    return {
        first: tuple(sorted(pairs, key=lambda pair: -len(pair[0])))
        for first, pairs in found.items()
    }


@lru_cache(maxsize=1)
def _raw_words() -> frozenset[str]:
    """Every word that any list or class holds, as written there."""
    words = prompt_words()
    found = set(words.neutral | words.organs | words.region_adjectives | words.part_words)
    found |= words.acts | words.joins | words.havings
    phrases = [
        *words.other_modalities, *words.both_sides, *words.regions, *words.neutral_phrases,
        *words.misleading,
        *(phrase for phrases in words.sides.values() for phrase in phrases),
        *(phrase.lower() for phrase in words.expansions), *words.suggestions,
    ]  # fmt: skip
    for modality in words.modalities.values():
        phrases += [*modality.strong, *modality.weak]
    table = class_table()
    for entry in table.classes:
        phrases += [*entry.terms, *entry.may_add, *entry.located_in]
    for group in table.word_groups.values():
        phrases += group
    for phrase in phrases:
        found.update(part for part in phrase.split() if not part.startswith("{"))
    return frozenset(found)


@lru_cache(maxsize=1)
def known_words() -> frozenset[str]:
    """Plain forms of every word that any list or class holds."""
    return frozenset(plain_word(word) for word in _raw_words())


@lru_cache(maxsize=8192)
def plain_word(word: str) -> str:
    """Plain form of one lower-case word; an unknown word comes back as it is."""
    words = prompt_words()
    if word in words.keep_apart:
        return word
    if word in words.spellings:
        return words.spellings[word]
    known = _raw_words()
    for spelled in (word, *_american(word)):
        for singular in _singular(spelled):
            if singular in known:
                return words.spellings.get(singular, singular)
        if spelled in known:
            return words.spellings.get(spelled, spelled)
    return word


_BRITISH: Final = (
    ("ae", "e"),
    ("oe", "e"),
    ("our", "or"),
    ("is", "iz"),
    ("ys", "yz"),
    ("lled", "led"),
    ("lling", "ling"),
    ("tre", "ter"),
)


def _american(word: str) -> tuple[str, ...]:
    """American spellings that a British word could have, one or two changes deep."""
    once = _changed_once(word)
    return (*once, *(twice for changed in once for twice in _changed_once(changed)))


def _changed_once(word: str) -> list[str]:
    return [
        word[: found.start()] + new + word[found.end() :]
        for old, new in _BRITISH
        for found in re.finditer(old, word)
    ]


_ENDINGS: Final = (
    ("ies", "y"),
    ("es", "is"),
    ("ae", "a"),
    ("ces", "x"),
    ("es", ""),
    ("s", ""),
    ("i", "us"),
    ("a", "um"),
    ("a", "on"),
)


def _singular(word: str) -> tuple[str, ...]:
    """Singulars that a word could be the plural of; the caller keeps only what is a word."""
    if len(word) < 4:
        return (word[:-1],) if len(word) == 3 and word.endswith("s") else ()
    return tuple(word[: -len(end)] + new for end, new in _ENDINGS if word.endswith(end))


@lru_cache(maxsize=1)
def plain_phrases() -> dict[str, tuple[tuple[tuple[str, ...], str], ...]]:
    """Sort the listed phrases by first word, longest first, each with its role; see `Word`."""
    words = prompt_words()
    groups: dict[str, tuple[str, ...]] = {
        "other": words.other_modalities,
        "both": words.both_sides,
        "region": words.regions,
        "neutral": words.neutral_phrases,
        "hard": words.misleading,
    }
    groups |= {f"side:{side}": phrases for side, phrases in words.sides.items()}
    for modality, lists in words.modalities.items():
        groups[f"strong:{modality}"] = lists.strong
        groups[f"weak:{modality}"] = lists.weak
    found: dict[str, dict[tuple[str, ...], str]] = {}
    for role, phrases in groups.items():
        for phrase in map(plain_phrase, phrases):
            found.setdefault(phrase[0], {}).setdefault(phrase, role)
    return {
        first: tuple(sorted(roles.items(), key=lambda pair: -len(pair[0])))
        for first, roles in found.items()
    }


def plain_phrase(phrase: str) -> tuple[str, ...]:
    """Plain words of a phrase from the lists."""
    return tuple(plain_word(word) for word in phrase.split())


def expand(entry: ClassEntry, phrase: str) -> tuple[frozenset[str], ...]:
    """Every set of plain words that a term with `{group}` places stands for."""
    groups = class_table().word_groups
    sets: list[frozenset[str]] = [frozenset()]
    for part in phrase.split():
        choices = groups[part[1:-1]] if part.startswith("{") else (part,)
        sets = [done | {plain_word(choice)} for done in sets for choice in choices]
    if not sets[0]:
        raise ValueError(f"{entry.name} has an empty term")
    return tuple(sets)
