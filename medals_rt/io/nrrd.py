"""NRRD, `.nrrd` and `.nhdr` with its data file, with pynrrd (extra "formats")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from medals_rt.common.atomic_io import atomic_output
from medals_rt.common.errors import CaseError
from medals_rt.common.notes import Note
from medals_rt.common.optional_deps import import_optional
from medals_rt.common.typing import HostArray
from medals_rt.io.case import Case, LabelFile, check_labels, placed_case, reading
from medals_rt.io.format import Format, Options, SegmentationOutput, stem
from medals_rt.io.nifti_geometry import ORIENTATION_ASSUMED
from medals_rt.io.segment_metadata import Code, Segment
from medals_rt.io.volume import SourceGrid, check_shape, check_spacing
from medals_rt.io.voxel_data import (
    InflatedStream,
    Stream,
    data_file,
    open_beside,
    read_exactly,
    read_values,
)

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

_MILLIMETERS: Final = {"", "mm", "millimeter", "millimeters", "millimetre", "millimetres", "???"}
_NO_AXIS_OF_SPACE: Final = ("time", "list", "vector", "color", "complex")
"""What the names of kinds that are no axes of space hold."""

_REMARK: Final = "medals-rt"
"""Key of the pair of key and value that says that the orientation is assumed."""

_MOST_LINES: Final = 10_000
_MOST_SKIPPED: Final = 64 * 2**20


def _read_nrrd_case(path: Path, options: Options) -> Case:
    """Read an image; it holds no prompts. See `registry.read_case`."""
    read = _read(path, options.max_voxels)
    name, most = stem(path, FORMATS), options.max_voxels
    return placed_case(path, name, read.array_kji, read.source, max_voxels=most, notes=read.notes)


def _read_nrrd_labels(path: Path, options: Options) -> LabelFile:
    """Read a label map in canonical orientation, with the names of its segments."""
    read = _read(path, options.max_voxels)
    labels = check_labels(read.array_kji, path.name, max_voxels=options.max_voxels)
    return LabelFile(
        read.source.to_canonical(labels),
        None,
        read.source.spacing_hwd_mm,
        read.source,
        segment_names=_segment_names(read.header),
    )


def _write_nrrd(path: Path, output: SegmentationOutput) -> None:
    """Write labels on the source's own grid, in the LPS frame, with 3D Slicer's segment fields.

    A `.nhdr` gets its voxels in a `.raw.gz` beside it.
    """
    pynrrd = import_optional("pynrrd", "an NRRD file")
    volume = output.case.volume
    labels_ijk = np.ascontiguousarray(volume.restore(output.labels_dhw)).transpose()
    segments = output.segments
    affine = volume.affine_lps
    header = {
        "space": "left-posterior-superior",
        "space directions": affine[:3, :3].T,
        "space origin": affine[:3, 3],
        "kinds": ["domain", "domain", "domain"],
        "encoding": "gzip",
        **({} if volume.has_orientation else {_REMARK: ORIENTATION_ASSUMED}),
        **_slicer_fields(labels_ijk, segments),
    }
    with atomic_output(path) as temporary:
        whole = temporary.with_name(f"{temporary.name}.nrrd")  # pynrrd takes the kind from the name
        try:
            pynrrd.write(str(whole), labels_ijk, header, index_order="F")
            for data in _written_as_nrrd(path)[1:]:
                text, _, voxels = whole.read_bytes().partition(b"\n\n")
                with atomic_output(data) as beside:  # before the header, which makes it readable
                    beside.write_bytes(voxels)
                whole.write_bytes(text + b"\ndata file: " + data.name.encode() + b"\n\n")
            whole.replace(temporary)
        finally:
            whole.unlink(missing_ok=True)


def _slicer_fields(labels_ijk: HostArray, segments: Sequence[Segment]) -> dict[str, str]:
    """Key/value pairs by which 3D Slicer knows the segments of a `.seg.nrrd`."""
    from scipy.ndimage import find_objects

    fields = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_SourceRepresentation": "Binary labelmap",
        "Segmentation_MasterRepresentation": "Binary labelmap",  # before Slicer 5.2
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    boxes = find_objects(labels_ijk)
    for number, segment in enumerate(segments):
        box = boxes[segment.label - 1] if segment.label <= len(boxes) else None
        # An empty extent is written as Slicer does, each end before its start.
        extent = [(0, -1)] * 3 if box is None else [(part.start, part.stop - 1) for part in box]
        values = {
            "ID": f"Segment_{segment.label}",
            "Name": _one_line(segment.name),
            "NameAutoGenerated": "0",
            "Color": " ".join(f"{part:g}" for part in segment.rgb),
            "ColorAutoGenerated": "0",
            "LabelValue": str(segment.label),
            "Layer": "0",
            "Extent": " ".join(f"{low} {high}" for low, high in extent),
            "Tags": f"Segmentation.Status:inprogress|{_terminology(segment)}|",
        }
        fields |= {f"Segment{number}_{name}": value for name, value in values.items()}
    return fields


def _terminology(segment: Segment) -> str:
    """Codes of a segment as 3D Slicer serializes a terminology entry."""
    category, none = _triplet(segment.category), "^^"
    side = none if segment.side is None else _triplet(segment.side)
    within_organ = segment.region is not None
    parts = (
        "Segmentation category and type - DICOM master list",
        category,
        _triplet(segment.type),
        none if within_organ else side,
        "Anatomic codes - DICOM master list",
        none if segment.region is None else _triplet(segment.region),
        side if within_organ else none,
    )
    return "TerminologyEntry:" + "~".join(parts)


def _triplet(code: Code) -> str:
    clean = _one_line(code.meaning)
    for special in "^~|":
        clean = clean.replace(special, " ")
    return f"{code.scheme}^{code.value}^{clean}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


class _Read:
    """A file's values `(k, j, i)`, its place, its header, and remarks."""

    def __init__(
        self, array_kji: HostArray, source: SourceGrid, header: Mapping[str, Any], *notes: Note
    ) -> None:
        self.array_kji, self.source, self.header, self.notes = array_kji, source, header, notes


