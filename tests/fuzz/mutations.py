"""Changes that break files: blind ones, and ones that know the container they break."""

import gzip
import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence

import numpy as np

Rng = np.random.Generator
Mutation = Callable[[bytes, Rng], bytes]

INTERESTING = (
    0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63,
)  # fmt: skip
WORDS = (
    b"-1", b"0", b"1e308", b"nan", b"inf", b"9" * 20, b"1" * 400, b"../../x", b"/etc/x", b"null",
    b"{", b"[" * 300, b'"', b"\x00", b"\xff\xfe", b"cos\nsystem\n(S'x'\ntR.", b"%s%n", b"<x>",
)  # fmt: skip
_FIRST_BYTES = 512


def flip_bits(data: bytes, rng: Rng) -> bytes:
    """Flip up to eight bits."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        out[_place(data, rng)] ^= 1 << int(rng.integers(8))
    return bytes(out)


def set_number(data: bytes, rng: Rng) -> bytes:
    """Write a number that programs trip over, in one to eight bytes of either order."""
    size, code = [(1, "B"), (2, "H"), (4, "I"), (8, "Q")][int(rng.integers(4))]
    if len(data) < size:
        return data
    value = INTERESTING[int(rng.integers(len(INTERESTING)))] % (1 << 8 * size)
    start = min(_place(data, rng), len(data) - size)
    packed = struct.pack("<>"[int(rng.integers(2))] + code, value)
    return data[:start] + packed + data[start + size :]


def insert_word(data: bytes, rng: Rng) -> bytes:
    """Put text in that parsers trip over, sometimes over what was there."""
    start, word = _place(data, rng), WORDS[int(rng.integers(len(WORDS)))]
    return data[:start] + word + data[start + len(word) * int(rng.integers(2)) :]


def cut(data: bytes, rng: Rng) -> bytes:
    """Take out a piece, or the end."""
    start = _place(data, rng)
    stop = len(data) if rng.random() < 0.4 else min(len(data), start + int(rng.integers(1, 200)))
    return data[:start] + data[stop:]


def repeat(data: bytes, rng: Rng) -> bytes:
    """Repeat a piece up to fifty times."""
    start = _place(data, rng)
    piece = data[start : start + int(rng.integers(1, 64))]
    return data[:start] + piece * int(rng.integers(2, 50)) + data[start:]


def inside_zip(data: bytes, rng: Rng) -> bytes:
    """Break a member of a zip and pack it again with right checksums, or rename it."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError, zlib.error, NotImplementedError, RuntimeError):
        return flip_bits(data, rng)
    if not members:
        return data
    chosen = int(rng.integers(len(members)))
    name, content = members[chosen]
    if rng.random() < 0.15:
        names = ("../out.npy", "/abs.npy", "imgs.npy", "a\\..\\b", "spacing.npy", "x" * 300)
        name = names[int(rng.integers(len(names)))]
    else:
        content = _blind(content, rng)
    members[chosen] = (name, content)
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # two members of one name are meant
        for member, value in members:
            archive.writestr(zipfile.ZipInfo(member), value)
    return out.getvalue()


def inside_gzip(data: bytes, rng: Rng) -> bytes:
    """Break what a gzip stream holds and pack it again."""
    try:
        return gzip.compress(_blind(gzip.decompress(data), rng), mtime=0)
    except (OSError, EOFError, zlib.error):
        return flip_bits(data, rng)


BLIND: Sequence[Mutation] = (flip_bits, set_number, insert_word, cut, repeat)


def mutate(data: bytes, rng: Rng, also: Sequence[Mutation] = ()) -> bytes:
    """Apply one to three mutations, those that know the container (`also`) more often."""
    choices = [*BLIND, *also * 3]
    for _ in range(int(rng.integers(1, 4))):
        if data:
            data = choices[int(rng.integers(len(choices)))](data, rng)
    return data


def _blind(data: bytes, rng: Rng) -> bytes:
    return BLIND[int(rng.integers(len(BLIND)))](data, rng) if data else data


def _place(data: bytes, rng: Rng) -> int:
    """Choose a place, half of the time in the first bytes, where headers are."""
    end = len(data) if rng.random() < 0.5 else min(len(data), _FIRST_BYTES)
    return int(rng.integers(max(1, end)))
