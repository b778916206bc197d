"""Amounts of memory as people write them."""

import re
from math import ceil, floor

from medals_rt.common.errors import InputError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY_UNITS = {f"{unit}I": 1024**power for power, unit in enumerate("KMGT", start=1)}


def size_words(size: int, *, up: bool = False) -> str:
    """Write a size for people, in two digits or more: 1 KB, 35 MB, 1.4 GB.

    Rounded down, as a limit is; `up`: up, as a need is.
    """
    unit = next((each for each in "TGMK" if size >= _UNITS[each]), "")
    tenths = (ceil if up else floor)(10 * size / _UNITS[unit]) / 10
    return f"{tenths:.4g} {unit}B"


def parse_size(text: str) -> int:
    """Return the bytes of a size such as ``"6GB"``, ``"6e9"``, ``"512 MiB"`` or ``"6G"``.

    Units are powers of 1000, or of 1024 if written with an i.

    Raises
    ------
    InputError
        If it isn't a size, or isn't positive.
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([KMGT]?I?)B?\s*", text, re.IGNORECASE)
    units = _UNITS | _BINARY_UNITS
    try:
        size = int(float(match[1]) * units[match[2].upper()]) if match else 0
    except (KeyError, ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise InputError(
            f"{text!r} is not an amount of memory; write it as 6GB, 512MiB or 6e9",
            code="memory-size-invalid",
        )
    return size
