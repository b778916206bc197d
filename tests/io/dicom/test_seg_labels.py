"""DICOM SEG read as labels: what was written, and files of highdicom's own."""

from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from medals_rt.common.errors import CaseError
from medals_rt.io.grids import fill_left_out, grid_of, same_grid
from medals_rt.io.registry import read_case, read_labels, write_segmentation
from medals_rt.pipeline.job_inputs import read_annotation
from medals_rt.prompts.prompt_set import parse_prompts
from tests.dicom import write_series
from tests.errors import raises

SHAPE = (6, 8, 10)
SINE, COSINE = np.sin(0.3), np.cos(0.3)
OBLIQUE = np.eye(4)  # columns to the head: axes are exchanged, one runs the other way
OBLIQUE[:3, :3] = np.array([[0, SINE, COSINE], [0, COSINE, -SINE], [-1, 0, 0]]) * [1.5, 1.5, 3.0]
OBLIQUE[:3, 3] = (-20.0, 30.0, -50.0)


def labels() -> np.ndarray:
    found = np.zeros(SHAPE, np.uint8)
    found[2:4, 2:5, 3:7], found[4, 1:3, 1:4] = 1, 2
    return found


@pytest.mark.parametrize("affine", [np.diag([2.0, 2.0, 3.0, 1.0]), OBLIQUE])
def test_a_result_reads_as_it_was_written(tmp_path: Path, affine: np.ndarray) -> None:
    """Also the empty slices, which the file doesn't hold."""
    write_series(tmp_path / "series", labels().astype(np.int16), affine)
    case = read_case(tmp_path / "series")
    wanted = case.volume.source.to_canonical(labels())
    prompts = {"1": "Liver in CT", "2": "Spleen in CT"}
    write_segmentation(tmp_path / "a.dcm", case, wanted, prompts=prompts)
    found = read_labels(tmp_path / "a.dcm")
    assert found.segment_names == {1: "Liver in CT", 2: "Spleen in CT"}
    assert found.labels_dhw.size < wanted.size
    whole = fill_left_out(found, grid_of(case.volume))
    assert same_grid(grid_of(case.volume), grid_of(whole)) is None
    np.testing.assert_array_equal(whole.labels_dhw, wanted)
    # On a grid half a voxel off there is nothing to restore.
    off = grid_of(case.volume)
    shifted = np.eye(4)
    shifted[0, 3] = 0.5
    away = type(off)(off.shape_dhw, off.spacing_hwd_mm, off.affine_lps @ shifted)
    assert fill_left_out(found, away) is found


def test_a_result_of_slices_that_are_not_quite_even_reads_again(tmp_path: Path) -> None:
    """Positions of two decimals, 0.3125 mm apart: the series is read, and so must its result be."""

    def rounded(k: int, data: pydicom.Dataset) -> None:
        data.ImagePositionPatient = [0.0, 0.0, round(0.3125 * k, 2)]

    write_series(
        tmp_path / "s", labels().astype(np.int16), np.diag([2.0, 2.0, 0.3125, 1.0]), change=rounded
    )
    case = read_case(tmp_path / "s")
    wanted = case.volume.source.to_canonical(labels())
    prompts = {"1": "Liver in CT", "2": "Spleen in CT"}
    write_segmentation(tmp_path / "a.dcm", case, wanted, prompts=prompts)
    whole = fill_left_out(read_labels(tmp_path / "a.dcm"), grid_of(case.volume))
    assert same_grid(grid_of(case.volume), grid_of(whole)) is None
    np.testing.assert_array_equal(whole.labels_dhw, wanted)


def test_a_segmentation_of_another_patient_lies_elsewhere(tmp_path: Path) -> None:
    """Though its voxels lie at the same millimeters."""

    def another(_: int, data: pydicom.Dataset) -> None:
        data.FrameOfReferenceUID = "1.2.3.99"

    for name, change in (("a", lambda _, __: None), ("b", another)):
        write_series(
            tmp_path / name, labels().astype(np.int16), np.diag([2.0, 2.0, 3.0, 1.0]), change=change
        )
    case, other = (read_case(tmp_path / name) for name in "ab")
    wanted = case.volume.source.to_canonical(labels())
    prompts = {"1": "Liver in CT", "2": "Spleen in CT"}
    write_segmentation(tmp_path / "a.dcm", case, wanted, prompts=prompts)
    asked = parse_prompts(prompts)
    read_annotation(tmp_path / "a.dcm", case.volume, asked)
    with raises(CaseError, "annotation-on-another-grid", "another frame of reference"):
        read_annotation(tmp_path / "a.dcm", other.volume, asked)


def highdicom_seg(folder: Path, array: np.ndarray, kind: str, segments: int) -> Path:
    write_series(folder / "series", labels().astype(np.int16), np.diag([2.0, 2.0, 3.0, 1.0]))
    images = sorted(
        (pydicom.dcmread(path) for path in (folder / "series").iterdir()),
        key=lambda image: image.ImagePositionPatient[2],
    )
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=f"part {number}",
            segmented_property_category=codes.SCT.Organ,
            segmented_property_type=codes.SCT.Liver,
            algorithm_type="MANUAL",
        )
        for number in range(1, segments + 1)
    ]
    seg: Any = hd.seg.Segmentation(
        source_images=images,
        pixel_array=array,
        segmentation_type=kind,
        segment_descriptions=descriptions,
        series_instance_uid=hd.UID(),
        series_number=2,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="x",
        manufacturer_model_name="x",
        software_versions="1",
        device_serial_number="1",
    )
    seg.save_as(folder / "seg.dcm")
    return folder / "seg.dcm"


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_both_types_are_read(tmp_path: Path, kind: str) -> None:
    found = read_labels(highdicom_seg(tmp_path, labels(), kind, 2))
    whole = fill_left_out(found, grid_of(read_case(tmp_path / "series").volume))
    np.testing.assert_array_equal(whole.labels_dhw, labels())
    assert found.segment_names == {1: "part 1", 2: "part 2"}


def test_what_is_no_label_map_is_refused(tmp_path: Path) -> None:
    both = np.stack([labels() > 0, labels() == 1], axis=-1).astype(np.uint8)
    images = tmp_path / "overlap" / "series"
    files = {
        "segments-overlap": highdicom_seg(tmp_path / "overlap", both, "BINARY", 2),
        "segmentation-type": highdicom_seg(
            tmp_path / "fractions", (labels() == 1) * np.float32(0.5), "FRACTIONAL", 1
        ),
        "not-a-segmentation": next(images.iterdir()).rename(tmp_path / "image.dcm"),
    }
    for code, path in files.items():
        with pytest.raises(CaseError) as refused:
            read_labels(path)
        assert refused.value.code == code


def test_a_segmentation_needs_no_ending(tmp_path: Path) -> None:
    write_series(tmp_path / "series", labels().astype(np.int16), OBLIQUE)
    case = read_case(tmp_path / "series")
    wanted = case.volume.source.to_canonical(labels())
    write_segmentation(tmp_path / "a.dcm", case, wanted, prompts={"1": "Liver in CT"})
    (tmp_path / "a.dcm").rename(tmp_path / "1.2.840.7")
    found = read_labels(tmp_path / "1.2.840.7")
    whole = fill_left_out(found, grid_of(case.volume))
    np.testing.assert_array_equal(whole.labels_dhw, wanted)
