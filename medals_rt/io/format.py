"""What a format is to the registry: its names, its endings, and what it offers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from medals_rt.common.limits import MAX_VOXELS
from medals_rt.common.notes import Note
from medals_rt.common.typing import HostArray
from medals_rt.io.case import Case, LabelFile
from medals_rt.io.segment_metadata import Segment, segments_of
from medals_rt.prompts.prompt_set import PromptSet

Capability: TypeAlias = Literal["read_case", "read_labels", "write"]


@dataclass(frozen=True)
class Options:
    """What a reader may need to know; each format takes what concerns it.

    Attributes
    ----------
    max_voxels
        Larger volumes are refused before memory is taken for them.
    series
        Which series of a DICOM folder; None where the caller chose none.
    select
        Which of its images, as ``KEY=VALUE``.
    prefer
        Which label map of an `.npz` is wanted.
    """

    max_voxels: int = MAX_VOXELS
    series: str | None = None
    select: tuple[str, ...] = ()
    prefer: Literal["segs", "gts"] = "segs"


@dataclass(frozen=True, eq=False)
class SegmentationOutput:
    """What a writer gets.

    Attributes
    ----------
    case
        The case that was segmented.
    labels_dhw, instances_dhw
        Unsigned integers `(D, H, W)`, canonical orientation, of the smallest type.
    prompts
        What was asked for.
    model, notice
        Name of the model, and a warning for everyone who sees its results.
    described
        What the labels are, where the prompts don't say it.
    mesh_reduction
        Share of a surface's faces to leave out.
    """

    case: Case
    labels_dhw: HostArray
    instances_dhw: HostArray | None = None
    prompts: PromptSet | Mapping[str, object] | None = None
    model: str | None = None
    notice: str | None = None
    described: tuple[Segment, ...] | None = None
    mesh_reduction: float = 0.0

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Name, color and codes of each label."""
        if self.described is not None:
            return self.described
        return segments_of(self.prompts, self.labels_dhw)


@dataclass(frozen=True)
class Format:
    """One format of files.

    Attributes
    ----------
    name
        For programs, unlike those of all other formats: ``"nifti"``, ``"dicom-seg"``.
    title
        For people.
    endings
        Of its files, lower case, longer ones before those that end them. Two formats may share one:
        DICOM images and segmentations are both ``.dcm``.
    libraries
        Of `optional_deps.OPTIONAL_LIBRARIES`, that it needs.
    companions
        Endings of files that belong to one of `endings` and can be named in its place, such as the
        image of a NIfTI pair; they aren't cases of their own.
    gzipped
        Of endings and companions whose files may be gzipped as a whole, the one that says so.
    two_file_endings
        Those of `endings` whose voxels lie in a second file.
    menu_title
        For people who choose a format of results; empty: its title and first ending.
    read_case, read_labels, write
        What it offers; None where it can't.
    check
        Refuses results that couldn't be written, given the file's name and the case, and says what
        of the case can't be kept.
    recognizes
        Whether a file that starts with these bytes (as many as `START`) is of this format.
    folders
        Whether a folder is a case of it.
    choosable
        Whether a file holds several series, of which `Options.series` chooses.
    one_class
        Whether a file written holds one class, because it can't tell several apart.
    has_faces
        Whether it holds surfaces, whose faces can be left out.
    is_dicom_seg
        Whether a DICOM report can refer to its segments.
    scheme
        How addresses of it begin, which are no files; None for formats of files.
    keeps_grid
        Whether a result must lie on the grid of the source, to which it refers.
    unnamed
        Whether its files often have no ending at all, so that the content decides.
    """

    name: str
    title: str
    endings: tuple[str, ...]
    libraries: tuple[str, ...] = ()
    companions: tuple[str, ...] = ()
    gzipped: Mapping[str, str] = field(default_factory=dict)
    two_file_endings: tuple[str, ...] = ()
    menu_title: str = ""
    read_case: Callable[[Path, Options], Case] | None = None
    read_labels: Callable[[Path, Options], LabelFile] | None = None
    write: Callable[[Path, SegmentationOutput], None] | None = None
    check: Callable[[str, Case], tuple[Note, ...]] | None = None
    recognizes: Callable[[bytes], bool] | None = None
    folders: bool = False
    choosable: bool = False
    one_class: bool = False
    has_faces: bool = False
    is_dicom_seg: bool = False
    scheme: str | None = None
    keeps_grid: bool = False
    unnamed: bool = False

    @property
    def choice(self) -> str:
        """How people choose it for results: by name and ending."""
        return self.menu_title or f"{self.title} ({self.endings[0]})"

    def ending_of(self, name: str) -> str | None:
        """Which of its endings a file name has, in lower case; None if none."""
        lower = name.lower()
        found = (each for each in (*self.endings, *self.companions) if lower.endswith(each))
        return max(found, key=len, default=None)


START = 512
"""Bytes from a file's start that `Format.recognizes` is given."""


def stem(path: Path, formats: Iterable[Format]) -> str:
    """Name of a file without the longest ending that one of the formats has."""
    endings = (each.ending_of(path.name) or "" for each in formats)
    ending = max(endings, key=len, default="")
    return path.name[: len(path.name) - len(ending)] or path.name


def squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """Shape without axes of length 1 behind the third: one frame of a series is a volume."""
    sizes = tuple(int(size) for size in shape)
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes = sizes[:-1]
    return sizes
