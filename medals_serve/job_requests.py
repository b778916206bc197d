"""What clients may ask of a job, written as a job of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from medals_rt.common.atomic_io import write_json
from medals_rt.common.choices import Kind
from medals_rt.common.errors import InputError
from medals_rt.common.json_text import validation_words
from medals_rt.io.registry import FORMATS, TWO_FILE_ENDINGS
from medals_rt.pipeline.job_request import Job
from medals_rt.pipeline.options import PromptSource, RunOptions, SegmentOptions
from medals_rt.prompts.prompt_set import PromptReading
from medals_serve.images import ServedImage, ServedMask


@dataclass(frozen=True)
class OutputKind:
    """A file that results can be had as: its ending and the format's name in the registry."""

    ending: str
    format: str


def _output_kinds() -> Mapping[str, OutputKind]:
    """Every format of results by what clients call it: an ending without its dot, or its name."""
    found: dict[str, OutputKind] = {}
    for each in FORMATS:
        if each.write is None:
            continue
        found[each.name] = OutputKind(each.endings[0], each.name)
        for ending in each.endings:
            if ending not in TWO_FILE_ENDINGS:
                found.setdefault(ending.removeprefix("."), OutputKind(ending, each.name))
    return found


OUTPUT_KINDS: Final = _output_kinds()

OUTPUT_FORMATS: Final = tuple(
    each.endings[0].removeprefix(".") for each in FORMATS if each.write is not None
)
"""One of `OUTPUT_KINDS` for each format."""


def format_choices() -> list[dict[str, Any]]:
    """Describe each of `OUTPUT_FORMATS`; see `schemas.FormatState`."""
    writable = [each for each in FORMATS if each.write is not None]
    return [
        {"name": name, "title": each.choice, "one_class": each.one_class}
        for name, each in zip(OUTPUT_FORMATS, writable, strict=True)
    ]


class _CaseOptions(msgspec.Struct, frozen=True):
    """Options of a job that are no `SegmentOptions`.

    Attributes
    ----------
    kind
        What the prompts ask for.
    lesions
        Sentences of lesions that are found beside what the prompts ask for.
    free_text
        As for `PromptReading`; None: as the service was started.
    probabilities
        Whether each class's probability map is kept.
    """

    kind: Kind = "anatomy"
    lesions: tuple[str, ...] = ()
    free_text: bool | None = None
    probabilities: bool = False


_CASE_OPTIONS: Final = _CaseOptions.__struct_fields__


def option_defaults(options: RunOptions) -> dict[str, Any]:
    """Options that a job may set, with their defaults: the fields that decide about results."""
    defaults: dict[str, Any] = options.deciding()["segment"]
    of_case = _CaseOptions(free_text=options.reading.free_text)
    return {**defaults, **msgspec.to_builtins(of_case)}


def segment_options(asked: Mapping[str, Any], base: SegmentOptions) -> SegmentOptions:
    """Set options of a job on those of the server.

    Raises
    ------
    InputError
        One is unknown or can't have that value.
    """
    known = {each.name for each in fields(SegmentOptions) if each.metadata.get("decides", True)}
    if unknown := sorted(asked.keys() - known):
        raise InputError(
            f"there is no option {', '.join(map(repr, unknown))}; there are "
            f"{', '.join(option_defaults(RunOptions()))}",
            code="option-unknown",
        )
    try:
        return replace(base, **asked)
    except TypeError as error:
        raise InputError(str(error), code="option-invalid") from error


def _case_options(asked: Mapping[str, Any]) -> _CaseOptions:
    """Read the options that are no `SegmentOptions`.

    Raises
    ------
    InputError
        One can't have that value.
    """
    given = {name: asked[name] for name in _CASE_OPTIONS if name in asked}
    try:
        return msgspec.convert(given, _CaseOptions)
    except msgspec.ValidationError as error:
        raise InputError(
            f"an option can't be so: {validation_words(error)}", code="option-invalid"
        ) from error


@dataclass(frozen=True)
class JobRequest:
    """What a client asks of a job; see `schemas.JobBody`."""

    prompts: list[str] | str | dict[str, str | dict[str, str]] | None
    modality: str | None
    options: Mapping[str, Any]

    def job(
        self, folder: Path, image: ServedImage, mask: ServedMask | None, base: RunOptions
    ) -> Job:
        """Write the request as a job of the command line; a mapping becomes a prompts file.

        Raises
        ------
        InputError
            An option is unknown or can't have that value.
        """
        of_case = _case_options(self.options)
        of_run = {name: value for name, value in self.options.items() if name not in _CASE_OPTIONS}
        free = base.reading.free_text if of_case.free_text is None else of_case.free_text
        file: Path | None = None
        sentences: tuple[str, ...] = ()
        if isinstance(self.prompts, dict):
            file = folder / "prompts.json"
            write_json(file, self.prompts)
        elif self.prompts is not None:
            asked = self.prompts
            sentences = (asked,) if isinstance(asked, str) else tuple(asked)
        return Job(
            input=image.upload.path,
            output=folder / "labels.npz",
            source=PromptSource(file, sentences, of_case.kind, of_case.lesions),
            spatial_prompts=None if mask is None else mask.upload.path,
            probabilities=folder / "maps" if of_case.probabilities else None,
            series=image.series,
            select=image.select,
            options=replace(
                base,
                segment=segment_options(of_run, base.segment),
                reading=PromptReading(self.modality or base.reading.modality, free),
            ),
        )
