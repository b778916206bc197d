"""The image of a case, its spacing, and the way back to the file that it came from.

Axes. Arrays of this package are `(D, H, W)` where a file is read or written and `(H, W, D)` where
the model works; this is the only module that reorders them. The canonical orientation is that of a
challenge file: as SimpleITK reads an image whose directions are the identity of the LPS frame, so
D grows to the head (superior), H to the back (posterior) and W to the patient's left. Files of
another orientation are permuted and flipped when read, never resampled, and results go back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from medals_rt.common import limits
from medals_rt.common.arrays import namespace
from medals_rt.common.errors import CaseError
from medals_rt.common.typing import Array, HostArray

if TYPE_CHECKING:
    from collections.abc import Sequence


MAX_VOXELS = limits.MAX_VOXELS
"""Largest volume accepted unless a caller says otherwise."""

Triple: TypeAlias = tuple[float, float, float]
Affine: TypeAlias = tuple[tuple[float, ...], ...]


def to_hwd(array_dhw: Array) -> Array:
    """View of an array `(..., D, H, W)` as `(..., H, W, D)`, NumPy or CuPy; nothing is copied."""
    leading = tuple(range(array_dhw.ndim - 3))
    last = array_dhw.ndim - 1
    return namespace(array_dhw).permute_dims(array_dhw, (*leading, last - 1, last, last - 2))


def to_dhw(array_hwd: Array) -> Array:
    """View of an array `(..., H, W, D)` as `(..., D, H, W)`, NumPy or CuPy; nothing is copied."""
    leading = tuple(range(array_hwd.ndim - 3))
    last = array_hwd.ndim - 1
    return namespace(array_hwd).permute_dims(array_hwd, (*leading, last, last - 2, last - 1))


@dataclass(frozen=True)
class SourceGrid:
    """How a file's own array relates to the canonical one.

    A file's own array is `(k, j, i)`, `i` being the axis that runs fastest in the file, which is
    also what SimpleITK hands to NumPy.

    Attributes
    ----------
    permutation
        For each canonical axis D, H, W the axis of the `(k, j, i)` array that it comes from.
    flips
        For each canonical axis whether it runs against that axis of the file.
    affine_lps
        4 x 4, voxel index `(i, j, k, 1)` to millimetres in the LPS frame; `None` where the file
        knows no place in space (a challenge file).
    """

    permutation: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)
    affine_lps: Affine | None = None

    @classmethod
    def from_affine(cls, affine_lps: HostArray) -> SourceGrid:
        """Find the permutation and flips that bring a file nearest to the canonical orientation.

        An oblique grid keeps its tilt: each axis of the file goes to the patient's axis that it
        runs along most.

        Raises
        ------
        CaseError
            If the matrix isn't a finite 4 x 4 affine with three independent directions.
        """
        affine = np.asarray(affine_lps, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise CaseError(
                "the file's geometry isn't a finite 4 x 4 affine; write its header anew"
            )
        directions = affine[:3, :3]
        lengths = np.linalg.norm(directions, axis=0)
        # The volume of a voxel against that of a box of the same edges: 0 means that axes coincide.
        if not (lengths > 0).all() or abs(np.linalg.det(directions / lengths)) < 1e-3:
            raise CaseError(
                "the file's axes don't span space (a direction is zero or two coincide); "
                "write its header anew"
            )
        cosines = directions / lengths
        nearest = _assign_axes(np.abs(cosines))
        # World x, y, z (L, P, S) are the canonical W, H, D; file axes i, j, k are 2, 1, 0 of kji.
        by_canonical = [nearest[2], nearest[1], nearest[0]]
        permutation = tuple(2 - axis for axis in by_canonical)
        flips = tuple(
            bool(cosines[world, axis] < 0)
            for world, axis in zip((2, 1, 0), by_canonical, strict=True)
        )
        rows = tuple(tuple(float(value) for value in row) for row in affine)
        return cls(
            (permutation[0], permutation[1], permutation[2]),
            (flips[0], flips[1], flips[2]),
            rows,
        )

    @property
    def spacing_ijk_mm(self) -> Triple | None:
        """Lengths of the file's voxel along i, j, k; `None` where the file has no affine."""
        if self.affine_lps is None:
            return None
        lengths = np.linalg.norm(np.asarray(self.affine_lps)[:3, :3], axis=0)
        return (float(lengths[0]), float(lengths[1]), float(lengths[2]))

    @property
    def spacing_hwd_mm(self) -> Triple | None:
        """Spacing of the canonical array along H, W, D; `None` where the file has no affine."""
        ijk = self.spacing_ijk_mm
        if ijk is None:
            return None
        d, h, w = (ijk[2 - axis] for axis in self.permutation)
        return (h, w, d)

    def to_canonical(self, array_kji: HostArray) -> HostArray:
        """View of the file's own array `(k, j, i)` in canonical `(D, H, W)`."""
        turned = array_kji.transpose(self.permutation)
        return turned[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]

    def to_source(self, array_dhw: HostArray) -> HostArray:
        """View of a canonical `(D, H, W)` array in the file's own `(k, j, i)` order."""
        unflipped = array_dhw[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]
        inverse = [self.permutation.index(axis) for axis in range(3)]
        return unflipped.transpose(inverse)