def _read(path: Path, max_voxels: int) -> _Read:
    pynrrd = import_optional("pynrrd", "an NRRD file")
    with reading(path.name, (pynrrd.NRRDError,)), ExitStack() as stack:
        file: BinaryIO = stack.enter_context(path.open("rb"))
        beside = _named_data(file, path.name)
        header = pynrrd.read_header(file)
        axes = _space_axes(header)
        sizes = [int(size) for size in header["sizes"]]
        shape = tuple(sizes[axis] for axis in axes)
        check_shape(shape, max_voxels=max_voxels, what=path.name)
        _check_axes(header, axes, path.name)
        source = _source(header, axes, path.name)
        if beside is not None:
            file = stack.enter_context(open_beside(path, beside))
        _check_encoding(header, path.name)
        dtype = _dtype(header, path.name)
        size = dtype.itemsize * shape[0] * shape[1] * shape[2]
        stream = _voxels(file, header, size, path.name)
        values = read_values(stream, dtype, (shape[0], shape[1], shape[2]), path.name)
    return _Read(values.array_kji, source, header, *values.notes)


def _files_of_nrrd(path: Path) -> tuple[Path, ...]:
    """Return the header and the data file that it names, if it names one."""
    with reading(path.name), path.open("rb") as file:
        name = _named_data(file, path.name)
        return (path,) if name is None else (path, data_file(path, name))


def _written_as_nrrd(path: Path) -> tuple[Path, ...]:
    """Return the file, and the data file beside a `.nhdr`."""
    return (path, path.with_suffix(".raw.gz")) if path.name.lower().endswith(".nhdr") else (path,)


def _named_data(file: BinaryIO, name: str) -> str | None:
    """Return the name of the data file, None where there is none; the file is at its start again.

    Raises
    ------
    CaseError
        The header spreads its voxels over a list of files.
    """
    found = None
    for _ in range(_MOST_LINES):
        key, _, value = file.readline(_MOST_SKIPPED).partition(b":")
        if not key.strip():
            break
        if key.strip().lower() not in {b"data file", b"datafile"} or value.startswith(b"="):
            continue
        if value.split()[:1] == [b"LIST"]:
            raise CaseError(
                f"{name} keeps its voxels in several files; write it as one file",
                code="data-file-elsewhere",
            )
        found = value.decode("ascii", "ignore").strip()
    file.seek(0)
    return found


