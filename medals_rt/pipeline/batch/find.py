"""What a batch has to do: its cases, their names, and where each result goes."""

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import realpath
from pathlib import Path, PurePosixPath
from typing import Final
from unicodedata import normalize

import msgspec

from medals_rt.common.errors import InputError, MissingFileError
from medals_rt.io.dicom.web import series_addresses
from medals_rt.io.dicom.web_address import is_web_address
from medals_rt.io.registry import ENDINGS, OUTPUT_ENDINGS, case_stem, is_dicom
from medals_rt.pipeline.batch.jobs_file import (
    JobRow,
    check_prompts,
    grid_of_row,
    in_row,
    read_jobs,
    source_of,
    stated,
)
from medals_rt.pipeline.batch.store import LOCAL, Store, content_sha256
from medals_rt.pipeline.job_outputs import (
    all_inputs,
    check_grid,
    check_labels_are_dicom,
    check_mesh,
    ending_of,
    own_ending,
)
from medals_rt.pipeline.job_request import Job
from medals_rt.pipeline.options import PromptSource, RunOptions, SegmentOptions
from medals_rt.pipeline.output_grid import GridRequest
from medals_rt.prompts.prompt_set import PromptReading

STATE_FOLDER = ".medals-rt"
"""Where, beside the reports, a batch keeps its records."""

_ARCHIVE = ".zip"
_LIST = ".txt"
_DIRECTORY_OF_DICOM = "DICOMDIR"

