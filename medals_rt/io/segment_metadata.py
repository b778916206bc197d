"""What a label is called, which color and which code it has: for formats that store it.

Codes are SNOMED CT where the class has one (`data/snomed_codes.json`, which names the lists that
they are from, and why other classes have none), else of the private scheme `PRIVATE_SCHEME`, made
of the class's modality, kind and id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import msgspec
import numpy as np

from medals_rt.common.arrays import label_counts
from medals_rt.common.errors import CaseError
from medals_rt.common.typing import HostArray
from medals_rt.io.palette import Rgb, label_color
from medals_rt.prompts.classes import ClassKey, read_data
from medals_rt.prompts.prompt_set import INSTANCE_LABEL, MAX_LABEL, PromptSet

SNOMED: Final = "SCT"
PRIVATE_SCHEME: Final = "99MEDALSRT"
"""Coding scheme of what has no SNOMED CT code here; 99 marks private schemes in DICOM."""


@dataclass(frozen=True)
class Code:
    """A coded concept: value, the scheme that defines it, and what it means."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class Segment:
    """One label of a result.

    Attributes
    ----------
    label
        Its value in the label map.
    name
        Of its class; where that isn't known its sentence, else `label N`.
    sentence
        The prompt.
    rgb
        Its color, 0 to 1.
    category, type
        Codes of what it is: an anatomical or an abnormal structure, and which.
    region
        For something abnormal the code of the organ that it lies in, where that is known.
    side
        Code of the side of `type` (or `region`), where it has one.
    """

    label: int
    name: str
    sentence: str
    rgb: Rgb
    category: Code
    type: Code
    region: Code | None = None
    side: Code | None = None


class _ClassCodes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Meanings of one class's codes."""

    category: str
    type: str
    region: str | None = None
    side: str | None = None


class CodeTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of `snomed_codes.json`."""

    notice: str
    codes: dict[str, str]
    beyond_dicom: dict[str, str]
    categories: dict[str, str]
    sides: dict[str, str]
    classes: dict[str, _ClassCodes]
    without_code: dict[str, str]

    def code(self, meaning: str) -> Code:
        """Return the SNOMED CT code of a meaning that the table uses."""
        return Code({**self.codes, **self.beyond_dicom}[meaning], SNOMED, meaning)


@lru_cache(maxsize=1)
def code_table() -> CodeTable:
    """`snomed_codes.json`, read once."""
    table: CodeTable = read_data("snomed_codes.json", CodeTable)
    return table


def segments_of(
    prompts: PromptSet | Mapping[str, object] | None, labels: HostArray
) -> tuple[Segment, ...]:
    """Describe every label that was asked for or is there.

    Parameters
    ----------
    prompts
        The prompts; a mapping as a case file holds it tells no classes, but sentences.
    labels
        Unsigned integers `(., ., .)` up to 65535. Labels that no prompt names are described by
        their number.

    Returns
    -------
    tuple of Segment
        Prompts in their order, then labels without one.

    Raises
    ------
    CaseError
        If a label is above 65535.
    """
    segments = {}
    if isinstance(prompts, PromptSet):
        for prompt in prompts.prompts:
            segments[prompt.label] = _class_segment(prompt.label, prompt.text, prompt.class_key)
    elif prompts is not None:
        for key, sentence in prompts.items():
            if key != INSTANCE_LABEL and key.isascii() and key.isdigit():
                segments[int(key)] = _plain_segment(int(key), str(sentence), str(sentence))
    for label in sorted(_present(labels) - {0} - set(segments)):
        segments[label] = _plain_segment(label, f"label {label}", "")
    return tuple(segments.values())


def _present(labels: HostArray) -> set[int]:
    """Return the values of a label map: counting them takes a tenth of the time of sorting."""
    highest = int(labels.max(initial=0))
    if highest > MAX_LABEL:
        raise CaseError(
            f"labels up to {highest:,} can't be named: segments have labels up to {MAX_LABEL:,}; "
            "write .npz or .nii.gz",
            code="labels-out-of-range",
        )
    return set(np.flatnonzero(label_counts(labels)).tolist())


def _class_segment(label: int, sentence: str, key: ClassKey) -> Segment:
    table = code_table()
    known = table.classes.get(key.name)
    if known is None:
        category = table.code(table.categories[key.kind])
        kind = key.kind[0].upper()
        private = Code(f"{key.modality}-{kind}-{key.id}", PRIVATE_SCHEME, key.name)
        return Segment(label, key.name, sentence, label_color(label, key.name), category, private)
    return Segment(
        label,
        key.name,
        sentence,
        label_color(label, key.name),
        table.code(table.categories[known.category]),
        table.code(known.type),
        None if known.region is None else table.code(known.region),
        None if known.side is None else table.code(table.sides[known.side]),
    )


def _plain_segment(label: int, name: str, sentence: str) -> Segment:
    category = code_table().code(code_table().categories["anatomy"])
    kind = Code(f"label-{label}", PRIVATE_SCHEME, name)
    return Segment(label, name, sentence, label_color(label, name), category, kind)
