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
from medals_rt.common.notes import Note
from medals_rt.io.dicom.files import printable, reading
from medals_rt.io.dicom.series import Image, Series

Vector: TypeAlias = npt.NDArray[np.float64]

_GRAY: Final = "MONOCHROME2"
_UNIT_TOLERANCE: Final = 1e-3
_SAME_TOLERANCE: Final = 1e-4
_ORIENTATION_TOLERANCE: Final = 1e-3
"""How far direction cosines of slices may differ: scanners and anonymizers round them."""

GRID_TOLERANCE: Final = 0.1
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
    thickness_mm
        As the file names it; `None` where it names none that is positive.
    groups
        Functional groups of an enhanced file: the frame's own, then the shared ones; else empty.
    """

    image: Image
    frame: int
    position_lps_mm: Vector
    orientation: Vector
    pixel_mm: tuple[float, float]
    slope: float
    intercept: float
    thickness_mm: float | None = None
    groups: tuple[Any, ...] = ()

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
    notes: tuple[Note, ...] = ()

    @property
    def distance_mm(self) -> float:
        """Distance of neighboring slices."""
        return float(np.linalg.norm(self.affine_lps[:3, 2]))


def slices_of(series: Series) -> list[Slice]:
    """Read where each slice lies, from single-frame files or enhanced ones.

    Raises
    ------
    CaseError
        If a file isn't gray, or doesn't say where its slices lie or what its values mean.
    """
    slices: list[Slice] = []
    for image in series.images:
        with reading(image.file.name):
            _check_values(image)
            if "PerFrameFunctionalGroupsSequence" in image.header or image.frames > 1:
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
            f"the series [{series}] has one slice, which is no volume; give the folder that holds "
            "all of its slices",
            code="one-slice",
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
    return Stack(tuple(ordered), affine, _orientation_notes(ordered))


def _orientation_notes(slices: Sequence[Slice]) -> tuple[Note, ...]:
    first = slices[0].orientation
    varies = max(float(np.abs(each.orientation - first).max()) for each in slices)
    if varies <= _SAME_TOLERANCE:
        return ()
    text = f"direction cosines of the slices vary by {varies:.1g}; those of the first are taken"
    return (Note("orientation-varies", text),)


def _check_values(image: Image) -> None:
    header, name = image.header, image.file.name
    samples, photometric = int(header.get("SamplesPerPixel", 1)), header.PhotometricInterpretation
    if samples != 1 or photometric != _GRAY:
        raise CaseError(
            f"{name} is of kind {printable(photometric)} with {samples} samples a pixel; only "
            f"{_GRAY} images hold intensities, choose the original series",
            code="not-gray",
        )
    if "ModalityLUTSequence" in header:
        raise CaseError(
            f"{name} scales its values by a table, which isn't read; export it with a rescale "
            "slope and intercept",
            code="value-table",
        )
    stored, high = header.get("BitsStored"), header.get("HighBit")
    if stored is not None and high is not None and int(high) != int(stored) - 1:
        raise CaseError(
            f"{name} stores {stored} bits up to bit {high}, as old files did; export it again",
            code="bits-unusual",
        )
    if int(header.Rows) < 1 or int(header.Columns) < 1:
        raise CaseError(
            f"{name} is empty: {header.Rows} rows, {header.Columns} columns",
            code="image-empty",
        )


def _frames(image: Image) -> list[Slice]:
    """Slices of an enhanced multi-frame file: each frame's own groups, else the shared ones."""
    header = image.header
    if "PerFrameFunctionalGroupsSequence" not in header:
        raise CaseError(
            f"{image.file.name} is a multi-frame file that doesn't say where its frames lie; "
            "export it as enhanced multi-frame or as single slices",
            code="place-unknown",
        )
    own = header.PerFrameFunctionalGroupsSequence
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])
    if len(own) != image.frames:
        raise CaseError(
            f"{image.file.name} announces {image.frames} frames and describes {len(own)}",
            code="frames-contradict",
        )
    return [
        _slice(
            image,
            number,
            _group(frame, shared, "PlanePositionSequence", image),
            _group(frame, shared, "PlaneOrientationSequence", image),
            _group(frame, shared, "PixelMeasuresSequence", image),
            _group(frame, shared, "PixelValueTransformationSequence", None) or header,
            groups=(frame, *shared),
        )
        for number, frame in enumerate(own)
    ]


def _group(frame: Any, shared: list[Any], name: str, needed_by: Image | None) -> Any:
    for groups in (frame, *shared):
        if name in groups and len(groups[name].value):
            return groups[name].value[0]
    if needed_by is not None:
        raise CaseError(
            f"{needed_by.file.name} has no {name}: it isn't known where a frame lies",
            code="place-unknown",
        )
    return {}


