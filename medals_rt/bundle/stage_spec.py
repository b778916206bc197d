"""What the model of a stage was made for."""

from dataclasses import dataclass

from medals_rt.common.choices import STAGE_NAMES, StageName, StageNumber
from medals_rt.common.typing import Shape, Spacing


@dataclass(frozen=True)
class StageSpec:
    """What a stage's model was made for.

    Attributes
    ----------
    number
        1 coarse, 2 fine.
    window_hwd
        Voxels of its window.
    spacing_hwd_mm
        The spacing it was trained at: the target of resampling.
    """

    number: StageNumber
    window_hwd: Shape
    spacing_hwd_mm: Spacing

    @property
    def name(self) -> StageName:
        """Coarse or fine."""
        return STAGE_NAMES[self.number]

    @property
    def is_fine(self) -> bool:
        """Whether this is stage 2."""
        return self.number == 2
