"""DICOM series in: geometry, values, choices, and everything that is refused."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset
from pydicom.uid import (
    MPEG2MPML,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    SegmentationStorage,
)

from medals_rt.common.errors import CaseError, InputError
from medals_rt.io.registry import read_case, write_segmentation
from tests.dicom import write_series
from tests.errors import raises
from tests.folders import close_folder
from tests.io.test_formats import ORIENTATIONS, affine_of, sphere_ijk

RIGHT_HANDED = [
    (order, signs)
    for order, signs in ORIENTATIONS
    if np.linalg.det(affine_of(order, signs)[:3, :3]) > 0
]
RNG = np.random.default_rng(0)
HU = RNG.integers(-1000, 2000, (6, 8, 10)).astype(np.int16)
UPRIGHT = np.diag([0.7, 0.8, 2.5, 1.0])
UPRIGHT[:3, 3] = (-20.0, -30.0, 100.0)


def read_by_itk(folder: Path) -> SimpleITK.Image:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"study/{file.name}")
    return path


@pytest.mark.parametrize(("order", "signs"), RIGHT_HANDED)
def test_a_sphere_lies_where_simpleitk_sees_it(tmp_path: Path, order: Any, signs: Any) -> None:
    affine = affine_of(order, signs)
    ball = sphere_ijk(affine).transpose()
    write_series(tmp_path / "series", ball, affine)
    case = read_case(tmp_path / "series")
    canonical = SimpleITK.DICOMOrient(read_by_itk(tmp_path / "series"), "LPS")
    assert np.array_equal(case.volume.image_dhw, SimpleITK.GetArrayViewFromImage(canonical))
    assert case.volume.spacing_dhw_mm == pytest.approx(canonical.GetSpacing()[::-1])
    write_segmentation(tmp_path / "out.nii.gz", case, case.volume.image_dhw)
    written = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(tmp_path / "out.nii.gz")), "LPS")
    assert np.array_equal(SimpleITK.GetArrayViewFromImage(written), case.volume.image_dhw)
    assert written.GetOrigin() == pytest.approx(canonical.GetOrigin(), abs=1e-4)


def test_oblique_series_keep_their_affine(tmp_path: Path) -> None:
    rotation, _ = np.linalg.qr(RNG.standard_normal((3, 3)))
    rotation[:, 2] = np.cross(rotation[:, 0], rotation[:, 1])
    affine = np.eye(4)
    affine[:3, :3] = rotation * (0.7, 0.8, 3.0)
    write_series(tmp_path / "series", HU, affine)
    case = read_case(tmp_path / "series")
    np.testing.assert_allclose(case.volume.source.affine_lps, affine, atol=1e-6)
    assert np.array_equal(case.volume.restore(case.volume.image_dhw), HU)


def test_values_are_scaled_slice_by_slice(tmp_path: Path) -> None:
    def change(k: int, data: Dataset) -> None:
        data.RescaleSlope, data.RescaleIntercept = f"{0.5 + k}", f"{-100 * k}"

    write_series(tmp_path / "a", HU, UPRIGHT, change=change)
    image = read_case(tmp_path / "a").volume.image_dhw
    k = np.arange(len(HU))[:, None, None]
    np.testing.assert_allclose(image, (HU + 1024.0) * (0.5 + k) - 100 * k, rtol=1e-6)
    assert image.dtype == np.float32


def test_values_beyond_16_bits_are_kept(tmp_path: Path) -> None:
    def change(_: int, data: Dataset) -> None:
        data.RescaleIntercept = "40000"

    write_series(tmp_path / "a", HU, UPRIGHT, change=change)
    assert np.array_equal(read_case(tmp_path / "a").volume.image_dhw, HU.astype(np.int32) + 41024)


def test_what_is_not_an_image_is_passed_over_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er"
    written = write_series(folder, HU, UPRIGHT)
    (tmp_path / "notes.txt").write_text("nothing", encoding="utf-8")
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    report = written[0]
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = SegmentationStorage
    report.SOPInstanceUID = "1.2.9"
    report.SeriesInstanceUID = "1.2.99"
    report.save_as(tmp_path / "seg.dcm", enforce_file_format=True)
    case = read_case(tmp_path)
    assert case.volume.name == tmp_path.name
    assert case.modality == "CT"
    assert "passed over 3 files" in case.notes[0].text
    assert "1 DICOM file without" in case.notes[0].text


@pytest.mark.parametrize(("name", "content"), [("last", b""), ("last.dcm", b"cut")])
def test_what_may_have_been_a_slice_is_warned_of(tmp_path: Path, name: str, content: bytes) -> None:
    write_series(tmp_path / "a", HU, UPRIGHT, skip=(5,))
    (tmp_path / "a" / name).write_bytes(content)
    for harmless in ("DICOMDIR", "_SUCCESS", "._IM0000.dcm"):
        (tmp_path / "a" / harmless).write_bytes(b"")
    (note,) = (each for each in read_case(tmp_path / "a").notes if each.code == "files-passed-over")
    assert note.severity == "warning"
    assert "4 files" in note.text
    (tmp_path / "a" / name).unlink()
    (less,) = (each for each in read_case(tmp_path / "a").notes if each.code == "files-passed-over")
    assert less.severity == "info"
    assert name in note.text


def test_of_many_series_the_first_few_are_named(tmp_path: Path) -> None:
    for seed in range(14):
        write_series(tmp_path / str(seed), HU[:2], UPRIGHT, seed=seed)
    with raises(CaseError, "several-series", "14 series", "; and 4 more") as caught:
        read_case(tmp_path)
    assert str(caught.value).count("[") == 10


def test_one_of_several_series_is_chosen(tmp_path: Path) -> None:
    def localizer(_: int, data: Dataset) -> None:
        data.SeriesNumber, data.SeriesDescription = 1, "scout\x1b[31m"

    write_series(tmp_path / "a", HU, UPRIGHT, seed=0)
    write_series(tmp_path / "b", HU[:3] + 7, UPRIGHT, seed=1, change=localizer)
    with raises(
        CaseError, "several-series", "SeriesNumber 1: CT 'scout", "3 images", "1.2.3"
    ) as caught:
        read_case(tmp_path)
    assert str(caught.value).isprintable()
    for wanted in ("1", "1.2.3.4.2"):
        assert read_case(tmp_path, series=wanted).volume.shape_dhw[0] == 3
    assert read_case(tmp_path, series="3").volume.shape_dhw[0] == len(HU)
    assert read_case(tmp_path, series="3").origin == {
        "series_instance_uid": "1.2.3.4.1",
        "series_number": 3,
        "series_description": "made up",
        "modality": "CT",
        "body_part": None,
        "laterality": None,
        "images": len(HU),
        "selected": {},
    }
    for wrong, code in (
        ("1.2.3", "series-ambiguous"),
        ("2", "series-not-found"),
        ("9.9", "series-not-found"),
    ):
        with raises(CaseError, code):
            read_case(tmp_path, series=wrong)
    np.savez(tmp_path / "a.npz", imgs=HU, spacing=(1.0, 1.0, 1.0))
    with raises(CaseError, "no-series"):
        read_case(tmp_path / "a.npz", series="1")


def test_zips_are_read_without_unpacking(tmp_path: Path) -> None:
    write_series(tmp_path / "a", HU, UPRIGHT)
    path = zipped(tmp_path / "a", tmp_path / "scan.zip")
    before = set(tmp_path.rglob("*"))
    case = read_case(path)
    assert np.array_equal(case.volume.image_dhw, HU)
    assert case.volume.name == "scan"
    assert set(tmp_path.rglob("*")) == before


def escape(archive: zipfile.ZipFile) -> None:
    archive.writestr("../../outside.dcm", b"x")


def grow(archive: zipfile.ZipFile) -> None:
    archive.writestr("zeros.dcm", bytes(130 * 2**20))


def lie(archive: zipfile.ZipFile) -> None:
    archive.writestr("small.dcm", b"small")
    archive.getinfo("small.dcm").file_size = 2**29


@pytest.mark.parametrize(
    ("fill", "code"),
    [(escape, "path-leaves-zip"), (grow, "zip-too-large"), (lie, "size-implausible")],
)
def test_hostile_zips_are_refused(
    tmp_path: Path, fill: Callable[[zipfile.ZipFile], None], code: str
) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        fill(archive)
    with raises(CaseError, code):
        read_case(tmp_path / "a.zip", max_voxels=10_000)


def test_damaged_zips_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"no zip")
    with raises(CaseError, "file-damaged"):
        read_case(tmp_path / "a.zip")


def test_enhanced_multi_frame_files_are_read(tmp_path: Path) -> None:
    affine = affine_of((0, 2, 1), (1.0, -1.0, 1.0))
    ball = sphere_ijk(affine).transpose()
    slices = write_series(tmp_path / "a", ball, affine)
    write_enhanced(tmp_path / "enhanced", slices)
    case = read_case(tmp_path / "enhanced")
    single = read_case(tmp_path / "a")
    assert np.array_equal(case.volume.image_dhw, single.volume.image_dhw)
    np.testing.assert_allclose(case.volume.source.affine_lps, affine, atol=1e-6)


def test_a_rescale_of_all_frames_may_stand_at_the_top(tmp_path: Path) -> None:
    """As in multi-frame files that have no group for it."""
    write_enhanced(tmp_path / "e", write_series(tmp_path / "a", HU, UPRIGHT))
    data = pydicom.dcmread(tmp_path / "e")
    for group in (*data.SharedFunctionalGroupsSequence, *data.PerFrameFunctionalGroupsSequence):
        if "PixelValueTransformationSequence" in group:
            del group.PixelValueTransformationSequence
    data.RescaleSlope, data.RescaleIntercept = "2", "-1024"
    data.save_as(tmp_path / "e")
    stored = read_case(tmp_path / "a").volume.image_dhw + 1024
    found = read_case(tmp_path / "e").volume.image_dhw
    np.testing.assert_array_equal(found, 2 * stored.astype(np.int64) - 1024)


def write_enhanced(path: Path, slices: list[Dataset]) -> None:
    """Write slices as one enhanced CT file, its frames in an order of their own."""
    order = np.random.default_rng(1).permutation(len(slices))
    enhanced = highdicom.legacy.LegacyConvertedEnhancedCTImage(
        [slices[index] for index in order], "1.2.3.4.77", 5, "1.2.3.4.78", 1
    )
    enhanced.save_as(path)


def put(name: str, value: Any, only: int | None = None) -> Callable[[int, Dataset], None]:
    def change(k: int, data: Dataset) -> None:
        if only in {None, k}:
            setattr(data, name, value)

    return change


def drop(name: str) -> Callable[[int, Dataset], None]:
    return lambda _, data: delattr(data, name)


def tilt(k: int, data: Dataset) -> None:
    data.ImagePositionPatient = [-20, -30 + 0.4 * k, 100 + 2.5 * k]


def uneven(k: int, data: Dataset) -> None:
    data.ImagePositionPatient = [-20, -30, 100 + (2.5 if k < 3 else 3.0) * k]


def table(_: int, data: Dataset) -> None:
    data.ModalityLUTSequence = [Dataset()]


def other_syntax(uid: str) -> Callable[[int, Dataset], None]:
    def change(_: int, data: Dataset) -> None:
        data.PixelData = pydicom.encaps.encapsulate([b"nothing that any decoder knows.."])
        data["PixelData"].VR = "OB"
        data.file_meta.TransferSyntaxUID = pydicom.uid.UID(uid)

    return change


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (tilt, ("gantry-tilt", "9.1 degrees")),
        (uneven, ("spacing-uneven",)),
        (put("ImagePositionPatient", [-20, -30, 100], only=1), ("slices-at-one-place",)),
        (
            put("ImageOrientationPatient", [1, 0, 0, 0, 0, -1], only=2),
            ("slices-mixed", "orientations"),
        ),
        (put("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), ("orientation-invalid",)),
        (put("ImageOrientationPatient", [1, 0, 0]), ("place-unknown", "ImageOrientationPatient")),
        (put("PixelSpacing", [0.9, 0.8], only=2), ("slices-mixed", "pixel spacings")),
        (put("PixelSpacing", [0, 0]), ("spacing-not-positive",)),
        (put("Rows", 7, only=2), ("slices-mixed", "sizes")),
        (put("Rows", 60000), ("file-damaged",)),
        (put("PhotometricInterpretation", "RGB"), ("not-gray",)),
        (put("PhotometricInterpretation", "MONOCHROME1"), ("not-gray",)),
        (put("SamplesPerPixel", 3), ("not-gray", "3 samples")),
        (put("RescaleSlope", "0"), ("rescale-invalid",)),
        (put("NumberOfFrames", 2), ("place-unknown",)),
        (table, ("value-table",)),
        (put("HighBit", 14), ("bits-unusual",)),
        (drop("ImagePositionPatient"), ("place-unknown", "ImagePositionPatient")),
        (drop("PixelSpacing"), ("place-unknown", "PixelSpacing")),
        (drop("PixelData"), ("pixels-missing",)),
        (drop("SeriesInstanceUID"), ("series-uid-missing",)),
        (drop("BitsStored"), ("file-damaged", "Bits Stored")),
        (other_syntax(JPEGLosslessSV1), ("decoder-missing", "pylibjpeg")),
        (other_syntax(MPEG2MPML), ("transfer-syntax-unknown", "MPEG2")),
        (other_syntax(RLELossless), ("file-damaged",)),
        (other_syntax(JPEGLSLossless), ("file-damaged",)),
    ],
)
def test_what_is_no_regular_gray_grid_is_refused(
    tmp_path: Path, change: Callable[[int, Dataset], None], error: tuple[str, ...]
) -> None:
    write_series(tmp_path / "a", HU, UPRIGHT, change=change)
    with raises(CaseError, *error):
        read_case(tmp_path / "a")


def test_missing_slices_are_counted(tmp_path: Path) -> None:
    write_series(tmp_path / "a", HU, UPRIGHT, skip=(2, 3))
    with raises(CaseError, "slices-missing", "2 slice", "7.500 mm", "2.500 mm"):
        read_case(tmp_path / "a")


def test_one_slice_is_no_volume(tmp_path: Path) -> None:
    write_series(tmp_path / "a", HU, UPRIGHT)
    with raises(CaseError, "one-slice"):
        read_case(tmp_path / "a" / "IM0000")


@pytest.mark.parametrize(("length", "code"), [(500, "file-cut-off"), (900, "file-damaged")])
def test_a_file_that_was_cut_off_is_not_passed_over(tmp_path: Path, length: int, code: str) -> None:
    write_series(tmp_path / "a", HU, UPRIGHT)
    path = tmp_path / "a" / "IM0005"
    path.write_bytes(path.read_bytes()[:length])
    with raises(CaseError, code, "IM0005"):
        read_case(tmp_path / "a")


def test_a_file_much_larger_than_its_pixels_is_not_read(tmp_path: Path) -> None:
    write_series(tmp_path / "a", HU, UPRIGHT)
    with (tmp_path / "a" / "IM0005").open("ab") as file:
        file.truncate(200 * 2**20)
    with raises(CaseError, "file-too-large"):
        read_case(tmp_path / "a")


def test_headers_of_endless_elements_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medals_rt.io.dicom.files.MAX_READS", 2000)
    write_series(tmp_path / "few", HU, UPRIGHT)
    assert read_case(tmp_path / "few").volume.shape_dhw == HU.shape
    write_series(tmp_path / "many", HU, UPRIGHT)
    path = tmp_path / "many" / "IM0000"
    data = path.read_bytes()
    at = data.index(b"\x08\x00\x16\x00UI")
    path.write_bytes(data[:at] + b"\x08\x00\x15\x00LO\x00\x00" * 2000 + data[at:])
    with raises(CaseError, "too-many-elements"):
        read_case(tmp_path / "many")


def test_a_folder_without_images_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    with raises(CaseError, "no-dicom"):
        read_case(tmp_path)


def test_sizes_are_checked_before_pixels_are_read(tmp_path: Path) -> None:
    write_series(tmp_path / "a", HU, UPRIGHT, change=drop("PixelData"))
    with raises(CaseError, "too-many-voxels", 480, 479):
        read_case(tmp_path / "a", max_voxels=479)


def test_a_ct_without_rescale_is_noted(tmp_path: Path) -> None:
    write_series(tmp_path / "a", HU, UPRIGHT, change=drop("RescaleSlope"))
    assert any("taken as Hounsfield" in note.text for note in read_case(tmp_path / "a").notes)


def test_compressed_series_are_read_where_a_decoder_is_there(tmp_path: Path) -> None:
    def change(_: int, data: Dataset) -> None:
        data.compress(RLELossless, generate_instance_uid=False)

    write_series(tmp_path / "a", HU, UPRIGHT, change=change)
    assert np.array_equal(read_case(tmp_path / "a").volume.image_dhw, HU)


@pytest.mark.parametrize("multi_frame", [False, True])
def test_no_mutation_does_anything_but_fail_cleanly(tmp_path: Path, multi_frame: bool) -> None:
    slices = write_series(tmp_path / "a", HU, UPRIGHT)
    if multi_frame:
        write_enhanced(tmp_path / "enhanced", slices)
    source = tmp_path / "enhanced" if multi_frame else tmp_path / "a" / "IM0002"
    target = tmp_path / "mutated" if multi_frame else source
    valid = source.read_bytes()
    rng = np.random.default_rng(11)
    for _ in range(60):
        data = bytearray(valid)
        for _ in range(rng.integers(1, 5)):
            data[rng.integers(132, min(len(data), 4000))] = rng.integers(256)
        if rng.random() < 0.2:
            data = data[: rng.integers(132, len(data))]
        target.write_bytes(data)
        try:
            case = read_case(target if multi_frame else target.parent, max_voxels=100_000)
        except InputError:
            continue
        assert case.volume.image_dhw.ndim == 3


def test_nested_sequences_cannot_exhaust_the_stack(tmp_path: Path) -> None:
    write_series(tmp_path / "a", HU, UPRIGHT)
    path = tmp_path / "a" / "IM0000"
    data = path.read_bytes()
    # Sequences of undefined length, each in an item of the one before.
    opening = b"\x08\x00\x15\x11SQ\x00\x00\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    at = data.index(b"\x08\x00\x16\x00UI")
    path.write_bytes(data[:at] + opening * 20_000 + data[at:])
    with raises(CaseError, "file-damaged"):
        read_case(tmp_path / "a")


def test_orders_of_files_do_not_matter(tmp_path: Path) -> None:
    images = []
    for seed in (0, 3):
        write_series(tmp_path / str(seed), HU, UPRIGHT, seed=seed)
        images.append(read_case(tmp_path / str(seed)).volume.image_dhw)
    assert np.array_equal(images[0], images[1])


def codes_of(case: Any) -> list[str]:
    return [note.code for note in case.notes]


def with_pixels(stored: np.ndarray, **attributes: Any) -> Callable[[int, Dataset], None]:
    """Change that stores a slice's values `(k, j, i)` as they are, scaled by 1 and 0."""

    def change(k: int, data: Dataset) -> None:
        data.RescaleSlope, data.RescaleIntercept = "1", "0"
        data.PixelData = stored[k].astype("<u2").tobytes()
        for name, value in attributes.items():
            setattr(data, name, value)

    return change


