"""Volume, intensity, components and place of each class."""

import csv
from pathlib import Path

import numpy as np
import pytest

from medals_rt.common.errors import InputError
from medals_rt.io.volume import SourceGrid, Volume
from medals_rt.pipeline.class_statistics import class_statistics
from medals_rt.pipeline.csv_tables import STATISTICS_COLUMNS, statistics_row, write_csv
from tests.errors import raises

NAMES = {1: "Liver", 3: "Spleen", 4: "Heart"}


def random_labels(shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(5)
    labels = np.repeat(rng.integers(0, 4, shape), 2, axis=0).astype(np.uint8)
    return np.where(labels == 2, 0, labels)


def test_figures_are_those_of_the_plain_definition() -> None:
    labels = random_labels((4, 7, 9))
    image = np.random.default_rng(6).normal(1000, 3, labels.shape).astype(np.float32)
    volume = Volume(image, (2.0, 3.0, 5.0))
    liver, spleen, heart = class_statistics(volume, labels, NAMES)
    for found in (liver, spleen):
        inside = image[labels == found.label].astype(np.float64)
        assert found.voxels == inside.size
        assert found.volume_ml == pytest.approx(inside.size * 30 / 1000)
        assert found.mean == pytest.approx(inside.mean(), rel=1e-12)
        assert found.sd == pytest.approx(inside.std(), rel=1e-9)
        d, h, w = np.nonzero(labels == found.label)
        assert found.low_ijk == (w.min(), h.min(), d.min())
        assert found.high_ijk == (w.max() + 1, h.max() + 1, d.max() + 1)
        size = [high - low for low, high in zip(found.low_ijk, found.high_ijk, strict=True)]
        assert found.size_ijk_mm == (size[0] * 3.0, size[1] * 2.0, size[2] * 5.0)
    assert (heart.voxels, heart.components, heart.volume_ml) == (0, 0, 0)
    assert heart.mean is heart.sd is heart.low_ijk is heart.high_ijk is heart.size_ijk_mm is None


def test_components_touch_by_faces_and_are_counted_a_label() -> None:
    labels = np.zeros((3, 4, 4), np.uint16)
    labels[0, 0, 0] = labels[0, 1, 1] = labels[2, 3, 3] = 1  # the first two touch by an edge
    labels[0, 0, 1:3] = 3  # beside label 1, but not of it
    volume = Volume(np.zeros(labels.shape, np.int16), (1, 1, 1))
    found = class_statistics(volume, labels, NAMES)
    assert [each.components for each in found] == [3, 1, 0]


def test_boxes_are_in_the_files_own_axes() -> None:
    """A file whose i runs to the right, j to the front and k to the feet, and whose axes swap."""
    affine = np.array([[0, 0, -4.0, 9], [0, -3.0, 0, 8], [-2.0, 0, 0, 7], [0, 0, 0, 1]])
    source = SourceGrid.from_affine(affine)
    own = np.zeros((5, 6, 7), np.uint8)  # k, j, i
    own[1:3, 2:6, 0:4] = 1
    labels = source.to_canonical(own)
    volume = Volume(np.zeros(labels.shape, np.float32), source.spacing_hwd_mm, source=source)
    (found,) = class_statistics(volume, labels, {1: "Liver"})
    assert (found.low_ijk, found.high_ijk) == ((0, 2, 1), (4, 6, 3))
    assert found.size_ijk_mm == (4 * 2.0, 4 * 3.0, 2 * 4.0)


def test_labels_that_are_not_named_count_nowhere() -> None:
    labels = np.full((2, 2, 2), 9, np.uint8)
    labels[0] = 1
    volume = Volume(np.ones((2, 2, 2), np.uint8), (10, 10, 10))
    (found,) = class_statistics(volume, labels, {1: "Liver"})
    assert (found.voxels, found.volume_ml, found.mean, found.sd) == (4, 4.0, 1.0, 0.0)
    assert class_statistics(volume, labels, {}) == ()


def test_another_shape_is_refused() -> None:
    volume = Volume(np.ones((2, 2, 2)), (1, 1, 1))
    with raises(InputError, "shapes-differ", (2, 2, 3)):
        class_statistics(volume, np.ones((2, 2, 3), np.uint8), NAMES)


def test_a_row_fits_its_columns() -> None:
    volume = Volume(np.ones((2, 2, 2)), (1, 1, 1))
    for found in class_statistics(volume, np.ones((2, 2, 2), np.uint8), NAMES):
        assert len(statistics_row(found)) == len(STATISTICS_COLUMNS)


def test_a_table_carries_no_formula(tmp_path) -> None:
    path = tmp_path / "a.csv"
    cells = ("=cmd()", "@x", "-1+2", "a,b\nc", "caf\udce9", 1 / 3, -5, True, False, None)
    write_csv(path, ("t",) * 10, [cells])
    assert path.read_text(encoding="utf-8").splitlines() == [
        "t,t,t,t,t,t,t,t,t,t",
        "'=cmd(),'@x,'-1+2,\"a,b",
        'c",caf\\udce9,0.333333,-5,yes,no,',
    ]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_each_start_of_a_formula_is_guarded(start: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_csv(path, ("t",), [(f"{start}1",)])
    with path.open(newline="", encoding="utf-8") as stream:
        (_, (cell,)) = list(csv.reader(stream))
    assert cell == f"'{start}1".replace("\r", "\n")
