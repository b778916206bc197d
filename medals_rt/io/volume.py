"""The image of a case, its spacing, and how to return to the grid of its file.

Axes. Arrays of this package are `(D, H, W)` where a file is read or written and `(H, W, D)` where
the model works; this is the only module that reorders them. The canonical orientation is that of a
challenge file: as SimpleITK reads an image whose directions are the identity of the LPS frame, so
D grows to the head (superior), H to the back (posterior) and W to the patient's left. Files of
another orientation are permuted and flipped when read, never resampled, and results go back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from medals_rt.common.arrays import namespace
from medals_rt.common.errors import CaseError
from medals_rt.common.notes import Note, warning
from medals_rt.common.typing import Array, HostArray
from medals_rt.io.nifti_geometry import (
    RAS_TO_LPS,
    nifti_geometry,
    orientation_is_assumed,
)

Triple: TypeAlias = tuple[float, float, float]
Affine: TypeAlias = tuple[tuple[float, ...], ...]

_FEWEST_SLICES: Final = 3
_SHEARED: Final = 0.01
"""Cosine between two axes from which on a grid counts as sheared; rounding stays far below."""
_OTHER_THAN_3D: Final = {
    2: ", as a single slice has",
    4: ", as several points in time or channels have",
    5: ", as images in color or of several points in time have",
}
"""What images of so many axes mostly are."""


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
        4 x 4, voxel index `(i, j, k, 1)` to millimeters in the LPS frame; `None` where the file
        knows no place in space (a challenge file).
    is_assumed
        Whether the affine is that of a file which names no orientation: its axes are taken to run
        as ours do.
    frame_uid
        DICOM's frame of reference; empty where the file names none. Places in two frames have
        nothing to do with each other.
    """

    permutation: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)
    affine_lps: Affine | None = None
    is_assumed: bool = False
    frame_uid: str = ""

    @classmethod
    def from_affine(
        cls, affine_lps: HostArray, *, is_assumed: bool = False, frame_uid: str = ""
    ) -> SourceGrid:
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
                "the file's geometry isn't a finite 4 x 4 affine; mend its header",
                code="geometry-singular",
            )
        directions = affine[:3, :3]
        lengths = np.linalg.norm(directions, axis=0)
        # The volume of a voxel against that of a box of the same edges: 0 means that axes coincide.
        if not (lengths > 0).all() or abs(np.linalg.det(directions / lengths)) < 1e-3:
            raise CaseError(
                "the file's axes don't span space (a spacing is zero or two directions coincide); "
                "mend its header",
                code="geometry-singular",
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
            is_assumed,
            frame_uid,
        )

    @property
    def has_orientation(self) -> bool:
        """Whether the file says how its axes run in the patient."""
        return self.affine_lps is not None and not self.is_assumed

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

    @property
    def voxel_ml(self) -> float | None:
        """Volume of a voxel in milliliters, of a sheared grid too; None without an affine."""
        if self.affine_lps is None:
            return None
        return float(abs(np.linalg.det(np.asarray(self.affine_lps)[:3, :3]))) / 1000.0

    @property
    def shear_degrees(self) -> float:
        """How far the pair of axes that is least at right angles is from it."""
        if self.affine_lps is None:
            return 0.0
        directions = np.asarray(self.affine_lps)[:3, :3]
        cosines = directions / np.linalg.norm(directions, axis=0)
        largest = float(np.abs(np.triu(cosines.T @ cosines, 1)).max())
        return float(np.degrees(np.arcsin(min(largest, 1.0))))

    def canonical_affine_lps(
        self, shape_dhw: tuple[int, int, int], spacing_hwd_mm: Triple
    ) -> HostArray:
        """4 x 4, float64: canonical index `(w, h, d, 1)` to millimeters in the LPS frame.

        Without an affine of its own the grid starts at the origin.
        """
        h_mm, w_mm, d_mm = spacing_hwd_mm
        if self.affine_lps is None:
            return np.diag([w_mm, h_mm, d_mm, 1.0])
        return np.asarray(self.affine_lps, dtype=np.float64) @ self._to_file(shape_dhw)

    def _to_file(self, shape_dhw: tuple[int, int, int]) -> HostArray:
        """4 x 4: canonical index `(w, h, d, 1)` to the file's own `(i, j, k, 1)`."""
        to_file = np.zeros((4, 4))
        to_file[3, 3] = 1.0
        for canonical, (axis, flip) in enumerate(zip(self.permutation, self.flips, strict=True)):
            own, other = 2 - axis, 2 - canonical  # axes of kji and DHW count from behind
            to_file[own, other] = -1.0 if flip else 1.0
            to_file[own, 3] = shape_dhw[canonical] - 1.0 if flip else 0.0
        return to_file

    def moved(
        self,
        shape_dhw: tuple[int, int, int],
        spacing_hwd_mm: Triple,
        new_shape_dhw: tuple[int, int, int],
        scale_dhw: Sequence[float],
        first_dhw: Sequence[float],
    ) -> SourceGrid:
        """Return another grid of the same axes, with a place of its own.

        Parameters
        ----------
        shape_dhw, spacing_hwd_mm
            Of this grid.
        new_shape_dhw, scale_dhw
            Of the new one: its voxels, and how many of this grid's each is long.
        first_dhw
            Where the center of its first voxel lies, in voxels of this grid.
        """
        step = np.diag([*reversed(scale_dhw), 1.0])
        step[:3, 3] = list(reversed(first_dhw))
        canonical = self.canonical_affine_lps(shape_dhw, spacing_hwd_mm) @ step
        affine = canonical @ np.linalg.inv(self._to_file(new_shape_dhw))
        rows = tuple(tuple(float(value) for value in row) for row in affine)
        return SourceGrid(self.permutation, self.flips, rows, not self.has_orientation)

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
    left = np.round(strength, 4)  # rounding in files must not decide about axes at 45 degrees
    for _ in range(3):
        world, axis = np.unravel_index(int(np.argmax(left)), left.shape)
        nearest[int(world)] = int(axis)
        left[world, :] = -1.0
        left[:, axis] = -1.0
    return nearest