def test_padding_that_is_brighter_than_the_image_is_made_dark(tmp_path: Path) -> None:
    stored = RNG.integers(10, 900, HU.shape)
    stored[:, :2], stored[3] = 65535, 65535
    write_series(tmp_path / "a", HU, UPRIGHT, change=with_pixels(stored, PixelPaddingValue=65535))
    case = read_case(tmp_path / "a")
    expected = np.where(stored == 65535, stored.min(), stored)
    np.testing.assert_array_equal(case.volume.image_dhw, expected)
    assert "padding-blanked" in codes_of(case)


@pytest.mark.parametrize(
    ("stored_as", "written", "bits"), [(63536, -2000, 16), (63536, 63536, 16), (4095, 65535, 12)]
)
def test_padding_is_known_by_its_bits(
    tmp_path: Path, stored_as: int, written: int, bits: int
) -> None:
    stored = np.full(HU.shape, 1000, np.uint16)
    stored[:, 2:] += np.arange(stored[:, 2:].size, dtype=np.uint16).reshape(stored[:, 2:].shape) % 9
    stored[:, :2] = stored_as

    def change(k: int, data: Dataset) -> None:
        data.BitsStored, data.HighBit, data.PixelRepresentation = bits, bits - 1, 0
        data.PixelData = stored[k].tobytes()
        data.add_new("PixelPaddingValue", "SS" if written < 0 else "US", written)

    write_series(tmp_path / "a", HU, UPRIGHT, change=change)
    case = read_case(tmp_path / "a")
    assert "padding-blanked" in codes_of(case)
    assert case.volume.image_dhw.max() < 1000


