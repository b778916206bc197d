"""Which spacing an image has: as its file says, repaired where it holds bare numbers (`.npz`).

A spacing that no scan of a body has is believed, with a warning. What the spacing becomes when a
stage resamples the image is `geometry`'s. Rules are numbered as in section 4 of the system's
specification.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medals_rt.common.choices import traits_of
from medals_rt.common.notes import Note, warning
from medals_rt.common.typing import Spacing
from medals_rt.io.volume import Volume
from medals_rt.planning.policy import Preset

SMALLEST_MEANT_SPACING = 0.1
"""Millimeters; what is stored under that is no spacing."""

_SWAPPED_SPACING_ABOVE = 0.5
_LARGEST_BODY_SPACING_MM = 20.0
_LARGEST_BODY_ANISOTROPY = 30.0
_WHOLE_MATRIX = 128
"""Voxels along its longest axis that a scan of a body has, rather than a part cut from one."""
_SMALLEST_BODY_MM = 40.0


def spacing_for(
    shape_dhw: Sequence[int],
    spacing_hwd_mm: Sequence[float],
    *,
    geometry_is_stated: bool,
    preset: Preset,
    modality: str,
) -> tuple[Spacing, tuple[Note, ...]]:
    """Decide which spacing an image has, and say what is doubtful about it.

    A file that states its geometry is believed. One that holds three bare numbers, and under some
    presets every file, is repaired as the authors' code does (`clean_spacing`).

    Parameters
    ----------
    shape_dhw
        Shape of the image, canonical order.
    spacing_hwd_mm
        Its spacing as read, canonical order.
    geometry_is_stated
        Whether the file names its axes (NIfTI, NRRD, DICOM) or holds bare numbers (`.npz`).
    preset
        Whether a stated geometry is repaired too.
    modality
        Of the image: what can't be a body's spacing may be a microscope's.

    Returns
    -------
    spacing_hwd_mm
        The spacing to work with, in mm, rounded to float32.
    notes
        Warnings of what was repaired, and of what can't be the spacing of a body.
    """
    spacing = spacing_of(np.asarray(spacing_hwd_mm, dtype=np.float32))
    notes: list[Note] = []
    if preset.repairs_stated_spacing or not geometry_is_stated:
        stored, spacing = spacing, clean_spacing(shape_dhw, spacing_hwd_mm)
        if spacing != stored:
            notes.append(_repair_note(stored, spacing, geometry_is_stated=geometry_is_stated))
    if traits_of(modality).has_body:
        notes += _doubts(spacing, shape_dhw, modality)
    return spacing, tuple(notes)


def spacing_of_volume(
    volume: Volume, preset: Preset, modality: str
) -> tuple[Spacing, tuple[Note, ...]]:
    """Decide which spacing a volume has; see `spacing_for`."""
    return spacing_for(
        volume.shape_dhw,
        volume.spacing_hwd_mm,
        geometry_is_stated=volume.geometry_is_stated,
        preset=preset,
        modality=modality,
    )


def clean_spacing(shape_dhw: Sequence[int], stored_spacing_hwd: Sequence[float]) -> Spacing:
    """Repair the spacing that a challenge file stores (rule 1 of docs/presets.md).

    Values under 0.1 become 1. If the image's shortest axis is not the axis of the largest spacing
    and that spacing is over 0.5, the two spacings are swapped: the file had them in another order.

    Parameters
    ----------
    shape_dhw
        Shape of the image in file order.
    stored_spacing_hwd
        The three numbers as stored, read as (H, W, D), in mm.

    Returns
    -------
    tuple of float
        Spacing (H, W, D) in mm, rounded to float32.
    """
    spacing = np.array(stored_spacing_hwd, dtype=np.float64)[[2, 0, 1]]
    spacing[spacing < SMALLEST_MEANT_SPACING] = 1.0
    return spacing_of(swapped(shape_dhw, spacing).astype(np.float32)[[1, 2, 0]])


def swapped(shape: Sequence[int], spacing: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Move the largest spacing to the shortest axis, where it is over 0.5 (rule 1).

    Of several shortest axes, or of several largest spacings, the first in the order given counts.
    """
    shortest, coarsest = int(np.argmin(shape)), int(np.argmax(spacing))
    if shortest != coarsest and spacing[coarsest] > _SWAPPED_SPACING_ABOVE:
        spacing[[shortest, coarsest]] = spacing[[coarsest, shortest]]
    return spacing


def _repair_note(stored: Spacing, used: Spacing, *, geometry_is_stated: bool) -> Note:
    """Return the note on the spacing used in place of the one that was read, and why."""
    believed = tuple(1.0 if value < SMALLEST_MEANT_SPACING else value for value in stored)
    what = []
    if believed != stored:
        what.append(f"values under {SMALLEST_MEANT_SPACING:g} were taken as 1")
    if used != believed:
        what.append("the largest was moved to the axis of the fewest voxels")
    why = (
        "the preset repairs every file's spacing"
        if geometry_is_stated
        else "the file names no axes"
    )
    return warning(
        "spacing-repaired",
        f"spacing (H, W, D) {_listed(stored)} mm is used as {_listed(used)}: "
        f"{' and '.join(what)} ({why})",
    )


def _doubts(spacing: Spacing, shape_dhw: Sequence[int], modality: str) -> list[Note]:
    """Warn of a spacing that no scan of a body has, or of a matrix of one that is far too small."""
    d, h, w = shape_dhw
    extent_mm = max(size * mm for size, mm in zip((h, w, d), spacing, strict=True))
    is_whole = traits_of(modality).spans_body and max(shape_dhw) >= _WHOLE_MATRIX
    if is_whole and extent_mm < _SMALLEST_BODY_MM:
        text = (
            f"the image is {extent_mm:.3g} mm long at most, of {max(shape_dhw)} voxels: is the "
            "spacing in millimeters?"
        )
        return [warning("spacing-implausible", text)]
    low, middle, high = sorted(spacing)
    if low < SMALLEST_MEANT_SPACING:
        what = f"under {SMALLEST_MEANT_SPACING:g} mm"
    elif middle > _LARGEST_BODY_SPACING_MM:
        what = f"over {_LARGEST_BODY_SPACING_MM:g} mm along two axes"
    elif high / low > _LARGEST_BODY_ANISOTROPY:
        what = f"more than {_LARGEST_BODY_ANISOTROPY:g} times as coarse along one axis as another"
    else:
        return []
    text = f"spacing (H, W, D) {_listed(spacing)} mm is {what}: is it in millimeters?"
    return [warning("spacing-implausible", text)]


def _listed(spacing: Spacing) -> str:
    return ", ".join(f"{value:.4g}" for value in spacing)


def spacing_of(values: Iterable[float | np.float32]) -> Spacing:
    """Return three spacings as a tuple."""
    h, w, d = (float(value) for value in values)
    return h, w, d
