"""What the installed distribution says of itself: what it requires, and what each extra adds.

`pyproject.toml` is the only place where requirements and extras are listed; an installation carries
them in its metadata.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, requires
from typing import Final

NAME: Final = "medals-rt"

VERSION: Final = "0.1.0"
"""The one place of the version: `medals_rt.__version__` and the build read it from here."""

_DEVELOPMENT: Final = frozenset({"test", "dev"})
"""Extras of contributors: they repeat those of users."""

_PACKAGE = re.compile(r"[\w.-]+")
_EXTRA = re.compile(r"""\bextra\s*==\s*['"]([\w.-]+)['"]""")


@dataclass(frozen=True)
class Requirement:
    """A package that is required: always (`extra` is None), or by an extra."""

    package: str
    extra: str | None


@cache
def requirements() -> tuple[Requirement, ...]:
    """Return all requirements, without those of contributors; none if nothing is installed."""
    try:
        lines = requires(NAME) or []
    except PackageNotFoundError:  # a source tree on the path
        return ()
    found = []
    for line in lines:
        package, extra = _PACKAGE.match(line), _EXTRA.search(line)
        if package and (extra is None or extra[1] not in _DEVELOPMENT):
            found.append(Requirement(normalized(package[0]), extra and extra[1]))
    return tuple(found)


def extras_with(packages: Iterable[str]) -> tuple[str, ...]:
    """Return the extras that install any of these packages, those that install least first."""
    wanted = set(map(normalized, packages))
    sizes = Counter(each.extra for each in requirements())
    extras = {each.extra for each in requirements() if each.extra and each.package in wanted}
    return tuple(sorted(extras, key=lambda extra: (sizes[extra], extra)))


def normalized(package: str) -> str:
    """Return a package's name as indexes compare it: ``"Tensorrt_RTX"`` is ``"tensorrt-rtx"``."""
    return re.sub(r"[-_.]+", "-", package).lower()
