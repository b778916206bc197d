"""Which of a series' slices make the volume: one acquisition, echo, phase or kind of image.

A series may hold several images of one place. Slices are distinguished by the attributes of `KEYS`;
where groups of slices with different values of one lie in each other's range they are no volume
together, and one of them has to be chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from shlex import quote
from typing import Any, Final

from medals_rt.common.errors import CaseError
from medals_rt.common.notes import Note, warning
from medals_rt.io.dicom.files import printable, reading
from medals_rt.io.dicom.series import Series
from medals_rt.io.dicom.slices import Slice, Vector

_SAME_PLACE_MM: Final = 1e-3
_NONE: Final = "none"
"""Of slices that lack an attribute that others have."""

_LISTED: Final = 8


@dataclass(frozen=True)
class Key:
    """An attribute that tells images of one place apart.

    Attributes
    ----------
    name
        What it is called with ``--select``.
    keywords
        DICOM keywords, the first found counts.
    frame
        Sequence and keyword of a frame's functional groups that hold it in enhanced files.
    by_slice
        Whether it may differ from slice to slice of one image; then only slices at the same place
        are distinguished by it.
    """

    name: str
    keywords: tuple[str, ...]
    frame: tuple[tuple[str, str], ...] = ()
    by_slice: bool = False


KEYS: Final = (
    Key(
        "ACQUISITION",
        ("AcquisitionNumber",),
        (("FrameContentSequence", "FrameAcquisitionNumber"),),
    ),
    Key("ECHO", ("EchoNumbers",)),
    Key("ECHO_TIME", ("EchoTime",), (("MREchoSequence", "EffectiveEchoTime"),)),
    Key(
        "PHASE",
        ("TemporalPositionIdentifier", "TemporalPositionIndex"),
        (("FrameContentSequence", "TemporalPositionIndex"),),
    ),
    Key(
        "CARDIAC_PHASE",
        ("NominalPercentageOfCardiacPhase",),
        (("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),),
        by_slice=True,
    ),
    Key(
        "TRIGGER_TIME",
        ("TriggerTime",),
        (("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),),
        by_slice=True,
    ),
    Key("B_VALUE", ("DiffusionBValue",), (("MRDiffusionSequence", "DiffusionBValue"),)),
    Key("INVERSION_TIME", ("InversionTime",), by_slice=True),
    Key(
        "IMAGE_TYPE",
        ("ImageType",),
        tuple(
            (f"{kind}FrameTypeSequence", "FrameType")
            for kind in ("MRImage", "CTImage", "PETFrame", "XRay3D")
        ),
    ),
    Key("STACK", (), (("FrameContentSequence", "StackID"),)),
    Key("KERNEL", ("ConvolutionKernel",)),
)


def parse_selection(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read ``KEY=VALUE`` or ``KEY=VALUE,VALUE``.

    Parameters
    ----------
    words
        `KEY` is the name of one of `KEYS`, or a DICOM keyword, in letters of either case.

    Raises
    ------
    CaseError
        If a word isn't of that form.
    """
    chosen: dict[str, tuple[str, ...]] = {}
    for word in words:
        key, found, values = word.partition("=")
        several = tuple(value.strip() for value in values.split(",") if value.strip())
        if not found or not key.strip() or not several:
            raise CaseError(
                f"can't select {printable(word)!r}; write KEY=VALUE, such as ECHO=2",
                code="selection-malformed",
            )
        chosen[key.strip()] = several
    return chosen


def select_slices(
    slices: Sequence[Slice], selection: Mapping[str, tuple[str, ...]], series: Series
) -> list[Slice]:
    """Keep the slices whose attributes have the selected values.

    Raises
    ------
    CaseError
        If no slice has them; the message lists the values that there are.
    """
    kept = list(slices)
    for name, values in selection.items():
        key = _key(name)
        left = [each for each in kept if any(_fits(_value(each, key), value) for value in values)]
        if not left:
            there = _listed(_groups(kept, key))
            raise CaseError(
                f"no image of the series [{series}] has {printable(name)}="
                f"{printable(','.join(values))}; there are {there or 'none with this attribute'}",
                code="selection-empty",
            )
        kept = left
    return kept


