"""Results as DICOM Segmentation objects, with highdicom (extra "dicom")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np

from medals_rt.common.atomic_io import atomic_output
from medals_rt.common.distribution import VERSION
from medals_rt.common.errors import CaseError
from medals_rt.common.notes import Note
from medals_rt.common.optional_deps import import_optional
from medals_rt.common.typing import HostArray
from medals_rt.io.case import Case
from medals_rt.io.dicom.case import DicomSource
from medals_rt.io.dicom.files import printable, reading, silence
from medals_rt.io.dicom.headers import CHARACTER_SET, checked_uid, common_header, decimal
from medals_rt.io.segment_metadata import PRIVATE_SCHEME, Code, Segment, segments_of

_CT_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.2"
_CLASS: Final = "SOPClassUID"
_BY_MODALITY: Final = {
    "CT": _CT_IMAGE,
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
}
"""SOP classes of single-frame images, for files that name none."""

_PLACEHOLDER: Final = "2.25"
_LABEL_LENGTH: Final = 64
_SERIES_NUMBER: Final = 900
_MAX_SEGMENTS: Final = 65_535


@dataclass(frozen=True, eq=False)
class _Source:
    """A series as highdicom wants it: a clean single-frame data set a slice.

    Attributes
    ----------
    images
        Their SOP Instance UIDs are placeholders, which name the slices until the SEG is made.
    references
        What each of those stands for: SOP class, SOP Instance UID, and the frame from 1, or `None`
        for files of one frame.
    left_out
        Keywords of attributes that couldn't be kept.
    """

    images: tuple[Any, ...]
    references: dict[str, tuple[str, str, int | None]]
    left_out: tuple[str, ...]


def check_source(case: Case, name: str) -> tuple[Note, ...]:
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
    found = _series_of(case, name)
    with silence(), reading(case.path.name):
        source = _source(found, rows=1, columns=1)
        trial = np.zeros((len(source.images), 1, 1), dtype=np.uint8)
        trial[0] = 1
        described = _description(hd, 1, segments_of(None, trial)[0], None, None)
        _segmentation(hd, source, trial, [described], model=None, notice=None).save_as(BytesIO())
    if not source.left_out:
        return ()
    names = ", ".join(source.left_out)
    text = f"left out of {name}, because DICOM doesn't allow what the series holds: {names}"
    return (Note("dicom-value-left-out", text),)


def write_seg(
    path: Path,
    case: Case,
    labels_dhw: HostArray,
    segments: Sequence[Segment],
    *,
    instances_dhw: HostArray | None,
    model: str | None,
    notice: str | None = None,
) -> None:
    """Write labels as one binary SEG that refers to the series it was made from, atomically.

    Each label is a segment, also where nothing was found. With instances each of them is a segment
    that its number follows, and a label without any has none.

    Parameters
    ----------
    notice
        What a reader has to know of the model: the content description, and where it is longer
        than 64 characters, in full as a comment on the series.

    Raises
    ------
    CaseError
        As `check_source`; also for more than 65,535 segments.
    """
    hd = import_optional("highdicom", "a DICOM segmentation")
    found = _series_of(case, path.name)
    labels_kji = case.volume.restore(labels_dhw)
    instances_kji = None if instances_dhw is None else case.volume.restore(instances_dhw)
    numbers_kji, rows = _numbered(labels_kji, instances_kji, segments)
    if len(rows) > _MAX_SEGMENTS:
        raise CaseError(
            f"{len(rows):,} segments are more than a DICOM SEG holds ({_MAX_SEGMENTS:,})",
            code="too-many-segments",
        )
    descriptions = [_description(hd, number, *row, model) for number, row in enumerate(rows, 1)]
    with silence(), reading(case.path.name):
        _, height, width = numbers_kji.shape
        source = _source(found, rows=height, columns=width)
        seg = _segmentation(hd, source, numbers_kji, descriptions, model=model, notice=notice)
    with silence(), atomic_output(path) as temporary:
        seg.save_as(temporary)


def _series_of(case: Case, name: str) -> DicomSource:
    if not isinstance(case.header, DicomSource):
        raise CaseError(
            f"{name} would be a DICOM SEG, which refers to a DICOM series, but {case.path.name} is "
            "none; write .nii.gz, .seg.nrrd or .npz",
            code="not-dicom",
        )
    return case.header


def _source(found: DicomSource, *, rows: int, columns: int) -> _Source:
    """Make clean data sets of a series' slices, of a size of their own."""
    from pydicom.dataset import Dataset

    first = found.slices[0]
    common, left_out = common_header(first)
    common.SOPClassUID = _CT_IMAGE
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
        kind = checked_uid(each.image.sop_class or _BY_MODALITY.get(common.Modality), _CLASS, each)
        uid = checked_uid(each.image.sop_instance, "SOPInstanceUID", each)
        frame = each.frame + 1 if each.groups else None
        references[str(image.SOPInstanceUID)] = (kind, uid, frame)
    return _Source(tuple(images), references, left_out)


