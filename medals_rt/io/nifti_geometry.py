"""Where a NIfTI header says that the voxels lie, for files and for nibabel's images in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from medals_rt.common.errors import CaseError
from medals_rt.common.notes import Note, warning
from medals_rt.common.typing import HostArray

RAS_TO_LPS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
"""NIfTI's millimeters run to the right, front and head; the LPS frame's to the left, back, head."""

ORIENTATION_ASSUMED: Final = "orientation assumed"
"""What files say that we write of a scan which names no orientation, for when they are read."""

_MM_OF_UNIT: Final = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""Millimeters in NIfTI's units of length: none, meter, millimeter, micrometer."""

_SAME_PLACE_MM: Final = 0.1
_SAME_SIZE: Final = 0.01
_CONTRADICTED: Final = "orientation-contradicted"


@dataclass(frozen=True, eq=False)
class NiftiGeometry:
    """What a header says of place.

    Attributes
    ----------
    affine_lps
        4 x 4, voxel index `(i, j, k, 1)` to millimeters in the LPS frame; None where the header
        names no orientation (both form codes 0).
    spacing_ijk_mm
        Voxel edges along i, j, k.
    form
        Which matrix was taken: ``"sform"``, ``"qform"`` or ``"none"``.
    notes
        What is doubtful about it.
    """

    affine_lps: HostArray | None
    spacing_ijk_mm: tuple[float, float, float]
    form: str
    notes: tuple[Note, ...] = ()


def nifti_geometry(header: Any, pixdim: HostArray, name: str) -> NiftiGeometry:
    """Take the sform where it is usable, else the qform, else the voxel sizes alone.

    Parameters
    ----------
    header
        nibabel's, checked.
    pixdim
        The eight values as they are stored: nibabel's check replaces what isn't positive.
    name
        The file's, for messages.

    Raises
    ------
    CaseError
        If the voxel sizes are needed and aren't positive, or no form spans space.
    """
    unit = int(header["xyzt_units"]) % 8  # the bits above are of time
    scale = _MM_OF_UNIT.get(unit, 1.0)
    to_mm = np.diag([scale, scale, scale, 1.0])
    sizes = np.asarray(pixdim, dtype=np.float64)[1:4] * scale
    found = _of_forms(header, to_mm, sizes, name)
    if unit in _MM_OF_UNIT:
        return found
    text = f"the file's unit of length is unknown ({unit}): it was taken for mm"
    return replace(found, notes=(*found.notes, warning("unit-unknown", text)))


def _of_forms(header: Any, to_mm: HostArray, sizes: HostArray, name: str) -> NiftiGeometry:
    qcode, scode = int(header["qform_code"]), int(header["sform_code"])
    sform = header.get_sform() if scode > 0 else None
    if sform is not None and not _spans_space(sform):
        if qcode <= 0:
            raise CaseError(
                f"{name} has an sform that doesn't span space; mend its header",
                code="geometry-singular",
            )
        text = "the file's sform doesn't span space: the qform was taken"
        return _of_qform(header, to_mm, sizes, name, (warning(_CONTRADICTED, text),))
    if sform is None and qcode > 0:
        return _of_qform(header, to_mm, sizes, name, ())
    if sform is None:
        _check_sizes(sizes, name)
        return NiftiGeometry(None, _triple(sizes), "none")
    notes: tuple[Note, ...] = ()
    if qcode > 0:
        qform = _qform(header)
        if qform is None or float(np.abs(to_mm @ (qform - sform)).max()) > _SAME_PLACE_MM:
            text = "the file's qform and sform are not the same place: the sform was taken"
            notes = (warning(_CONTRADICTED, text),)
    affine = RAS_TO_LPS @ to_mm @ sform
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not notes and not np.allclose(np.abs(sizes), lengths, rtol=_SAME_SIZE):
        text = (
            f"the file's voxel sizes ({_listed(sizes)} mm) and its sform ({_listed(lengths)} mm) "
            "differ: the sform was taken"
        )
        notes = (warning(_CONTRADICTED, text),)
    return NiftiGeometry(affine, _triple(lengths), "sform", notes)


def orientation_is_assumed(header: Any) -> bool:
    """Whether a header was written for a scan that names no orientation."""
    return bytes(header["descrip"]).rstrip(b"\0") == ORIENTATION_ASSUMED.encode()


def _of_qform(
    header: Any, to_mm: HostArray, sizes: HostArray, name: str, notes: tuple[Note, ...]
) -> NiftiGeometry:
    _check_sizes(sizes, name)
    qform = _qform(header)
    if qform is None:
        raise CaseError(
            f"{name} has a qform that is no rotation; mend its header", code="geometry-singular"
        )
    return NiftiGeometry(RAS_TO_LPS @ to_mm @ qform, _triple(sizes), "qform", notes)


def _qform(header: Any) -> HostArray | None:
    from nibabel.spatialimages import HeaderDataError

    try:
        matrix = header.get_qform()
    except (HeaderDataError, ValueError):
        return None
    return matrix if np.isfinite(matrix).all() else None


def _spans_space(affine: HostArray) -> bool:
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not (lengths > 0).all():
        return False
    return bool(abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-3)


def _check_sizes(sizes: HostArray, name: str) -> None:
    if not (np.isfinite(sizes) & (sizes > 0)).all():
        raise CaseError(
            f"{name} has spacing ({_listed(sizes)}); each must be a positive number of "
            "millimeters: mend its header (pixdim)",
            code="spacing-not-positive",
        )


def _listed(sizes: HostArray) -> str:
    return ", ".join(f"{value:g}" for value in sizes)


def _triple(values: HostArray) -> tuple[float, float, float]:
    return (float(values[0]), float(values[1]), float(values[2]))
