"""What a run is asked for, the same whether it treats one case or ten thousand."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from medals_rt.common.choices import Refinement
from medals_rt.common.limits import MAX_VOXELS
from medals_rt.prompts.prompt_set import PLAIN_READING, PromptReading

if TYPE_CHECKING:
    pass

_SEES_NO_RESULT: Final = {"decides": False}


@dataclass(frozen=True)
class PromptSource:
    """Where a case's prompts come from.

    A prompts.json, or sentences of a kind ("anatomy" or "lesion") numbered in order; with neither,
    the prompts inside the case.
    """

    file: Path | None = None
    sentences: tuple[str, ...] = ()
    kind: str = "anatomy"


@dataclass(frozen=True)
class RunOptions:
    """How cases are read, and which model segments them in which way.

    To add an option, add a field here, its flag in `cli.options.run_options`, and hand it on where
    it is used: `read_job`, `open_models` or `segment_job` of `job`. A folder of results that was
    made with other options is made anew; a field that can't change a result says so by
    `metadata=_SEES_NO_RESULT`.

    Attributes
    ----------
    bundle
        The model's folder; None is as `bundle.resolve_bundle` has it. (Results hang on its hash,
        which is looked at beside the options.)
    runner, precision, threads
        As for `Segmenter.open`.
    preset, refinement, seed, window
        As for `Segmenter.segment`.
    reading
        How sentences are read.
    time_budget
        Seconds a class that a case may take; what is left out to keep them stands in the report.
    max_memory
        Bytes that a case may take; it changes how the work is cut, not its result.
    max_voxels
        Larger images are refused before memory is taken for them.
    """

    bundle: Path | None = field(default=None, metadata=_SEES_NO_RESULT)
    runner: str = "auto"
    precision: str | None = None
    threads: int | None = field(default=None, metadata=_SEES_NO_RESULT)
    preset: str = "paper"
    refinement: Refinement = "masked"
    seed: int = 0
    window: str = "auto"
    reading: PromptReading = PLAIN_READING
    time_budget: float | None = None
    max_memory: int | None = field(default=None, metadata=_SEES_NO_RESULT)
    max_voxels: int = field(default=MAX_VOXELS, metadata=_SEES_NO_RESULT)

    def deciding(self) -> Mapping[str, Any]:
        """Give the options that can change a result, by name, as JSON has them."""
        chosen = {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if each.metadata.get("decides", True)
        }
        content: Mapping[str, Any] = json.loads(json.dumps(chosen, default=str))
        return content
