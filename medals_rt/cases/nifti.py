"""NIfTI cases and results, `.nii` and `.nii.gz`, with nibabel (extra "formats")."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from medals_rt.cases.model import Case, LabelFile, check_labels
from medals_rt.errors import CaseError, MissingDependencyError
from medals_rt.files import atomic_output
from medals_rt.volume import SourceGrid, Volume, check_image, check_shape

if TYPE_CHECKING:
    from pathlib import Path

    Array: TypeAlias = Any

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""NIfTI's millimetres run to the right, front and head; the LPS frame's to the left, back, head."""


def read_nifti_case(path: Path, *, max_voxels: int) -> Case:
    """Read an image; it holds no prompts. See `cases.read_case`."""
    array_kji, source, header = _read(path, max_voxels)
    check_image(array_kji, max_voxels=max_voxels, what=path.name)
    spacing = source.spacing_hwd_mm
    if spacing is None:
        raise CaseError(f"{path.name} has no spacing; write its header anew")
    image = source.to_canonical(array_kji)
    return Case(Volume(image, spacing, stem(path), source), None, None, path, header)


def read_nifti_labels(path: Path, *, max_voxels: int) -> LabelFile:
    """Read a label map in canonical orientation."""
    array_kji, source, _ = _read(path, max_voxels)
    labels = check_labels(array_kji, path.name, max_voxels=max_voxels)
    return LabelFile(source.to_canonical(labels), None, source.spacing_hwd_mm, source)


def write_nifti(path: Path, case: Case, labels_dhw: Array) -> None:
    """Write labels on the source's own grid; from a NIfTI case with its own header and affine."""
    nibabel = _nibabel()
    labels_ijk = np.ascontiguousarray(case.volume.restore(labels_dhw)).transpose()
    header = case.header if isinstance(case.header, nibabel.Nifti1Header) else None
    affine_lps = case.volume.source.affine_lps
    if affine_lps is None:
        h, w, d = case.volume.spacing_hwd_mm
        affine_lps = tuple(map(tuple, np.diag([w, h, d, 1.0]).tolist()))
    affine = RAS_TO_LPS @ np.asarray(affine_lps, dtype=np.float64)
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


def _read(path: Path, max_voxels: int) -> tuple[Array, SourceGrid, Any]:
    nibabel = _nibabel()
    try:
        image = nibabel.Nifti1Image.from_filename(path)
        shape = tuple(int(size) for size in image.shape)
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        check_shape(shape, max_voxels=max_voxels, what=path.name)
        source = SourceGrid.from_affine(RAS_TO_LPS @ _to_mm(image.header) @ image.affine)
        array = np.asanyarray(image.dataobj).reshape(shape)
    except (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError) as error:
        raise CaseError(f"{path.name} isn't a readable NIfTI file ({_short(error)})") from error
    except CaseError:
        raise
    except (
        OSError, ValueError, EOFError, KeyError, zlib.error, TypeError, MemoryError, OverflowError,
    ) as error:  # fmt: skip
        raise CaseError(f"{path.name} is damaged ({_short(error)}); write it anew") from error
    return array.transpose(), source, image.header


def _to_mm(header: Any) -> Array:
    """Scale from the header's unit of length to millimetres; an unknown unit counts as them."""
    unit = header.get_xyzt_units()[0]
    scale = {"meter": 1000.0, "micron": 0.001}.get(unit, 1.0)
    return np.diag([scale, scale, scale, 1.0])


def _nibabel() -> Any:
    try:
        import nibabel as nib
    except ImportError as error:
        raise MissingDependencyError(
            "NIfTI files need nibabel; install it with: pip install 'medals-rt[formats]'"
        ) from error
    return nib


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__
