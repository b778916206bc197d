"""Where the files of a batch's case lie, by role: one table of what is written and what was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from medals_rt.io.registry import ENDINGS

STATE_FOLDER: Final = ".medals-rt"
"""Where, beside the reports, a batch keeps its records."""

_CLASS: Final = "class/"
"""What the roles of files of classes begin with; their names follow."""
_MAP: Final = "map/"
"""What those of probability maps begin with."""


@dataclass(frozen=True)
class CasePaths:
    """Where the files of a case lie.

    Attributes
    ----------
    name
        The case's, unique in the batch: the path of its result without the ending.
    results, reports
        The folder of results, and that of reports, pictures and records.
    ending
        Of the result.
    """

    name: str
    results: Path
    reports: Path
    ending: str

    @property
    def record(self) -> Path:
        """Where the batch notes that the case is finished."""
        return self.reports / STATE_FOLDER / f"{self.name}.json"

    @property
    def labels(self) -> Path:
        """The label map."""
        return self._beside(self.ending)

    @property
    def report(self) -> Path:
        """The report."""
        return self.reports / "reports" / f"{self.name}.json"

    @property
    def preview(self) -> Path:
        """The picture."""
        return self.reports / "previews" / f"{self.name}.png"

    @property
    def lesions(self) -> Path:
        """The map of numbered lesions; DICOM and meshes have none, so that it is NIfTI there."""
        return self._beside(f"_lesions{self.ending if self.ending in ENDINGS else '.nii.gz'}")

    @property
    def sr(self) -> Path:
        """The DICOM report of measurements."""
        return self._beside(".sr.dcm")

    @property
    def classes(self) -> Path:
        """The folder of files of classes."""
        return self.results / self.name

    @property
    def maps(self) -> Path:
        """The folder of probability maps."""
        return self._beside("_probabilities")

    def all_of(self, written: WrittenFiles) -> Iterator[tuple[Path, str]]:
        """Go through all files that a batch wrote of the case, with the SHA-256 of each."""
        for role, path in replace(self, ending=written.ending).of(written.files):
            yield path, written.files[role]
        for below, digest in written.left.items():
            for folder in {self.results, self.reports}:
                yield folder / below, digest

    def below(self, path: Path) -> str:
        """Name a file of the case from the folder of results or of reports."""
        top = self.results if path.is_relative_to(self.results) else self.reports
        return path.relative_to(top).as_posix()

    def of(self, roles: Iterable[str]) -> Iterator[tuple[str, Path]]:
        """Go through files by role: the properties' names, and those of `class_roles`."""
        single = {
            "labels": self.labels,
            "report": self.report,
            "preview": self.preview,
            "lesions": self.lesions,
            "sr": self.sr,
        }
        for role in roles:
            if role in single:
                yield role, single[role]
            elif is_of_class(role):
                yield role, self.classes / PurePosixPath(role).name
            elif is_of_map(role):
                yield role, self.maps / PurePosixPath(role).name

    def _beside(self, ending: str) -> Path:
        result = self.results / self.name
        return result.with_name(f"{result.name}{ending}")


@dataclass(frozen=True)
class WrittenFiles:
    """Which files a batch wrote of a case: a part of its record, of whatever format that is.

    Attributes
    ----------
    files
        SHA-256 of each, by role.
    ending
        Of the result.
    left
        SHA-256 of those that earlier results have left beside it, by path below the folder of
        results or of reports.
    """

    files: dict[str, str]
    ending: str
    left: dict[str, str] = field(default_factory=dict)


def read_written(record: Path) -> WrittenFiles | None:
    """Read that part of a record; None where there is none, or it is damaged."""
    try:
        return msgspec.json.decode(record.read_bytes(), type=WrittenFiles)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def class_roles(class_files: Iterable[Path], maps: Iterable[Path]) -> list[str]:
    """Name the roles of files of classes and of probability maps."""
    split = [f"{_CLASS}{path.name}" for path in class_files]
    return split + [f"{_MAP}{path.name}" for path in maps]


def is_of_class(role: str) -> bool:
    """Whether it is the role of a file of a class."""
    return role.startswith(_CLASS)


def is_of_map(role: str) -> bool:
    """Whether it is the role of a probability map."""
    return role.startswith(_MAP)