@dataclass(frozen=True, eq=False, repr=False)
class Volume:
    """One 3-D image with its voxel size.

    `from_nibabel` and `from_sitk` take an image with its orientation, `from_array` an array and an
    affine. The constructor takes an array that is in canonical orientation already: D to the head,
    H to the back, W to the patient's left. An array of another orientation would be segmented with
    left and right, or head and feet, exchanged.

    Attributes
    ----------
    image_dhw
        `(D, H, W)`, any real or boolean dtype, finite.
    spacing_hwd_mm
        Millimeters along H, W, D. A challenge file's three numbers are read in this order
        (rule 1 of docs/presets.md), without correction.
    name
        Names the case in reports.
    source
        How to return to the grid of the file.
    geometry_is_stated
        Whether the file says which axis each spacing belongs to, as all formats do but a
        challenge's `.npz`, whose spacings are repaired. A source with an affine says so, whatever
        is passed.
    notes
        What is doubtful about the place; see `volume_notes`.

    Raises
    ------
    TypeError
        If the image isn't an array.
    CaseError
        If it isn't a non-empty finite real 3-D array or a spacing isn't positive.
    """

    image_dhw: HostArray
    spacing_hwd_mm: Triple
    name: str = "case"
    source: SourceGrid = field(default_factory=SourceGrid)
    geometry_is_stated: bool = False
    notes: tuple[Note, ...] = ()

    def __post_init__(self) -> None:
        if not all(hasattr(self.image_dhw, each) for each in ("shape", "dtype", "ndim")):
            raise TypeError(
                f"Volume takes an array (D, H, W), not {_type_of(self.image_dhw)}; use "
                "Volume.from_nibabel, Volume.from_sitk or Volume.from_array"
            )
        object.__setattr__(self, "image_dhw", _plain_array(self.image_dhw))
        check_image(self.image_dhw)
        object.__setattr__(self, "spacing_hwd_mm", check_spacing(self.spacing_hwd_mm))
        if self.source.affine_lps is not None:
            object.__setattr__(self, "geometry_is_stated", True)

    def __repr__(self) -> str:
        size = " x ".join(str(each) for each in self.shape_dhw)
        spacing = " x ".join(f"{each:g}" for each in self.spacing_dhw_mm)
        place = "" if self.has_orientation else ", no orientation"
        dtype = self.image_dhw.dtype
        return f"Volume({self.name!r}, {size} voxels of {spacing} mm (D, H, W), {dtype}{place})"

    @classmethod
    def from_nibabel(cls, image: Any, *, name: str = "case") -> Volume:
        """Take an image of nibabel's, with its place: ``Volume.from_nibabel(nibabel.load(path))``.

        NIfTI images are read as files of theirs are; of other formats the affine counts.

        Parameters
        ----------
        image
            A `nibabel.spatialimages.SpatialImage` of three axes, or more of length 1.
        name
            Names the case in reports.

        Raises
        ------
        TypeError
            If it is something else.
        CaseError
            If its values or its geometry can't be used.
        """
        if not all(hasattr(image, each) for each in ("affine", "header", "dataobj")):
            raise TypeError(
                f"Volume.from_nibabel takes an image of nibabel's, not {_type_of(image)}; for an "
                "array use Volume.from_array with its affine"
            )
        shape = tuple(image.shape)
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        array_kji = np.asanyarray(image.dataobj).reshape(shape).transpose()
        if not hasattr(image.header, "get_sform"):
            if image.affine is None:
                raise CaseError("the image has no affine; give it one", code="geometry-missing")
            return cls._placed(array_kji, RAS_TO_LPS @ image.affine, name)
        place = nifti_geometry(image.header, image.header["pixdim"], name)
        if place.affine_lps is not None:
            assumed = orientation_is_assumed(image.header)
            return cls._placed(array_kji, place.affine_lps, name, place.notes, is_assumed=assumed)
        i_mm, j_mm, k_mm = place.spacing_ijk_mm
        return cls(array_kji, (j_mm, i_mm, k_mm), name, geometry_is_stated=True)

    @classmethod
    def from_sitk(cls, image: Any, *, name: str = "case") -> Volume:
        """Take an image of SimpleITK's, with its place: ``Volume.from_sitk(ReadImage(path))``.

        Parameters
        ----------
        image
            A `SimpleITK.Image` of three dimensions and one value a voxel.
        name
            Names the case in reports.

        Raises
        ------
        TypeError
            If it is something else.
        CaseError
            If its values or its geometry can't be used.
        """
        if not all(hasattr(image, each) for each in ("GetDirection", "GetOrigin", "GetSpacing")):
            raise TypeError(
                f"Volume.from_sitk takes a SimpleITK.Image, not {_type_of(image)}; for an array "
                "use Volume.from_array with its affine"
            )
        import SimpleITK

        if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
            raise CaseError(
                f"the image has {image.GetDimension()} dimensions and "
                f"{image.GetNumberOfComponentsPerPixel()} values a voxel; give 3 and 1",
                code="not-3d",
            )
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        affine[:3, 3] = image.GetOrigin()
        return cls._placed(SimpleITK.GetArrayFromImage(image), affine, name)

    @classmethod
    def from_array(
        cls,
        array: HostArray,
        affine: HostArray,
        *,
        axes: Literal["ijk", "kji"],
        frame: Literal["RAS", "LPS"],
        name: str = "case",
    ) -> Volume:
        """Take an array and the affine that says where its voxels lie.

        Parameters
        ----------
        array
            Three axes, in the order that `axes` names.
        affine
            4 x 4, voxel index `(i, j, k, 1)` to millimeters in `frame`.
        axes
            ``"ijk"`` for arrays of nibabel and pynrrd, ``"kji"`` for those of SimpleITK.
        frame
            ``"RAS"`` for affines of nibabel, ``"LPS"`` for those of SimpleITK and DICOM.
        name
            Names the case in reports.

        Raises
        ------
        TypeError
            If `axes` or `frame` is something else.
        CaseError
            If values or geometry can't be used.
        """
        if axes not in {"ijk", "kji"}:
            raise TypeError(f'axes is "ijk" (nibabel) or "kji" (SimpleITK), not {axes!r}')
        if frame not in {"RAS", "LPS"}:
            raise TypeError(f'frame is "RAS" (nibabel) or "LPS" (SimpleITK, DICOM), not {frame!r}')
        matrix = np.asarray(affine, dtype=np.float64)
        if matrix.shape != (4, 4):
            raise CaseError(
                f"the affine has the shape {matrix.shape}; give 4 x 4, voxel index (i, j, k, 1) to "
                "millimeters",
                code="affine-shape",
            )
        if frame == "RAS" and matrix.shape == (4, 4):
            matrix = RAS_TO_LPS @ matrix
        array = _plain_array(array)
        return cls._placed(array.transpose() if axes == "ijk" else array, matrix, name)

    @classmethod
    def _placed(
        cls,
        array_kji: HostArray,
        affine_lps: HostArray,
        name: str,
        notes: tuple[Note, ...] = (),
        *,
        is_assumed: bool = False,
    ) -> Volume:
        check_image(array_kji)
        source = SourceGrid.from_affine(affine_lps, is_assumed=is_assumed)
        spacing = check_spacing(source.spacing_hwd_mm or ())
        image = source.to_canonical(array_kji)
        return cls(image, spacing, name, source, notes=notes)

    @property
    def has_orientation(self) -> bool:
        """Whether it is known how the axes run in the patient; else they are taken to be right."""
        return self.source.has_orientation

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
        """Millimeters along D, H, W."""
        h, w, d = self.spacing_hwd_mm
        return (d, h, w)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in milliliters."""
        h, w, d = self.spacing_hwd_mm
        known = self.source.voxel_ml
        return h * w * d / 1000.0 if known is None else known

    @property
    def affine_lps(self) -> HostArray:
        """4 x 4, float64: the file's voxel index `(i, j, k, 1)` to millimeters in the LPS frame.

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
                f"{self.shape_dhw} (D, H, W)",
                code="shapes-differ",
            )
        return self.source.to_source(labels_dhw)


