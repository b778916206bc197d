"""The jobs file: one case a row, typed, JSON or CSV.

JSON is a list of objects, CSV has a line of headings; both have the members of `JobRow`. An error
names the row.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from medals_rt.common.choices import (
    Kind,
    Postprocess,
    PresetName,
    Refinement,
    Stages,
    StartFrom,
)
from medals_rt.common.errors import InputError
from medals_rt.common.json_text import decode_json, validation_words
from medals_rt.common.limits import MAX_MESH_REDUCTION
from medals_rt.common.text_files import read_text
from medals_rt.pipeline.job_outputs import ending_of
from medals_rt.pipeline.options import PromptSource, SegmentOptions
from medals_rt.pipeline.output_grid import GridRequest, three_lengths
from medals_rt.preprocessing.intensity import AUTO, parse_window
from medals_rt.prompts.prompt_set import PromptReading

_MAX_FILE_BYTES: Final = 64 * 2**20
_SEPARATOR: Final = ";"
_FORM: Final = "jobs-file-form"
"""Code of the errors of files that aren't jobs in JSON or CSV."""

Words = Annotated[str, msgspec.Meta(min_length=1)]
Several = Annotated[tuple[Words, ...], msgspec.Meta(min_length=1)]
_SEVERAL: Final = {
    **dict.fromkeys(("sentences", "lesions", "groups", "select"), _SEPARATOR),
    **dict.fromkeys(("block_sizes", "output_spacing"), f"[{_SEPARATOR},]"),
}
"""Members that hold several values, and what separates these in CSV; numbers also a comma."""


class JobRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One case of a jobs file. What a row leaves out is as the command line has it.

    Attributes
    ----------
    input
        The case, a path from the folder of inputs.
    output
        Name of the result in the folder of outputs, with the ending of a format or without.
    prompts
        A prompts.json, a path from the folder of inputs.
    sentences
        Instead of `prompts`; in CSV separated by semicolons.
    kind
        What the sentences ask for.
    lesions
        Sentences of lesions beside the anatomy of `prompts` or `sentences`; in CSV likewise.
    groups
        Names of groups of classes; in CSV likewise.
    window, preset, refinement, postprocess, seed, stages, start_from, iterations, repetitions, \
    block_sizes, lesion_iterations, threshold, overlap, mirrored
        As for `medals-rt run`; block sizes in CSV separated by semicolons.
    spatial_prompts, resample
        Labels drawn by the user, a path from the folder of inputs, and whether they may be brought
        onto the case's grid.
    series, select
        Which series of a DICOM folder, and which of its images (``KEY=VALUE``; in CSV separated by
        semicolons).
    format
        Ending of the result where `output` names none, such as ``"rtstruct.dcm"`` or ``"glb"``, or
        ``"same"`` for that of the case.
    crop, output_spacing, mesh_reduction
        As for `medals-rt run`; the spacing is one length or three, in CSV separated by semicolons.
    split, probabilities, instances, sr
        Whether the case gets these, as for `medals-rt batch`.
    """

    input: Words
    output: Words | None = None
    prompts: Words | None = None
    sentences: Several | None = None
    kind: Kind | None = None
    lesions: Several | None = None
    groups: Several | None = None
    window: Words | None = None
    preset: PresetName | None = None
    refinement: Refinement | None = None
    postprocess: Postprocess | None = None
    seed: Annotated[int, msgspec.Meta(ge=0)] | None = None
    stages: Stages | None = None
    start_from: StartFrom | None = None
    iterations: int | None = None
    repetitions: int | None = None
    block_sizes: tuple[int, ...] | None = None
    lesion_iterations: int | None = None
    threshold: float | None = None
    overlap: float | None = None
    mirrored: bool | None = None
    spatial_prompts: Words | None = None
    resample: bool | None = None
    series: Words | None = None
    select: Several | None = None
    format: Words | None = None
    crop: float | None = None
    output_spacing: tuple[float, ...] | None = None
    mesh_reduction: Annotated[float, msgspec.Meta(ge=0, le=MAX_MESH_REDUCTION)] | None = None
    split: bool | None = None
    probabilities: bool | None = None
    instances: bool | None = None
    sr: bool | None = None


def read_jobs(path: Path) -> tuple[JobRow, ...]:
    """Read a jobs file, `.json` or `.csv`.

    Raises
    ------
    MissingFileError
        There is no such file.
    InputError
        It isn't of this form; the message names the row.
    """
    readers = {".json": _json_rows, ".csv": _csv_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path.name} is of an unknown format; write the jobs as .json or .csv", code=_FORM
        )
    text = read_text(path, "jobs file", most_bytes=_MAX_FILE_BYTES, form=_FORM)
    rows = tuple(_checked(content, place, path) for place, content in reader(text, path))
    if not rows:
        raise InputError(f"{path} holds no job; write one row a case", code="jobs-file-empty")
    return rows


def source_of(row: JobRow, folder: Path, source: PromptSource) -> PromptSource:
    """Return where a row's prompts come from: what it leaves out is as in `source`."""
    if row.prompts is not None:
        source = replace(source, file=folder / row.prompts, sentences=())
    elif row.sentences is not None:
        source = replace(source, file=None, sentences=row.sentences)
    if row.kind is not None:
        source = replace(source, kind=row.kind)
    lesions = source.lesions if row.lesions is None else row.lesions
    groups = source.groups if row.groups is None else row.groups
    return replace(source, lesions=lesions, groups=groups)