@pytest.mark.parametrize(("padding", "note"), [(0, False), (300, True)])
def test_other_padding_stays(tmp_path: Path, padding: int, note: bool) -> None:
    """Dark padding is harmless; one within the image may be a true value."""
    stored = RNG.integers(10, 900, HU.shape)
    stored[:, :2] = padding
    change = with_pixels(stored, PixelPaddingValue=padding)
    write_series(tmp_path / "a", HU, UPRIGHT, change=change)
    case = read_case(tmp_path / "a")
    np.testing.assert_array_equal(case.volume.image_dhw, stored)
    assert ("padding-in-range" in codes_of(case)) is note


def test_values_are_those_of_the_bits_that_a_slice_names(tmp_path: Path) -> None:
    """Signed and unsigned slices in one series, 12 bits of which the other four are anything."""
    values = np.clip(HU, -1000, 1000)

    def change(k: int, data: Dataset) -> None:
        data.BitsStored, data.HighBit, data.PixelRepresentation = 12, 11, k % 2
        if k % 2:
            data.RescaleIntercept = "0"
            stored = values[k].astype(np.int32) & 0xFFF
        else:
            stored = (values[k].astype(np.int32) + 1024) | 0xF000
        data.PixelData = stored.astype("<u2").tobytes()

    write_series(tmp_path / "a", HU, UPRIGHT, change=change)
    np.testing.assert_array_equal(read_case(tmp_path / "a").volume.image_dhw, values)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda k, data: data.__setattr__("Modality", "CT" if k < 3 else "MR"), "modalities-mixed"),
        (lambda k, data: data.__setattr__("PatientID", str(k < 3)), "patients-mixed"),
        (
            lambda k, data: data.__setattr__(
                "ImageOrientationPatient", [1, 0, 0, 0, np.cos(0.02 * k), np.sin(0.02 * k)]
            ),
            "slices-mixed",
        ),
        (lambda k, data: data.__delattr__("RescaleSlope") if k == 2 else None, "rescale-mixed"),
        (lambda _, data: data.__setattr__("SOPInstanceUID", "1.2.3"), "same-uid-different-content"),
    ],
)
def test_what_is_not_of_one_image_is_refused(
    tmp_path: Path, change: Callable[[int, Dataset], None], code: str
) -> None:
    write_series(tmp_path / "a", HU, UPRIGHT, change=change)
    with raises(CaseError, code):
        read_case(tmp_path / "a")


