"""DICOM images sorted into series, and the one that is to be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from medals_rt.common.errors import CaseError
from medals_rt.io.dicom.files import DicomFile, printable, reading

_NOT_IMAGES: Final = {
    "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
    "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
    "1.2.840.10008.5.1.4.1.1.481.2",  # RT Dose
    "1.2.840.10008.5.1.4.1.1.30",  # Parametric Map
}
"""SOP classes that have pixels but aren't what is segmented."""


@dataclass(frozen=True, eq=False)
class Image:
    """One DICOM file that holds an image, with its header."""

    file: DicomFile
    header: Any


@dataclass(frozen=True, eq=False)
class Series:
    """The images of one series, as they were found."""

    uid: str
    number: int
    description: str
    modality: str
    images: tuple[Image, ...]
    slices: int

    def __str__(self) -> str:
        text = f"{self.modality} {self.description!r}, {self.slices} slices, {self.uid}"
        return text if self.number < 0 else f"{text} (series {self.number})"


def is_image(image: Image) -> bool:
    """Whether a file holds an image that could be segmented.

    Raises
    ------
    CaseError
        If it says that it is an image but doesn't hold one: it was cut off, most likely.
    """
    header = image.header
    with reading(image.file.name):
        kind = header.file_meta.get("MediaStorageSOPClassUID") or header.get("SOPClassUID")
        if "Rows" in header:
            return str(kind) not in _NOT_IMAGES
        if str(getattr(kind, "name", "")).endswith("Image Storage"):
            raise CaseError(
                f"{image.file.name} is cut off: it is an image without rows; export the series anew"
            )
    return False


def group_series(images: Sequence[Image]) -> list[Series]:
    """Sort images into series, by series number and UID.

    Raises
    ------
    CaseError
        If an image names no series.
    """
    by_uid: dict[str, list[Image]] = {}
    for image in images:
        uid = str(image.header.get("SeriesInstanceUID", "")).strip()
        if not uid:
            raise CaseError(f"{image.file.name} names no series; export it anew")
        by_uid.setdefault(uid, []).append(image)
    found = []
    for uid, members in by_uid.items():
        with reading(members[0].file.name):
            header = members[0].header
            number = header.get("SeriesNumber")
            series = Series(
                uid=printable(uid),
                number=-1 if number is None else int(number),
                description=printable(header.get("SeriesDescription", "")),
                modality=printable(header.get("Modality", "unknown"), 16),
                images=tuple(members),
                slices=sum(int(each.header.get("NumberOfFrames") or 1) for each in members),
            )
        found.append(series)
    return sorted(found, key=lambda series: (series.number, series.uid))


def choose_series(found: Sequence[Series], wanted: str | None, place: str) -> Series:
    """Take the only series, or the one that was asked for.

    Parameters
    ----------
    found
        From `group_series`.
    wanted
        A number in the list that the error shows (1 is the first), or the beginning of a UID.
    place
        Names the folder in messages.

    Raises
    ------
    CaseError
        If nothing or more than one series fits; the message lists them.
    """
    listed = "; ".join(f"[{number}] {series}" for number, series in enumerate(found, 1))
    if wanted is None:
        if len(found) == 1:
            return found[0]
        raise CaseError(
            f"{place} holds {len(found)} series: {listed}. Choose one with --series, by its "
            "number in this list or the beginning of its UID"
        )
    if wanted.isascii() and wanted.isdigit() and 1 <= int(wanted) <= len(found):
        return found[int(wanted) - 1]
    fitting = [series for series in found if "." in wanted and series.uid.startswith(wanted)]
    exact = [series for series in fitting if series.uid == wanted]
    if len(fitting) != 1 and not exact:
        many = "more than one" if fitting else "no"
        raise CaseError(
            f"{many} series of {place} fits {printable(wanted)!r}: {listed}. Give its number in "
            "this list or more of its UID"
        )
    return (exact or fitting)[0]
