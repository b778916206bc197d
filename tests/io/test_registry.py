"""Which format a file is of, and what strangers' files of each come to."""

import gzip
import os
import re
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK

from medals_rt.common.errors import CaseError, MissingFileError
from medals_rt.io.case import Case
from medals_rt.io.registry import (
    FORMATS,
    case_stem,
    check_output,
    files_of_case,
    files_of_output,
    is_read_from,
    read_case,
    read_labels,
    write_segmentation,
)
from medals_rt.io.volume import Volume, volume_notes
from medals_rt.prompts.prompt_set import numbered
from tests.errors import raises

VALUES_KJI = np.arange(8 * 14 * 16, dtype=np.int16).reshape(8, 14, 16)
ORIGIN, SPACING = (-90.0, -80.0, -50.0), (12.0, 12.0, 15.0)
NRRD = (
    "NRRD0005\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 16 14 8\n"
    "endian: little\nencoding: {encoding}\nspace directions: (12,0,0) (0,12,0) (0,0,15)\n"
    "space origin: (-90,-80,-50)\n"
)


def scan(direction: tuple[float, ...] | None = None) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(VALUES_KJI)
    image.SetOrigin(ORIGIN)
    image.SetSpacing(SPACING)
    if direction is not None:
        image.SetDirection(direction)
    return image


def check_read(path: Path) -> None:
    case = read_case(path)
    assert np.array_equal(case.volume.image_dhw, VALUES_KJI)
    assert case.volume.spacing_hwd_mm == pytest.approx((12, 12, 15))
    np.testing.assert_allclose(case.volume.affine_lps[:3, 3], ORIGIN, atol=1e-4)
    assert case.geometry_is_stated


def header_of(path: Path) -> bytearray:
    """Bytes of the scan as plain NIfTI-1."""
    SimpleITK.WriteImage(scan(), str(path))
    return bytearray(path.read_bytes())


@pytest.mark.parametrize(
    "prompts",
    ["Liver in CT", ["Liver in CT"], {"1": "Liver in CT"}, numbered(["Liver in CT"], "anatomy")],
    ids=lambda prompts: type(prompts).__name__,
)
def test_results_are_written_with_prompts_of_any_form(tmp_path: Path, prompts: Any) -> None:
    case = Case(Volume(np.zeros((2, 3, 4)), (1.0, 1.0, 1.0)), None, None, tmp_path / "a.npz")
    labels = np.ones((2, 3, 4), np.uint8)
    write_segmentation(tmp_path / "b.seg.nrrd", case, labels, prompts=prompts)
    named = "Liver in CT" if isinstance(prompts, dict) else "Liver"
    assert read_labels(tmp_path / "b.seg.nrrd").segment_names == {1: named}


def test_what_is_no_case_and_what_are_no_prompts_is_told(tmp_path: Path) -> None:
    volume, labels = Volume(np.zeros((2, 3, 4)), (1.0, 1.0, 1.0)), np.ones((2, 3, 4), np.uint8)
    with pytest.raises(TypeError, match=r"case is a Volume, not a medals_rt\.Case"):
        write_segmentation(tmp_path / "b.npz", volume, labels)
    case = Case(volume, None, None, tmp_path / "a.npz")
    with pytest.raises(TypeError, match="a list of sentences"):
        write_segmentation(tmp_path / "b.npz", case, labels, prompts=7)


def test_names_of_formats_are_unique_and_each_offers_something() -> None:
    assert len({each.name for each in FORMATS}) == len(FORMATS)
    assert all(each.read_case or each.read_labels or each.write for each in FORMATS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("patient.1.nii.gz", "patient.1"),
        ("patient.1.npz", "patient.1"),
        ("a.seg.nrrd", "a"),
        ("A.NII.GZ", "A"),
        ("a.img", "a"),
        ("folder.name", "folder.name"),
    ],
)
def test_stems_lose_the_ending_and_nothing_else(name: str, expected: str) -> None:
    assert case_stem(name) == expected


