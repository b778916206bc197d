"""Results as DICOM RT Structure Sets, with pydicom and ContourPy (extra "dicom")."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np

from medals_rt.common.atomic_io import atomic_output
from medals_rt.common.distribution import VERSION
from medals_rt.common.notes import Note
from medals_rt.common.typing import HostArray
from medals_rt.io.case import Case
from medals_rt.io.dicom.case import DicomSource
from medals_rt.io.dicom.files import reading, silence
from medals_rt.io.dicom.headers import common_header
from medals_rt.io.dicom.results import (
    SERIES_NUMBER,
    file_items,
    left_out_notes,
    number_objects,
    object_color,
    object_name,
    one_line,
    reference_to,
    series_of,
)
from medals_rt.io.dicom.slices import Slice
from medals_rt.io.segment_metadata import SNOMED, Code, Segment, code_table

_TITLE: Final = "an RTSTRUCT"
_STRUCTURE_SET: Final = "1.2.840.10008.5.1.4.1.1.481.3"
_STUDY: Final = "1.2.840.10008.3.1.2.3.1"
_IMPLICIT: Final = "1.2.840.10008.1.2"
"""Implicit VR Little Endian: the explicit ones end a contour at 64 KiB."""

_CONTOUR_DATA: Final = 0x30060050
_LOSSY: Final = (
    "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
)  # fmt: skip
"""Of images, which a structure set is not."""

_LEVEL: Final = 0.5
_FRACTION_OF_PIXEL: Final = 1e-3
_MOST_DECIMALS: Final = 9
_LONGEST_TEXT: Final = 1024
_ORGAN: Final = "ORGAN"


def check_rtstruct_source(case: Case, name: str) -> tuple[Note, ...]:
    """Check that an RTSTRUCT called `name` can be made of a case's results, by making an empty one.

    Returns
    -------
    tuple of Note
        What of the source can't be kept in it.

    Raises
    ------
    CaseError
        If the case isn't a DICOM series, or one without the identifiers that it refers to.
    """
    found = series_of(case, name, _TITLE)
    with silence(), reading(case.path.name):
        trial, left_out = _structure_set(found, notice=None)
        trial.save_as(BytesIO(), enforce_file_format=True)
    return left_out_notes(name, left_out)


def write_rtstruct(
    path: Path,
    case: Case,
    labels_dhw: HostArray,
    segments: Sequence[Segment],
    *,
    instances_dhw: HostArray | None,
    model: str | None,
    notice: str | None = None,
) -> None:
    """Write labels as the regions of one structure set, atomically.

    The regions are the objects of `results.number_objects`. Each is a set of closed loops in the
    planes of the series' slices; a pixel is inside where an odd number of loops surrounds its
    center, so that inner loops are holes.

    Parameters
    ----------
    notice
        What a reader has to know of the model: the description of the structure set.

    Raises
    ------
    CaseError
        As `check_rtstruct_source`; also for more than 65,535 regions.
    """
    found = series_of(case, path.name, _TITLE)
    labels_kji = case.volume.restore(labels_dhw)
    instances_kji = None if instances_dhw is None else case.volume.restore(instances_dhw)
    numbers_kji, objects = number_objects(labels_kji, instances_kji, segments, path.name)
    with silence(), reading(case.path.name):
        data, _ = _structure_set(found, notice=notice)
        frame = data.FrameOfReferenceUID
        data.StructureSetROISequence = [
            _region(number, *each, frame, model) for number, each in enumerate(objects, 1)
        ]
        data.ROIContourSequence = _all_contours(numbers_kji, objects, found)
        data.RTROIObservationsSequence = [
            _observation(number, segment) for number, (segment, _) in enumerate(objects, 1)
        ]
    with silence(), atomic_output(path) as temporary:
        data.save_as(temporary, enforce_file_format=True)


def loops_of(mask: HostArray) -> list[HostArray]:
    """Trace the borders of a mask.

    Parameters
    ----------
    mask
        `(rows, columns)`, bool.

    Returns
    -------
    list of HostArray
        One `(n, 2)` a loop: column and row of its corners, in pixels, counted from the center of
        the first pixel. Loops run halfway between centers inside and outside, and neither cross nor
        touch: a pixel is inside where an odd number of loops surrounds its center.
    """
    from contourpy import LineType, contour_generator

    field = np.pad(mask, 1).astype(np.float64)
    lines: Any = contour_generator(z=field, line_type=LineType.Separate).lines(_LEVEL)
    return [_corners(line[:-1]) - 1.0 for line in lines]


def _corners(loop: HostArray) -> HostArray:
    """Leave out points on a straight line between their neighbors."""
    before, after = loop - np.roll(loop, 1, axis=0), np.roll(loop, -1, axis=0) - loop
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    corners: HostArray = loop[turns]
    return corners


def _all_contours(
    numbers_kji: HostArray, objects: Sequence[tuple[Segment, int | None]], found: DicomSource
) -> list[Any]:
    """Make the item of each object: its color, and its contours, slice by slice."""
    from pydicom.dataset import Dataset
    from scipy.ndimage import find_objects

    boxes = find_objects(numbers_kji, max_label=len(objects))
    items = []
    for number, ((segment, instance), box) in enumerate(zip(objects, boxes, strict=True), 1):
        item = Dataset()
        item.ReferencedROINumber = number
        item.ROIDisplayColor = [round(255 * part) for part in object_color(segment, instance)]
        if box is not None:
            item.ContourSequence = list(_contours(numbers_kji[box] == number, box, found))
        items.append(item)
    return items


def _contours(mask_kji: HostArray, box: tuple[slice, ...], found: DicomSource) -> Iterator[Any]:
    from pydicom.dataset import Dataset

    slices = found.slices[box[0]]
    corner = np.array([box[2].start, box[1].start], dtype=np.float64)
    count = 0
    for mask, each in zip(mask_kji, slices, strict=True):
        for loop in loops_of(mask):
            count += 1
            image, item = Dataset(), Dataset()
            reference_to(each).put_into(image)
            item.ContourNumber = count
            item.ContourImageSequence = [image]
            item.ContourGeometricType = "CLOSED_PLANAR"
            item.NumberOfContourPoints = len(loop)
            item[_CONTOUR_DATA] = _contour_data(loop + corner, each)
            yield item


def _contour_data(loop: HostArray, each: Slice) -> Any:
    """Write the corners of a loop as millimeters of the patient (LPS), to a thousandth of a pixel.

    Encoded here: pydicom makes and checks an object a number, which takes minutes for a body.
    """
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    row_mm, column_mm = each.pixel_mm
    points = each.position_lps_mm + loop * (column_mm, row_mm) @ each.orientation
    finest = min(each.pixel_mm) * _FRACTION_OF_PIXEL
    decimals = min(max(math.ceil(-math.log10(finest)), 0), _MOST_DECIMALS)
    text = "\\".join([f"{value:.{decimals}f}" for value in points.ravel().tolist()])
    stored = text.encode("ascii") + b" " * (len(text) % 2)
    return RawDataElement(Tag(_CONTOUR_DATA), "DS", len(stored), stored, 0, True, True)


def _structure_set(found: DicomSource, notice: str | None) -> tuple[Any, tuple[str, ...]]:
    """Make a structure set without regions, and name the attributes that couldn't be kept."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import generate_uid

    data, left_out = common_header(found.slices[0])
    source_series = data.SeriesInstanceUID
    for name in _LOSSY:
        if name in data:
            delattr(data, name)
    now = datetime.now().astimezone()
    day, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    data.SOPClassUID, data.SOPInstanceUID = _STRUCTURE_SET, generate_uid(None)
    data.Modality, data.SeriesInstanceUID = "RTSTRUCT", generate_uid(None)
    data.SeriesNumber, data.InstanceNumber = SERIES_NUMBER, 1
    data.SeriesDescription, data.OperatorsName = "Medal S structure set", ""
    data.InstanceCreationDate = data.SeriesDate = data.StructureSetDate = day
    data.InstanceCreationTime = data.SeriesTime = data.StructureSetTime = time
    data.Manufacturer, data.ManufacturerModelName = "medals-rt", "Medal S"
    data.SoftwareVersions, data.DeviceSerialNumber = VERSION, "none"
    data.PositionReferenceIndicator = data.get("PositionReferenceIndicator", "")
    data.StructureSetLabel = data.StructureSetName = "Medal S"
    if notice:
        data.StructureSetDescription = one_line(notice, _LONGEST_TEXT)
    data.ApprovalStatus = "UNAPPROVED"
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = source_series
    series.ContourImageSequence = file_items(reference_to(each) for each in found.slices)
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _STUDY, data.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = data.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    data.ReferencedFrameOfReferenceSequence = [frame]
    data.StructureSetROISequence = []
    data.ROIContourSequence = []
    data.RTROIObservationsSequence = []
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = _IMPLICIT
    return data, left_out


