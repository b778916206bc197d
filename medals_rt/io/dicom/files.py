"""Find and read the DICOM files of a folder, a zip or a single file.

Nothing is unpacked to disk: members of a zip are read one at a time into memory, after their
announced sizes were added up, and no name in it is ever used as a path. Of a file that may turn out
to be anything only the first bytes are read. What isn't a DICOM
file is passed over and named.
"""

from __future__ import annotations

import io
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final, Self

from medals_rt.common.errors import CaseError, MissingDependencyError
from medals_rt.common.folders import walk_once
from medals_rt.common.optional_deps import import_optional

MAX_FILES: Final = 100_000
"""More files than this in one folder or zip are refused."""

MAX_HEADER_BYTES: Final = 64 * 2**20
"""Room for everything in a file that isn't pixels; what comes later isn't looked at."""

_BYTES_PER_VOXEL: Final = 4
"""Bytes of a stored voxel at most."""

MAX_READS: Final = 20_000_000
"""Pieces that the headers of one case may be read in, some three an element: a study of ten
thousand slices takes half of it. More are meant to take time."""

_PREAMBLE: Final = 132
_START: Final = 1024
"""Bytes in which two elements are looked for, in a file without preamble."""

_OVERLAYS: Final = 0x60
_DEFLATED: Final = "1.2.840.10008.1.2.1.99"
_LONG_VRS: Final = {b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC", b"UR"}
"""Kinds of values whose length takes four bytes, of those that groups 2 and 8 hold."""

_MAX_RATIO: Final = 1040
"""Deflate can't shrink data further than about 1032 times; what announces more is lying."""


class _Meter:
    """Counts the pieces that are read, over all files of a case."""

    def __init__(self) -> None:
        self.left = MAX_READS

    def count(self) -> None:
        """Count one.

        Raises
        ------
        CaseError
            If there were too many.
        """
        self.left -= 1
        if self.left < 0:
            raise CaseError(
                "the DICOM headers hold more elements than a study has; give the folder of one "
                "series",
                code="too-many-elements",
            )


class _Metered:
    """As much of a stream as pydicom needs, every read counted."""

    def __init__(self, stream: BinaryIO, meter: _Meter) -> None:
        self._read, self._meter = stream.read, meter
        self.seek, self.tell, self.close = stream.seek, stream.tell, stream.close

    def read(self, size: int = -1) -> bytes:
        """Read as the stream does."""
        self._meter.count()
        return self._read(size)


@dataclass(frozen=True, eq=False)
class DicomFile:
    """One DICOM file: where it lies, how many bytes it has, and the meter of its case's reads."""

    name: str
    size: int
    place: Path | tuple[zipfile.ZipFile, zipfile.ZipInfo]
    meter: _Meter

    @classmethod
    def elsewhere(cls, name: str) -> Self:
        """Name a file that isn't here (yet), for messages about its header."""
        return cls(name, 0, Path(name), _Meter())

    def start(self, length: int) -> BinaryIO:
        """Open a stream of its first `length` bytes, which are read at once if it is longer."""
        if not isinstance(self.place, Path):
            archive, member = self.place
            with archive.open(member) as file:
                return io.BytesIO(file.read(length))
        if self.size <= length:
            return self.place.open("rb")
        with self.place.open("rb") as file:
            return io.BytesIO(file.read(length))

    def looks_like_dicom(self) -> bool:
        """Whether it bears the mark of a DICOM file, or starts like one without preamble."""
        with self.start(_START) as stream:
            return starts_like_dicom(stream.read(_START))


def starts_like_dicom(start: bytes) -> bool:
    """Whether bytes bear the mark of a DICOM file, or are a data set's first elements."""
    return start[128:_PREAMBLE] == b"DICM" or _starts_with_elements(start)


@contextmanager
def dicom_files(
    path: Path, *, max_voxels: int
) -> Iterator[tuple[list[DicomFile], list[DicomFile]]]:
    """Yield the DICOM files of a folder, a zip or one file, and the others.

    Parameters
    ----------
    path
        A folder (searched with all folders in it, and where links in it lead), a zip, or a DICOM
        file.
    max_voxels
        Files and zips that are larger than so many voxels could make them are refused.

    Raises
    ------
    CaseError
        If there are too many files, they are too large, or the zip is damaged, encrypted, or holds
        names that lead out of it.
    """
    max_bytes = max_voxels * _BYTES_PER_VOXEL + MAX_HEADER_BYTES
    if path.is_dir():
        yield _sorted_out(_files_of_folder(path), max_bytes)
    elif path.suffix.lower() == ".zip":
        with reading(path.name):
            archive = zipfile.ZipFile(path)
        with archive:
            yield _sorted_out(_files_of_zip(archive, path, max_bytes), max_bytes)
    else:
        yield _sorted_out([DicomFile(path.name, path.stat().st_size, path, _Meter())], max_bytes)


def files_of_dicom(path: Path) -> tuple[Path, ...]:
    """Return the DICOM files of a folder, as `dicom_files` finds them; else the path alone."""
    if not path.is_dir():
        return (path,)
    found = (each.place for each in _files_of_folder(path) if _is_dicom(each))
    return tuple(place for place in found if isinstance(place, Path))


def read_header(file: DicomFile) -> Any:
    """Read a file up to its pixels, as a pydicom data set without private and overlay data.

    Raises
    ------
    CaseError
        If it is damaged.
    """
    with reading(file.name), file.start(MAX_HEADER_BYTES) as stream:
        header = _read(stream, file, MAX_HEADER_BYTES, whole=False)
        for tag in tuple(header.keys()):
            if tag.is_private or tag.group >> 8 == _OVERLAYS:
                del header[tag]
    return header


def read_whole(file: DicomFile, pixel_bytes: int) -> Any:
    """Read a file with its pixels, still as they are stored.

    Parameters
    ----------
    file
        One whose header was read.
    pixel_bytes
        What its pixels take; a file that is much larger isn't read.

    Raises
    ------
    CaseError
        If it is damaged or too large.
    """
    largest = 2 * pixel_bytes + MAX_HEADER_BYTES
    if file.size > largest:
        raise CaseError(
            f"{file.name} has {file.size:,} bytes for {pixel_bytes:,} bytes of pixels; "
            "it is damaged, export the series again",
            code="file-too-large",
        )
    with reading(file.name), file.start(largest) as stream:
        return _read(stream, file, largest, whole=True)


def _read(plain: BinaryIO, file: DicomFile, limit: int, *, whole: bool) -> Any:
    """Read a data set, deflated or not, with or without preamble."""
    pydicom = require_pydicom()
    from pydicom.filereader import read_dataset, read_preamble
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    stream: Any = plain if whole else _Metered(plain, file.meter)
    read_preamble(stream, force=True)
    meta = read_dataset(
        stream,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, _vr, _length: tag.group != 2,
    )
    if len(meta) and "TransferSyntaxUID" not in meta:
        raise CaseError(
            f"{file.name} names no transfer syntax; export the file again",
            code="transfer-syntax-missing",
        )
    if str(meta.get("TransferSyntaxUID")) == _DEFLATED:
        plain = _inflated(plain, meta, limit, file.name, whole=whole)
        stream = plain if whole else _Metered(plain, file.meter)
    stream.seek(0)
    data = pydicom.dcmread(stream, stop_before_pixels=not whole, force=True)
    if "TransferSyntaxUID" not in data.file_meta:
        implicit, _ = data.original_encoding
        data.file_meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        )
    return data


