"""Bring intensities into 0 to 255, as the network expects them (paper 3.2, system section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from medals_rt.common.errors import InputError
from medals_rt.common.typing import HostArray
from medals_rt.planning.policy import load_policy

if TYPE_CHECKING:
    from medals_rt.io.volume import Volume


AUTO: Final = "auto"
"""In place of a window: what the classes want."""

PERCENTILES: Final = (0.5, 99.5)
"""Where images of the other modalities are cut (paper 3.2)."""


@dataclass(frozen=True)
class Window:
    """An intensity window: `width` around `level`, in the image's units (HU for CT).

    `name` is the policy's; None for numbers given by hand.
    """

    name: str | None
    width: float
    level: float

    @property
    def low(self) -> float:
        """The value that becomes 0."""
        return self.level - self.width / 2

    @property
    def high(self) -> float:
        """The value that becomes 255."""
        return self.level + self.width / 2


@dataclass(frozen=True, eq=False)
class Intensities:
    """An image in 0 to 255, and how it got there.

    Attributes
    ----------
    image_dhw
        `(D, H, W)`, float32, 0 to 255.
    action
        `"unchanged"`, `"window"` or `"percentiles"`.
    window
        The window as it was asked for, a name or width and level; else `None`.
    low, high
        The source values that became 0 and 255; for `"unchanged"` the image's own extremes.
    """

    image_dhw: HostArray
    action: str
    window: str | None
    low: float
    high: float

    def describe(self) -> dict[str, object]:
        """Say what was done, for the report."""
        return {"action": self.action, "window": self.window, "low": self.low, "high": self.high}


def parse_window(text: str) -> Window:
    """Read a window: the name of one of the policy's, or `WIDTH,LEVEL` such as `400,40`.

    Raises
    ------
    InputError
        If it is neither, or the width isn't positive.
    """
    known = load_policy().intensity_windows.windows
    if text in known:
        return Window(text, known[text].width_hu, known[text].level_hu)
    try:
        width, level = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"no window is called {text!r}; choose from {', '.join(known)}, or give WIDTH,LEVEL "
            "such as 400,40"
        ) from None
    if not (np.isfinite([width, level]).all() and width > 0):
        raise InputError(f"the window {text!r} needs a width above 0 and a level, both finite")
    return Window(None, width, level)


def is_native(image_dhw: HostArray) -> bool:
    """Whether all values lie in 0 to 255 already, as those of a challenge file."""
    return float(image_dhw.min()) >= 0.0 and float(image_dhw.max()) <= 255.0


def prepare_intensities(volume: Volume, modality: str, window: str = "soft tissue") -> Intensities:
    """Scale a volume to 0..255 unless it already lies there.

    CT is cut to a Hounsfield window and scaled; every other modality is cut at its 0.5 and 99.5
    percentiles over all voxels and scaled. An image whose values all lie in 0..255 is what a
    challenge file holds and stays as it is. A window given in numbers is taken at its word,
    whatever the modality and the values.

    Parameters
    ----------
    volume
        The image.
    modality
        `"CT"`, `"MRI"`, `"US"`, `"PET"` or `"Microscopy"`.
    window
        For CT the name of a window of the policy, which also says which one suits the classes
        asked for; for any modality `"WIDTH,LEVEL"` in the image's units.

    Raises
    ------
    InputError
        As `parse_window`.
    """
    chosen = parse_window(window)
    image = volume.image_dhw
    by_hand = chosen.name is None
    if not by_hand and is_native(image):
        lowest, highest = float(image.min()), float(image.max())
        unchanged = np.ascontiguousarray(image, dtype=np.float32)
        return Intensities(unchanged, "unchanged", None, lowest, highest)
    if by_hand or modality == "CT":
        scaled = _scale(image, chosen.low, chosen.high)
        return Intensities(scaled, "window", window, chosen.low, chosen.high)
    low, high = (float(value) for value in np.percentile(image, PERCENTILES))
    return Intensities(_scale(image, low, high), "percentiles", None, low, high)


def _scale(image: HostArray, low: float, high: float) -> HostArray:
    """Cut to `[low, high]` and map onto 0..255; an image of one value becomes zeros."""
    scaled = np.ascontiguousarray(image, dtype=np.float32)
    if scaled is image:
        scaled = image.copy()
    np.clip(scaled, low, high, out=scaled)
    scaled -= np.float32(low)
    if high > low:
        scaled *= np.float32(255.0 / (high - low))
    else:
        scaled[...] = 0.0
    return np.clip(scaled, 0.0, 255.0, out=scaled)