@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nhdr", ".hdr", ".img", ".nrrd", ".nii.gz"])
@pytest.mark.parametrize("turned", [False, True])
def test_what_simpleitk_writes_is_read_and_what_is_written_it_reads(
    tmp_path: Path, ending: str, *, turned: bool
) -> None:
    direction = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0) if turned else None
    SimpleITK.WriteImage(scan(direction), str(tmp_path / f"a{ending}"))
    case = read_case(tmp_path / f"a{ending}")
    assert np.array_equal(case.volume.image_dhw, VALUES_KJI)
    labels = (VALUES_KJI > 500).astype(np.int64) * 3
    write_segmentation(tmp_path / f"b{ending}", case, labels)
    assert not list(tmp_path.glob(".partial*"))
    back = SimpleITK.ReadImage(str(tmp_path / f"b{ending}"))
    assert np.array_equal(SimpleITK.GetArrayFromImage(back), labels)
    np.testing.assert_allclose(back.GetOrigin(), ORIGIN, atol=1e-4)
    np.testing.assert_allclose(back.GetSpacing(), SPACING, rtol=1e-6)
    np.testing.assert_allclose(back.GetDirection(), scan(direction).GetDirection(), atol=1e-6)
    assert np.array_equal(read_labels(tmp_path / f"b{ending}").labels_dhw, labels)


def test_a_result_never_takes_the_place_of_its_scan(tmp_path: Path) -> None:
    SimpleITK.WriteImage(scan(), str(tmp_path / "a.nii.gz"))
    case = read_case(tmp_path / "a.nii.gz")
    before = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "link.nii.gz").symlink_to("a.nii.gz")
    for name in ("a.nii.gz", "link.nii.gz"):
        with raises(CaseError, "input-overwritten"):
            write_segmentation(tmp_path / name, case, VALUES_KJI)
    assert (tmp_path / "a.nii.gz").read_bytes() == before


@pytest.mark.parametrize(
    ("scan_name", "result"),
    [
        ("p.img", "p.hdr"),
        ("p.hdr", "p.img"),
        ("brain.mhd", "brain.hdr"),  # whose voxels are brain.img
        ("a.mhd", "b.mhd"),  # whose voxels are b.zraw
        ("a.nhdr", "b.nhdr"),
    ],
)
def test_a_result_never_takes_the_place_of_a_file_of_its_scan(
    tmp_path: Path, scan_name: str, result: str
) -> None:
    SimpleITK.WriteImage(scan(), str(tmp_path / scan_name))
    data = {"brain.mhd": "brain.img", "a.mhd": "b.zraw", "a.nhdr": "b.raw.gz"}.get(scan_name)
    if data is not None:
        (tmp_path / scan_name).with_suffix(".raw").rename(tmp_path / data)
        header = (tmp_path / scan_name).read_text(encoding="utf-8")
        old = f"{Path(scan_name).stem}.raw"
        (tmp_path / scan_name).write_text(header.replace(old, data), encoding="utf-8")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 2
    case = read_case(tmp_path / scan_name)
    with raises(CaseError, "input-overwritten"):
        write_segmentation(tmp_path / result, case, VALUES_KJI)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert all(is_read_from(tmp_path / scan_name, path) for path in before)
    assert not is_read_from(tmp_path / scan_name, tmp_path / "c.mhd")


@pytest.mark.parametrize("ending", [each for one in FORMATS if one.write for each in one.endings])
def test_all_files_that_a_result_is_written_as(tmp_path: Path, ending: str) -> None:
    SimpleITK.WriteImage(scan(), str(tmp_path / "a.nii.gz"))
    case, path = read_case(tmp_path / "a.nii.gz"), tmp_path / "r" / f"b{ending}"
    path.parent.mkdir()
    try:
        write_segmentation(path, case, (VALUES_KJI > 500).astype(np.uint8))
    except CaseError:  # DICOM, of no series
        assert files_of_output(path) == (path,)
        return
    assert set(files_of_output(path)) == set(path.parent.iterdir())


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii.gz")
    os.mkfifo(tmp_path / "pipe.mhd")
    assert files_of_case(tmp_path / "pipe.mhd") == (tmp_path / "pipe.mhd",)
    (tmp_path / "loop.nii.gz").symlink_to("loop.nii.gz")
    for name, kind, code in (
        ("pipe.nii.gz", CaseError, "not-a-file"),
        ("loop.nii.gz", MissingFileError, "file-missing"),
    ):
        with raises(kind, code):
            read_case(tmp_path / name)
    with raises(MissingFileError, "path-empty"):
        read_case("")


