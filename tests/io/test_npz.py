"""Challenge cases and results in `.npz`."""

import io
import json
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medals_rt.common.errors import CaseError, InputError, MissingFileError
from medals_rt.io.case import Case
from medals_rt.io.registry import read_case, read_labels, write_segmentation
from medals_rt.io.volume import SourceGrid, Volume
from tests.errors import raises

PROMPTS = {"1": "Liver in abdominal CT", "instance_label": 0}
RNG = np.random.default_rng(3)
IMAGE = RNG.integers(0, 256, (4, 5, 6), dtype=np.uint8)


def save(path: Path, **fields: Any) -> Path:
    np.savez_compressed(path, **fields)
    return path


def member(array: np.ndarray, *, pickled: bool = False) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=pickled)
    return file.getvalue()


def pack(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


def test_a_challenge_case_is_read(tmp_path: Path) -> None:
    truth = RNG.integers(0, 3, IMAGE.shape)
    path = save(
        tmp_path / "CT_a.b.npz",
        imgs=IMAGE,
        gts=truth,
        spacing=np.array([0.7, 0.8, 3.0]),
        text_prompts=PROMPTS,
        other=np.array(["anything"]),
    )
    case = read_case(path)
    assert np.array_equal(case.volume.image_dhw, IMAGE)
    assert case.volume.spacing_hwd_mm == (0.7, 0.8, 3.0)
    assert case.volume.source == SourceGrid()
    assert case.volume.name == "CT_a.b"
    assert case.prompts == PROMPTS
    assert np.array_equal(case.ground_truth_dhw, truth)


@pytest.mark.parametrize("dtype", ["u1", "i2", ">i2", "f4", "f8", "?"])
@pytest.mark.parametrize("fortran", [False, True])
def test_types_and_memory_orders(tmp_path: Path, dtype: str, fortran: bool) -> None:
    image = (IMAGE > 100).astype(dtype) if dtype == "?" else IMAGE.astype(dtype)
    image = np.asfortranarray(image) if fortran else image
    path = save(tmp_path / "a.npz", imgs=image, spacing=(1, 1, 1))
    case = read_case(path)
    assert np.array_equal(case.volume.image_dhw, image)
    assert case.volume.image_dhw.dtype.isnative
    assert case.prompts is None


def test_json_text_serves_as_prompts(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", imgs=IMAGE, spacing=(1, 1, 1), text_prompts=json.dumps(PROMPTS))
    assert read_case(path).prompts == PROMPTS
    path = save(tmp_path / "b.npz", imgs=IMAGE, spacing=(1, 1, 1), text_prompts="{")
    with raises(CaseError, "prompts-form"):
        read_case(path)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"spacing": (1, 1, 1)}, ("image-missing",)),
        ({"imgs": IMAGE}, ("spacing-missing",)),
        ({"imgs": IMAGE, "spacing": ()}, ("spacing-not-three-numbers",)),
        ({"imgs": IMAGE, "spacing": (0, 1, 1)}, ("spacing-not-positive",)),
        ({"imgs": IMAGE, "spacing": (1, np.nan, 1)}, ("spacing-not-positive",)),
        ({"imgs": IMAGE, "spacing": "abc"}, ("value-type", "spacing")),
        ({"imgs": IMAGE[0], "spacing": (1, 1, 1)}, ("not-3d",)),
        ({"imgs": IMAGE[None], "spacing": (1, 1, 1)}, ("not-3d",)),
        ({"imgs": IMAGE[:0], "spacing": (1, 1, 1)}, ("image-empty",)),
        ({"imgs": IMAGE * np.nan, "spacing": (1, 1, 1)}, ("values-not-finite",)),
        ({"imgs": IMAGE * 1j, "spacing": (1, 1, 1)}, ("value-type",)),
        ({"imgs": IMAGE.astype("U3"), "spacing": (1, 1, 1)}, ("value-type",)),
        ({"imgs": IMAGE.astype(object), "spacing": (1, 1, 1)}, ("value-type",)),
        ({"imgs": IMAGE, "spacing": (1, 1, 1), "gts": IMAGE[1:]}, ("shapes-differ", "gts")),
        ({"imgs": IMAGE, "spacing": (1, 1, 1), "gts": IMAGE + 0.5}, ("labels-not-whole",)),
        (
            {"imgs": IMAGE, "spacing": (1, 1, 1), "gts": -1 - IMAGE.astype(int)},
            ("labels-negative",),
        ),
        (
            {"imgs": IMAGE, "spacing": (1, 1, 1), "text_prompts": [1, 2]},
            ("prompts-form", "(2,)"),
        ),
        (
            {"imgs": IMAGE, "spacing": (1, 1, 1), "text_prompts": 3.5},
            ("prompts-form", "text_prompts"),
        ),
        (
            {"imgs": IMAGE, "spacing": (1, 1, 1), "text_prompts": '{"1": "liver", "1": "spleen"}'},
            ("prompts-form", "'1'", "twice"),
        ),
    ],
)
def test_wrong_content_is_refused(
    tmp_path: Path, fields: dict[str, Any], error: tuple[str, ...]
) -> None:
    with raises(CaseError, *error) as caught:
        read_case(save(tmp_path / "a.npz", **fields))
    assert len(str(caught.value).splitlines()) == 1


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        read_case(tmp_path / "none.npz")
    (tmp_path / "a.npz").write_bytes(b"not a zip file")
    with raises(CaseError, "npz-unreadable"):
        read_case(tmp_path / "a.npz")
    with pytest.raises(MissingFileError):
        read_case(tmp_path / "a.dcm")
    (tmp_path / "a.xyz").write_bytes(b"of no format that is known")
    with raises(CaseError, "format-unknown"):
        read_case(tmp_path / "a.xyz")


