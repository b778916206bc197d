"""The role of each word of a sentence: what may name an organ, and what can't.

Lists of words are in `data/prompt_words.json`. The modality is read from the words first, for a
word may name a sequence in one modality and nothing in another.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from medals_rt.common.choices import MODALITIES
from medals_rt.common.errors import PromptError
from medals_rt.prompts.tokenization import (
    Token,
    known_words,
    plain_phrases,
    prompt_words,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

WEIGHTY: Final = frozenset({"hard", "unknown", "number"})
"""Roles of words that must be accounted for."""

USABLE: Final = WEIGHTY | {"neutral", "region", "modality"}
"""Roles of words that a term may use."""

LIGHT: Final = frozenset({"the", "a", "an", "this", "that", "these", "and", "or"})
"""Words that stand between others and mean nothing."""

_NUMBER: Final = re.compile(r"\d+")
_MEASURE: Final = re.compile(r"\d+(mm|cm|t|kvp?|yo|y|s|ms|hu|bit|st|nd|rd|th)|\d+x\d+(x\d+)?")


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
        names = {name: text for name, text in names.items() if name != "CT"}
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
            f"prompt {quoted} names no modality, nor does the file; name it "
            f"({', '.join(MODALITIES)}) in one sentence of the prompts, as in 'Spleen in abdominal "
            "CT', or with --modality",
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
    if word in lists.sequences and modality == "MRI":
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
            if not other.role.startswith("side") and other.word not in LIGHT
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
    while start >= 0 and (words[start].word in LIGHT or words[start].role == "region"):
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
