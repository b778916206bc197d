"""Numbers as people type them."""

from collections.abc import Callable
from typing import TypeVar

from medals_rt.common.errors import InputError

_Number = TypeVar("_Number", int, float)


def read_numbers(text: str, read: Callable[[str], _Number]) -> tuple[_Number, ...]:
    """Read numbers between commas, or between semicolons.

    A comma between two digits may be either a separator or a decimal point, so that it is the
    latter only where semicolons are the separators: ``"0,8;0,8;2,5"``.

    Parameters
    ----------
    text
        As it was typed.
    read
        `int` or `float`.

    Returns
    -------
    tuple
        Empty where something else than a number is among them.
    """
    parts = [part.replace(",", ".") for part in text.split(";")] if ";" in text else text.split(",")
    try:
        return tuple(read(part) for part in parts)
    except ValueError:
        return ()


def three_numbers(
    text: str, read: Callable[[str], _Number], what: str
) -> tuple[_Number, _Number, _Number]:
    """Read three numbers; see `read_numbers`.

    Raises
    ------
    InputError
        There are others (code `no-three-numbers`).
    """
    found = read_numbers(text, read)
    if len(found) != 3:
        raise InputError(
            f"{what} needs three numbers separated by commas, not {text!r}{decimal_advice(text)}",
            code="no-three-numbers",
        )
    return found[0], found[1], found[2]


def decimal_advice(text: str) -> str:
    """Say what to do where commas may have been meant as decimal points; else nothing."""
    if "," not in text or ";" in text:
        return ""
    return "; write decimals with a point, or put semicolons between the numbers (0,8;0,8;2,5)"
