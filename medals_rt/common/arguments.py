"""Arguments of callers in Python: brought to the types that they are declared as, or refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np

from medals_rt.common.errors import InputError
from medals_rt.common.folders import from_home
from medals_rt.common.json_text import validation_words


def take_declared(instance: object, types: Mapping[str, Any]) -> None:
    """Bring attributes of a frozen instance to their types, within the bounds of `msgspec.Meta`.

    Numbers of NumPy become Python's, whole numbers floats where these are declared, and lists
    tuples. Nothing else is converted: a text is no number, and neither is True.

    Raises
    ------
    TypeError
        A value is of another type.
    InputError
        It is none of those that there are (code ``NAME-unknown``), or out of bounds
        (``NAME-out-of-range``).
    """
    for name, kind in types.items():
        value = getattr(instance, name)
        try:
            converted = msgspec.convert(_plain(value), kind)
        except msgspec.ValidationError as error:
            raise _refusal(name, value, kind, error) from error
        object.__setattr__(instance, name, converted)


def _plain(value: Any) -> Any:
    """Return a value, or those of a list or tuple, as Python's own where they are NumPy's."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _refusal(name: str, value: object, kind: Any, error: Exception) -> Exception:
    """Return the error that an argument gets, of what msgspec says of it."""
    code = name.replace("_", "-")
    if "Invalid enum value" in str(error):
        text = f"no {name} {value!r:.60}; choose {' or '.join(_choices(kind))}"
        return InputError(text, code=f"{code}-unknown")
    said = validation_words(error).replace("a list is wanted", "a list or tuple is wanted")
    text = f"{name} can't be {value!r:.60}: {said}"
    if ", got " in str(error):
        return TypeError(text)
    return InputError(text, code=f"{code}-out-of-range")


def _choices(kind: Any) -> list[str]:
    """Return the texts of a `Literal`, also of one that may be left out."""
    parts = get_args(kind)
    texts = [each for each in parts if isinstance(each, str)]
    return texts or [text for each in parts for text in _choices(each)]


def check_class(name: str, value: object, wanted: type, instead: str) -> None:
    """Refuse an argument of another class.

    Parameters
    ----------
    name, value
        Of the argument.
    wanted
        A public class of this package.
    instead
        What to write.

    Raises
    ------
    TypeError
    """
    if not isinstance(value, wanted):
        raise TypeError(
            f"{name} is a {type(value).__name__}, not a medals_rt.{wanted.__name__}; {instead}"
        )


def take_paths(instance: object, *names: str) -> None:
    """Make paths of those attributes of a frozen instance that are texts; ~ is the home folder."""
    for name in names:
        value = getattr(instance, name)
        if isinstance(value, str):
            object.__setattr__(instance, name, Path(from_home(value)))