def test_compressed_metaimage_is_read(tmp_path: Path) -> None:
    SimpleITK.WriteImage(scan(), str(tmp_path / "a.mha"), useCompression=True)
    check_read(tmp_path / "a.mha")


def test_nifti_2_is_read_and_stays_nifti_2(tmp_path: Path) -> None:
    affine = np.diag([-12.0, -12.0, 15.0, 1.0])
    affine[:3, 3] = (90, 80, -50)
    nibabel.save(nibabel.Nifti2Image(VALUES_KJI.transpose(), affine), tmp_path / "a.nii.gz")
    check_read(tmp_path / "a.nii.gz")
    case = read_case(tmp_path / "a.nii.gz")
    write_segmentation(tmp_path / "b.nii.gz", case, VALUES_KJI)
    assert isinstance(nibabel.load(tmp_path / "b.nii.gz"), nibabel.Nifti2Image)


@pytest.mark.parametrize("ending", [".nrrd", ".nii.gz", ".mha"])
def test_one_frame_of_four_axes_is_read_as_simpleitk_writes_it(tmp_path: Path, ending: str) -> None:
    image = SimpleITK.GetImageFromArray(VALUES_KJI)
    image.SetSpacing((12.0, 12.0, 15.0))
    image.SetOrigin((-90.0, -80.0, -50.0))
    path = tmp_path / f"four{ending}"
    SimpleITK.WriteImage(SimpleITK.JoinSeries([image]), str(path))
    check_read(path)
    write_segmentation(tmp_path / f"out{ending}", read_case(path), VALUES_KJI)
    check_read(tmp_path / f"out{ending}")


def test_a_space_of_four_axes_that_turns_into_time_is_refused(tmp_path: Path) -> None:
    header = NRRD.format(encoding="raw").replace("dimension: 3", "dimension: 4", 1)
    header = re.sub("space: .*", "space dimension: 4", header).replace("sizes: 16", "sizes: 1 16")
    rows = "(0,0,0,1) (12,0,0,0) (0,12,0,0) (0,0,15,5)"
    header = re.sub("space directions: .*", f"space directions: {rows}", header)
    header = re.sub("space origin: .*", "space origin: (-90,-80,-50,0)", header)
    (tmp_path / "a.nrrd").write_bytes(header.encode() + b"\n" + VALUES_KJI.tobytes())
    with raises(CaseError, "geometry-singular"):
        read_case(tmp_path / "a.nrrd")
    whole = (tmp_path / "a.nrrd").read_bytes().replace(b",5)", b",0)")
    (tmp_path / "a.nrrd").write_bytes(whole)
    check_read(tmp_path / "a.nrrd")


def test_nrrd_with_a_fourth_axis_members_and_bytes_behind(tmp_path: Path) -> None:
    data = VALUES_KJI.tobytes()
    four = NRRD.format(encoding="raw").replace("dimension: 3", "dimension: 4")
    four = four.replace("sizes: 16", "sizes: 1 16").replace("directions: (", "directions: none (")
    (tmp_path / "four.nrrd").write_bytes(four.encode() + b"\n" + data)
    check_read(tmp_path / "four.nrrd")
    raw = NRRD.format(encoding="raw").encode() + b"\n"
    (tmp_path / "behind.nrrd").write_bytes(raw + data + b"\n")
    check_read(tmp_path / "behind.nrrd")
    codes = [note.code for note in volume_notes(read_case(tmp_path / "behind.nrrd").volume)]
    assert codes == ["bytes-left-out"]
    packed = gzip.compress(data[:1000]) + gzip.compress(data[1000:])
    whole = NRRD.format(encoding="gzip").encode() + b"\n" + packed
    (tmp_path / "members.nrrd").write_bytes(whole)
    check_read(tmp_path / "members.nrrd")


