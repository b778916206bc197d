"""Names, codes and colors of labels, and how NRRD and DICOM SEG hold them."""

from pathlib import Path
from typing import Any

import highdicom
import nrrd
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.sr._concepts_dict import concepts

from medals_rt.common.errors import CaseError
from medals_rt.io.case import Case
from medals_rt.io.palette import class_color
from medals_rt.io.registry import check_output, read_case, write_segmentation
from medals_rt.io.segment_metadata import PRIVATE_SCHEME, code_table, segments_of
from medals_rt.prompts.classes import all_classes
from medals_rt.prompts.prompt_set import Prompt, PromptSet, numbered, parse_prompts
from tests.dicom import write_series
from tests.errors import raises
from tests.io.dicom.test_case import HU, UPRIGHT, write_enhanced
from tests.io.test_formats import affine_of, sphere_ijk

SENTENCES = (
    "Liver in abdominal CT",
    "Right kidney in CT",
    "Left posterior segment of the eyeball in CT",
)
PROMPTS = numbered(SENTENCES, "anatomy")
LESIONS = parse_prompts({"3": "Liver tumors in CT", "instance_label": 1})
NOTHING = np.zeros((1, 1, 1), np.uint8)


def test_every_code_is_one_that_dicom_lists() -> None:
    listed = {
        (code, meaning)
        for variants in concepts["SCT"].values()
        for code, (meaning, _) in variants.items()
    }
    for meaning, code in code_table().codes.items():
        assert (code, meaning) in listed, meaning


def digits_check(code: str) -> bool:
    """Verhoeff's check of a number's last digit, which every SNOMED CT identifier passes.

    The dihedral group of ten: five turns of a pentagon, and as many mirrored.
    """
    permuted = "1576283094"
    found = 0
    for place, letter in enumerate(reversed(code)):
        digit = int(letter)
        for _ in range(place % 8):
            digit = int(permuted[digit])
        turn = digit % 5 if found < 5 else -(digit % 5)
        found = (found + turn) % 5 + 5 * ((found < 5) == (digit >= 5))
    return found == 0


def test_every_code_has_its_check_digit() -> None:
    table = code_table()
    codes = {**table.codes, **table.beyond_dicom}
    assert len(codes) == len(table.codes) + len(table.beyond_dicom)
    for meaning, code in codes.items():
        assert digits_check(code), meaning
        assert not digits_check(code[:-1] + str((int(code[-1]) + 1) % 10))
        assert not digits_check(code[1] + code[0] + code[2:]) or code[0] == code[1]


def test_classes_with_codes() -> None:
    """159 of 184 names, which are 216 of 243 classes: docs/formats.md says so."""
    names = [key.name for key in all_classes()]
    coded = [name for name in names if name in code_table().classes]
    assert (len(set(coded)), len(set(names)), len(coded), len(names)) == (159, 184, 216, 243)
    reasons = code_table().without_code
    assert set(names) - set(coded) == set(reasons)
    assert all(reasons.values())
    for name, codes in code_table().classes.items():
        side = name.split()[0].lower()
        if side in {"left", "right"}:  # some codes are of one side themselves
            assert codes.side == side or (codes.region or codes.type).lower().startswith(side), name


def test_every_class_has_a_code_that_fits_into_dicom_and_a_color_of_its_own() -> None:
    table = code_table()
    assert set(table.classes) <= {key.name for key in all_classes()}
    colors = {}
    for key in all_classes():
        prompts = PromptSet((Prompt(1, key.name, key, key.name),))
        segment = segments_of(prompts, NOTHING)[0]
        assert segment.name == key.name
        assert len(segment.type.value) <= 16
        assert len(segment.name) <= 64
        assert (segment.type.scheme == PRIVATE_SCHEME) == (key.name not in table.classes)
        colors[key.name] = segment.rgb
        assert segment.rgb == class_color(key.name)
    assert len(set(colors.values())) == len(colors)


