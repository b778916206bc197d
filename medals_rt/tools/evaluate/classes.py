"""What the labels of two files mean, and which of one belongs to which of the other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from medals_rt.common.choices import KINDS, MODALITIES, Kind
from medals_rt.common.errors import CaseError, PromptError
from medals_rt.common.notes import Note, warning
from medals_rt.io.case import LabelFile
from medals_rt.io.registry import case_stem
from medals_rt.prompts.classes import ClassKey, all_classes
from medals_rt.prompts.matching import find_class
from medals_rt.prompts.prompt_set import INSTANCE_LABEL, MAX_LABEL, PromptSet, parse_prompts

_NUMBER = re.compile(r"[0-9]{1,9}")
_UNNAMED = re.compile(r"label \d+", re.IGNORECASE)
"""What this package calls labels that nothing names."""

_NUMBER_BEHIND = re.compile(r"\s+\d+$")

_LISTED = 4


@dataclass(frozen=True)
class LabelNames:
    """What a file's labels are called.

    Attributes
    ----------
    names
        By label: the class's name where the text names one, else the text.
    classes
        Those labels of `names` that name a class of the class list.
    kind
        Kind of the classes; None where that isn't known.
    """

    names: Mapping[int, str] = field(default_factory=dict)
    classes: frozenset[int] = frozenset()
    kind: Kind | None = None

    def __bool__(self) -> bool:
        return bool(self.names)

    def label_of(self) -> dict[str, int]:
        """Labels by name without case; of a name that occurs twice, the last."""
        return {name.casefold(): label for label, name in self.names.items()}

    def are_unique(self) -> bool:
        """Whether no two labels have one name."""
        return len(self.label_of()) == len(self.names)


@dataclass(frozen=True)
class Pairing:
    """Which label of one file is which of another.

    Attributes
    ----------
    moved
        Labels of the first file, and the value of the second that means the same. All others keep
        their value.
    notes
        What a person should know of it.
    """

    moved: Mapping[int, int] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()


def prompts_beside(path: Path) -> Path | None:
    """Prompts file that lies beside a case, `NAME.prompts.json`; None where there is none."""
    beside = path.with_name(f"{case_stem(path)}.prompts.json")
    return beside if beside.is_file() else None


def names_of_prompts(prompts: PromptSet) -> LabelNames:
    """Names of the labels of prompts that were read."""
    names = {each.label: each.class_key.name for each in prompts.prompts}
    return LabelNames(names, frozenset(names), _kind(prompts.kind == "lesion"))


def names_in(file: LabelFile | None) -> LabelNames:
    """Names that a file itself gives to its labels: by its prompts, else by its segments."""
    if file is None:
        return LabelNames()
    stored, texts, kind = file.prompts, file.segment_names, None
    if stored is not None:
        try:
            return names_of_prompts(parse_prompts(stored))
        except PromptError:
            # Scoring needs no class: a sentence that names none still names its label.
            texts = {int(key): str(text) for key, text in stored.items() if _NUMBER.fullmatch(key)}
            kind = _kind(stored.get(INSTANCE_LABEL) in {1, "1"})
    named = {
        label: text
        for label, text in texts.items()
        if 0 < label <= MAX_LABEL and text and not _UNNAMED.fullmatch(text)
    }
    found = {label: _class_of(text) for label, text in named.items()}
    classes = {label: key for label, key in found.items() if key is not None}
    if kind is None and classes and len(classes) == len(named):
        kind = _kind(all(key.kind == "lesion" for key in classes.values()))
    names = {label: classes[label].name if label in classes else named[label] for label in named}
    return LabelNames(names, frozenset(classes), kind)


def pair_labels(
    case: str,
    predicted: LabelNames,
    reference: LabelNames,
    *,
    present: tuple[Iterable[int], Iterable[int]] = ((), ()),
    by_value: bool = False,
) -> Pairing:
    """Find which labels mean the same.

    Labels keep their values as long as the names don't contradict them. Where they do, labels are
    paired by name, if that leaves no doubt: every label that occurs has a name, none has the name
    of another, and names that differ at one value are known classes, or found under another value.

    Parameters
    ----------
    case
        Name for messages.
    predicted, reference
        What each side calls its labels; empty where it doesn't.
    present
        Labels above 0 that occur in each.
    by_value
        Keep values whatever the names say, with a warning.

    Raises
    ------
    CaseError
        If the names contradict the values and don't pair the labels without doubt (code
        `label-names-differ`), or no class is in both (`no-class-shared`).
    """
    ours, theirs = predicted.label_of(), reference.label_of()
    shared = [name for name in ours if name in theirs]
    moved = {ours[name]: theirs[name] for name in shared if ours[name] != theirs[name]}
    differing = [
        label
        for label, name in predicted.names.items()
        if name.casefold() != reference.names.get(label, name).casefold()
    ]
    if not differing and not moved:
        return Pairing()
    example = differing[0] if differing else next(iter(moved))
    contradiction = _contradiction(case, example, predicted, reference)
    if by_value:
        text = f"{contradiction}; they are paired by value, as asked"
        return Pairing(notes=(warning("label-names-differ", text),))
    nameless = [
        label
        for labels, side in zip(present, (predicted, reference), strict=True)
        for label in labels
        if label not in side.names
    ]
    unsure = [label for label in differing if _may_be_one(label, predicted, reference)]
    unique = predicted.are_unique() and reference.are_unique()
    if nameless or unsure or not unique:
        raise CaseError(
            f"{_contradiction(case, (unsure or [example])[0], predicted, reference)}; name every "
            "label of both files by its class, or pair them by value with --by-value",
            code="label-names-differ",
        )
    if not shared:
        raise no_class_shared(case, predicted, reference)
    used = {*reference.names, *present[1], *present[0], *predicted.names}
    others = [label for label in predicted.names if predicted.names[label].casefold() not in theirs]
    free = range(max(used) + 1, max(used) + 1 + len(others))
    pairs = [f"{predicted.names[ours[name]]} {ours[name]} with {theirs[name]}" for name in shared]
    text = f"case {case}: labels were paired by class, not by value ({_listed(pairs)})"
    note = Note("labels-paired-by-class", text)
    return Pairing({**moved, **dict(zip(others, free, strict=True))}, (note,))


def no_class_shared(case: str, predicted: LabelNames, reference: LabelNames) -> CaseError:
    """Error for two files that have no class in common."""
    ours, theirs = (_listed(list(each.names.values())) for each in (predicted, reference))
    return CaseError(
        f"case {case}: no class is in both files: the prediction has {ours}, the reference "
        f"{theirs}; give files that belong together",
        code="no-class-shared",
    )


def shared_label_notes(
    case: str,
    predicted: Iterable[int],
    reference: Iterable[int],
    names: Mapping[int, str],
) -> tuple[Note, ...]:
    """Warn where two label maps have labels, but none in common."""
    ours, theirs = list(predicted), list(reference)
    if not ours or not theirs or set(ours) & set(theirs):
        return ()
    found, expected = (
        _listed([f"{label} ({names[label]})" if label in names else str(label) for label in labels])
        for labels in (ours, theirs)
    )
    text = (
        f"case {case}: no label is in both files: the prediction has {found}, the reference "
        f"{expected}; are they numbered alike?"
    )
    return (warning("no-label-shared", text),)


def _kind(lesion: bool) -> Kind:
    return "lesion" if lesion else "anatomy"


def _may_be_one(label: int, predicted: LabelNames, reference: LabelNames) -> bool:
    """Whether two names of one value may be two words for one thing."""
    known = label in predicted.classes and label in reference.classes
    ours, theirs = predicted.names[label].casefold(), reference.names[label].casefold()
    return not (known or ours in reference.label_of() or theirs in predicted.label_of())


def _contradiction(case: str, label: int, predicted: LabelNames, reference: LabelNames) -> str:
    ours = predicted.names[label]
    theirs = reference.names.get(label)
    if theirs is None:
        theirs_label = reference.label_of()[ours.casefold()]
        return (
            f"case {case}: {ours!r} is label {label} in the prediction and {theirs_label} in the "
            "reference"
        )
    return (
        f"case {case}: label {label} is {ours!r} in the prediction and {theirs!r} in the reference"
    )


@lru_cache(maxsize=1024)
def _class_of(text: str) -> ClassKey | None:
    """Class that a name or sentence means in every modality that knows it; None if in doubt."""
    exact = [key for key in all_classes() if key.name.casefold() == text.strip().casefold()]
    found = exact or [key for kind in KINDS for key in _found(text, kind)]
    if len({(key.name, key.kind) for key in found}) == 1:
        return found[0]
    # Instances are segments whose numbers follow the class's name: "Liver tumors 2".
    class_text = _NUMBER_BEHIND.sub("", text)
    instance = None if class_text == text else _class_of(class_text)
    return instance if instance is not None and instance.kind == "lesion" else None


def _found(text: str, kind: Kind) -> list[ClassKey]:
    keys = []
    for modality in (None, *MODALITIES):
        try:
            keys.append(find_class(text, kind, modality).class_key)
        except PromptError:
            continue
    return keys


def _listed(texts: list[str]) -> str:
    more = f" and {len(texts) - _LISTED} more" if len(texts) > _LISTED else ""
    return ", ".join(texts[:_LISTED]) + more
