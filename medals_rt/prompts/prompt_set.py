"""The prompts of a case: which label stands for which class.

A challenge case and `prompts.json` hold `{"1": "Liver in abdominal CT", "2": ..., "instance_label":
0}`: label values as keys, sentences as values, and `instance_label` 0 for anatomy (semantic
labels) or 1 for lesions (instances). A file of ours may ask for lesions beside
anatomy: `{"1": "Liver in abdominal CT", "lesions": {"2": "Liver tumors in abdominal CT"}}`.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from medals_rt.common.choices import KINDS, Kind, check_kind, modality_named
from medals_rt.common.errors import PromptError
from medals_rt.common.json_text import decode_json
from medals_rt.common.limits import MAX_PROMPTS
from medals_rt.common.notes import Note
from medals_rt.common.text_files import read_text
from medals_rt.prompts.classes import ClassKey, canonical_sentence, classes_of, classes_of_group
from medals_rt.prompts.matching import Match, find_class, free_text

if TYPE_CHECKING:
    from os import PathLike

INSTANCE_LABEL: Final = "instance_label"
LESIONS: Final = "lesions"
"""Member of a mapping of anatomy that holds the lesions of the same case."""

MAX_LABEL: Final = 65535
"""Label values are stored as 16-bit integers at most."""

_NAMED: Final = 10
"""As many names stand in a note at most."""

_MAX_FILE_BYTES: Final = 4 * 2**20


@dataclass(frozen=True)
class PromptReading:
    """How sentences are read.

    Attributes
    ----------
    modality
        Of the image, for sentences that name none; in any case, or DICOM's name of it.
    free_text
        Whether a sentence that names no known class is taken as it is, for a bundle that has a text
        encoder, instead of being refused.
    """

    modality: str | None = None
    free_text: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "modality", modality_named(self.modality))


PLAIN_READING: Final = PromptReading()


@dataclass(frozen=True)
class Prompt:
    """One label of a case: its value, its sentence, and the class that the sentence names."""

    label: int
    text: str
    class_key: ClassKey
    matched: str


@dataclass(frozen=True)
class PromptSet:
    """The prompts of one case, in the order given; all of one modality and one kind.

    Attributes
    ----------
    prompts
        Each label with its class.
    notes
        What was left out when they were chosen; see `class_prompts`.

    Raises
    ------
    PromptError
        If it is empty, mixes modalities or kinds, or gives a label or a class twice.
    """

    prompts: tuple[Prompt, ...]
    notes: tuple[Note, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not self.prompts:
            raise PromptError(
                "there is no prompt; give at least one, such as "
                '{"1": "Spleen in abdominal CT", "instance_label": 0}',
                code="no-prompt",
            )
        _refuse_mixture(self.prompts, of="modality", name="modalities")
        _refuse_mixture(self.prompts, of="kind", name="kinds")
        _refuse_repetition(self.prompts)

    @property
    def kind(self) -> str:
        """`"anatomy"` or `"lesion"`."""
        return self.prompts[0].class_key.kind

    @property
    def modality(self) -> str:
        """Modality of the image."""
        return self.prompts[0].class_key.modality

    @property
    def class_keys(self) -> tuple[ClassKey, ...]:
        """Class of each prompt."""
        return tuple(prompt.class_key for prompt in self.prompts)

    @property
    def labels(self) -> tuple[int, ...]:
        """Label value of each prompt."""
        return tuple(prompt.label for prompt in self.prompts)

    @property
    def texts(self) -> tuple[str, ...]:
        """Sentence of each prompt."""
        return tuple(prompt.text for prompt in self.prompts)

    @property
    def single(self) -> bool:
        """Whether the case asks for exactly one class (*single* in docs/presets.md)."""
        return len(set(self.class_keys)) == 1

    @property
    def parts(self) -> tuple[PromptSet, ...]:
        """The sets of one kind that are segmented one after the other: here the set itself."""
        return (self,)

    def as_case_mapping(self) -> dict[str, str | int]:
        """Return the prompts as a challenge case holds them: labels and their sentences."""
        mapping: dict[str, str | int] = {str(prompt.label): prompt.text for prompt in self.prompts}
        mapping[INSTANCE_LABEL] = KINDS.index(self.prompts[0].class_key.kind)
        return mapping

    def as_mapping(self) -> dict[str, object]:
        """Return the prompts as `prompts.json` holds them; `parse_prompts` reads it back."""
        return dict(self.as_case_mapping())


@dataclass(frozen=True)
class CombinedPrompts(PromptSet):
    """Anatomy and lesions of one case, anatomy first; make it with `combine`.

    Each kind is segmented as if it were asked for alone; then lesions replace the anatomy that
    they lie on.

    Raises
    ------
    PromptError
        If a kind is missing, modalities are mixed, or a label or a class is given twice.
    """

    def __post_init__(self) -> None:
        kinds = [prompt.class_key.kind for prompt in self.prompts]
        if kinds != sorted(kinds, key=KINDS.index) or set(kinds) != set(KINDS):
            raise PromptError(
                f"combined prompts are anatomy and then lesions, found {', '.join(kinds)}; "
                "leave out what is of the other kind",
                code="kinds-not-combinable",
            )
        _refuse_mixture(self.prompts, of="modality", name="modalities")
        _refuse_repetition(self.prompts)

    @property
    def kind(self) -> str:
        """`"anatomy and lesion"`."""
        return " and ".join(KINDS)

    @property
    def parts(self) -> tuple[PromptSet, ...]:
        """Anatomy, and lesions."""
        return tuple(
            PromptSet(tuple(each for each in self.prompts if each.class_key.kind == kind))
            for kind in KINDS
        )

    def as_mapping(self) -> dict[str, object]:
        """Return the prompts as `prompts.json` holds them, lesions in a mapping of their own."""
        anatomy, lesions = self.parts
        texts = {str(prompt.label): prompt.text for prompt in lesions.prompts}
        return {**anatomy.as_mapping(), LESIONS: texts}


AnyPrompts: TypeAlias = PromptSet | Mapping[str, object] | Sequence[str] | str
"""Prompts as callers have them: `as_prompt_set` reads each."""


def combine(anatomy: PromptSet, lesions: PromptSet) -> CombinedPrompts:
    """Ask for anatomy and for lesions of one case; see `CombinedPrompts`."""
    return CombinedPrompts((*anatomy.prompts, *lesions.prompts), (*anatomy.notes, *lesions.notes))


def with_lesions(
    anatomy: PromptSet, sentences: Sequence[str], reading: PromptReading = PLAIN_READING
) -> PromptSet:
    """Add lesions to prompts of anatomy, numbered from the highest label on.

    Parameters
    ----------
    anatomy
        Returned as it is where there are no sentences.
    sentences
        Of the lesions; one that names no modality is of that of the anatomy.
    reading
        How sentences are read.

    Raises
    ------
    PromptError
        As `parse_prompts` and `CombinedPrompts`.
    """
    if not sentences:
        return anatomy
    texts = dict(enumerate(sentences, start=max(anatomy.labels) + 1))
    return combine(anatomy, _resolve(texts, "lesion", replace(reading, modality=anatomy.modality)))


def class_prompts(
    modality: str,
    groups: Sequence[str] | str | None = None,
    *,
    kind: Kind = "anatomy",
    covered: Container[str] | None = None,
    beside: PromptSet | None = None,
) -> PromptSet:
    """Prompts of whole groups of classes, or of all classes.

    Classes overlap in the body (a lung and its lobes), while each voxel of a result has one label.

    Parameters
    ----------
    modality
        Of the image; in any case, or DICOM's name of it.
    groups
        Names of groups of anatomy, or one name, as `class_groups` lists them; None for every
        class of `kind`, or of the other kind where the modality has none of it.
    kind
        `"anatomy"` or `"lesion"`; groups are of anatomy.
    covered
        Bank keys of the classes that the model has, such as `Bundle.class_rows`; None for all.
    beside
        Prompts that are kept: the new labels follow theirs, and their classes aren't asked for
        twice.

    Returns
    -------
    PromptSet
        With notes on what was left out.

    Raises
    ------
    InputError
        A group is unknown or empty (`group-unknown`, `group-empty`).
    PromptError
        The model has none of the classes (`no-class-covered`), groups are asked for as lesions
        (`groups-are-anatomy`), or the classes don't go with `beside`.
    """
    check_kind(kind)
    modality = modality_named(modality)
    notes: list[Note] = []
    if isinstance(groups, str):
        groups = (groups,)
    if groups is None:
        keys = _every_class(modality, kind, notes)
    elif kind == "anatomy":
        keys = tuple(key for name in groups for key in classes_of_group(name, modality))
    else:
        raise PromptError(
            f"groups are of anatomy, not of kind {kind}; name the lesions, or ask for all of them",
            code="groups-are-anatomy",
        )
    keys = tuple(dict.fromkeys(keys))
    chosen = [key for key in keys if covered is None or key.bank_key in covered]
    if not chosen:
        raise PromptError(
            f"the model has no class of those asked for ({modality}); "
            "`medals-rt info` lists those that it has",
            code="no-class-covered",
        )
    if len(chosen) < len(keys):
        missing = [key.name for key in keys if key not in chosen]
        named = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
        text = f"the model does not have {len(missing)} of {len(keys)} {modality} classes: {named}"
        notes.append(Note("classes-not-covered", text))
    if beside is None:
        return PromptSet(_numbered_classes(chosen, 1), tuple(notes))
    new = _numbered_classes(
        [key for key in chosen if key not in beside.class_keys], max(beside.labels) + 1
    )
    first, *others = beside.parts
    grown = PromptSet((*first.prompts, *new), (*beside.notes, *notes))
    return combine(grown, *others) if others else grown


def _every_class(modality: str, kind: str, notes: list[Note]) -> tuple[ClassKey, ...]:
    """Return all classes of a kind, or of the other where there are none; note what is left out."""
    (other,) = (each for each in KINDS if each != kind)
    keys, others = classes_of(modality, kind), classes_of(modality, other)
    if not keys:
        text = f"{modality} has no classes of kind {kind}: those of kind {other} are asked for"
        notes.append(Note("only-other-kind", text))
        return others
    if others:
        text = f"all classes of kind {kind} are asked for, not the {len(others)} of kind {other}"
        notes.append(Note("other-kind-left-out", text))
    return keys


def _numbered_classes(keys: Sequence[ClassKey], start: int) -> tuple[Prompt, ...]:
    return tuple(
        Prompt(label, canonical_sentence(key), key, key.name)
        for label, key in enumerate(keys, start)
    )


def _refuse_mixture(prompts: Sequence[Prompt], *, of: str, name: str) -> None:
    found: dict[str, Prompt] = {}
    for prompt in prompts:
        found.setdefault(getattr(prompt.class_key, of), prompt)
    if len(found) > 1:
        listed = ", ".join(f"{value} (label {prompt.label})" for value, prompt in found.items())
        raise PromptError(
            f"the prompts of one case are of {len(found)} {name}: {listed}; "
            "a case is one image, split the prompts",
            code=f"several-{name}",
        )


def _refuse_repetition(prompts: Sequence[Prompt]) -> None:
    by_label: dict[int, Prompt] = {}
    by_class: dict[ClassKey, Prompt] = {}
    for prompt in prompts:
        if not 1 <= prompt.label <= MAX_LABEL:
            raise PromptError(
                f"label {prompt.label} isn't a label value; "
                f"use whole numbers from 1 to {MAX_LABEL}",
                code="label-invalid",
            )
        twin = by_label.setdefault(prompt.label, prompt)
        if twin is not prompt:
            raise PromptError(
                f"label {prompt.label} is given twice, for {twin.text!r} and {prompt.text!r}; "
                "give each class its own label",
                code="label-repeated",
            )
        twin = by_class.setdefault(prompt.class_key, prompt)
        if twin is not prompt:
            raise PromptError(
                f"labels {twin.label} and {prompt.label} both mean {str(prompt.class_key)!r} "
                f"({twin.text!r}, {prompt.text!r}); keep one of them",
                code="class-repeated",
            )


def parse_prompts(
    mapping: Mapping[str, object], reading: PromptReading = PLAIN_READING
) -> PromptSet:
    """Read the mapping of a challenge case or of `prompts.json`.

    A sentence without a modality takes the one in `reading`, else that of the other prompts, since
    a case is one image.
    A missing `instance_label` means 0, anatomy. A mapping of anatomy may hold that of lesions as
    `lesions`.

    Raises
    ------
    PromptError
        If a key isn't a positive whole number or occurs twice ("1" and "01"), a value isn't a
        sentence, `instance_label` isn't 0 or 1, a sentence names no class or several (the nearest
        are given), two labels mean one class, or two modalities are named.
    """
    if not isinstance(mapping, Mapping):
        raise PromptError(
            f"prompts are a {type(mapping).__name__}; give an object such as "
            '{"1": "Spleen in abdominal CT", "instance_label": 0}',
            code="prompts-form",
        )
    if LESIONS in mapping:
        return _parse_combined(mapping, reading)
    kind = _read_kind(mapping.get(INSTANCE_LABEL, 0))
    texts: dict[int, str] = {}
    for key, text in mapping.items():
        if key == INSTANCE_LABEL:
            continue
        label = _read_label(key)
        if not isinstance(text, str):
            raise PromptError(
                f"the prompt of label {label} is {text!r}; write a sentence", code="prompt-not-text"
            )
        if label in texts:
            raise PromptError(
                f"label {label} is given twice, for {texts[label]!r} and {text!r}; "
                "give each class its own label",
                code="label-repeated",
            )
        texts[label] = text
    return _resolve(texts, kind, reading)


def _parse_combined(mapping: Mapping[str, object], reading: PromptReading) -> CombinedPrompts:
    """Read a mapping of anatomy that holds one of lesions."""
    own = {key: value for key, value in mapping.items() if key != LESIONS}
    held = mapping[LESIONS]
    if not isinstance(held, Mapping):
        raise PromptError(
            f'"{LESIONS}" holds a {type(held).__name__}; give an object such as '
            '{"2": "Liver tumors in abdominal CT"}',
            code="prompts-form",
        )
    anatomy = parse_prompts(own, reading)
    of_case = replace(reading, modality=anatomy.modality)
    return combine(anatomy, parse_prompts({INSTANCE_LABEL: 1, **held}, of_case))


def _read_kind(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str) or str(value) not in {"0", "1"}:
        raise PromptError(
            f"instance_label is {value!r}; use 0 (anatomy, one label a class) or 1 (lesions)",
            code="instance-label-invalid",
        )
    return KINDS[int(value)]


def _read_label(key: object) -> int:
    text = str(key).strip()
    if isinstance(key, bool) or not re.fullmatch(r"[0-9]{1,9}", text) or int(text) == 0:
        raise PromptError(
            f"label {key!r} isn't a label value; use whole numbers from 1 to {MAX_LABEL} as keys",
            code="label-invalid",
        )
    return int(text)


def _resolve(texts: Mapping[int, str], kind: str, reading: PromptReading) -> PromptSet:
    """Read every sentence; those without a modality take the one that the others name."""
    if len(texts) > MAX_PROMPTS:
        raise PromptError(
            f"{len(texts)} prompts are more than {MAX_PROMPTS}; split the case",
            code="too-many-prompts",
        )
    found: dict[int, Match] = {}
    refused: dict[int, PromptError] = {}
    for label, text in texts.items():
        try:
            found[label] = find_class(text, kind, reading.modality)
        except PromptError as error:
            refused[label] = error
    modalities = {match.modality for match in found.values()}
    (modality,) = modalities if len(modalities) == 1 else (reading.modality,)
    for label, refusal in refused.items():
        try:
            if modality is None:
                raise refusal
            found[label] = find_class(texts[label], kind, modality)
        except PromptError:
            if not reading.free_text:
                raise
            found[label] = free_text(texts[label], kind, modality)
    return PromptSet(
        tuple(
            Prompt(label, text, found[label].class_key, found[label].matched)
            for label, text in texts.items()
        )
    )


def read_prompts(path: str | PathLike[str], reading: PromptReading = PLAIN_READING) -> PromptSet:
    """Read a `prompts.json`.

    Raises
    ------
    MissingFileError
        If there is no such file.
    PromptError
        If it isn't JSON of the right form; see `parse_prompts`.
    """
    file = Path(path)
    text = read_text(
        file, "prompts file", most_bytes=_MAX_FILE_BYTES, form="prompts-form", error=PromptError
    )
    try:
        pairs = _decode_pairs(text)
    except (ValueError, RecursionError) as error:
        raise PromptError(
            f"{file} isn't a JSON object of prompts ({error}); write "
            '{"1": "Spleen in abdominal CT", "instance_label": 0}',
            code="prompts-form",
        ) from error
    return parse_prompts(pairs, reading)


def _decode_pairs(text: str) -> dict[str, object]:
    decoded = decode_json(text)
    if not isinstance(decoded, dict):
        raise ValueError(f"it holds a {type(decoded).__name__}")  # noqa: TRY004 - caught as one
    return decoded


def numbered(texts: Sequence[str], kind: str, reading: PromptReading = PLAIN_READING) -> PromptSet:
    """Prompts given one after the other, numbered from 1.

    Raises
    ------
    PromptError
        As `parse_prompts`.
    """
    check_kind(kind)
    return _resolve(dict(enumerate(texts, start=1)), kind, reading)


def as_prompt_set(
    prompts: AnyPrompts,
    kind: Kind | None = None,
    reading: PromptReading = PLAIN_READING,
) -> PromptSet:
    """Read prompts in whatever form a caller has them.

    Parameters
    ----------
    prompts
        Prompts that were read before, a mapping as in `parse_prompts`, sentences (numbered from 1),
        or one sentence.
    kind
        `"anatomy"` or `"lesion"`. If left out, a mapping's `instance_label` says it, and sentences
        ask for anatomy.
    reading
        How sentences are read; prompts that were read before are returned as they are.

    Raises
    ------
    TypeError
        If `prompts` is something else.
    PromptError
        As `parse_prompts`; code `no-prompts` for None, the `Case.prompts` of a file that holds
        none, `kind-contradiction` where `prompts` are of another kind than `kind`,
        `modality-contradiction` where they are of another modality than `reading`'s.
    """
    check_kind(kind)
    found = _read_any(prompts, kind, reading)
    if kind not in {None, found.kind}:
        raise PromptError(
            f"the prompts are of kind {found.kind}, but {kind} was asked for; leave one out",
            code="kind-contradiction",
        )
    if reading.modality not in {None, found.modality}:
        raise PromptError(
            f"the prompts are about {found.modality}, but {reading.modality} was asked for",
            code="modality-contradiction",
        )
    return found


def _read_any(prompts: object, kind: str | None, reading: PromptReading) -> PromptSet:
    if prompts is None:
        raise PromptError(
            "there are no prompts: a file that holds none gives None; name them, such as "
            "'Liver in abdominal CT'",
            code="no-prompts",
        )
    if isinstance(prompts, PromptSet):
        return prompts
    if isinstance(prompts, Mapping):
        said = {} if kind is None else {INSTANCE_LABEL: KINDS.index(kind)}
        return parse_prompts({**said, **prompts}, reading)
    texts = (prompts,) if isinstance(prompts, str) else prompts
    if (
        not isinstance(texts, Sequence)
        or isinstance(texts, bytes | bytearray)
        or not all(isinstance(text, str) for text in texts)
    ):
        given = type(prompts).__name__
        if isinstance(texts, Sequence) and not isinstance(texts, bytes | bytearray):
            given += " of " + ", ".join(sorted({type(text).__name__ for text in texts}))
        raise TypeError(
            f"prompts are of type {given}; use a sentence, a list of sentences, a mapping such as "
            '{"1": "Spleen in abdominal CT", "instance_label": 0}, or a PromptSet'
        )
    return numbered(texts, kind or "anatomy", reading)


def describe(found: Match | Prompt) -> dict[str, object]:
    """Return what a sentence was read as: `modality`, `class`, `id`, `matched`."""
    key = found.class_key
    return {"modality": key.modality, "class": key.name, "id": key.id, "matched": found.matched}


__all__ = [
    "INSTANCE_LABEL",
    "AnyPrompts",
    "CombinedPrompts",
    "Match",
    "Prompt",
    "PromptReading",
    "PromptSet",
    "as_prompt_set",
    "class_prompts",
    "combine",
    "describe",
    "find_class",
    "numbered",
    "parse_prompts",
    "read_prompts",
    "with_lesions",
]
