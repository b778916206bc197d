"""What is asked of one case, from files to files, and the same once it is read."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medals_rt.common.arguments import check_class, take_paths
from medals_rt.common.choices import OutputFormat
from medals_rt.inference.corrections import Correction
from medals_rt.io.case import Case
from medals_rt.pipeline.options import PromptSource, RunOptions, SegmentOptions
from medals_rt.pipeline.output_grid import GridRequest
from medals_rt.prompts.prompt_set import PromptSet


@dataclass(frozen=True)
class Job:
    """What is to be done with one case.

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

    input: Path
    output: Path
    source: PromptSource = field(default_factory=PromptSource)
    report: Path | None = None
    preview: Path | None = None
    statistics: Path | None = None
    instances: Path | None = None
    sr: Path | None = None
    split: Path | None = None
    probabilities: Path | None = None
    spatial_prompts: Path | None = None
    corrects: Path | None = None
    resample: bool = False
    series: str | None = None
    select: tuple[str, ...] = ()
    options: RunOptions = field(default_factory=RunOptions)
    format: OutputFormat | None = None
    mesh_reduction: float = 0.0
    grid: GridRequest = field(default_factory=GridRequest)
    store: str | None = None

    def __post_init__(self) -> None:
        take_paths(self, "input", "output", "report", "preview", "statistics", "instances", "sr")
        take_paths(self, "split", "probabilities", "spatial_prompts", "corrects")
        for name, wanted, instead in (
            ("source", PromptSource, 'write PromptSource(sentences=("Liver in abdominal CT",))'),
            ("options", RunOptions, "write RunOptions(segment=SegmentOptions())"),
            ("grid", GridRequest, "write GridRequest(crop_mm=10)"),
        ):
            check_class(name, getattr(self, name), wanted, instead)

    @property
    def segment_options(self) -> SegmentOptions:
        """How the case is segmented, with what its outputs need."""
        wanted = self.probabilities is not None or self.options.segment.probabilities
        return replace(self.options.segment, probabilities=wanted)


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
