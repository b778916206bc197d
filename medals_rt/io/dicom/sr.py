"""Measurements as DICOM Structured Reports (TID 1500), with highdicom (extra "dicom").

A report has one group for each segment of a DICOM SEG that was written before, and refers to it:
what is measured is said by the segment's own codes and tracking identifiers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medals_rt.common.atomic_io import atomic_output
from medals_rt.common.choices import traits_of
from medals_rt.common.distribution import VERSION
from medals_rt.common.optional_deps import import_optional
from medals_rt.io.dicom.files import reading, silence
from medals_rt.io.dicom.headers import CHARACTER_SET
from medals_rt.io.dicom.results import SERIES_NUMBER, one_line

_DECIMALS: Final = 3
_PATIENT_AND_STUDY: Final = ("StudyInstanceUID", "FrameOfReferenceUID")


@dataclass(frozen=True)
class SegmentMeasures:
    """What one segment measures.

    Attributes
    ----------
    volume_ml
        Volume of its voxels.
    long_axis_mm, short_axis_mm
        Of a lesion: its longest diameter within a slice, and the longest perpendicular to it there.
    """

    volume_ml: float
    long_axis_mm: float | None = None
    short_axis_mm: float | None = None


def write_report(
    path: Path,
    segmentation: Path,
    measures: Sequence[SegmentMeasures],
    *,
    modality: str,
    notice: str | None = None,
) -> None:
    """Write what the segments of a DICOM SEG measure, atomically.

    Parameters
    ----------
    path
        The report.
    segmentation
        The SEG, which the report refers to.
    measures
        Of its segments, in the order of their numbers from 1.
    modality
        Of the image, in the words of prompts.
    notice
        What a reader has to know of the model: the description of the series.

    Raises
    ------
    MissingDependencyError
        If highdicom isn't installed.
    OutputError
        The file can't be written.
    """
    hd = import_optional("highdicom", "a DICOM report")
    import pydicom

    with silence(), reading(segmentation.name):
        seg = pydicom.dcmread(segmentation, defer_size=2**20)
        groups = [
            _group(hd, seg, segment, measured)
            for segment, measured in zip(seg.SegmentSequence, measures, strict=True)
        ]
        content = _content(hd, seg, groups, modality)
        report = hd.sr.Comprehensive3DSR(
            evidence=[seg, *_images(seg)],
            content=content[0],
            series_instance_uid=hd.UID(),
            series_number=SERIES_NUMBER + 1,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="medals-rt",
            manufacturer_model_name=seg.get("ManufacturerModelName"),
            software_versions=VERSION,
            device_serial_number="none",
            series_description="Medal S measurements",
            specific_character_set=CHARACTER_SET,
            is_complete=True,
        )
        if notice:
            report.SeriesDescription = one_line(f"Medal S measurements: {notice}")
        with atomic_output(path) as temporary:
            report.save_as(temporary)


def _content(hd: Any, seg: Any, groups: list[Any], modality: str) -> Any:
    from pydicom.sr.codedict import codes

    device = hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=seg.SOPInstanceUID,
            name="medals-rt",
            manufacturer_name="medals-rt",
            model_name=seg.get("ManufacturerModelName"),
        ),
    )
    procedure = getattr(codes.cid100, traits_of(modality).dicom_procedure or "ImagingProcedure")
    return hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=device),
        procedure_reported=procedure,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )


def _group(hd: Any, seg: Any, segment: Any, measured: SegmentMeasures) -> Any:
    """Make the measurements of one segment."""
    from pydicom.sr.codedict import codes

    summed = codes.cid7474.SumOfSegmentedVoxelMethodForVolume
    lengths = (
        (codes.cid7470.LongAxis, measured.long_axis_mm),
        (codes.cid7470.ShortAxis, measured.short_axis_mm),
    )
    measurements = [
        hd.sr.Measurement(
            codes.cid7472.Volume,
            round(measured.volume_ml, _DECIMALS),
            codes.UCUM.CubicCentimeter,
            method=summed,
        ),
        *(
            hd.sr.Measurement(name, round(value, _DECIMALS), codes.UCUM.Millimeter)
            for name, value in lengths
            if value is not None
        ),
    ]
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=segment.TrackingUID, identifier=segment.TrackingID
        ),
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=seg.SOPClassUID,
            sop_instance_uid=seg.SOPInstanceUID,
            segment_number=int(segment.SegmentNumber),
            source_series=hd.sr.SourceSeriesForSegmentation(
                seg.ReferencedSeriesSequence[0].SeriesInstanceUID
            ),
        ),
        finding_category=_code(hd, segment.SegmentedPropertyCategoryCodeSequence),
        finding_type=_code(hd, segment.SegmentedPropertyTypeCodeSequence),
        finding_sites=_sites(hd, segment),
        measurements=measurements,
    )


def _sites(hd: Any, segment: Any) -> list[Any] | None:
    """Where a segment lies: its region, or for what is a region by itself its own type and side."""
    region = segment.get("AnatomicRegionSequence")
    kind = segment.SegmentedPropertyTypeCodeSequence
    side = (region or kind)[0].get(
        "AnatomicRegionModifierSequence" if region else "SegmentedPropertyTypeModifierCodeSequence"
    )
    if not region and not side:
        return None
    laterality = _code(hd, side) if side else None
    return [hd.sr.FindingSite(_code(hd, region or kind), laterality=laterality)]


def _code(hd: Any, sequence: Any) -> Any:
    item = sequence[0]
    return hd.sr.CodedConcept(item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning)


def _images(seg: Any) -> list[Any]:
    """Make a data set for each image that the SEG refers to: what a report lists as evidence."""
    from pydicom.dataset import Dataset

    found = []
    for series in seg.ReferencedSeriesSequence:
        for item in series.ReferencedInstanceSequence:
            image = Dataset()
            for name in _PATIENT_AND_STUDY:
                setattr(image, name, seg.get(name))
            image.SeriesInstanceUID = series.SeriesInstanceUID
            image.SOPClassUID = item.ReferencedSOPClassUID
            image.SOPInstanceUID = item.ReferencedSOPInstanceUID
            found.append(image)
    return found
