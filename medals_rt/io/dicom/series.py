"""DICOM images sorted into series, and the one that is to be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from medals_rt.common.errors import CaseError
from medals_rt.common.notes import Note
from medals_rt.io.dicom.files import DicomFile, printable, read_whole, reading

_NOT_IMAGES: Final = {
    "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
    "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
    "1.2.840.10008.5.1.4.1.1.481.2",  # RT Dose
    "1.2.840.10008.5.1.4.1.1.30",  # Parametric Map
}
"""SOP classes that have pixels but aren't what is segmented."""

_LISTED: Final = 10
"""As many series are named in a message."""

_ONE_OF_EACH: Final = (
    ("patients", "patients-mixed", ("PatientID", "PatientName", "PatientBirthDate")),
    ("studies", "studies-mixed", ("StudyInstanceUID",)),
    ("modalities", "modalities-mixed", ("Modality",)),
    ("frames of reference", "frames-of-reference-mixed", ("FrameOfReferenceUID",)),
)
"""What a volume is of one of: its name, the code of the error, and the attributes that tell."""


@dataclass(frozen=True, eq=False)
class Image:
    """One DICOM file that holds an image, with its header."""

    file: DicomFile
    header: Any

    @property
    def frames(self) -> int:
        """Number of its frames; 1 where it names none."""
        with reading(self.file.name):
            return int(self.header.get("NumberOfFrames") or 1)

    @property
    def sop_class(self) -> Any:
        """Its SOP class, from the data or else from the file's own header; "" for none."""
        meta = self.header.file_meta
        return self.header.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or ""

    @property
    def sop_instance(self) -> str:
        """Its SOP Instance UID, as `sop_class`."""
        meta = self.header.file_meta
        uid = self.header.get("SOPInstanceUID") or meta.get("MediaStorageSOPInstanceUID") or ""
        return str(uid).strip()


@dataclass(frozen=True, eq=False)
class Series:
    """The images of one series, as they were found.

    `listed` is how many a server says there are, of a series whose files aren't here.
    """

    uid: str
    number: int | None
    description: str
    modality: str
    images: tuple[Image, ...]
    listed: int = 0

    @property
    def slices(self) -> int:
        """Number of slices in its files."""
        return sum(image.frames for image in self.images) or self.listed

    def __str__(self) -> str:
        number = "no SeriesNumber" if self.number is None else f"SeriesNumber {self.number}"
        return f"{number}: {self.modality} {self.description!r}, {self.slices} images, {self.uid}"


def is_image(image: Image) -> bool:
    """Whether a file holds an image that could be segmented.

    Raises
    ------
    CaseError
        If it says that it is an image but doesn't hold one: it was cut off, most likely.
    """
    with reading(image.file.name):
        kind = image.sop_class
        if "Rows" in image.header:
            return str(kind) not in _NOT_IMAGES
        if str(getattr(kind, "name", "")).endswith("Image Storage"):
            raise CaseError(
                f"{image.file.name} is cut off: it is an image without rows; export the series "
                "again",
                code="file-cut-off",
            )
    return False


def kinds_of(files: Sequence[Image]) -> str:
    """Return the number of DICOM files of each kind, for messages; such as "2 RT Structure Set"."""
    names = Counter(
        printable(getattr(file.sop_class, "name", "") or "unknown").removesuffix(" Storage")
        for file in files
    )
    return ", ".join(f"{count} {name}" for name, count in sorted(names.items()))


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
            raise CaseError(
                f"{image.file.name} names no series; export it again", code="series-uid-missing"
            )
        by_uid.setdefault(uid, []).append(image)
    found = []
    for uid, members in by_uid.items():
        with reading(members[0].file.name):
            header = members[0].header
            number = header.get("SeriesNumber")
            series = Series(
                uid=printable(uid),
                number=None if number in {None, ""} else int(number),
                description=printable(header.get("SeriesDescription", "")),
                modality=printable(header.get("Modality", "unknown"), 16),
                images=tuple(members),
            )
        found.append(series)
    return sorted(found, key=lambda each: (each.number is None, each.number or 0, each.uid))


