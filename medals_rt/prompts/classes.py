"""The 243 classes that a Medal S model knows, and the words that name them.

Names and ids are those of the released code (system section 2); ids count within a modality and a
kind, so that `(modality, kind, id)` is what tells classes apart. Everything stands in
`data/classes.json`; nothing here knows a class by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, Final

import msgspec

from medals_rt.common.choices import KINDS, MODALITIES
from medals_rt.common.errors import InputError

FREE_TEXT_ID: Final = 0


@dataclass(frozen=True, order=True)
class ClassKey:
    """One class: modality, kind (`"anatomy"` or `"lesion"`), name, and id within both.

    Ids count from 1; 0 is free text, whose name is the sentence itself (`sentences.free_text`).
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


class ClassEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One name of `classes.json` with the words that mean it.

    Attributes
    ----------
    name, kind
        As in `ClassKey`.
    ids
        Modality to id.
    terms
        Ways to say it without its side; `{group}` stands for any word of that group. Word order
        within a term doesn't matter.
    side
        `"left"` or `"right"` for one of a pair.
    may_add
        Words (or groups) that may stand beside a term without changing what is meant.
    located_in
        Places that may be named as where it lies, though they are organs themselves.
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
    """Classes of one modality and one kind; `None` takes all of them.

    Raises
    ------
    InputError
        If the modality or the kind is unknown.
    """
    check_modality(modality)
    check_kind(kind)
    return tuple(
        key
        for key in all_classes()
        if modality in {None, key.modality} and kind in {None, key.kind}
    )


def check_modality(modality: str | None) -> None:
    """Refuse a modality that isn't one of `MODALITIES` or `None`."""
    if modality is not None and modality not in MODALITIES:
        raise InputError(f"no modality {modality!r}; choose from {', '.join(MODALITIES)}")


def check_kind(kind: str | None) -> None:
    """Refuse a kind that isn't `"anatomy"`, `"lesion"` or `None`."""
    if kind is not None and kind not in KINDS:
        raise InputError(f"no kind {kind!r}; choose from {', '.join(KINDS)}")


@lru_cache(maxsize=1)
def _by_bank_key() -> dict[str, ClassKey]:
    return {key.bank_key: key for key in all_classes()}


def by_bank_key(bank_key: str) -> ClassKey:
    """Class of a bank key such as `"CT/anatomy/1"`; `InputError` if there is none."""
    try:
        return _by_bank_key()[bank_key]
    except KeyError:
        raise InputError(
            f"no class has the key {bank_key!r}; keys are modality/kind/id, such as "
            f"{all_classes()[0].bank_key}"
        ) from None


def by_policy_name(policy_name: str, kind: str | None = None) -> ClassKey:
    """Class of a name such as `"CT_..."`.

    Raises
    ------
    InputError
        If no class has that name, or if it has two kinds and `kind` doesn't say which.
    """
    modality, _, name = policy_name.partition("_")
    return by_exact_name(modality, name, kind)


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
        raise InputError(f"{modality} {name} is a class of both kinds, {kinds}; say which")
    near = ", ".join(nearest_names(name, modality, kind))
    raise InputError(f"{modality} has no class {name!r}; the nearest are: {near}")


def nearest_names(
    text: str, modality: str | None = None, kind: str | None = None, limit: int = 3
) -> tuple[str, ...]:
    """Names of the classes that are spelled most like `text`, best first, each with its modality.

    For suggestions only: a fuzzy match never decides what is segmented. Where the modality has no
    class of that kind, all kinds are searched.
    """
    from rapidfuzz import fuzz, process, utils

    candidates = classes_of(modality, kind) or classes_of(modality) or all_classes()
    choices = {key: key.name for key in candidates}
    ranked = process.extract(
        text, choices, scorer=fuzz.WRatio, processor=utils.default_process, limit=3 * limit
    )
    names = dict.fromkeys(str(key) for _, _, key in ranked)
    return tuple(names)[:limit]
