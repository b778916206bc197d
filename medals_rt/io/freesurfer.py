"""FreeSurfer's volumes, `.mgz` and `.mgh`, with nibabel (extra "formats").

The header is a block of fixed size, big-endian; behind the voxels lies what FreeSurfer knows beside
them (echo time, commands, a table of colors), which says nothing of place or values.
"""

from __future__ import annotations

import importlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np

from medals_rt.common.errors import CaseError
from medals_rt.common.optional_deps import import_optional
from medals_rt.common.typing import HostArray
from medals_rt.io.case import Case, LabelFile, check_labels, placed_case, reading
from medals_rt.io.format import Format, Options, SegmentationOutput, squeezed, stem
from medals_rt.io.nifti_geometry import RAS_TO_LPS
from medals_rt.io.volume import SourceGrid, check_shape, check_spacing
from medals_rt.io.voxel_data import open_maybe_gzipped, read_exactly, read_values, write_values

_HEADER_BYTES: Final = 284
_START: Final = (1).to_bytes(4, "big")
"""The version, the only one there is."""

_TYPES: Final = {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}
"""Of values, by the number that stands for it."""

_PLACED: Final = 1
"""The flag `goodRASFlag` of a header that says where its voxels lie."""


def _read_mgh_case(path: Path, options: Options) -> Case:
    """Read an image; it holds no prompts. See `registry.read_case`."""
    array_kji, source, header = _read(path, options.max_voxels)
    name, most = stem(path, FORMATS), options.max_voxels
    return placed_case(path, name, array_kji, source, max_voxels=most, header=header)


def _read_mgh_labels(path: Path, options: Options) -> LabelFile:
    """Read a label map in canonical orientation."""
    array_kji, source, _ = _read(path, options.max_voxels)
    labels = check_labels(array_kji, path.name, max_voxels=options.max_voxels)
    return LabelFile(source.to_canonical(labels), None, source.spacing_hwd_mm, source)


def _write_mgh(path: Path, output: SegmentationOutput) -> None:
    """Write labels on the source's own grid; of a FreeSurfer case with its own header.

    Raises
    ------
    CaseError
        A label is larger than the format's integers hold.
    """
    library = _library()
    volume = output.case.volume
    labels_ijk = np.ascontiguousarray(volume.restore(output.labels_dhw)).transpose()
    dtype = next((each for each in ("u1", "i2", "i4") if _fits(labels_ijk, each)), None)
    if dtype is None:
        raise CaseError(
            f"{path.name} would hold labels above {np.iinfo('i4').max}, the largest number of its "
            "format; write .nii.gz",
            code="labels-out-of-range",
        )
    found = output.case.header
    header, affine = None, RAS_TO_LPS @ volume.affine_lps
    if isinstance(found, library.MGHHeader):
        # nibabel leaves a header alone whose own matrix it is given: the place stays, to the bit
        header, affine = found, found.get_affine()
    image = library.MGHImage(labels_ijk.astype(dtype), affine, header)
    image.set_data_dtype(np.dtype(dtype))
    write_values(path, image.to_bytes(), gzipped=not path.name.lower().endswith(".mgh"))


def _recognizes_mgh(start: bytes) -> bool:
    """Whether a file starts as FreeSurfer's volumes do."""
    if not start.startswith(_START) or len(start) < _HEADER_BYTES:
        return False
    *sizes, kind = np.frombuffer(start, ">i4", 5, len(_START)).tolist()
    return min(sizes) > 0 and kind in _TYPES


def _library() -> Any:
    nibabel = import_optional("NiBabel", "a FreeSurfer volume")
    return importlib.import_module(f"{nibabel.__name__}.freesurfer.mghformat")


def _fits(labels: HostArray, dtype: str) -> bool:
    return int(labels.max(initial=0)) <= np.iinfo(dtype).max


def _read(path: Path, max_voxels: int) -> tuple[HostArray, SourceGrid, Any]:
    """Values `(k, j, i)`, their place, and the header as nibabel has it."""
    library = _library()
    with reading(path.name), ExitStack() as stack:
        stream = open_maybe_gzipped(path, stack)
        start = bytes(read_exactly(stream, _HEADER_BYTES, path.name))
        if not start.startswith(_START):
            raise CaseError(
                f"{path.name} is no FreeSurfer volume; export it again", code="header-damaged"
            )
        # without the bytes behind the fields, which nibabel would take for what follows the voxels
        block = start[: library.header_dtype.itemsize]
        is_placed = int(np.frombuffer(block, ">i2", 1, 28)[0]) == _PLACED
        header = library.MGHHeader(block, check=False)
        shape = squeezed(header["dims"].tolist())
        check_shape(shape, max_voxels=max_voxels, what=path.name)
        kind = int(header["type"])
        if kind not in _TYPES:
            raise CaseError(
                f"{path.name} has values of FreeSurfer's type {kind}; give real numbers "
                "(mri_convert --out_data_type float)",
                code="value-type",
            )
        if not is_placed:
            raise CaseError(
                f"{path.name} names neither voxel sizes nor axes (its goodRASFlag is unset), and "
                "FreeSurfer's defaults would be a guess; give it those of its scan "
                "(mri_convert --in_like)",
                code="geometry-missing",
            )
        source = SourceGrid.from_affine(_affine_lps(header))
        dtype = np.dtype(_TYPES[kind])
        values = read_values(stream, dtype, (shape[0], shape[1], shape[2]), path.name)
    return values.array_kji, source, header  # its notes are of bytes that belong there


def _affine_lps(header: Any) -> HostArray:
    """Return the place of the voxels, whose header has the center and one row an axis."""
    ras = np.eye(4)
    ras[:3, :3] = header["Mdc"].astype(np.float64).T * check_spacing(header["delta"])
    middle = header["dims"][:3] / 2
    ras[:3, 3] = header["Pxyz_c"].astype(np.float64) - ras[:3, :3] @ middle
    return np.diagonal(RAS_TO_LPS)[:, None] * ras


def _check(name: str, case: Case) -> tuple[()]:
    if not case.volume.has_orientation:
        raise CaseError(
            f"{name} would say where its voxels lie, which {case.path.name} doesn't know; write "
            ".npz or .nii.gz",
            code="place-unknown",
        )
    return ()


FORMATS: Final = (
    Format(
        name="freesurfer",
        title="FreeSurfer's MGH",
        menu_title="FreeSurfer (.mgz)",
        endings=(".mgz", ".mgh"),
        gzipped={".mgh": ".mgz"},
        libraries=("NiBabel",),
        read_case=_read_mgh_case,
        read_labels=_read_mgh_labels,
        write=_write_mgh,
        check=_check,
        recognizes=_recognizes_mgh,
    ),
)
