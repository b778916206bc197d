"""Which passes of the network one window gets, and how many (paper, Algorithm 2)."""

from dataclasses import dataclass
from math import gcd
from typing import Literal, TypeAlias

from medals_rt.common.choices import Refinement
from medals_rt.common.typing import Shape
from medals_rt.planning.policy import MaskedPass

Combine: TypeAlias = Literal["probability", "logit"]
"""What is averaged over repetitions."""


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
    count
        N, of all classes.
    wanted
        The classes whose probabilities are wanted, with start and stop; None: all.
    """

    stage: int
    window_index: int
    window_hwd: Shape
    prompted: MaskedPass | None
    further: MaskedPass
    further_iterations: int
    mode: Refinement = "masked"
    combine: Combine = "probability"
    count: int = 1
    wanted: slice | None = None

    @property
    def block_size(self) -> int:
        """The largest edge that divides the blocks of every mask."""
        prompted = () if self.prompted is None else self.prompted.block_sizes
        return gcd(*prompted, *self.further.block_sizes)


def passes_per_window(what: WindowPass) -> int:
    """Count the network passes of one window at most; windows with empty prompts need fewer."""
    if what.mode == "none":
        return 1
    each = 2 if what.mode == "masked" else 1
    further = what.further_iterations * each * _repetitions(what.further, what.mode)
    if what.prompted is None:
        return 1 + further
    return what.prompted.iterations * each * _repetitions(what.prompted, what.mode) + further


def _repetitions(masked: MaskedPass, mode: Refinement) -> int:
    """Without masks, repetitions would all be the same."""
    return masked.repetitions if mode == "masked" else 1