def lying(shape: tuple[int, ...], data: bytes) -> bytes:
    """A member whose header announces `shape` of bytes before other data."""
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape!r}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data


@pytest.mark.parametrize(
    ("imgs", "code"),
    [
        (lying((1000, 1000, 1000), b"123"), "size-contradicts"),
        (lying((1, 1, 2), b"123"), "size-contradicts"),
        (lying((2**40, 2**40, 2**40), b""), "too-many-voxels"),
        (lying((-1, 3, 1), b"123"), "header-damaged"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 60_000) + b"[" * 60_000, "file-damaged"),
        (b"\x93NUMPY\x09\x00", "npy-version-unknown"),
        (b"", "file-damaged"),
        (b"garbage" * 10, "file-damaged"),
    ],
)
def test_lying_headers_are_refused_before_memory_is_taken(
    tmp_path: Path, imgs: bytes, code: str
) -> None:
    path = pack(tmp_path / "a.npz", {"imgs": imgs, "spacing": member(np.ones(3))})
    with raises(CaseError, code):
        read_case(path)


def test_archives_that_lie_about_sizes_are_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.npz", {"imgs": member(IMAGE), "spacing": member(np.ones(3))})
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = struct.pack("<I", 2**31)
    path.write_bytes(data)
    with raises(CaseError, "size-implausible"):
        read_case(path)


