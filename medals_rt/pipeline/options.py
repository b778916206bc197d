"""What a run is asked for, the same whether it treats one case or ten thousand."""

from __future__ import annotations

import json
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias, get_type_hints

from msgspec import Meta

from medals_rt.common.arguments import check_class, take_declared, take_paths
from medals_rt.common.choices import (
    ConvolutionChoice,
    Kind,
    Postprocess,
    PrecisionChoice,
    PresetName,
    Refinement,
    RunnerChoice,
    Stages,
    StartFrom,
)
from medals_rt.common.errors import PromptError
from medals_rt.common.limits import CLASSES_PER_CHUNK, MAX_VOXELS
from medals_rt.common.notes import Note
from medals_rt.planning.policy import Preset, load_policy
from medals_rt.prompts.prompt_set import (
    PLAIN_READING,
    PromptReading,
    PromptSet,
    class_prompts,
    numbered,
    read_prompts,
    with_lesions,
)

if TYPE_CHECKING:
    from medals_rt.inference.refinement import MaskSource

_CHANGES_NO_RESULT: Final = {"decides": False}
_SAME_IN_PLANS: Final = {"in_plans": False}
"""Changes a result, but neither its time nor its memory."""
_OF_PRESET: Final = {"of_preset": True}
"""Replaces a value of the preset: `Preset.changed` takes it."""
_LARGEST_BLOCK: Final = 256
"""Voxels; wider than the windows of the released model, where a mask is one block."""
_LONGEST_S: Final = 1e9

_Count: TypeAlias = Annotated[int, Meta(ge=1, le=100)]
_BlockSizes: TypeAlias = Annotated[
    tuple[Annotated[int, Meta(ge=1, le=_LARGEST_BLOCK)], ...], Meta(min_length=1)
]


@dataclass(frozen=True)
class SegmentOptions:
    """How a case is segmented: what `Segmenter.segment` takes beside the image and the prompts.

    Attributes
    ----------
    preset
        Which constants and class lists apply: those of the ``"paper"``, of the authors' released
        code (``"release"``), or of their script for raw scans (``"native"``).
    refinement
        ``"masked"``: Algorithm 2. ``"unmasked"``: the network sees whole prompts. ``"none"``: every
        stage works from the text alone.
    window
        Intensity window: ``"auto"`` (the one that the classes want; a CT whose classes want several
        is run once for each and merged), the name of a window of Hounsfield units, or
        ``"WIDTH,LEVEL"``.
    postprocess
        Which anatomy classes Algorithm 3 treats: ``"auto"``: those of the preset's rule. ``"all"``:
        every one. ``"off"``: none.
    seed
        Of the block masks; the same seed, case, bundle and runner give the same bytes.
    stages
        ``"coarse"`` or ``"fine"`` alone on the whole image, or ``"both"`` (paper 2.6). This and
        what follows, up to `mirrored`, is as the preset has it where it is None.
    start_from
        What masked refinement starts from: the ``"coarse"`` labels, or a pass of its own from the
        ``"text"`` alone (Algorithm 2, lines 3 to 6).
    iterations, repetitions, block_sizes
        Algorithm 2: T, R, and the block edges in voxels of which each masked pair draws one.
    lesion_iterations
        Masked pairs that lesions get afterwards.
    threshold
        The least probability of a class that is no background, between 0 and 1.
    overlap
        Share of a window that it has in common with the next, 0 to 0.9.
    mirrored
        Test-time augmentation: each pass is the mean over the image mirrored along all axes, eight
        times the work.
    time_budget
        Seconds a class that the case may take; None for no limit. What is left out to keep it is in
        the report (`budget`).
    max_memory
        Bytes that the process (on a GPU: the arrays there) may hold; None for 80 % of what is free.
        It changes how the work is cut, not the result.
    keep_probability
        Also return the largest probability of each voxel.
    probabilities
        Also return the probability of each class at each voxel: a byte a class and voxel of the
        last stage's grid, which the memory estimate includes.
    classes_per_chunk
        How many classes are classified at once at most; changes memory, not the result.
    masks
        Another source of block masks, for tests and comparisons; None draws them from `seed`.

    Raises
    ------
    TypeError
        A value is of another type.
    InputError
        An unknown choice (code ``NAME-unknown``), or a number that is out of range
        (``NAME-out-of-range``).
    """

    preset: PresetName = "paper"
    refinement: Refinement = "masked"
    window: str = "auto"
    postprocess: Postprocess = field(default="auto", metadata=_SAME_IN_PLANS)
    seed: Annotated[int, Meta(ge=0)] = field(default=0, metadata=_SAME_IN_PLANS)
    stages: Stages | None = field(default=None, metadata=_OF_PRESET)
    start_from: StartFrom | None = field(default=None, metadata=_OF_PRESET)
    iterations: _Count | None = field(default=None, metadata=_OF_PRESET)
    repetitions: _Count | None = field(default=None, metadata=_OF_PRESET)
    block_sizes: _BlockSizes | None = field(default=None, metadata=_OF_PRESET | _SAME_IN_PLANS)
    lesion_iterations: Annotated[int, Meta(ge=0, le=100)] | None = field(
        default=None, metadata=_OF_PRESET
    )
    threshold: Annotated[float, Meta(ge=0.01, le=0.99)] | None = field(
        default=None, metadata=_OF_PRESET | _SAME_IN_PLANS
    )
    overlap: Annotated[float, Meta(ge=0, le=0.9)] | None = field(default=None, metadata=_OF_PRESET)
    mirrored: bool | None = field(default=None, metadata=_OF_PRESET)
    time_budget: Annotated[float, Meta(gt=0, le=_LONGEST_S)] | None = None
    max_memory: Annotated[int, Meta(gt=0)] | None = field(default=None, metadata=_CHANGES_NO_RESULT)
    keep_probability: bool = field(default=False, metadata=_CHANGES_NO_RESULT)
    probabilities: bool = field(default=False, metadata=_CHANGES_NO_RESULT)
    classes_per_chunk: Annotated[int, Meta(ge=1)] = field(
        default=CLASSES_PER_CHUNK, metadata=_CHANGES_NO_RESULT
    )
    masks: MaskSource | None = field(
        default=None, repr=False, compare=False, metadata=_CHANGES_NO_RESULT
    )

    def __post_init__(self) -> None:
        if not isinstance(self.window, str):
            raise TypeError(
                f"window must be 'auto', a window's name or 'WIDTH,LEVEL', found {self.window!r}"
            )
        take_declared(self, _declared(SegmentOptions))

    @property
    def algorithm(self) -> Preset:
        """The preset with what these options change of it."""
        return (
            load_policy()
            .preset(self.preset)
            .changed(**{name: getattr(self, name) for name in _marked("of_preset", True)})
        )