def _inflated(deflated: BinaryIO, meta: Any, limit: int, name: str, *, whole: bool) -> BinaryIO:
    """Inflate the rest of a stream, as far as `limit`, as a file that isn't deflated.

    pydicom would inflate it in one go, however large it becomes.
    """
    from pydicom.dataset import FileMetaDataset
    from pydicom.filebase import DicomFileLike
    from pydicom.filewriter import write_file_meta_info
    from pydicom.uid import ExplicitVRLittleEndian

    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    data = decompressor.decompress(deflated.read(), limit)
    if whole and decompressor.unconsumed_tail:
        raise CaseError(
            f"{name} inflates to more than {limit:,} bytes, more than its image takes; "
            "it is damaged, export the series again",
            code="file-too-large",
        )
    plain_meta = FileMetaDataset(meta)
    plain_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    inflated = io.BytesIO()
    inflated.write(bytes(128) + b"DICM")
    write_file_meta_info(DicomFileLike(inflated), plain_meta, enforce_standard=False)
    inflated.write(data)
    inflated.seek(0)
    return inflated


def _starts_with_elements(start: bytes) -> bool:
    """Whether a file without preamble starts with two elements of group 2 or 8, little endian."""
    first = _element(start, 0)
    if first is None:
        return False
    second = _element(start, first[1])
    return second is not None and second[0] > first[0]


