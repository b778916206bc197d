"""DICOM SEG of what hospitals send: valid, with what can't be kept left out and named."""

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless

from medals_rt.common.errors import CaseError
from medals_rt.io.dicom.seg import check_source, write_seg
from medals_rt.io.grids import fill_left_out, grid_of, same_grid
from medals_rt.io.registry import check_output, read_case, read_labels, write_segmentation
from medals_rt.io.segment_metadata import segments_of
from medals_rt.prompts.classes import classes_of
from medals_rt.prompts.prompt_set import Prompt, PromptSet
from tests.dicom import write_series

LABELS = np.zeros((5, 8, 10), dtype=np.uint8)
LABELS[1:3, 2:5, 3:7] = 1
AFFINE = np.diag([12.0, 12.0, 15.0, 1.0])
AFFINE[:3, 3] = (-90.0, -80.0, -50.0)


def write_odd(folder: Path, change: Callable[[int, Dataset], Any]) -> None:
    """Write a series with values that pydicom warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_series(folder, LABELS.astype(np.int16), AFFINE, change=change)


def segmentation(
    folder: Path, change: Callable[[int, Dataset], Any], notice: str | None = None
) -> tuple[Dataset, str]:
    """Write a series and its SEG; the SEG, and the text of what was left out."""
    write_odd(folder / "a", change)
    case = read_case(folder / "a")
    notes = check_source(case, "out.dcm")
    assert all(note.code == "dicom-value-left-out" for note in notes)
    segments = segments_of({"1": "Liver in CT"}, LABELS)
    write_seg(
        folder / "out.dcm", case, LABELS, segments, instances_dhw=None, model=None, notice=notice
    )
    validate(folder / "out.dcm")
    return pydicom.dcmread(folder / "out.dcm"), " ".join(note.text for note in notes)


def validate(path: Path) -> None:
    """Check with an independent validator, where there is one."""
    if shutil.which("dciodvfy") is None:
        return
    done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)  # noqa: S607
    said = (done.stdout + done.stderr).splitlines()
    assert not [line for line in said if line.startswith("Error")]
    assert any("Segmentation" in line for line in said)


@pytest.mark.parametrize(
    ("named", "codec", "name"),
    [
        ("ISO_IR 100", "latin-1", "Müller^Jörg"),
        ("ISO_IR 101", "iso8859-2", "Dvořák^Jiří"),
        ("ISO_IR 109", "iso8859-3", "Ħamrun^Ġorġ"),
        ("ISO_IR 110", "iso8859-4", "Bērziņš^Jānis"),
        ("ISO_IR 144", "iso8859-5", "Иванов^Иван"),
        ("ISO_IR 127", "iso8859-6", "قباني^لنزار"),
        ("ISO_IR 126", "iso8859-7", "Διονυσιος"),
        ("ISO_IR 138", "iso8859-8", "שרון^דבורה"),
        ("ISO_IR 148", "iso8859-9", "Çavuşoğlu^İpek"),
        ("ISO_IR 166", "tis-620", "นามสกุล"),
        ("ISO_IR 13", "shift_jis", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
        ("ISO_IR 192", "utf-8", "Wang^XiaoDong=王^小東"),
        ("GB18030", "gb18030", "Wang^XiaoDong=王^小东"),
        ("ISO 2022 IR 100", "latin-1", "Müller^Jörg"),
        ("UTF-8", "utf-8", "Müller^Jörg"),
    ],
)
def test_names_are_kept_in_every_character_set(
    tmp_path: Path, named: str, codec: str, name: str
) -> None:
    def change(_: int, data: Dataset) -> None:
        store_bytes(data, name.encode(codec), named)

    seg, left_out = segmentation(tmp_path, change)
    assert str(seg.PatientName) == name
    assert seg.SpecificCharacterSet == "ISO_IR 192"
    assert not left_out


@pytest.mark.parametrize(
    ("named", "stored", "name"),
    [
        (
            ["", "ISO 2022 IR 87"],
            b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B",
            "Yamada^Tarou=山田^太郎",
        ),
        (
            ["", "ISO 2022 IR 149"],
            b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7",
            "Hong^Gildong=洪^吉洞",
        ),
        (
            ["", "ISO 2022 IR 58"],
            b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab",
            "Zhang^XiaoDong=张^小东",
        ),
    ],
)
def test_names_with_escape_sequences_are_kept(
    tmp_path: Path, named: list[str], stored: bytes, name: str
) -> None:
    seg, left_out = segmentation(tmp_path, lambda _, data: store_bytes(data, stored, named))
    assert str(seg.PatientName) == name
    assert not left_out


@pytest.mark.parametrize("named", ["ISO_IR 999", "nonsense", "ISO_IR 6"])
def test_names_in_an_unknown_character_set_are_left_out(tmp_path: Path, named: str) -> None:
    stored = "Müller^Jörg".encode("latin-1")
    seg, left_out = segmentation(tmp_path, lambda _, data: store_bytes(data, stored, named))
    if named != "ISO_IR 6":  # pydicom reads the default set as Latin 1.
        assert seg.PatientName == ""
        assert "PatientName" in left_out
    assert "ller" not in left_out


def store_bytes(data: Dataset, name: bytes, named: str | list[str]) -> None:
    """Store a name as a hospital's bytes."""
    data.SpecificCharacterSet = named
    del data.PatientName
    data[0x00100010] = pydicom.dataelem.RawDataElement(
        pydicom.tag.Tag(0x00100010), "PN", len(name), name + b" " * (len(name) % 2), 0, False, True
    )


