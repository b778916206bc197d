"""Surface Dice at a tolerance (NSD), with surface elements weighted by their area.

The surface of a mask is taken between voxel centers: every 2 x 2 x 2 neighborhood that is neither
empty nor full holds one surface element, whose area is that of the marching-cubes polygons through
the middles of the neighborhood's edges. Two elements are as far apart as their neighborhoods'
corners. These are the definitions of the public challenge's scoring, derived
here from the geometry and checked against an independent implementation in the tests.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from medals_rt.common.typing import HostArray

_Corner = tuple[int, int, int]
_Triangle = tuple[int, int, int]
_CORNERS: tuple[_Corner, ...] = tuple((k >> 2 & 1, k >> 1 & 1, k & 1) for k in range(8))
_MOST_TRIANGLES = 4


class Surface(NamedTuple):
    """The surface elements of one mask.

    Attributes
    ----------
    positions
        (n, 3) int64, the neighborhoods' indices on the grid of the whole array.
    areas_mm2
        (n,) float64.
    """

    positions: HostArray
    areas_mm2: HostArray


def surface_dice(
    first: HostArray,
    second: HostArray,
    spacing_mm: tuple[float, float, float],
    tolerance_mm: float = 2.0,
) -> float:
    """Share of both surfaces that lies within a tolerance of the other one.

    Parameters
    ----------
    first, second
        Bool arrays of one three-dimensional shape.
    spacing_mm
        Voxel spacing along the arrays' axes, in their order.
    tolerance_mm
        Largest distance that counts as touching, in millimeters.

    Returns
    -------
    0 to 1; 0 where one mask is empty, NaN where both are.
    """
    return surfaces_dice(
        surface_of(first, spacing_mm), surface_of(second, spacing_mm), spacing_mm, tolerance_mm
    )


def surfaces_dice(
    first: Surface,
    second: Surface,
    spacing_mm: tuple[float, float, float],
    tolerance_mm: float = 2.0,
) -> float:
    """Compute `surface_dice` of two surfaces that are already extracted."""
    total = first.areas_mm2.sum() + second.areas_mm2.sum()
    if total == 0:
        return float("nan")
    if len(first.areas_mm2) == 0 or len(second.areas_mm2) == 0:
        return 0.0
    touching = sum(
        one.areas_mm2[_within(one.positions, other.positions, spacing_mm, tolerance_mm)].sum()
        for one, other in ((first, second), (second, first))
    )
    return float(touching / total)


def surface_of(
    mask: HostArray,
    spacing_mm: tuple[float, float, float],
    origin: tuple[int, ...] = (0, 0, 0),
) -> Surface:
    """Find the surface elements of a mask.

    Parameters
    ----------
    mask
        (a, b, c) bool; what lies outside of it counts as background.
    spacing_mm
        Voxel spacing along the mask's axes.
    origin
        The index of the mask's first voxel in the whole array, where it is a crop of one.
    """
    codes: HostArray = np.pad(np.asarray(mask, dtype=bool), 1).astype(np.uint8)
    codes = codes[:, :, :-1] | codes[:, :, 1:] << 1
    codes = codes[:, :-1] | codes[:, 1:] << 2
    codes = codes[:-1] | codes[1:] << 4
    positions = np.argwhere((codes != 0) & (codes != 0xFF))
    areas_mm2 = _areas_by_code(spacing_mm)[codes[tuple(positions.T)]]
    return Surface(positions + np.asarray(origin), areas_mm2)


def _within(
    points: HostArray,
    others: HostArray,
    spacing_mm: tuple[float, float, float],
    tolerance_mm: float,
) -> HostArray:
    """Find which points have one of the others within a tolerance (bool, one a point).

    The tree finds the nearest one; the distance is then taken again from whole index differences,
    so that a distance of exactly the tolerance counts as within it.
    """
    from scipy.spatial import cKDTree

    spacing = np.asarray(spacing_mm, dtype=np.float64)
    slack = tolerance_mm * 1e-6 + 1e-9
    _, nearest = cKDTree(others * spacing).query(
        points * spacing, distance_upper_bound=tolerance_mm + slack
    )
    found: HostArray = nearest < len(others)
    steps_mm = (points[found] - others[nearest[found]]) * spacing
    distances_mm = np.sqrt((steps_mm**2).sum(axis=1))
    found[found] = distances_mm <= tolerance_mm
    return found


def _areas_by_code(spacing_mm: tuple[float, float, float]) -> HostArray:
    """Area of the surface element of each of the 256 neighborhoods, in mm2."""
    a, b, c = spacing_mm
    lengths: HostArray = np.linalg.norm(_normals_by_code() * (b * c, a * c, a * b), axis=2)
    areas: HostArray = lengths.sum(axis=1)
    return areas


@lru_cache(maxsize=1)
def _normals_by_code() -> HostArray:
    """Area vectors of the triangles of each neighborhood, (256, 4, 3), unit spacing.

    Bit k of a neighborhood's code tells whether its k-th corner is inside. Complements have the
    same surface. Inside corners that only share a face's diagonal are kept apart, and a polygon
    that is not flat is cut into the triangles of the largest total area.
    """
    normals = np.zeros((256, _MOST_TRIANGLES, 3))
    for code in range(1, 255):
        inside = {corner for k, corner in enumerate(_CORNERS) if code >> k & 1}
        if len(inside) > len(_CORNERS) // 2:
            inside = set(_CORNERS) - inside
        triangles = [vector for polygon in _polygons(inside) for vector in _cut(polygon)]
        normals[code, : len(triangles)] = triangles
    return normals


def _polygons(inside: set[_Corner]) -> Iterator[HostArray]:
    """Find the closed polygons that part the inside corners from the others, (n, 3) each.

    On each face, seen from outside, a run of inside corners is cut off by a segment from the edge
    where the run is entered to the edge where it is left. An edge is entered on one of its two
    faces and left on the other, so the segments chain up into loops.
    """
    following: dict[frozenset[_Corner], frozenset[_Corner]] = {}
    for face in _faces():
        for first in range(4):
            if face[first - 1] in inside or face[first] not in inside:
                continue
            last = first
            while face[(last + 1) % 4] in inside:
                last += 1
            entered = frozenset((face[first - 1], face[first]))
            following[entered] = frozenset((face[last % 4], face[(last + 1) % 4]))
    while following:
        start_edge, edge = following.popitem()
        loop = [start_edge]
        while edge != start_edge:
            loop.append(edge)
            edge = following.pop(edge)
        yield np.array([np.mean(list(ends), axis=0) for ends in loop])


@lru_cache(maxsize=1)
def _faces() -> tuple[tuple[_Corner, ...], ...]:
    """Return the six faces of the unit cube, corners counter-clockwise as seen from outside."""
    faces = []
    for axis, side in product(range(3), (0, 1)):
        corners = []
        for second, third in ((0, 0), (1, 0), (1, 1), (0, 1)):
            corner = [0, 0, 0]
            corner[axis], corner[(axis + 1) % 3], corner[(axis + 2) % 3] = side, second, third
            corners.append((corner[0], corner[1], corner[2]))
        faces.append(tuple(corners if side else reversed(corners)))
    return tuple(faces)


def _cut(polygon: HostArray) -> list[HostArray]:
    """Cut a polygon into triangles of the largest total area; give their area vectors."""
    choices = (
        [np.cross(polygon[j] - polygon[i], polygon[k] - polygon[i]) / 2 for i, j, k in triangles]
        for triangles in _triangulations(0, len(polygon) - 1)
    )
    return max(choices, key=lambda vectors: round(sum(map(float, map(np.linalg.norm, vectors))), 9))


def _triangulations(first: int, last: int) -> Iterator[list[_Triangle]]:
    """List every way to cut the polygon first..last into triangles."""
    if last - first < 2:
        yield []
    for middle in range(first + 1, last):
        for before in _triangulations(first, middle):
            for after in _triangulations(middle, last):
                yield [*before, *after, (first, middle, last)]
