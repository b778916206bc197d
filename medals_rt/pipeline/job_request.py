"""What is asked of one case, from files to files, and the same once it is read."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from medals_rt.common.arguments import check_class, take_paths
from medals_rt.common.choices import OutputFormat
from medals_rt.inference.corrections import Correction
from medals_rt.io.case import Case
from medals_rt.pipeline.options import PromptSource, RunOptions, SegmentOptions
from medals_rt.pipeline.output_grid import GridRequest
from medals_rt.prompts.prompt_set import PromptSet

_READ: Final = "read"
_FILE: Final = "file"
_FOLDER: Final = "folder"


def check_parts(request: Any) -> None:
    """Refuse a `Job` or a batch whose parts are of other classes; see `check_class`.

    Raises
    ------
    TypeError
    """
    for name, wanted, instead in (
        ("source", PromptSource, 'write PromptSource(sentences=("Liver in abdominal CT",))'),
        ("options", RunOptions, "write RunOptions(segment=SegmentOptions())"),
        ("grid", GridRequest, "write GridRequest(crop_mm=10)"),
    ):
        check_class(name, getattr(request, name), wanted, instead)


@dataclass(frozen=True)
class Job:
    """What is to be done with one case.

    Fields that are places of files say so in their metadata: of those that are read, and of those
    that are written with their roles. All others decide what is made.

    Attributes
    ----------
    input
        The case's file, or the folder of a DICOM series.
    output
        Where the labels go.
    source
        Where its prompts come from.
    report, preview, statistics
        Where the report (JSON), the picture (PNG) and the statistics (CSV) go, if at all.
        Statistics of lesions go beside those of classes, see `lesion_table`.
    instances
        Where the numbered lesions go as a label map, if at all.
    sr
        Where the measurements go as a DICOM report, if at all; the output is then a DICOM SEG.
    split
        Folder of a file for each class, if at all; see `class_files`.
    probabilities
        Folder of a probability map for each class, if at all; see `inference.probability_maps`.
    spatial_prompts
        A file of labels drawn by the user (hybrid mode).
    corrects
        The file of a result that `spatial_prompts` corrects, on the case's grid: only windows that
        decide about what differs are shown it (`inference.corrections`).
    resample
        Whether labels drawn on another grid are brought onto the case's.
    series
        Which series of a DICOM folder, as for `registry.read_case`.
    select
        Which of its images, as ``KEY=VALUE``.
    options
        How it is read and segmented.
    format
        Name of the output's format (of `registry.FORMATS`); None: its ending decides.
    mesh_reduction
        Share of a surface's faces to leave out; see `meshes.reduced`.
    grid
        The grid that label maps are written on: the output, the numbered lesions, and the files of
        classes and probabilities.
    store
        Address of a DICOMweb server where the output is stored too, once it is written.
    """

    input: Path = field(metadata={_READ: "input"})
    output: Path = field(metadata={_FILE: "labels"})
    source: PromptSource = field(default_factory=PromptSource)
    report: Path | None = field(default=None, metadata={_FILE: "report"})
    preview: Path | None = field(default=None, metadata={_FILE: "preview"})
    statistics: Path | None = field(default=None, metadata={_FILE: "statistics"})
    instances: Path | None = field(default=None, metadata={_FILE: "lesions"})
    sr: Path | None = field(default=None, metadata={_FILE: "sr"})
    split: Path | None = field(default=None, metadata={_FOLDER: "class"})
    probabilities: Path | None = field(default=None, metadata={_FOLDER: "map"})
    spatial_prompts: Path | None = field(default=None, metadata={_READ: "spatial_prompts"})
    corrects: Path | None = field(default=None, metadata={_READ: "corrects"})
    resample: bool = False
    series: str | None = None
    select: tuple[str, ...] = ()
    options: RunOptions = field(default_factory=RunOptions)
    format: OutputFormat | None = None
    mesh_reduction: float = 0.0
    grid: GridRequest = field(default_factory=GridRequest)
    store: str | None = None

    def __post_init__(self) -> None:
        take_paths(self, *(each.name for each in fields(self) if each.metadata))
        check_parts(self)

    def input_files(self) -> dict[str, Path]:
        """Return the files and folders that are read, but for that of the prompts, by role."""
        return self._places(_READ)

    def output_files(self) -> dict[str, Path]:
        """Return the files that are written, but for those of single classes, by role."""
        files = self._places(_FILE)
        if self.statistics is not None:
            files["lesion_statistics"] = lesion_table(self.statistics)
        return files

    def output_folders(self) -> dict[str, Path]:
        """Return the folders that get a file for each class, by role."""
        return self._places(_FOLDER)

    def deciding(self) -> dict[str, Any]:
        """Return what is asked for, by name: all but the places of files."""
        return {each.name: getattr(self, each.name) for each in fields(self) if not each.metadata}

    def _places(self, kind: str) -> dict[str, Path]:
        marked = [each for each in fields(self) if kind in each.metadata]
        found = {each.metadata[kind]: getattr(self, each.name) for each in marked}
        return {role: path for role, path in found.items() if path is not None}

    @property
    def segment_options(self) -> SegmentOptions:
        """How the case is segmented, with what its outputs need."""
        wanted = self.probabilities is not None or self.options.segment.probabilities
        return replace(self.options.segment, probabilities=wanted)


def fields_by_role() -> dict[str, str]:
    """Return, for each role of files that are written, the field of `Job` that says where."""
    return {
        each.metadata[kind]: each.name
        for each in fields(Job)
        for kind in (_FILE, _FOLDER)
        if kind in each.metadata
    }


def lesion_table(statistics: Path) -> Path:
    """Name the table of lesions beside that of classes: NAME_lesions.csv."""
    return statistics.with_name(f"{statistics.stem}_lesions{statistics.suffix}")


@dataclass(frozen=True, eq=False)
class ReadJob:
    """A job whose files have been read.

    `annotation_dhw` are the labels drawn by the user, on the case's grid, `corrections` what was
    changed of results; `seconds` is what reading took, by step. `result_dhw` is the result that
    `Job.corrects` names: of how it came to be nothing is known but what the file holds.
    """

    job: Job
    case: Case
    prompts: PromptSet
    annotation_dhw: Any | None
    seconds: dict[str, float]
    corrections: tuple[Correction, ...] = ()
    result_dhw: Any | None = None
