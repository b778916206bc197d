"""Results as DICOM Segmentation objects, with highdicom (extra "dicom")."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, Final

import numpy as np

import medals_rt
from medals_rt.common.atomic_io import atomic_output
from medals_rt.common.errors import CaseError
from medals_rt.common.optional_deps import import_optional
from medals_rt.common.typing import HostArray
from medals_rt.io.case import Case
from medals_rt.io.dicom.case import DicomSource
from medals_rt.io.segment_metadata import PRIVATE_SCHEME, Code, Segment

_NEEDED: Final = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
_MAY_BE_EMPTY: Final = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
    "StudyDate", "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
"""Of the patient and the study: has to be there, but may be empty (type 2 in DICOM)."""

_LABEL_LENGTH: Final = 64
_SERIES_NUMBER: Final = 900
_MAX_SEGMENTS: Final = 65_535


def check_source(case: Case, name: str) -> DicomSource:
    """Check that a DICOM SEG called `name` can be made of a case's results.

    Raises
    ------
    CaseError
        If the case isn't a DICOM series, or one without the identifiers that a SEG refers to.
    MissingDependencyError
        If highdicom isn't installed.
    """
    import_optional("highdicom", "a DICOM segmentation")
    source = case.header
    if not isinstance(source, DicomSource):
        raise CaseError(
            f"{name} would be a DICOM SEG, which refers to a DICOM series, but {case.path.name} is "
            "none; write .nii.gz, .seg.nrrd or .npz"
        )
    for header in source.headers:
        missing = [tag for tag in _NEEDED if not header.get(tag)]
        if missing:
            raise CaseError(
                f"a slice of {case.path.name} has no {', '.join(missing)}, which a DICOM SEG "
                f"refers to; write {name} as .nii.gz, .seg.nrrd or .npz"
            )
    return source


def write_seg(
    path: Path,
    case: Case,
    labels_dhw: HostArray,
    segments: Sequence[Segment],
    *,
    instances_dhw: HostArray | None,
    model: str | None,
) -> None:
    """Write labels as one binary SEG that refers to the series it was made from, atomically.

    Each label is a segment, also where nothing was found. With instances each of them is a segment
    that its number follows, and a label without any has none.

    Raises
    ------
    CaseError
        As `check_source`; also for more than 65,535 segments.
    """
    hd = import_optional("highdicom", "a DICOM segmentation")
    source = check_source(case, path.name)
    labels_kji = case.volume.restore(labels_dhw)
    instances_kji = None if instances_dhw is None else case.volume.restore(instances_dhw)
    numbers_kji, rows = _numbered(labels_kji, instances_kji, segments)
    if len(rows) > _MAX_SEGMENTS:
        raise CaseError(
            f"{len(rows):,} segments are more than a DICOM SEG holds ({_MAX_SEGMENTS:,})"
        )
    by_frame = np.zeros_like(numbers_kji)
    by_frame[list(source.frames) if source.multi_frame else ...] = numbers_kji
    descriptions = [_description(hd, number, *row, model) for number, row in enumerate(rows, 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty result, or an odd but harmless header
        seg = hd.seg.Segmentation(
            source_images=[_completed(header) for header in source.headers],
            pixel_array=by_frame,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=descriptions,
            series_instance_uid=hd.UID(),
            series_number=_SERIES_NUMBER,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="medals-rt",
            manufacturer_model_name=(model or "Medal S")[:_LABEL_LENGTH],
            software_versions=medals_rt.__version__,
            device_serial_number="none",
            content_label="SEGMENTATION",
            series_description="Medal S segmentation",
        )
        _name_private_scheme(seg)
        with atomic_output(path) as temporary:
            seg.save_as(temporary)


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
    if not rows:
        rows = [(segment, None) for segment in segments]
    return lookup[instances], rows


def _description(
    hd: Any, number: int, segment: Segment, instance: int | None, model: str | None
) -> Any:
    """Describe one segment: name, codes, color, and which software found it."""
    from pydicom.sr.codedict import codes

    suffix = "" if instance is None else f" {instance}"
    name = segment.name[: _LABEL_LENGTH - len(suffix)] + suffix
    algorithm = hd.AlgorithmIdentificationSequence(
        name="Medal S (medals-rt)",
        family=codes.cid7162.ArtificialIntelligence,
        version=medals_rt.__version__,
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
    return {name: value for name, value in given.items() if value}


def _concept(hd: Any, code: Code) -> Any:
    return hd.sr.CodedConcept(code.value, code.scheme, code.meaning[:_LABEL_LENGTH])


def _completed(header: Any) -> Any:
    """Copy a header, with what may be empty but has to be there."""
    completed = copy(header)
    for name in _MAY_BE_EMPTY:
        if name not in completed:
            setattr(completed, name, "")
    return completed


def _name_private_scheme(seg: Any) -> None:
    """Say which scheme the private codes are of."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodingSchemeDesignator = PRIVATE_SCHEME
    item.CodingSchemeName = "Classes of Medal S models: modality, kind and number"
    item.CodingSchemeResponsibleOrganization = "The medals-rt authors"
    seg.CodingSchemeIdentificationSequence = [item]
