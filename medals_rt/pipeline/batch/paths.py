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

MARK_ENDING: Final = ".writing"
"""Ends the name of the mark beside a record whose files are being written."""


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
    def mark(self) -> Path:
        """Where it notes meanwhile what it writes."""
        return self.record.with_name(f"{self.record.name}{MARK_ENDING}")

    @property
    def labels(self) -> Path:
        """The label map."""
        return self._beside(self.ending)

    def files(self) -> dict[str, Path]:
        """Return the places of single files, by role as of `Job.output_files`."""
        in_voxels = self.ending if self.ending in ENDINGS else ".nii.gz"  # no DICOM, no mesh
        return {
            "labels": self.labels,
            "report": self.reports / "reports" / f"{self.name}.json",
            "preview": self.reports / "previews" / f"{self.name}.png",
            "lesions": self._beside(f"_lesions{in_voxels}"),
            "sr": self._beside(".sr.dcm"),
        }

    def folders(self) -> dict[str, Path]:
        """Return the folders of files of classes, by role as of `Job.output_folders`."""
        return {"class": self._beside(""), "map": self._beside("_probabilities")}

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
        """Go through files by role: those of `files`, and those of single classes (`role_in`)."""
        files, folders = self.files(), self.folders()
        for role in roles:
            folder = folder_of(role)
            if role in files:
                yield role, files[role]
            elif folder in folders:
                yield role, folders[folder] / PurePosixPath(role).name

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


def read_written(record: bytes | None) -> WrittenFiles | None:
    """Read that part of a record; None where there is none, or it is damaged."""
    try:
        return None if record is None else msgspec.json.decode(record, type=WrittenFiles)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def role_in(folder: str, file: Path) -> str:
    """Name the role of a file of a class in a folder of this role."""
    return f"{folder}/{file.name}"


def folder_of(role: str) -> str | None:
    """Return the role of the folder that a file of a class lies in; None of other files."""
    folder, in_folder, _ = role.partition("/")
    return folder if in_folder else None