def test_sides_and_organs_are_told() -> None:
    liver, kidney, eye = segments_of(PROMPTS, NOTHING)
    assert (liver.type.value, liver.side) == ("10200004", None)
    assert kidney.type.meaning == "Kidney"
    assert kidney.side is not None
    assert kidney.side.meaning == "Right"
    assert (eye.type.scheme, eye.type.value) == (PRIVATE_SCHEME, "CT-A-22")
    (tumors,) = segments_of(LESIONS, NOTHING)
    assert tumors.type.meaning == "Neoplasm"
    assert tumors.region == liver.type
    assert tumors.category.meaning == "Morphologically Abnormal Structure"


def test_labels_without_a_class_are_told_by_sentence_or_number() -> None:
    labels = np.array([[[0, 4, 300]]], np.uint16)
    first, second, third = segments_of({"2": "spleen, please", "instance_label": 0}, labels)
    assert (first.label, first.name) == (2, "spleen, please")
    assert (second.label, second.name) == (4, "label 4")
    assert third.label == 300
    with raises(CaseError, "labels-out-of-range"):
        segments_of(None, np.array([[[70_000]]], np.uint32))


def test_nrrd_names_its_segments_for_3d_slicer(tmp_path: Path) -> None:
    affine = affine_of((0, 1, 2), (-1.0, -1.0, 1.0))
    nrrd.write(
        str(tmp_path / "a.nrrd"),
        sphere_ijk(affine),
        {
            "space": "left-posterior-superior",
            "space directions": affine[:3, :3].T,
            "space origin": affine[:3, 3],
        },
    )
    case = read_case(tmp_path / "a.nrrd")
    path = tmp_path / "a.seg.nrrd"
    write_segmentation(path, case, case.volume.image_dhw, prompts=PROMPTS)
    array, header = nrrd.read(str(path))
    for number, segment in enumerate(segments_of(PROMPTS, NOTHING)):
        of = {
            name.partition("_")[2]: value
            for name, value in header.items()
            if name.startswith(f"Segment{number}_")
        }
        assert of["Name"] == segment.name
        assert of["ID"] == f"Segment_{segment.label}"
        assert int(of["LabelValue"]) == segment.label == number + 1
        assert of["Layer"] == "0"
        assert tuple(map(float, of["Color"].split())) == pytest.approx(segment.rgb, abs=1e-6)
        low_high = np.array(of["Extent"].split(), int).reshape(3, 2)
        places = np.argwhere(array == segment.label)
        if len(places):
            assert (low_high[:, 0] == places.min(axis=0)).all()
            assert (low_high[:, 1] == places.max(axis=0)).all()
        else:
            assert (low_high[:, 0] > low_high[:, 1]).all()
        tag = f"~{segment.type.scheme}^{segment.type.value}^{segment.type.meaning}~"
        assert tag in of["Tags"]
    assert "SCT^24028007^Right" in header["Segment1_Tags"]
    assert header["Segmentation_ContainedRepresentationNames"] == "Binary labelmap|"
    image = SimpleITK.ReadImage(str(path))
    assert image.GetMetaData("Segment0_Name") == "Liver"
    assert np.array_equal(SimpleITK.GetArrayFromImage(image).transpose(), array)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """One oblique series, as single slices and as a multi-frame file."""
    folder = tmp_path_factory.mktemp("dicom")
    affine = affine_of((2, 0, 1), (1.0, -1.0, -1.0))
    angle = np.radians(20)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    affine[:2] = turn @ affine[:2]
    slices = write_series(folder / "series", sphere_ijk(affine).transpose(), affine)
    write_enhanced(folder / "enhanced.dcm", slices)
    return {
        "single": read_case(folder / "series"),
        "multi-frame": read_case(folder / "enhanced.dcm"),
    }