def _check_axes(header: Mapping[str, Any], axes: tuple[int, ...], name: str) -> None:
    """Refuse axes that aren't of space, or not in millimeters.

    Raises
    ------
    CaseError
        ``axis-not-of-space`` or ``unit-not-millimeters``.
    """
    kinds = header.get("kinds", [])
    for axis in axes:
        kind = str(kinds[axis]).lower() if axis < len(kinds) else ""
        if any(word in kind for word in _NO_AXIS_OF_SPACE):
            raise CaseError(
                f"{name} has an axis of kind {kind[:40]!r}; give one volume of three axes in space",
                code="axis-not-of-space",
            )
    per_axis = [] if "space directions" in header else header.get("units", [])
    units = [*header.get("space units", []), *(per_axis[axis] for axis in axes if per_axis)]
    other = [str(unit) for unit in units if str(unit).strip('" ').lower() not in _MILLIMETERS]
    if other:
        raise CaseError(
            f"{name} is in {other[0][:20]!r}, which programs read as millimeters; write it in mm",
            code="unit-not-millimeters",
        )


def _space_axes(header: Mapping[str, Any]) -> tuple[int, ...]:
    """Axes of the file that are axes of space: of four, one of length 1 is left out.

    Where several are that short, one without a direction or spacing, else the last.
    """
    sizes = [int(size) for size in header["sizes"]]
    axes = list(range(len(sizes)))
    placed = header.get("space directions", header.get("spacings"))
    while len(axes) > 3:
        short = [axis for axis in axes if sizes[axis] == 1]
        if not short:
            break
        placeless = [axis for axis in short if placed is not None and _is_nan(placed, axis)]
        axes.remove((placeless or short)[-1])
    return tuple(axes)


def _is_nan(placed: Sequence[Any], axis: int) -> bool:
    if axis >= len(placed) or placed[axis] is None:
        return True
    return not np.isfinite(np.asarray(placed[axis], dtype=np.float64)).all()


def _dtype(header: Mapping[str, Any], name: str) -> np.dtype[Any]:
    kind = header["type"]
    if kind not in _TYPES:
        raise CaseError(
            f"{name} has values of type {str(kind)[:40]!r}; give real numbers", code="value-type"
        )
    dtype = np.dtype(_TYPES[kind])
    if dtype.itemsize > 1 and header.get("endian") not in {"big", "little"}:
        raise CaseError(
            f"{name} doesn't say in which order the bytes of its values are (endian: little or "
            "big); add the line, or export it again",
            code="endian-missing",
        )
    if dtype.itemsize > 1:
        dtype = dtype.newbyteorder(">" if header["endian"] == "big" else "<")
    return dtype


def _check_encoding(header: Mapping[str, Any], name: str) -> None:
    """Refuse voxels that are stored as text or packed otherwise than by gzip.

    Raises
    ------
    CaseError
    """
    encoding = header["encoding"]
    if encoding not in {"raw", "gzip", "gz"}:
        raise CaseError(
            f"{name} is stored as {str(encoding)[:40]!r}; write it as raw or gzip", code="encoding"
        )


def _voxels(file: BinaryIO, header: Mapping[str, Any], size: int, name: str) -> Stream:
    """Stream whose next byte is the first of the voxels."""
    encoding = header["encoding"]
    lines = int(header.get("line skip", header.get("lineskip", 0)))
    skip = int(header.get("byte skip", header.get("byteskip", 0)))
    if not 0 <= lines <= _MOST_LINES or not -1 <= skip <= _MOST_SKIPPED:
        raise CaseError(
            f"{name} would skip {lines} lines and {skip} bytes; write it as one file",
            code="header-damaged",
        )
    for _ in range(lines):
        file.readline(_MOST_SKIPPED)
    if encoding == "raw":
        if skip == -1:  # the voxels are the last bytes
            file.seek(-size, 2)
        else:
            read_exactly(file, skip, name)
        return file
    stream = InflatedStream(file)
    read_exactly(stream, max(skip, 0), name)
    return stream