def choose_series(found: Sequence[Series], wanted: str | None, place: str) -> Series:
    """Take the only series, or the one that was asked for.

    Parameters
    ----------
    found
        From `group_series`.
    wanted
        A SeriesNumber, or the beginning of a SeriesInstanceUID.
    place
        Names the folder in messages.

    Raises
    ------
    CaseError
        If nothing or more than one series fits; the message lists them.
    """
    listed = "; ".join(f"[{series}]" for series in found[:_LISTED])
    listed += f"; and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    if wanted is None:
        if len(found) == 1:
            return found[0]
        raise CaseError(
            f"{place} holds {len(found)} series: {listed}. Choose one with --series, by its "
            "SeriesNumber or the beginning of its UID",
            code="several-series",
        )
    asked = wanted.strip()
    fitting = [each for each in found if each.uid == asked]
    if not fitting and asked.isascii() and asked.removeprefix("-").isdigit():
        fitting = [each for each in found if each.number == int(asked)]
    if not fitting and "." in asked:
        fitting = [each for each in found if each.uid.startswith(asked)]
    if len(fitting) != 1:
        many = "more than one" if fitting else "no"
        raise CaseError(
            f"{many} series of {place} fits {printable(wanted)!r}: {listed}. Choose one by its "
            "SeriesNumber or by more of its UID",
            code="series-ambiguous" if fitting else "series-not-found",
        )
    return fitting[0]


def without_copies(series: Series) -> tuple[Series, tuple[Note, ...]]:
    """Drop images that are there more than once, by their SOP Instance UIDs.

    Raises
    ------
    CaseError
        If two files bear one SOP Instance UID, but differ.
    """
    kept: list[Image] = []
    by_uid: dict[str, Image] = {}
    for image in series.images:
        with reading(image.file.name):
            uid = image.sop_instance
        first = by_uid.setdefault(uid, image) if uid else image
        if first is image:
            kept.append(image)
        elif not _same(first, image):
            raise CaseError(
                f"{first.file.name} and {image.file.name} bear the same SOP Instance UID but "
                "differ; give a folder with one of them",
                code="same-uid-different-content",
            )
    dropped = len(series.images) - len(kept)
    if not dropped:
        return series, ()
    copies = "1 DICOM file that is a copy of another" if dropped == 1 else f"{dropped} copies"
    text = f"dropped {copies} (same SOP Instance UID)"
    return replace(series, images=tuple(kept)), (Note("copies-dropped", text),)


def check_identity(images: Sequence[Image], series: Series) -> None:
    """Check that images are of one patient, study, modality and frame of reference.

    Raises
    ------
    CaseError
        If they aren't; the message names what differs, never a patient.
    """
    for what, code, names in _ONE_OF_EACH:
        for name in names:
            with reading(series.images[0].file.name):
                found = {_identity(image.header, name) for image in images} - {""}
            if len(found) > 1:
                raise CaseError(
                    f"the series [{series}] holds images of {len(found)} {what} (they differ in "
                    f"{name}); give a folder with the images of one",
                    code=code,
                )


def _identity(header: Any, name: str) -> str:
    """Value of an attribute without what writers of the same value differ in."""
    return " ".join(str(header.get(name) or "").replace("^", " ").split()).casefold()


def _same(first: Image, second: Image) -> bool:
    """Whether two files hold the same data set, pixels included."""
    with reading(second.file.name):
        pixels = max(pixel_bytes(first), pixel_bytes(second))
        return bool(read_whole(first.file, pixels) == read_whole(second.file, pixels))


def pixel_bytes(image: Image) -> int:
    """Bytes of a file's pixels when they aren't compressed."""
    header = image.header
    with reading(image.file.name):
        size = int(header.Rows) * int(header.Columns) * image.frames
        return size * -(-int(header.BitsAllocated) // 8)