def _element(start: bytes, at: int) -> tuple[int, int] | None:
    """Tag and end of the element at a place; `None` where there is no plausible one."""
    head = start[at : at + 12]
    if len(head) < 12:
        return None
    group, element = struct.unpack_from("<HH", head)
    if group not in {0x0002, 0x0008}:
        return None
    (length,) = struct.unpack_from("<I", head, 4)
    size = 8
    if head[4:6].isalpha() and head[4:6].isupper():
        (length,) = struct.unpack_from("<H", head, 6)
        if head[4:6] in _LONG_VRS:
            (length,) = struct.unpack_from("<I", head, 8)
            size = 12
    return (group << 16 | element, at + size + length) if length < _START else None


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what damaged data makes pydicom raise into a `CaseError`."""
    try:
        yield
    except (CaseError, MissingDependencyError):
        raise
    except damage() as error:
        raise CaseError(
            f"{name} can't be read, it is damaged or unusual ({_short(error)}); "
            "export the series again",
            code="file-damaged",
        ) from error


def damage() -> tuple[type[Exception], ...]:
    """Return what pydicom and its decoders raise on damage, as data is read or a value is used."""
    from pydicom import errors

    return (
        errors.BytesLengthException, errors.InvalidDicomError,
        ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError,
        RuntimeError, EOFError, OSError, MemoryError, BufferError,
        struct.error, zlib.error, zipfile.BadZipFile,
    )  # fmt: skip


@contextmanager
def silence() -> Iterator[None]:
    """Keep back pydicom's warnings: what it warns of is either harmless or refused here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _short(error: BaseException) -> str:
    """First words of an error, on one line and printable."""
    return printable(str(error), 100) or type(error).__name__


def printable(text: object, length: int = 64) -> str:
    """Text from a file for a message: one line, no control characters, not too long."""
    words = " ".join(str(text).split())[:length]
    return "".join(letter if letter.isprintable() else "?" for letter in words)


def require_pydicom() -> Any:
    """Import pydicom.

    Raises
    ------
    MissingDependencyError
        If it isn't installed.
    """
    return import_optional("pydicom", "a DICOM file")


def _sorted_out(files: list[DicomFile], max_bytes: int) -> tuple[list[DicomFile], list[DicomFile]]:
    """DICOM files by name, and others."""
    found, others = [], []
    for file in files:
        if not _is_dicom(file):
            others.append(file)
            continue
        if file.size > max_bytes:
            raise CaseError(
                f"{file.name} has {file.size:,} bytes, more than {max_bytes:,}; "
                "raise the limit of voxels if it's right",
                code="file-too-large",
            )
        found.append(file)
    return found, others


def _is_dicom(file: DicomFile) -> bool:
    with reading(file.name):
        return file.size > _PREAMBLE and file.looks_like_dicom()


def _files_of_folder(folder: Path) -> list[DicomFile]:
    files, meter = [], _Meter()
    try:
        for parent, _, names in walk_once(folder):
            for path in (parent / name for name in names):
                name = printable(path.relative_to(folder))
                files.append(DicomFile(name, _size_of(path), path, meter))
                _check_number(len(files), folder)
    except OSError as error:
        raise CaseError(
            f"can't read the folder {error.filename} ({error.strerror}), in which images may lie; "
            "let it be read, or move it away",
            code="folder-unreadable",
        ) from error
    return files


def _size_of(path: Path) -> int:
    """Return a file's bytes; 0 of what is none, such as a link that leads nowhere."""
    try:
        state = path.stat()
    except OSError:
        return 0
    return state.st_size if stat.S_ISREG(state.st_mode) else 0


def _files_of_zip(archive: zipfile.ZipFile, path: Path, max_bytes: int) -> list[DicomFile]:
    members = [member for member in archive.infolist() if not member.is_dir()]
    _check_number(len(members), path)
    stored = path.stat().st_size
    total = 0
    for member in members:
        name = printable(member.filename)
        if PurePosixPath(member.filename).is_absolute() or ".." in member.filename.split("/"):
            raise CaseError(
                f"{path.name} holds {name!r}, which leads out of it; pack it again",
                code="path-leaves-zip",
            )
        if member.flag_bits & 1:
            raise CaseError(
                f"{path.name} is encrypted ({name!r}); unpack it and give the folder",
                code="zip-encrypted",
            )
        if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise CaseError(
                f"{name!r} in {path.name} has a compression that isn't read",
                code="compression-unknown",
            )
        if (
            member.file_size > member.compress_size * _MAX_RATIO + _PREAMBLE
            or member.compress_size > stored
        ):
            raise CaseError(
                f"{name!r} in {path.name} announces {member.file_size:,} bytes, more than its "
                f"{member.compress_size:,} stored ones can hold; the zip is damaged",
                code="size-implausible",
            )
        total += member.file_size
    if total > 2 * max_bytes:
        raise CaseError(
            f"{path.name} would unpack to {total:,} bytes, more than {2 * max_bytes:,}; pack one "
            "series a zip, or give the unpacked folder",
            code="zip-too-large",
        )
    meter = _Meter()
    return [DicomFile(printable(m.filename), m.file_size, (archive, m), meter) for m in members]


def _check_number(files: int, place: Path) -> None:
    if files > MAX_FILES:
        raise CaseError(
            f"{place} holds more than {MAX_FILES:,} files; give the folder of one study",
            code="too-many-files",
        )
