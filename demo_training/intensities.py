"""Raw intensities to 0..255, as the run time prepares them, and scan noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from demo_training.canvas import Floats

CT_WINDOWS = {"soft tissue": (400.0, 40.0), "lung": (1500.0, -160.0)}
"""Width and level in Hounsfield units."""


def to_byte_range(image: Floats, low: float, high: float) -> Floats:
    """Clip to `low`..`high` and scale to 0..255, float32."""
    scaled: Floats = np.clip((image - low) * np.float32(255 / (high - low)), 0, 255)
    return scaled


def window_ct(image_hu: Floats, window: str) -> Floats:
    """Apply a Hounsfield window by name; 0..255."""
    width, level = CT_WINDOWS[window]
    return to_byte_range(image_hu, level - width / 2, level + width / 2)


def scale_mr(image: Floats, percentiles: tuple[float, float] | None = None) -> Floats:
    """Cut at the 0.5 and 99.5 percentiles, of the image itself if they are not given; 0..255."""
    low, high = percentiles or np.percentile(image, (0.5, 99.5))
    return to_byte_range(image, float(low), max(float(high), float(low) + 1e-3))


def scan(
    rng: np.random.Generator,
    image: Floats,
    modality: str,
    *,
    noise: float,
    blur_voxels: float,
    slab: int,
) -> Floats:
    """Add what a scanner adds: point spread, thick slices along D and noise.

    Parameters
    ----------
    noise
        Standard deviation in Hounsfield units, or in MR units (there the noise is Rician).
    blur_voxels
        Sigma of the point spread.
    slab
        Slices averaged into one; 1 leaves them.
    """
    out = image.astype(np.float32)
    if blur_voxels > 0.2:
        out = ndimage.gaussian_filter(out, blur_voxels, truncate=2.5)
    if slab > 1:
        out = ndimage.uniform_filter1d(out, slab, axis=2)
    grain: NDArray[np.float32] = rng.standard_normal(out.shape, np.float32) * np.float32(noise)
    if modality == "CT":
        return out + grain
    other = rng.standard_normal(out.shape, np.float32) * np.float32(noise)
    rician: Floats = np.hypot(out + grain, other)
    return rician
