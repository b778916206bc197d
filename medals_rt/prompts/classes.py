"""The 243 classes that a Medal S model knows, the words that name them, and groups of them.

Names and ids are those of the released code; ids count within a modality and a
kind, so that `(modality, kind, id)` is what tells classes apart. Classes and their words are in
`data/classes.json`, groups in `data/groups.json`; nothing here knows a class by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, Final

import msgspec

from medals_rt.common.choices import KINDS, MODALITIES, check_kind, modality_named
from medals_rt.common.errors import InputError

FREE_TEXT_ID: Final = 0

_ALIKE: Final = 75
"""Percent of its letters that a word shares with one that is spelled like it; more is alike."""


@dataclass(frozen=True, order=True)
class ClassKey:
    """One class: modality, kind (`"anatomy"` or `"lesion"`), name, and id within both.

    Ids count from 1; 0 is free text, whose name is the sentence itself (`matching.free_text`).
    """

    modality: str
    kind: str
    name: str
    id: int

    @property
    def policy_name(self) -> str:
        """Name in the released rules, `modality_name`; the same for both kinds of a name."""
        return f"{self.modality}_{self.name}"

    @property
    def is_free_text(self) -> bool:
        """Whether this is a sentence that names none of the known classes."""
        return self.id == FREE_TEXT_ID

    @property
    def bank_key(self) -> str:
        """Key in an embedding bank, `modality/kind/id`; unique."""
        return f"{self.modality}/{self.kind}/{self.id}"

    def __str__(self) -> str:
        return f"{self.modality} {self.name}"


def canonical_sentence(key: ClassKey) -> str:
    """Return the sentence of a class where none is given, such as "Spleen in CT"."""
    return f"{key.name} in {key.modality}"


class ClassEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One name of `classes.json` with the words that mean it.

    Attributes
    ----------
    name, kind
        As in `ClassKey`.
    ids
        Modality to id.
    terms
        Terms for it without its side; `{group}` stands for any word of that group. Word order
        within a term doesn't matter.
    side
        `"left"` or `"right"` for one of a pair.
    may_add
        Words (or groups) that may stand beside a term without changing what is meant.
    located_in
        Places that may be named as where it lies, though they are organs themselves.
    not_in
        Regions of the body that it can't be in, so that a sentence which names one means something
        else ("left ventricle on head MRI").
    spans_regions
        It runs through several regions of the body, so that a region before its name
        ("abdominal ...") would mean a part of it.
    either_side
        It has no side in its name but may be asked for with one.
    """

    name: str
    kind: str
    ids: dict[str, int]
    terms: tuple[str, ...]
    side: str | None = None
    may_add: tuple[str, ...] = ()
    located_in: tuple[str, ...] = ()
    not_in: tuple[str, ...] = ()
    spans_regions: bool = False
    either_side: bool = False


class ClassTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of `classes.json`."""

    notice: str
    word_groups: dict[str, tuple[str, ...]]
    classes: tuple[ClassEntry, ...]


def read_data(name: str, kind: type[Any]) -> Any:
    """Read a JSON file that ships with the package into the type `kind`."""
    return msgspec.json.decode(
        files("medals_rt.prompts").joinpath("data", name).read_bytes(), type=kind
    )


@lru_cache(maxsize=1)
def class_table() -> ClassTable:
    """`classes.json`, read once."""
    table: ClassTable = read_data("classes.json", ClassTable)
    return table


@lru_cache(maxsize=1)
def all_classes() -> tuple[ClassKey, ...]:
    """Every class, by modality, kind and id."""
    keys = [
        ClassKey(modality, entry.kind, entry.name, number)
        for entry in class_table().classes
        for modality, number in entry.ids.items()
    ]
    keys.sort(key=lambda key: (MODALITIES.index(key.modality), KINDS.index(key.kind), key.id))
    return tuple(keys)


def classes_of(modality: str | None = None, kind: str | None = None) -> tuple[ClassKey, ...]:
    """Classes of one modality, by any of its names, and one kind; `None` takes all of them.

    Raises
    ------
    InputError
        If the modality or the kind is unknown.
    """
    modality = modality_named(modality)
    check_kind(kind)
    return tuple(
        key
        for key in all_classes()
        if modality in {None, key.modality} and kind in {None, key.kind}
    )


@lru_cache(maxsize=1)
def _by_bank_key() -> dict[str, ClassKey]:
    return {key.bank_key: key for key in all_classes()}


@lru_cache(maxsize=1)
def class_names() -> frozenset[str]:
    """Return the names of all classes, casefolded."""
    return frozenset(key.name.casefold() for key in all_classes())


def by_bank_key(bank_key: str) -> ClassKey:
    """Class of a bank key such as `"CT/anatomy/1"`; `InputError` if there is none."""
    try:
        return _by_bank_key()[bank_key]
    except KeyError:
        raise InputError(
            f"no class has the key {bank_key!r}; keys are modality/kind/id, such as "
            f"{all_classes()[0].bank_key}",
            code="bank-key-unknown",
        ) from None


def by_exact_name(modality: str, name: str, kind: str | None = None) -> ClassKey:
    """Class of a modality by its exact name; upper and lower case are alike.

    Raises
    ------
    InputError
        If no class has that name (the nearest are given), or if it has two kinds and `kind`
        doesn't say which.
    """
    wanted = name.strip().casefold()
    found = [key for key in classes_of(modality, kind) if key.name.casefold() == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        kinds = " and ".join(key.kind for key in found)
        raise InputError(
            f"{modality} {name} is a class of both kinds, {kinds}; say which", code="kind-missing"
        )
    near = ", ".join(nearest_names(name, modality, kind))
    more = f"; the nearest are: {near}" if near else ", nor one that is spelled like it"
    raise InputError(f"{modality} has no class {name!r}{more}", code="class-unknown")


def nearest_names(
    text: str,
    modality: str | None = None,
    kind: str | None = None,
    limit: int = 3,
    *,
    side: str | None = None,
) -> tuple[str, ...]:
    """Names of the classes that are spelled most like `text`, best first, each with its modality.

    For suggestions only: a fuzzy match never decides what is segmented. A name none of whose words
    is spelled like one of the text's is none. Where the modality has no class of that kind, all
    kinds are searched.

    Parameters
    ----------
    text, modality, kind
        What was asked for.
    limit
        How many names at most.
    side
        `"left"` or `"right"` where `text` is what remains of a request without its side: names are
        compared without theirs, and those of the other side left out.
    """
    candidates = classes_of(modality, kind) or classes_of(modality) or all_classes()
    if side is None:
        choices = {key: key.name for key in candidates}
    else:
        other_sides = {"left", "right"} - {side}
        choices = {
            key: " ".join(word for word in key.name.split() if word.lower() != side)
            for key in candidates
            if other_sides.isdisjoint(key.name.lower().split())
        }
    alike = {key: (name, str(key)) for key, name in choices.items() if _is_alike(text, name)}
    return _most_alike(text, alike, limit)


def _is_alike(text: str, name: str) -> bool:
    """Whether a word of one is spelled like a word of the other: "kidny", but not "rein" a vein."""
    from rapidfuzz import fuzz, utils

    words, others = (utils.default_process(each).split() for each in (text, name))
    return any(fuzz.ratio(word, other) > _ALIKE for word in words for other in others)


def _most_alike(text: str, choices: Mapping[Any, tuple[str, str]], limit: int) -> tuple[str, ...]:
    """Rank choices by their first string and return the second ones, each once."""
    from rapidfuzz import fuzz, process, utils

    ranked = process.extract(
        text,
        {key: compared for key, (compared, _) in choices.items()},
        scorer=fuzz.WRatio,
        processor=utils.default_process,
        limit=3 * limit,
    )
    return tuple(dict.fromkeys(choices[key][1] for _, _, key in ranked))[:limit]


# Groups -------------------------------------------------------------------------------------------


class ClassGroup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Anatomy classes that are asked for together, such as "abdominal organs".

    Attributes
    ----------
    name
        Plural, lower case.
    classes
        Names of its classes in any modality, in the order of their ids.
    also
        Other names of the group.
    """

    name: str
    classes: tuple[str, ...]
    also: tuple[str, ...] = ()

    def keys(self, modality: str) -> tuple[ClassKey, ...]:
        """Its classes of one modality, by id; empty where the modality has none of them."""
        return tuple(key for key in classes_of(modality, "anatomy") if key.name in self.classes)


@lru_cache(maxsize=1)
def _group_table() -> tuple[ClassGroup, ...]:
    table: tuple[ClassGroup, ...] = read_data("groups.json", tuple[ClassGroup, ...])
    return table


def class_groups(modality: str | None = None) -> tuple[ClassGroup, ...]:
    """Return the groups of classes; with a modality those that it has a class of.

    Every anatomy class is in at least one. Groups overlap, and a group may hold classes that do in
    the body ("Left lung" and its lobes), though each voxel of a result has one label.

    Raises
    ------
    InputError
        If the modality is unknown (code `modality-unknown`).
    """
    modality = modality_named(modality)
    return tuple(group for group in _group_table() if modality is None or group.keys(modality))


def classes_of_group(name: str, modality: str) -> tuple[ClassKey, ...]:
    """Classes of a group in one modality, by id.

    Parameters
    ----------
    name
        As in `class_groups`; case, hyphens and underscores don't matter.
    modality
        One of `MODALITIES`.

    Raises
    ------
    InputError
        If there is no such group (code `group-unknown`; the nearest are named), the modality has
        no class of it (`group-empty`), or the modality is unknown (`modality-unknown`).
    """
    there = [group.name for group in class_groups(modality)]
    wanted = _group_key(name)
    named = (each for each in class_groups() if wanted in map(_group_key, (each.name, *each.also)))
    group = next(named, None)
    if group is None:
        spelled = {
            (group.name, each): (each, group.name)
            for group in class_groups(modality) or class_groups()
            for each in (group.name, *group.also)
        }
        near = ", ".join(map(repr, _most_alike(name, spelled, limit=3)))
        raise InputError(f"no group {name!r}; the nearest are: {near}", code="group-unknown")
    keys = group.keys(modality)
    if not keys:
        listed = ", ".join(map(repr, there)) or "none"
        raise InputError(
            f"{modality} has no class of the group {group.name!r}; its groups: {listed}",
            code="group-empty",
        )
    return keys


def _group_key(name: str) -> str:
    return " ".join(name.casefold().replace("-", " ").replace("_", " ").split())
