"""Labels on another grid than the scan's: of another spacing, or cut to what was found.

Both keep the axes of the scan, so that a viewer shows the result in its place. The new grid begins
at the same corner as the scan, and has a voxel wherever its center lies in the scan; labels come
onto it by the toolkit's own resampling (`preprocessing.resampling`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, prod
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from medals_rt.common.arrays import bounding_box, label_counts, to_host
from medals_rt.common.errors import InputError
from medals_rt.common.notes import Note, warning
from medals_rt.common.numbers import decimal_advice, read_numbers
from medals_rt.common.typing import HostArray, Shape
from medals_rt.io.case import Case
from medals_rt.io.volume import Triple, Volume, to_dhw, to_hwd
from medals_rt.pipeline.segmenter import Result
from medals_rt.preprocessing.resampling import FILE_ORDER, resample_image, resample_labels

Ranges: TypeAlias = tuple[slice, slice, slice]


def read_spacing(text: str) -> Triple:
    """Read an output spacing in mm: one length, or three for (H, W, D); see `read_numbers`.

    Raises
    ------
    InputError
        It is neither.
    """
    return three_lengths(read_numbers(text, float), text)


def three_lengths(values: Sequence[float], text: str) -> Triple:
    """Take an output spacing in mm of one length, or three for (H, W, D).

    Parameters
    ----------
    values
        The lengths.
    text
        As they were written, for the message.

    Raises
    ------
    InputError
        There are others than one or three.
    """
    if len(values) not in {1, 3}:
        raise InputError(
            f"an output spacing is one length in mm, such as 1, or three for H,W,D, not "
            f"{text[:60]!r}{decimal_advice(text)}",
            code="output-spacing-not-lengths",
        )
    first, second, third = tuple(values) * (3 // len(values))
    return first, second, third


@dataclass(frozen=True)
class GridRequest:
    """What grid results are wanted on.

    Attributes
    ----------
    spacing_hwd_mm
        Along (H, W, D); None: the scan's.
    crop_mm
        How far beyond what was found the grid reaches; None: as far as the scan.

    Raises
    ------
    InputError
        A length is out of range.
    """

    spacing_hwd_mm: Triple | None = None
    crop_mm: float | None = None

    def __post_init__(self) -> None:
        spacing, margin = self.spacing_hwd_mm, self.crop_mm
        if spacing is not None and not all(0 < each < float("inf") for each in spacing):
            found = ", ".join(f"{each:g}" for each in spacing)
            raise InputError(
                f"an output spacing needs three positive lengths in mm, found {found}",
                code="output-spacing-not-positive",
            )
        if margin is not None and not 0 <= margin < float("inf"):
            raise InputError(
                f"a margin to crop to must be 0 mm or more, found {margin:g}",
                code="crop-margin-negative",
            )

    @property
    def is_scans(self) -> bool:
        """Whether it is the scan's own grid."""
        return self == GridRequest()

    def notes(self) -> tuple[Note, ...]:
        """Say in what results differ from the scan's grid."""
        parts = []
        if self.spacing_hwd_mm is not None:
            spacing = " x ".join(f"{each:g}" for each in self.spacing_hwd_mm)
            parts.append(f"on a grid of {spacing} mm (H x W x D)")
        if self.crop_mm is not None:
            parts.append(f"cut to what was found and {self.crop_mm:g} mm around it")
        if not parts:
            return ()
        text = f"labels are written {', '.join(parts)}: not the scan's grid, but in its place"
        return (Note("other-output-grid", text),)

    def check_size(self, volume: Volume, max_voxels: int) -> None:
        """Refuse a spacing that is longer than the scan, or makes more voxels than are read.

        Raises
        ------
        InputError
        """
        extent = np.multiply(volume.shape_hwd, volume.spacing_hwd_mm)
        if self.spacing_hwd_mm is not None and (self.spacing_hwd_mm > extent * (1 + 1e-6)).any():
            asked, found = (
                " x ".join(f"{each:g}" for each in lengths)
                for lengths in (self.spacing_hwd_mm, extent)
            )
            raise InputError(
                f"an output spacing of {asked} mm is longer than the scan, which is {found} mm "
                "(H x W x D); take a smaller one, or three lengths for H,W,D",
                code="output-spacing-too-large",
            )
        shape, _ = _resampled(volume, self.spacing_hwd_mm)
        if prod(shape) > max_voxels:
            raise InputError(
                f"results would have {prod(shape):,} voxels, more than the limit of "
                f"{max_voxels:,}; take a larger output spacing, or raise the limit (--max-voxels, "
                "of a server when it is started)",
                code="output-too-large",
            )


