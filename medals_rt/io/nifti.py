"""NIfTI-1 and NIfTI-2, one file or a pair of header and image, with nibabel (extra "formats")."""

from __future__ import annotations

import io
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from medals_rt.common.errors import CaseError, MissingFileError
from medals_rt.common.notes import Note
from medals_rt.common.optional_deps import import_optional
from medals_rt.common.typing import HostArray
from medals_rt.io.case import Case, LabelFile, check_labels, reading
from medals_rt.io.format import Format, Options, SegmentationOutput, squeezed, stem
from medals_rt.io.nifti_geometry import (
    ORIENTATION_ASSUMED,
    RAS_TO_LPS,
    NiftiGeometry,
    nifti_geometry,
    orientation_is_assumed,
)
from medals_rt.io.volume import SourceGrid, Volume, check_image, check_shape, check_spacing
from medals_rt.io.voxel_data import (
    Stream,
    open_maybe_gzipped,
    read_exactly,
    read_values,
    write_values,
)

_NIFTI_1, _NIFTI_2 = 348, 540
"""Bytes of a header, which its first number repeats."""

_SCANNER, _ALIGNED = 1, 2
"""Codes of a qform and sform: coordinates of the scanner, or such that fit another file's."""

_LARGEST_QFORM_SHEAR: Final = 0.1
"""Degrees; rounding in headers stays below."""

_MOST_EXTENSIONS: Final = 64 * 2**20
_MAGIC: Final = {b"n+1\0": "one", b"ni1\0": "pair", b"n+2\0": "one", b"ni2\0": "pair"}

_quiet = logging.getLogger("medals_rt.nibabel")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False


@dataclass(frozen=True, eq=False)
class _Read:
    """A file's values `(k, j, i)`, its place, and remarks."""

    array_kji: HostArray
    geometry: NiftiGeometry
    source: SourceGrid
    header: Any
    notes: tuple[Note, ...]

    @property
    def spacing_hwd_mm(self) -> tuple[float, float, float]:
        if self.source.spacing_hwd_mm is not None:
            return check_spacing(self.source.spacing_hwd_mm)
        i_mm, j_mm, k_mm = self.geometry.spacing_ijk_mm
        return check_spacing((j_mm, i_mm, k_mm))


def _read_nifti_case(path: Path, options: Options) -> Case:
    """Read an image; it holds no prompts. See `registry.read_case`."""
    read = _read(path, options.max_voxels)
    check_image(read.array_kji, max_voxels=options.max_voxels, what=path.name)
    volume = Volume(
        read.source.to_canonical(read.array_kji),
        read.spacing_hwd_mm,
        stem(path, FORMATS),
        read.source,
        geometry_is_stated=True,
        notes=read.notes,
    )
    return Case(volume, None, None, path, read.header)


def _read_nifti_labels(path: Path, options: Options) -> LabelFile:
    """Read a label map in canonical orientation."""
    read = _read(path, options.max_voxels)
    labels = check_labels(read.array_kji, path.name, max_voxels=options.max_voxels)
    return LabelFile(read.source.to_canonical(labels), None, read.spacing_hwd_mm, read.source)


def write_nifti(path: Path, output: SegmentationOutput) -> None:
    """Write labels on the source's own grid; from a NIfTI case with its own header and affine."""
    _write(path, output.case, output.labels_dhw)


def write_probability(
    path: Path, case: Case, map_dhw: npt.NDArray[np.uint8], highest: int = 255
) -> None:
    """Write a probability map as bytes, which every reader scales to 0 to 1.

    Parameters
    ----------
    path
        The file, `.nii` or `.nii.gz`.
    case
        Whose grid it lies on.
    map_dhw
        ``(D, H, W)``, bytes.
    highest
        The byte that means 1.
    """
    _write(path, case, map_dhw, slope=1 / highest)