@pytest.mark.parametrize(
    ("attribute", "stored", "kept"),
    [
        ("PatientSex", "m", "M"),
        ("PatientSex", "male", None),
        ("PatientBirthDate", "00000000", None),
        ("PatientBirthDate", "0", None),
        ("PatientBirthDate", "1970.02.03", "19700203"),
        ("PatientBirthDate", "19700231", None),
        ("StudyDate", "ANON", None),
        ("StudyTime", "ANON", None),
        ("StudyTime", "10:20:30", "102030"),
        ("StudyTime", "250000", None),
        ("StudyID", "a number that is too long", None),
        ("AccessionNumber", "1\\2", None),
        ("PatientAge", "forty", None),
        ("PatientWeight", "70.123456789012300", "70.1234567890123"),
    ],
)
def test_odd_values_are_corrected_or_left_out(
    tmp_path: Path, attribute: str, stored: str, kept: str | None
) -> None:
    def change(_: int, data: Dataset) -> None:
        tag = pydicom.datadict.tag_for_keyword(attribute)
        assert tag is not None
        kind = pydicom.datadict.dictionary_VR(tag)
        value = stored.encode()
        data[tag] = pydicom.dataelem.RawDataElement(
            pydicom.tag.Tag(tag), kind, len(value), value + b" " * (len(value) % 2), 0, False, True
        )

    seg, left_out = segmentation(tmp_path, change)
    found = seg.get(attribute)
    if kept is None:
        assert found in {None, ""}
        assert attribute in left_out
        assert stored not in left_out
    else:
        assert str(found) == kept
        assert not left_out


@pytest.mark.parametrize(
    ("stated", "body_part", "laterality", "left_out"),
    [
        ({}, None, None, ()),
        ({"BodyPartExamined": "ABDOMEN"}, "ABDOMEN", None, ()),
        ({"BodyPartExamined": "KNEE", "Laterality": "L"}, "KNEE", "L", ()),
        ({"BodyPartExamined": "KNEE", "ImageLaterality": "R"}, "KNEE", "R", ()),
        ({"BodyPartExamined": "CHEST", "ImageLaterality": "U"}, "CHEST", None, ()),
        ({"BodyPartExamined": "", "Laterality": ""}, None, None, ()),
        ({"BodyPartExamined": "Abdomen"}, None, None, ("BodyPartExamined",)),
        ({"BodyPartExamined": "CHEST/ABDOMEN"}, None, None, ("BodyPartExamined",)),
        ({"BodyPartExamined": "CHEST\\ABDOMEN"}, None, None, ("BodyPartExamined",)),
        ({"BodyPartExamined": "THORAX AND ABDOMEN"}, None, None, ("BodyPartExamined",)),
        ({"BodyPartExamined": "HIP", "Laterality": "B"}, "HIP", None, ()),
        ({"Laterality": "L", "ImageLaterality": "R"}, None, None, ()),
    ],
)
def test_the_part_of_the_body_is_kept_where_it_is_legal(
    tmp_path: Path,
    stated: dict[str, str],
    body_part: str | None,
    laterality: str | None,
    left_out: tuple[str, ...],
) -> None:
    def change(_: int, data: Dataset) -> None:
        for name, text in stated.items():
            tag, value = pydicom.tag.Tag(name), text.encode()
            data[tag] = pydicom.dataelem.RawDataElement(
                tag, "CS", len(value), value + b" " * (len(value) % 2), 0, False, True
            )

    seg, said = segmentation(tmp_path, change)
    assert seg.get("BodyPartExamined") == body_part
    assert "Laterality" not in seg  # of a series of frames it would be an error, to dciodvfy
    assert said == ("" if not left_out else f"{said.partition(': ')[0]}: {', '.join(left_out)}")
    origin = read_case(tmp_path / "a").origin
    assert (origin["body_part"], origin["laterality"]) == (body_part, laterality)


