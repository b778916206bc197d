"""From DICOM headers to one regular grid of slices, or to the reason why there is none.

A series becomes a volume only where its slices are parallel, of one size, evenly spaced and stacked
along their normal. Everything else is refused with what was found: a volume that is wrong by a
slice or a tilt is worse than none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from medals_rt.common.errors import CaseError
from medals_rt.io.dicom.files import printable, reading
from medals_rt.io.dicom.series import Image, Series

Vector: TypeAlias = npt.NDArray[np.float64]

_GRAY: Final = "MONOCHROME2"
_UNIT_TOLERANCE: Final = 1e-3
_SAME_TOLERANCE: Final = 1e-4
_GRID_TOLERANCE: Final = 0.1
"""How far, in slice distances (or pixels, within a slice), a slice may lie off the even grid."""

_DUPLICATE_TOLERANCE: Final = 0.01
_MISSING_GAP: Final = 1.5


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice: where it is stored, where it lies, and how its values are scaled.

    Attributes
    ----------
    image, frame
        Its file, and its number in it from 0.
    position_lps_mm, orientation
        Center of the first pixel; direction cosines `(2, 3)` along a row and down a column.
    pixel_mm
        Distance of rows, and of columns.
    slope, intercept
        The value is ``slope * stored + intercept``.
    """

    image: Image
    frame: int
    position_lps_mm: Vector
    orientation: Vector
    pixel_mm: tuple[float, float]
    slope: float
    intercept: float

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.image.header.Rows), int(self.image.header.Columns)

    @property
    def normal(self) -> Vector:
        """Unit vector across the slice, right-handed."""
        return np.cross(self.orientation[0], self.orientation[1])


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices in order along their normal, and the affine of `(column, row, slice)` in LPS mm."""

    slices: tuple[Slice, ...]
    affine_lps: Vector


def slices_of(series: Series) -> list[Slice]:
    """Read where each slice lies, from single-frame files or one enhanced multi-frame file.

    Raises
    ------
    CaseError
        If a file isn't gray, or doesn't say where its slices lie or what its values mean.
    """
    multi = [image for image in series.images if "NumberOfFrames" in image.header]
    if multi and len(series.images) > 1:
        raise CaseError(
            f"the series {series} has several multi-frame files; give a folder with one of them"
        )
    slices = []
    for image in series.images:
        with reading(image.file.name):
            _check_values(image)
            if multi:
                slices += _frames(image)
            else:
                slices.append(_slice(image, 0, image.header, image.header, image.header))
    return slices


def stack_slices(slices: Sequence[Slice], series: Series) -> Stack:
    """Sort slices along their normal and check that they make an even grid.

    Raises
    ------
    CaseError
        If there is one slice only, or they differ in size or direction, lie at the same place, are
        unevenly spaced (some are missing), or are shifted against each other (gantry tilt).
    """
    if len(slices) < 2:
        raise CaseError(
            f"the series {series} has one slice, which is no volume; give the folder that holds "
            "all of its slices"
        )
    _check_alike(slices, series)
    first = slices[0]
    positions = np.array([each.position_lps_mm for each in slices])
    along = positions @ first.normal
    order = np.argsort(along, kind="stable")
    ordered = [slices[index] for index in order]
    along, positions = along[order], positions[order]
    _check_spacing(ordered, along, series)
    _check_tilt(ordered, positions, series)
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[0] * first.pixel_mm[1]
    affine[:3, 1] = first.orientation[1] * first.pixel_mm[0]
    affine[:3, 2] = (positions[-1] - positions[0]) / (len(slices) - 1)
    affine[:3, 3] = positions[0]
    return Stack(tuple(ordered), affine)


def _check_values(image: Image) -> None:
    header, name = image.header, image.file.name
    samples, photometric = int(header.get("SamplesPerPixel", 1)), header.PhotometricInterpretation
    if samples != 1 or photometric != _GRAY:
        raise CaseError(
            f"{name} is of kind {printable(photometric)} with {samples} samples a pixel; only "
            f"{_GRAY} images hold intensities, choose the original series"
        )
    if "ModalityLUTSequence" in header:
        raise CaseError(
            f"{name} scales its values by a table, which isn't read; export it with a rescale "
            "slope and intercept"
        )
    if int(header.Rows) < 1 or int(header.Columns) < 1:
        raise CaseError(f"{name} is empty: {header.Rows} rows, {header.Columns} columns")


def _frames(image: Image) -> list[Slice]:
    """Slices of an enhanced multi-frame file: each frame's own groups, else the shared ones."""
    header = image.header
    if "PerFrameFunctionalGroupsSequence" not in header:
        raise CaseError(
            f"{image.file.name} is a multi-frame file that doesn't say where its frames lie; "
            "export it as enhanced multi-frame or as single slices"
        )
    own = header.PerFrameFunctionalGroupsSequence
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])
    if len(own) != int(header.NumberOfFrames):
        raise CaseError(
            f"{image.file.name} announces {header.NumberOfFrames} frames and describes {len(own)}"
        )
    return [
        _slice(
            image,
            number,
            _group(frame, shared, "PlanePositionSequence", image),
            _group(frame, shared, "PlaneOrientationSequence", image),
            _group(frame, shared, "PixelMeasuresSequence", image),
            _group(frame, shared, "PixelValueTransformationSequence", None),
        )
        for number, frame in enumerate(own)
    ]


