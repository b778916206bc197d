"""NIfTI cases and results, `.nii` and `.nii.gz`, with nibabel (extra "formats")."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medals_rt.common.atomic_io import atomic_output
from medals_rt.common.errors import CaseError
from medals_rt.common.notes import Note, warning
from medals_rt.common.optional_deps import import_optional
from medals_rt.common.typing import HostArray
from medals_rt.io.case import Case, LabelFile, check_labels
from medals_rt.io.volume import SourceGrid, Triple, Volume, check_image, check_shape, check_spacing

if TYPE_CHECKING:
    from pathlib import Path


_SAME_PLACE_MM: Final = 0.1

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""NIfTI's millimetres run to the right, front and head; the LPS frame's to the left, back, head."""


def read_nifti_case(path: Path, *, max_voxels: int) -> Case:
    """Read an image; it holds no prompts. See `cases.read_case`."""
    read = _read(path, max_voxels)
    check_image(read.array_kji, max_voxels=max_voxels, what=path.name)
    image = read.source.to_canonical(read.array_kji)
    volume = Volume(image, read.spacing_hwd_mm, stem(path), read.source)
    return Case(volume, None, None, path, read.header, notes=read.notes)


def read_nifti_labels(path: Path, *, max_voxels: int) -> LabelFile:
    """Read a label map in canonical orientation."""
    read = _read(path, max_voxels)
    labels = check_labels(read.array_kji, path.name, max_voxels=max_voxels)
    return LabelFile(read.source.to_canonical(labels), None, read.spacing_hwd_mm, read.source)


def write_nifti(path: Path, case: Case, labels_dhw: HostArray) -> None:
    """Write labels on the source's own grid; from a NIfTI case with its own header and affine."""
    nibabel = import_optional("NiBabel", "a NIfTI file")
    labels_ijk = np.ascontiguousarray(case.volume.restore(labels_dhw)).transpose()
    header = case.header if isinstance(case.header, nibabel.Nifti1Header) else None
    affine = RAS_TO_LPS @ case.volume.affine_lps
    if header is None:
        image = nibabel.Nifti1Image(labels_ijk, affine, dtype=labels_ijk.dtype)
        image.set_qform(affine, code=1)
        image.set_sform(affine, code=1)
    else:
        header = header.copy()
        header.set_slope_inter(1, 0)
        header["cal_min"] = header["cal_max"] = 0
        header.set_data_dtype(labels_ijk.dtype)
        # None leaves both of the header's own matrices, to the last digit.
        image = nibabel.Nifti1Image(labels_ijk, None, header)
    with atomic_output(path) as temporary:
        nibabel.save(image, temporary)


def stem(path: Path) -> str:
    """Name of a file without `.nii`, `.nii.gz`, `.nrrd` and the like."""
    return path.name.split(".")[0] or path.name


@dataclass(frozen=True, eq=False)
class _Read:
    """A file's values `(k, j, i)`, its place, and what is to be said of it."""

    array_kji: HostArray
    spacing_hwd_mm: Triple
    source: SourceGrid
    header: Any
    notes: tuple[Note, ...]


def _read(path: Path, max_voxels: int) -> _Read:
    nibabel = import_optional("NiBabel", "a NIfTI file")
    try:
        with nibabel.imageglobals.LoggingOutputSuppressor():  # it repairs headers and tells stderr
            image = nibabel.Nifti1Image.from_filename(path)
        shape = tuple(int(size) for size in image.shape)
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        check_shape(shape, max_voxels=max_voxels, what=path.name)
        spacing, source, notes = _place(image)
        array = np.asanyarray(image.dataobj).reshape(shape)
    except (
        nibabel.filebasedimages.ImageFileError,
        nibabel.spatialimages.HeaderDataError,
        nibabel.wrapstruct.WrapStructError,
    ) as error:
        raise CaseError(f"{path.name} isn't a readable NIfTI file ({_short(error)})") from error
    except CaseError:
        raise
    except (
        OSError, ValueError, EOFError, KeyError, zlib.error, TypeError, MemoryError, OverflowError,
    ) as error:  # fmt: skip
        raise CaseError(f"{path.name} is damaged ({_short(error)}); write it anew") from error
    return _Read(array.transpose(), spacing, source, image.header, notes)


def _place(image: Any) -> tuple[Triple, SourceGrid, tuple[Note, ...]]:
    """Spacing, orientation, and what is doubtful about them.

    Without an orientation the axes are taken as SimpleITK takes them, to run to the patient's left,
    back and head. Of two orientations the sform counts, as in nibabel.
    """
    header = image.header
    to_mm = _to_mm(header)
    qform, sform = int(header["qform_code"]), int(header["sform_code"])
    if qform <= 0 and sform <= 0:
        i_mm, j_mm, k_mm = (float(size * to_mm[0, 0]) for size in header.get_zooms()[:3])
        note = warning(
            "orientation-assumed",
            "the file names no orientation: its axes are taken to run to left, back and head",
        )
        return check_spacing((j_mm, i_mm, k_mm)), SourceGrid(), (note,)
    source = SourceGrid.from_affine(RAS_TO_LPS @ to_mm @ image.affine)
    notes: tuple[Note, ...] = ()
    if qform > 0 and sform > 0:
        apart_mm = float(np.abs(to_mm @ (header.get_qform() - header.get_sform())).max())
        if apart_mm > _SAME_PLACE_MM:
            text = "the file's qform and sform are not the same place: the sform was taken"
            notes = (warning("orientation-contradicted", text),)
    return check_spacing(source.spacing_hwd_mm or ()), source, notes


def _to_mm(header: Any) -> HostArray:
    """Scale from the header's unit of length to millimetres; an unknown unit counts as them."""
    unit = header.get_xyzt_units()[0]
    scale = {"meter": 1000.0, "micron": 0.001}.get(unit, 1.0)
    return np.diag([scale, scale, scale, 1.0])


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__
