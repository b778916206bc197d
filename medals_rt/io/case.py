"""What a case file holds, whatever its format."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medals_rt.common.arrays import label_dtype
from medals_rt.common.errors import CaseError, InputError
from medals_rt.common.notes import Note
from medals_rt.common.typing import HostArray
from medals_rt.io.volume import SourceGrid, Volume, check_image, check_spacing


@dataclass(frozen=True, eq=False)
class Case:
    """One case as it was read.

    Attributes
    ----------
    volume
        Image, spacing, and how to return to the file's grid.
    prompts
        The mapping that a challenge file holds under `text_prompts`, as it was read; else `None`.
    ground_truth_dhw
        Integer labels `(D, H, W)` of the same shape (`gts` of a challenge file); else `None`.
    path
        The file.
    header
        What a result in the same format repeats, as that format's module reads it and alone knows
        it; else `None`.
    modality
        The modality that the file names, in the words of prompts (`"CT"`, `"MRI"`, ...); `None`
        where it names none.
    notes
        What a person should know of how the file was read, beside `volume_notes(volume)`.
    origin
        Which image of the place it is, for the report: JSON-able, without the patient. The series
        for DICOM, else empty.
    """

    volume: Volume
    prompts: Mapping[str, object] | None
    ground_truth_dhw: HostArray | None
    path: Path
    header: object | None = field(default=None, repr=False)  # names the patient
    modality: str | None = None
    notes: tuple[Note, ...] = ()
    origin: Mapping[str, object] = field(default_factory=dict)

    @property
    def geometry_is_stated(self) -> bool:
        """Whether the file states which axis each spacing belongs to; see `Volume`."""
        return self.volume.geometry_is_stated


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
        How to return to the file's grid.
    prompts
        The mapping that an `.npz` holds under `text_prompts`, as it was read; else `None`.
    segment_names
        What the file calls its labels, by label: segments of a `.seg.nrrd` or DICOM SEG, sentences
        of an `.npz`.
    leaves_out_empty
        Whether the file holds no slices without labels, so that its grid may be a part of that of
        the image: a DICOM SEG.
    """

    labels_dhw: HostArray
    instances_dhw: HostArray | None
    spacing_hwd_mm: tuple[float, float, float] | None
    source: SourceGrid = field(default_factory=SourceGrid)
    prompts: Mapping[str, object] | None = None
    segment_names: Mapping[int, str] = field(default_factory=dict)
    leaves_out_empty: bool = False

    @property
    def shape_dhw(self) -> tuple[int, int, int]:
        """Number of voxels along D, H, W."""
        d, h, w = self.labels_dhw.shape
        return (int(d), int(h), int(w))


@contextmanager
def reading(name: str, errors: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn what a library raises on a damaged file into a `CaseError`.

    Parameters
    ----------
    name
        The file's.
    errors
        The library's own classes, beside Python's.
    """
    damaged: tuple[type[Exception], ...] = (
        zlib.error, OSError, ValueError, EOFError, TypeError, KeyError, IndexError, MemoryError,
        OverflowError, StopIteration, *errors,
    )  # fmt: skip
    try:
        yield
    except InputError:
        raise
    except damaged as error:
        detail = " ".join(str(error).split())[:100] or type(error).__name__
        raise CaseError(
            f"{name} is damaged ({detail}); copy or export it again", code="file-damaged"
        ) from error


def placed_case(
    path: Path,
    name: str,
    array_kji: HostArray,
    source: SourceGrid,
    *,
    max_voxels: int,
    notes: tuple[Note, ...] = (),
    header: object | None = None,
) -> Case:
    """Make the case of an image whose file says where its voxels lie, and holds no prompts.

    Parameters
    ----------
    path, name
        The file, and what its case is called.
    array_kji
        Values in the file's order, `(k, j, i)`.
    source
        Their place.
    max_voxels
        Larger images are refused.
    notes, header
        Of `Volume` and `Case`.

    Raises
    ------
    CaseError
        The values are no finite 3-D image, or there is no positive spacing.
    """
    check_image(array_kji, max_voxels=max_voxels, what=path.name)
    volume = Volume(
        source.to_canonical(array_kji),
        check_spacing(source.spacing_hwd_mm or ()),
        name,
        source,
        geometry_is_stated=True,
        notes=notes,
    )
    return Case(volume, None, None, path, header)


def check_labels(labels: HostArray, what: str, *, max_voxels: int) -> HostArray:
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
            raise CaseError(
                f"{what} holds fractions; labels are whole numbers, 0 is background",
                code="labels-not-whole",
            )
        labels = whole
    if labels.dtype.kind == "b":
        labels = labels.astype("uint8")
    if labels.dtype.kind == "i" and int(labels.min()) < 0:
        raise CaseError(
            f"{what} holds negative values; labels are 0 (background) and above",
            code="labels-negative",
        )
    return labels


def compact_labels(labels: HostArray) -> HostArray:
    """Cast labels to `label_dtype`, so that files stay small.

    Raises
    ------
    CaseError
        If they aren't integers from 0.
    """
    array = np.asarray(labels)
    if array.dtype.kind not in "biu":
        raise CaseError(
            f"labels to write are of type {array.dtype}; give integers", code="labels-not-whole"
        )
    highest = int(array.max(initial=0))
    if int(array.min(initial=0)) < 0 or highest >= 2**32:
        raise CaseError(
            "labels to write must lie between 0 and 4294967295", code="labels-out-of-range"
        )
    return array.astype(label_dtype(highest), copy=False)