def check_prompts(row: JobRow, source: PromptSource, reading: PromptReading, place: str) -> None:
    """Refuse prompts of a row that name no class, before any case is run.

    Raises
    ------
    InputError
        The message names the row.
    """
    if row.prompts is None and row.sentences is None and row.lesions is None:
        return
    with in_row(place):
        replace(source, groups=(), everything=False).read(reading)  # of each case's modality


def _json_rows(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    try:
        decoded = decode_json(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} isn't JSON ({error}); write a list of jobs", code=_FORM
        ) from error
    if not isinstance(decoded, list):
        raise InputError(
            f"{path} holds a {type(decoded).__name__}; write a list of jobs, such as "
            '[{"input": "a.nii.gz", "sentences": ["Liver in abdominal CT"]}]',
            code=_FORM,
        )
    for number, content in enumerate(decoded, start=1):
        yield f"{path.name}, job {number}", content


def _csv_rows(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(
        io.StringIO(text, newline=""),
        restkey="more cells than headings",
        delimiter=_separator_of_cells(text),
    )
    try:
        _check_headings([name.strip() for name in reader.fieldnames or ()], path)
        for content in reader:
            filled: dict[str, Any] = {
                (key or "").strip(): value.strip() if isinstance(value, str) else value
                for key, value in content.items()
            }
            filled = {key: value for key, value in filled.items() if value}
            if not filled:
                continue
            for name in set(_SEVERAL) & set(filled):
                parts = re.split(_SEVERAL[name], filled[name])
                filled[name] = [part.strip() for part in parts if part.strip()]
            yield f"{path.name}, line {reader.line_num}", filled
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num}: {error}; save it as CSV", code=_FORM
        ) from error


def _separator_of_cells(text: str) -> str:
    """Return what a table's headings are separated by: spreadsheets of some languages write ``;``.

    Cells of several values are in quotes there.
    """
    headings = text.partition("\n")[0]
    return ";" if ";" in headings and "," not in headings else ","


def _check_headings(headings: Sequence[str], path: Path) -> None:
    """Refuse columns that mean nothing, or the same as another; those without a name are cells."""
    unknown = [name for name in headings if name and name not in _MEMBERS]
    if unknown:
        raise InputError(
            f"{path.name} has a column {unknown[0][:60]!r}, which is none; columns are "
            f"{', '.join(_MEMBERS)}",
            code="column-unknown",
        )
    twice = [name for name in headings if name and headings.count(name) > 1]
    if twice:
        raise InputError(
            f"{path.name} has two columns {twice[0]!r}; leave out one of them",
            code="column-twice",
        )


def _checked(content: Any, place: str, path: Path) -> JobRow:
    """Convert a row to its types; numbers in cells of CSV are read from text."""
    try:
        row = msgspec.convert(content, JobRow, strict=path.suffix.lower() == ".json")
    except msgspec.ValidationError as error:
        known = not isinstance(content, dict) or content.keys() <= set(_MEMBERS)
        more = "" if known else f"; members are {', '.join(_MEMBERS)}"
        raise InputError(f"{place}: {validation_words(error)}{more}", code="job-invalid") from error
    with in_row(place):
        if row.prompts is not None and row.sentences is not None:
            raise InputError(
                "there are prompts and sentences; leave out one of them", code="prompts-twice"
            )
        if row.prompts is not None and row.kind is not None:
            raise InputError(
                "the file of prompts says of each what kind it is; leave out kind",
                code="kind-without-sentences",
            )
        if row.window is not None and row.window != AUTO:
            parse_window(row.window)
        if row.format is not None:
            ending_of(row.format)
        SegmentOptions(**stated(row, SegmentOptions))
        grid_of_row(row, GridRequest())
    return row


@contextmanager
def in_row(place: str) -> Iterator[None]:
    """Name the row in errors about it.

    Raises
    ------
    InputError
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}", code=error.code) from error


def stated(row: JobRow, options: type) -> dict[str, Any]:
    """Return what a row says of the fields of a dataclass, by their names."""
    names = [each.name for each in fields(options) if each.name in _MEMBERS]
    found = {name: getattr(row, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def grid_of_row(row: JobRow, grid: GridRequest) -> GridRequest:
    """Return the grid of a row's results: what it leaves out is as in `grid`.

    Raises
    ------
    InputError
        A length is out of range.
    """
    if row.crop is not None:
        grid = replace(grid, crop_mm=row.crop)
    if row.output_spacing is not None:
        text = ",".join(f"{each:g}" for each in row.output_spacing)
        grid = replace(grid, spacing_hwd_mm=three_lengths(row.output_spacing, text))
    return grid


_MEMBERS: Final = JobRow.__struct_fields__