def _segmentation(
    hd: Any,
    source: _Source,
    numbers_kji: HostArray,
    descriptions: Sequence[Any],
    *,
    model: str | None,
    notice: str | None,
) -> Any:
    """Make the SEG of segment numbers `(k, j, i)`."""
    notice = None if not notice else _plain(notice, None)
    seg = hd.seg.Segmentation(
        source_images=source.images,
        pixel_array=numbers_kji,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=hd.UID(),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="medals-rt",
        manufacturer_model_name=_plain(model or "Medal S"),
        software_versions=VERSION,
        device_serial_number="none",
        content_label="SEGMENTATION",
        content_description=None if notice is None else notice[:_LABEL_LENGTH],
        series_description="Medal S segmentation",
        specific_character_set=CHARACTER_SET,
    )
    if notice is not None and len(notice) > _LABEL_LENGTH:
        seg.ImageComments = notice
    _refer(seg, source)
    _name_private_scheme(seg)
    return seg


def _refer(seg: Any, source: _Source) -> None:
    """Refer to the files and frames that the slices come from, in place of the placeholders."""
    from pydicom.dataset import Dataset

    # highdicom shares an item among the segments of a slice: each is changed once
    shared = {
        id(item): item
        for frame in seg.PerFrameFunctionalGroupsSequence
        for derivation in frame.get("DerivationImageSequence", ())
        for item in derivation.SourceImageSequence
    }
    for item in shared.values():
        kind, uid, number = source.references[str(item.ReferencedSOPInstanceUID)]
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = kind, uid
        if number is not None:
            item.ReferencedFrameNumber = number
    items = []
    for kind, uid in dict.fromkeys(each[:2] for each in source.references.values()):
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = kind, uid
        items.append(item)
    seg.SourceImageSequence = items
    seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence = items


def _plain(text: str, length: int | None = _LABEL_LENGTH) -> str:
    """One line that DICOM takes as one value."""
    words = " ".join(text.replace("\\", "/").split())
    return "".join(letter for letter in words if letter.isprintable())[:length]


def _numbered(
    labels: HostArray, instances: HostArray | None, segments: Sequence[Segment]
) -> tuple[HostArray, list[tuple[Segment, int | None]]]:
    """Segment number, from 1, of every voxel; and what each number stands for."""
    rows: list[tuple[Segment, int | None]] = []
    if instances is None:
        table = np.zeros(int(labels.max(initial=0)) + 1, dtype=np.uint16)
        for number, segment in enumerate(segments[:_MAX_SEGMENTS], 1):
            if segment.label < len(table):
                table[segment.label] = number
        return table[labels], [(segment, None) for segment in segments]
    lookup = np.zeros(int(instances.max(initial=0)) + 1, dtype=np.uint16)
    for segment in segments:
        found = np.unique(instances[labels == segment.label])
        for place, instance in enumerate(found[found > 0].tolist(), 1):
            rows.append((segment, place))
            lookup[instance] = min(len(rows), _MAX_SEGMENTS)
    numbers = lookup[instances]
    for segment in segments:  # anatomy beside lesions has no instances
        whole = (labels == segment.label) & (instances == 0)
        if whole.any():
            rows.append((segment, None))
            numbers[whole] = min(len(rows), _MAX_SEGMENTS)
    return numbers, rows or [(segment, None) for segment in segments]


def _description(
    hd: Any, number: int, segment: Segment, instance: int | None, model: str | None
) -> Any:
    """Describe one segment: name, codes, color, and which software found it."""
    from pydicom.sr.codedict import codes

    suffix = "" if instance is None else f" {instance}"
    name = _plain(segment.name, _LABEL_LENGTH - len(suffix)) + suffix
    algorithm = hd.AlgorithmIdentificationSequence(
        name="Medal S (medals-rt)",
        family=codes.cid7162.ArtificialIntelligence,
        version=VERSION,
        parameters=_parameters(segment, model),
    )
    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=_concept(hd, segment.category),
        segmented_property_type=_concept(hd, segment.type),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_id=f"{name} (label {segment.label})"[:_LABEL_LENGTH],
        tracking_uid=hd.UID(),
        anatomic_regions=None if segment.region is None else [_concept(hd, segment.region)],
        display_color=hd.color.CIELabColor.from_rgb(*(round(255 * part) for part in segment.rgb)),
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
    return {name: _plain(value) for name, value in given.items() if value}


def _concept(hd: Any, code: Code) -> Any:
    return hd.sr.CodedConcept(code.value, code.scheme, _plain(code.meaning))


def _name_private_scheme(seg: Any) -> None:
    """Name the scheme of the private codes."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodingSchemeDesignator = PRIVATE_SCHEME
    item.CodingSchemeName = "Classes of Medal S models: modality, kind and number"
    item.CodingSchemeResponsibleOrganization = "The medals-rt authors"
    seg.CodingSchemeIdentificationSequence = [item]
