"""What DICOM results have in common: the series they refer to, and the objects they list."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from medals_rt.common.choices import traits_of_dicom
from medals_rt.common.errors import CaseError
from medals_rt.common.notes import Note
from medals_rt.common.typing import HostArray
from medals_rt.io.case import Case
from medals_rt.io.dicom.case import DicomSource
from medals_rt.io.dicom.headers import checked_uid
from medals_rt.io.dicom.slices import Slice
from medals_rt.io.palette import Rgb, instance_color
from medals_rt.io.segment_metadata import Segment

LONG_STRING: Final = 64
"""Letters that a name may have in DICOM."""

SERIES_NUMBER: Final = 900
_MAX_OBJECTS: Final = 65_535


class SliceReference(NamedTuple):
    """Where a slice is stored: SOP class, SOP Instance UID, and its frame from 1.

    The frame is None in files of one frame.
    """

    sop_class: str
    sop_instance: str
    frame: int | None

    def put_into(self, item: Any) -> None:
        """Let an item of a sequence refer to the slice."""
        item.ReferencedSOPClassUID = self.sop_class
        item.ReferencedSOPInstanceUID = self.sop_instance
        if self.frame is not None:
            item.ReferencedFrameNumber = self.frame


def series_of(case: Case, name: str, title: str) -> DicomSource:
    """Return the series that a result called `name` would refer to.

    Parameters
    ----------
    title
        What the result is, for the message, such as "a DICOM SEG".

    Raises
    ------
    CaseError
        If the case isn't a DICOM series.
    """
    if not isinstance(case.header, DicomSource):
        raise CaseError(
            f"{name} would be {title}, which refers to a DICOM series, but {case.path.name} is "
            "none; write .nii.gz, .seg.nrrd or .npz",
            code="not-dicom",
        )
    return case.header


def reference_to(each: Slice) -> SliceReference:
    """Refer to a slice.

    Raises
    ------
    CaseError
        If its file lacks an identifier.
    """
    modality = str(each.image.header.get("Modality") or "")
    kind = each.image.sop_class or traits_of_dicom(modality).dicom_image
    return SliceReference(
        checked_uid(kind, "SOPClassUID", each),
        checked_uid(each.image.sop_instance, "SOPInstanceUID", each),
        each.frame + 1 if each.groups else None,
    )


def file_items(references: Iterable[SliceReference]) -> list[Any]:
    """Make an item for each file that slices are stored in, each once."""
    from pydicom.dataset import Dataset

    items = []
    for each in dict.fromkeys(each._replace(frame=None) for each in references):
        item = Dataset()
        each.put_into(item)
        items.append(item)
    return items


def left_out_notes(name: str, left_out: Sequence[str]) -> tuple[Note, ...]:
    """Name the attributes of the series that can't be kept in a result called `name`."""
    if not left_out:
        return ()
    names = ", ".join(left_out)
    text = f"left out of {name}, because DICOM doesn't allow what the series holds: {names}"
    return (Note("dicom-value-left-out", text),)


def number_objects(
    labels: HostArray, instances: HostArray | None, segments: Sequence[Segment], name: str
) -> tuple[HostArray, list[tuple[Segment, int | None]]]:
    """Assign a number to all that a result lists: labels, or where there are any, instances.

    Each label is an object, also where nothing was found. With instances each of them is one, and
    what a label has outside them (anatomy beside lesions) is another; a label that was not found is
    listed only where nothing was.

    Parameters
    ----------
    labels, instances
        Unsigned integers of one shape.
    segments
        What labels are called; others are left out.
    name
        Of the file, for the message.

    Returns
    -------
    HostArray
        Number of the object, from 1, at every voxel; uint16.
    list of tuple
        Segment, and number of the instance if it is one, of object 1, 2, ...

    Raises
    ------
    CaseError
        If there are more than 65,535.
    """
    objects: list[tuple[Segment, int | None]] = []
    source = labels if instances is None else instances
    lookup = np.zeros(int(source.max(initial=0)) + 1, dtype=np.uint32)
    for segment in segments:
        if instances is None:
            objects.append((segment, None))
            if segment.label < len(lookup):
                lookup[segment.label] = len(objects)
            continue
        found = np.unique(instances[labels == segment.label])
        for instance in found[found > 0].tolist():
            objects.append((segment, instance))
            lookup[instance] = len(objects)
    numbers = lookup[source]
    for segment in segments if instances is not None else ():
        whole = (labels == segment.label) & (instances == 0)
        if whole.any():
            objects.append((segment, None))
            numbers[whole] = len(objects)
    if len(objects) > _MAX_OBJECTS:
        raise CaseError(
            f"{len(objects):,} objects are more than {name} can list ({_MAX_OBJECTS:,})",
            code="too-many-segments",
        )
    return numbers.astype(np.uint16), objects or [(segment, None) for segment in segments]


def object_name(segment: Segment, instance: int | None) -> str:
    """Name an object: its class, and the number of the instance."""
    suffix = "" if instance is None else f" {instance}"
    return one_line(segment.name, LONG_STRING - len(suffix)) + suffix


def object_color(segment: Segment, instance: int | None) -> Rgb:
    """Color of a class; of instances each has its own near that, so that neighbors differ."""
    return segment.rgb if instance is None else instance_color(segment.rgb, instance)


def one_line(text: str, length: int | None = LONG_STRING) -> str:
    """One line that DICOM takes as one value."""
    words = " ".join(text.replace("\\", "/").split())
    return "".join(letter for letter in words if letter.isprintable())[:length]
