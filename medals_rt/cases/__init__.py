"""Read cases and write results; one module a format, chosen by the file's ending."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from medals_rt.cases.model import Case, LabelFile, compact_labels
from medals_rt.errors import CaseError, MissingFileError
from medals_rt.volume import MAX_VOXELS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    Array: TypeAlias = Any

ENDINGS: Final = (".npz", ".nii.gz", ".nii", ".nrrd")


def read_case(path: str | PathLike[str], *, max_voxels: int = MAX_VOXELS) -> Case:
    """Read a case.

    Parameters
    ----------
    path
        A challenge case `.npz` (`imgs`, `spacing`, if there are any `text_prompts` and `gts`), or
        an image as `.nii`, `.nii.gz` or `.nrrd`, which is turned to the canonical orientation.
    max_voxels
        Larger volumes are refused before memory is taken for them.

    Raises
    ------
    MissingFileError
        If there is no such file.
    CaseError
        If it is damaged, has another ending, or holds no finite 3-D image with a positive spacing.
    MissingDependencyError
        If the format's library isn't installed.
    """
    file, ending = _existing(path)
    if ending == ".npz":
        from medals_rt.cases.npz import read_npz_case

        return read_npz_case(file, max_voxels=max_voxels)
    if ending == ".nrrd":
        from medals_rt.cases.nrrd import read_nrrd_case

        return read_nrrd_case(file, max_voxels=max_voxels)
    from medals_rt.cases.nifti import read_nifti_case

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
        from medals_rt.cases.npz import read_npz_labels

        return read_npz_labels(file, max_voxels=max_voxels, prefer=prefer)
    if ending == ".nrrd":
        from medals_rt.cases.nrrd import read_nrrd_labels

        return read_nrrd_labels(file, max_voxels=max_voxels)
    from medals_rt.cases.nifti import read_nifti_labels

    return read_nifti_labels(file, max_voxels=max_voxels)


def write_segmentation(
    path: str | PathLike[str],
    case: Case,
    labels_dhw: Array,
    *,
    instances_dhw: Array | None = None,
    prompts: Mapping[str, object] | None = None,
) -> None:
    """Write a result on the source file's own grid; the file appears whole or not at all.

    Parameters
    ----------
    path
        `.npz` (`segs`, `spacing`, `text_prompts`, if given `instances`), `.nii`, `.nii.gz` or
        `.nrrd` (labels only).
    case
        The case that was segmented.
    labels_dhw, instances_dhw
        Integers `(D, H, W)`, canonical orientation, of the image's shape.
    prompts
        Written as `text_prompts`; by default those that the case was read with.

    Raises
    ------
    CaseError
        If the ending is unknown, the folder is missing or a shape isn't the image's.
    """
    file = Path(path)
    ending = check_output(file)
    labels_dhw = compact_labels(labels_dhw)
    if instances_dhw is not None:
        instances_dhw = compact_labels(instances_dhw)
    if ending == ".npz":
        from medals_rt.cases.npz import write_npz

        chosen = case.prompts if prompts is None else prompts
        write_npz(file, case, labels_dhw, instances_dhw=instances_dhw, prompts=chosen)
    elif ending == ".nrrd":
        from medals_rt.cases.nrrd import write_nrrd

        write_nrrd(file, case, labels_dhw)
    else:
        from medals_rt.cases.nifti import write_nifti

        write_nifti(file, case, labels_dhw)


def check_output(path: str | PathLike[str]) -> str:
    """Check that a result could be written, before the work is done, and return its ending.

    Raises
    ------
    CaseError
        If the ending is unknown or the folder doesn't exist.
    """
    file = Path(path)
    ending = _ending(file)
    if not file.parent.is_dir():
        raise CaseError(f"there is no folder {file.parent} to write {file.name} to; make it first")
    return ending


def _existing(path: str | PathLike[str]) -> tuple[Path, str]:
    file = Path(path)
    ending = _ending(file)
    if not file.is_file():
        raise MissingFileError(f"there is no file {file}; check the path")
    return file, ending


def _ending(file: Path) -> str:
    for ending in ENDINGS:
        if file.name.lower().endswith(ending):
            return ending
    raise CaseError(f"{file.name} is of an unknown format; use one of {', '.join(ENDINGS)}")


__all__ = [
    "ENDINGS",
    "Case",
    "LabelFile",
    "check_output",
    "read_case",
    "read_labels",
    "write_segmentation",
]
