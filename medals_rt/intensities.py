"""Bring intensities into 0 to 255, as the network expects them (paper 3.2, system section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from medals_rt.errors import InputError

if TYPE_CHECKING:
    from typing import Any

    from medals_rt.volume import Volume

    Array: TypeAlias = Any

WINDOWS_HU: Final = {
    "soft tissue": (400.0, 40.0),
    "lung": (1500.0, -160.0),
    "brain": (80.0, 40.0),
    "bone": (1800.0, 400.0),
}
"""Width and level in Hounsfield units of each CT window (paper 3.2)."""

PERCENTILES: Final = (0.5, 99.5)
"""Where images of the other modalities are cut (paper 3.2)."""


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
        The CT window's name, else `None`.
    low, high
        The source values that became 0 and 255; for `"unchanged"` the image's own extremes.
    """

    image_dhw: Array
    action: str
    window: str | None
    low: float
    high: float

    def describe(self) -> dict[str, object]:
        """Say what was done, for the report."""
        return {"action": self.action, "window": self.window, "low": self.low, "high": self.high}


def prepare_intensities(volume: Volume, modality: str, window: str = "soft tissue") -> Intensities:
    """Scale a volume to 0..255 unless it already lies there.

    CT is cut to a Hounsfield window and scaled; every other modality is cut at its 0.5 and 99.5
    percentiles over all voxels and scaled. An image whose values all lie in 0..255 is what a
    challenge file holds and stays as it is.

    Parameters
    ----------
    volume
        The image.
    modality
        `"CT"`, `"MRI"`, `"US"`, `"PET"` or `"Microscopy"`.
    window
        For CT: `"soft tissue"`, `"lung"`, `"brain"` or `"bone"`. Which one suits the classes
        asked for is the policy's to say.

    Raises
    ------
    InputError
        If the window is none of these.
    """
    if window not in WINDOWS_HU:
        raise InputError(f"no CT window is called {window!r}; choose from {', '.join(WINDOWS_HU)}")
    image = volume.image_dhw
    lowest, highest = float(image.min()), float(image.max())
    if lowest >= 0.0 and highest <= 255.0:
        unchanged = np.ascontiguousarray(image, dtype=np.float32)
        return Intensities(unchanged, "unchanged", None, lowest, highest)
    if modality == "CT":
        width, level = WINDOWS_HU[window]
        low, high = level - width / 2, level + width / 2
        return Intensities(_scale(image, low, high), "window", window, low, high)
    low, high = (float(value) for value in np.percentile(image, PERCENTILES))
    return Intensities(_scale(image, low, high), "percentiles", None, low, high)


def _scale(image: Array, low: float, high: float) -> Array:
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
