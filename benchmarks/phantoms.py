"""Volumes to measure on: made from a seed, so that everyone measures the same."""

import numpy as np
import numpy.typing as npt

Shape = tuple[int, int, int]


def smooth_image(shape: Shape, seed: int = 0) -> npt.NDArray[np.float32]:
    """Make an image in 0..255 with structure and noise."""
    rng = np.random.default_rng(seed)
    waves = [np.sin(np.arange(n, dtype=np.float32) * np.float32(9 / n)) for n in shape]
    image = waves[0][:, None, None] * waves[1][:, None] * waves[2]
    image *= np.float32(100)
    image += np.float32(110)
    image += rng.random(shape, dtype=np.float32) * np.float32(40)
    return image


def organs(shape: Shape, classes: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Make a label map of overlapping ellipsoids, one a class, each with a few stray specks."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    size = np.array(shape)
    for label in range(1, classes + 1):
        center = rng.uniform(0.1, 0.9, 3) * size
        _draw_ellipsoid(labels, label, center, rng.uniform(0.04, 0.14, 3) * size)
        for _ in range(3):
            stray = rng.uniform(0.05, 0.95, 3) * size
            _draw_ellipsoid(labels, label, stray, rng.uniform(0.003, 0.012, 3) * size + 1)
    return labels


def _draw_ellipsoid(
    labels: npt.NDArray[np.uint8],
    label: int,
    center: npt.NDArray[np.float64],
    radius: npt.NDArray[np.float64],
) -> None:
    low = np.maximum(np.floor(center - radius), 0).astype(int)
    high = np.minimum(np.ceil(center + radius) + 1, labels.shape).astype(int)
    i, j, k = (
        ((np.arange(a, b) - c) / r) ** 2
        for a, b, c, r in zip(low, high, center, radius, strict=True)
    )
    inside = i[:, None, None] + j[:, None] + k < 1
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    labels[box][inside] = label