def test_axis_mins_are_edges_of_cells_as_for_simpleitk(tmp_path: Path) -> None:
    text = (
        "NRRD0005\ntype: short\ndimension: 3\nsizes: 16 14 8\nendian: little\nencoding: raw\n"
        "spacings: 12 12 15\naxis mins: -90 -80 -50\n\n"
    )
    path = tmp_path / "a.nrrd"
    path.write_bytes(text.encode() + VALUES_KJI.tobytes())
    origin = read_case(path).volume.affine_lps[:3, 3]
    assert tuple(origin) == SimpleITK.ReadImage(str(path)).GetOrigin() == (-84.0, -74.0, -42.5)


@pytest.mark.parametrize("name", ["../a.raw", "/etc/hostname", "sub/a.raw", "LIST", "a%d.raw 1 2"])
def test_headers_cannot_name_files_elsewhere(tmp_path: Path, name: str) -> None:
    text = NRRD.format(encoding="raw") + f"data file: {name}\n\n"
    (tmp_path / "a.nhdr").write_bytes(text.encode())
    SimpleITK.WriteImage(scan(), str(tmp_path / "b.mhd"))
    meta = (tmp_path / "b.mhd").read_text(encoding="utf-8").replace("b.raw", name)
    (tmp_path / "b.mhd").write_text(meta, encoding="utf-8")
    for file in ("a.nhdr", "b.mhd"):
        with raises(CaseError, "data-file-elsewhere"):
            read_case(tmp_path / file)


@pytest.mark.parametrize(
    ("name", "with_it"),
    [
        ("a.mhd", "a.raw"),
        ("a.nhdr", "a.raw"),
        ("a.hdr", "a.img"),
        ("a.mha", None),
        ("a.nrrd", None),
        ("a.nii.gz", None),
    ],
)
def test_all_files_that_a_case_is_read_from(tmp_path: Path, name: str, with_it: str | None) -> None:
    path = tmp_path / name
    SimpleITK.WriteImage(scan(), str(path))
    expected = {path} if with_it is None else {path, path.with_name(with_it)}
    assert set(files_of_case(path)) == expected == set(tmp_path.iterdir())
    if with_it is not None:
        path.with_name(with_it).unlink()
        assert set(files_of_case(path)) == expected


def test_what_its_reader_would_refuse_is_read_from_no_other_file(tmp_path: Path) -> None:
    damaged = tmp_path / "a.mhd"
    damaged.write_bytes(b"ObjectType = Image\n")
    elsewhere = tmp_path / "a.nhdr"
    elsewhere.write_text(f"{NRRD.format(encoding='raw')}data file: ../a.raw\n\n", encoding="utf-8")
    folder = tmp_path / "b.hdr"
    folder.mkdir()
    for path in (damaged, elsewhere, folder, tmp_path / "none.mhd"):
        assert files_of_case(path) == (path,)