def points_mm(seg: Any, number: int) -> np.ndarray:
    """Places in LPS mm of all pixels of a segment, from the stored frames alone, sorted."""
    points = []
    shared = seg.SharedFunctionalGroupsSequence[0]
    measures = shared.PixelMeasuresSequence[0]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    rows_columns = np.array(measures.PixelSpacing, float)
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        if groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber != number:
            continue
        origin = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        row, column = np.nonzero(frame)
        points.append(
            origin
            + column[:, None] * rows_columns[1] * cosines[:3]
            + row[:, None] * rows_columns[0] * cosines[3:]
        )
    found = np.concatenate(points)
    return found[np.lexsort(found.round(3).T)]


@pytest.mark.parametrize("kind", ["single", "multi-frame"])
def test_dicom_seg_lies_on_its_series(cases: dict[str, Case], kind: str, tmp_path: Path) -> None:
    case = cases[kind]
    path = tmp_path / "out.dcm"
    write_segmentation(path, case, case.volume.image_dhw, prompts=PROMPTS, model="demo")
    seg = pydicom.dcmread(path)
    affine = case.volume.affine_lps
    for number in (1, 2):
        ijk = np.argwhere(case.volume.restore(case.volume.image_dhw) == number)[:, ::-1]
        expected = ijk @ affine[:3, :3].T + affine[:3, 3]
        expected = expected[np.lexsort(expected.round(3).T)]
        np.testing.assert_allclose(points_mm(seg, number), expected, atol=1e-3)
    source = case.header.slices[0].image.header  # type: ignore[union-attr]
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    assert seg.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert seg.StudyInstanceUID == source.StudyInstanceUID
    assert seg.PatientName == source.PatientName
    segments = seg.SegmentSequence
    assert [each.SegmentLabel for each in segments] == [
        "Liver",
        "Right kidney",
        "Left posterior segment of the eyeball",
    ]
    kidney = segments[1].SegmentedPropertyTypeCodeSequence[0]
    assert (kidney.CodingSchemeDesignator, kidney.CodeValue) == ("SCT", "64033007")
    assert kidney.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Right"
    private = segments[2].SegmentedPropertyTypeCodeSequence[0]
    assert private.CodingSchemeDesignator == PRIVATE_SCHEME
    assert seg.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == PRIVATE_SCHEME
    algorithm = segments[0].SegmentationAlgorithmIdentificationSequence[0]
    assert "model=demo" in str(algorithm.AlgorithmParameters).replace(" ", "").replace("'", "")
    color = highdicom.color.CIELabColor.from_dicom_value(
        segments[0].RecommendedDisplayCIELabValue
    ).to_rgb(clip=True)
    assert np.abs(np.array(color) - 255 * np.array(class_color("Liver"))).max() <= 2


