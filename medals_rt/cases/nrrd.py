"""NRRD cases and results, `.nrrd`, with pynrrd (extra "formats")."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from medals_rt.cases.atomic import replacing
from medals_rt.cases.model import Case, LabelFile, check_labels
from medals_rt.cases.nifti import stem
from medals_rt.errors import CaseError, MissingDependencyError
from medals_rt.volume import SourceGrid, Volume, check_image, check_shape

if TYPE_CHECKING:
    from pathlib import Path

    Array: TypeAlias = Any

_TO_LPS: Final = {
    "left-posterior-superior": (1.0, 1.0, 1.0),
    "lps": (1.0, 1.0, 1.0),
    "right-anterior-superior": (-1.0, -1.0, 1.0),
    "ras": (-1.0, -1.0, 1.0),
    "left-anterior-superior": (1.0, -1.0, 1.0),
    "las": (1.0, -1.0, 1.0),
}
"""Signs that bring a NRRD space to the LPS frame."""


def read_nrrd_case(path: Path, *, max_voxels: int) -> Case:
    """Read an image; it holds no prompts. See `cases.read_case`."""
    array_kji, source = _read(path, max_voxels)
    check_image(array_kji, max_voxels=max_voxels, what=path.name)
    spacing = source.spacing_hwd_mm
    if spacing is None:
        raise CaseError(f"{path.name} has no spacing; write its header anew")
    image = source.to_canonical(array_kji)
    return Case(Volume(image, spacing, stem(path), source), None, None, path)


def read_nrrd_labels(path: Path, *, max_voxels: int) -> LabelFile:
    """Read a label map in canonical orientation."""
    array_kji, source = _read(path, max_voxels)
    labels = check_labels(array_kji, path.name, max_voxels=max_voxels)
    return LabelFile(source.to_canonical(labels), None, source.spacing_hwd_mm, source)


def write_nrrd(path: Path, case: Case, labels_dhw: Array) -> None:
    """Write labels on the source's own grid, in the LPS frame."""
    pynrrd = _pynrrd()
    labels_ijk = np.ascontiguousarray(case.volume.restore(labels_dhw)).transpose()
    affine_lps = case.volume.source.affine_lps
    if affine_lps is None:
        h, w, d = case.volume.spacing_hwd_mm
        affine = np.diag([w, h, d, 1.0])
    else:
        affine = np.asarray(affine_lps, dtype=np.float64)
    header = {
        "space": "left-posterior-superior",
        "space directions": affine[:3, :3].T,
        "space origin": affine[:3, 3],
        "kinds": ["domain", "domain", "domain"],
        "encoding": "gzip",
    }
    with replacing(path) as temporary:
        pynrrd.write(str(temporary), labels_ijk, header, index_order="F")


def _read(path: Path, max_voxels: int) -> tuple[Array, SourceGrid]:
    pynrrd = _pynrrd()
    try:
        header = pynrrd.read_header(str(path))
        shape = tuple(int(size) for size in header["sizes"])
        check_shape(shape, max_voxels=max_voxels, what=path.name)
        if "data file" in header or "datafile" in header:
            raise CaseError(f"{path.name} keeps its data in another file; write one .nrrd file")
        source = _source(header, path)
        array, _ = pynrrd.read(str(path), index_order="F")
    except CaseError:
        raise
    except (
        pynrrd.NRRDError, zlib.error, OSError, ValueError, EOFError, TypeError, KeyError,
        IndexError, MemoryError, OverflowError,
    ) as error:  # fmt: skip
        detail = " ".join(str(error).split())[:100] or type(error).__name__
        raise CaseError(f"{path.name} isn't a readable NRRD file ({detail})") from error
    if tuple(array.shape) != shape:
        raise CaseError(f"{path.name} announces shape {shape} but holds {tuple(array.shape)}")
    return np.asarray(array).transpose(), source


def _source(header: Any, path: Path) -> SourceGrid:
    """Affine of a NRRD header: space directions, or spacings along the LPS axes."""
    affine = np.eye(4)
    if "space directions" in header:
        space = str(header.get("space", "left-posterior-superior")).lower()
        if space not in _TO_LPS:
            raise CaseError(
                f"{path.name} lies in the space {space!r}; use left-posterior-superior or "
                "right-anterior-superior"
            )
        directions = np.asarray(header["space directions"], dtype=np.float64)
        if directions.shape != (3, 3):
            raise CaseError(f"{path.name} has space directions of shape {directions.shape}")
        signs = np.asarray(_TO_LPS[space])
        affine[:3, :3] = signs[:, None] * directions.T
        if "space origin" in header:
            affine[:3, 3] = signs * np.asarray(header["space origin"], dtype=np.float64)
    elif "spacings" in header:
        affine[:3, :3] = np.diag(np.asarray(header["spacings"], dtype=np.float64))
    else:
        raise CaseError(f"{path.name} has no spacing ('space directions' or 'spacings'); add one")
    return SourceGrid.from_affine(affine)


def _pynrrd() -> Any:
    try:
        import nrrd
    except ImportError as error:
        raise MissingDependencyError(
            "NRRD files need pynrrd; install it with: pip install 'medals-rt[formats]'"
        ) from error
    return nrrd
