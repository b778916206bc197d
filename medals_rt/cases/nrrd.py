"""NRRD cases and results, `.nrrd`, with pynrrd (extra "formats")."""

from __future__ import annotations

import zlib
from typing import IO, TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from medals_rt.cases.model import Case, LabelFile, check_labels
from medals_rt.cases.nifti import stem
from medals_rt.errors import CaseError, MissingDependencyError
from medals_rt.files import atomic_output
from medals_rt.volume import SourceGrid, Volume, check_image, check_shape

if TYPE_CHECKING:
    from pathlib import Path

    Array: TypeAlias = Any

_TYPES: Final = {
    alias: code
    for code, aliases in {
        "i1": ("signed char", "int8", "int8_t"),
        "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
        "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
        "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
        "i4": ("int", "signed int", "int32", "int32_t"),
        "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
        "i8": ("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"),
        "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
        "f4": ("float",),
        "f8": ("double",),
    }.items()
    for alias in aliases
}
"""NRRD's names of value types."""

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
    with atomic_output(path) as temporary:
        pynrrd.write(str(temporary), labels_ijk, header, index_order="F")


def _read(path: Path, max_voxels: int) -> tuple[Array, SourceGrid]:
    pynrrd = _pynrrd()
    try:
        with path.open("rb") as file:
            header = pynrrd.read_header(file)
            shape = tuple(int(size) for size in header["sizes"])
            check_shape(shape, max_voxels=max_voxels, what=path.name)
            source = _source(header, path)
            array = _data(header, file, shape, path)
    except CaseError:
        raise
    except (
        pynrrd.NRRDError, zlib.error, OSError, ValueError, EOFError, TypeError, KeyError,
        IndexError, MemoryError, OverflowError,
    ) as error:  # fmt: skip
        detail = " ".join(str(error).split())[:100] or type(error).__name__
        raise CaseError(f"{path.name} isn't a readable NRRD file ({detail})") from error
    return array, source


def _data(header: Any, file: IO[bytes], shape: tuple[int, ...], path: Path) -> Array:
    """Values after the header as `(k, j, i)`; never more than the header announces are unpacked."""
    skips = [header.get(key, 0) for key in ("line skip", "lineskip", "byte skip", "byteskip")]
    if "data file" in header or "datafile" in header or any(skips):
        raise CaseError(f"{path.name} keeps its data elsewhere; write it as one .nrrd file")
    if header["type"] not in _TYPES:
        raise CaseError(f"{path.name} has values of type {header['type']!r}; give real numbers")
    dtype = np.dtype(_TYPES[header["type"]])
    if dtype.itemsize > 1:
        dtype = dtype.newbyteorder(">" if header["endian"] == "big" else "<")
    due = dtype.itemsize * shape[0] * shape[1] * shape[2]
    encoding = header["encoding"]
    if encoding in {"gzip", "gz"}:
        data = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(file.read(), due + 1)
    elif encoding == "raw":
        data = file.read(due + 1)
    else:
        raise CaseError(f"{path.name} is stored as {encoding!r}; write it as raw or gzip")
    if len(data) != due:
        raise CaseError(f"{path.name} announces {due:,} bytes of data, not {len(data):,} or more")
    array = np.frombuffer(data, dtype=dtype).reshape(shape[::-1])
    return array.astype(dtype.newbyteorder("="))


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
