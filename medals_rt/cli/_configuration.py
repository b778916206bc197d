"""`medals-rt.toml`: what options are where the command line doesn't say."""

import os
from pathlib import Path
from typing import Any, Final

from medals_rt.common.errors import InputError, MissingFileError
from medals_rt.common.folders import from_home

FILE: Final = "medals-rt.toml"
VARIABLE: Final = "MEDALS_RT_CONFIG"

OPTIONS: Final = (
    "bundle", "runner", "precision", "threads", "preset", "max_memory", "max_voxels", "time_budget",
)  # fmt: skip
"""What a file may set, for every command that has them; values are checked as flags are."""


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
        raise MissingFileError(f"{VARIABLE} names {path}, which is not there; mend or unset it")
    return None


def read_defaults(path: Path) -> dict[str, Any]:
    """Read the options of a file; a bundle's path is taken from the file's folder.

    Raises
    ------
    InputError
        It is no TOML, or has an option that isn't one of `OPTIONS`.
    """
    import tomllib

    try:
        found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InputError(
            f"{path} can't be used: {error}; write NAME = VALUE", code="configuration-invalid"
        ) from error
    unknown = sorted(found.keys() - set(OPTIONS))
    if unknown:
        raise InputError(
            f"{path} sets {', '.join(unknown)}, which it can't; it may set {', '.join(OPTIONS)}",
            code="configuration-invalid",
        )
    bundle = found.get("bundle")
    if isinstance(bundle, str) and not bundle.startswith("hf:"):
        found["bundle"] = str(path.parent / from_home(bundle))
    return found