def _region(
    number: int, segment: Segment, instance: int | None, frame: str, model: str | None
) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ROINumber = number
    item.ReferencedFrameOfReferenceUID = frame
    item.ROIName = object_name(segment, instance)
    if segment.sentence:
        item.ROIDescription = one_line(segment.sentence, _LONGEST_TEXT)
    item.ROIGenerationAlgorithm = "AUTOMATIC"
    item.ROIGenerationDescription = one_line(f"medals-rt {VERSION}, {model or 'Medal S'}")
    return item


def _observation(number: int, segment: Segment) -> Any:
    """Say what a region is: its code where it has a public one, and whether it is an organ.

    A lesion's type stays empty: whether it is a target volume (GTV) is for the physician to say.
    """
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ObservationNumber = item.ReferencedROINumber = number
    if segment.type.scheme == SNOMED:
        kind = _code_item(segment.type)
        if segment.side is not None and segment.region is None:
            kind.SegmentedPropertyTypeModifierCodeSequence = [_code_item(segment.side)]
        item.RTROIIdentificationCodeSequence = [kind]
        if segment.region is not None:
            region = _code_item(segment.region)
            if segment.side is not None:
                region.AnatomicRegionModifierSequence = [_code_item(segment.side)]
            item.AnatomicRegionSequence = [region]
    table = code_table()
    organ = segment.category == table.code(table.categories["anatomy"])
    item.RTROIInterpretedType = _ORGAN if organ else ""
    item.ROIInterpreter = ""
    return item


def _code_item(code: Code) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = code.value, code.scheme
    item.CodeMeaning = one_line(code.meaning)
    return item
