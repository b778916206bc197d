"""The rules that name classes, read from ``policy.toml``, and the presets.

This is the only module that knows that classes are treated differently. The rest of the package
gets `CaseRules`: the numbers and yes-or-no answers that follow for the classes of one case.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal, Protocol

import msgspec

from medals_rt.common.choices import Postprocess, PresetName, StageName, Stages, StartFrom
from medals_rt.common.errors import InputError


class NamedClass(Protocol):
    """What looking up a class needs to know of it; `classes.ClassKey` has it."""

    @property
    def policy_name(self) -> str:
        """The class as ``policy.toml`` writes it: modality, underscore, name."""

    @property
    def kind(self) -> str:
        """``"anatomy"`` or ``"lesion"``."""

    @property
    def is_free_text(self) -> bool:
        """Whether it is a sentence instead of a known class."""


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of everything read from the file: a misspelled key is an error."""


class HounsfieldWindow(_Table, frozen=True):
    """A CT intensity window: `width_hu` around `level_hu` (paper 3.2)."""

    width_hu: float
    level_hu: float


class IntensityWindows(_Table, frozen=True):
    """Windows by name, and the classes that want another than the default."""

    default: str
    windows: dict[str, HounsfieldWindow]
    classes: dict[str, frozenset[str]]


class StageValues(_Table, frozen=True):
    """One number for each stage."""

    coarse: float
    fine: float


class DivisorException(_Table, frozen=True):
    """Classes with their own spacing divisor (rule 4)."""

    divisor: StageValues
    classes: frozenset[str]


class FactorException(_Table, frozen=True):
    """Classes with their own factor (rules 5 and 7)."""

    factor: float
    classes: frozenset[str]
    not_for_region_of_interest: bool = False


class MarginException(_Table, frozen=True):
    """Classes with their own margin of the region of interest."""

    margin: float
    classes: frozenset[str]


class SpacingRules(_Table, frozen=True):
    """Lists of the dynamic resampling (rules 2, 4, 5 and 7 of docs/presets.md)."""

    unit_spacing: frozenset[str]
    divisor: StageValues
    divisor_exceptions: tuple[DivisorException, ...]
    large_extent_factor: float
    large_extent_exceptions: tuple[FactorException, ...]
    fine_spacing_factors: tuple[FactorException, ...]


class StageLists(_Table, frozen=True):
    """Classes for which one stage is left out."""

    coarse_only: frozenset[str]
    fine_only: frozenset[str]


class RegionRules(_Table, frozen=True):
    """How far the region of interest reaches beyond the coarse result."""

    margin: float
    margin_exceptions: tuple[MarginException, ...]


class IterationLists(_Table, frozen=True):
    """Classes that get no further lesion iteration."""

    none: frozenset[str]
    none_in_fine_stage: frozenset[str]


class SeveralObjects(_Table, frozen=True):
    """Classes of which one body, or one image, shows several objects, and why."""

    reason: str
    classes: frozenset[str]


class ComponentLists(_Table, frozen=True):
    """The size of specks, and classes named by the component rules.

    Attributes
    ----------
    fewest_voxels
        Components of fewer are noise: of coarse anatomy, and of lesions.
    listed
        The release's list.
    exempt
        The paper's exemptions.
    """

    fewest_voxels: int
    listed: frozenset[str]
    exempt: tuple[SeveralObjects, ...]


class MaskedPass(_Table, frozen=True):
    """Masked pairs of Algorithm 2: `iterations` (T) times, each averaged over `repetitions` (R)."""

    block_sizes: tuple[int, ...]
    repetitions: int
    iterations: int


class ComponentRule(_Table, frozen=True):
    """Algorithm 3: which classes it treats, its size condition, and the images it is meant for.

    Attributes
    ----------
    classes
        ``"all"``, ``"listed"``, all that are ``"not exempt"``, or ``"none"``.
    size_ratio
        The share of the largest component's voxels that the likeliest must exceed; None: none.
    fewer_voxels_than
        Larger images are left alone; None: none are.
    keeps_cut_pieces
        Whether a component at the image's edge, which may be joined to the others outside, stays
        where it is as likely as they are.
    """

    classes: Literal["all", "listed", "not exempt", "none"]
    size_ratio: float | None = None
    fewer_voxels_than: int | None = None
    keeps_cut_pieces: bool = False


class MemoryBound(_Table, frozen=True):
    """Rule 8: a large volume is brought down (paper 2.5; a = 1.9).

    `raised_by` divides the bound of axes coarser than the target; `spares_single` leaves cases of
    one class alone.
    """

    raised_by: float
    spares_single: bool = False


