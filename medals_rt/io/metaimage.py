"""MetaImage, `.mha` and `.mhd` with its data file, as ITK, elastix and 3D Slicer write it.

Read and written here rather than by SimpleITK: the header is a dozen lines of text, while SimpleITK
(a quarter of a gigabyte) takes sizes and file names out of a header as they are, which is what
files from strangers mustn't decide.
"""

from __future__ import annotations

import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np

from medals_rt.common.atomic_io import atomic_output
from medals_rt.common.errors import CaseError
from medals_rt.common.notes import Note, warning
from medals_rt.common.typing import HostArray
from medals_rt.io.case import Case, LabelFile, check_labels, placed_case, reading
from medals_rt.io.format import Format, Options, SegmentationOutput, squeezed, stem
from medals_rt.io.nifti_geometry import ORIENTATION_ASSUMED
from medals_rt.io.volume import SourceGrid, check_shape, check_spacing
from medals_rt.io.voxel_data import InflatedStream, Stream, data_file, open_beside, read_values

_TYPES: Final = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_NAMES: Final = {code: name for name, code in _TYPES.items() if "LONG" not in name or "8" in code}
_DATA: Final = "elementdatafile"
_REMARK: Final = "Comment"
_LOCAL: Final = "LOCAL"
_MOST_LINES, _MOST_BYTES = 1000, 4096
_ALIASES: Final = {
    "origin": "offset",
    "position": "offset",
    "rotation": "transformmatrix",
    "orientation": "transformmatrix",
    "elementbyteordermsb": "binarydatabyteordermsb",
}
_OF_VOXELS: Final = frozenset(
    {
        *("ndims", "dimsize", "elementtype", "elementnumberofchannels", "elementspacing"),
        *("offset", "transformmatrix", "distanceunits", "binarydatabyteordermsb"),
    }
)
"""Fields of what the voxels are and where they lie: no two lines may say that differently."""


def _read_metaimage_case(path: Path, options: Options) -> Case:
    """Read an image; it holds no prompts. See `registry.read_case`."""
    array_kji, source, notes = _read(path, options.max_voxels)
    name, most = stem(path, FORMATS), options.max_voxels
    return placed_case(path, name, array_kji, source, max_voxels=most, notes=notes)


def _read_metaimage_labels(path: Path, options: Options) -> LabelFile:
    """Read a label map in canonical orientation."""
    array_kji, source, _ = _read(path, options.max_voxels)
    labels = check_labels(array_kji, path.name, max_voxels=options.max_voxels)
    return LabelFile(source.to_canonical(labels), None, source.spacing_hwd_mm, source)


def _write_metaimage(path: Path, output: SegmentationOutput) -> None:
    """Write labels on the source's own grid, compressed; a `.mhd` with its `.zraw` beside it."""
    volume = output.case.volume
    labels_kji = np.ascontiguousarray(volume.restore(output.labels_dhw))
    affine = volume.affine_lps
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    packed = zlib.compress(labels_kji.astype(labels_kji.dtype.newbyteorder("<")).tobytes(), 6)
    *_, data = _written_as_metaimage(path)
    local = data == path
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        **({} if volume.has_orientation else {_REMARK: ORIENTATION_ASSUMED}),
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "True",
        "CompressedDataSize": str(len(packed)),
        "TransformMatrix": _numbers((affine[:3, :3] / spacing).T),
        "Offset": _numbers(affine[:3, 3]),
        "CenterOfRotation": "0 0 0",
        "ElementSpacing": _numbers(spacing),
        "DimSize": " ".join(str(size) for size in labels_kji.shape[::-1]),
        "ElementType": _NAMES[labels_kji.dtype.str[1:]],
        "ElementDataFile": _LOCAL if local else data.name,
    }
    header = "".join(f"{name} = {value}\n" for name, value in fields.items()).encode()
    if not local:  # before the header, which makes it readable
        with atomic_output(data) as temporary:
            temporary.write_bytes(packed)
    with atomic_output(path) as temporary:
        temporary.write_bytes(header + packed if local else header)


def _files_of_metaimage(path: Path) -> tuple[Path, ...]:
    """Return the header and the data file that it names, if it names one."""
    with reading(path.name), path.open("rb") as file:
        name = _header(file, path.name)[_DATA]
        return (path,) if name == _LOCAL else (path, data_file(path, name))


def _written_as_metaimage(path: Path) -> tuple[Path, ...]:
    """Return the file, and the data file beside a `.mhd`."""
    return (path, path.with_suffix(".zraw")) if path.name.lower().endswith(".mhd") else (path,)


def _recognizes_metaimage(start: bytes) -> bool:
    """Whether a file starts as MetaImage does."""
    return start.lstrip().startswith((b"ObjectType", b"NDims"))


