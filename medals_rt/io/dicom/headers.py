"""What DICOM results take over of their source: checked, and in one character set.

Hospital files hold values that DICOM doesn't allow, or texts in character sets that they don't
name. Each attribute is read from the bytes that the file holds, decoded, checked, and left out
where that fails; the names of those left out are kept for a note.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from datetime import date
from typing import Any, Final

import numpy as np

from medals_rt.common.errors import CaseError
from medals_rt.io.dicom.slices import Slice

CHARACTER_SET: Final = "ISO_IR 192"
"""Of what is written: UTF-8, which holds the letters of all others."""

_REQUIRED: Final = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "ReferringPhysicianName", "StudyID", "AccessionNumber",
)  # fmt: skip
"""Has to be there, but may be empty (type 2 in DICOM)."""

_OPTIONAL: Final = (
    "IssuerOfPatientID", "OtherPatientNames", "PatientAge", "PatientSize", "PatientWeight",
    "PatientComments", "PatientIdentityRemoved", "DeidentificationMethod", "StudyDescription",
    "ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID", "ClinicalTrialSiteName", "ClinicalTrialSubjectID",
    "ClinicalTrialTimePointID", "LossyImageCompression", "LossyImageCompressionRatio",
    "LossyImageCompressionMethod", "PositionReferenceIndicator",
)  # fmt: skip
_UIDS: Final = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_UID: Final = re.compile(r"[0-9]+(\.[0-9]+)*")
_MAX_UID: Final = 64
_SEXES: Final = ("M", "F", "O")
_SIDES: Final = ("L", "R")
_UNPAIRED: Final = "U"
_ESCAPE: Final = b"\x1b"
_GB2312: Final = "\x1b$)A"


def common_header(each: Slice) -> tuple[Any, tuple[str, ...]]:
    """Make a data set of what all slices of a result's source share.

    Returns
    -------
    Dataset
        Patient, study and identifiers, in the character set `CHARACTER_SET`.
    tuple of str
        Keywords of attributes that couldn't be kept.

    Raises
    ------
    CaseError
        If an identifier that results refer to is missing or no UID.
    """
    from pydicom.dataset import Dataset

    header = each.image.header
    clean, left_out = Dataset(), []
    clean.SpecificCharacterSet = CHARACTER_SET
    for name in _UIDS:
        setattr(clean, name, checked_uid(header.get(name), name, each))
    encodings = _encodings(header)
    for name in (*_REQUIRED, *_OPTIONAL):
        value = None
        if name in header:
            try:
                value = _clean(header, name, encodings)
            except _UNUSABLE:
                left_out.append(name)
        if value is not None:
            setattr(clean, name, value)
        elif name in _REQUIRED:
            setattr(clean, name, "")
    return clean, tuple(left_out)


def agreed_value(slices: Sequence[Slice], *names: str) -> tuple[str | None, bool]:
    """Return what the slices of a series agree about.

    Parameters
    ----------
    slices
        Of the series.
    names
        Keywords of an attribute, and of others that say the same elsewhere.

    Returns
    -------
    str or None
        The value; None where there is none.
    bool
        Whether there is one that DICOM doesn't allow, or several.
    """
    headers = [image.header for image in dict.fromkeys(each.image for each in slices)]
    try:
        found = {_clean(each, name, None) for each in headers for name in names if name in each}
    except _UNUSABLE:
        return None, True
    found -= {None, ""}
    return (str(found.pop()), False) if len(found) == 1 else (None, bool(found))


def checked_uid(value: object, name: str, each: Slice) -> str:
    """Check an identifier.

    Raises
    ------
    CaseError
        If it is missing or no UID.
    """
    uid = str(value or "").strip()
    if not uid:
        raise CaseError(
            f"{each.image.file.name} has no {name}, which DICOM results refer to; "
            "write .nii.gz, .seg.nrrd or .npz",
            code="uid-missing",
        )
    if len(uid) > _MAX_UID or not _UID.fullmatch(uid):
        raise CaseError(
            f"{each.image.file.name} has a {name} that is no UID, so that no DICOM result can "
            "refer to it; write .nii.gz, .seg.nrrd or .npz",
            code="uid-invalid",
        )
    return uid


def decimal(value: float) -> str:
    """Write a number in the 16 characters that DICOM allows."""
    from pydicom.valuerep import format_number_as_ds

    return format_number_as_ds(float(value))


_UNUSABLE: Final = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What values that DICOM doesn't allow raise, here and in pydicom."""