def _slice(
    image: Image,
    frame: int,
    place: Any,
    plane: Any,
    measures: Any,
    scale: Any = None,
    groups: tuple[Any, ...] = (),
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
        raise CaseError(
            f"{name} has an orientation that isn't two orthogonal unit vectors; export it again",
            code="orientation-invalid",
        )
    if pixel.min() <= 0:
        raise CaseError(
            f"{name} has a pixel spacing of {pixel.tolist()} mm; it must be positive",
            code="spacing-not-positive",
        )
    scale = image.header if scale is None else scale
    slope = float(_value(scale, "RescaleSlope", 1.0))
    intercept = float(_value(scale, "RescaleIntercept", 0.0))
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        raise CaseError(
            f"{name} has an unusable rescale slope {slope:g} or intercept; export it again",
            code="rescale-invalid",
        )
    row = orientation[0] / lengths[0]
    column = orientation[1] - (orientation[1] @ row) * row
    return Slice(
        image,
        frame,
        position,
        np.array([row, column / np.linalg.norm(column)]),
        (float(pixel[0]), float(pixel[1])),
        slope,
        intercept,
        _thickness(measures),
        groups,
    )


def _thickness(measures: Any) -> float | None:
    try:
        value = float(measures.get("SliceThickness") or 0)
    except (TypeError, ValueError):  # Nothing but a DICOM SEG needs it, which computes it then.
        return None
    return value if np.isfinite(value) and value > 0 else None


def _value(group: Any, name: str, missing: float) -> Any:
    value = group.get(name)
    return missing if value is None else value


def _numbers(group: Any, name: str, count: int, file: str) -> Vector:
    value = group.get(name)
    if value is None:
        raise CaseError(
            f"{file} has no {name}, so that its place in space isn't known; choose an original "
            "series (not a screenshot or a report)",
            code="place-unknown",
        )
    numbers = np.asarray([float(each) for each in value], dtype=np.float64)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise CaseError(f"{file} has an unusable {name}: {printable(value)}", code="place-unknown")
    return numbers


def _check_alike(slices: Sequence[Slice], series: Series) -> None:
    first = slices[0]
    for what, differs in (
        ("sizes", lambda each: each.shape != first.shape),
        (
            "orientations",
            lambda each: (
                np.abs(each.orientation - first.orientation).max() > _ORIENTATION_TOLERANCE
            ),
        ),
        (
            "pixel spacings",
            lambda each: not np.allclose(each.pixel_mm, first.pixel_mm, rtol=_SAME_TOLERANCE),
        ),
    ):
        others = [each for each in slices if differs(each)]
        if others:
            raise CaseError(
                f"the series [{series}] mixes {what}: {others[0].image.file.name} differs from "
                f"{first.image.file.name}, {len(others)} of {len(slices)} do; give a folder "
                "without them (a localizer is often the cause), or leave them out by --select",
                code="slices-mixed",
            )


def _check_spacing(slices: Sequence[Slice], along_mm: Vector, series: Series) -> None:
    gaps = np.diff(along_mm)
    usual = float(np.median(gaps))
    if gaps.min() <= max(_DUPLICATE_TOLERANCE * usual, 1e-6):
        at = int(np.argmin(gaps))
        raise CaseError(
            f"the series [{series}] has two slices at one place: "
            f"{_named(slices[at])} and {_named(slices[at + 1])}; choose by --select an attribute "
            "in which they differ",
            code="slices-at-one-place",
        )
    if gaps.max() > _MISSING_GAP * usual:
        at = int(np.argmax(gaps))
        lost = max(round(float(gaps[at]) / usual) - 1, 1)
        raise CaseError(
            f"the series [{series}] lacks about {lost} slice(s) between {_named(slices[at])} and "
            f"{_named(slices[at + 1])}: {gaps[at]:.3f} mm apart, others {usual:.3f} mm; export "
            "it whole",
            code="slices-missing",
        )
    even = np.linspace(along_mm[0], along_mm[-1], len(along_mm))
    if np.abs(along_mm - even).max() > GRID_TOLERANCE * usual:
        raise CaseError(
            f"the series [{series}] is unevenly spaced: {gaps.min():.3f} to {gaps.max():.3f} mm; "
            "export it at one spacing",
            code="spacing-uneven",
        )


def _check_tilt(slices: Sequence[Slice], positions: Vector, series: Series) -> None:
    first = slices[0]
    shifts = (positions - positions[0]) @ first.orientation.T
    columns_rows = np.abs(shifts) / (first.pixel_mm[1], first.pixel_mm[0])
    if columns_rows.max() > GRID_TOLERANCE:
        run = positions[-1] - positions[0]
        cosine = abs(float(run @ first.normal)) / float(np.linalg.norm(run))
        angle = float(np.degrees(np.arccos(min(cosine, 1.0))))
        raise CaseError(
            f"the slices of [{series}] are shifted against each other (gantry tilt of about "
            f"{angle:.1f} degrees); resample the series to an upright grid first, for example "
            "with dcm2niix",
            code="gantry-tilt",
        )


def _named(each: Slice) -> str:
    name = each.image.file.name
    return f"frame {each.frame + 1} of {name}" if each.groups else name
