"""What a case file holds, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from medals_rt.common.errors import CaseError
from medals_rt.common.notes import Note
from medals_rt.io.volume import SourceGrid, Volume, check_image

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    Array: TypeAlias = Any


@dataclass(frozen=True, eq=False)
class Case:
    """One case as it was read.

    Attributes
    ----------
    volume
        Image, spacing, and the way back to the file's grid.
    prompts
        The mapping that a challenge file holds under `text_prompts`, as it was read; else `None`.
    ground_truth_dhw
        Integer labels `(D, H, W)` of the same shape (`gts` of a challenge file); else `None`.
    path
        The file.
    header
        What a result in the same format repeats: a NIfTI header, or a `dicom.DicomSource`; else
        `None`.
    modality
        The modality that the file names, in the words of prompts (`"CT"`, `"MRI"`, ...); `None`
        where it names none.
    notes
        What a person should know of how the file was read, for the report.
    origin
        Which image of the place it is, for the report: JSON-able, without the patient. The series
        for DICOM, else empty.
    """

    volume: Volume
    prompts: Mapping[str, object] | None
    ground_truth_dhw: Array | None
    path: Path
    header: object | None = None
    modality: str | None = None
    notes: tuple[Note, ...] = ()
    origin: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class LabelFile:
    """A label map as it was read.

    Attributes
    ----------
    labels_dhw
        Integers `(D, H, W)`, canonical orientation.
    instances_dhw
        Instance numbers of the same shape, if the file holds them.
    spacing_hwd_mm
        Spacing as in `Volume`; `None` where the file gives none.
    source
        The way back to the file's grid.
    prompts
        The mapping that an `.npz` holds under `text_prompts`, as it was read; else `None`.
    """

    labels_dhw: Array
    instances_dhw: Array | None
    spacing_hwd_mm: tuple[float, float, float] | None
    source: SourceGrid = field(default_factory=SourceGrid)
    prompts: Mapping[str, object] | None = None


def check_labels(labels: Array, what: str, *, max_voxels: int) -> Array:
    """Check a 3-D label map; whole numbers stored as floats become integers.

    Raises
    ------
    CaseError
        If the map isn't 3-D, holds fractions or negative values.
    """
    check_image(labels, max_voxels=max_voxels, what=what)
    if labels.dtype.kind == "f":
        whole = labels.astype("int64")
        if not (whole == labels).all():
            raise CaseError(f"{what} holds fractions; labels are whole numbers, 0 is background")
        labels = whole
    if labels.dtype.kind == "b":
        labels = labels.astype("uint8")
    if labels.dtype.kind == "i" and int(labels.min()) < 0:
        raise CaseError(f"{what} holds negative values; labels are 0 (background) and above")
    return labels


def compact_labels(labels: Array) -> Array:
    """Cast labels to the smallest unsigned type that holds them, so that files stay small.

    Raises
    ------
    CaseError
        If they aren't integers from 0.
    """
    array = np.asarray(labels)
    if array.dtype.kind not in "biu":
        raise CaseError(f"labels to write are of type {array.dtype}; give integers")
    highest = int(array.max(initial=0))
    if int(array.min(initial=0)) < 0 or highest >= 2**32:
        raise CaseError("labels to write must lie between 0 and 4294967295")
    return array.astype(np.min_scalar_type(highest), copy=False)
