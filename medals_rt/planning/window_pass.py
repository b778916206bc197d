"""Which passes of the network one window gets, and how many (paper, Algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from math import gcd
from typing import Final, Literal, TypeAlias

from medals_rt.common.choices import Refinement, StageNumber
from medals_rt.common.typing import Shape
from medals_rt.planning.policy import MaskedPass

Combine: TypeAlias = Literal["probability", "logit"]
"""What is averaged over repetitions and mirrored passes."""

MIRRORINGS: Final = tuple(axes for count in range(4) for axes in combinations(range(3), count))
"""The axes along which test-time augmentation mirrors a window: none, then every choice of them."""


@dataclass(frozen=True)
class WindowPass:
    """What `refine` does to one window.

    Attributes
    ----------
    stage, window_index, window_hwd
        As in `MaskRequest`.
    prompted
        Algorithm 2 for prompts that are given (``Preset.prompted``); None in a stage without any.
    further
        Masked pairs after the first prediction, each from the previous probability
        (``Preset.further``).
    further_iterations
        How many of these: ``StageGeometry.iterations`` for lesions, 0 for anatomy.
    mode, combine
        See `Refinement` and `masked_pass`.
    starts_from_text
        Prompts come from a pass of the window itself, from the text alone (Algorithm 2, lines 3 to
        6), instead of being given.
    mirrored
        Each pass is the mean over the image mirrored along all axes (`inference.mirroring`).
    count
        N, of all classes.
    wanted
        The classes whose probabilities are wanted, with start and stop; None: all.
    """

    stage: StageNumber
    window_index: int
    window_hwd: Shape
    prompted: MaskedPass | None
    further: MaskedPass
    further_iterations: int
    mode: Refinement = "masked"
    combine: Combine = "probability"
    starts_from_text: bool = False
    mirrored: bool = False
    count: int = 1
    wanted: slice | None = None

    @property
    def steps(self) -> tuple[MaskedPass | None, ...]:
        """What is done one after the other; None is one pass from the text alone."""
        if self.mode == "none":
            return (None,)
        pairs = () if self.prompted is None else (self.prompted,) * self.prompted.iterations
        first = (None,) if self.starts_from_text or not pairs else ()
        return (*first, *pairs, *(self.further,) * self.further_iterations)

    @property
    def from_text(self) -> WindowPass:
        """The same in a stage that is given no prompts."""
        return self if self.starts_from_text else replace(self, prompted=None)

    @property
    def averages(self) -> bool:
        """Whether a mean over repetitions or mirrored passes is formed in any step."""
        repeated = any(
            step is not None and _repetitions(step, self.mode) > 1 for step in self.steps
        )
        return self.mirrored or repeated

    @property
    def block_size(self) -> int:
        """The largest edge that divides the blocks of every mask."""
        prompted = () if self.prompted is None else self.prompted.block_sizes
        return gcd(*prompted, *self.further.block_sizes)


def passes_per_window(what: WindowPass) -> int:
    """Count the network passes of one window at most; windows with empty prompts need fewer."""
    return sum(passes_of_step(what, step) for step in what.steps)


def passes_of_step(what: WindowPass, step: MaskedPass | None) -> int:
    """Count the network passes of one of ``what.steps`` at most."""
    pair = 2 if what.mode == "masked" else 1
    passes = 1 if step is None else pair * _repetitions(step, what.mode)
    return passes * (len(MIRRORINGS) if what.mirrored else 1)


def _repetitions(masked: MaskedPass, mode: Refinement) -> int:
    """Without masks, repetitions would all be the same."""
    return masked.repetitions if mode == "masked" else 1
