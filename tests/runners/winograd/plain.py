"""Convolutions written out, in float64."""

import numpy as np


def convolved(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`(H, W, D, C)` with `(K, C, 3, 3, 3)` and zeros around, `(H, W, D, K)` float64."""
    padded = np.pad(values.astype(np.float64), ((1, 1),) * 3 + ((0, 0),))
    height, width, depth = values.shape[:3]
    total = np.zeros((height, width, depth, len(weights)))
    for h, w, d in np.ndindex(3, 3, 3):
        part = padded[h : h + height, w : w + width, d : d + depth]
        total += part @ weights[:, :, h, w, d].T.astype(np.float64)
    return total


def activated(values: np.ndarray, scale: np.ndarray, shift: np.ndarray, slope: float) -> np.ndarray:
    """What a convolution's source is taken to be."""
    moved = values.astype(np.float64) * scale + shift
    return np.where(moved < 0, moved * slope, moved)
