"""Which optional libraries are installed, in which version, and whether they can be imported.

Each is imported in a child process: a library whose own libraries do not fit may end the process
that imports it, and a doctor must survive the disease.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Literal

from medals_rt.common.cache_dir import provide_cupy_cache
from medals_rt.common.optional_deps import OPTIONAL_LIBRARIES, OptionalLibrary
from medals_rt.common.subprocesses import run_python

State = Literal["installed", "missing", "broken"]

_TIMEOUT_S = 120
_AT_ONCE = 4


@dataclass(frozen=True)
class Library:
    """What was found of one library; `reason` says why a broken one can't be imported."""

    name: str
    state: State
    version: str | None
    extra: str
    use: str
    detail: str | None = None
    reason: str | None = None


def look_at_libraries(
    kinds: Iterable[OptionalLibrary] = OPTIONAL_LIBRARIES,
) -> tuple[Library, ...]:
    """Look for each library, and import those that are there, a few at once."""
    provide_cupy_cache()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return tuple(pool.map(_look_at_library, kinds))


def _look_at_library(kind: OptionalLibrary) -> Library:
    """Look for one library, and import it in a child process if it is there."""
    module = next((name for name in kind.modules if find_spec(name) is not None), None)
    if module is None:
        return Library(kind.name, "missing", None, kind.extra, kind.use)
    detail, reason = import_apart(module, kind.detail)
    state: State = "installed" if reason is None else "broken"
    found = _installed_version(kind.packages)
    return Library(kind.name, state, found, kind.extra, kind.use, detail, reason)


def import_apart(module: str, detail: str = "") -> tuple[str | None, str | None]:
    """Import a module in a child process: give what `detail` evaluates to, or why it failed."""
    code = f"import {module} as m; print({detail or repr('')})"
    child = run_python(["-c", code], _TIMEOUT_S)
    if child.code == 0:
        return child.said[-1] if child.said else None, None
    if child.code is None:
        return None, f"its import did not end within {_TIMEOUT_S} s"
    if child.signal is not None:
        return None, f"its import ended the process by {child.signal}"
    return None, child.complained[-1] if child.complained else f"its import ended with {child.code}"


def _installed_version(packages: Iterable[str]) -> str | None:
    """Return the version of the first of these packages that is installed."""
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None