def _read(path: Path, max_voxels: int) -> tuple[HostArray, SourceGrid, tuple[Note, ...]]:
    with reading(path.name), ExitStack() as stack:
        file: BinaryIO = stack.enter_context(path.open("rb"))
        header = _header(file, path.name)
        shape = squeezed([int(size) for size in header.get("dimsize", "").split()])
        check_shape(shape, max_voxels=max_voxels, what=path.name)
        dtype = _dtype(header, path.name)
        source = _source(header, path.name)
        if header[_DATA] != _LOCAL:
            file = stack.enter_context(open_beside(path, header[_DATA]))
        size = dtype.itemsize * shape[0] * shape[1] * shape[2]
        stream: Stream = _from_start(file, header, size)
        if _is_true(header, "compresseddata"):
            stream = InflatedStream(stream)
        values = read_values(stream, dtype, (shape[0], shape[1], shape[2]), path.name)
    return values.array_kji, source, (*_notes(header), *values.notes)


def _header(file: BinaryIO, name: str) -> dict[str, str]:
    """Fields up to the one that names the data, by lower-case name."""
    header: dict[str, str] = {}
    for _ in range(_MOST_LINES):
        line = file.readline(_MOST_BYTES)
        if not line.strip():
            if not line:
                break
            continue
        key, sign, value = line.decode("latin-1").partition("=")
        if not sign:
            break
        key = key.strip().lower()
        field, value = _ALIASES.get(key, key), value.strip()
        if field in _OF_VOXELS and header.get(field, value).split() != value.split():
            raise CaseError(
                f"{name} says {key} twice, or by two names, as {header[field][:40]!r} and "
                f"{value[:40]!r}: programs take one or the other; take out the wrong line",
                code="header-contradicts",
            )
        header[field] = value
        if key == _DATA:
            return header
    raise CaseError(
        f"{name} has no MetaImage header that ends in ElementDataFile; export it again",
        code="header-damaged",
    )


def _dtype(header: dict[str, str], name: str) -> np.dtype[Any]:
    kind = header.get("elementtype", "")
    if kind not in _TYPES or header.get("elementnumberofchannels", "1") != "1":
        channels = header.get("elementnumberofchannels", "1")
        raise CaseError(
            f"{name} has {channels[:20]} values of type {kind[:40]!r} a voxel; "
            "give one real number",
            code="value-type",
        )
    if not _is_true(header, "binarydata", default="True"):
        raise CaseError(f"{name} keeps its voxels as text; write it binary", code="encoding")
    order: Literal[">", "<"] = ">" if _is_true(header, "binarydatabyteordermsb") else "<"
    return np.dtype(_TYPES[kind]).newbyteorder(order)


def _source(header: dict[str, str], name: str) -> SourceGrid:
    if "elementspacing" not in header:
        raise CaseError(f"{name} has no spacing (ElementSpacing); add it", code="spacing-missing")
    unit = header.get("distanceunits", "mm")
    if unit not in {"mm", "?"}:
        raise CaseError(
            f"{name} is in {unit[:20]!r}, which programs read as millimeters; write it in mm",
            code="unit-not-millimeters",
        )
    count = int(header.get("ndims", "3"))
    spacing = check_spacing(_row(header["elementspacing"])[:3])
    rows = _row(header.get("transformmatrix", _numbers(np.eye(count)))).reshape(count, count)
    affine = np.eye(4)
    # A row of the matrix is the direction of an axis.
    affine[:3, :3] = rows[:3, :3].T * spacing
    affine[:3, 3] = _row(header.get("offset", "0 0 0"))[:3]
    assumed = header.get(_REMARK.lower()) == ORIENTATION_ASSUMED
    return SourceGrid.from_affine(affine, is_assumed=assumed)


def _notes(header: dict[str, str]) -> tuple[Note, ...]:
    """Warn of a scale of values that nobody applies."""
    slope = header.get("elementtointensityfunctionslope", "1")
    offset = header.get("elementtointensityfunctionoffset", "0")
    if (float(slope), float(offset)) == (1.0, 0.0):
        return ()
    text = (
        f"the file names a slope of {slope[:20]} and an offset of {offset[:20]} for its values: "
        "they are left out, as ITK does"
    )
    return (warning("scale-left-out", text),)


def _from_start(file: BinaryIO, header: dict[str, str], size: int) -> BinaryIO:
    skip = int(header.get("headersize", "0"))
    if skip == -1:  # the voxels are the last bytes
        file.seek(-size, 2)
    elif skip > 0:
        file.seek(skip)
    return file


def _is_true(header: dict[str, str], name: str, default: str = "False") -> bool:
    return header.get(name, default).strip().lower() in {"true", "1"}


def _row(text: str) -> HostArray:
    return np.array([float(part) for part in text.split()])


def _numbers(values: HostArray) -> str:
    return " ".join(repr(float(value)) for value in np.ravel(values))


FORMATS: Final = (
    Format(
        name="metaimage",
        title="MetaImage",
        endings=(".mha", ".mhd"),
        two_file_endings=(".mhd",),
        read_case=_read_metaimage_case,
        read_labels=_read_metaimage_labels,
        write=_write_metaimage,
        recognizes=_recognizes_metaimage,
        files_of=_files_of_metaimage,
        files_written=_written_as_metaimage,
    ),
)
