"""The rules that name classes, read from ``policy.toml``, and the two presets.

This is the only module that knows that classes are treated differently. The rest of the package
gets `CaseRules`: the numbers and yes-or-no answers that follow for the classes of one case.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal, Protocol

import msgspec

from medals_rt.common.choices import Postprocess, PresetName
from medals_rt.common.errors import InputError

StageName = Literal["coarse", "fine"]


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
    """Lists of the dynamic resampling (system rules 4.2, 4.4, 4.5, 4.7)."""

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
    """Classes named by the component rules: the release's list, and the paper's exemptions."""

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
        ``"all"``, ``"listed"`` or all that are ``"not exempt"``.
    size_ratio
        The share of the largest component's voxels that the likeliest must exceed; None: none.
    fewer_voxels_than
        Larger images are left alone; None: none are.
    keeps_cut_pieces
        Whether a component at the image's edge, which may be joined to the others outside, stays
        where it is as likely as they are.
    """

    classes: Literal["all", "listed", "not exempt"]
    size_ratio: float | None = None
    fewer_voxels_than: int | None = None
    keeps_cut_pieces: bool = False


class Preset(_Table, frozen=True):
    """A variant of the algorithm, ``"paper"`` or ``"release"``, as ``policy.toml`` has it.

    `repairs_stated_spacing` says whether a spacing that its file states is repaired as that of a
    challenge file is (rule 4.1). `prompted` is the pass of Algorithm 2 where spatial prompts are
    given, `further` what lesions get after it. `combine` says what is averaged over repetitions:
    with one repetition the two are equal, because a binary mask picks one of two values at each
    voxel.
    """

    repairs_stated_spacing: bool
    dynamic_resampling: Literal["paper", "release"]
    prompted: MaskedPass
    further: MaskedPass
    further_iteration_lists_count: bool
    combine: Literal["probability", "logit"]
    lesions: Literal["labels and instances", "binary"]
    components: ComponentRule


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
        The spacing is taken as 1 mm whatever is stored (rule 4.2).
    spacing_divisor
        Rule 4.4, by stage name.
    large_extent_factors, roi_large_extent_factors
        Rule 4.5, falling, for planning a stage and for the region of interest.
    fine_spacing_factor
        Rule 4.7; 1 for most.
    roi_margin
        Section 6, rule 3.
    skip_coarse, skip_fine
        Section 6, rule 1; never both.
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

    def preset(self, name: str) -> Preset:
        """Return the preset called `name`.

        Raises
        ------
        InputError
            There is no such preset.
        """
        for known, preset in self.presets.items():
            if known == name:
                return preset
        known_names = ", ".join(sorted(self.presets))
        raise InputError(f"no preset {name!r}: choose one of {known_names}", code="preset-unknown")

    def rules(self, classes: Sequence[NamedClass], preset: str) -> CaseRules:
        """Resolve every rule for a case that asks for `classes` under the preset called `preset`.

        Raises
        ------
        InputError
            `classes` is empty or there is no such preset.
        """
        if not classes:
            raise InputError("no class was asked for: give at least one prompt", code="no-class")
        chosen = self.preset(preset)
        names = frozenset(key.policy_name for key in classes)
        lists_count = chosen.further_iteration_lists_count
        none = lists_count and bool(names & self.further_iterations.none)
        none_fine = lists_count and bool(names & self.further_iterations.none_in_fine_stage)
        further = chosen.further.iterations
        skip_fine = bool(names & self.stages.coarse_only)
        return CaseRules(
            single=len(names) == 1,
            lesion=any(key.kind == "lesion" for key in classes),
            unit_spacing=bool(names & self.spacing.unit_spacing),
            spacing_divisor=self._divisor(names),
            large_extent_factors=self._large_extent(names, roi=False),
            roi_large_extent_factors=self._large_extent(names, roi=True),
            fine_spacing_factor=self._fine_factor(names),
            roi_margin=self._margin(names),
            skip_coarse=not skip_fine and bool(names & self.stages.fine_only),
            skip_fine=skip_fine,
            further_iterations={
                "coarse": 0 if none else further,
                "fine": 0 if none or none_fine else further,
            },
        )

    def intensity_window(self, classes: Iterable[NamedClass]) -> str:
        """Name the one CT window for a case: the one all `classes` want, else the default.

        The answer is a key of ``window_groups.windows``, whose widths and levels are in HU.
        """
        wanted = {self.window_of(key) for key in classes}
        return wanted.pop() if len(wanted) == 1 else self.intensity_windows.default

    def treats_components(self, key: NamedClass, preset: str, choice: Postprocess = "auto") -> bool:
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
        return rule == "all" or key.policy_name in self.components.listed

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
        """Name the CT window that the class `key` wants, a key of ``window_groups.windows``."""
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