def test_slices_of_two_parts_of_the_body_name_none(tmp_path: Path) -> None:
    def change(k: int, data: Dataset) -> None:
        data.BodyPartExamined = "CHEST" if k < 3 else "ABDOMEN"

    seg, left_out = segmentation(tmp_path, change)
    assert "BodyPartExamined" not in seg
    assert left_out.endswith(": BodyPartExamined")


@pytest.mark.parametrize("kind", ["anatomy", "lesion"])
@pytest.mark.parametrize("modality", ["CT", "MRI"])
def test_codes_and_sides_of_all_classes_are_in_the_segments(
    tmp_path: Path, modality: str, kind: str
) -> None:
    keys = classes_of(modality, kind)
    prompts = PromptSet(
        tuple(Prompt(label, key.name, key, key.name) for label, key in enumerate(keys, 1))
    )
    write_series(tmp_path / "a", LABELS.astype(np.int16), AFFINE)
    write_segmentation(tmp_path / "out.dcm", read_case(tmp_path / "a"), LABELS, prompts=prompts)
    validate(tmp_path / "out.dcm")
    written = pydicom.dcmread(tmp_path / "out.dcm").SegmentSequence
    assert len(written) == len(keys)

    def code(sequence: Any) -> tuple[str, str] | None:
        return sequence and (sequence[0].CodingSchemeDesignator, sequence[0].CodeValue)

    for item, segment in zip(written, segments_of(prompts, LABELS), strict=True):
        kind, region = item.SegmentedPropertyTypeCodeSequence, item.get("AnatomicRegionSequence")
        assert code(kind) == (segment.type.scheme, segment.type.value)
        assert code(region) == (segment.region and (segment.region.scheme, segment.region.value))
        of_type = code(kind[0].get("SegmentedPropertyTypeModifierCodeSequence"))
        of_region = code(region and region[0].get("AnatomicRegionModifierSequence"))
        side = segment.side and (segment.side.scheme, segment.side.value)
        assert (of_region if region else of_type) == side, segment.name
        word = segment.name.split()[0].lower()
        if segment.type.scheme == "SCT" and word in {"left", "right"}:
            named = f"{segment.type.meaning} {segment.side and segment.side.meaning}".lower()
            assert word in named


@pytest.mark.parametrize("thickness", ["0", "", None, "-3"])
def test_a_missing_thickness_is_computed_from_positions(
    tmp_path: Path, thickness: str | None
) -> None:
    def change(_: int, data: Dataset) -> None:
        del data.SliceThickness
        if thickness is not None:
            data.SliceThickness = thickness

    seg, _ = segmentation(tmp_path, change)
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SliceThickness == 15


def test_files_without_sop_class_study_id_or_accession_are_referred_to(tmp_path: Path) -> None:
    def change(_: int, data: Dataset) -> None:
        for name in ("StudyID", "AccessionNumber", "PatientSex", "StudyTime"):
            delattr(data, name)

    seg, left_out = segmentation(tmp_path, change)
    assert not left_out
    referred = seg.ReferencedSeriesSequence[0]
    assert referred.SeriesInstanceUID == "1.2.3.4.1"
    assert {item.ReferencedSOPInstanceUID for item in referred.ReferencedInstanceSequence} == {
        f"1.2.3.4.1.{number}" for number in range(1, len(LABELS) + 1)
    }
    frames = seg.PerFrameFunctionalGroupsSequence
    assert len(frames) == 2
    for frame in frames:
        k = round((frame.PlanePositionSequence[0].ImagePositionPatient[2] + 50) / 15)
        referred = frame.DerivationImageSequence[0].SourceImageSequence[0]
        assert referred.ReferencedSOPInstanceUID == f"1.2.3.4.1.{k + 1}"