@cache
def _declared(options: type) -> dict[str, Any]:
    """Return the type of each option, with its bounds."""
    return get_type_hints(options, localns={"MaskSource": Any}, include_extras=True)


def idle_options(
    segment: SegmentOptions, kinds: Collection[str], *, refined: bool = True
) -> tuple[Note, ...]:
    """Note options that were set and change nothing for these kinds of classes.

    `refined` says whether a stage was, as far as that is known.
    """
    rules = (
        (
            segment.refinement != "masked",
            ("seed", "block_sizes", "repetitions"),
            f"refinement {segment.refinement} draws no masks",
        ),
        (
            segment.refinement == "none",
            ("iterations", "start_from", "lesion_iterations"),
            "refinement none works from the text alone",
        ),
        (
            segment.refinement != "none" and "lesion" not in kinds,
            ("lesion_iterations",),
            "no lesion is asked for",
        ),
        (
            "anatomy" not in kinds,
            ("postprocess",),
            "it is about organs, and none is asked for",
        ),
        (
            segment.refinement != "none" and not refined,
            ("start_from", "iterations", "repetitions", "block_sizes", "lesion_iterations"),
            "no stage was refined",
        ),
    )
    return tuple(
        note
        for applies, names, why in rules
        if applies
        for note in without_effect(_changed(segment, names), why)
    )


def idle_in_plans(options: RunOptions, kinds: Collection[str]) -> tuple[Note, ...]:
    """Note options that were set and change nothing that a plan for these kinds shows."""
    segment, plain = options.segment, SegmentOptions()
    same_in_plans = _marked("in_plans", False)
    found = _changed(segment, same_in_plans)
    others = replace(segment, **{name: getattr(plain, name) for name in same_in_plans})
    if options.threads is not None:
        found.append("threads")
    same = without_effect(found, "a plan is the same with any value")
    return (*same, *idle_options(others, kinds))


def without_effect(names: Sequence[str], why: str) -> tuple[Note, ...]:
    """Note that these options, by their names in Python, were set and change nothing."""
    if not names:
        return ()
    flags = " and ".join(f"--{name.replace('_', '-')}" for name in names)
    text = f"{flags} change{'' if len(names) > 1 else 's'} nothing here: {why}"
    return (Note("option-without-effect", text),)


def _marked(key: str, value: bool) -> list[str]:
    """Return the names of the options that are declared so."""
    return [each.name for each in fields(SegmentOptions) if each.metadata.get(key) is value]


def _changed(segment: SegmentOptions, names: Sequence[str]) -> list[str]:
    plain = SegmentOptions()
    return [name for name in names if getattr(segment, name) != getattr(plain, name)]