_NAMED = 3
_UNREAD_IMAGES = (
    *(".mgz", ".mgh", ".minc", ".mnc", ".nii.xz", ".nii.bz2", ".nii.zst", ".gipl", ".vtk", ".vti"),
    *(".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".czi", ".nd2", ".lif", ".h5", ".hdf5"),
    *(".mat", ".npy", ".par", ".rec"),
)
"""Endings of images that aren't read: those in a folder are named, not passed over silently."""


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

    `name` is unique in the batch: the input's path from the folder of inputs, without its ending.
    `record` is where the batch notes that the case is finished, `store` where its files lie.
    """

    name: str
    job: Job
    record: Path
    store: Store = LOCAL


@dataclass(frozen=True)
class BatchPlan:
    """All cases of a batch in their order, and where what is about all of them goes.

    `unread` are images in the folders whose formats aren't read, `earlier` folders with results of
    other batches, which are passed over; `store` says where files lie.
    """

    cases: tuple[BatchCase, ...]
    results: Path
    reports: Path
    unread: tuple[Path, ...] = ()
    earlier: tuple[Path, ...] = ()
    store: Store = LOCAL


_NO_ROW: Final = JobRow("")
"""Leaves out everything."""


@dataclass(frozen=True)
class _Found:
    """A case that was found.

    `ending` is that of its result where a row names one. `row` is its row of the jobs file, or one
    that leaves out everything, `place` where that stands, `folder` where its paths start.
    """

    path: Path
    name: str
    ending: str | None = None
    row: JobRow = _NO_ROW
    place: str = ""
    folder: Path = Path()


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
    unread: tuple[Path, ...] = ()
    earlier: tuple[Path, ...] = ()
    if jobs is not None:
        found = list(_from_jobs(jobs, inputs, source, options.reading))
    else:
        found, unread, earlier = _searched(inputs, results, reports)
    if not found:
        others = f" ({unread_words(unread)})" if unread else ""
        if earlier:
            others += f" (results of other batches in {', '.join(map(str, earlier[:_NAMED]))})"
        raise InputError(
            f"there is no case in {', '.join(map(str, inputs))}{others}; cases are files that end "
            f"in {', '.join(ENDINGS)}, DICOM folders and zips of them",
            code="no-case",
        )
    places = _Places(results, reports, ending, beside, grid, files, store)
    common = _Common(source, options, series, select)
    cases = tuple(_batch_case(each, places, common) for each in found)
    _refuse_clashes(cases)
    _refuse_overwriting(cases)
    for case in cases:
        check_labels_are_dicom(case.job, remedy="say --format dcm")
    return BatchPlan(cases, results, reports, unread, earlier, files)


def unread_words(unread: Sequence[Path]) -> str:
    """Name the first few images whose formats aren't read, and count the others."""
    named = ", ".join(path.name for path in unread[:_NAMED])
    more = len(unread) - _NAMED
    listed = f"{named} and {more} more" if more > 0 else named
    return f"{len(unread)} image{'s' if len(unread) > 1 else ''} of formats not read: {listed}"


def report_path(reports: Path, name: str) -> Path:
    """Path of the report of a case."""
    return reports / "reports" / f"{name}.json"


def preview_path(reports: Path, name: str) -> Path:
    """Path of the picture of a case."""
    return reports / "previews" / f"{name}.png"


def one_name(name: str) -> str:
    """Return what is the same for all names that one file goes by where case doesn't count."""
    return normalize("NFC", name).casefold()


@dataclass(frozen=True)
class _Given:
    """What is gone through, and whether a pattern matched it, so that nobody named it."""

    path: Path
    matched: bool = False


def _searched(
    inputs: Sequence[Path], results: Path, reports: Path
) -> tuple[list[_Found], tuple[Path, ...], tuple[Path, ...]]:
    """Return the cases, the images that aren't read, and other batches' results passed over."""
    own = {Path(realpath(results)), Path(realpath(reports))}
    everything = list(_given(inputs))
    one = len(inputs) == len(everything) == 1 and everything[0].path == inputs[0]
    given: list[_Given] = []
    earlier: list[Path] = []
    for each in everything:
        if not (each.path / STATE_FOLDER).is_dir():
            given.append(each)
        elif Path(realpath(each.path)) in own:
            if not each.matched or len(everything) == 1:  # scans may lie beside their results
                given.append(each)
        elif one:  # so may those of another batch
            given.append(each)
        else:
            earlier.append(each.path)
    written = _written(results, reports) if _touch(given, own) else {}
    if one and (inputs[0] / STATE_FOLDER).is_dir():
        written |= _written(inputs[0], inputs[0])
    # a scan that is named twice is one case; names that differ ask for two
    found = {(realpath(case.path), case.name): case for case in _from_given(given, own, written)}
    folders = [each.path for each in given if each.path.is_dir()]
    unread = [path for folder in folders for path in _unread_images(folder, own, written)]
    earlier += [path for folder in folders for path in _earlier_results(folder, own)]
    return list(found.values()), tuple(dict.fromkeys(unread)), tuple(dict.fromkeys(earlier))


def _touch(given: Iterable[_Given], own: set[Path]) -> bool:
    """Whether something that is given is, or lies in, one of these folders."""
    places = (Path(realpath(each.path)) for each in given)
    return any(not own.isdisjoint((place, *place.parents)) for place in places)


def _given(
    inputs: Iterable[Path], *, lists: tuple[str, ...] = (), matched: bool = False
) -> Iterator[_Given]:
    """Go through what the command line names, what `lists` name, and what patterns match."""
    for given in inputs:
        if is_web_address(given) or given.is_dir():
            yield _Given(given, matched)
        elif given.suffix.lower() == _LIST and given.is_file():
            if realpath(given) in lists:
                raise InputError(
                    f"the list {given} names itself, or a list that names it; take that line out",
                    code="list-in-itself",
                )
            yield from _given(_lines(given), lists=(*lists, realpath(given)))
        elif given.exists():
            yield _Given(given, matched)
        elif glob.has_magic(str(given)):
            matches = sorted(glob.glob(str(given), recursive=True))  # noqa: PTH207 - also absolute
            if not matches:
                raise MissingFileError(
                    f"nothing matches {given}; check the pattern", code="nothing-matches"
                )
            yield from _given(map(Path, matches), lists=lists, matched=True)
        else:
            raise MissingFileError(f"there is no {given}; check the path")


def _lines(file: Path) -> list[Path]:
    """Read a list of inputs: one a line, from the list's folder; # begins a comment."""
    lines = map(str.strip, file.read_text(encoding="utf-8-sig").splitlines())
    return [
        Path(line) if is_web_address(line) else file.parent / line
        for line in lines
        if line and not line.startswith("#")
    ]


def _from_given(
    given: Iterable[_Given], skip: set[Path], written: Mapping[Path, str]
) -> Iterator[_Found]:
    """Find the cases of what is given."""
    for each in given:
        if is_web_address(each.path):
            for address in series_addresses(each.path):
                study, series = address.query.values()
                yield _Found(Path(str(address)), f"{study}/{series}")
        elif each.path.is_dir():
            yield from _from_folder(each.path, skip, written)
        elif not (each.matched and _is_written(each.path, written)):
            yield _Found(each.path, case_stem(each.path))


@dataclass(frozen=True)
class _Record:
    """Of a case's record what says which files are its results; see `records.Record`."""

    files: dict[str, str]
    ending: str


def _written(results: Path, reports: Path) -> dict[Path, str]:
    """Return the real paths of the images that a batch wrote, with the SHA-256 of each."""
    written: dict[Path, str] = {}
    folder = reports / STATE_FOLDER
    for file in folder.rglob("*.json"):
        try:
            record = msgspec.json.decode(file.read_bytes(), type=_Record)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):  # as if there were none
            continue
        name = file.relative_to(folder).as_posix().removesuffix(".json")
        result = results / name
        places = {
            "labels": result.with_name(f"{result.name}{record.ending}"),
            "lesions": _lesion_map(result, record.ending),
            "sr": _measurements(result),
            "preview": preview_path(reports, name),
        }
        folders = {"class": result, "map": _folder_of_maps(result)}
        for role, digest in record.files.items():
            kind, _, last = role.partition("/")
            path = folders[kind] / last if kind in folders else places.get(role)
            if path is not None:
                written[Path(realpath(path))] = digest
    return written