@dataclass(frozen=True, eq=False)
class OutputGrid:
    """A grid that results are written on.

    Attributes
    ----------
    shape_hwd, scale_hwd
        Of the whole scan, resampled: its voxels, and how many voxels of the scan each is long.
    box_dhw
        The part of that which is written.
    """

    shape_hwd: Shape
    scale_hwd: Triple
    box_dhw: Ranges

    @classmethod
    def of(cls, request: GridRequest, volume: Volume, labels_dhw: HostArray) -> OutputGrid:
        """Find the grid that a request comes to; of a scan without any label all of it."""
        shape, scale = _resampled(volume, request.spacing_hwd_mm)
        whole = cls(shape, scale, (slice(0, shape[2]), slice(0, shape[0]), slice(0, shape[1])))
        box = None if request.crop_mm is None else bounding_box(whole.labels(labels_dhw) > 0)
        if box is None or request.crop_mm is None:
            return whole
        h, w, d = np.multiply(scale, volume.spacing_hwd_mm)
        margins = [ceil(request.crop_mm / each - 1e-6) for each in (d, h, w)]
        first, second, third = (
            slice(max(0, low - margin), min(end.stop, high + margin))
            for low, high, margin, end in zip(*box, margins, whole.box_dhw, strict=True)
        )
        return replace(whole, box_dhw=(first, second, third))

    def labels(self, labels_dhw: HostArray) -> HostArray:
        """Bring a label map ``(D, H, W)`` onto the grid."""
        moved = resample_labels(
            to_hwd(labels_dhw), self.shape_hwd, order=FILE_ORDER, scale_hwd=self.scale_hwd
        )
        found: HostArray = to_host(to_dhw(moved))[self.box_dhw]
        return found

    def probability(self, map_dhw: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Bring a probability map ``(D, H, W)`` onto the grid, linearly."""
        moved = resample_image(
            to_hwd(map_dhw), self.shape_hwd, order=FILE_ORDER, scale_hwd=self.scale_hwd
        )
        rounded = np.floor(to_host(to_dhw(moved))[self.box_dhw] + 0.5)
        return rounded.astype(np.uint8)

    def case(self, case: Case) -> Case:
        """Return a case whose results lie on the grid; its image is empty."""
        volume = case.volume
        shape = tuple(each.stop - each.start for each in self.box_dhw)
        h, w, d = self.scale_hwd
        scale_dhw = (d, h, w)
        first_dhw = [
            (scale - 1) / 2 + scale * each.start
            for scale, each in zip(scale_dhw, self.box_dhw, strict=True)
        ]
        spacing = np.multiply(self.scale_hwd, volume.spacing_hwd_mm).tolist()
        source = volume.source.moved(
            volume.shape_dhw, volume.spacing_hwd_mm, shape, scale_dhw, first_dhw
        )
        moved = replace(
            volume,
            image_dhw=np.broadcast_to(np.zeros((), np.uint8), shape),
            spacing_hwd_mm=(spacing[0], spacing[1], spacing[2]),
            source=source,
        )
        return replace(case, volume=moved, header=None, ground_truth_dhw=None)

    def result(self, result: Result) -> Result:
        """Bring labels and numbered lesions onto the grid, so that they agree there too."""
        labels, instances = result.labels_dhw, result.instances_dhw
        if instances is None:
            return replace(result, labels_dhw=self.labels(labels))
        # One number for each label and each lesion, which is resampled as a label.
        highest = int(labels.max(initial=0))
        of_lesions = np.zeros(int(instances.max(initial=0)) + 1, labels.dtype)
        of_lesions[instances] = labels
        numbers = self.labels(np.where(instances > 0, instances + np.uint32(highest), labels))
        is_lesion = numbers > highest
        lesions = np.where(is_lesion, numbers - highest, 0).astype(np.uint32)
        moved = np.where(is_lesion, of_lesions[lesions], numbers).astype(labels.dtype)
        return replace(result, labels_dhw=moved, instances_dhw=lesions)


def lost_notes(result: Result, moved: Result) -> tuple[Note, ...]:
    """Warn of classes and lesions that are too small for the grid that they were brought onto."""
    names = {each.label: each.name for each in result.report.classes}
    missing = _missing(result.labels_dhw, moved.labels_dhw)
    lost = [names.get(label, f"label {label}") for label in missing]
    if result.instances_dhw is not None and moved.instances_dhw is not None:
        for number in _missing(result.instances_dhw, moved.instances_dhw):
            label = int(result.labels_dhw[result.instances_dhw == number][0])
            lost.append(f"{names.get(label, 'lesion')} {number}")
    if not lost:
        return ()
    text = f"not in the output at this spacing: {', '.join(lost)}"
    return (warning("lost-at-spacing", text),)


def _missing(before: HostArray, after: HostArray) -> list[int]:
    """Numbers that one array holds and the other doesn't."""
    if after is before:
        return []
    counts = [label_counts(each) for each in (before, after)]
    there = np.flatnonzero(counts[0])
    kept = np.flatnonzero(counts[1])
    return [int(each) for each in np.setdiff1d(there, kept) if each]


def _resampled(volume: Volume, spacing_hwd_mm: Triple | None) -> tuple[Shape, Triple]:
    """Shape of a scan in another spacing, and how many of its voxels a new one is long."""
    if spacing_hwd_mm is None:
        return volume.shape_hwd, (1.0, 1.0, 1.0)
    h, w, d = np.divide(spacing_hwd_mm, volume.spacing_hwd_mm).tolist()
    height, width, depth = (
        max(1, floor(n / scale + 0.5 + 1e-6))
        for n, scale in zip(volume.shape_hwd, (h, w, d), strict=True)
    )
    return (height, width, depth), (h, w, d)


def on_grid(
    case: Case, result: Result, request: GridRequest
) -> tuple[Case, Result, OutputGrid | None]:
    """Return case and result on the grid that was asked for, and that grid; None for the scan's."""
    if request.is_scans:
        return case, result, None
    grid = OutputGrid.of(request, case.volume, result.labels_dhw)
    return grid.case(case), grid.result(result), grid