@dataclass(frozen=True)
class PromptSource:
    """Where a case's prompts come from.

    A prompts.json, or sentences of a kind ("anatomy" or "lesion") numbered in order; with neither,
    the prompts inside the case. `lesions` are sentences of lesions to be found beside the anatomy
    of a file or of the sentences, with the labels that follow theirs; alone they are all there is.
    `groups` are names of groups of classes, and `everything` asks for all classes of the kind; both
    follow what is asked for one by one, see `prompt_set.class_prompts`.
    """

    file: Path | None = None
    sentences: tuple[str, ...] = ()
    kind: Kind = "anatomy"
    lesions: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    everything: bool = False

    def __post_init__(self) -> None:
        several = dict.fromkeys(("sentences", "lesions", "groups"), tuple[str, ...])
        take_declared(self, several | {"kind": Kind})
        take_paths(self, "file")

    @property
    def is_empty(self) -> bool:
        """Whether nothing is asked for but what the case holds."""
        return not (self.file or self.sentences or self.lesions or self.asks_for_groups)

    @property
    def asks_for_groups(self) -> bool:
        """Whether the classes depend on the modality and on the model."""
        return bool(self.groups) or self.everything

    def read(
        self, reading: PromptReading, covered: Container[str] | None = None
    ) -> PromptSet | None:
        """Read the prompts; None where they are inside the case.

        Parameters
        ----------
        reading
            How sentences are read; its modality is that of groups where no sentence names one.
        covered
            Bank keys of the classes that the model has: others are left out of groups, with a note.

        Raises
        ------
        PromptError
            There are both a file and sentences, one of them names no class, or the modality of
            groups isn't known (`modality-missing`).
        InputError
            A group is unknown, or has no class of the modality.
        """
        prompts = self._stated(reading)
        if self.groups:
            prompts = self._with_classes(prompts, self.groups, reading, covered)
        if self.everything:
            prompts = self._with_classes(prompts, None, reading, covered)
        if prompts is not None:
            return with_lesions(prompts, self.lesions, reading)
        return numbered(self.lesions, "lesion", reading) if self.lesions else None

    def _stated(self, reading: PromptReading) -> PromptSet | None:
        """Read the prompts that are given one by one."""
        if self.file is not None and self.sentences:
            raise PromptError(
                "prompts come from a file or are sentences, not both; leave out one of them",
                code="prompts-twice",
            )
        if self.file is not None:
            return read_prompts(self.file, reading)
        return numbered(self.sentences, self.kind, reading) if self.sentences else None

    def _with_classes(
        self,
        beside: PromptSet | None,
        groups: tuple[str, ...] | None,
        reading: PromptReading,
        covered: Container[str] | None,
    ) -> PromptSet:
        modality = reading.modality if beside is None else beside.modality
        if modality is None:
            raise PromptError(
                "the modality of the image isn't known, so neither are its classes: name it by "
                "--modality, such as --modality CT",
                code="modality-missing",
            )
        return class_prompts(modality, groups, kind=self.kind, covered=covered, beside=beside)


@dataclass(frozen=True)
class RunOptions:
    """Which model segments cases, and how they are read and segmented.

    A folder of results that was made with other options is made again; a field that can't change a
    result says so in its metadata.

    Attributes
    ----------
    bundle
        The model's folder; None is as `bundle.resolve_bundle` has it. (Results depend on its hash,
        which is compared beside the options.)
    runner, precision, threads, convolution
        As for `Segmenter.open`; more threads than there are cores become as many. Threads split
        sums, which may change their last bits; they are in every report, but don't make results
        again: workers of a batch on unlike machines have unlike numbers of them anyway.
    segment
        As for `Segmenter.segment`.
    reading
        How sentences are read.
    max_voxels
        Larger images are refused before memory is taken for them.
    """

    bundle: Path | None = field(default=None, metadata=_CHANGES_NO_RESULT)
    runner: RunnerChoice = "auto"
    precision: PrecisionChoice | None = None
    threads: Annotated[int, Meta(ge=1)] | None = field(default=None, metadata=_CHANGES_NO_RESULT)
    convolution: ConvolutionChoice = "auto"
    segment: SegmentOptions = field(default_factory=SegmentOptions)
    reading: PromptReading = PLAIN_READING
    max_voxels: Annotated[int, Meta(ge=1)] = field(default=MAX_VOXELS, metadata=_CHANGES_NO_RESULT)

    def __post_init__(self) -> None:
        take_paths(self, "bundle")
        check_class("segment", self.segment, SegmentOptions, "write SegmentOptions(seed=7)")
        check_class("reading", self.reading, PromptReading, 'write PromptReading(modality="CT")')
        of_machine = ("runner", "precision", "threads", "convolution", "max_voxels")
        take_declared(self, {name: _declared(RunOptions)[name] for name in of_machine})
        if self.precision == "auto":  # as None, also where results are compared by their options
            object.__setattr__(self, "precision", None)

    def deciding(self) -> Mapping[str, Any]:
        """Return the options that can change a result, by name, as JSON has them."""
        content: Mapping[str, Any] = json.loads(json.dumps(_deciding(self), default=str))
        return content


def _deciding(options: Any) -> dict[str, Any]:
    found = {}
    for each in fields(options):
        if each.metadata.get("decides", True):
            value = getattr(options, each.name)
            found[each.name] = _deciding(value) if is_dataclass(value) else value
    return found
