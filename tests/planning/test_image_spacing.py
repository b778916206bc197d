"""Spacings as files say them: believed, repaired, doubted."""

from __future__ import annotations

import numpy as np
import pytest

from medals_rt.common.choices import MODALITIES, PresetName
from medals_rt.planning.image_spacing import clean_spacing, spacing_for
from medals_rt.planning.policy import load_policy


@pytest.mark.parametrize(
    ("shape_dhw", "stored", "clean"),
    [
        ((30, 200, 200), (0.7, 0.7, 5.0), (0.7, 0.7, 5.0)),
        ((200, 200, 30), (0.7, 0.7, 5.0), (0.7, 5.0, 0.7)),  # the coarse axis is the short one
        ((200, 30, 200), (0.4, 0.4, 0.5), (0.4, 0.4, 0.5)),  # no swap up to 0.5
        ((30, 200, 200), (0.05, 0.7, 5.0), (1.0, 0.7, 5.0)),
        ((30, 30, 30), (2, 1, 1), (1.0, 1.0, 2.0)),  # of equal lengths the first, D, is shortest
    ],
)
def test_stored_spacing_is_repaired(
    shape_dhw: tuple[int, ...], stored: tuple[float, ...], clean: tuple[float, ...]
) -> None:
    found = clean_spacing(shape_dhw, stored)
    assert found == tuple(float(np.float32(value)) for value in clean)


LONG_DHW, LONG_MM = (700, 512, 512), (0.78, 0.78, 1.0)
"""A scan of legs: more slices than rows, and the slices coarser than the rows."""


@pytest.mark.parametrize(
    ("stated", "preset", "repaired"),
    [
        (True, "paper", False),
        (False, "paper", True),
        (True, "release", True),
        (False, "release", True),
    ],
)
def test_a_stated_spacing_is_believed(stated: bool, preset: PresetName, repaired: bool) -> None:
    found, notes = spacing_for(
        LONG_DHW,
        LONG_MM,
        geometry_is_stated=stated,
        preset=load_policy().preset(preset),
        modality="CT",
    )
    expected = (1.0, 0.78, 0.78) if repaired else LONG_MM
    assert found == tuple(float(np.float32(value)) for value in expected)
    assert [(note.code, note.severity) for note in notes] == (
        [("spacing-repaired", "warning")] if repaired else []
    )


@pytest.mark.parametrize(
    ("shape_dhw", "stored", "said"),
    [
        ((30, 200, 200), (0.05, 0.7, 5.0), ["taken as 1"]),
        ((200, 200, 30), (0.7, 0.7, 5.0), ["moved to the axis of the fewest voxels"]),
        (
            (200, 200, 30),
            (0.7, 0.05, 5.0),
            ["taken as 1", "moved to the axis of the fewest voxels"],
        ),
        ((30, 200, 200), (0.7, 0.7, 5.0), []),
    ],
)
def test_a_repair_is_told(
    shape_dhw: tuple[int, ...], stored: tuple[float, ...], said: list[str]
) -> None:
    _, notes = spacing_for(
        shape_dhw,
        stored,
        geometry_is_stated=False,
        preset=load_policy().preset("paper"),
        modality="CT",
    )
    assert len(notes) == bool(said)
    assert all(part in str(note) for note in notes for part in said)
    if len(said) == 1:
        (other,) = {"taken as 1", "moved to the axis of the fewest voxels"} - set(said)
        assert other not in str(notes[0])


@pytest.mark.parametrize(
    ("spacing", "doubtful"),
    [
        ((0.001, 0.001, 0.003), True),  # meters
        ((0.3, 0.3, 0.9), False),
        ((0.09, 0.5, 0.5), True),
        ((20.0, 20.0, 20.0), False),
        ((1.0, 20.5, 20.5), True),
        ((1.0, 1.0, 25.0), False),  # a slice may be thick
        ((1.0, 1.0, 30.0), False),
        ((1.0, 1.0, 30.5), True),
    ],
)
def test_a_spacing_that_no_body_has_is_doubted(
    spacing: tuple[float, float, float], doubtful: bool
) -> None:
    for modality in MODALITIES:
        found, notes = spacing_for(
            (20, 200, 200),
            spacing,
            geometry_is_stated=True,
            preset=load_policy().preset("paper"),
            modality=modality,
        )
        assert found == pytest.approx(spacing, rel=1e-6)
        expected = ["spacing-implausible"] if doubtful and modality != "Microscopy" else []
        assert [note.code for note in notes] == expected


def test_a_whole_matrix_of_a_few_centimeters_is_doubted() -> None:
    """200 voxels of a body are no 3 cm; an ultrasound of a small part may be."""
    for modality in MODALITIES:
        _, notes = spacing_for(
            (20, 200, 200),
            (0.15, 0.15, 0.9),
            geometry_is_stated=True,
            preset=load_policy().preset("paper"),
            modality=modality,
        )
        assert [note.code for note in notes] == ["spacing-implausible"] * (
            modality in {"CT", "MRI", "PET"}
        )
