"""What a person should know of a result: assumed, repaired, removed, left out."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Severity: TypeAlias = Literal["info", "warning"]


@dataclass(frozen=True)
class Note:
    """One remark for the report and standard error.

    Attributes
    ----------
    code
        What kind of remark it is, for programs: lower case, words joined by hyphens, such as
        ``"spacing-repaired"``. It stays the same when the wording changes.
    text
        For people: one short line, no full stop.
    severity
        ``"warning"`` where the result needs a look before it is used, else ``"info"``.
    """

    code: str
    text: str
    severity: Severity = "info"

    def __str__(self) -> str:
        return self.text


def warning(code: str, text: str) -> Note:
    """Make a note that needs a look."""
    return Note(code, text, "warning")
