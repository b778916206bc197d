"""The picture of a result."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medals_rt.common.errors import InputError, MissingDependencyError
from medals_rt.io.palette import numbered_color
from medals_rt.pipeline.preview import cut_panels, save_preview
from tests.errors import raises

SPACING_DHW = (5.0, 1.0, 2.0)


@pytest.fixture
def labels() -> np.ndarray:
    """A large label 1 at the top, back and left, and a small label 2 elsewhere."""
    volume = np.zeros((12, 40, 30), dtype=np.uint8)
    volume[8:, 25:, 20:] = 1
    volume[2:4, 5:8, 5:8] = 2
    return volume


def test_planes_are_turned_to_the_radiological_view(labels: np.ndarray) -> None:
    image = np.indices(labels.shape).astype(np.float32)
    axial, coronal, sagittal = cut_panels(image[1], labels, SPACING_DHW)
    assert [panel.plane for panel in (axial, coronal, sagittal)] == ["axial", "coronal", "sagittal"]
    assert axial.pixel_mm == (1.0, 2.0)
    assert coronal.pixel_mm == (5.0, 2.0)
    assert sagittal.pixel_mm == (5.0, 1.0)
    assert axial.image[0, 0] < axial.image[-1, 0]  # rows run to the back
    assert sagittal.image[0, 0] < sagittal.image[0, -1]  # columns run to the back
    up = cut_panels(image[0], labels, SPACING_DHW)[1].image
    assert up[0, 0] > up[-1, 0]  # the head is up
    left = cut_panels(image[2], labels, SPACING_DHW)[1].image
    assert left[0, 0] < left[0, -1]  # the patient's left is on the right
    assert coronal.marks == ("S", "I", "R", "L")
    assert sagittal.marks == ("S", "I", "A", "P")


def test_the_planes_together_show_large_and_small_labels(labels: np.ndarray) -> None:
    panels = cut_panels(labels, labels, SPACING_DHW)
    assert panels[0].index >= 8  # among equals the fuller slice
    assert [set(np.unique(panel.labels)) for panel in panels] == [{0, 1}, {0, 2}, {0, 1}]
    both = labels.copy()
    both[9, 5:8, 5:8] = 2
    assert cut_panels(both, both, SPACING_DHW)[0].index == 9
    nothing = np.zeros_like(labels)
    assert [panel.index for panel in cut_panels(nothing, nothing, SPACING_DHW)] == [6, 20, 15]


@pytest.mark.parametrize("count", [1, 14, 40])
def test_every_class_is_drawn_in_its_color(tmp_path: Path, labels: np.ndarray, count: int) -> None:
    path = tmp_path / "preview.png"
    names = {k: f"Some structure {k}" for k in range(1, count + 1)}
    save_preview(path, np.zeros(labels.shape), labels, SPACING_DHW, names, title="case")
    picture = Image.open(path).convert("RGB")
    counted = picture.getcolors(picture.width * picture.height)
    pixels, shown = (np.array(column) for column in zip(*counted, strict=True))
    colors = {label: 255 * np.array(numbered_color(label)) for label in names}
    for label, color in colors.items():  # the legend's patches: 0.45 of the color on white
        patch = color * 0.45 + 255 * 0.55
        assert pixels[np.abs(shown - patch).max(axis=1) < 4].sum() > 100, label
    for label in (1, 2)[:count]:  # the overlay's fill: a third of the color on black
        assert pixels[np.abs(shown - colors[label] * 0.33).max(axis=1) < 6].sum() > 300, label
    assert list(tmp_path.iterdir()) == [path]


def test_panels_keep_the_physical_proportions(tmp_path: Path, labels: np.ndarray) -> None:
    """Black panels on white: their sizes in pixels are in the ratio of their millimeters."""
    path = tmp_path / "preview.png"
    save_preview(path, np.zeros(labels.shape), labels, SPACING_DHW, {1: "One"}, title="")
    dark = np.asarray(Image.open(path).convert("L")) < 128
    columns = np.flatnonzero(dark.sum(axis=0) > 60)
    starts = np.split(columns, np.flatnonzero(np.diff(columns) > 10) + 1)
    assert len(starts) == 3
    widths = [len(group) for group in starts]
    height, width = labels.shape[1] * 1.0, labels.shape[2] * 2.0
    assert widths[0] / widths[2] == pytest.approx(width / height, rel=0.03)
    assert widths[0] == pytest.approx(widths[1], abs=3)
    rows = np.flatnonzero(dark[:, starts[0][0] + 5 : starts[0][-1] - 5].mean(axis=1) > 0.6)
    assert len(rows) / widths[0] == pytest.approx(height / width, rel=0.03)


def test_edge_cases_are_drawn(tmp_path: Path) -> None:
    path = tmp_path / "preview.png"
    for shape in ((1, 1, 1), (1, 64, 64), (300, 8, 8)):
        empty = np.zeros(shape, dtype=np.uint16)
        save_preview(path, empty, empty, (0.001, 0.5, 0.5), {}, title="", orientation="none")
        full = np.full(shape, 700, dtype=np.uint16)
        save_preview(path, full, full, (3.0, 0.5, 0.5), {700: "All"}, title="t")
    with raises(InputError, "shapes-differ"):
        save_preview(path, np.zeros((2, 2, 2)), np.zeros((2, 2), int), SPACING_DHW, {}, title="")


def test_a_missing_library_names_the_extra(
    tmp_path: Path, labels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medals_rt.common.optional_deps.find_spec", lambda _: None)
    with raises(MissingDependencyError, "dependency-missing", "medals-rt[preview]"):
        save_preview(tmp_path / "a.png", labels, labels, SPACING_DHW, {}, title="")
