"""DICOM in the registry of formats: series in, segmentations out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from medals_rt.common.notes import Note
from medals_rt.io.case import Case
from medals_rt.io.dicom.case import read_dicom_case
from medals_rt.io.dicom.files import starts_like_dicom
from medals_rt.io.dicom.rtstruct import check_rtstruct_source, write_rtstruct
from medals_rt.io.dicom.seg import SegKind, check_source, write_seg
from medals_rt.io.dicom.seg_labels import read_seg_labels
from medals_rt.io.dicom.web import read_web_case
from medals_rt.io.dicom.web_address import SCHEME
from medals_rt.io.format import Format, Options, SegmentationOutput


def _read_case(path: Path, options: Options) -> Case:
    return read_dicom_case(
        path, max_voxels=options.max_voxels, series=options.series, select=options.select
    )


def _read_web_case(path: Path, options: Options) -> Case:
    return read_web_case(
        path, max_voxels=options.max_voxels, series=options.series, select=options.select
    )


def _write_seg(path: Path, output: SegmentationOutput, kind: SegKind = "binary") -> None:
    write_seg(
        path,
        output.case,
        output.labels_dhw,
        output.segments,
        instances_dhw=output.instances_dhw,
        model=output.model,
        notice=output.notice,
        kind=kind,
    )


def _write_rtstruct(path: Path, output: SegmentationOutput) -> None:
    write_rtstruct(
        path,
        output.case,
        output.labels_dhw,
        output.segments,
        instances_dhw=output.instances_dhw,
        model=output.model,
        notice=output.notice,
    )


def _check_seg(name: str, case: Case, kind: SegKind = "binary") -> tuple[Note, ...]:
    return check_source(case, name, kind)


def _check_rtstruct(name: str, case: Case) -> tuple[Note, ...]:
    return check_rtstruct_source(case, name)


FORMATS: Final = (
    Format(
        name="dicom",
        title="DICOM",
        endings=(".dcm", ".zip"),
        libraries=("pydicom",),
        read_case=_read_case,
        recognizes=starts_like_dicom,
        folders=True,
        choosable=True,
        unnamed=True,
    ),
    Format(
        name="dicomweb",
        title="DICOMweb",
        endings=(),
        libraries=("dicomweb-client", "pydicom"),
        read_case=_read_web_case,
        choosable=True,
        scheme=SCHEME,
    ),
    Format(
        name="dicom-seg",
        title="a DICOM segmentation",
        menu_title="DICOM SEG",
        is_dicom_seg=True,
        endings=(".dcm",),
        libraries=("highdicom", "pydicom"),
        read_labels=read_seg_labels,
        write=_write_seg,
        keeps_grid=True,
        check=_check_seg,
        recognizes=starts_like_dicom,
        unnamed=True,
    ),
    Format(
        name="dicom-labelmap-seg",
        title="a DICOM label map segmentation",
        menu_title="DICOM SEG as a label map",
        is_dicom_seg=True,
        endings=(".labelmap.dcm", ".dcm"),
        libraries=("highdicom", "pydicom", "pyjpegls"),
        write=partial(_write_seg, kind="labelmap"),
        keeps_grid=True,
        check=partial(_check_seg, kind="labelmap"),
    ),
    Format(
        name="rtstruct",
        title="a DICOM structure set",
        menu_title="DICOM RTSTRUCT",
        endings=(".rtstruct.dcm", ".dcm"),
        libraries=("pydicom", "ContourPy"),
        write=_write_rtstruct,
        keeps_grid=True,
        check=_check_rtstruct,
    ),
)
