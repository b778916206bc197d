"""Read cases and write results: finds the format of a file and calls it.

A format is one module that holds `FORMATS`, and one line of `_MODULES`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Final, Literal, ParamSpec, TypeVar

from medals_rt.common.arguments import check_class
from medals_rt.common.errors import CaseError, MissingFileError
from medals_rt.common.limits import MAX_VOXELS
from medals_rt.common.notes import Note
from medals_rt.common.optional_deps import require
from medals_rt.common.typing import HostArray
from medals_rt.io.case import Case, LabelFile, compact_labels
from medals_rt.io.dicom.web_address import WebAddress, is_web_address
from medals_rt.io.format import START, Capability, Format, Options, SegmentationOutput, stem
from medals_rt.io.segment_metadata import Segment
from medals_rt.io.voxel_data import GZIP_MAGIC, InflatedStream
from medals_rt.prompts.prompt_set import AnyPrompts, PromptSet, as_prompt_set

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")

_MODULES: Final = (
    "medals_rt.io.npz",
    "medals_rt.io.nifti",
    "medals_rt.io.nrrd",
    "medals_rt.io.metaimage",
    "medals_rt.io.freesurfer",
    "medals_rt.io.dicom.formats",
    "medals_rt.io.meshes",
)
"""Modules of formats, in the order in which people are told of them. They import their libraries
when these are used, so that all are light."""

FORMATS: Final[tuple[Format, ...]] = tuple(
    each for module in _MODULES for each in importlib.import_module(module).FORMATS
)


def _endings(capability: Capability, *, choosable: bool | None = None) -> tuple[str, ...]:
    able = [each for each in FORMATS if getattr(each, capability) is not None]
    chosen = [each for each in able if choosable is None or each.choosable is choosable]
    return tuple(dict.fromkeys(ending for each in chosen for ending in each.endings))


ENDINGS: Final = _endings("read_case", choosable=False)
"""Of files that each hold one image, or one label map."""

DICOM_ENDINGS: Final = _endings("read_case", choosable=True)
"""Of files that may hold several series; a folder counts as one too."""

LABEL_ENDINGS: Final = _endings("read_labels")
"""Of files that label maps are read from."""

OUTPUT_ENDINGS: Final = _endings("write")
"""Of files that results are written to."""

TWO_FILE_ENDINGS: Final = tuple(ending for each in FORMATS for ending in each.two_file_endings)
"""Of files whose voxels lie in a second file."""


def read_case(
    path: str | PathLike[str],
    *,
    max_voxels: int = MAX_VOXELS,
    series: str | None = None,
    select: Sequence[str] = (),
) -> Case:
    """Read a case.

    Parameters
    ----------
    path
        A challenge case `.npz` (`imgs`, `spacing`, if there are any `text_prompts` and `gts`), or
        an image as NIfTI, NRRD or MetaImage, or a DICOM series: its folder, a `.zip` of it, or an
        enhanced multi-frame file; or a study or series of a DICOMweb server, by its address
        (`dicom.web`). All but `.npz` are turned to the canonical orientation.
    max_voxels
        Larger volumes are refused before memory is taken for them.
    series
        Which series of a DICOM folder: its SeriesNumber, or the beginning of its UID.
    select
        Which of that series' images, as ``KEY=VALUE``: an acquisition, echo, phase, ... See
        `dicom.selection.KEYS`.

    Raises
    ------
    MissingFileError
        If there is no such file.
    CaseError
        If it is damaged, has another ending, or holds no finite 3-D image with a positive spacing.
    MissingDependencyError
        If the format's library isn't installed.
    ServerError
        If a server fails.
    """
    file = _existing(path)
    found = _format_to_read(file, "read_case")
    if (series is not None or select) and not found.choosable:
        raise CaseError(
            f"{file.name} is no DICOM folder or zip, so there is no series to choose",
            code="no-series",
        )
    options = Options(max_voxels=max_voxels, series=series, select=tuple(select))
    return _offered(found.read_case)(file, options)


def read_labels(
    path: str | PathLike[str],
    *,
    max_voxels: int = MAX_VOXELS,
    prefer: Literal["segs", "gts"] = "segs",
) -> LabelFile:
    """Read a label map in canonical orientation.

    From `.npz` the member `prefer` is taken (results hold `segs`, cases `gts`), else the other.

    Raises
    ------
    MissingFileError, CaseError, MissingDependencyError
        As `read_case`; also if the values aren't whole numbers from 0.
    """
    file = _existing(path)
    found = _format_to_read(file, "read_labels")
    return _offered(found.read_labels)(file, Options(max_voxels=max_voxels, prefer=prefer))


def write_segmentation(
    path: str | PathLike[str],
    case: Case,
    labels_dhw: HostArray,
    *,
    instances_dhw: HostArray | None = None,
    prompts: AnyPrompts | None = None,
    model: str | None = None,
    notice: str | None = None,
    segments: Sequence[Segment] | None = None,
    format: str | None = None,  # noqa: A002 - the word that a caller expects
    mesh_reduction: float = 0.0,
) -> None:
    """Write a result on the source file's own grid; each file appears whole or not at all.

    Parameters
    ----------
    path
        `.npz` (`segs`, `spacing`, `text_prompts`, if given `instances`); NIfTI or MetaImage (labels
        only); `.nrrd` (labels with 3D Slicer's names and colors of segments; call it `.seg.nrrd` so
        that Slicer opens it as a segmentation); or, for a DICOM case, `.dcm` (a DICOM SEG whose
        segments are the labels, or the instances where there are any).
    case
        The case that was segmented.
    labels_dhw, instances_dhw
        Integers `(D, H, W)` of the image's shape, in canonical orientation as `Result.labels_dhw`.
    prompts
        Written as `text_prompts`, in any form that `Segmenter.segment` takes; by default those that
        the case was read with. A mapping doesn't name the classes: its segments are called by their
        sentences and have no codes.
    model, notice
        Name of the model, and a warning for everyone who sees its results, for formats that
        store them.
    segments
        What the labels are, where the prompts don't say it.
    format
        Name of a format of `FORMATS`, where several share the ending.
    mesh_reduction
        Share of faces to leave out, for formats of surfaces; see `meshes.reduced`.

    Raises
    ------
    TypeError
        If `case` is no `Case`, or `prompts` are none of these.
    PromptError
        If a sentence names no class.
    CaseError
        If the ending is unknown, the folder is missing, a shape isn't the image's, a DICOM SEG is
        asked for a case that isn't a DICOM series, or a file of the scan would be overwritten.
    """
    check_class("case", case, Case, "give what read_case returned")
    file = Path(path)
    found = _format_to_write(file, format)
    _check_libraries(found)
    for each in files_of_output(file):
        if is_read_from(case.path, each):
            raise CaseError(
                f"{each} is the scan itself, or a part of it; write its labels to another name",
                code="input-overwritten",
            )
    if not file.parent.is_dir():
        raise CaseError(
            f"there is no folder {file.parent} to write {file.name} to; make it first",
            code="folder-missing",
        )
    instances = None if instances_dhw is None else compact_labels(instances_dhw)
    chosen = case.prompts if prompts is None else prompts
    if not isinstance(chosen, Mapping | None):
        chosen = as_prompt_set(chosen)
    _check_classes(file, found, chosen)
    output = SegmentationOutput(
        case,
        compact_labels(labels_dhw),
        instances,
        chosen,
        model,
        notice,
        None if segments is None else tuple(segments),
        mesh_reduction,
    )
    _offered(found.write)(file, output)


def check_output(
    path: str | PathLike[str],
    case: Case | None = None,
    *,
    prompts: PromptSet | Mapping[str, object] | None = None,
    format: str | None = None,  # noqa: A002 - as in `write_segmentation`
) -> tuple[Note, ...]:
    """Check that a result could be written, before the work is done.

    Parameters
    ----------
    path
        The file to write.
    case
        The case that it would be the result of, once that is read.
    prompts
        What is asked for, once that is known.
    format
        As in `write_segmentation`.

    Returns
    -------
    tuple of Note
        What of the case can't be kept in it.

    Raises
    ------
    CaseError
        If the ending is unknown, or a DICOM SEG is asked for a case that
        isn't a DICOM series.
    MissingDependencyError
        If a library that the format needs isn't installed.
    """
    file = Path(path)
    found = _format_to_write(file, format)
    _check_libraries(found)
    _check_classes(file, found, prompts)
    if found.check is None or case is None:
        return ()
    return found.check(file.name, case)


def format_of_output(path: str | PathLike[str], name: str | None = None) -> Format:
    """Find the format that a result is written in; `name` where several share the ending.

    Raises
    ------
    CaseError
        If there is none.
    """
    return _format_to_write(Path(path), name)


def check_own_grid(path: str | PathLike[str], name: str | None = None) -> None:
    """Refuse a format whose results lie on the grid of their source, where another is wanted.

    Raises
    ------
    CaseError
        ``"grid-of-the-source"``.
    """
    found = _format_to_write(Path(path), name)
    if found.keeps_grid:
        raise CaseError(
            f"{Path(path).name} would be {found.title}, whose planes are those of its series; "
            "leave out --crop and --output-spacing, or write .nii.gz or .seg.nrrd",
            code="grid-of-the-source",
        )


def _check_classes(
    file: Path, found: Format, prompts: PromptSet | Mapping[str, object] | None
) -> None:
    """Refuse several classes in a format that can't tell them apart."""
    asked = len(prompts.labels) if isinstance(prompts, PromptSet) else 1
    if found.one_class and asked > 1:
        raise CaseError(
            f"{file.name} would hold {asked} classes, and {found.title} can't tell them apart; ask "
            "for one, or write .glb",
            code="several-classes",
        )


