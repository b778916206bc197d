"""`medals-rt.toml`: what options are where the command line doesn't say."""

import os
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from medals_rt.common.choices import Precision, PresetName, RunnerKind
from medals_rt.common.errors import InputError, MissingFileError

FILE: Final = "medals-rt.toml"
VARIABLE: Final = "MEDALS_RT_CONFIG"


class Configuration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Options of the same names, for every command that has them.

    A bundle's path is taken from the file's folder.
    """

    bundle: str | None = None
    runner: Literal["auto"] | RunnerKind | None = None
    precision: Literal["auto"] | Precision | None = None
    threads: int | None = None
    preset: PresetName | None = None
    max_memory: str | None = None
    max_voxels: int | None = None
    time_budget: float | None = None


def configuration_file() -> Path | None:
    """Return the file that `VARIABLE` names, else that of the current folder; None without one.

    Raises
    ------
    MissingFileError
        The variable names one that isn't there.
    """
    named = os.environ.get(VARIABLE)
    path = Path(named or FILE)
    if path.is_file():
        return path
    if named:
        raise MissingFileError(f"{VARIABLE} names a file that isn't there: {path}")
    return None


def read_defaults(path: Path) -> dict[str, Any]:
    """Read the options of a file.

    Raises
    ------
    InputError
        It is no TOML, or has an option that isn't one of `Configuration`.
    """
    try:
        found = msgspec.toml.decode(path.read_bytes(), type=Configuration)
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        raise InputError(
            f"{path} can't be used: {' '.join(str(error).split())}; it may set "
            f"{', '.join(Configuration.__struct_fields__)}",
            code="configuration-invalid",
        ) from error
    defaults: dict[str, Any] = msgspec.to_builtins(found)
    if found.bundle is not None and not found.bundle.startswith("hf:"):
        defaults["bundle"] = str(path.parent / found.bundle)
    return defaults
