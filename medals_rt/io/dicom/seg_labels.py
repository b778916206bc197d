"""Label maps from DICOM Segmentation objects, with highdicom (extra "dicom")."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from medals_rt.common.errors import CaseError
from medals_rt.common.optional_deps import import_optional
from medals_rt.io.case import LabelFile, check_labels
from medals_rt.io.dicom.files import (
    dicom_files,
    printable,
    read_header,
    read_whole,
    reading,
    silence,
)
from medals_rt.io.dicom.slices import GRID_TOLERANCE
from medals_rt.io.format import Options
from medals_rt.io.volume import SourceGrid, check_shape

_SEGMENTATIONS: Final = (
    "1.2.840.10008.5.1.4.1.1.66.4",  # binary and fractional
    "1.2.840.10008.5.1.4.1.1.66.7",  # label map
)
_TYPES: Final = ("BINARY", "LABELMAP")


def read_seg_labels(path: Path, options: Options) -> LabelFile:
    """Read a DICOM SEG as labels: the numbers of its segments, named as these are.

    Raises
    ------
    CaseError
        If it is none or damaged, its segments overlap or are fractions (one label a voxel is read),
        or its frames make no volume.
    MissingDependencyError
        If highdicom isn't installed.
    """
    hd = import_optional("highdicom", "a DICOM segmentation")
    name = path.name
    with silence(), dicom_files(path, max_voxels=options.max_voxels) as (files, _):
        if not files:
            raise CaseError(f"{name} is no DICOM file; copy or export it again", code="not-dicom")
        header = read_header(files[0])
        _check_kind(header, name)
        with reading(name):
            seg = hd.seg.Segmentation.from_dataset(
                read_whole(files[0], options.max_voxels), copy=False
            )
            place = seg.get_volume_geometry(allow_missing_positions=True, rtol=GRID_TOLERANCE)
            if place is None:
                raise CaseError(
                    f"{name} holds frames that make no volume with even slices; export it again",
                    code="not-a-volume",
                )
            check_shape(place.spatial_shape, max_voxels=options.max_voxels, what=name)
            volume = _voxels(seg, name)
            names = {
                int(each.segment_number): printable(each.segment_label)
                for number in seg.segment_numbers
                for each in (seg.get_segment_description(number),)
            }
            # highdicom's index is (slice, row, column), that of an affine here the reverse.
            source = SourceGrid.from_affine(
                np.asarray(volume.affine)[:, [2, 1, 0, 3]],
                frame_uid=str(header.get("FrameOfReferenceUID", "")),
            )
            labels = check_labels(volume.array, name, max_voxels=options.max_voxels)
    return LabelFile(
        source.to_canonical(labels),
        None,
        source.spacing_hwd_mm,
        source,
        segment_names=names,
        leaves_out_empty=True,
    )


def _check_kind(header: Any, name: str) -> None:
    if str(header.get("SOPClassUID")) not in _SEGMENTATIONS:
        kind = printable(header.get("Modality") or "unknown")
        raise CaseError(
            f"{name} is a DICOM file of modality {kind}, no segmentation; give a DICOM SEG",
            code="not-a-segmentation",
        )
    kind = str(header.get("SegmentationType"))
    if kind not in _TYPES:
        raise CaseError(
            f"{name} holds a segmentation of type {printable(kind)}; export it as BINARY",
            code="segmentation-type",
        )


def _voxels(seg: Any, name: str) -> Any:
    try:
        return seg.get_volume(
            combine_segments=True, allow_missing_positions=True, rtol=GRID_TOLERANCE
        )
    except RuntimeError as error:
        if "overlap" not in str(error).lower():
            raise
        raise CaseError(
            f"{name} holds segments that overlap, and a label map has one label a voxel; export "
            "them as several files",
            code="segments-overlap",
        ) from error
