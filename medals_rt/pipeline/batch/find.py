"""Which cases a batch has: in folders, patterns, lists and jobs files, but for earlier results."""

import glob
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import realpath
from pathlib import Path
from typing import Final

from medals_rt.common.errors import InputError, MissingFileError
from medals_rt.common.folders import walk_once
from medals_rt.io.dicom.web import series_addresses
from medals_rt.io.dicom.web_address import is_web_address
from medals_rt.io.registry import ENDINGS, OUTPUT_ENDINGS, case_stem, is_dicom
from medals_rt.pipeline.batch.jobs_file import JobRow, check_prompts, read_jobs, source_of
from medals_rt.pipeline.batch.paths import STATE_FOLDER, CasePaths, read_written
from medals_rt.pipeline.batch.remote_files import LOCAL, content_sha256
from medals_rt.pipeline.job_outputs import ending_of, own_ending
from medals_rt.pipeline.options import PromptSource
from medals_rt.prompts.prompt_set import PromptReading

_ARCHIVE = ".zip"
_LIST = ".txt"
_DIRECTORY_OF_DICOM = "DICOMDIR"

NAMED = 3
_UNREAD_IMAGES = (
    *(".minc", ".mnc", ".nii.xz", ".nii.bz2", ".nii.zst", ".gipl", ".vtk", ".vti"),
    *(".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".czi", ".nd2", ".lif", ".h5", ".hdf5"),
    *(".mat", ".npy", ".par", ".rec"),
)
"""Endings of images that aren't read: those in a folder are named, not passed over silently."""


_NO_ROW: Final = JobRow("")
"""Leaves out everything."""


@dataclass(frozen=True)
class Found:
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


@dataclass(frozen=True)
class Search:
    """What there is, and what was passed over, a line each."""

    cases: tuple[Found, ...]
    passed_over: tuple[str, ...] = ()


@dataclass
class _PassedOver:
    """What is gathered while folders are gone through.

    Attributes
    ----------
    unread
        Images whose formats aren't read.
    earlier
        Folders with results of other batches.
    closed
        Why folders can't be read.
    again
        Links to folders that were gone through under another name.
    """

    unread: list[Path] = field(default_factory=list)
    earlier: list[Path] = field(default_factory=list)
    closed: list[OSError] = field(default_factory=list)
    again: list[Path] = field(default_factory=list)

    def lines(self) -> tuple[str, ...]:
        """Say it to people."""
        closed = [f"{error.filename} ({error.strerror})" for error in self.closed]
        found: dict[str, Sequence[object]] = {
            "images of formats not read": [path.name for path in self.unread],
            "results of other batches": self.earlier,
            "folders that can't be read": closed,
            "links to folders that are gone through under another name": self.again,
        }
        return tuple(
            f"{what} are passed over: {first_of(dict.fromkeys(map(str, names)))}"
            for what, names in found.items()
            if names
        )


def first_of(names: Iterable[str]) -> str:
    """Name the first few, and count the others."""
    listed = list(names)
    more = len(listed) - NAMED
    named = ", ".join(listed[:NAMED])
    return f"{named} and {more} more" if more > 0 else named


@dataclass(frozen=True)
class _Given:
    """What is gone through, and whether a pattern matched it, so that nobody named it."""

    path: Path
    matched: bool = False


def searched(inputs: Sequence[Path], results: Path, reports: Path) -> Search:
    """Go through what is given to a batch; see `plan.plan_batch`."""
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
    passed = _PassedOver(earlier=earlier)
    # a scan that is named twice is one case; names that differ ask for two
    found = {
        (realpath(case.path), case.name): case for case in _from_given(given, own, written, passed)
    }
    names = Counter(case.name for case in found.values())
    cases = [  # beside a scan of its name, a result that somebody changed is no scan either
        case
        for (place, name), case in found.items()
        if names[name] == 1 or Path(place) not in written
    ]
    return Search(tuple(cases), passed.lines())


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
    given: Iterable[_Given], skip: set[Path], written: Mapping[Path, str], passed: _PassedOver
) -> Iterator[Found]:
    """Find the cases of what is given."""
    for each in given:
        if is_web_address(each.path):
            for address in series_addresses(each.path):
                study, series = address.query.values()
                yield Found(Path(str(address)), f"{study}/{series}")
        elif each.path.is_dir():
            yield from _from_folder(each.path, skip, written, passed)
        elif not (each.matched and _is_written(each.path, written)):
            yield Found(each.path, case_stem(each.path))


def _written(results: Path, reports: Path) -> dict[Path, str]:
    """Return the real paths of the files that a batch wrote, with the SHA-256 of each."""
    written: dict[Path, str] = {}
    folder = reports / STATE_FOLDER
    for file in folder.rglob("*.json"):
        record = read_written(LOCAL.read(file))
        if record is None:
            continue
        name = file.relative_to(folder).as_posix().removesuffix(".json")
        paths = CasePaths(name, results, reports, record.ending)
        for path, digest in paths.all_of(record):
            written[Path(realpath(path))] = digest
    return written


def _is_written(path: Path, written: Mapping[Path, str]) -> bool:
    """Whether a file is a result as a batch wrote it: a scan that took its place is none."""
    digest = written.get(Path(realpath(path))) if written else None
    return digest is not None and digest == content_sha256(path)


def _from_folder(
    top: Path, skip: set[Path], written: Mapping[Path, str], passed: _PassedOver
) -> Iterator[Found]:
    """Find the cases of a folder and all below it; a folder that holds DICOM files is one case."""
    for folder, folders, visible in _visible(top, skip, passed):
        below = folder.relative_to(top)
        files = [name for name in visible if not _is_written(folder / name, written)]
        passed.unread += [folder / name for name in files if name.lower().endswith(_UNREAD_IMAGES)]
        named = [name for name in files if name.lower().endswith((*ENDINGS, _ARCHIVE))]
        others = (folder / name for name in files if name not in named)
        if any(path.name != _DIRECTORY_OF_DICOM and is_dicom(path) for path in others):
            yield Found(folder, below.as_posix() if below.parts else case_stem(top))
            folders.clear()
        for file in (folder / name for name in named):
            yield Found(file, (below / case_stem(file)).as_posix())


def _visible(
    top: Path, skip: set[Path], passed: _PassedOver
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Go through a folder as `walk_once` does, without what is hidden and other batches' results.

    Where the folder itself holds results, it is gone through.
    """
    walk = walk_once(top, skip, closed=passed.closed.append, again=passed.again.append)
    for folder, folders, files in walk:
        if folder != top and (folder / STATE_FOLDER).is_dir():
            passed.earlier.append(folder)
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield folder, folders, [name for name in files if not name.startswith(".")]


def from_jobs(
    file: Path, inputs: Sequence[Path], source: PromptSource, reading: PromptReading
) -> Iterator[Found]:
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
        yield Found(path, stem, ending or None, row, place, folder)