def _group(frame: Any, shared: list[Any], name: str, needed_by: Image | None) -> Any:
    for groups in (frame, *shared):
        if name in groups and len(groups[name].value):
            return groups[name].value[0]
    if needed_by is not None:
        raise CaseError(f"{needed_by.file.name} has no {name}: it isn't known where a frame lies")
    return {}


def _slice(
    image: Image, frame: int, place: Any, plane: Any, measures: Any, scale: Any = None
) -> Slice:
    name = image.file.name
    position = _numbers(place, "ImagePositionPatient", 3, name)
    orientation = _numbers(plane, "ImageOrientationPatient", 6, name).reshape(2, 3)
    pixel = _numbers(measures, "PixelSpacing", 2, name)
    lengths = np.linalg.norm(orientation, axis=1)
    if (
        np.abs(lengths - 1).max() > _UNIT_TOLERANCE
        or abs(orientation[0] @ orientation[1]) > _UNIT_TOLERANCE
    ):
        raise CaseError(f"{name} has an orientation that isn't two orthogonal unit vectors")
    if pixel.min() <= 0:
        raise CaseError(f"{name} has a pixel spacing of {pixel.tolist()} mm; it must be positive")
    scale = image.header if scale is None else scale
    slope = float(_value(scale, "RescaleSlope", 1.0))
    intercept = float(_value(scale, "RescaleIntercept", 0.0))
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        raise CaseError(f"{name} has an unusable rescale slope {slope:g} or intercept")
    return Slice(
        image, frame, position, orientation, (float(pixel[0]), float(pixel[1])), slope, intercept
    )


def _value(group: Any, name: str, missing: float) -> Any:
    value = group.get(name)
    return missing if value is None else value


def _numbers(group: Any, name: str, count: int, file: str) -> Vector:
    value = group.get(name)
    if value is None:
        raise CaseError(
            f"{file} has no {name}, so that its place in space isn't known; choose an original "
            "series (not a screenshot or a report)"
        )
    numbers = np.asarray([float(each) for each in value], dtype=np.float64)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise CaseError(f"{file} has an unusable {name}: {printable(value)}")
    return numbers


def _check_alike(slices: Sequence[Slice], series: Series) -> None:
    first = slices[0]
    for what, differs in (
        ("sizes", lambda each: each.shape != first.shape),
        (
            "orientations",
            lambda each: np.abs(each.orientation - first.orientation).max() > _SAME_TOLERANCE,
        ),
        (
            "pixel spacings",
            lambda each: not np.allclose(each.pixel_mm, first.pixel_mm, rtol=_SAME_TOLERANCE),
        ),
    ):
        others = [each for each in slices if differs(each)]
        if others:
            raise CaseError(
                f"the series {series} mixes {what}: {others[0].image.file.name} and "
                f"{len(others) - 1} more differ from {first.image.file.name}; give a folder "
                "without them (a localizer is often the cause)"
            )


def _check_spacing(slices: Sequence[Slice], along_mm: Vector, series: Series) -> None:
    gaps = np.diff(along_mm)
    usual = float(np.median(gaps))
    if gaps.min() <= max(_DUPLICATE_TOLERANCE * usual, 1e-6):
        at = int(np.argmin(gaps))
        raise CaseError(
            f"the series {series} has two slices at one place: "
            f"{_named(slices[at])} and {_named(slices[at + 1])}; give each time point, phase or "
            "copy a folder of its own"
        )
    if gaps.max() > _MISSING_GAP * usual:
        at = int(np.argmax(gaps))
        lost = max(round(float(gaps[at]) / usual) - 1, 1)
        raise CaseError(
            f"the series {series} lacks about {lost} slice(s) between {_named(slices[at])} and "
            f"{_named(slices[at + 1])}: {gaps[at]:.3f} mm apart, others {usual:.3f} mm; export "
            "it whole"
        )
    even = np.linspace(along_mm[0], along_mm[-1], len(along_mm))
    if np.abs(along_mm - even).max() > _GRID_TOLERANCE * usual:
        raise CaseError(
            f"the series {series} is unevenly spaced: {gaps.min():.3f} to {gaps.max():.3f} mm; "
            "export it at one spacing"
        )


def _check_tilt(slices: Sequence[Slice], positions: Vector, series: Series) -> None:
    first = slices[0]
    shifts = (positions - positions[0]) @ first.orientation.T
    columns_rows = np.abs(shifts) / (first.pixel_mm[1], first.pixel_mm[0])
    if columns_rows.max() > _GRID_TOLERANCE:
        run = positions[-1] - positions[0]
        cosine = abs(float(run @ first.normal)) / float(np.linalg.norm(run))
        angle = float(np.degrees(np.arccos(min(cosine, 1.0))))
        raise CaseError(
            f"the slices of {series} are shifted against each other (gantry tilt of about "
            f"{angle:.1f} degrees); resample the series to an upright grid first, for example "
            "with dcm2niix"
        )


def _named(each: Slice) -> str:
    if "NumberOfFrames" in each.image.header:
        return f"frame {each.frame + 1}"
    return each.image.file.name