def _check_libraries(found: Format) -> None:
    """Refuse a format whose library isn't there."""
    if found.libraries:
        require(found.title, *found.libraries)


def is_dicom(path: Path) -> bool:
    """Whether a path may hold several series: a folder, a `.zip` or `.dcm`, or a file marked so.

    Also an address of a server.
    """
    if _by_scheme(path) is not None or path.is_dir():
        return True
    if not path.is_file():
        return False
    found = _by_name(path, "read_case")
    if found is None:
        start = _start(path)
        found = next((each for each in FORMATS if each.choosable and _fits(each, start)), None)
    return found is not None and found.choosable


def case_stem(path: str | PathLike[str]) -> str:
    """Name of a case's file or folder without the ending of its format."""
    if is_web_address(path):
        return WebAddress.parse(path).name
    file = Path(path)
    # of "." and "..", but of a link its own name: what it leads to may be called "series"
    absolute = os.path.abspath(file)  # noqa: PTH100 - resolve follows links
    return Path(absolute).name if file.is_dir() else stem(file, FORMATS)


def files_of_case(path: str | PathLike[str]) -> tuple[Path, ...]:
    """Return all files that a case or a label map is read from.

    Parameters
    ----------
    path
        As of `read_case`. Of a header its content is read, as far as it is there.

    Returns
    -------
    tuple of Path
        Of a header and its data file both, whether they exist or not; of a folder the DICOM files
        in it. The path alone where it is an address, and where its reader would refuse it.
    """
    file = Path(path)
    if _by_scheme(file) is not None:
        return (file,)
    if file.is_dir():
        found = next((each for each in FORMATS if each.folders), None)
    else:  # not of a pipe, which would be waited for
        found = _by_name(file, "read_labels") if file.is_file() else None
    if found is None or found.files_of is None:
        return (file,)
    try:
        return found.files_of(file) or (file,)
    except CaseError:  # which its reader says, too
        return (file,)


