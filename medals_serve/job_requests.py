"""What clients may ask of a job, written as a job of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, get_type_hints

import msgspec

from medals_rt.common.atomic_io import write_json
from medals_rt.common.errors import InputError
from medals_rt.io.registry import FORMATS
from medals_rt.pipeline.job_request import Job
from medals_rt.pipeline.options import PromptSource, RunOptions, SegmentOptions
from medals_rt.prompts.prompt_set import PromptReading
from medals_serve.images import ServedImage, ServedMask


@dataclass(frozen=True)
class OutputKind:
    """A file that results can be had as: its ending and the format's name in the registry."""

    ending: str
    format: str


def output_kinds() -> Mapping[str, OutputKind]:
    """Every format of results by what clients call it: an ending without its dot, or its name."""
    found: dict[str, OutputKind] = {}
    for each in FORMATS:
        if each.write is None:
            continue
        found[each.name] = OutputKind(each.endings[0], each.name)
        for ending in each.endings:
            if ending not in {".hdr", ".hdr.gz", ".mhd", ".nhdr"}:  # of two files
                found.setdefault(ending.removeprefix("."), OutputKind(ending, each.name))
    return found


OUTPUT_KINDS: Final = output_kinds()

OUTPUT_FORMATS: Final = tuple(
    each.endings[0].removeprefix(".") for each in FORMATS if each.write is not None
)
"""One of `OUTPUT_KINDS` for each format."""


def option_defaults(options: RunOptions) -> dict[str, Any]:
    """Options that a job may set, with their defaults: the fields that decide about results."""
    defaults: dict[str, Any] = options.deciding()["segment"]
    free = options.reading.free_text
    more = {"kind": "anatomy", "lesion": [], "free_text": free, "probabilities": False}
    return {**defaults, **more}


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
    types = get_type_hints(SegmentOptions, localns={"MaskSource": Any})
    values = {}
    for name, value in asked.items():
        try:
            values[name] = msgspec.convert(value, types[name])
        except msgspec.ValidationError as error:
            raise InputError(
                f"option {name} can't be {value!r:.60}: {error}", code="option-invalid"
            ) from error
    return replace(base, **values)


@dataclass(frozen=True)
class JobRequest:
    """What a client asks of a job; see `schemas.JobBody`."""

    prompts: list[str] | str | dict[str, str] | None
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
        options = dict(self.options)
        kind, lesions = options.pop("kind", "anatomy"), options.pop("lesion", ())
        free = options.pop("free_text", base.reading.free_text)
        maps = options.pop("probabilities", False)
        if isinstance(lesions, str):
            lesions = (lesions,)
        if not (
            isinstance(kind, str)
            and isinstance(lesions, list | tuple)
            and all(isinstance(each, str) for each in lesions)
            and isinstance(free, bool)
            and isinstance(maps, bool)
        ):
            raise InputError(
                "kind is a text, lesion a list of texts, free_text and probabilities true or false",
                code="option-invalid",
            )
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
            source=PromptSource(file, sentences, kind, tuple(lesions)),
            spatial_prompts=None if mask is None else mask.upload.path,
            probabilities=folder / "maps" if maps else None,
            series=image.series,
            select=image.select,
            options=replace(
                base,
                segment=segment_options(options, base.segment),
                reading=PromptReading(self.modality or base.reading.modality, free),
            ),
        )
