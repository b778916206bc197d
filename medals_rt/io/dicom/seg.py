"""Results as DICOM Segmentation objects, with highdicom (extra "dicom").

Binary ones hold an image a segment and slice, which every viewer shows. Label maps (Supplement 243)
hold an image a slice, compressed: a hundredth of the size, for viewers that know them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from medals_rt.common.atomic_io import atomic_output
from medals_rt.common.choices import MODALITY_TRAITS
from medals_rt.common.distribution import VERSION
from medals_rt.common.notes import Note
from medals_rt.common.optional_deps import import_optional
from medals_rt.common.typing import HostArray
from medals_rt.io.case import Case
from medals_rt.io.dicom.case import DicomSource
from medals_rt.io.dicom.files import printable, reading, silence
from medals_rt.io.dicom.headers import CHARACTER_SET, agreed_value, common_header, decimal
from medals_rt.io.dicom.results import (
    LONG_STRING,
    SERIES_NUMBER,
    SliceReference,
    file_items,
    left_out_notes,
    number_objects,
    object_color,
    object_name,
    one_line,
    reference_to,
    series_of,
)
from medals_rt.io.segment_metadata import PRIVATE_SCHEME, Code, Segment, segments_of

_TITLE: Final = "a DICOM SEG"
_PLACEHOLDER: Final = "2.25"
_BODY_PART: Final = "BodyPartExamined"

SegKind: TypeAlias = Literal["binary", "labelmap"]
_UNCOMPRESSED: Final = "1.2.840.10008.1.2.1"
_JPEG_LS_LOSSLESS: Final = "1.2.840.10008.1.2.4.80"
_SMALLEST_COMPRESSED: Final = 4096
"""Pixels of a slice: below, headers take what compression saves, and pyjpegls's buffer is short."""


@dataclass(frozen=True, eq=False)
class _Source:
    """A series as highdicom wants it: a clean single-frame data set a slice.

    Attributes
    ----------
    images
        Their SOP Instance UIDs are placeholders, which name the slices until the SEG is made.
    references
        What each of those stands for.
    body_part
        Body Part Examined.
    left_out
        Keywords of attributes that couldn't be kept.
    """

    images: tuple[Any, ...]
    references: dict[str, SliceReference]
    body_part: str | None
    left_out: tuple[str, ...]


def check_source(case: Case, name: str, kind: SegKind = "binary") -> tuple[Note, ...]:
    """Check that a DICOM SEG called `name` can be made of a case's results, by making a small one.

    Returns
    -------
    tuple of Note
        What of the source can't be kept in it.

    Raises
    ------
    CaseError
        If the case isn't a DICOM series, or one without the identifiers that a SEG refers to.
    MissingDependencyError
        If highdicom isn't installed.
    """
    hd = import_optional("highdicom", "a DICOM segmentation")
    found = series_of(case, name, _TITLE)
    with silence(), reading(case.path.name):
        source = _source(found, rows=1, columns=1)
        trial = np.zeros((len(source.images), 1, 1), dtype=np.uint8)
        trial[0] = 1
        described = _description(hd, 1, segments_of(None, trial)[0], None, None)
        seg = _segmentation(hd, source, trial, [described], kind=kind, model=None, notice=None)
        seg.save_as(BytesIO())
    return (*left_out_notes(name, source.left_out), *_packing_notes(found, name, kind))


def _packing_notes(found: DicomSource, name: str, kind: SegKind) -> tuple[Note, ...]:
    """Say where frames of single bits begin within a byte, which one viewer gets wrong."""
    rows, columns = found.slices[0].shape
    if kind != "binary" or rows * columns % 8 == 0:
        return ()
    text = (
        f"{name} holds {rows} x {columns} pixels a slice, no multiple of 8: OHIF 3.13 shows it "
        "striped or not at all; for that viewer, end it in .labelmap.dcm"
    )
    return (Note("seg-packed-within-bytes", text),)


def write_seg(
    path: Path,
    case: Case,
    labels_dhw: HostArray,
    segments: Sequence[Segment],
    *,
    instances_dhw: HostArray | None,
    model: str | None,
    notice: str | None = None,
    kind: SegKind = "binary",
) -> None:
    """Write labels as one SEG that refers to the series it was made from, atomically.

    The segments are those of `results.number_objects`.

    Parameters
    ----------
    notice
        What a reader has to know of the model: the content description, and where it is longer
        than 64 characters, in full as a comment on the series.
    kind
        How the pixels are stored.

    Raises
    ------
    CaseError
        As `check_source`; also for more than 65,535 segments.
    """
    hd = import_optional("highdicom", "a DICOM segmentation")
    found = series_of(case, path.name, _TITLE)
    labels_kji = case.volume.restore(labels_dhw)
    instances_kji = None if instances_dhw is None else case.volume.restore(instances_dhw)
    numbers_kji, objects = number_objects(labels_kji, instances_kji, segments, path.name)
    descriptions = [
        _description(hd, number, *each, model) for number, each in enumerate(objects, 1)
    ]
    with silence(), reading(case.path.name):
        _, height, width = numbers_kji.shape
        source = _source(found, rows=height, columns=width)
        seg = _segmentation(
            hd, source, numbers_kji, descriptions, kind=kind, model=model, notice=notice
        )
    with silence(), atomic_output(path) as temporary:
        seg.save_as(temporary)