def _assign_axes(strength: HostArray) -> list[int]:
    """For each world axis the file axis to use, strongest pair first, each axis once."""
    nearest = [-1, -1, -1]
    left = strength.copy()
    for _ in range(3):
        world, axis = np.unravel_index(int(np.argmax(left)), left.shape)
        nearest[int(world)] = int(axis)
        left[world, :] = -1.0
        left[:, axis] = -1.0
    return nearest


@dataclass(frozen=True, eq=False)
class Volume:
    """One 3-D image with its voxel size.

    Attributes
    ----------
    image_dhw
        `(D, H, W)`, any real or boolean dtype, finite. Values in 0 to 255 are taken as they are;
        others (Hounsfield units, say) are scaled by `intensities.prepare_intensities`.
    spacing_hwd_mm
        Millimetres along H, W, D. A challenge file's three numbers are read in this order
        (system rule 4.1), without correction.
    name
        Names the case in reports and seeds its random masks.
    source
        The way back to the grid of the file.

    Raises
    ------
    CaseError
        If the image isn't a non-empty finite real 3-D array or a spacing isn't positive.
    """

    image_dhw: HostArray
    spacing_hwd_mm: Triple
    name: str = "case"
    source: SourceGrid = field(default_factory=SourceGrid)

    def __post_init__(self) -> None:
        check_image(self.image_dhw)
        object.__setattr__(self, "spacing_hwd_mm", check_spacing(self.spacing_hwd_mm))

    @property
    def shape_dhw(self) -> tuple[int, int, int]:
        """Number of voxels along D, H, W."""
        d, h, w = self.image_dhw.shape
        return (int(d), int(h), int(w))

    @property
    def shape_hwd(self) -> tuple[int, int, int]:
        """Number of voxels along H, W, D."""
        d, h, w = self.shape_dhw
        return (h, w, d)

    @property
    def spacing_dhw_mm(self) -> Triple:
        """Millimetres along D, H, W."""
        h, w, d = self.spacing_hwd_mm
        return (d, h, w)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        h, w, d = self.spacing_hwd_mm
        return h * w * d / 1000.0

    @property
    def affine_lps(self) -> HostArray:
        """4 x 4, float64: the file's voxel index `(i, j, k, 1)` to millimetres in the LPS frame.

        For a file that knows no place in space the axes run to left, back and head from the origin.
        """
        if self.source.affine_lps is None:
            h, w, d = self.spacing_hwd_mm
            return np.diag([w, h, d, 1.0])
        return np.asarray(self.source.affine_lps, dtype=np.float64)

    def restore(self, labels_dhw: HostArray) -> HostArray:
        """Bring a result `(D, H, W)` back onto the file's own grid `(k, j, i)`.

        Raises
        ------
        CaseError
            If its shape isn't the image's.
        """
        if tuple(labels_dhw.shape) != self.shape_dhw:
            raise CaseError(
                f"a result of shape {tuple(labels_dhw.shape)} doesn't belong to an image of shape "
                f"{self.shape_dhw} (D, H, W)"
            )
        return self.source.to_source(labels_dhw)


def check_image(
    image_dhw: HostArray, *, max_voxels: int = MAX_VOXELS, what: str = "the image"
) -> None:
    """Refuse what can't be an image: see `Volume`. A NumPy array is looked at slice by slice."""
    shape = tuple(int(size) for size in image_dhw.shape)
    check_shape(shape, max_voxels=max_voxels, what=what)
    if image_dhw.dtype.kind not in "biuf":
        raise CaseError(
            f"{what} has values of type {image_dhw.dtype}; give real numbers (integer or float)"
        )
    if image_dhw.dtype.kind == "f":
        for index, plane in enumerate(image_dhw):
            finite = np.isfinite(plane) if isinstance(plane, np.ndarray) else plane - plane == 0
            if not bool(finite.all()):
                count = int((~finite).sum())
                raise CaseError(
                    f"{what} holds NaN or infinite values (slice {index} has {count}); "
                    "replace them by real intensities"
                )


def check_shape(
    shape: Sequence[int], *, max_voxels: int = MAX_VOXELS, what: str = "the image"
) -> None:
    """Refuse a shape that isn't 3-D, is empty or has more than `max_voxels` voxels."""
    if len(shape) != 3:
        raise CaseError(
            f"{what} has shape {tuple(shape)}, {len(shape)} axes; give one 3-D volume (D, H, W)"
        )
    if min(shape) < 1:
        raise CaseError(f"{what} is empty: shape {tuple(shape)}; give at least one voxel an axis")
    voxels = shape[0] * shape[1] * shape[2]
    if voxels > max_voxels:
        raise CaseError(
            f"{what} has {voxels:,} voxels, more than the limit of {max_voxels:,}; "
            "crop it or raise the limit"
        )


def check_spacing(spacing: Sequence[float]) -> Triple:
    """Three positive finite millimetres as floats, or a `CaseError` that quotes what was found."""
    values = [_number(value) for value in np.asarray(spacing, dtype=object).ravel()]
    if len(values) != 3:
        raise CaseError(
            f"spacing has {len(values)} values, not 3; give the voxel size in mm along H, W, D"
        )
    if not all(np.isfinite(value) and value > 0 for value in values):
        found = ", ".join(f"{value:g}" for value in values)
        raise CaseError(f"spacing is ({found}); each must be a positive number of millimetres")
    return (values[0], values[1], values[2])


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise CaseError(
            f"spacing holds {value!r}; give three numbers, the voxel size in mm"
        ) from None
