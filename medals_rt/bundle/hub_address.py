"""Addresses on a model hub, and those where weights that this package can use were published."""

import os
import re
from dataclasses import dataclass
from importlib.resources import files as resource_files
from pathlib import Path
from typing import Annotated, Final, Literal, Self

import msgspec

from medals_rt.common.errors import InputError

HUB_PREFIX: Final = "hf:"
WEIGHTS_VARIABLE: Final = "MEDALS_RT_WEIGHTS"
"""Environment variable: a TOML file whose addresses are taken before those that ship."""

COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_ADDRESS: Final = re.compile(
    r"hf:(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(?:/(?P<path>[^@]+?))?/?(?:@(?P<revision>[^@\s]+))?",
    re.ASCII,
)


@dataclass(frozen=True)
class HubAddress:
    """Where files lie on a hub, written as `hf:OWNER/NAME@REVISION`, or with `/PATH` before `@`.

    Attributes
    ----------
    repository
        Owner and name, with `/` between them.
    path
        A folder or file of the repository; empty for all of it.
    revision
        A commit (40 hexadecimal digits), branch or tag; None where none was named.
    """

    repository: str
    path: str = ""
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an address; a published one without a revision gets the commit known for it, if any.

        Raises
        ------
        InputError
            If it isn't an address (code ``"address-invalid"``).
        """
        found = _ADDRESS.fullmatch(text)
        if found is None:
            raise InputError(
                f"{text!r} is no address on a hub; write it as hf:OWNER/NAME@COMMIT",
                code="address-invalid",
            )
        revision = found["revision"]
        if revision is None:
            revision = next((each.commit for each in known_weights() if each.address == text), None)
        return cls(found["repository"], found["path"] or "", revision)

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which can't come to mean other files."""
        return self.revision is not None and COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        path = f"/{self.path}" if self.path else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{HUB_PREFIX}{self.repository}{path}{revision}"


class KnownWeights(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Published weights that this package can use; `data/weights.toml` lists them.

    Attributes
    ----------
    address
        Without a revision.
    holds
        What it is, for people.
    part
        What an export takes from there: a whole release, or BioLORD's configuration and tokenizer.
    license
        What the publisher states; None where that isn't known.
    commit
        Taken where the address is given without a revision; None: no commit is known.
    notice
        For everyone who sees a result of these weights, unless an export is given another.
    """

    address: str
    holds: str
    part: Literal["release", "biolord"] | None = None
    license: str | None = None
    commit: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{40}$")] | None = None
    notice: str | None = None


class _Known(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    weights: tuple[KnownWeights, ...]


def known_weights() -> tuple[KnownWeights, ...]:
    """Return the published weights that this package can use.

    Those of the file that `MEDALS_RT_WEIGHTS` names come first, in the place of entries of the same
    address.

    Raises
    ------
    InputError
        If that file can't be read (code ``"weights-file-invalid"``).
    """
    shipped = resource_files("medals_rt.bundle").joinpath("data", "weights.toml").read_bytes()
    found = msgspec.toml.decode(shipped, type=_Known).weights
    named = os.environ.get(WEIGHTS_VARIABLE)
    if named:
        try:
            found = msgspec.toml.decode(Path(named).read_bytes(), type=_Known).weights + found
        except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
            raise InputError(
                f"{WEIGHTS_VARIABLE} names {named}, which is no list of weights: {error}; write "
                'it as [[weights]] with address = "hf:OWNER/NAME" and holds = "..."',
                code="weights-file-invalid",
            ) from error
    by_address: dict[str, KnownWeights] = {}
    for each in found:
        by_address.setdefault(each.address, each)
    return tuple(by_address.values())


def known_as(address: HubAddress) -> KnownWeights | None:
    """Return what is known of an address, whatever its path and revision; None if nothing."""
    repository = f"{HUB_PREFIX}{address.repository}"
    return next(
        (
            each
            for each in known_weights()
            if each.address == repository or each.address.startswith(f"{repository}/")
        ),
        None,
    )