def _source(found: DicomSource, *, rows: int, columns: int) -> _Source:
    """Make clean data sets of a series' slices, of a size of their own."""
    from pydicom.dataset import Dataset

    first = found.slices[0]
    common, left_out = common_header(first)
    common.SOPClassUID = MODALITY_TRAITS["CT"].dicom_image
    common.Modality = printable(first.image.header.get("Modality") or "OT", 16)
    common.Rows, common.Columns = rows, columns
    common.PixelSpacing = [decimal(size) for size in first.pixel_mm]
    common.ImageOrientationPatient = [decimal(part) for part in first.orientation.ravel()]
    thicknesses = {each.thickness_mm for each in found.slices}
    named = thicknesses.pop() if len(thicknesses) == 1 else None
    common.SliceThickness = decimal(named or found.distance_mm)
    common.SpacingBetweenSlices = decimal(found.distance_mm)
    images, references = [], {}
    for number, each in enumerate(found.slices, 1):
        image = Dataset()
        image.update(common)
        image.SOPInstanceUID = f"{_PLACEHOLDER}.{number}"
        image.ImagePositionPatient = [decimal(part) for part in each.position_lps_mm]
        images.append(image)
        references[str(image.SOPInstanceUID)] = reference_to(each)
    body_part, not_kept = agreed_value(found.slices, _BODY_PART)
    left_out += (_BODY_PART,) * not_kept
    return _Source(tuple(images), references, body_part, left_out)


def _segmentation(
    hd: Any,
    source: _Source,
    numbers_kji: HostArray,
    descriptions: Sequence[Any],
    *,
    kind: SegKind,
    model: str | None,
    notice: str | None,
) -> Any:
    """Make the SEG of segment numbers `(k, j, i)`."""
    notice = None if not notice else one_line(notice, None)
    make = partial(
        hd.seg.Segmentation,
        source_images=source.images,
        pixel_array=numbers_kji,
        segmentation_type=hd.seg.SegmentationTypeValues[kind.upper()],
        segment_descriptions=descriptions,
        series_instance_uid=hd.UID(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="medals-rt",
        manufacturer_model_name=one_line(model or "Medal S"),
        software_versions=VERSION,
        device_serial_number="none",
        content_label="SEGMENTATION",
        content_description=None if notice is None else notice[:LONG_STRING],
        series_description="Medal S segmentation",
        specific_character_set=CHARACTER_SET,
        omit_empty_frames=bool(numbers_kji.any()),  # highdicom logs a warning where all are empty
    )
    if kind == "labelmap" and numbers_kji[0].size >= _SMALLEST_COMPRESSED:
        try:
            seg = make(transfer_syntax_uid=_JPEG_LS_LOSSLESS)
        except RuntimeError:  # labels like noise need more room than pyjpegls has for them
            seg = make(transfer_syntax_uid=_UNCOMPRESSED)
    else:
        seg = make(transfer_syntax_uid=_UNCOMPRESSED)
    if notice is not None and len(notice) > LONG_STRING:
        seg.ImageComments = notice
    if source.body_part is not None:
        seg.BodyPartExamined = source.body_part
    # highdicom describes the background as segment 0, by which OHIF 3.13 shifts every label.
    seg.SegmentSequence = [each for each in seg.SegmentSequence if each.SegmentNumber > 0]
    _refer(seg, source)
    _name_private_scheme(seg)
    return seg


def _refer(seg: Any, source: _Source) -> None:
    """Refer to the files and frames that the slices come from, in place of the placeholders."""
    named = (
        item
        for frame in seg.PerFrameFunctionalGroupsSequence
        for derivation in frame.get("DerivationImageSequence", ())
        for item in derivation.SourceImageSequence
    )
    for item in {id(item): item for item in named}.values():  # frames of one slice share theirs
        source.references[str(item.ReferencedSOPInstanceUID)].put_into(item)
    items = file_items(source.references.values())
    seg.SourceImageSequence = items
    seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence = items


def _description(
    hd: Any, number: int, segment: Segment, instance: int | None, model: str | None
) -> Any:
    """Describe one segment: name, codes, color, and which software found it."""
    from pydicom.sr.codedict import codes

    name = object_name(segment, instance)
    algorithm = hd.AlgorithmIdentificationSequence(
        name="Medal S (medals-rt)",
        family=codes.cid7162.ArtificialIntelligence,
        version=VERSION,
        parameters=_parameters(segment, model),
    )
    rgb = [round(255 * part) for part in object_color(segment, instance)]
    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=_concept(hd, segment.category),
        segmented_property_type=_concept(hd, segment.type),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_id=f"{name} (label {segment.label})"[:LONG_STRING],
        tracking_uid=hd.UID(),
        anatomic_regions=None if segment.region is None else [_concept(hd, segment.region)],
        display_color=hd.color.CIELabColor.from_rgb(*rgb),
    )
    if segment.side is not None:
        side = [_concept(hd, segment.side)]
        if segment.region is None:
            kind = description.SegmentedPropertyTypeCodeSequence[0]
            kind.SegmentedPropertyTypeModifierCodeSequence = side
        else:
            description.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = side
    return description


def _parameters(segment: Segment, model: str | None) -> dict[str, str] | None:
    given = {"model": model, "prompt": segment.sentence, "label": str(segment.label)}
    return {name: one_line(value) for name, value in given.items() if value}


def _concept(hd: Any, code: Code) -> Any:
    return hd.sr.CodedConcept(code.value, code.scheme, one_line(code.meaning))


def _name_private_scheme(seg: Any) -> None:
    """Name the scheme of the private codes."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodingSchemeDesignator = PRIVATE_SCHEME
    item.CodingSchemeName = "Classes of Medal S models: modality, kind and number"
    item.CodingSchemeResponsibleOrganization = "The medals-rt authors"
    seg.CodingSchemeIdentificationSequence = [item]
