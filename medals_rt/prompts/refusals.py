"""Sentences whose words fit a class, and which mean something else or may.

A side of the picture, a region where the class is not, a part of what runs through several, and
what uses a class's words for two things.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medals_rt.common.errors import PromptError
from medals_rt.prompts.tokenization import prompt_words
from medals_rt.prompts.word_roles import LIGHT, WEIGHTY, Word

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medals_rt.prompts.candidates import ClassCandidate


def refuse_side_of_display(words: Sequence[Word], quoted: str) -> None:
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
        if words[start].word not in LIGHT | {"on", "at", "to"}:
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
    named = [word for word in rest[1:] if word.word not in LIGHT]
    until = next((i for i, word in enumerate(named) if word.word in lists.displays), None)
    if until is None or any(word.role in WEIGHTY for word in named[:until]):
        return False
    return of_display or until == 0 or named[until].word != "image"


def _names_next(words: Sequence[Word], index: int) -> bool:
    """Whether a side is followed by what it is the side of: "left kidney"."""
    after = words[index + 1] if index + 1 < len(words) else None
    return after is not None and not after.token.stop and after.role in WEIGHTY


def refuse_region(candidate: ClassCandidate, words: Sequence[Word], quoted: str) -> None:
    """Refuse a region of the body that the class can't be in."""
    for word in words:
        if word.word in candidate.not_in:
            raise PromptError(
                f"prompt {quoted} names {word.token.text!r}, where {str(candidate.key)!r} is not; "
                "say which structure is meant",
                code="region-contradiction",
            )


def refuse_part(
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


def refuse_relation(candidate: ClassCandidate, words: Sequence[Word], quoted: str) -> None:
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