def test_a_remark_in_an_nrrd_header_names_no_data_file(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    text = f"{NRRD.format(encoding='raw')}data file:=../a.raw\n\n"
    path.write_bytes(text.encode() + VALUES_KJI.tobytes())
    assert files_of_case(path) == (path,)
    check_read(path)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_wrong_checksums_are_damage(tmp_path: Path, ending: str) -> None:
    SimpleITK.WriteImage(scan(), str(tmp_path / f"a{ending}"), useCompression=True)
    data = bytearray((tmp_path / f"a{ending}").read_bytes())
    data[-8] ^= 1
    (tmp_path / f"a{ending}").write_bytes(data)
    with raises(CaseError, "file-damaged"):
        read_case(tmp_path / f"a{ending}")


def test_wrong_endings_are_named(tmp_path: Path) -> None:
    data = bytes(header_of(tmp_path / "a.nii"))
    (tmp_path / "packed.nii").write_bytes(gzip.compress(data))
    (tmp_path / "plain.nii.gz").write_bytes(data)
    (tmp_path / "other.nrrd").write_bytes(data)
    (tmp_path / "unknown.xyz").write_bytes(gzip.compress(data))
    fits = {"packed.nii": ".nii.gz", "plain.nii.gz": "plain.nii,", "other.nrrd": "other.nii"}
    for name, word in {**fits, "unknown.xyz": "unknown.xyz.nii.gz"}.items():
        with raises(CaseError, "wrong-ending") as caught:
            read_case(tmp_path / name)
        assert word in str(caught.value)


def test_a_gzipped_file_is_told_by_what_it_holds(tmp_path: Path) -> None:
    nifti, nrrd = bytes(header_of(tmp_path / "a.nii")), b"NRRD0004\ntype: short\n"
    dicom = bytes(128) + b"DICM"
    for name, content, mending in (
        ("wrong.nrrd", nifti, "NIfTI by its content; name it wrong.nii.gz"),
        ("wrong.nrrd.gz", nifti, "NIfTI by its content; name it wrong.nii.gz"),
        ("scan.nrrd", nrrd, "scan.nrrd is gzipped; unpack it"),
        ("scan.nii.gz", nrrd, "NRRD by its content; unpack it and name it scan.nrrd"),
        ("scan.dcm.gz", dicom, "DICOM by its content; unpack it and name it scan.dcm"),
    ):
        (tmp_path / name).write_bytes(gzip.compress(content))
        with raises(CaseError, "wrong-ending") as caught:
            read_case(tmp_path / name)
        assert str(caught.value).endswith(mending)


def test_what_does_not_exist_is_said_to(tmp_path: Path) -> None:
    for name in ("none", "none.dcm", "none.nii.gz"):
        with raises(MissingFileError, "file-missing"):
            read_case(tmp_path / name)


@pytest.mark.parametrize("spacing", [0.0, -12.0, float("nan")])
def test_unusable_spacing_without_forms_is_refused_silently_for_libraries(
    tmp_path: Path, spacing: float, capfd: pytest.CaptureFixture[str]
) -> None:
    data = header_of(tmp_path / "a.nii")
    data[80:84] = struct.pack("<f", spacing)
    data[252:256] = bytes(4)  # both form codes
    (tmp_path / "a.nii").write_bytes(data)
    with raises(CaseError, "spacing-not-positive"):
        read_case(tmp_path / "a.nii")
    assert capfd.readouterr() == ("", "")


def test_a_zero_sform_leaves_the_qform(tmp_path: Path) -> None:
    data = header_of(tmp_path / "a.nii")
    data[254:256] = struct.pack("<h", 1)
    data[280:328] = bytes(48)
    (tmp_path / "a.nii").write_bytes(data)
    check_read(tmp_path / "a.nii")
    case = read_case(tmp_path / "a.nii")
    assert [note.code for note in volume_notes(case.volume)] == ["orientation-contradicted"]
    write_segmentation(tmp_path / "b.nii", case, VALUES_KJI)
    np.testing.assert_allclose(
        nibabel.load(tmp_path / "b.nii").affine[:3, 3], (90, 80, -50), atol=1e-4
    )


def test_a_sheared_voxel_has_the_volume_of_the_determinant(tmp_path: Path) -> None:
    affine = np.diag([-12.0, -12.0, 15.0, 1.0])
    affine[1, 2] = -15 * np.tan(np.radians(20))
    nibabel.save(nibabel.Nifti1Image(VALUES_KJI.transpose(), affine), tmp_path / "a.nii")
    volume = read_case(tmp_path / "a.nii").volume
    assert volume.voxel_ml == pytest.approx(2.16, rel=1e-6)
    assert [note.code for note in volume_notes(volume)] == ["grid-sheared"]
    assert volume.source.shear_degrees == pytest.approx(20, abs=1e-4)


def test_what_is_sheared_has_no_qform(tmp_path: Path) -> None:
    """It holds no shear, and ITK would take it in silence: labels centimeters off."""
    for shear, code in ((0.0, 1), (20.0, 0)):
        affine = np.diag([12.0, 12.0, 15.0, 1.0])
        affine[1, 2] = 15 * np.tan(np.radians(shear))
        volume = Volume.from_array(VALUES_KJI, affine, axes="kji", frame="LPS")
        case = Case(volume, None, None, tmp_path / "a.nrrd")
        write_segmentation(tmp_path / "l.nii.gz", case, np.ones(volume.shape_dhw, np.uint8))
        header = nibabel.load(tmp_path / "l.nii.gz").header
        assert (int(header["qform_code"]), int(header["sform_code"])) == (code, 1)


def test_a_format_may_be_named(tmp_path: Path) -> None:
    assert check_output(tmp_path / "a.nii.gz", format="nifti") == ()
    for name, code in {"nifti": "wrong-ending", "none": "format-unknown"}.items():
        with raises(CaseError, code):
            check_output(tmp_path / "a.nrrd", format=name)


def test_voxel_sizes_that_contradict_the_sform_are_warned_of(tmp_path: Path) -> None:
    """Programs differ in which of them they take."""
    path = tmp_path / "a.nii"
    content = header_of(path)
    struct.pack_into("<h", content, 252, 0)  # qform_code
    struct.pack_into("<f", content, 80, 1.0)  # pixdim[1]
    path.write_bytes(content)
    check_read(path)
    assert [note.code for note in read_case(path).volume.notes] == ["orientation-contradicted"]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('space units: "m" "m" "m"', "unit-not-millimeters"),
        ("kinds: domain domain time", "axis-not-of-space"),
        ("data file: LIST", "data-file-elsewhere"),
        ("data file: LIST 2", "data-file-elsewhere"),
        ('space units: "mm" "mm" "mm"', None),
        ("kinds: domain domain space", None),
    ],
)
def test_nrrd_axes_are_of_space_and_in_millimeters(
    tmp_path: Path, line: str, code: str | None
) -> None:
    path = tmp_path / "a.nrrd"
    header = f"{NRRD.format(encoding='raw')}{line}\n\n"
    path.write_bytes(header.encode() + VALUES_KJI.tobytes())
    if code is None:
        check_read(path)
        return
    with raises(CaseError, code):
        read_case(path)


