"""DICOM series that hold more than one image, copies or other patients, and unusual files."""

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    RTStructureSetStorage,
)

from medals_rt.common.errors import CaseError
from medals_rt.io.case import Case
from medals_rt.io.registry import read_case
from tests.dicom import write_series
from tests.errors import raises

RNG = np.random.default_rng(0)
HU = RNG.integers(-1000, 2000, (6, 8, 10)).astype(np.int16)
UPRIGHT = np.diag([0.7, 0.8, 2.5, 1.0])
HALF_A_STEP_UP = UPRIGHT.copy()
HALF_A_STEP_UP[2, 3] = 1.25


def write_pair(
    folder: Path, change: Callable[[int, Dataset], Any], affine: np.ndarray = UPRIGHT
) -> None:
    """Write HU and, changed, HU + 7 into one series."""

    def second(k: int, data: Dataset) -> None:
        data.SOPInstanceUID = f"1.2.9.{k}"
        change(k, data)

    write_series(folder / "a", HU, UPRIGHT)
    write_series(folder / "b", HU + 7, affine, change=second)


def code_of(folder: Path, select: Sequence[str] = (), series: str | None = None) -> str:
    with pytest.raises(CaseError) as caught:
        read_case(folder, select=select, series=series)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert "Phantom" not in message
    return caught.value.code


def codes(case: Case) -> set[str]:
    return {note.code for note in case.notes}


def setting(**values: Any) -> Callable[[int, Dataset], None]:
    def change(_: int, data: Dataset) -> None:
        for name, value in values.items():
            setattr(data, name, value)

    return change


@pytest.mark.parametrize(
    ("values", "select"),
    [
        ({"AcquisitionNumber": 2}, "acquisition=2"),
        ({"EchoNumbers": 2}, "ECHO=2"),
        ({"EchoTime": "4.6"}, "EchoTime=4.60"),
        ({"TemporalPositionIdentifier": 2}, "PHASE=2"),
        ({"TriggerTime": "350"}, "trigger-time=350"),
        ({"DiffusionBValue": 800.0}, "B_VALUE=800"),
        ({"ImageType": ["DERIVED", "PRIMARY", "WATER"]}, "IMAGE_TYPE=water"),
    ],
)
def test_images_of_one_place_are_told_apart_and_chosen(
    tmp_path: Path, values: dict[str, Any], select: str
) -> None:
    first = {"AcquisitionNumber": 1, "EchoNumbers": 1, "EchoTime": "2.3", "TriggerTime": "0"}
    first |= {"TemporalPositionIdentifier": 1, "DiffusionBValue": 0.0}
    write_series(tmp_path / "a", HU, UPRIGHT, change=setting(**first))

    def second(k: int, data: Dataset) -> None:
        setting(**(first | values))(k, data)
        data.SOPInstanceUID = f"1.2.9.{k}"

    write_series(tmp_path / "b", HU + 7, UPRIGHT, change=second)
    assert code_of(tmp_path) == "several-images"
    case = read_case(tmp_path, select=[select])
    assert np.array_equal(case.volume.image_dhw, HU + 7)
    assert "selected" in json.loads(json.dumps(case.origin))


def test_images_of_which_some_lack_the_attribute_are_told_apart(tmp_path: Path) -> None:
    write_series(tmp_path / "a", HU, UPRIGHT)

    def second(k: int, data: Dataset) -> None:
        setting(AcquisitionNumber=2, SOPInstanceUID=f"1.2.9.{k}")(k, data)

    write_series(tmp_path / "b", HU + 7, UPRIGHT, change=second)
    with raises(CaseError, "several-images", "none (6 images)", "--select ACQUISITION=2"):
        read_case(tmp_path)
    assert np.array_equal(read_case(tmp_path, select=["ACQUISITION=2"]).volume.image_dhw, HU + 7)


def test_acquisitions_half_a_step_apart_are_refused_unless_taken_together(tmp_path: Path) -> None:
    write_series(tmp_path / "a", HU, UPRIGHT, change=setting(AcquisitionNumber=1))
    write_series(
        tmp_path / "b",
        HU,
        HALF_A_STEP_UP,
        change=lambda k, data: setting(AcquisitionNumber=2, SOPInstanceUID=f"1.2.9.{k}")(k, data),
    )
    assert code_of(tmp_path) == "several-images"
    assert code_of(tmp_path, ["ACQUISITION=3"]) == "selection-empty"
    assert code_of(tmp_path, ["ACQUISITION"]) == "selection-malformed"
    assert read_case(tmp_path, select=["ACQUISITION=1"]).volume.shape_dhw[0] == len(HU)
    both = read_case(tmp_path, select=["ACQUISITION=1,2"])
    assert both.volume.shape_dhw[0] == 2 * len(HU)
    assert "images-interleaved" in codes(both)


def test_slabs_that_follow_each_other_are_one_image(tmp_path: Path) -> None:
    def change(k: int, data: Dataset) -> None:
        data.AcquisitionNumber = 1 + k // 3

    write_series(tmp_path / "a", HU, UPRIGHT, change=change)
    assert read_case(tmp_path / "a").volume.shape_dhw == HU.shape


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"PatientID": "other"}, "patients-mixed"),
        ({"PatientName": "Other^One"}, "patients-mixed"),
        ({"StudyInstanceUID": "1.2.3.99"}, "studies-mixed"),
        ({"FrameOfReferenceUID": "1.2.3.98"}, "frames-of-reference-mixed"),
    ],
)
def test_a_volume_is_of_one_patient_study_and_frame_of_reference(
    tmp_path: Path, values: dict[str, str], code: str
) -> None:
    above = UPRIGHT.copy()
    above[2, 3] = 2.5 * len(HU)
    write_pair(tmp_path, setting(**values), above)
    assert code_of(tmp_path) == code


