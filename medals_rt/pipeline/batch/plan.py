"""What a batch has to do: its cases, their names, and where each result goes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from os.path import realpath
from pathlib import Path, PurePosixPath
from typing import Any
from unicodedata import normalize

from medals_rt.common.errors import InputError
from medals_rt.io.registry import ENDINGS, is_dicom
from medals_rt.pipeline.batch.find import NAMED, Found, Search, from_jobs, searched
from medals_rt.pipeline.batch.jobs_file import JobRow, grid_of_row, in_row, source_of, stated
from medals_rt.pipeline.batch.paths import CasePaths, folder_of
from medals_rt.pipeline.batch.store import LOCAL, Store
from medals_rt.pipeline.job_outputs import (
    all_inputs,
    check_grid,
    check_labels_are_dicom,
    check_mesh,
    own_ending,
)
from medals_rt.pipeline.job_request import Job, fields_by_role
from medals_rt.pipeline.options import PromptSource, RunOptions, SegmentOptions
from medals_rt.pipeline.output_grid import GridRequest


@dataclass(frozen=True)
class BesideLabels:
    """What each case of a batch gets beside its labels and its report; see `job_request.Job`.

    Attributes
    ----------
    preview
        Whether pictures are drawn.
    split, probabilities
        Whether each class gets a file of its own, and a probability map: in the folders NAME and
        NAME_probabilities.
    instances, sr
        Whether lesions are numbered in a file of their own, NAME_lesions, and measurements written
        as a DICOM report, NAME.sr.dcm.
    mesh_reduction
        Share of the faces of surfaces to leave out.
    """

    preview: bool = True
    split: bool = False
    probabilities: bool = False
    instances: bool = False
    sr: bool = False
    mesh_reduction: float = 0.0


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
    store
        Where they lie.
    """

    job: Job
    paths: CasePaths
    given: tuple[str | None, ...] = ()
    store: Store = LOCAL

    @property
    def name(self) -> str:
        """Unique in the batch: the input's path from the folder of inputs, without its ending."""
        return self.paths.name

    @property
    def record(self) -> Path:
        """Where the batch notes that the case is finished."""
        return self.paths.record

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

    `passed_over` names what in the folders is no case, a line each; `store` says where files lie.
    """

    cases: tuple[BatchCase, ...]
    results: Path
    reports: Path
    passed_over: tuple[str, ...] = ()
    store: Store = LOCAL


def plan_batch(
    inputs: Sequence[Path],
    results: Path,
    *,
    jobs: Path | None = None,
    reports: Path | None = None,
    source: PromptSource,
    options: RunOptions,
    series: str | None = None,
    select: tuple[str, ...] = (),
    ending: str | None = None,
    beside: BesideLabels = BesideLabels(),
    grid: GridRequest = GridRequest(),  # noqa: B008 - frozen
    store: str | None = None,
    files: Store = LOCAL,
) -> BatchPlan:
    """Find the cases and decide on the name of every file that will be written.

    Parameters
    ----------
    inputs
        Folders (with all below them), cases, patterns such as ``scans/*.nii.gz``, addresses of
        series on a DICOMweb server, or text files that list such, one a line. With `jobs` one
        folder, from which its paths are taken.
    results
        The folder of results.
    jobs
        A jobs file, which then says which cases there are; see `jobs_file.JobRow`.
    reports
        The folder of reports, pictures and records; None: that of the results.
    source, options
        Prompts and options of the cases whose row has none.
    series, select
        Likewise, which series and images; of the cases that can hold several (DICOM).
    ending
        Of the results, such as ``".nii.gz"``; None: that of the case.
    beside
        What is written beside labels and reports.
    grid
        The grid that label maps are written on.
    store
        Address of a DICOMweb server where results are stored too.
    files
        Where the files lie whose places are given.

    Raises
    ------
    InputError
        There is no case, two would be written to one file, a name leads out of the folder of
        results, a report or a server wants DICOM and the results are none, or the jobs file has an
        error.
    """
    reports = reports or results
    if jobs is not None:
        search = Search(tuple(from_jobs(jobs, inputs, source, options.reading)))
    else:
        search = searched(inputs, results, reports)
    if not search.cases:
        others = "".join(f" ({line})" for line in search.passed_over)
        raise InputError(
            f"there is no case in {', '.join(map(str, inputs))}{others}; cases are files that end "
            f"in {', '.join(ENDINGS)}, DICOM folders and zips of them",
            code="no-case",
        )
    common = _Common(
        results, reports, source, options, series, select, ending, beside, grid, store, files
    )
    cases = tuple(_batch_case(each, common) for each in search.cases)
    _refuse_clashes(cases)
    _refuse_overwriting(cases)
    for case in cases:
        check_labels_are_dicom(case.job, remedy="say --format dcm")
    return BatchPlan(cases, results, reports, search.passed_over, files)


def one_name(name: str) -> str:
    """Return what is the same for all names that one file goes by where case doesn't count."""
    return normalize("NFC", name).casefold()


@dataclass(frozen=True)
class _Common:
    """What all cases have whose row of the jobs file doesn't say otherwise; as of `plan_batch`."""

    results: Path
    reports: Path
    source: PromptSource
    options: RunOptions
    series: str | None
    select: tuple[str, ...]
    ending: str | None
    beside: BesideLabels
    grid: GridRequest
    store: str | None
    files: Store


def _batch_case(found: Found, common: _Common) -> BatchCase:
    """Decide what is to be done with a case, and where its files go."""
    name = PurePosixPath(found.name).as_posix()
    parts = name.split("/")
    if "\0" in name or any(part.startswith(".") or not part for part in parts):
        place = f"{found.place}: " if found.place else ""
        raise InputError(
            f"{place}{name!r} can't name a result: it must stay in the folder of outputs, "
            "and no part of it may begin with a dot",
            code="result-name-invalid",
        )
    ending = found.ending or common.ending or own_ending(found.path)
    paths = CasePaths(name, common.results, common.reports, ending)
    beside = replace(common.beside, **stated(found.row, BesideLabels))
    names = fields_by_role()
    places = {names[role]: path for role, path in (paths.files() | paths.folders()).items()}
    wanted: dict[str, Any] = {
        name: path for name, path in places.items() if getattr(beside, name, True)
    }
    job = Job(
        input=found.path,
        **wanted,
        source=common.source,
        mesh_reduction=beside.mesh_reduction,
        grid=grid_of_row(found.row, common.grid),
        options=common.options,
        store=common.store,
    )
    if is_dicom(found.path):
        job = replace(job, series=common.series, select=common.select)
    job = _with_row(job, found.row, found.folder)
    if found.place:  # a mistake in a row; of files in a folder those fail that can't have it
        with in_row(found.place):
            check_grid(job)
            check_mesh(job)
            check_labels_are_dicom(job, remedy="make its format dcm")
    given = (found.row.input, found.row.spatial_prompts)
    return BatchCase(job, paths, given, common.files)


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
    for case in cases:
        for path in case.job.output_files().values():
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
    beside = {place.parent for place, path in read.items() if not path.is_dir()}
    for job in (case.job for case in cases):
        for path in job.output_files().values():
            if Path(realpath(path)) in read:
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
