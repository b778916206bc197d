"""Arrays as clients send them: a header, and chunks compressed with Blosc2.

Both forms are little-endian. VoxTell's: ``VXA2``, length of the type's name, name, number of axes,
shape, bytes in all, then each chunk behind its two lengths (bytes of the array, bytes compressed).
nnInteractive's: ``NNIA``, version, codec, number of axes, length of the type's name, name, shape,
number of chunks, then the chunks likewise.

What clients send is unpacked in a process of readers only (`reader_process`).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from medals_rt.common.errors import CaseError, MedalsError
from medals_rt.common.optional_deps import import_optional

VOXTELL: Final = b"VXA2"
NNINTERACTIVE: Final = b"NNIA"
MEDIA_TYPE: Final = "application/octet-stream"
META_HEADER: Final = "X-Meta"
"""Of JSON about the array that is the body."""

_CHUNK_BYTES: Final = 2**28
_LEVEL: Final = 3
_VERSION: Final = 1
_ZSTD: Final = 1
_MOST_AXES: Final = 4
_MOST_HEAD: Final = 2**10
_PURPOSE: Final = "arrays of clients"


def pack(magic: bytes, shape: Sequence[int], parts: Iterable[npt.NDArray[Any]]) -> Iterator[bytes]:
    """Write arrays that make up one of `shape` along its first axis.

    Parameters
    ----------
    magic
        `VOXTELL` or `NNINTERACTIVE`.
    shape
        Of the whole.
    parts
        Its parts in their order, at least one, all of one type.
    """
    blosc2 = import_optional("Blosc2", _PURPOSE)
    parts = iter(parts)
    first = np.ascontiguousarray(next(parts))
    dtype = first.dtype.newbyteorder("<")
    yield head(magic, shape, dtype)
    for part in _chained(first, parts):
        raw = np.ascontiguousarray(part, dtype).data.cast("B")
        for start in range(0, raw.nbytes, _CHUNK_BYTES):
            chunk = raw[start : start + _CHUNK_BYTES]
            packed = blosc2.compress2(
                chunk, typesize=dtype.itemsize, codec=blosc2.Codec.ZSTD, clevel=_LEVEL
            )
            yield struct.pack("<QQ", chunk.nbytes, len(packed))
            yield packed


def head(magic: bytes, shape: Sequence[int], dtype: np.dtype[Any]) -> bytes:
    """Write what comes before the chunks of an array; nnInteractive's has one part only."""
    total = math.prod(shape) * dtype.itemsize
    if magic == VOXTELL:
        name = dtype.str.encode()
        sizes = struct.pack(f"<{len(shape) + 1}Q", *shape, total)
        return magic + bytes([len(name)]) + name + bytes([len(shape)]) + sizes
    name = dtype.name.encode()
    chunks = len(range(0, total, _CHUNK_BYTES))
    sizes = struct.pack(f"<{len(shape)}qI", *shape, chunks)
    return magic + bytes([_VERSION, _ZSTD, len(shape), len(name)]) + name + sizes


def _chained(
    first: npt.NDArray[Any], rest: Iterable[npt.NDArray[Any]]
) -> Iterator[npt.NDArray[Any]]:
    yield first
    yield from rest


def unpack(data: bytes, *, max_voxels: int) -> npt.NDArray[Any]:
    """Read an array in either form.

    Raises
    ------
    CaseError
        It is neither, is not complete, or too large.
    """
    with _damage_refused():
        return _unpacked(memoryview(data), max_voxels)


def announced_bytes(path: Path, *, max_voxels: int) -> int:
    """Return the bytes of the array that a file says it holds, without reading more than that.

    Raises
    ------
    CaseError
        It says none, or a too large one.
    """
    with path.open("rb") as file, _damage_refused():
        dtype, shape, _ = _read_head(memoryview(file.read(_MOST_HEAD)), max_voxels)
    return math.prod(shape) * dtype.itemsize


@contextmanager
def _damage_refused() -> Iterator[None]:
    try:
        yield
    except MedalsError:
        raise
    except (struct.error, ValueError, RuntimeError, TypeError, IndexError) as error:
        raise _damaged("it ends early or isn't Blosc2") from error


def _read_head(data: memoryview, max_voxels: int) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Read what comes before the chunks: the array's type and shape, and where they begin."""
    magic, at = bytes(data[:4]), 4
    if magic == VOXTELL:
        length = data[at]
        name = bytes(data[at + 1 : at + 1 + length]).decode("ascii")
        at += 1 + length
        axes = data[at]
        at += 1
    elif magic == NNINTERACTIVE:
        _, _, axes, length = struct.unpack_from("<4B", data, at)
        name = bytes(data[at + 4 : at + 4 + length]).decode("ascii")
        at += 4 + length
    else:
        raise _damaged("it begins with other bytes")
    dtype = np.dtype(name)
    if dtype.kind not in "biuf" or dtype.itemsize > 8 or not 0 < axes <= _MOST_AXES:
        raise _damaged(f"it has {axes} axes of type {name:.20}")
    shape = struct.unpack_from(f"<{axes}Q", data, at)
    at += 8 * axes
    if math.prod(shape) > max_voxels:
        raise CaseError(
            f"an array of shape {shape} has more than {max_voxels:,} voxels; send a smaller one",
            code="too-many-voxels",
        )
    at += 8 if magic == VOXTELL else 4  # bytes in all, or the number of chunks
    return dtype, shape, at


def _unpacked(data: memoryview, max_voxels: int) -> npt.NDArray[Any]:
    blosc2 = import_optional("Blosc2", _PURPOSE)
    dtype, shape, at = _read_head(data, max_voxels)
    out = np.empty(math.prod(shape), dtype)
    raw, filled = out.data.cast("B") if out.nbytes else memoryview(b""), 0
    while at < len(data):
        size, packed = struct.unpack_from("<QQ", data, at)
        chunk = data[at + 16 : at + 16 + packed]
        at += 16 + packed
        said, stored, _ = blosc2.get_cbuffer_sizes(chunk)
        if said != size or stored > len(chunk) or filled + size > out.nbytes:
            raise _damaged("its lengths contradict each other")
        raw[filled : filled + size] = blosc2.decompress2(chunk)
        filled += size
    if filled != out.nbytes:
        raise _damaged(f"it holds {filled:,} bytes of {out.nbytes:,}")
    return out.reshape(shape)


def _damaged(why: str) -> CaseError:
    return CaseError(f"the array can't be read: {why}; send it again", code="array-damaged")


def read_array(request: Mapping[str, Any]) -> dict[str, Any]:
    """Unpack a file into one of NumPy beside it; a reader of `reader_process`."""
    path = Path(request["path"])
    array = unpack(path.read_bytes(), max_voxels=request["max_voxels"])
    np.save(path.with_suffix(".npy"), array, allow_pickle=False)
    return {"shape": list(array.shape), "dtype": array.dtype.name}