def test_copies_are_dropped_and_contradictions_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "a", HU, UPRIGHT)
    copied = tmp_path / "a" / "IM0002"
    (tmp_path / "a" / "copy").write_bytes(copied.read_bytes())
    case = read_case(tmp_path / "a")
    assert np.array_equal(case.volume.image_dhw, HU)
    assert "copies-dropped" in codes(case)
    data = pydicom.dcmread(copied)
    data.PixelData = bytes(len(data.PixelData))
    data.save_as(tmp_path / "a" / "copy")
    assert code_of(tmp_path / "a") == "same-uid-different-content"


def test_one_frame_a_file_is_read_as_single_slices(tmp_path: Path) -> None:
    write_series(tmp_path / "a", HU, UPRIGHT, change=setting(NumberOfFrames=1))
    assert np.array_equal(read_case(tmp_path / "a").volume.image_dhw, HU)


def test_enhanced_files_of_one_frame_make_one_volume(tmp_path: Path) -> None:
    def enhance(_: int, data: Dataset) -> None:
        shared, frame = Dataset(), Dataset()
        for groups, sequence, names in (
            (frame, "PlanePositionSequence", ("ImagePositionPatient",)),
            (shared, "PlaneOrientationSequence", ("ImageOrientationPatient",)),
            (shared, "PixelMeasuresSequence", ("PixelSpacing", "SliceThickness")),
            (shared, "PixelValueTransformationSequence", ("RescaleSlope", "RescaleIntercept")),
        ):
            item = Dataset()
            for name in names:
                setattr(item, name, data[name].value)
                delattr(data, name)
            setattr(groups, sequence, [item])
        data.SharedFunctionalGroupsSequence = [shared]
        data.PerFrameFunctionalGroupsSequence = [frame]
        data.SOPClassUID, data.NumberOfFrames = EnhancedMRImageStorage, 1

    write_series(tmp_path / "a", HU, UPRIGHT, change=enhance)
    assert np.array_equal(read_case(tmp_path / "a").volume.image_dhw, HU)


def test_files_without_preamble_are_read(tmp_path: Path) -> None:
    for number, data in enumerate(write_series(tmp_path / "a", HU, UPRIGHT)):
        del data.file_meta
        data.save_as(
            tmp_path / f"IM{number}",
            implicit_vr=number % 2 == 0,
            little_endian=True,
            enforce_file_format=False,
        )
    for path in (tmp_path / "a").iterdir():
        path.unlink()
    (tmp_path / "text").write_text("no DICOM file at all " * 100, encoding="utf-8")
    assert np.array_equal(read_case(tmp_path).volume.image_dhw, HU)


def test_deflated_files_are_read_but_not_without_bounds(tmp_path: Path) -> None:
    def deflate(_: int, data: Dataset) -> None:
        data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    write_series(tmp_path / "a", HU, UPRIGHT, change=deflate)
    assert np.array_equal(read_case(tmp_path / "a").volume.image_dhw, HU)
    path = tmp_path / "a" / "IM0000"
    whole = path.read_bytes()
    at = 132 + 12 + int.from_bytes(whole[140:144], "little")
    plain = zlib.decompress(whole[at:], -zlib.MAX_WBITS) + bytes(2**27)
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    path.write_bytes(whole[:at] + packer.compress(plain) + packer.flush())
    assert code_of(tmp_path / "a") == "file-too-large"


def test_orientations_may_vary_by_a_thousandth(tmp_path: Path) -> None:
    def turn(k: int, data: Dataset) -> None:
        angle = 2e-4 * (k % 2)
        data.ImageOrientationPatient = [1, f"{angle:.6f}", 0, f"{-angle:.6f}", 1, 0]

    write_series(tmp_path / "a", HU, UPRIGHT, change=turn)
    case = read_case(tmp_path / "a")
    assert case.volume.shape_dhw == HU.shape
    assert "orientation-varies" in codes(case)


def test_a_folder_of_structures_alone_has_a_code_of_its_own(tmp_path: Path) -> None:
    data = write_series(tmp_path / "a", HU, UPRIGHT)[0]
    for path in (tmp_path / "a").iterdir():
        path.unlink()
    for name in ("Rows", "Columns", "PixelData"):
        delattr(data, name)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    data.save_as(tmp_path / "a" / "structures", enforce_file_format=True)
    assert code_of(tmp_path / "a") == "no-images"


def test_jpeg_of_12_bits_names_a_decoder_that_reads_it(tmp_path: Path) -> None:
    def change(_: int, data: Dataset) -> None:
        data.PixelData = pydicom.encaps.encapsulate([b"nothing that any decoder knows.."])
        data["PixelData"].VR = "OB"
        data.file_meta.TransferSyntaxUID = JPEGExtended12Bit
        data.BitsStored, data.HighBit = 12, 11

    write_series(tmp_path / "a", HU, UPRIGHT, change=change)
    decoder = pydicom.pixels.decoders.base.get_decoder(JPEGExtended12Bit)
    if set(decoder.available_plugins) - {"pillow"}:
        pytest.skip("a decoder of 12 bits is installed")
    with raises(CaseError, "decoder-missing", "pylibjpeg-libjpeg") as caught:
        read_case(tmp_path / "a")
    assert ImplicitVRLittleEndian not in str(caught.value)
