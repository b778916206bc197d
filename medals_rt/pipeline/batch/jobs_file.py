"""The jobs file: one case a row, typed, JSON or CSV.

JSON is a list of objects, CSV has a line of headings; both have the members of `JobRow`. An error
names the row.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from medals_rt.common.errors import InputError, MissingFileError
from medals_rt.preprocessing.intensity import AUTO, parse_window
from medals_rt.prompts.prompt_set import PromptReading, numbered, read_prompts

_MAX_FILE_BYTES: Final = 64 * 2**20
_SEPARATOR: Final = ";"

Words = Annotated[str, msgspec.Meta(min_length=1)]


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
    window, preset, refinement, seed
        As for `medals-rt run`.
    spatial_prompts
        Labels drawn by the user, a path from the folder of inputs.
    series
        Which series of a DICOM folder.
    """

    input: Words
    output: Words | None = None
    prompts: Words | None = None
    sentences: Annotated[tuple[Words, ...], msgspec.Meta(min_length=1)] | None = None
    kind: Literal["anatomy", "lesion"] | None = None
    window: Words | None = None
    preset: Literal["paper", "release"] | None = None
    refinement: Literal["masked", "unmasked", "none"] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0)] | None = None
    spatial_prompts: Words | None = None
    series: Words | None = None


def read_jobs(path: Path) -> tuple[JobRow, ...]:
    """Read a jobs file, `.json` or `.csv`.

    Raises
    ------
    MissingFileError : there is no such file
    InputError : it isn't of this form; the message names the row
    """
    if not path.is_file():
        raise MissingFileError(f"there is no jobs file {path}; check the path")
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise InputError(f"{path} is larger than {_MAX_FILE_BYTES} bytes; is it a jobs file?")
    readers = {".json": _json_rows, ".csv": _csv_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path.name} is of an unknown format; write the jobs as .json or .csv")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} isn't UTF-8 text ({error}); save it as UTF-8") from error
    rows = tuple(_checked(content, place, path) for place, content in reader(text, path))
    if not rows:
        raise InputError(f"{path} holds no job; write one row a case")
    return rows


def check_prompts(row: JobRow, folder: Path, kind: str, reading: PromptReading, place: str) -> None:
    """Refuse prompts of a row that name no class, before any case is run.

    Raises
    ------
    InputError : the message names the row
    """
    try:
        if row.prompts is not None:
            read_prompts(folder / row.prompts, reading)
        elif row.sentences is not None:
            numbered(row.sentences, kind, reading)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def _json_rows(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    try:
        decoded = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} isn't JSON ({error}); write a list of jobs") from error
    if not isinstance(decoded, list):
        raise InputError(
            f"{path} holds a {type(decoded).__name__}; write a list of jobs, such as "
            '[{"input": "a.nii.gz", "sentences": ["Liver in abdominal CT"]}]'
        )
    for number, content in enumerate(decoded, start=1):
        yield f"{path.name}, job {number}", content


def _csv_rows(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="more cells than headings")
    try:
        for content in reader:
            filled: dict[str, Any] = {
                (key or "").strip(): value.strip() if isinstance(value, str) else value
                for key, value in content.items()
            }
            filled = {key: value for key, value in filled.items() if value}
            if not filled:
                continue
            if "sentences" in filled:
                parts = filled["sentences"].split(_SEPARATOR)
                filled["sentences"] = [part.strip() for part in parts if part.strip()]
            yield f"{path.name}, line {reader.line_num}", filled
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}; save it as CSV") from error


def _checked(content: Any, place: str, path: Path) -> JobRow:
    """Give a row its types; cells of CSV are text, so that numbers are read from text there."""
    try:
        row = msgspec.convert(content, JobRow, strict=path.suffix.lower() == ".json")
    except msgspec.ValidationError as error:
        raise InputError(f"{place}: {error}; members are {', '.join(_MEMBERS)}") from error
    if row.prompts is not None and row.sentences is not None:
        raise InputError(f"{place}: give either prompts or sentences, not both")
    if row.window is not None and row.window != AUTO:
        try:
            parse_window(row.window)
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
    return row


_MEMBERS: Final = JobRow.__struct_fields__