def _source(header: Mapping[str, Any], axes: tuple[int, ...], name: str) -> SourceGrid:
    """Place of a NRRD: space directions, or spacings along the LPS axes, as SimpleITK takes them.

    Raises
    ------
    CaseError
        If there are neither, or the space isn't one of a patient.
    """
    affine = np.eye(4)
    if "space directions" in header:
        space = str(header.get("space", "left-posterior-superior")).lower()
        if space not in _TO_LPS:
            raise CaseError(
                f"{name} lies in the space {space[:60]!r}; use left-posterior-superior or "
                "right-anterior-superior",
                code="space-unknown",
            )
        rows = header["space directions"]
        if len(rows) <= max(axes) or any(rows[axis] is None for axis in axes):
            raise CaseError(f"{name} has an axis without space direction", code="geometry-singular")
        directions = np.asarray([rows[axis] for axis in axes], dtype=np.float64)
        if directions.ndim == 2 and not directions[:, 3:].any():
            directions = directions[:, :3]  # a space of more axes, as SimpleITK writes four
        if directions.shape != (3, 3):
            raise CaseError(
                f"{name} has space directions of shape {directions.shape}; give three of three",
                code="geometry-singular",
            )
        signs = np.asarray(_TO_LPS[space])
        affine[:3, :3] = signs[:, None] * directions.T
        if "space origin" in header:
            affine[:3, 3] = signs * np.asarray(header["space origin"], dtype=np.float64)[:3]
    elif "spacings" in header and "space" in header:
        raise CaseError(
            f"{name} names a space and no 'space directions' in it, so that nothing says how its "
            "axes lie; export it again",
            code="geometry-missing",
        )
    elif "spacings" in header:
        spacing = check_spacing([header["spacings"][axis] for axis in axes])
        affine[:3, :3] = np.diag(spacing)
        affine[:3, 3] = _origin(header, axes, spacing)
    else:
        raise CaseError(
            f"{name} has no spacing ('space directions' or 'spacings'); add one",
            code="spacing-missing",
        )
    assumed = "space" not in header or header.get(_REMARK) == ORIENTATION_ASSUMED
    return SourceGrid.from_affine(affine, is_assumed=assumed)


def _origin(
    header: Mapping[str, Any], axes: tuple[int, ...], spacing: Sequence[float]
) -> HostArray:
    """Center of the first voxel by `axis mins`, which are the edges of cells unless it says nodes.

    As Teem and so SimpleITK compute it; zeros where an axis has no minimum.
    """
    minimums = header.get("axis mins", header.get("axismins"))
    if minimums is None:
        return np.zeros(3)
    centers = header.get("centerings", header.get("centers", ()))
    centers = centers.split() if isinstance(centers, str) else list(centers)
    origin = np.zeros(3)
    for place, axis in enumerate(axes):
        node = axis < len(centers) and centers[axis] == "node"
        origin[place] = float(minimums[axis]) + (0.0 if node else spacing[place] / 2)
    return origin if np.isfinite(origin).all() else np.zeros(3)


def _segment_names(header: Mapping[str, Any]) -> dict[int, str]:
    """Names of 3D Slicer's segments by label value."""
    names: dict[int, str] = {}
    for field, name in header.items():
        number, _, rest = field.removeprefix("Segment").partition("_")
        if not (field.startswith("Segment") and rest == "Name" and number.isdecimal()):
            continue
        label = str(header.get(f"Segment{number}_LabelValue", int(number) + 1)).strip()
        if label.isascii() and label.isdigit():
            names[int(label)] = _one_line(str(name))
    return names


FORMATS: Final = (
    Format(
        name="nrrd",
        title="NRRD",
        endings=(".seg.nrrd", ".nrrd", ".nhdr"),
        two_file_endings=(".nhdr",),
        menu_title="NRRD segmentation (.seg.nrrd)",
        libraries=("pynrrd",),
        read_case=_read_nrrd_case,
        read_labels=_read_nrrd_labels,
        write=_write_nrrd,
        recognizes=lambda start: start.startswith(b"NRRD000"),
        files_of=_files_of_nrrd,
        files_written=_written_as_nrrd,
    ),
)