def test_classes_that_share_slices_refer_to_the_same_files(tmp_path: Path) -> None:
    """highdicom gives the segments of a slice one and the same item to refer by."""
    write_series(tmp_path / "a", LABELS.astype(np.int16), AFFINE)
    case = read_case(tmp_path / "a")
    labels = LABELS.copy()
    labels[1:4, 5:7, 3:7] = 2
    segments = segments_of({"1": "Liver in CT", "2": "Spleen in CT"}, labels)
    out = tmp_path / "out.dcm"
    write_seg(out, case, labels, segments, instances_dhw=None, model=None)
    validate(out)
    uids = {pydicom.dcmread(file).SOPInstanceUID for file in (tmp_path / "a").iterdir()}
    frames = pydicom.dcmread(out).PerFrameFunctionalGroupsSequence
    named = [
        (
            frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber,
            frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID,
        )
        for frame in frames
    ]
    assert [number for number, _ in named] == [1, 1, 2, 2, 2]
    assert {uid for _, uid in named} <= uids
    assert len({uid for _, uid in named}) == 3


@pytest.mark.parametrize("ending", [".dcm", ".labelmap.dcm"])
def test_an_empty_result_is_written_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ending: str
) -> None:
    write_series(tmp_path / "a", LABELS.astype(np.int16), AFFINE)
    path = tmp_path / f"out{ending}"
    write_segmentation(
        path, read_case(tmp_path / "a"), 0 * LABELS, prompts={"1": "Left lung in MR"}
    )
    assert caplog.messages == []
    assert not read_labels(path).labels_dhw.any()
    (segment,) = pydicom.dcmread(path).SegmentSequence
    assert segment.SegmentLabel == "Left lung in MR"


def test_a_notice_is_the_content_description(tmp_path: Path) -> None:
    notice = "trained on synthetic phantoms only; not for diagnosis, nor for anything like it"
    seg, _ = segmentation(tmp_path, lambda *_: None, notice)
    assert seg.ContentDescription == notice[:64]
    assert seg.ImageComments == notice


@pytest.mark.parametrize(("value", "code"), [("", "uid-missing"), ("no UID", "uid-invalid")])
def test_what_a_seg_cannot_refer_to_is_refused_before_the_work(
    tmp_path: Path, value: str, code: str
) -> None:
    def change(_: int, data: Dataset) -> None:
        tag = pydicom.tag.Tag(0x00200052)
        raw = value.encode()
        data[tag] = pydicom.dataelem.RawDataElement(tag, "UI", len(raw), raw, 0, False, True)

    write_odd(tmp_path / "a", change)
    with pytest.raises(CaseError) as caught:
        check_source(read_case(tmp_path / "a"), "out.dcm")
    assert caught.value.code == code


@pytest.mark.parametrize("classes", [3, 300])  # 8 and 16 bits
def test_a_label_map_comes_back_by_highdicom(tmp_path: Path, classes: int) -> None:
    labels = np.random.default_rng(0).integers(0, classes + 1, (5, 64, 80)).astype(np.uint16)
    labels[2] = 0
    write_series(tmp_path / "a", labels.astype(np.int16), AFFINE)
    case = read_case(tmp_path / "a")
    path = tmp_path / "out.labelmap.dcm"
    assert check_output(path, case) == ()
    names = {str(label): f"structure {label}" for label in range(1, classes + 1)}
    write_segmentation(path, case, labels, prompts=names)
    data = pydicom.dcmread(path)
    assert data.SegmentationType == "LABELMAP"
    assert data.file_meta.TransferSyntaxUID == JPEGLSLossless
    numbers = [each.SegmentNumber for each in data.SegmentSequence]
    assert numbers == list(range(1, classes + 1))  # none for the background
    seg = highdicom.seg.segread(path)
    assert seg.segment_numbers == numbers
    assert [each.segment_label for each in seg.SegmentSequence] == list(names.values())
    uids = [f"1.2.3.4.1.{number}" for number in range(1, len(labels) + 1)]
    found = seg.get_pixels_by_source_instance(
        uids, combine_segments=True, assert_missing_frames_are_empty=True
    )
    assert np.array_equal(found, labels)
    for frame in data.PerFrameFunctionalGroupsSequence:
        z = frame.PlanePositionSequence[0].ImagePositionPatient[2]
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert source.ReferencedSOPInstanceUID == uids[round((z + 50) / 15)]