def _is_written(path: Path, written: Mapping[Path, str]) -> bool:
    """Whether a file is a result as a batch wrote it: a scan that took its place is none."""
    digest = written.get(Path(realpath(path))) if written else None
    return digest is not None and digest == content_sha256(path)


def _from_folder(top: Path, skip: set[Path], written: Mapping[Path, str]) -> Iterator[_Found]:
    """Find the cases of a folder and all below it; a folder that holds DICOM files is one case."""
    for folder, folders, visible in _walk(top, skip, written):
        below = folder.relative_to(top)
        named = [name for name in visible if name.lower().endswith((*ENDINGS, _ARCHIVE))]
        others = (folder / name for name in visible if name not in named)
        if any(path.name != _DIRECTORY_OF_DICOM and is_dicom(path) for path in others):
            yield _Found(folder, below.as_posix() if below.parts else case_stem(top))
            folders.clear()
        for file in (folder / name for name in named):
            yield _Found(file, (below / case_stem(file)).as_posix())


def _unread_images(top: Path, skip: set[Path], written: Mapping[Path, str]) -> Iterator[Path]:
    """Find the images of a folder and all below it whose formats aren't read."""
    for folder, _, visible in _walk(top, skip, written):
        for name in visible:
            if name.lower().endswith(_UNREAD_IMAGES):
                yield folder / name


def _earlier_results(top: Path, skip: set[Path]) -> Iterator[Path]:
    """Find the folders below one that hold results of other batches."""
    for folder, folders, _ in _walk(top, skip, {}, earlier=True):
        if folder != top and (folder / STATE_FOLDER).is_dir():
            yield folder
            folders.clear()


