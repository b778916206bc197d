"""Whether two grids of voxels lie at the same place."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from medals_rt.common.typing import HostArray
from medals_rt.io.case import LabelFile
from medals_rt.io.volume import Triple, Volume

_TOLERANCE_VOXELS: Final = 0.1
"""How far a corner of one grid may lie from that of the other, in voxels along any axis.

Far above what rounding in headers does (NIfTI's float32, spacings written with three digits: a few
hundredths at the far end of 512 voxels), and well below half a voxel, by which a mistaken origin
(edge or center of the first voxel) shifts a grid.
"""


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a canonical array lie.

    Attributes
    ----------
    shape_dhw
        Voxels along D, H, W.
    spacing_hwd_mm
        None where the file has none.
    affine_lps
        4 x 4, canonical index `(w, h, d, 1)` to millimeters in the LPS frame; None where the file
        knows no place in space.
    frame_uid
        As of a `SourceGrid`.
    """

    shape_dhw: tuple[int, int, int]
    spacing_hwd_mm: Triple | None = None
    affine_lps: HostArray | None = None
    frame_uid: str = ""


def grid_of(found: Volume | LabelFile) -> Grid:
    """Grid of a volume or a label map in canonical orientation."""
    spacing, affine = found.spacing_hwd_mm, None
    if spacing is not None and found.source.affine_lps is not None:
        affine = found.source.canonical_affine_lps(found.shape_dhw, spacing)
    return Grid(found.shape_dhw, spacing, affine, found.source.frame_uid)


def same_grid(first: Grid, second: Grid, tolerance_voxels: float = _TOLERANCE_VOXELS) -> str | None:
    """How the second grid differs from the first, in a few words; None where they are the same.

    Shapes are compared always; places where both are known, else spacings where both are known.

    Parameters
    ----------
    first, second
        The grids.
    tolerance_voxels
        How far corners may lie apart, in voxels along any axis.

    Returns
    -------
    str or None
        Such as ``"shifted by 30.0 mm"``.
    """
    if first.frame_uid and second.frame_uid and first.frame_uid != second.frame_uid:
        return "another frame of reference, so of another examination or patient"
    if first.shape_dhw != second.shape_dhw:
        return f"shape {second.shape_dhw} instead of {first.shape_dhw} (D, H, W)"
    if first.affine_lps is None or second.affine_lps is None:
        if first.spacing_hwd_mm is None or second.spacing_hwd_mm is None:
            return None
        ends = np.array(first.shape_dhw)[[1, 2, 0]] - 1
        stretched = np.divide(second.spacing_hwd_mm, first.spacing_hwd_mm) - 1
        same = (np.abs(stretched) * np.maximum(ends, 1) <= tolerance_voxels).all()
        return None if same else _spacing_text(first, second)
    corners = _corners(first.shape_dhw)
    apart = np.linalg.solve(first.affine_lps, second.affine_lps @ corners) - corners
    if float(np.abs(apart[:3]).max()) <= tolerance_voxels:
        return None
    return _difference(first, second, tolerance_voxels)


def fill_left_out(found: LabelFile, other: Grid) -> LabelFile:
    """Restore the empty slices that a label file left out, as far as another grid reaches.

    Only files that leave them out are changed, and only where voxels of both lie at the same
    places; `same_grid` tells about all else.
    """
    own = grid_of(found)
    if not found.leaves_out_empty or own.affine_lps is None or other.affine_lps is None:
        return found
    start = np.round(np.linalg.solve(other.affine_lps, own.affine_lps)[:3, 3])
    moved = np.eye(4)
    moved[:3, 3] = start
    there = replace(own, affine_lps=other.affine_lps @ moved)
    if same_grid(there, own) is not None:
        return found
    first = start[::-1].astype(int)  # of D, H, W, on the other grid
    before = np.maximum(first, 0)
    after = np.maximum(np.array(other.shape_dhw) - first - own.shape_dhw, 0)
    if not (before.any() or after.any()):
        return found
    shift = np.eye(4)
    for axis, (kji, flip) in enumerate(
        zip(found.source.permutation, found.source.flips, strict=True)
    ):
        shift[2 - kji, 3] = -(after if flip else before)[axis]
    affine = np.asarray(found.source.affine_lps) @ shift
    rows = tuple(tuple(float(value) for value in row) for row in affine)
    widths = list(zip(before.tolist(), after.tolist(), strict=True))
    return replace(
        found,
        labels_dhw=np.pad(found.labels_dhw, widths),
        source=replace(found.source, affine_lps=rows),
    )


def _difference(first: Grid, second: Grid, tolerance_voxels: float) -> str:
    """Name all that differs: spacing, direction, place."""
    a, b = np.asarray(first.affine_lps), np.asarray(second.affine_lps)
    lengths = [np.linalg.norm(matrix[:3, :3], axis=0) for matrix in (a, b)]
    ends = np.maximum(np.array(first.shape_dhw)[::-1] - 1, 1)
    parts = []
    if (np.abs(lengths[1] / lengths[0] - 1) * ends > tolerance_voxels).any():
        parts.append(_spacing_text(first, second))
    turn = (b[:3, :3] / lengths[1]) @ np.linalg.inv(a[:3, :3] / lengths[0])
    # The arc tangent is exact for small angles, where an arc cosine isn't.
    skew = np.linalg.norm(
        [turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]]
    )
    angle = float(np.degrees(np.arctan2(skew, np.trace(turn) - 1)))
    if np.radians(angle) * ends.max() > tolerance_voxels:
        parts.append(f"turned by {angle:.1f} degrees")
    centers = [matrix @ [*((np.array(first.shape_dhw)[::-1] - 1) / 2), 1.0] for matrix in (a, b)]
    shift = float(np.linalg.norm((centers[1] - centers[0])[:3]))
    if shift > tolerance_voxels * float(lengths[0].min()) or not parts:
        parts.append(f"shifted by {shift:.3g} mm")
    return ", ".join(parts)


def _spacing_text(first: Grid, second: Grid) -> str:
    found, expected = (
        " x ".join(f"{value:.4g}" for value in grid.spacing_hwd_mm or ())
        for grid in (second, first)
    )
    return f"spacing {found} mm instead of {expected} mm (H, W, D)"


def _corners(shape_dhw: tuple[int, int, int]) -> HostArray:
    d, h, w = shape_dhw
    corners = itertools.product((0, w - 1), (0, h - 1), (0, d - 1))
    return np.array([(*corner, 1) for corner in corners], dtype=np.float64).T
