"""What a batch has to do: its cases, their names, and where each result goes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from os.path import realpath
from pathlib import Path, PurePosixPath
from typing import Any
from unicodedata import normalize

from medals_rt.common.arguments import take_paths
from medals_rt.common.choices import SAME_FORMAT
from medals_rt.common.errors import InputError
from medals_rt.io.registry import ENDINGS, files_of_output, is_dicom, is_read_from
from medals_rt.pipeline.batch.find import NAMED, Found, Search, from_jobs, searched
from medals_rt.pipeline.batch.jobs_file import JobRow, grid_of_row, in_row, source_of, stated
from medals_rt.pipeline.batch.paths import CasePaths, folder_of
from medals_rt.pipeline.batch.remote_files import LOCAL, RemoteFiles
from medals_rt.pipeline.job_outputs import (
    all_files_of,
    all_inputs,
    check_grid,
    check_labels_are_dicom,
    check_mesh,
    ending_of,
    own_ending,
)
from medals_rt.pipeline.job_request import Job, check_parts, fields_by_role
from medals_rt.pipeline.options import PromptSource, RunOptions, SegmentOptions
from medals_rt.pipeline.output_grid import GridRequest


@dataclass(frozen=True)
class Batch:
    """What is to be done with many cases: what `medals-rt batch` takes.

    Attributes
    ----------
    inputs
        Folders (with all below them), cases, patterns such as ``scans/*.nii.gz``, addresses of
        series on a DICOMweb server, or text files that list such, one a line; one alone needs no
        tuple. With `jobs` one folder, from which its paths are taken.
    outputs
        The folder of results. Inputs and outputs may be URLs, such as ``s3://bucket/scans``.
    source, options
        Prompts and options of the cases whose row of `jobs` has none.
    jobs
        A jobs file, which then says which cases there are; see `jobs_file.JobRow`.
    reports
        The folder of reports, pictures and records; None: that of the results.
    series, select
        As of `Job`, which series and images; of the cases that can hold several (DICOM).
    format
        Ending of the results, such as ``"nii.gz"``; ``"same"``: that of the case.
    preview
        Whether pictures are drawn, and `index.html` is written.
    split, probabilities
        Whether each class gets a file of its own, and a probability map: in the folders NAME and
        NAME_probabilities.
    instances, sr
        Whether lesions are numbered in a file of their own, NAME_lesions, and measurements written
        as a DICOM report, NAME.sr.dcm.
    mesh_reduction, grid, store
        As of `Job`.
    statistics
        Whether `statistics.csv` and `lesions.csv` are written, tables over all cases.
    part
        Only these cases: ``"I/N"``, ``"auto"`` or ``"auto/N"``; see `parts.parse_part`.
    processes
        How many processes share the work and the cores; None: this one alone.
    gpus
        A process on each of these GPUs: ``"all"`` or numbers, such as ``"0,1"``.
    ray
        Address of a Ray cluster to run on, ``"auto"``, or ``"local"`` for one of this machine.

    Raises
    ------
    InputError
        `processes` is below 1 (``not-positive``).
    """

    inputs: tuple[Path, ...]
    outputs: Path
    source: PromptSource = field(default_factory=PromptSource)
    options: RunOptions = field(default_factory=RunOptions)
    jobs: Path | None = None
    reports: Path | None = None
    series: str | None = None
    select: tuple[str, ...] = ()
    format: str = SAME_FORMAT
    preview: bool = True
    split: bool = False
    probabilities: bool = False
    instances: bool = False
    sr: bool = False
    mesh_reduction: float = 0.0
    grid: GridRequest = field(default_factory=GridRequest)
    store: str | None = None
    statistics: bool = False
    part: str | None = None
    processes: int | None = None
    gpus: str | None = None
    ray: str | None = None

    def __post_init__(self) -> None:
        take_paths(self, "inputs", "outputs", "jobs", "reports")
        check_parts(self)
        alone = isinstance(self.inputs, Path)
        inputs = (self.inputs,) if alone else tuple(map(Path, self.inputs))
        object.__setattr__(self, "inputs", inputs)
        if self.processes is not None and self.processes < 1:
            raise InputError(
                f"processes must be 1 or above, found {self.processes}", code="not-positive"
            )


@dataclass(frozen=True)
class BatchCase:
    """One case of a batch.

    Attributes
    ----------
    job
        What is to be done.
    paths
        Where its files go; the job names those that it gets.
    given
        How its row of the jobs file names its inputs, from the folder of inputs.
    remote
        Which files lie behind URLs.
    """

    job: Job
    paths: CasePaths
    given: tuple[str | None, ...] = ()
    remote: RemoteFiles = LOCAL

    @property
    def name(self) -> str:
        """Unique in the batch: the input's path from the folder of inputs, without its ending."""
        return self.paths.name

    @property
    def record(self) -> Path:
        """Where the batch notes that the case is finished."""
        return self.paths.record

    def in_folder(self, folder: Path) -> "BatchCase":
        """Return the same case with its copies of what lies behind URLs in another folder."""

        def moved(path: Path) -> Path:
            return self.remote.moved(path, folder)

        paths = self.paths
        return replace(
            self,
            job=self.job.moved(moved),
            paths=replace(paths, results=moved(paths.results), reports=moved(paths.reports)),
            remote=RemoteFiles(folder),
        )

    def files(self, roles_of_classes: Iterable[str] = ()) -> dict[str, Path]:
        """Return the files that the case gets, by role.

        Parameters
        ----------
        roles_of_classes
            Those of `paths.role_in`; others are passed over, and those for which the job asks for
            no folder.
        """
        folders = self.job.output_folders()
        asked = [role for role in roles_of_classes if folder_of(role) in folders]
        return self.job.output_files() | dict(self.paths.of(asked))


@dataclass(frozen=True)
class BatchPlan:
    """All cases of a batch in their order, and where what is about all of them goes.

    `passed_over` names what in the folders is no case, a line each; `remote` says which files lie
    behind URLs.
    """

    cases: tuple[BatchCase, ...]
    results: Path
    reports: Path
    passed_over: tuple[str, ...] = ()
    remote: RemoteFiles = LOCAL


def plan_batch(batch: Batch, remote: RemoteFiles = LOCAL) -> BatchPlan:
    """Find the cases and decide on the name of every file that will be written.

    Parameters
    ----------
    batch
        What is asked for, with places on this machine instead of URLs.
    remote
        Which of them are of files behind URLs.

    Raises
    ------
    InputError
        There is no case, two would be written to one file, a name leads out of the folder of
        results, a report or a server wants DICOM and the results are none, or the jobs file has an
        error.
    """
    common_ending = ending_of(batch.format)
    reports = batch.reports or batch.outputs
    if batch.jobs is not None:
        found = from_jobs(batch.jobs, batch.inputs, batch.source, batch.options.reading, remote)
        search = Search(tuple(found))
    else:
        search = searched(batch.inputs, batch.outputs, reports, remote)
    if not search.cases:
        others = "".join(f" ({line})" for line in search.passed_over)
        raise InputError(
            f"there is no case in {', '.join(map(str, batch.inputs))}{others}; cases are files "
            f"that end in {', '.join(ENDINGS)}, DICOM folders and zips of them",
            code="no-case",
        )

    def case_of(found: Found) -> BatchCase:
        ending = found.ending or common_ending or own_ending(found.path)
        paths = CasePaths(_checked_name(found), batch.outputs, reports, ending)
        given = (found.row.input, found.row.spatial_prompts)
        return BatchCase(_job_of(found, batch, paths), paths, given, remote)

    cases = tuple(map(case_of, search.cases))
    _refuse_clashes(cases)
    _refuse_overwriting(cases)
    for case in cases:
        check_labels_are_dicom(case.job, remedy="say --format dcm")
    passed_over = tuple(map(remote.told, search.passed_over))
    return BatchPlan(cases, batch.outputs, reports, passed_over, remote)


def one_name(name: str) -> str:
    """Return what is the same for all names that one file goes by where case doesn't count."""
    return normalize("NFC", name).casefold()


def _checked_name(found: Found) -> str:
    """Return what a case is called.

    Raises
    ------
    InputError
    """
    name = PurePosixPath(found.name).as_posix()
    parts = name.split("/")
    if "\0" in name or any(part.startswith(".") or not part for part in parts):
        place = f"{found.place}: " if found.place else ""
        raise InputError(
            f"{place}{name!r} can't name a result: it must stay in the folder of outputs, "
            "and no part of it may begin with a dot",
            code="result-name-invalid",
        )
    return name


def _job_of(found: Found, batch: Batch, paths: CasePaths) -> Job:
    """Decide what is to be done with a case."""
    own = replace(batch, **stated(found.row, Batch))
    names = fields_by_role()
    places = {names[role]: path for role, path in (paths.files() | paths.folders()).items()}
    wanted: dict[str, Any] = {
        name: path for name, path in places.items() if getattr(own, name, True)
    }
    job = Job(
        input=found.path,
        **wanted,
        source=batch.source,
        mesh_reduction=own.mesh_reduction,
        grid=grid_of_row(found.row, batch.grid),
        options=batch.options,
        store=batch.store,
    )
    if is_dicom(found.path):
        job = replace(job, series=batch.series, select=batch.select)
    job = _with_row(job, found.row, found.folder)
    if found.place:  # a mistake in a row; of files in a folder those fail that can't have it
        with in_row(found.place):
            check_grid(job)
            check_mesh(job)
            check_labels_are_dicom(job, remedy="make its format dcm")
    return job


def _with_row(job: Job, row: JobRow, folder: Path) -> Job:
    """Put what a row of the jobs file says in the place of what the command line says."""
    segment = replace(job.options.segment, **stated(row, SegmentOptions))
    drawn = None if row.spatial_prompts is None else folder / row.spatial_prompts
    return replace(
        job,
        source=source_of(row, folder, job.source),
        options=replace(job.options, segment=segment),
        spatial_prompts=drawn,
        resample=bool(row.resample),
        series=row.series or job.series,
        select=row.select or job.select,
    )


def _refuse_clashes(cases: Sequence[BatchCase]) -> None:
    """Refuse results that would take each other's place, also where case doesn't count.

    Raises
    ------
    InputError
    """
    by_name: dict[str, list[BatchCase]] = {}
    for case in cases:
        by_name.setdefault(one_name(case.name), []).append(case)
    if alike := [each for each in by_name.values() if len(each) > 1]:
        listed = "; ".join(
            f"{' and '.join(str(case.job.input) for case in each)} would both be called "
            f"{each[0].name}"
            for each in alike[:NAMED]
        )
        more = f"; so would {len(alike) - NAMED} more" if len(alike) > NAMED else ""
        raise InputError(
            f"{listed}{more}: give them names in a jobs file (output), or run them into two "
            "folders",
            code="results-alike",
        )
    folders = _folders_of_classes(cases)
    written: dict[str, BatchCase] = {}
    within: dict[str, BatchCase] = {}
    for case in cases:
        for path in case.job.output_files().values():
            within.setdefault(one_name(str(path.parent)), case)
            if folders.get(one_name(str(path.parent)), case) is not case:
                raise InputError(
                    f"{path} would lie among the classes of another case; name one of them in a "
                    "jobs file, or run them into two folders",
                    code="results-alike",
                )
            if written.setdefault(one_name(str(path)), case) is not case:
                raise InputError(
                    f"{path} would be written of two cases; name one of them in a jobs file, or "
                    "run them into two folders",
                    code="results-alike",
                )
        written[one_name(str(case.record))] = case
        within.setdefault(one_name(str(case.record.parent)), case)
    for folder, case in within.items():
        for above in (folder, *map(str, Path(folder).parents)):
            if above in written:
                raise InputError(
                    f"{case.job.input} would have results in a folder {Path(above).name}, which is "
                    f"a file of {written[above].job.input}; name one of them in a jobs file, or "
                    "run them into two folders",
                    code="results-alike",
                )


def _folders_of_classes(cases: Sequence[BatchCase]) -> dict[str, BatchCase]:
    """Name the folders of files of classes and of probability maps, and refuse shared ones.

    Raises
    ------
    InputError
    """
    folders: dict[str, BatchCase] = {}
    for case in cases:
        for folder in case.job.output_folders().values():
            if folders.setdefault(one_name(str(folder)), case) is not case:
                raise InputError(
                    f"{folder} would hold the classes of two cases; name one of them in a jobs "
                    "file, or run them into two folders",
                    code="results-alike",
                )
    return folders


def _refuse_overwriting(cases: Sequence[BatchCase]) -> None:
    """Refuse files of a case in the place of what any case starts from.

    Raises
    ------
    InputError
    """
    read = {Path(realpath(path)): path for case in cases for path in all_inputs(case.job)}
    folders = {place for place, path in read.items() if path.is_dir()}
    beside = {place.parent for place in read if place not in folders}
    for job in (case.job for case in cases):
        for path in all_files_of(files_of_output, job.output_files().values()):
            place = Path(realpath(path))
            above = (folder for folder in place.parents if folder in folders)
            if place in read or any(is_read_from(folder, place) for folder in above):
                raise InputError(
                    f"{path} would overwrite an input; choose another folder of outputs",
                    code="input-overwritten",
                )
        for folder in job.output_folders().values():
            place = Path(realpath(folder))
            if place in read or place in beside:  # which classes it gets is not known yet
                raise InputError(
                    f"files of classes in {folder} would lie among inputs and could overwrite "
                    "them; choose another folder of outputs",
                    code="input-overwritten",
                )
