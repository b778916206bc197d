"""Voxel values as bytes: raw or compressed, behind a header or in a file beside it.

Shared by the formats whose headers are text or a fixed block (NIfTI, NRRD, MetaImage, FreeSurfer).
No size in a file is believed: at most what the header announces is kept, checksums are verified to
the end of the stream, and a header can name only a file of its own folder.
"""

from __future__ import annotations

import gzip
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import numpy as np

from medals_rt.common.atomic_io import atomic_output
from medals_rt.common.errors import CaseError, MissingFileError
from medals_rt.common.notes import Note, warning
from medals_rt.common.typing import HostArray

GZIP_MAGIC: Final = b"\x1f\x8b"
_CHUNK: Final = 2**20
_MOST_BEHIND: Final = 64 * 2**20
"""Bytes behind the values that are read to reach the checksum."""


class Stream(Protocol):
    """Bytes read once, from the front."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, at most `size`; none at the end."""
        ...


class InflatedStream:
    """Bytes that a gzip (of one or more members) or zlib stream unpacks to.

    Parameters
    ----------
    file
        Opened at the first byte of the stream. Bytes behind the last member are ignored, as `gzip`
        does.
    """

    def __init__(self, file: Stream) -> None:
        self._file = file
        self._packed = b""
        self._decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)
        self._ended = False

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; none at the end, where the checksum has been compared.

        Raises
        ------
        zlib.error
            If the stream is damaged or its checksum is another one.
        EOFError
            If it ends too early.
        """
        while not self._ended and size > 0:
            if self._decoder.eof:
                self._next_member()
                continue
            if not self._packed:
                self._packed = self._file.read(_CHUNK)
                if not self._packed:
                    raise EOFError("the compressed data ends too early")
            part = self._decoder.decompress(self._packed, size)
            self._packed = self._decoder.unconsumed_tail
            if part:
                return part
        return b""

    def _next_member(self) -> None:
        rest = self._decoder.unused_data
        rest += self._file.read(_CHUNK) if len(rest) < len(GZIP_MAGIC) else b""
        self._ended = not rest.startswith(GZIP_MAGIC)
        if not self._ended:
            self._packed = rest
            self._decoder = zlib.decompressobj(zlib.MAX_WBITS | 16)


@dataclass(frozen=True, eq=False)
class Values:
    """Values as `(k, j, i)` in the machine's byte order, and remarks about how they were stored."""

    array_kji: HostArray
    notes: tuple[Note, ...]


def open_maybe_gzipped(path: Path, stack: ExitStack) -> Stream:
    """Open a file that may be gzipped, until the stack is closed."""
    file = stack.enter_context(path.open("rb"))
    packed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    file.seek(0)
    return InflatedStream(file) if packed else file


def write_values(path: Path, data: bytes | memoryview, *, gzipped: bool) -> None:
    """Write a file, whole or not at all; the same content makes the same bytes."""
    with atomic_output(path) as temporary, temporary.open("wb") as file:
        if gzipped:
            with gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
                packed.write(data)
        else:
            file.write(data)


def read_exactly(stream: Stream, size: int, name: str) -> bytearray:
    """Read so many bytes.

    Raises
    ------
    CaseError
        If there are fewer.
    """
    data = bytearray()
    while len(data) < size:
        part = stream.read(min(_CHUNK, size - len(data)))
        if not part:
            raise CaseError(
                f"{name} is damaged: its header announces {size:,} bytes, {len(data):,} are there; "
                "copy or export it again",
                code="file-truncated",
            )
        data += part
    return data


def read_values(
    stream: Stream, dtype: np.dtype[Any], shape: tuple[int, int, int], name: str
) -> Values:
    """Read a volume and what lies behind it, to the end of the stream.

    Parameters
    ----------
    stream
        Its next byte is the first of the values.
    dtype
        Of a value, with its byte order.
    shape
        `(i, j, k)`: the first axis runs fastest.
    name
        The file's, for messages.

    Raises
    ------
    CaseError
        If there are fewer values, or too many bytes behind them.
    """
    data = read_exactly(stream, dtype.itemsize * prod(shape), name)
    behind = 0
    while part := stream.read(_CHUNK):
        behind += len(part)
        if behind > _MOST_BEHIND + len(data):
            raise CaseError(
                f"{name} is damaged: it holds far more than the {len(data):,} bytes that its "
                "header announces; export it again",
                code="file-too-long",
            )
    array = np.frombuffer(data, dtype=dtype).reshape(shape[::-1])
    notes: tuple[Note, ...] = ()
    if behind:
        plane = dtype.itemsize * shape[0] * shape[1]
        count = "1 byte" if behind == 1 else f"{behind:,} bytes"
        text = f"left out {count} behind the voxels of {name}"
        code = "bytes-left-out"
        notes = (warning(code, text) if behind >= plane else Note(code, text),)
    return Values(array.astype(dtype.newbyteorder("="), copy=False), notes)


def open_beside(header: Path, name: str) -> BinaryIO:
    """Open the data file that a header names; it has to lie in the header's folder.

    Raises
    ------
    CaseError
        If the name leads elsewhere or stands for several files.
    MissingFileError
        If there is no such file.
    """
    plain = name.strip().removeprefix("./")
    listed = plain.split(maxsplit=1)[:1] == ["LIST"] or "%" in plain
    if not plain or plain.startswith(".") or listed or any(mark in plain for mark in '/\\:\0"'):
        raise CaseError(
            f"{header.name} keeps its voxels in {plain[:60]!r}; only one file in the same folder "
            "is read: write it as one file",
            code="data-file-elsewhere",
        )
    path = header.with_name(plain)
    if not path.is_file():
        raise MissingFileError(
            f"{header.name} keeps its voxels in {path.name}, which isn't beside it; put both into "
            "one folder, or write the scan as one file",
            code="data-file-missing",
        )
    return path.open("rb")