class Resampling(_Table, frozen=True):
    """Which rules of dynamic resampling count (docs/presets.md); none: physical resampling.

    Attributes
    ----------
    repairs_box
        Rule 1 again, on the box that a stage looks at.
    by_class
        Rules 2, 4, 5 and 7: those that depend on the classes.
    submillimeter_is_one
        Rule 3: a spacing under 1 mm counts as 1 mm, but for very long axes.
    longest_axis
        Rule 6, first half: what a longest axis of 1000, 1000 and 700 is measured in; None: there is
        none.
    fits_window
        Rule 6, second half: a small image is enlarged towards the window.
    bends_region
        Whether the region of interest uses the spacing that these rules give.
    memory_bound
        Rule 8; None: there is none.
    """

    repairs_box: bool = False
    by_class: bool = False
    submillimeter_is_one: bool = False
    longest_axis: Literal["millimeters", "target spacings"] | None = None
    fits_window: bool = False
    bends_region: bool = False
    memory_bound: MemoryBound | None = None


class IntensityRules(_Table, frozen=True):
    """How images come to 0 to 255 (paper 3.2).

    Attributes
    ----------
    takes_prepared
        Whether an image that lies in 0 to 255 already is left as it is.
    stretched
        Whether the image's own extremes, within the window, become 0 and 255; else the window's.
    whole_grays
        Whether gray levels are cut to whole numbers.
    percentiles_of
        Which voxels the percentiles are those of.
    windows
        Windows of Hounsfield units by name; none: the policy's.
    """

    takes_prepared: bool = True
    stretched: bool = False
    whole_grays: bool = False
    percentiles_of: Literal["nonzero", "positive"] = "nonzero"
    windows: dict[str, HounsfieldWindow] = {}


ClassLists = Literal["stages", "margins", "further iterations"]


class Preset(_Table, frozen=True):
    """A whole variant of the algorithm, as ``policy.toml`` has it or as options changed it.

    Attributes
    ----------
    repairs_stated_spacing
        Whether a spacing that its file states is repaired like a challenge file's (rule 1).
    class_lists
        Which lists of classes count beside those of resampling.
    prompted, further
        Algorithm 2 where spatial prompts are there, and what lesions get after it.
    combine
        What is averaged over repetitions and mirrored passes. With one of each the two are equal,
        because a binary mask picks one of two values at each voxel.
    lesions
        ``"labels"`` treats lesions as anatomy.
    components
        Algorithm 3.
    resampling, intensities
        How images are brought to the network.
    stages
        Which are run: ``"both"`` are the coarse one and the fine one inside what it found.
    empty_coarse
        Where the coarse stage finds nothing: the fine one sees the whole image, or that is final.
    start_from
        What the masked pairs of the last stage start from: the coarse labels, or a pass of their
        own from the text alone (Algorithm 2 as printed, lines 3 to 6).
    merge
        Whose a voxel is that classes of several intensity windows claim.
    threshold
        The least probability of a class that is no background.
    overlap
        Share of a window that it has in common with the next.
    mirrored
        Test-time augmentation: each pass is the mean over the image mirrored along all axes.
    name
        In the policy.
    """

    repairs_stated_spacing: bool
    class_lists: frozenset[ClassLists]
    prompted: MaskedPass
    further: MaskedPass
    combine: Literal["probability", "logit"]
    lesions: Literal["labels and instances", "binary", "labels"]
    components: ComponentRule
    resampling: Resampling
    intensities: IntensityRules = IntensityRules()
    stages: Stages = "both"
    empty_coarse: Literal["fine on the whole image", "final"] = "fine on the whole image"
    start_from: StartFrom = "coarse"
    merge: Literal["probability", "larger label"] = "probability"
    threshold: float = 0.5
    overlap: float = 0.5
    mirrored: bool = False
    name: str = ""

    def changed(
        self,
        *,
        stages: Stages | None = None,
        start_from: StartFrom | None = None,
        iterations: int | None = None,
        repetitions: int | None = None,
        block_sizes: tuple[int, ...] | None = None,
        lesion_iterations: int | None = None,
        threshold: float | None = None,
        overlap: float | None = None,
        mirrored: bool | None = None,
    ) -> Preset:
        """Return this preset with some values replaced; None keeps one.

        `iterations` (T) are those where spatial prompts are there, `lesion_iterations` those that
        lesions get afterwards; `repetitions` (R) and `block_sizes` are for both.
        """
        pairs = _given(repetitions=repetitions, block_sizes=block_sizes)
        return msgspec.structs.replace(
            self,
            prompted=msgspec.structs.replace(
                self.prompted, **pairs, **_given(iterations=iterations)
            ),
            further=msgspec.structs.replace(
                self.further, **pairs, **_given(iterations=lesion_iterations)
            ),
            **_given(
                stages=stages,
                start_from=start_from,
                threshold=threshold,
                overlap=overlap,
                mirrored=mirrored,
            ),
        )

    def values(self) -> dict[str, object]:
        """Return the values that `changed` may replace, as a report has them."""
        return {
            "stages": self.stages,
            "start_from": self.start_from,
            "iterations": self.prompted.iterations,
            "repetitions": self.prompted.repetitions,
            "block_sizes": list(self.prompted.block_sizes),
            "lesion_iterations": self.further.iterations,
            "lesion_block_sizes": list(self.further.block_sizes),
            "threshold": self.threshold,
            "overlap": self.overlap,
            "mirrored": self.mirrored,
        }


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class CaseRules:
    """What the classes of one case decide; nothing here names a class.

    Attributes
    ----------
    single
        The case asks for exactly one distinct class.
    lesion
        The classes are lesions: instances count, and the masks are iterated further.
    unit_spacing
        The spacing is taken as 1 mm whatever is stored (rule 2).
    spacing_divisor
        Rule 4, by stage name.
    large_extent_factors, roi_large_extent_factors
        Rule 5, falling, for planning a stage and for the region of interest.
    fine_spacing_factor
        Rule 7; 1 for most.
    roi_margin
        How much wider than the coarse foreground the region of interest is.
    skip_coarse, skip_fine
        Which stage is left out, since the class has one or one was asked for; never both.
    further_iterations
        Masked pairs that a lesion gets after the first prediction of a window, by stage name. It is
        the release's ``num_iterations``, which it computes for anatomy too and then doesn't use.
    """

    single: bool
    lesion: bool
    unit_spacing: bool
    spacing_divisor: StageValues
    large_extent_factors: tuple[float, ...]
    roi_large_extent_factors: tuple[float, ...]
    fine_spacing_factor: float
    roi_margin: float
    skip_coarse: bool
    skip_fine: bool
    further_iterations: dict[StageName, int]