def test_a_label_map_has_the_formats_name_or_its_own_ending(tmp_path: Path) -> None:
    write_series(tmp_path / "a", LABELS.astype(np.int16), AFFINE)
    case = read_case(tmp_path / "a")
    for name, named, kind in (
        ("a.dcm", None, "BINARY"),
        ("b.dcm", "dicom-labelmap-seg", "LABELMAP"),
        ("c.labelmap.dcm", None, "LABELMAP"),
    ):
        write_segmentation(tmp_path / name, case, LABELS, format=named)
        assert pydicom.dcmread(tmp_path / name).SegmentationType == kind


def test_what_jpeg_ls_cannot_make_smaller_is_stored_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("Encoding error: The destination buffer is too small")

    big = np.zeros((5, 64, 80), np.uint8)
    big[2] = 1
    write_series(tmp_path / "a", big.astype(np.int16), AFFINE)
    case = read_case(tmp_path / "a")
    monkeypatch.setattr("jpeg_ls.encode_pixel_data", full)
    write_segmentation(tmp_path / "a.labelmap.dcm", case, big)
    data = pydicom.dcmread(tmp_path / "a.labelmap.dcm")
    assert data.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert np.array_equal(data.pixel_array, big[2])


@pytest.mark.parametrize("columns", [9, 16])
def test_bits_follow_each_other_from_frame_to_frame(columns: int, tmp_path: Path) -> None:
    """As PS3.5, 8.1.1 has it, also where a frame begins within a byte; a note says so there."""
    labels = np.random.default_rng(1).integers(0, 2, (5, 7, columns)).astype(np.uint8)
    write_series(tmp_path / "a", labels.astype(np.int16), AFFINE)
    case = read_case(tmp_path / "a")
    codes = [note.code for note in check_source(case, "out.dcm")]
    assert codes == (["seg-packed-within-bytes"] if columns % 8 else [])
    assert check_source(case, "out.labelmap.dcm", "labelmap") == ()
    segments = segments_of({"1": "Liver in CT"}, labels)
    labels_dhw = case.volume.source.to_canonical(labels)
    write_seg(tmp_path / "out.dcm", case, labels_dhw, segments, instances_dhw=None, model=None)
    data = pydicom.dcmread(tmp_path / "out.dcm")
    bits = np.unpackbits(np.frombuffer(data.PixelData, np.uint8), bitorder="little")
    frames = bits[: labels.size].reshape(labels.shape)
    assert len(data.PixelData) == -(-labels.size // 16) * 2
    heights = [
        float(frame.PlanePositionSequence[0].ImagePositionPatient[2])
        for frame in data.PerFrameFunctionalGroupsSequence
    ]
    order = np.argsort(heights)
    np.testing.assert_array_equal(frames[order], labels)
    validate(tmp_path / "out.dcm")


def test_dcmqi_reads_the_labels_where_they_are(tmp_path: Path) -> None:
    """Another maker's reader finds each segment's voxels, name and place, of an oblique scan."""
    program = shutil.which("segimage2itkimage") or shutil.which(
        "segimage2itkimage", path=str(Path(sys.executable).parent)
    )
    if program is None:
        pytest.skip("dcmqi isn't installed (pip install dcmqi): no other reader has read a SEG")
    labels = LABELS.copy()
    labels[2:4, 5:8, 1:3] = 2
    c, s = np.cos(0.3), np.sin(0.3)
    affine = np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1]]) @ AFFINE
    write_series(tmp_path / "a", labels.astype(np.int16), affine)
    case = read_case(tmp_path / "a")
    canonical = case.volume.image_dhw.astype(np.uint8)
    prompts = {"1": "Liver in CT", "2": "Spleen in CT"}
    write_segmentation(tmp_path / "out.dcm", case, canonical, prompts=prompts)
    options = ("--outputDirectory", str(tmp_path), "--outputType", "nii", "--mergeSegments")
    command = [program, "--inputDICOM", str(tmp_path / "out.dcm"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-300:]
    (merged,) = tmp_path.glob("*.nii.gz")
    expected = grid_of(case.volume)
    found = fill_left_out(replace(read_labels(merged), leaves_out_empty=True), expected)
    assert same_grid(expected, grid_of(found)) is None
    np.testing.assert_array_equal(found.labels_dhw, canonical)
    (described,) = tmp_path.glob("*meta.json")
    segments = json.loads(described.read_text(encoding="utf-8"))["segmentAttributes"]
    flat = [each for group in segments for each in group]
    assert {str(each["labelID"]): each["SegmentLabel"] for each in flat} == prompts