def files_of_output(path: str | PathLike[str]) -> tuple[Path, ...]:
    """Return all files that a result of this name is written as: header and data file, if two."""
    file = Path(path)
    found = _by_name(file, "write")
    return (file,) if found is None or found.files_written is None else found.files_written(file)


def is_read_from(source: str | PathLike[str], path: Path) -> bool:
    """Whether a file is one that a case is read from, so that writing it would lose a scan.

    Parameters
    ----------
    source
        As of `read_case`. Of a folder every image in it counts, of whatever series.
    path
        The file, whether it exists or not.
    """
    folder, place = Path(source), Path(os.path.realpath(path))
    try:
        if not folder.is_dir():
            return place in {Path(os.path.realpath(each)) for each in files_of_case(source)}
        within = place.is_relative_to(os.path.realpath(folder)) and place.is_file()
    except OSError:  # a name that no file can have, such as a client's for what it sent
        return False
    return within and any(each.is_scan(place) for each in FORMATS if each.is_scan)


def _existing(path: str | PathLike[str]) -> Path:
    if str(path) == "":  # else it were the current folder
        raise MissingFileError("the path is empty", code="path-empty")
    file = Path(path)
    if _by_scheme(file) is not None:
        return file
    if not file.exists():
        home = " (where it is quoted, ~ is no home folder)" if str(file).startswith("~") else ""
        raise MissingFileError(f"there is no such file or folder: {file}; check the path{home}")
    if not (file.is_file() or file.is_dir()):
        raise CaseError(
            f"{file} is a pipe or a device; save what comes out of it to a file first",
            code="not-a-file",
        )
    return file


def _format_to_read(file: Path, capability: Capability) -> Format:
    """Format of an existing file by its ending, checked against how the file starts.

    Raises
    ------
    CaseError
        If there is none, or the file is of another format than its ending says.
    """
    addressed = _by_scheme(file)
    if addressed is not None and getattr(addressed, capability) is not None:
        return addressed
    if file.is_dir():
        for each in FORMATS:
            if each.folders and getattr(each, capability) is not None:
                return each
        raise CaseError(f"{file} is a folder; give a file", code="is-a-folder")
    named = _by_name(file, capability)
    start = _start(file)
    _check_compression(file, named, start)
    if named is not None and (_fits(named, start) or named.recognizes is None):
        return named
    others = [each for each in FORMATS if getattr(each, capability) and _fits(each, start)]
    if named is None and others and others[0].unnamed and not _packed(start):
        return others[0]
    if others:
        raise CaseError(
            f"{file.name} is of the format {others[0].title} by its content; "
            f"{_renaming(file, others[0], packed=_packed(start))}",
            code="wrong-ending",
        )
    if named is not None:
        return named  # damaged: its own reader says how
    known = ", ".join(_endings(capability))
    raise CaseError(
        f"{file.name} is of an unknown format; use one of {known}", code="format-unknown"
    )


