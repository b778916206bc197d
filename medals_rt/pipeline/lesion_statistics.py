"""What each lesion of a segmentation measures: volume, diameters, place and intensity.

Pure functions of an image and its numbered lesions; `csv_tables` writes them down.

Diameters are measured between the middles of a lesion's outer voxel faces, as on a surface that
runs halfway between voxel centers inside and outside: a row of n voxels is n voxels long.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medals_rt.common.errors import InputError
from medals_rt.common.typing import HostArray
from medals_rt.io.volume import Triple, Volume

_BLOCK = 256
"""Points whose distances to all others are held at once."""


@dataclass(frozen=True)
class LesionStatistics:
    """One lesion.

    Attributes
    ----------
    label, name
        Label value and class.
    instance
        Its number in the instance map.
    voxels, volume_ml
        Its size.
    mean
        Mean of the image's own intensities, as the file holds them.
    longest_mm
        Longest distance between two points of it.
    axial_longest_mm
        The same within one axial plane (one slice of the canonical array, so that in an oblique
        grid it is the nearest to axial), in the plane where it is longest.
    axial_short_mm
        In that plane, the longest chord of the lesion's convex outline that is perpendicular to
        the longest.
    center_lps_mm
        Mean of its voxels' centers in the patient's LPS frame; None where the file knows no place.
    """

    label: int
    name: str
    instance: int
    voxels: int
    volume_ml: float
    mean: float
    longest_mm: float
    axial_longest_mm: float
    axial_short_mm: float
    center_lps_mm: Triple | None


def lesion_statistics(
    volume: Volume,
    labels_dhw: npt.NDArray[Any],
    instances_dhw: npt.NDArray[Any],
    names: Mapping[int, str],
) -> tuple[LesionStatistics, ...]:
    """Measure every lesion of a segmentation.

    Parameters
    ----------
    volume
        The image as it was read, intensities untouched.
    labels_dhw, instances_dhw
        ``(D, H, W)`` unsigned integers on the host, on the volume's grid; 0 is background. An
        instance has one label throughout.
    names
        Label to class; labels that are not named are left out.

    Returns
    -------
    tuple of LesionStatistics
        In the order of instances.

    Raises
    ------
    InputError
        The shapes differ.
    """
    from scipy.ndimage import find_objects

    for array in (labels_dhw, instances_dhw):
        if array.shape != volume.shape_dhw:
            raise InputError(
                f"labels of shape {array.shape} don't belong to an image of shape "
                f"{volume.shape_dhw} (D, H, W)",
                code="shapes-differ",
            )
    affine = volume.source.canonical_affine_lps(volume.shape_dhw, volume.spacing_hwd_mm)
    measured = []
    for instance, box in enumerate(find_objects(instances_dhw), 1):
        if box is None:
            continue
        mask = instances_dhw[box] == instance
        label = int(labels_dhw[box][mask][0])
        if label not in names:
            continue
        places_whd = np.argwhere(mask)[:, ::-1] + [side.start for side in reversed(box)]
        x, y, z = (affine[:3, :3] @ places_whd.mean(axis=0) + affine[:3, 3]).tolist()
        axial, short = _axial_diameters_mm(mask, affine)
        measured.append(
            LesionStatistics(
                label=label,
                name=names[label],
                instance=instance,
                voxels=len(places_whd),
                volume_ml=len(places_whd) * volume.voxel_ml,
                mean=float(volume.image_dhw[box][mask].mean(dtype=np.float64)),
                longest_mm=_longest(_hull(_face_middles(mask)) @ affine[:3, :3].T)[0],
                axial_longest_mm=axial,
                axial_short_mm=short,
                center_lps_mm=(x, y, z) if volume.has_orientation else None,
            )
        )
    return tuple(measured)


def _axial_diameters_mm(mask_dhw: HostArray, affine: HostArray) -> tuple[float, float]:
    """Longest diameter within a slice, and the longest perpendicular to it there."""
    # A triangular basis of the slices' plane: distances in it are those in the patient.
    to_plane_mm = np.linalg.qr(affine[:3, :2])[1].T
    best = (0.0, 0.0)
    for mask in mask_dhw:
        if not mask.any():
            continue
        outline = _hull(_face_middles(mask)) @ to_plane_mm
        length, first, last = _longest(outline)
        if length > best[0]:
            best = (length, _widest(outline, (outline[last] - outline[first]) / length))
    return best


def _face_middles(mask: HostArray) -> HostArray:
    """Middles of the faces between voxels inside and outside, ``(n, axes)``, last axis first."""
    padded = np.pad(mask, 1)
    found = []
    for axis in range(mask.ndim):
        for side in (-1, 1):
            bare = np.argwhere(padded & ~np.roll(padded, -side, axis)) - 1.0
            bare[:, axis] += side / 2
            found.append(bare)
    return np.concatenate(found)[:, ::-1]


def _hull(points: HostArray) -> HostArray:
    """Corners of the convex hull, in two dimensions in their order around it."""
    from scipy.spatial import ConvexHull

    corners: HostArray = points[ConvexHull(points).vertices]
    return corners


def _longest(points: HostArray) -> tuple[float, int, int]:
    """Longest distance of two points, and which they are."""
    from scipy.spatial.distance import cdist

    best = (-1.0, 0, 0)
    for start in range(0, len(points), _BLOCK):
        distances = cdist(points[start : start + _BLOCK], points)
        first, last = np.unravel_index(int(np.argmax(distances)), distances.shape)
        if distances[first, last] > best[0]:
            best = (float(distances[first, last]), start + int(first), int(last))
    return best


def _widest(outline: HostArray, along: HostArray) -> float:
    """Longest chord of a convex outline across a direction.

    The chord's length is linear between corners, so that the longest starts in one.
    """
    position, across = outline @ along, outline @ (-along[1], along[0])
    next_position, next_across = np.roll(position, -1), np.roll(across, -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (position[:, None] - position) / (next_position - position)
        met = across + share * (next_across - across)
    on_edge = (share >= 0) & (share <= 1)
    high = np.where(on_edge, met, -np.inf).max(axis=1)
    low = np.where(on_edge, met, np.inf).min(axis=1)
    return float((high - low).max())