def _clean(header: Any, name: str, encodings: list[str] | None) -> Any:
    """Value of an attribute that may be written; `None` for an empty one.

    Raises
    ------
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError
        If it can't be kept.
    """
    from pydicom.config import RAISE
    from pydicom.datadict import dictionary_VM, dictionary_VR, tag_for_keyword
    from pydicom.valuerep import validate_value

    tag = tag_for_keyword(name) or 0
    kind = dictionary_VR(tag)
    text = _text(header, tag, kind, encodings)
    if not text:
        return None
    special: dict[str, Callable[[str], str]] = {
        "DA": _date, "TM": _time, "DS": lambda word: decimal(_finite(word)),
    }  # fmt: skip
    one = special.get(kind, str)
    one = {"PatientSex": _sex, "Laterality": _side, "ImageLaterality": _side}.get(name, one)
    several = kind not in {"ST", "LT", "UT"}
    values = [one(part.strip()) for part in (text.split("\\") if several else [text])]
    if len(values) > 1 and dictionary_VM(tag) == "1":
        raise ValueError("several values")
    for value in values:
        validate_value(kind, value, RAISE)
    return values if len(values) > 1 else values[0]


def _text(header: Any, tag: int, kind: str, encodings: list[str] | None) -> str:
    """Decode what the file holds."""
    from pydicom.charset import decode_bytes
    from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

    stored = header.get_item(tag).value
    raw = getattr(stored, "original_string", stored)
    if raw is None:
        return ""
    if not isinstance(raw, bytes):
        several = not isinstance(raw, str) and hasattr(raw, "__iter__")
        return "\\".join(map(str, raw)) if several else str(raw)
    raw = raw.rstrip(b"\0 ")
    if raw.isascii() and _ESCAPE not in raw:
        return raw.decode("ascii")
    if encodings is None:
        raise ValueError("an unknown character set")
    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always")
        text = decode_bytes(raw, encodings, PN_DELIMS if kind == "PN" else TEXT_VR_DELIMS)
    text = text.replace(_GB2312, "")  # pydicom leaves this one escape sequence in.
    if doubts or not text.replace("\r", "").replace("\n", "").replace("\t", "").isprintable():
        raise ValueError("not in the character set that the file names")
    return str(text)


def _encodings(header: Any) -> list[str] | None:
    """Python's names of a file's character sets; `None` where one is unknown."""
    from pydicom.charset import convert_encodings

    named = header.get("SpecificCharacterSet") or ""
    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always")
        try:
            found: list[str] = convert_encodings(named if isinstance(named, str) else list(named))
        except _UNUSABLE:
            return None
    return None if any("nknown" in str(doubt.message) for doubt in doubts) else found


def _date(text: str) -> str:
    """`YYYYMMDD` of a date that exists, also from the old form `YYYY.MM.DD`."""
    digits = text.replace(".", "") if re.fullmatch(r"\d{4}\.\d\d\.\d\d", text) else text
    if not re.fullmatch(r"\d{8}", digits):
        raise ValueError("no date")
    date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    return digits


def _time(text: str) -> str:
    """`HHMMSS.FFFFFF` or its beginning, also from the old form `HH:MM:SS`."""
    digits = text.replace(":", "")
    if not re.fullmatch(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?", digits):
        raise ValueError("no time")
    return digits


def _sex(text: str) -> str:
    """`M`, `F` or `O`, from letters of either case."""
    if text.upper() not in _SEXES:
        raise ValueError("no sex that DICOM knows")
    return text.upper()


def _side(text: str) -> str:
    """`L` or `R`, nothing for what isn't paired."""
    if text not in {*_SIDES, _UNPAIRED}:
        raise ValueError("no side that DICOM knows of a series")
    return text.removeprefix(_UNPAIRED)


def _finite(text: str) -> float:
    value = float(text)
    if not np.isfinite(value):
        raise ValueError("not finite")
    return value
