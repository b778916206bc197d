"""Reports of measurements: read back by highdicom, dciodvfy and dcmtk."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from medals_rt.common.errors import InputError
from medals_rt.io.case import Case
from medals_rt.io.dicom.sr import SegmentMeasures, write_report
from medals_rt.io.registry import read_case, write_segmentation
from medals_rt.pipeline.job_outputs import check_outputs
from medals_rt.pipeline.job_request import Job, ReadJob
from medals_rt.pipeline.job_writing import measure_segments
from medals_rt.prompts.prompt_set import PromptSet, numbered
from tests.dicom import write_series

AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])
VOXEL_ML = 0.02
ANATOMY = numbered(("Liver in abdominal CT", "Right kidney in abdominal CT"), "anatomy")
LESIONS = numbered(("Liver tumors in abdominal CT",), "lesion")


def found(folder: Path, labels: np.ndarray) -> Case:
    write_series(folder / "ct", np.zeros(labels.shape, np.int16), AFFINE)
    return read_case(folder / "ct")


def report(
    folder: Path,
    prompts: PromptSet,
    labels: np.ndarray,
    instances: np.ndarray | None = None,
    form: str = "dicom-seg",
) -> tuple[Any, Any, list[SegmentMeasures]]:
    """SEG, report and measures of labels on the series' own grid."""
    case = found(folder, labels)
    labels_dhw = case.volume.source.to_canonical(labels)
    instances_dhw = None if instances is None else case.volume.source.to_canonical(instances)
    seg, sr = folder / "out.dcm", folder / "out.sr.dcm"
    write_segmentation(
        seg, case, labels_dhw, instances_dhw=instances_dhw, prompts=prompts, format=form
    )
    classes = [
        SimpleNamespace(label=each.label, name=each.class_key.name) for each in prompts.prompts
    ]
    result = SimpleNamespace(
        labels_dhw=labels_dhw,
        instances_dhw=instances_dhw,
        report=SimpleNamespace(classes=classes),
    )
    read = ReadJob(Job(folder / "ct", seg), case, prompts, None, {})
    measures = measure_segments(read, cast("Any", result))
    write_report(sr, seg, measures, modality="CT", notice="research only")
    return pydicom.dcmread(seg), hd.sr.srread(sr), measures


LABELS = np.zeros((6, 16, 20), np.uint8)
LABELS[1:3, 2:7, 3:13] = 1
LABELS[4, 8:10, 3:6] = 2


def test_a_volume_for_each_segment(tmp_path: Path) -> None:
    seg, sr, _ = report(tmp_path, ANATOMY, LABELS)
    groups = sr.content.get_volumetric_roi_measurement_groups()
    for group, segment, voxels in zip(groups, seg.SegmentSequence, (100, 6), strict=True):
        assert group.tracking_uid == segment.TrackingUID
        named = group.referenced_segment
        assert named.referenced_sop_instance_uid == seg.SOPInstanceUID
        assert named.referenced_segment_numbers == [segment.SegmentNumber]
        (volume,) = group.get_measurements()
        assert volume.name == codes.SCT.Volume
        assert volume.value == pytest.approx(voxels * VOXEL_ML)
        assert volume.unit == codes.UCUM.CubicCentimeter
    assert [group.finding_type.meaning for group in groups] == ["Liver", "Kidney"]
    (site,) = groups[1].finding_sites
    assert (site.topographical_modifier, site.laterality) == (None, codes.SCT.Right)
    assert (sr.PatientID, sr.StudyInstanceUID) == (seg.PatientID, seg.StudyInstanceUID)
    assert "research only" in sr.SeriesDescription


def test_both_axes_of_each_lesion(tmp_path: Path) -> None:
    labels = (LABELS > 0).astype(np.uint8)
    seg, sr, measures = report(tmp_path, LESIONS, labels, LABELS)
    groups = sr.content.get_volumetric_roi_measurement_groups()
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == [
        "Liver tumors 1",
        "Liver tumors 2",
    ]
    for group, measured in zip(groups, measures, strict=True):
        values = {each.name.meaning: each.value for each in group.get_measurements()}
        assert values == {
            "Volume": pytest.approx(measured.volume_ml, abs=1e-3),
            "Long axis": pytest.approx(measured.long_axis_mm, abs=1e-3),
            "Short axis": pytest.approx(measured.short_axis_mm, abs=1e-3),
        }
    # a row of 10 voxels of 2 mm, five high: between the middles of its outer faces
    assert measures[0].volume_ml == pytest.approx(100 * VOXEL_ML)
    assert measures[0].long_axis_mm == pytest.approx(np.hypot(18.0, 10.0), abs=3)


@pytest.mark.parametrize("form", ["dicom-seg", "dicom-labelmap-seg"])
def test_independent_readers_take_it(form: str, tmp_path: Path) -> None:
    report(tmp_path, ANATOMY, LABELS, form=form)
    sr = tmp_path / "out.sr.dcm"
    tools = [name for name in ("dciodvfy", "dsrdump") if shutil.which(name)]
    if not tools:
        pytest.skip("neither dciodvfy nor dsrdump is installed (dicom3tools, dcmtk)")
    if "dciodvfy" in tools:
        done = subprocess.run(["dciodvfy", sr], capture_output=True, text=True, check=False)  # noqa: S607
        said = done.stdout + done.stderr
        errors = [line for line in said.splitlines() if line.startswith("Error")]
        if form == "dicom-labelmap-seg":  # which dciodvfy does not know as a segmentation yet
            errors = [line for line in errors if "ReferencedSegmentNumber" not in line]
        assert errors == []
        assert "Comprehensive3DSR" in said
    if "dsrdump" in tools and form == "dicom-seg":  # dcmtk 3.6.7 does not know label maps
        done = subprocess.run(["dsrdump", sr], capture_output=True, text=True, check=True)  # noqa: S607
        assert "Imaging Measurement Report" in done.stdout
        assert 'NUM:(,,"Volume")="2.0" (cm3,UCUM' in done.stdout


def test_a_report_about_no_seg_is_refused(tmp_path: Path) -> None:
    job = Job(tmp_path / "ct", tmp_path / "out.nii.gz", sr=tmp_path / "out.sr.dcm")
    with pytest.raises(InputError) as refused:
        check_outputs(job)
    assert refused.value.code == "report-without-seg"