def _format_to_write(file: Path, name: str | None) -> Format:
    if name is None:
        found = _by_name(file, "write")
        if found is None:
            known = ", ".join(OUTPUT_ENDINGS)
            raise CaseError(
                f"{file.name} is of an unknown format; use one of {known}", code="format-unknown"
            )
        return found
    writers = {each.name: each for each in FORMATS if each.write is not None}
    if name not in writers:
        raise CaseError(
            f"there is no format {name!r} to write; use one of {', '.join(writers)}",
            code="format-unknown",
        )
    if writers[name].ending_of(file.name) is None:
        raise CaseError(
            f"{file.name} can't be of the format {name}; end it in "
            f"{', '.join(writers[name].endings)}",
            code="wrong-ending",
        )
    return writers[name]


def _offered(ability: Callable[_Given, _Made] | None) -> Callable[_Given, _Made]:
    """Return what a format offers, by which it was chosen."""
    if ability is None:
        raise AssertionError
    return ability


def _by_name(file: Path, capability: Capability) -> Format | None:
    able = [each for each in FORMATS if getattr(each, capability) is not None]
    fitting = [each for each in able if each.ending_of(file.name)]
    return max(fitting, key=lambda each: len(each.ending_of(file.name) or ""), default=None)


def _by_scheme(file: Path) -> Format | None:
    text = str(file)
    return next((each for each in FORMATS if each.scheme and text.startswith(each.scheme)), None)


def _check_compression(file: Path, named: Format | None, start: bytes) -> None:
    """Refuse a name that says gzip where the file isn't, and the reverse.

    Raises
    ------
    CaseError
    """
    ending = None if named is None else named.ending_of(file.name)
    if named is None or ending is None:
        return
    packed = _packed(start)
    inside = [each for each in FORMATS if packed and _fits(each, start)]
    says_packed = ending in named.gzipped.values()
    if packed and not says_packed and (named in inside or not inside):
        fitting = named.gzipped.get(ending)
        mending = "unpack it" if fitting is None else f"let its name end in {fitting}, or unpack it"
        raise CaseError(f"{file.name} is gzipped; {mending}", code="wrong-ending")
    plain = next((each for each in FORMATS if _fits(each, start) and not packed), None)
    if not packed and says_packed and plain is named:
        fitting = next(each for each, gzipped in named.gzipped.items() if gzipped == ending)
        name = f"{file.name[: -len(ending)]}{fitting}"
        text = f"{file.name} isn't gzipped; name it {name}, or compress it with gzip"
        raise CaseError(text, code="wrong-ending")


def _renaming(file: Path, fitting: Format, *, packed: bool) -> str:
    """Say how a file of a format has to be called; what is gzipped may have to be unpacked."""
    plain = file.with_name(file.name.removesuffix(".gz")) if packed else file
    gzipped = fitting.gzipped.values()
    of_kind = [each for each in fitting.endings if (each in gzipped) == packed]
    name = f"name it {stem(plain, FORMATS)}{min(of_kind or fitting.endings, key=len)}"
    return name if of_kind else f"unpack it and {name}"


def _packed(start: bytes) -> bool:
    return start.startswith(GZIP_MAGIC)


def _start(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(4096)


def _fits(each: Format, start: bytes) -> bool:
    if each.recognizes is None:
        return False
    return each.recognizes(_unpacked(start) if _packed(start) else start[:START])


def _unpacked(start: bytes) -> bytes:
    """First bytes of what a gzip stream holds, as far as its own first bytes go."""
    import io
    import zlib

    stream, found = InflatedStream(io.BytesIO(start)), b""
    try:
        while len(found) < START and (part := stream.read(START - len(found))):
            found += part
    except (zlib.error, EOFError):
        pass  # what was unpacked so far may do
    return found


__all__ = [
    "DICOM_ENDINGS",
    "ENDINGS",
    "FORMATS",
    "LABEL_ENDINGS",
    "OUTPUT_ENDINGS",
    "TWO_FILE_ENDINGS",
    "Case",
    "Format",
    "LabelFile",
    "case_stem",
    "check_output",
    "check_own_grid",
    "files_of_case",
    "files_of_output",
    "format_of_output",
    "is_dicom",
    "is_read_from",
    "read_case",
    "read_labels",
    "write_segmentation",
]
