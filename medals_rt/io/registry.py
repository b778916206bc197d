"""Read cases and write results; one module a format, chosen by the file's ending."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from medals_rt.common.errors import CaseError, MissingFileError
from medals_rt.common.limits import MAX_VOXELS
from medals_rt.io.case import Case, LabelFile, compact_labels
from medals_rt.prompts.prompt_set import PromptSet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    Array: TypeAlias = Any

ENDINGS: Final = (".npz", ".nii.gz", ".nii", ".nrrd")
"""Of files that hold images, and of those that hold labels."""

DICOM_ENDINGS: Final = (".dcm", ".zip")
"""Of DICOM files and zips of them; a folder counts as a DICOM series too."""

OUTPUT_ENDINGS: Final = (*ENDINGS, ".dcm")
"""Of files that results are written to."""


def read_case(
    path: str | PathLike[str],
    *,
    max_voxels: int = MAX_VOXELS,
    series: str | None = None,
    select: Sequence[str] = (),
) -> Case:
    """Read a case.

    Parameters
    ----------
    path
        A challenge case `.npz` (`imgs`, `spacing`, if there are any `text_prompts` and `gts`), or
        an image as `.nii`, `.nii.gz` or `.nrrd`, or a DICOM series: its folder, a `.zip` of it, or
        an enhanced multi-frame file. All but `.npz` are turned to the canonical orientation.
    max_voxels
        Larger volumes are refused before memory is taken for them.
    series
        Which series of a DICOM folder: its SeriesNumber, or the beginning of its UID.
    select
        Which of that series' images, as ``KEY=VALUE``: an acquisition, echo, phase, ... See
        `dicom.selection.KEYS`.

    Raises
    ------
    MissingFileError
        If there is no such file.
    CaseError
        If it is damaged, has another ending, or holds no finite 3-D image with a positive spacing.
    MissingDependencyError
        If the format's library isn't installed.
    """
    file = Path(path)
    if is_dicom(file):
        from medals_rt.io.dicom.case import read_dicom_case

        return read_dicom_case(file, max_voxels=max_voxels, series=series, select=select)
    if series is not None or select:
        raise CaseError(f"{file.name} is no DICOM folder or zip, so there is no series to choose")
    file, ending = _existing(path)
    if ending == ".npz":
        from medals_rt.io.npz import read_npz_case

        return read_npz_case(file, max_voxels=max_voxels)
    if ending == ".nrrd":
        from medals_rt.io.nrrd import read_nrrd_case

        return read_nrrd_case(file, max_voxels=max_voxels)
    from medals_rt.io.nifti import read_nifti_case

    return read_nifti_case(file, max_voxels=max_voxels)


def read_labels(
    path: str | PathLike[str],
    *,
    max_voxels: int = MAX_VOXELS,
    prefer: Literal["segs", "gts"] = "segs",
) -> LabelFile:
    """Read a label map in canonical orientation.

    From `.npz` the member `prefer` is taken (results hold `segs`, cases `gts`), else the other.

    Raises
    ------
    MissingFileError, CaseError, MissingDependencyError
        As `read_case`; also if the values aren't whole numbers from 0.
    """
    file, ending = _existing(path)
    if ending == ".npz":
        from medals_rt.io.npz import read_npz_labels

        return read_npz_labels(file, max_voxels=max_voxels, prefer=prefer)
    if ending == ".nrrd":
        from medals_rt.io.nrrd import read_nrrd_labels

        return read_nrrd_labels(file, max_voxels=max_voxels)
    from medals_rt.io.nifti import read_nifti_labels

    return read_nifti_labels(file, max_voxels=max_voxels)


def write_segmentation(
    path: str | PathLike[str],
    case: Case,
    labels_dhw: Array,
    *,
    instances_dhw: Array | None = None,
    prompts: PromptSet | Mapping[str, object] | None = None,
    model: str | None = None,
) -> None:
    """Write a result on the source file's own grid; the file appears whole or not at all.

    Parameters
    ----------
    path
        `.npz` (`segs`, `spacing`, `text_prompts`, if given `instances`), `.nii`, `.nii.gz`
        (labels only), `.nrrd` (labels with 3D Slicer's names and colors of segments; call it
        `.seg.nrrd` so that Slicer opens it as a segmentation), or, for a DICOM case, `.dcm` (a
        DICOM SEG whose segments are the labels, or the instances where there are any).
    case
        The case that was segmented.
    labels_dhw, instances_dhw
        Integers `(D, H, W)`, canonical orientation, of the image's shape.
    prompts
        Written as `text_prompts`; by default those that the case was read with. Only a `PromptSet`
        tells the classes: without it segments are called by their sentences and have no codes.
    model
        Names the model in a DICOM SEG.

    Raises
    ------
    CaseError
        If the ending is unknown, the folder is missing, a shape isn't the image's, or a DICOM SEG
        is asked for a case that isn't a DICOM series.
    """
    file = Path(path)
    ending = check_output(file, case)
    labels_dhw = compact_labels(labels_dhw)
    if instances_dhw is not None:
        instances_dhw = compact_labels(instances_dhw)
    chosen = case.prompts if prompts is None else prompts
    if ending == ".npz":
        from medals_rt.io.npz import write_npz

        mapping = chosen.as_mapping() if isinstance(chosen, PromptSet) else chosen
        write_npz(file, case, labels_dhw, instances_dhw=instances_dhw, prompts=mapping)
    elif ending == ".nrrd":
        from medals_rt.io.nrrd import write_nrrd
        from medals_rt.io.segment_metadata import segments_of

        write_nrrd(file, case, labels_dhw, segments_of(chosen, labels_dhw))
    elif ending == ".dcm":
        from medals_rt.io.dicom.seg import write_seg
        from medals_rt.io.segment_metadata import segments_of

        segments = segments_of(chosen, labels_dhw)
        write_seg(file, case, labels_dhw, segments, instances_dhw=instances_dhw, model=model)
    else:
        from medals_rt.io.nifti import write_nifti

        write_nifti(file, case, labels_dhw)


def check_output(path: str | PathLike[str], case: Case | None = None) -> str:
    """Check that a result could be written, before the work is done, and return its ending.

    Parameters
    ----------
    path
        The file to write.
    case
        The case that it would be the result of, once that is read.

    Raises
    ------
    CaseError
        If the ending is unknown, the folder doesn't exist, or a DICOM SEG is asked for a case that
        isn't a DICOM series.
    MissingDependencyError
        If highdicom is needed and isn't installed.
    """
    file = Path(path)
    ending = _ending(file, OUTPUT_ENDINGS)
    if not file.parent.is_dir():
        raise CaseError(f"there is no folder {file.parent} to write {file.name} to; make it first")
    if ending == ".dcm" and case is not None:
        from medals_rt.io.dicom.seg import check_source

        check_source(case, file.name)
    return ending


def is_dicom(path: Path) -> bool:
    """Whether a path is read as DICOM: a folder, a `.zip` or `.dcm`, or a file marked as such."""
    if path.is_dir():
        return True
    if not path.is_file() or path.name.lower().endswith(ENDINGS):
        return False
    if path.name.lower().endswith(DICOM_ENDINGS):
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def case_stem(path: str | PathLike[str]) -> str:
    """Name of a case's file or folder without the ending of its format."""
    name = Path(path).resolve().name if Path(path).is_dir() else Path(path).name
    for ending in (*ENDINGS, *DICOM_ENDINGS):
        if name.lower().endswith(ending) and not Path(path).is_dir():
            return name[: -len(ending)]
    return name


def _existing(path: str | PathLike[str]) -> tuple[Path, str]:
    file = Path(path)
    ending = _ending(file, ENDINGS)
    if not file.is_file():
        raise MissingFileError(f"there is no file {file}; check the path")
    return file, ending


def _ending(file: Path, known: tuple[str, ...]) -> str:
    for ending in known:
        if file.name.lower().endswith(ending):
            return ending
    raise CaseError(f"{file.name} is of an unknown format; use one of {', '.join(known)}")


__all__ = [
    "DICOM_ENDINGS",
    "ENDINGS",
    "OUTPUT_ENDINGS",
    "Case",
    "LabelFile",
    "case_stem",
    "check_output",
    "is_dicom",
    "read_case",
    "read_labels",
    "write_segmentation",
]