def _write(path: Path, case: Case, array_dhw: HostArray, slope: float = 1.0) -> None:
    """Write integers on the source's own grid; they mean `slope` times as much."""
    nibabel = import_optional("NiBabel", "a NIfTI file")

    array_ijk = np.ascontiguousarray(case.volume.restore(array_dhw)).transpose()
    found = case.header if isinstance(case.header, nibabel.Nifti1Header) else None
    second = isinstance(found, nibabel.Nifti2Header)
    pair = _is_pair(path)
    if pair:
        kind = nibabel.Nifti2Pair if second else nibabel.Nifti1Pair
    else:
        kind = nibabel.Nifti2Image if second else nibabel.Nifti1Image
    if found is None:
        affine = RAS_TO_LPS @ case.volume.affine_lps
        image = kind(array_ijk, affine, dtype=array_ijk.dtype)
        known = case.volume.has_orientation
        code = _SCANNER if known else _ALIGNED
        # A qform holds no shear, and ITK would take it in silence where both forms stand.
        sheared = case.volume.source.shear_degrees > _LARGEST_QFORM_SHEAR
        image.set_qform(affine, code=0 if sheared else code)
        image.set_sform(affine, code=code)
        image.header["descrip"] = "" if known else ORIENTATION_ASSUMED
    else:
        header = kind.header_class(found.binaryblock, found.endianness, check=False)
        header.extensions.extend(found.extensions)
        header["cal_min"] = header["cal_max"] = 0
        header.set_data_dtype(array_ijk.dtype)
        if not pair:
            header["vox_offset"] = 0  # nibabel makes room for extensions
        broken_sform = int(header["sform_code"]) > 0 and (
            nifti_geometry(header, header["pixdim"], path.name).form == "qform"
        )
        if broken_sform:
            header["sform_code"] = 0  # every reader then takes the qform, as this one did
        # None leaves both of the header's own matrices, to the last digit.
        image = kind(array_ijk, None, header)
    image.header.set_slope_inter(slope, 0)
    parts = (
        {"image": path} if not pair else dict(zip(("header", "image"), _pair(path), strict=True))
    )
    files = {part: nibabel.FileHolder(fileobj=io.BytesIO()) for part in ("header", "image")}
    if not pair:
        files = {"image": files["image"]}
    image.to_file_map(files)
    for part in sorted(parts, reverse=True):  # the header last: it makes the image readable
        content = files[part].fileobj.getbuffer()
        write_values(parts[part], content, gzipped=path.name.lower().endswith(".gz"))


def _is_pair(path: Path) -> bool:
    """Whether a name is that of a header or an image of a pair."""
    return path.name.lower().endswith((".hdr", ".img", ".hdr.gz", ".img.gz"))


def _recognizes_nifti(start: bytes) -> bool:
    """Whether a file starts as NIfTI does."""
    return start[344:348] in _MAGIC or start[4:8] in _MAGIC


def _pair(path: Path) -> tuple[Path, Path]:
    """Header and image of a pair, of which either may be given."""
    lower = path.name.lower()
    packed = len(".gz") if lower.endswith(".gz") else 0
    base = path.name[: len(path.name) - len(".hdr") - packed]
    suffix = path.name[len(path.name) - packed :] if packed else ""
    ending = path.name[len(base) : len(base) + 4]
    hdr, img = (".HDR", ".IMG") if ending.isupper() else (".hdr", ".img")
    return path.with_name(base + hdr + suffix), path.with_name(base + img + suffix)


def _read(path: Path, max_voxels: int) -> _Read:
    nibabel = import_optional("NiBabel", "a NIfTI file")
    errors = (nibabel.spatialimages.HeaderDataError, nibabel.wrapstruct.WrapStructError)
    with reading(path.name, errors), ExitStack() as stack:
        first, second = _pair(path) if _is_pair(path) else (path, None)
        stream = _open(first, stack)
        header, pixdim, done = _read_header(stream, first, single=second is None)
        shape = squeezed(header.get_data_shape())
        check_shape(shape, max_voxels=max_voxels, what=path.name)
        geometry = nifti_geometry(header, pixdim, path.name)
        source = SourceGrid()
        if geometry.affine_lps is not None:
            assumed = orientation_is_assumed(header)
            source = SourceGrid.from_affine(geometry.affine_lps, is_assumed=assumed)
        if second is not None:
            stream, done = _open(second, stack), 0
        _skip(stream, int(header.get_data_offset()) - done, path.name)
        dtype = header.get_data_dtype()
        if dtype.kind not in "biuf":
            raise CaseError(
                f"{path.name} has values of type {dtype}; give real numbers", code="value-type"
            )
        values = read_values(stream, dtype, (shape[0], shape[1], shape[2]), path.name)
        slope, inter = header.get_slope_inter()
        scale = 1.0 if slope is None else float(slope)
        shift = 0.0 if inter is None else float(inter)
        array = values.array_kji
        if (scale, shift) != (1.0, 0.0):
            array = nibabel.volumeutils.apply_read_scaling(
                array, np.float64(scale), np.float64(shift)
            )
    return _Read(array, geometry, source, header, (*geometry.notes, *values.notes))