def _walk(
    top: Path, skip: set[Path], written: Mapping[Path, str], *, earlier: bool = False
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Go through a folder and all below it, then where links lead, each folder once.

    A link to a folder that holds this one leads to what nobody asked for, and is not followed.

    Parameters
    ----------
    top
        The folder.
    skip
        Folders that are passed over, with what is below them.
    written
        Files that are passed over as long as their content is what a batch wrote.
    earlier
        Whether folders with results of another batch are gone through.

    Yields
    ------
    folder
        A folder.
    folders
        Names of those in it that come next; what is taken out is passed over.
    files
        Names of its files but hidden ones and results, sorted.
    """
    itself = Path(os.path.realpath(top))
    seen = {*skip, itself, *itself.parents}
    starts = [top]
    for start in starts:  # grows as links are found
        for parent, folders, files in os.walk(start):
            folder = Path(parent)
            place = Path(os.path.realpath(folder))
            foreign = folder != top and not earlier and (folder / STATE_FOLDER).is_dir()
            if foreign or (place in seen and folder != top):
                folders.clear()
                continue
            seen.add(place)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            visible = sorted(name for name in files if not name.startswith("."))
            yield folder, folders, [n for n in visible if not _is_written(folder / n, written)]
            starts += [folder / name for name in folders if (folder / name).is_symlink()]


def _from_jobs(
    file: Path, inputs: Sequence[Path], source: PromptSource, reading: PromptReading
) -> Iterator[_Found]:
    """Go through a jobs file."""
    if len(inputs) != 1 or not inputs[0].is_dir():
        raise InputError(
            "--jobs needs one folder of inputs, from which its paths are taken",
            code="jobs-folder-missing",
        )
    (folder,) = inputs
    for number, row in enumerate(read_jobs(file), start=1):
        place = f"{file.name}, job {number}"
        check_prompts(row, source_of(row, folder, source), reading, place)
        path = folder / row.input
        name = row.output or case_stem(path)
        endings = [each for each in OUTPUT_ENDINGS if name.lower().endswith(each)]
        ending = max(endings, key=len, default="")
        stem = name[: len(name) - len(ending)]
        if row.format is not None:
            asked = ending_of(row.format) or own_ending(path)
            if ending not in {"", asked}:
                raise InputError(
                    f"{place}: the output {name!r} doesn't end in the format {row.format!r}; "
                    "leave out one of them",
                    code="endings-differ",
                )
            ending = asked
        yield _Found(path, stem, ending or None, row, place, folder)


@dataclass(frozen=True)
class _Places:
    """Where files go, the ending of results (None: the case's), and which files there are.

    `store` is a server that gets the results too.
    """

    results: Path
    reports: Path
    ending: str | None
    beside: BesideLabels
    grid: GridRequest
    files: Store
    store: str | None = None


@dataclass(frozen=True)
class _Common:
    """What all cases have whose row of the jobs file doesn't say otherwise; as of a `Job`."""

    source: PromptSource
    options: RunOptions
    series: str | None
    select: tuple[str, ...]


def _batch_case(found: _Found, places: _Places, common: _Common) -> BatchCase:
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
    ending = found.ending or places.ending or own_ending(found.path)
    result = places.results / name
    beside = replace(places.beside, **stated(found.row, BesideLabels))
    job = Job(
        input=found.path,
        output=result.with_name(f"{result.name}{ending}"),
        source=common.source,
        report=report_path(places.reports, name),
        preview=preview_path(places.reports, name) if beside.preview else None,
        split=result if beside.split else None,
        probabilities=_folder_of_maps(result) if beside.probabilities else None,
        instances=_lesion_map(result, ending) if beside.instances else None,
        sr=_measurements(result) if beside.sr else None,
        mesh_reduction=beside.mesh_reduction,
        grid=grid_of_row(found.row, places.grid),
        options=common.options,
        store=places.store,
    )
    if is_dicom(found.path):
        job = replace(job, series=common.series, select=common.select)
    job = _with_row(job, found.row, found.folder)
    if found.place:  # a mistake in a row; of files in a folder those fail that can't have it
        with in_row(found.place):
            check_grid(job)
            check_mesh(job)
            check_labels_are_dicom(job, remedy="make its format dcm")
    return BatchCase(name, job, places.reports / STATE_FOLDER / f"{name}.json", places.files)


def _lesion_map(result: Path, ending: str) -> Path:
    """Name the map of numbered lesions; DICOM and meshes have none, so that it is NIfTI there."""
    own = ending if ending in ENDINGS else ".nii.gz"
    return result.with_name(f"{result.name}_lesions{own}")


def _folder_of_maps(result: Path) -> Path:
    """Name the folder of probability maps."""
    return result.with_name(f"{result.name}_probabilities")


def _measurements(result: Path) -> Path:
    """Name the DICOM report."""
    return result.with_name(f"{result.name}.sr.dcm")


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
            for each in alike[:_NAMED]
        )
        more = f"; so would {len(alike) - _NAMED} more" if len(alike) > _NAMED else ""
        raise InputError(
            f"{listed}{more}: give them names in a jobs file (output), or run them into two "
            "folders",
            code="results-alike",
        )
    folders = _folders_of_classes(cases)
    written: dict[str, BatchCase] = {}
    for case in cases:
        job = case.job
        for path in filter(None, (job.output, job.instances, job.sr)):
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
        for folder in filter(None, (case.job.split, case.job.probabilities)):
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
        for path in filter(None, (job.output, job.report, job.preview, job.instances, job.sr)):
            if Path(realpath(path)) in read:
                raise InputError(
                    f"{path} would overwrite an input; choose another folder of outputs",
                    code="input-overwritten",
                )
        for folder in filter(None, (job.split, job.probabilities)):
            place = Path(realpath(folder))
            if place in read or place in beside:  # which classes it gets is not known yet
                raise InputError(
                    f"files of classes in {folder} would lie among inputs and could overwrite "
                    "them; choose another folder of outputs",
                    code="input-overwritten",
                )
