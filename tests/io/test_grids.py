"""Two grids: the same, shifted, turned, stretched."""

import numpy as np
import pytest

from medals_rt.io.grids import Grid, grid_of, same_grid
from medals_rt.io.volume import SourceGrid, Volume

SHAPE = (40, 60, 80)
AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])


def grid(affine: np.ndarray = AFFINE, shape: tuple[int, int, int] = SHAPE) -> Grid:
    w, h, d = np.linalg.norm(affine[:3, :3], axis=0)
    return Grid(shape, (h, w, d), affine)


def changed(*, shift: float = 0.0, degrees: float = 0.0, scale: float = 1.0) -> Grid:
    angle = np.radians(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = turn @ AFFINE @ np.diag([scale, scale, scale, 1.0])
    affine[0, 3] += shift
    return grid(affine)


@pytest.mark.parametrize("shift", [0.0, 0.09, -0.09])
def test_a_tenth_of_a_voxel_is_no_difference(shift: float) -> None:
    assert same_grid(grid(), changed(shift=shift)) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shift": 0.11}, "shifted by 0.11 mm"),
        ({"shift": 30.0}, "shifted by 30 mm"),
        ({"degrees": 30.0}, "turned by 30.0 degrees"),
        ({"scale": 2.0}, "spacing 3 x 2 x 4 mm instead of 1.5 x 1 x 2 mm"),
    ],
)
def test_differences_are_named(change: dict[str, float], words: str) -> None:
    assert words in (same_grid(grid(), changed(**change)) or "")


def test_shapes_and_spacings_alone() -> None:
    assert "shape" in (same_grid(Grid((1, 2, 3)), Grid((1, 2, 4))) or "")
    assert same_grid(Grid(SHAPE), grid()) is None
    assert "spacing" in (same_grid(Grid(SHAPE, (1.0, 1.0, 2.0)), grid()) or "")


def test_a_flipped_file_of_the_same_place_is_the_same_grid() -> None:
    flipped = AFFINE.copy()
    flipped[0, 0], flipped[0, 3] = -1.0, SHAPE[2] - 1
    volumes = [
        Volume(np.zeros(SHAPE, np.uint8), (1.5, 1.0, 2.0), source=SourceGrid.from_affine(affine))
        for affine in (AFFINE, flipped)
    ]
    assert same_grid(grid_of(volumes[0]), grid_of(volumes[1])) is None