def _open(path: Path, stack: ExitStack) -> Stream:
    if not path.is_file():
        raise MissingFileError(
            f"there is no {path.name} beside the other file of its scan; put the header and the "
            "image into one folder, or write the scan as one file",
            code="data-file-missing",
        )
    return open_maybe_gzipped(path, stack)


def _read_header(stream: Stream, path: Path, *, single: bool) -> tuple[Any, HostArray, int]:
    """Header as nibabel checks it, voxel sizes as they are stored, and the bytes that were read."""
    nibabel = import_optional("NiBabel", "a NIfTI file")
    start = bytes(read_exactly(stream, _NIFTI_1, path.name))
    first_number = {int.from_bytes(start[:4], order) for order in ("little", "big")}
    second = _NIFTI_2 in first_number
    if second:
        start += bytes(read_exactly(stream, _NIFTI_2 - _NIFTI_1, path.name))
    magic = start[4:8] if second else start[344:348]
    if magic not in _MAGIC:
        older = _NIFTI_1 in first_number
        kind = "an Analyze 7.5 file, which can't tell left from right" if older else "no NIfTI file"
        raise CaseError(
            f"{path.name} is {kind}; convert it to .nii.gz where its orientation is known",
            code="not-nifti",
        )
    if (_MAGIC[magic] == "one") != single:
        advice = "name it .nii" if not single else "name its two files .hdr and .img"
        raise CaseError(
            f"{path.name} says that it is {'one file' if _MAGIC[magic] == 'one' else 'a pair'}; "
            f"{advice}",
            code="wrong-ending",
        )
    if second:
        kind_of = nibabel.Nifti2Header if single else nibabel.nifti2.Nifti2PairHeader
    else:
        kind_of = nibabel.Nifti1Header if single else nibabel.nifti1.Nifti1PairHeader
    raw = kind_of(start, check=False)
    pixdim = np.array(raw["pixdim"], dtype=np.float64)
    done = len(start)
    rest = b""
    if single:
        wanted = int(raw["vox_offset"]) - done
        if not 0 <= wanted <= _MOST_EXTENSIONS:
            raise CaseError(
                f"{path.name} is damaged: its voxels would start at byte "
                f"{int(raw['vox_offset']):,}",
                code="header-damaged",
            )
        rest = bytes(read_exactly(stream, wanted, path.name))
        done += wanted
    else:
        while len(rest) <= _MOST_EXTENSIONS and (part := stream.read(2**20)):
            rest += part
    header = kind_of.from_fileobj(io.BytesIO(start + rest), check=False)
    header.check_fix(logger=_quiet, error_level=40)
    return header, pixdim, done


def _skip(stream: Stream, size: int, name: str) -> None:
    if not 0 <= size <= _MOST_EXTENSIONS:
        raise CaseError(
            f"{name} is damaged: its voxels would start at byte {size:,}", code="header-damaged"
        )
    read_exactly(stream, size, name)


FORMATS: Final = (
    Format(
        name="nifti",
        title="NIfTI",
        endings=(".nii.gz", ".nii", ".hdr.gz", ".hdr"),
        companions=(".img.gz", ".img"),
        gzipped={".nii": ".nii.gz", ".hdr": ".hdr.gz", ".img": ".img.gz"},
        two_file_endings=(".hdr.gz", ".hdr"),
        libraries=("NiBabel",),
        read_case=_read_nifti_case,
        read_labels=_read_nifti_labels,
        write=write_nifti,
        recognizes=_recognizes_nifti,
    ),
)