def check_one_image(
    slices: Sequence[Slice], selection: Mapping[str, tuple[str, ...]], series: Series
) -> tuple[Note, ...]:
    """Check that slices aren't of several acquisitions, echoes or phases of one place.

    Slabs that follow each other are one image; groups that lie in each other's range are none,
    unless their values were selected together.

    Raises
    ------
    CaseError
        If they are; the message lists the values to choose from.
    """
    normal = slices[0].normal
    together = {_key(name) for name, values in selection.items() if len(values) > 1}
    mixed = []
    for key in KEYS:
        groups = _groups(slices, key)
        if not groups:
            continue
        extents = [_along(members, normal) for members in groups.values()]
        without = [each for each in slices if not _value(each, key)]
        if _at_same_place(extents) or (not key.by_slice and _interleaved(extents)):
            mixed.append((key, groups))
        elif without and _at_same_place([*extents, _along(without, normal)]):
            mixed.append((key, {**groups, _NONE: without}))
    if any(key in together for key, _ in mixed):
        text = "slices of " + "; ".join(
            f"{key.name} {_listed(groups)} are read as one image" for key, groups in mixed
        )
        return (warning("images-interleaved", text),)
    if mixed:
        found = "; ".join(f"{key.name}: {_listed(groups)}" for key, groups in mixed[:3])
        key, groups = mixed[0]
        example = quote(f"{key.name}={min(groups.keys() - {_NONE}, key=_number)}")
        raise CaseError(
            f"the series [{series}] holds several images of one place, distinguished by {found}. "
            f"Choose one with --select, such as --select {example}",
            code="several-images",
        )
    return ()


def _key(name: str) -> Key:
    """Find the key of a name or DICOM keyword; else the keyword itself is one."""
    wanted = name.replace("_", "").replace("-", "").casefold()
    for key in KEYS:
        known = (key.name.replace("_", ""), *key.keywords, *(word for _, word in key.frame))
        if wanted in {each.casefold() for each in known}:
            return key
    return Key(name, (name,))


def _value(each: Slice, key: Key) -> str:
    """Value of a key for a slice, as text; "" where it has none."""
    with reading(each.image.file.name):
        for groups in each.groups:
            for sequence, keyword in key.frame:
                items = groups.get(sequence)
                if items and items[0].get(keyword) is not None:
                    return _text(items[0].get(keyword))
        for keyword in key.keywords:
            value = each.image.header.get(keyword)
            if value is not None:
                return _text(value)
    return ""


def _text(value: Any) -> str:
    if not isinstance(value, str) and isinstance(value, Sequence):
        return printable("\\".join(str(part) for part in value))
    return printable(value)


def _groups(slices: Sequence[Slice], key: Key) -> dict[str, list[Slice]]:
    groups: dict[str, list[Slice]] = {}
    for each in slices:
        groups.setdefault(_value(each, key), []).append(each)
    groups.pop("", None)
    return groups


def _along(slices: Sequence[Slice], normal: Vector) -> list[float]:
    """Return where slices lie along a line, in millimeters, sorted."""
    return sorted(float(each.position_lps_mm @ normal) for each in slices)


def _interleaved(extents: list[list[float]]) -> bool:
    """Whether groups of places along a line lie in each other's range.

    A single slice between others is no group of its own: some scanners number every slice.
    """
    reach: float | None = None
    for places in sorted(places for places in extents if len(places) > 1):
        if reach is not None and places[0] < reach + _SAME_PLACE_MM:
            return True
        reach = places[-1] if reach is None else max(reach, places[-1])
    return False


def _at_same_place(extents: list[list[float]]) -> bool:
    """Whether two groups have a place along a line in common."""
    lying = sorted((place, number) for number, places in enumerate(extents) for place in places)
    return any(
        second[0] - first[0] < _SAME_PLACE_MM and second[1] != first[1]
        for first, second in pairwise(lying)
    )


def _listed(groups: Mapping[str, Sequence[Slice]]) -> str:
    values = sorted(groups, key=_number)
    text = ", ".join(
        f"{value} ({len(groups[value])} image{'s' if len(groups[value]) > 1 else ''})"
        for value in values[:_LISTED]
    )
    return text if len(values) <= _LISTED else f"{text} and {len(values) - _LISTED} more"


def _number(value: str) -> tuple[float, str]:
    try:
        return (float(value), value)
    except ValueError:
        return (float("inf"), value)


def _fits(found: str, wanted: str) -> bool:
    """Whether a value is the one wanted: as numbers, as text, or as a part of several values."""
    if not found:
        return False
    number, other = _number(found)[0], _number(wanted)[0]
    if number == other != float("inf"):
        return True
    parts = {found.casefold(), *found.casefold().split("\\")}
    return wanted.casefold() in parts
