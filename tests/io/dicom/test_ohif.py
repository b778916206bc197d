"""Results as OHIF shows them, a viewer of the browser: its own build, beside a real archive.

Voxels, names and colors are read from the viewer, and the picture is compared with and without the
segments: they must lie where the mask does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from pydicom.dataset import Dataset

from medals_rt.io.registry import read_case, write_segmentation
from medals_rt.io.segment_metadata import segments_of
from medals_rt.prompts.prompt_set import numbered
from tests.dicom import write_series
from tests.io.dicom.test_rtstruct import inside
from tests.ohif import Ohif, browsing, distribution, serving_ohif
from tests.orthanc import Orthanc, running_orthanc

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow

PROMPTS = numbered(
    ("Liver in abdominal CT", "Left kidney in abdominal CT", "Spleen in abdominal CT"), "anatomy"
)
AFFINE_LPS = np.diag([3.0, 3.5, 5.0, 1.0])
AFFINE_LPS[:3, 3] = (-90, -100, -50)
WHOLE_BYTES = (11, 64, 72)
WITHIN_BYTES = (11, 70, 61)
"""Frames of 4,270 bits, 17 of them: all fill an even number of bytes, of which 2 bits are left."""
ODD_IN_ALL = (12, 70, 61)
"""20 frames: 10,675 bytes, to which DICOM adds one to make their number even."""


def mask(shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Make a box, a cylinder and a wedge, none of which looks the same from another side."""
    k, j, i = np.indices(shape)
    slices, rows, columns = shape
    labels = np.zeros(shape, np.uint8)
    box = (k >= 2) & (k < slices - 2) & (j > rows // 6) & (j < rows // 2)
    labels[box & (i > columns // 8) & (i < columns // 2)] = 1
    off_center = (j - rows * 0.7) ** 2 + (i - columns * 0.7) ** 2
    labels[(k >= 4) & (k < slices - 1) & (off_center < (min(rows, columns) * 0.15) ** 2)] = 2
    wedge = (k >= 1) & (k < slices // 2) & (j > rows * 0.6) & (i < columns * 0.3)
    labels[wedge & (i + j < rows * 1.05)] = 3
    return labels


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    distribution()
    with running_orthanc(tmp_path_factory.mktemp("orthanc") / "o") as found:
        yield found


@pytest.fixture(scope="module")
def address(archive: Orthanc) -> Iterator[str]:
    with serving_ohif(archive) as found:
        yield found


@pytest.fixture
def ohif(browser: Browser) -> Iterator[Ohif]:
    with browsing(browser) as found:
        yield found


def stored(archive: Orthanc, folder: Path, shape: tuple[int, int, int], name: str) -> str:
    """Write a series and its result, store both, and return their study's UID."""
    study = ".".join(["1.2.3", *map(str, shape), str(sum(name.encode()))])

    def of_study(_: int, data: Dataset) -> None:
        data.StudyInstanceUID, data.SeriesInstanceUID = study, f"{study}.1"
        data.SOPInstanceUID = f"{study}.1.{data.InstanceNumber}"

    labels = mask(shape)
    image = np.indices(shape).sum(axis=0) % 40 - 50 + 60 * (labels > 0)
    write_series(folder / "ct", image.astype(np.int16), AFFINE_LPS, change=of_study)
    case = read_case(folder / "ct")
    assert np.array_equal(case.volume.restore(labels), labels)
    (folder / "out").mkdir()
    write_segmentation(folder / "out" / name, case, labels, prompts=PROMPTS)
    archive.upload(folder)
    return study


def check_list(ohif: Ohif, shape: tuple[int, int, int]) -> None:
    """Check that names and colors are those of the exports; colors of DICOM are rounded CIELab."""
    segments = segments_of(PROMPTS, mask(shape))
    listed = ohif.segments()
    assert [(each["number"], each["name"]) for each in listed] == [
        (each.label, each.name) for each in segments
    ]
    for shown, segment in zip(listed, segments, strict=True):
        np.testing.assert_allclose(shown["color"], 255 * np.array(segment.rgb), atol=3)
        ohif.page.get_by_text(segment.name).first.wait_for()


def centers(shape: tuple[int, int, int], k: int) -> npt.NDArray[np.float64]:
    """Return the places of the pixels of a slice in the patient, in reading order."""
    j, i = (each.ravel() for each in np.indices(shape[1:]))
    voxels = np.stack([i, j, np.full_like(i, k), np.ones_like(i)])
    return np.asarray((AFFINE_LPS @ voxels)[:3].T)


def check_place(ohif: Ohif, shape: tuple[int, int, int], k: int) -> None:
    """Check that the picture changes at the mask's pixels, and nowhere else but at outlines."""
    wanted = mask(shape)[k] > 0
    drawn = ohif.drawn(centers(shape, k)).reshape(shape[1:])
    assert drawn[wanted].all()
    assert not drawn[~wanted].any()


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        (WHOLE_BYTES, "result.dcm"),
        (WHOLE_BYTES, "result.labelmap.dcm"),
        (WITHIN_BYTES, "result.labelmap.dcm"),
    ],
)
def test_segments_are_where_the_mask_is(
    archive: Orthanc, address: str, ohif: Ohif, tmp_path: Path, shape: Any, name: str
) -> None:
    assert ohif.open(address, stored(archive, tmp_path, shape, name), "Medal S segmentation")
    check_list(ohif, shape)
    assert np.array_equal(ohif.labels(), mask(shape))
    for k in (4, 8):
        check_place(ohif, shape, k)


@pytest.mark.parametrize("shape", [WITHIN_BYTES, ODD_IN_ALL])
def test_frames_that_begin_within_a_byte_are_what_the_note_says(
    archive: Orthanc, address: str, ohif: Ohif, tmp_path: Path, shape: Any
) -> None:
    """OHIF 3.12 is right; 3.13 reads bits from the wrong end, or misses the byte that fills up."""
    version = distribution()[1]
    read = ohif.open(
        address, stored(archive, tmp_path, shape, "result.dcm"), "Medal S segmentation"
    )
    if version.startswith("3.12."):
        assert np.array_equal(ohif.labels(), mask(shape))
    else:  # where this fails, the fault is mended: say so in the note and in docs/hospital.md
        assert read == (shape == WITHIN_BYTES)
        assert not read or not np.array_equal(ohif.labels(), mask(shape))


def test_regions_are_where_the_mask_is(
    archive: Orthanc, address: str, ohif: Ohif, tmp_path: Path
) -> None:
    study = stored(archive, tmp_path, WITHIN_BYTES, "result.rtstruct.dcm")
    assert ohif.open(address, study, "Medal S structure set")
    check_list(ohif, WITHIN_BYTES)
    labels = np.zeros(WITHIN_BYTES, np.uint8)
    for number, points in ohif.loops():
        columns, rows, slices = ((points - AFFINE_LPS[:3, 3]) / np.diag(AFFINE_LPS)[:3]).T
        polygon = np.stack([columns, rows], axis=1)
        labels[round(slices[0])] ^= number * inside(polygon, WITHIN_BYTES[1:]).astype(np.uint8)
    assert np.array_equal(labels, mask(WITHIN_BYTES))