def test_a_ct_in_other_units_is_warned_of(tmp_path: Path) -> None:
    def change(k: int, data: Dataset) -> None:
        if k > 1:  # not of every slice
            data.RescaleType = "US"

    write_series(tmp_path / "a", HU, UPRIGHT, change=change)
    assert codes_of(read_case(tmp_path / "a")) == ["rescale-type"]
    slices = write_series(tmp_path / "b", HU, UPRIGHT)
    write_enhanced(tmp_path / "enhanced", slices)
    data = pydicom.dcmread(tmp_path / "enhanced")
    for groups in (*data.PerFrameFunctionalGroupsSequence, *data.SharedFunctionalGroupsSequence):
        if "PixelValueTransformationSequence" in groups:
            del groups.PixelValueTransformationSequence
    data.save_as(tmp_path / "enhanced", enforce_file_format=True)
    assert "rescale-assumed" in codes_of(read_case(tmp_path / "enhanced"))


def test_links_in_a_folder_are_followed_and_closed_folders_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a series would be segmented as if it were all."""
    write_series(tmp_path / "whole", HU, UPRIGHT)
    for number, file in enumerate(sorted((tmp_path / "whole").iterdir())):
        half = tmp_path / ("elsewhere" if number % 2 else "series/here")
        half.mkdir(parents=True, exist_ok=True)
        file.rename(half / file.name)
    (tmp_path / "series" / "there").symlink_to(tmp_path / "elsewhere")
    found = read_case(tmp_path / "series").volume.image_dhw
    assert found.shape == HU.shape
    close_folder("here", monkeypatch)
    with raises(CaseError, "folder-unreadable"):
        read_case(tmp_path / "series")
