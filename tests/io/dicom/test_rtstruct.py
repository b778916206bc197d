"""RT Structure Sets: contours rasterized back give the mask, on any series that is read."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from medals_rt.common.errors import CaseError
from medals_rt.io.case import Case
from medals_rt.io.dicom.rtstruct import loops_of
from medals_rt.io.grids import grid_of, same_grid
from medals_rt.io.registry import check_output, read_case, read_labels, write_segmentation
from medals_rt.io.segment_metadata import segments_of
from medals_rt.prompts.prompt_set import numbered
from tests.dicom import write_series
from tests.io.dicom.test_case import write_enhanced
from tests.io.test_formats import affine_of

RNG = np.random.default_rng(0)
PROMPTS = numbered(
    ("Liver in abdominal CT", "Right kidney in abdominal CT", "Spleen in CT"), "anatomy"
)
LIVER = numbered(("Liver in abdominal CT",), "anatomy")
LESIONS = numbered(("Liver tumors in abdominal CT",), "lesion")


def labels_of(shape: tuple[int, int, int]) -> np.ndarray:
    """Label 1: a ball with a hole that holds an island, cut by the edge; label 2: noise; no 3."""
    k, j, i = np.ogrid[: shape[0], : shape[1], : shape[2]]
    distance = np.sqrt((k - 5.0) ** 2 * 4 + (j - 15.0) ** 2 + (i - 12.0) ** 2)
    labels = np.zeros(shape, np.uint8)
    labels[(distance < 16) & ~((distance > 4) & (distance < 9))] = 1
    noise = RNG.random(shape) < 0.4
    noise[:, :, :34] = False
    labels[noise] = 2
    return labels


LABELS_KJI = labels_of((11, 32, 48))
DIAGONAL = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]], bool)


def oblique() -> np.ndarray:
    rotation, _ = np.linalg.qr(np.random.default_rng(5).standard_normal((3, 3)))
    rotation[:, 2] = np.cross(rotation[:, 0], rotation[:, 1])
    affine = np.eye(4)
    affine[:3, :3] = rotation * (0.7, 0.83, 3.0)
    affine[:3, 3] = (-123.4, 56.7, -890.1)
    return affine


AXIAL = np.diag([0.7, 0.8, 2.5, 1.0])
SAGITTAL = affine_of((1, 2, 0), (1.0, -1.0, -1.0))
AFFINES = {"axial": AXIAL, "sagittal": SAGITTAL, "oblique": oblique()}


def series(folder: Path, affine: np.ndarray) -> tuple[Case, dict[str, Dataset]]:
    """Write and read a series; also its slices by UID, as pydicom reads them."""
    if np.linalg.det(affine[:3, :3]) < 0:  # slices run along their normal
        affine = affine.copy()
        affine[:3, 2] *= -1
    written = write_series(folder, LABELS_KJI.astype(np.int16), affine)
    return read_case(folder), {str(each.SOPInstanceUID): each for each in written}


def in_file(case: Case) -> np.ndarray:
    return case.volume.restore(case.volume.image_dhw)


def inside(polygon: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Whether a ray from each pixel's center crosses the polygon an odd number of times."""
    row, column = np.mgrid[: shape[0], : shape[1]].astype(float)
    odd = np.zeros(shape, bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        crosses = (y0 > row) != (y1 > row)
        odd ^= crosses & (column < x0 + (row - y0) * (x1 - x0) / (y1 - y0))
    return odd


def rasterize(item: Dataset, slices: dict[str, Dataset]) -> dict[str, np.ndarray]:
    """Fill a region's contours by the geometry of the slices that they name."""
    masks: dict[str, np.ndarray] = {}
    for contour in item.get("ContourSequence", ()):
        (image,) = contour.ContourImageSequence
        source = slices[image.ReferencedSOPInstanceUID]
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        assert len(points) == contour.NumberOfContourPoints >= 3
        assert contour.ContourGeometricType == "CLOSED_PLANAR"
        row, column = np.array(source.ImageOrientationPatient, float).reshape(2, 3)
        offset = points - np.array(source.ImagePositionPatient, float)
        assert np.abs(offset @ np.cross(row, column)).max() < 2e-3
        x = offset @ row / float(source.PixelSpacing[1])
        y = offset @ column / float(source.PixelSpacing[0])
        shape = (source.Rows, source.Columns)
        uid = str(image.ReferencedSOPInstanceUID)
        masks[uid] = masks.get(uid, np.zeros(shape, bool)) ^ inside(np.stack([x, y], -1), shape)
    return masks


def validate(path: Path) -> None:
    """Check with an independent validator, where there is one."""
    if shutil.which("dciodvfy") is None:
        return
    done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)  # noqa: S607
    said = (done.stdout + done.stderr).splitlines()
    assert not [line for line in said if line.startswith("Error")]
    assert "RTStructureSet" in said