def test_lesions_are_one_segment_an_instance(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["single"]
    instances = np.zeros(case.volume.shape_dhw, np.uint32)
    instances[0, 0, :2], instances[3, 4, 5] = 7, 9
    labels = (instances > 0) * np.uint8(3)
    write_segmentation(tmp_path / "out.dcm", case, labels, instances_dhw=instances, prompts=LESIONS)
    seg = highdicom.seg.segread(tmp_path / "out.dcm")
    assert [each.SegmentLabel for each in seg.SegmentSequence] == [
        "Liver tumors 7",
        "Liver tumors 9",
    ]
    assert seg.SegmentSequence[0].AnatomicRegionSequence[0].CodeMeaning == "Liver"
    assert [len(points_mm(pydicom.dcmread(tmp_path / "out.dcm"), n)) for n in (1, 2)] == [2, 1]


def test_nothing_found_is_a_valid_seg_too(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["single"]
    nothing = np.zeros(case.volume.shape_dhw, np.uint8)
    for instances in (None, nothing):
        write_segmentation(
            tmp_path / "out.dcm", case, nothing, instances_dhw=instances, prompts=LESIONS
        )
        seg = pydicom.dcmread(tmp_path / "out.dcm")
        assert [each.SegmentLabel for each in seg.SegmentSequence] == ["Liver tumors"]
        assert not seg.pixel_array.any()


def test_hundreds_of_segments(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["single"]
    instances = np.arange(np.prod(case.volume.shape_dhw), dtype=np.uint32)
    instances = np.where(instances < 270, instances, 0).reshape(case.volume.shape_dhw)
    labels = (instances > 0) * np.uint8(3)
    write_segmentation(tmp_path / "out.dcm", case, labels, instances_dhw=instances, prompts=LESIONS)
    seg = highdicom.seg.segread(tmp_path / "out.dcm")
    assert seg.number_of_segments == 269
    assert seg.pixel_array.sum() == 269


def test_patients_without_a_name_are_written(tmp_path: Path) -> None:
    def forget(_: int, data: pydicom.Dataset) -> None:
        del data.PatientName, data.PatientID, data.StudyDate, data.AccessionNumber

    write_series(tmp_path / "a", HU, UPRIGHT, change=forget)
    case = read_case(tmp_path / "a")
    write_segmentation(tmp_path / "out.dcm", case, (HU > 0).astype(np.uint8), prompts=PROMPTS)
    assert str(pydicom.dcmread(tmp_path / "out.dcm").PatientName) == ""


def test_a_seg_needs_a_series(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", imgs=HU, spacing=(1.0, 1.0, 1.0))
    case = read_case(tmp_path / "a.npz")
    assert check_output(tmp_path / "out.dcm") == ()
    with raises(CaseError, "not-dicom", "a.npz"):
        check_output(tmp_path / "out.dcm", case)
    with raises(CaseError, "not-dicom"):
        write_segmentation(tmp_path / "out.dcm", case, (HU > 0).astype(np.uint8))
    assert not (tmp_path / "out.dcm").exists()

    def forget(_: int, data: pydicom.Dataset) -> None:
        del data.FrameOfReferenceUID

    write_series(tmp_path / "a", HU, UPRIGHT, change=forget)
    with raises(CaseError, "uid-missing", "FrameOfReferenceUID"):
        check_output(tmp_path / "out.dcm", read_case(tmp_path / "a"))


def test_slicers_own_reader_of_segmentations(tmp_path: Path) -> None:
    """Read names, colors, terminology, extents and voxels with `slicerio`, by Slicer's makers."""
    slicerio = pytest.importorskip("slicerio", reason="Slicer's reader of its files")
    affine = affine_of((0, 1, 2), (1.0, 1.0, 1.0))
    labels = sphere_ijk(affine)
    path = tmp_path / "scan.nrrd"
    header = {
        "space": "left-posterior-superior",
        "space directions": affine[:3, :3].T,
        "space origin": affine[:3, 3],
    }
    nrrd.write(str(path), labels, header)
    case = read_case(path)
    assert np.array_equal(case.volume.restore(case.volume.image_dhw).transpose(), labels)
    write_segmentation(
        tmp_path / "o.seg.nrrd", case, case.volume.image_dhw.astype(np.uint8), prompts=PROMPTS
    )
    read = slicerio.read_segmentation(str(tmp_path / "o.seg.nrrd"))
    np.testing.assert_allclose(read["ijkToLPS"], affine, atol=1e-6)
    wanted = segments_of(PROMPTS, labels)
    assert slicerio.segment_names(read) == [each.name for each in wanted]
    for each in wanted:
        segment = slicerio.segment_from_name(read, each.name)
        np.testing.assert_allclose(segment["color"], each.rgb, atol=1e-5)
        assert segment["labelValue"] == each.label
        mask = labels == each.label
        assert np.array_equal(slicerio.segment_mask(read, each.name), mask)
        i, j, k = np.nonzero(mask)
        box = [0, -1, 0, -1, 0, -1]  # Slicer's word for nothing
        if mask.any():
            box = [int(side) for axis in (i, j, k) for side in (axis.min(), axis.max())]
        assert segment["extent"] == box
        terms = segment["terminology"]
        for part, code in (("category", each.category), ("type", each.type)):
            assert terms[part] == [code.scheme, code.value, code.meaning]
        modifier = terms.get("typeModifier")
        side = each.side if each.region is None else None
        assert modifier == (side and [side.scheme, side.value, side.meaning])