def volume_notes(volume: Volume) -> tuple[Note, ...]:
    """Return what a person should know of a volume's place, for the report."""
    notes = volume.notes
    if not volume.has_orientation:
        text = "no orientation is known: the axes are taken to run to head, back and left"
        # A challenge's file never states one; a file that could and doesn't needs a look.
        severe = volume.geometry_is_stated
        note = warning if severe else Note
        notes += (note("orientation-assumed", text),)
    for axis, size in zip("DHW", volume.shape_dhw, strict=True):
        if size < _FEWEST_SLICES:
            count = "one voxel" if size == 1 else f"{size} voxels"
            text = f"the image is {count} thick along {axis}, hardly a volume: results are doubtful"
            notes += (warning("few-slices", text),)
    shear = volume.source.shear_degrees
    if np.sin(np.radians(shear)) > _SHEARED:
        text = (
            f"the slices are shifted against each other (a grid sheared by {shear:.1f} degrees): "
            "pictures show shapes slanted, and the model saw them so; volumes are right"
        )
        notes += (warning("grid-sheared", text),)
    return notes


def _plain_array(array: Any) -> Any:
    """Return a tensor of PyTorch's and its like as a NumPy array; others as they are.

    Raises
    ------
    TypeError
        It is neither, or has a mask, of which nobody can tell what lies below.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            "the image has a mask, which would be ignored: fill it, such as array.filled(-1024)"
        )
    if not hasattr(array, "dtype"):
        raise TypeError(f"an image is an array, not {_type_of(array)}")
    return array if hasattr(array.dtype, "kind") else np.asarray(array)


def check_image(
    image_dhw: HostArray, *, max_voxels: int | None = None, what: str = "the image"
) -> None:
    """Refuse what can't be an image: see `Volume`. A NumPy array is looked at slice by slice.

    `max_voxels` is for files; None for arrays, whose memory has been found already.
    """
    shape = tuple(int(size) for size in image_dhw.shape)
    check_shape(shape, max_voxels=max_voxels, what=what)
    if image_dhw.dtype.kind not in "biuf":
        raise CaseError(
            f"{what} has values of type {image_dhw.dtype}; give real numbers (integer or float)",
            code="value-type",
        )
    if image_dhw.dtype.kind == "f":
        for index, plane in enumerate(image_dhw):
            finite = np.isfinite(plane) if isinstance(plane, np.ndarray) else plane - plane == 0
            if not bool(finite.all()):
                count = int((~finite).sum())
                raise CaseError(
                    f"{what} holds NaN or infinite values (slice {index} has {count}); "
                    "replace them by real intensities",
                    code="values-not-finite",
                )


def check_shape(
    shape: Sequence[int], *, max_voxels: int | None = None, what: str = "the image"
) -> None:
    """Refuse a shape that isn't 3-D, is empty or has more than `max_voxels` (None: any)."""
    if len(shape) != 3:
        sizes = " x ".join(map(str, shape)) or "none"
        like = _OTHER_THAN_3D.get(len(shape), "")
        raise CaseError(
            f"{what} has {len(shape)} axes ({sizes}){like}; give one volume of three",
            code="not-3d",
        )
    if min(shape) < 1:
        raise CaseError(
            f"{what} is empty: shape {tuple(shape)}; give at least one voxel an axis",
            code="image-empty",
        )
    voxels = shape[0] * shape[1] * shape[2]
    if max_voxels is not None and voxels > max_voxels:
        raise CaseError(
            f"{what} has {voxels:,} voxels, more than the limit of {max_voxels:,}; "
            "crop it or raise the limit",
            code="too-many-voxels",
        )


def check_spacing(spacing: Sequence[float] | HostArray) -> Triple:
    """Three positive finite millimeters as floats, or a `CaseError` that quotes what was found."""
    values = [_number(value) for value in np.asarray(spacing, dtype=object).ravel()]
    if len(values) != 3:
        raise CaseError(
            f"spacing has {len(values)} values, not 3; give the voxel size in mm along H, W, D",
            code="spacing-not-three-numbers",
        )
    if not all(np.isfinite(value) and value > 0 for value in values):
        found = ", ".join(f"{value:g}" for value in values)
        raise CaseError(
            f"spacing is ({found}); each must be a positive number of millimeters",
            code="spacing-not-positive",
        )
    return (values[0], values[1], values[2])


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise CaseError(
            f"spacing holds {value!r}; give three numbers, the voxel size in mm",
            code="spacing-not-three-numbers",
        ) from None


def _type_of(value: object) -> str:
    kind = type(value)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else (f"{kind.__module__}.{kind.__qualname__}")
    )