def test_the_voxel_limit_holds(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", imgs=np.zeros((50, 50, 50), np.uint8), spacing=(1, 1, 1))
    assert read_case(path, max_voxels=125_000).volume.shape_dhw == (50, 50, 50)
    with raises(CaseError, "too-many-voxels", "125,000", "124,999"):
        read_case(path, max_voxels=124_999)


def test_members_given_twice_and_other_compressions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("imgs.npy", member(IMAGE))
        archive.writestr("imgs.npy", member(IMAGE))
    with raises(CaseError, "member-repeated", "imgs"):
        read_case(path)
    path = pack(path, {"imgs": member(IMAGE), "spacing": member(np.ones(3))}, zipfile.ZIP_BZIP2)
    with raises(CaseError, "compression-unknown", "imgs"):
        read_case(path)


def test_large_prompts_are_refused(tmp_path: Path) -> None:
    huge = np.array({"1": "x" * 6_000_000}, dtype=object)
    path = pack(
        tmp_path / "a.npz",
        {
            "imgs": member(IMAGE),
            "spacing": member(np.ones(3)),
            "text_prompts": member(huge, pickled=True),
        },
    )
    with raises(CaseError, "prompts-too-large"):
        read_case(path)


def test_no_mutation_of_a_valid_file_does_anything_but_fail_cleanly(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", imgs=IMAGE, spacing=(1.0, 2.0, 3.0), text_prompts=PROMPTS)
    stored = pack(
        tmp_path / "b.npz",
        {"imgs": member(IMAGE), "spacing": member(np.ones(3)),
         "text_prompts": member(np.array(PROMPTS, dtype=object), pickled=True)},
        zipfile.ZIP_STORED,
    )  # fmt: skip
    rng = np.random.default_rng(5)
    target = tmp_path / "mutated.npz"
    read = 0
    for source in (path, stored):
        valid = source.read_bytes()
        for _ in range(400):
            data = bytearray(valid)
            for _ in range(rng.integers(1, 6)):
                data[rng.integers(len(data))] = rng.integers(256)
            if rng.random() < 0.2:
                data = data[: rng.integers(len(data))]
            target.write_bytes(data)
            try:
                case = read_case(target, max_voxels=10_000)
            except InputError:
                continue
            assert case.volume.image_dhw.ndim == 3
            read += 1
    assert read > 0, "some mutations touch nothing that is read"


# Results ------------------------------------------------------------------------------------------


def case_of(tmp_path: Path, **more: Any) -> Case:
    return read_case(save(tmp_path / "in.npz", imgs=IMAGE, spacing=(0.7, 0.8, 3.0), **more))


def test_a_result_is_in_the_official_layout(tmp_path: Path) -> None:
    case = case_of(tmp_path, text_prompts=PROMPTS)
    labels = RNG.integers(0, 4, IMAGE.shape)
    write_segmentation(tmp_path / "out.npz", case, labels, instances_dhw=labels * 100)
    with np.load(tmp_path / "out.npz", allow_pickle=True) as file:
        assert np.array_equal(file["segs"], labels)
        assert file["segs"].dtype == np.uint8
        assert file["instances"].dtype == np.uint16
        assert file["spacing"].tolist() == [0.7, 0.8, 3.0]
        assert file["text_prompts"].shape == ()
        assert file["text_prompts"].item() == PROMPTS
    again = read_labels(tmp_path / "out.npz")
    assert np.array_equal(again.labels_dhw, labels)
    assert np.array_equal(again.instances_dhw, labels * 100)
    assert again.spacing_hwd_mm == (0.7, 0.8, 3.0)


def test_prompts_given_are_written_instead(tmp_path: Path) -> None:
    case = case_of(tmp_path)
    labels = np.zeros(IMAGE.shape, int)
    write_segmentation(tmp_path / "out.npz", case, labels)
    with np.load(tmp_path / "out.npz") as file:
        assert sorted(file) == ["segs", "spacing"]
    write_segmentation(tmp_path / "out.npz", case, labels, prompts={"3": "Spleen in CT"})
    with np.load(tmp_path / "out.npz", allow_pickle=True) as file:
        assert file["text_prompts"].item() == {"3": "Spleen in CT"}


def test_segs_or_gts_may_be_preferred(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", segs=IMAGE // 2, gts=IMAGE)
    assert np.array_equal(read_labels(path).labels_dhw, IMAGE // 2)
    assert np.array_equal(read_labels(path, prefer="gts").labels_dhw, IMAGE)
    assert read_labels(path).spacing_hwd_mm is None
    with raises(CaseError, "labels-missing"):
        read_labels(save(tmp_path / "b.npz", imgs=IMAGE))


@pytest.mark.parametrize(
    "labels", [np.zeros((1, 2, 3), int), -np.ones(IMAGE.shape, int), IMAGE / 2]
)
def test_unusable_results_leave_no_file(tmp_path: Path, labels: np.ndarray) -> None:
    case = case_of(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CaseError):
        write_segmentation(tmp_path / "out.npz", case, labels)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(tmp_path)
    out = tmp_path / "out.npz"
    out.write_text("old", encoding="utf-8")

    def fail(file: io.BytesIO, **_: object) -> None:
        file.write(b"half")
        raise error

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(error):
        write_segmentation(out, case, np.zeros(IMAGE.shape, int))
    assert out.read_text(encoding="utf-8") == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npz", "out.npz"]


def test_a_result_of_a_turned_grid_leads_back(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[:3, :3] = [[0, -2.0, 0], [0, 0, 3.0], [-4.0, 0, 0]]
    affine[:3, 3] = (7, 8, 9)
    source = SourceGrid.from_affine(affine)
    own = np.arange(120).reshape(4, 5, 6)
    labels_dhw = source.to_canonical(own)
    spacing = source.spacing_hwd_mm
    assert spacing is not None
    volume = Volume(labels_dhw, spacing, source=source)
    write_segmentation(tmp_path / "out.npz", Case(volume, None, None, tmp_path), labels_dhw)
    with np.load(tmp_path / "out.npz") as file:
        assert np.array_equal(file["segs"], own)
        assert file["spacing"].tolist() == [4.0, 2.0, 3.0]
    again = read_labels(tmp_path / "out.npz")
    assert np.array_equal(again.labels_dhw, labels_dhw)
    assert again.spacing_hwd_mm == pytest.approx(spacing)
    np.testing.assert_allclose(again.source.affine_lps, affine)