class Policy(_Table, frozen=True):
    """The whole of ``policy.toml``."""

    format_version: Literal[1]
    intensity_windows: IntensityWindows
    spacing: SpacingRules
    stages: StageLists
    region_of_interest: RegionRules
    further_iterations: IterationLists
    components: ComponentLists
    presets: dict[PresetName, Preset]

    def preset(self, name: str | Preset) -> Preset:
        """Return the preset called `name`, or one that options changed as it is.

        Raises
        ------
        InputError
            There is no such preset.
        """
        if isinstance(name, Preset):
            return name
        for known, preset in self.presets.items():
            if known == name:
                return msgspec.structs.replace(preset, name=known)
        known_names = ", ".join(sorted(self.presets))
        raise InputError(f"no preset {name!r}: choose one of {known_names}", code="preset-unknown")

    def rules(self, classes: Sequence[NamedClass], preset: str | Preset) -> CaseRules:
        """Resolve every rule for a case that asks for `classes` under a preset.

        Raises
        ------
        InputError
            `classes` is empty or there is no such preset.
        """
        if not classes:
            raise InputError("no class was asked for: give at least one prompt", code="no-class")
        chosen = self.preset(preset)
        names = frozenset(key.policy_name for key in classes)
        iterated = names if "further iterations" in chosen.class_lists else frozenset()
        none = bool(iterated & self.further_iterations.none)
        none_fine = bool(iterated & self.further_iterations.none_in_fine_stage)
        further = chosen.further.iterations
        staged = (
            names if chosen.stages == "both" and "stages" in chosen.class_lists else frozenset()
        )
        skip_fine = chosen.stages == "coarse" or bool(staged & self.stages.coarse_only)
        skip_coarse = chosen.stages == "fine" or bool(staged & self.stages.fine_only)
        return CaseRules(
            single=len(names) == 1,
            lesion=chosen.lesions != "labels" and any(key.kind == "lesion" for key in classes),
            unit_spacing=bool(names & self.spacing.unit_spacing),
            spacing_divisor=self._divisor(names),
            large_extent_factors=self._large_extent(names, roi=False),
            roi_large_extent_factors=self._large_extent(names, roi=True),
            fine_spacing_factor=self._fine_factor(names),
            roi_margin=self._margin(names if "margins" in chosen.class_lists else frozenset()),
            skip_coarse=not skip_fine and skip_coarse,
            skip_fine=skip_fine,
            further_iterations={
                "coarse": 0 if none else further,
                "fine": 0 if none or none_fine else further,
            },
        )

    def hounsfield_windows(self, preset: str | Preset) -> dict[str, HounsfieldWindow]:
        """Return the CT windows of a preset by name."""
        return self.preset(preset).intensities.windows or self.intensity_windows.windows

    def intensity_window(
        self, classes: Iterable[NamedClass], preset: str | Preset = "paper"
    ) -> str:
        """Name the one CT window for a case: the one all `classes` want, else the default.

        The answer is a key of `hounsfield_windows`, whose widths and levels are in HU.
        """
        wanted = {self.window_under(key, preset) for key in classes}
        return wanted.pop() if len(wanted) == 1 else self.intensity_windows.default

    def window_under(self, key: NamedClass, preset: str | Preset) -> str:
        """Name the CT window of the class `key` among those of a preset."""
        wanted = self.window_of(key)
        windows = self.hounsfield_windows(preset)
        return wanted if wanted in windows else self.intensity_windows.default

    def treats_components(
        self, key: NamedClass, preset: str | Preset, choice: Postprocess = "auto"
    ) -> bool:
        """Whether Algorithm 3 treats the class `key`: anatomy only.

        `choice` is ``"auto"`` for the preset's rule, ``"all"`` or ``"off"``. A sentence that names
        no known class may mean several objects: a rule with exemptions leaves it alone.
        """
        if key.kind != "anatomy" or choice == "off":
            return False
        rule = "all" if choice == "all" else self.preset(preset).components.classes
        if rule == "not exempt":
            exempt = any(key.policy_name in each.classes for each in self.components.exempt)
            return not (exempt or key.is_free_text)
        return rule == "all" or (rule == "listed" and key.policy_name in self.components.listed)

    def class_names(self) -> frozenset[str]:
        """Every class that a rule names."""
        lists = (
            *self.intensity_windows.classes.values(),
            self.spacing.unit_spacing,
            *(e.classes for e in self.spacing.divisor_exceptions),
            *(e.classes for e in self.spacing.large_extent_exceptions),
            *(e.classes for e in self.spacing.fine_spacing_factors),
            self.stages.coarse_only,
            self.stages.fine_only,
            *(e.classes for e in self.region_of_interest.margin_exceptions),
            self.further_iterations.none,
            self.further_iterations.none_in_fine_stage,
            self.components.listed,
            *(e.classes for e in self.components.exempt),
        )
        return frozenset().union(*lists)

    def window_of(self, key: NamedClass) -> str:
        """Name the CT window that the class `key` wants, a key of ``intensity_windows.windows``."""
        for window, classes in self.intensity_windows.classes.items():
            if key.policy_name in classes:
                return window
        return self.intensity_windows.default

    def _divisor(self, names: frozenset[str]) -> StageValues:
        for exception in self.spacing.divisor_exceptions:
            if names & exception.classes:
                return exception.divisor
        return self.spacing.divisor

    def _large_extent(self, names: frozenset[str], *, roi: bool) -> tuple[float, ...]:
        factors = {self.spacing.large_extent_factor}
        for exception in self.spacing.large_extent_exceptions:
            if names & exception.classes and not (roi and exception.not_for_region_of_interest):
                factors.add(exception.factor)
        return tuple(sorted(factors, reverse=True))

    def _fine_factor(self, names: frozenset[str]) -> float:
        for exception in self.spacing.fine_spacing_factors:
            if names & exception.classes:
                return exception.factor
        return 1.0

    def _margin(self, names: frozenset[str]) -> float:
        for exception in self.region_of_interest.margin_exceptions:
            if names & exception.classes:
                return exception.margin
        return self.region_of_interest.margin


def parse_policy(text: str | bytes) -> Policy:
    """Read a policy from TOML.

    Raises
    ------
    InputError
        A key is missing, unknown or of the wrong type, or a window that is named is not defined.
    """
    try:
        policy = msgspec.toml.decode(text, type=Policy)
    except msgspec.DecodeError as error:
        raise InputError(f"the policy is not valid: {error}", code="policy-invalid") from error
    windows = policy.intensity_windows
    undefined = {windows.default, *windows.classes} - set(windows.windows)
    for preset in policy.presets.values():
        own = preset.intensities.windows
        undefined |= {windows.default} - set(own or windows.windows)
    if undefined:
        raise InputError(
            f"the policy names undefined intensity windows: {sorted(undefined)}",
            code="policy-invalid",
        )
    return policy


@cache
def load_policy() -> Policy:
    """Read the policy that comes with the package (once)."""
    return parse_policy(resources.files("medals_rt.planning").joinpath("policy.toml").read_bytes())