@pytest.mark.parametrize("name", AFFINES)
def test_contours_give_the_mask_back(tmp_path: Path, name: str) -> None:
    case, slices = series(tmp_path / "a", AFFINES[name])
    path = tmp_path / "out.rtstruct.dcm"
    assert check_output(path, case) == ()
    write_segmentation(path, case, case.volume.image_dhw, prompts=PROMPTS)
    validate(path)
    data = pydicom.dcmread(path)
    assert [each.ReferencedROINumber for each in data.ROIContourSequence] == [1, 2, 3]
    assert "ContourSequence" not in data.ROIContourSequence[2]
    stored = {uid: each.pixel_array.astype(int) - 1024 for uid, each in slices.items()}
    for number in (1, 2):
        masks = rasterize(data.ROIContourSequence[number - 1], slices)
        for uid, labels in stored.items():
            expected = labels == number
            assert np.array_equal(masks.get(uid, np.zeros_like(expected)), expected)
        assert masks


@pytest.mark.parametrize("name", ["axial", "sagittal"])
def test_another_reader_gives_the_mask_back(tmp_path: Path, name: str) -> None:
    """Plastimatch fills the contours with a program of its own, on the grid of the series."""
    program = shutil.which("plastimatch")
    if program is None:
        pytest.skip("plastimatch isn't installed (Debian package): RTSTRUCTs go unread by it")
    case, _ = series(tmp_path / "a", AFFINES[name])
    labels = (case.volume.image_dhw == 1).astype(np.uint8)
    write_segmentation(tmp_path / "o.rtstruct.dcm", case, labels, prompts=LIVER)
    done = subprocess.run(
        (
            *(program, "convert", "--input", tmp_path / "o.rtstruct.dcm"),
            *("--referenced-ct", tmp_path / "a", "--output-ss-list", tmp_path / "list.txt"),
            *("--output-prefix", tmp_path / "masks", "--prefix-format", "nrrd", "--xor-contours"),
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (listed,) = (tmp_path / "list.txt").read_text(encoding="utf-8").splitlines()
    rgb = " ".join(str(round(255 * part)) for part in segments_of(LIVER, labels)[0].rgb)
    assert listed == f"0|{rgb}|Liver"
    found = read_labels(tmp_path / "masks" / "Liver.nrrd")
    assert same_grid(grid_of(case.volume), grid_of(found)) is None
    assert np.array_equal(found.labels_dhw, labels)


def test_contours_lie_where_the_volume_has_its_voxels(tmp_path: Path) -> None:
    case, _ = series(tmp_path / "a", AFFINES["oblique"])
    write_segmentation(tmp_path / "o.dcm", case, case.volume.image_dhw, format="rtstruct")
    data = pydicom.dcmread(tmp_path / "o.dcm")
    inverse = np.linalg.inv(case.volume.affine_lps)
    labels = in_file(case)
    for item, label in zip(data.ROIContourSequence, (1, 2), strict=True):
        for contour in item.ContourSequence:
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            ijk = points @ inverse[:3, :3].T + inverse[:3, 3]
            k = ijk[:, 2].round().astype(int)
            assert np.abs(ijk[:, 2] - k).max() < 1e-3
            near = np.abs(np.argwhere(labels[k[0]] == label)[None, :, ::-1] - ijk[:, None, :2])
            assert near.max(axis=-1).min(axis=-1).max() < 0.51


@pytest.mark.parametrize(
    ("mask", "loops"),
    [
        (np.ones((1, 1), bool), 1),
        (np.ones((3, 5), bool), 1),
        (np.pad(np.zeros((1, 1), bool), 1, constant_values=True), 2),
        (np.zeros((2, 2), bool), 0),
        (DIAGONAL, None),
        (~DIAGONAL, None),
        (RNG.random((24, 31)) < 0.5, None),
    ],
)
def test_loops_are_the_border_of_a_mask(mask: np.ndarray, loops: int | None) -> None:
    found = loops_of(mask)
    assert loops is None or len(found) == loops
    filled = np.zeros(mask.shape, bool)
    for loop in found:
        filled ^= inside(loop, mask.shape)
    assert np.array_equal(filled, mask)


def test_loops_have_corners_only() -> None:
    (loop,) = loops_of(np.ones((40, 50), bool))
    assert len(loop) == 8


def test_regions_say_what_they_are(tmp_path: Path) -> None:
    case, slices = series(tmp_path / "a", AXIAL)
    notice = "trained on synthetic phantoms only; " * 4
    write_segmentation(
        tmp_path / "o.dcm",
        case,
        case.volume.image_dhw,
        prompts=PROMPTS,
        model="demo",
        notice=notice,
        format="rtstruct",
    )
    data = pydicom.dcmread(tmp_path / "o.dcm")
    source = next(iter(slices.values()))
    assert data.Modality == "RTSTRUCT"
    assert data.StructureSetDescription == notice.strip()
    assert data.PatientName == source.PatientName
    assert data.StudyInstanceUID == source.StudyInstanceUID
    assert data.SeriesInstanceUID != source.SeriesInstanceUID
    (frame,) = data.ReferencedFrameOfReferenceSequence
    assert frame.FrameOfReferenceUID == source.FrameOfReferenceUID
    (referred,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert referred.SeriesInstanceUID == source.SeriesInstanceUID
    assert {each.ReferencedSOPInstanceUID for each in referred.ContourImageSequence} == set(slices)
    names = [each.ROIName for each in data.StructureSetROISequence]
    assert names == ["Liver", "Right kidney", "Spleen"]
    assert {each.ReferencedFrameOfReferenceUID for each in data.StructureSetROISequence} == {
        source.FrameOfReferenceUID
    }
    liver, kidney, _ = data.RTROIObservationsSequence
    assert liver.RTROIInterpretedType == "ORGAN"
    (code,) = kidney.RTROIIdentificationCodeSequence
    assert (code.CodingSchemeDesignator, code.CodeValue) == ("SCT", "64033007")
    assert code.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Right"


def test_lesions_are_numbered_regions_of_their_own_color(tmp_path: Path) -> None:
    case, slices = series(tmp_path / "a", AXIAL)
    instances = np.zeros(case.volume.shape_dhw, np.uint32)
    instances[2, 3:6, 4:8], instances[4, 9, 9] = 2, 5
    labels = (instances > 0).astype(np.uint8)
    path = tmp_path / "o.rtstruct.dcm"
    write_segmentation(path, case, labels, instances_dhw=instances, prompts=LESIONS)
    validate(path)
    data = pydicom.dcmread(path)
    names = [each.ROIName for each in data.StructureSetROISequence]
    assert names == ["Liver tumors 2", "Liver tumors 5"]
    first, second = data.ROIContourSequence
    assert first.ROIDisplayColor != second.ROIDisplayColor
    assert sum(mask.sum() for mask in rasterize(first, slices).values()) == 12
    assert sum(mask.sum() for mask in rasterize(second, slices).values()) == 1
    for each in data.RTROIObservationsSequence:
        assert each.RTROIInterpretedType == ""
        assert each.RTROIIdentificationCodeSequence[0].CodeMeaning == "Neoplasm"
        assert each.AnatomicRegionSequence[0].CodeMeaning == "Liver"


def test_frames_of_enhanced_files_are_referred_to(tmp_path: Path) -> None:
    written = write_series(tmp_path / "a", LABELS_KJI.astype(np.int16), AXIAL)
    write_enhanced(tmp_path / "enhanced.dcm", written)
    case = read_case(tmp_path / "enhanced.dcm")
    labels = np.zeros(case.volume.shape_dhw, np.uint8)
    labels[4, 3:6, 4:8] = 1
    write_segmentation(tmp_path / "o.rtstruct.dcm", case, labels, prompts=PROMPTS)
    data = pydicom.dcmread(tmp_path / "o.rtstruct.dcm")
    (contour,) = data.ROIContourSequence[0].ContourSequence
    (image,) = contour.ContourImageSequence
    z = float(contour.ContourData[2])
    (k,) = np.flatnonzero(labels.any(axis=(1, 2)))
    assert z == pytest.approx(case.volume.affine_lps[2, 2] * k)
    enhanced = pydicom.dcmread(tmp_path / "enhanced.dcm")
    assert image.ReferencedSOPInstanceUID == enhanced.SOPInstanceUID
    place = enhanced.PerFrameFunctionalGroupsSequence[image.ReferencedFrameNumber - 1]
    assert float(place.PlanePositionSequence[0].ImagePositionPatient[2]) == pytest.approx(z)


def test_a_contour_may_be_longer_than_64_kib(tmp_path: Path) -> None:
    comb = np.zeros((2, 12, 1200), np.int16)
    comb[:, 1:, ::2] = comb[:, 0] = 1
    write_series(tmp_path / "a", comb, AXIAL)
    case = read_case(tmp_path / "a")
    path = tmp_path / "o.rtstruct.dcm"
    write_segmentation(path, case, case.volume.image_dhw)
    validate(path)
    (item,) = pydicom.dcmread(path).ROIContourSequence
    first, second = item.ContourSequence
    assert len("\\".join(map(str, first.ContourData))) > 2**16
    assert len(first.ContourData) == len(second.ContourData)


def test_what_it_cannot_refer_to_is_refused_before_the_work(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", imgs=LABELS_KJI, spacing=(1.0, 1.0, 1.0))
    with pytest.raises(CaseError) as caught:
        check_output(tmp_path / "o.dcm", read_case(tmp_path / "a.npz"), format="rtstruct")
    assert caught.value.code == "not-dicom"

    def forget(_: int, data: Dataset) -> Any:
        del data.FrameOfReferenceUID

    write_series(tmp_path / "a", LABELS_KJI.astype(np.int16), AXIAL, change=forget)
    with pytest.raises(CaseError) as caught:
        check_output(tmp_path / "o.rtstruct.dcm", read_case(tmp_path / "a"))
    assert caught.value.code == "uid-missing"


def test_values_that_dicom_does_not_allow_are_left_out_and_named(tmp_path: Path) -> None:
    def spoil(_: int, data: Dataset) -> Any:
        data.PatientSex = "F"
        data[0x00100040] = pydicom.dataelem.RawDataElement(
            pydicom.tag.Tag(0x00100040), "CS", 4, b"male", 0, False, True
        )

    write_series(tmp_path / "a", LABELS_KJI.astype(np.int16), AXIAL, change=spoil)
    (note,) = check_output(tmp_path / "o.rtstruct.dcm", read_case(tmp_path / "a"))
    assert note.code == "dicom-value-left-out"
    assert "PatientSex" in note.text