def test_metaimage_units_and_scales(tmp_path: Path) -> None:
    path = tmp_path / "a.mha"
    SimpleITK.WriteImage(scan(), str(path))
    plain = path.read_bytes()
    path.write_bytes(plain.replace(b"DimSize", b"ElementToIntensityFunctionSlope = 2\nDimSize"))
    check_read(path)
    assert [note.code for note in read_case(path).volume.notes] == ["scale-left-out"]
    path.write_bytes(plain.replace(b"DimSize", b"DistanceUnits = cm\nDimSize"))
    with raises(CaseError, "unit-not-millimeters"):
        read_case(path)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("Position = 1 2 3", "header-contradicts"),
        ("Orientation = 0 1 0 1 0 0 0 0 1", "header-contradicts"),
        ("DimSize = 9 9 9", "header-contradicts"),
        ("Offset =   {offset}", None),
    ],
)
def test_a_metaimage_that_contradicts_itself_is_refused(
    tmp_path: Path, line: str, code: str | None
) -> None:
    path = tmp_path / "a.mha"
    SimpleITK.WriteImage(scan(), str(path))
    plain = path.read_bytes()
    stated = next(each for each in plain.split(b"\n") if each.startswith(b"Offset")).decode()
    added = line.format(offset=stated.partition("=")[2])
    path.write_bytes(plain.replace(b"ElementType", f"{added}\nElementType".encode(), 1))
    if code is None:
        check_read(path)
        return
    with raises(CaseError, code):
        read_case(path)


def test_an_nrrd_says_what_it_lacks(tmp_path: Path) -> None:
    path, header = tmp_path / "a.nrrd", NRRD.format(encoding="text").replace("endian: little\n", "")
    path.write_text(header + "\n" + " ".join(map(str, VALUES_KJI.ravel())), encoding="utf-8")
    with raises(CaseError, "encoding"):
        read_case(path)
    path.write_bytes(header.replace("text", "raw").encode() + b"\n" + VALUES_KJI.tobytes())
    with raises(CaseError, "endian-missing"):
        read_case(path)


def test_a_name_that_no_file_can_have_is_no_input(tmp_path: Path) -> None:
    """A client's, say, for what it has sent."""
    assert not is_read_from(Path("x" * 5000), tmp_path / "labels.nii.gz")
