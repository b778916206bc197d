"""Analytic phantoms: one integer makes one subject and its scan, on any grid.

CT comes in Hounsfield units, MR in arbitrary units of 0 to about 1000. Arrays have the axes
(H, W, D) of the network: H to the patient's back, W to the left, D to the head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from demo_training.anatomy import (
    measure_trunk,
    paint_belly,
    paint_bones,
    paint_chest,
    paint_outside,
)
from demo_training.canvas import Canvas, Coordinates, draw_ripple, rotation
from demo_training.organs import paint_belly_organs, paint_heart_and_vessels, paint_liver
from demo_training.subject import LABELS, Subject, draw_subject

Shape3 = tuple[int, int, int]
Spacing3 = tuple[float, float, float]

MIN_TUMOR_ML = 1.5
"""Smaller pieces of a tumor do not count as one; a sphere of 11 mm radius has 5.6 mL."""

HELD_OUT_SEED = 1_000_000
"""Seeds from here on are never trained on."""


@dataclass(frozen=True)
class Grid:
    """Where a phantom is sampled: shape and spacing (H, W, D), height of the lowest slice."""

    shape_hwd: Shape3
    spacing_hwd_mm: Spacing3
    bottom_mm: float


@dataclass(frozen=True)
class Phantom:
    """A noise-free scan and its labels, both `shape_hwd`; `image_hwd` is float32."""

    image_hwd: NDArray[np.float32]
    labels_hwd: NDArray[np.uint8]
    spacing_hwd_mm: Spacing3
    modality: str
    seed: int
    tumor_count: int


def _ct_values(rng: np.random.Generator, tumor: float) -> dict[str, float]:
    """Hounsfield units of one subject, plain or with contrast in some phase."""
    u = rng.uniform
    contrast = u() < 0.6
    blood = u(110, 260) if contrast else u(32, 52)
    liver = u(85, 130) if contrast else u(45, 68)
    spleen = u(95, 150) if contrast else u(40, 58)
    kidney = u(130, 210) if contrast else u(26, 42)
    muscle = u(42, 68)
    marrow = u(120, 230)
    return {
        "air": -1000.0,
        "fat": u(-115, -85),
        "muscle": muscle,
        "bone": u(280, 650),
        "marrow": marrow,
        "disk": u(70, 110),
        "cord": u(15, 40),
        "table": u(-750, -150),
        "table core": u(-300, 150),
        "bowel": u(15, 60),
        "gas": u(-980, -800),
        "mediastinum": u(-95, -20),
        "lung": u(-905, -780),
        "lung gradient": u(10, 90),
        "haze": 1.0,
        "lung vessel": u(0, 60) if not contrast else u(20, 160),
        "liver": liver,
        "liver vessel": liver + (u(15, 40) if contrast else u(-14, -4)),
        "tumor": liver + tumor,
        "bile": u(0, 18),
        "pancreas": u(75, 115) if contrast else u(30, 45),
        "spleen": spleen,
        "kidney": kidney,
        "kidney core": kidney + (u(-60, 40) if contrast else u(-6, 2)),
        "wall": u(55, 90) if contrast else u(35, 50),
        "gastric fluid": u(120, 300) if u() < 0.2 else u(-5, 35),
        "vein": blood * u(0.75, 1.0),
        "myocardium": u(75, 120) if contrast else u(35, 50),
        "blood": blood * u(0.85, 1.05),
        "aorta": blood,
    }


def _mr_values(rng: np.random.Generator, tumor: float) -> dict[str, float]:
    """Intensities of one subject in a random weighting: fluid and fat dark or bright."""
    u = rng.uniform
    heavy = u() < 0.5
    fluid = u(650, 1000) if heavy else u(60, 200)
    fat = u(550, 950) if u() < 0.65 else u(80, 200)
    liver = u(220, 330) if heavy else u(380, 520)
    spleen = u(430, 620) if heavy else u(230, 330)
    kidney = u(480, 700) if heavy else u(260, 420)
    blood = u(20, 140) if u() < 0.6 else u(600, 950)
    return {
        "air": 5.0,
        "fat": fat,
        "muscle": u(120, 220),
        "bone": u(20, 80),
        "marrow": 0.6 * fat + u(0, 120),
        "disk": u(80, 300),
        "cord": fluid * 0.7 + 60,
        "table": 0.0,
        "table core": 0.0,
        "bowel": u(150, 450),
        "gas": u(0, 20),
        "mediastinum": fat * u(0.6, 1),
        "lung": u(15, 60),
        "lung gradient": 10.0,
        "haze": 0.3,
        "lung vessel": u(60, 180),
        "liver": liver,
        "liver vessel": liver + u(-90, 110),
        "tumor": liver + 4 * tumor * (1 if heavy else -1),
        "bile": fluid,
        "pancreas": u(220, 450),
        "spleen": spleen,
        "kidney": kidney,
        "kidney core": kidney * u(0.7, 1.3),
        "wall": u(200, 350),
        "gastric fluid": fluid * u(0.7, 1),
        "vein": blood * u(0.8, 1.2),
        "myocardium": u(180, 320),
        "blood": blood,
        "aorta": blood,
    }


def _coordinates(rng: np.random.Generator, grid: Grid, modality: str) -> tuple[Coordinates, float]:
    """Anatomical coordinates of the grid's voxels: shift, rotation, size and a smooth warp."""
    (h, w, d), (sh, sw, sd) = grid.shape_hwd, grid.spacing_hwd_mm
    y = ((np.arange(h, dtype=np.float32) - (h - 1) / 2) * sh)[:, None, None]
    x = ((np.arange(w, dtype=np.float32) - (w - 1) / 2) * sw)[None, :, None]
    z = ((np.arange(d, dtype=np.float32) + 0.5) * sd + grid.bottom_mm)[None, None, :]
    tilt = rng.normal(0, 1, 3) * (3.5, 3.5, 5)
    angles = np.clip(tilt, -15, 15)
    m = rotation((float(angles[0]), float(angles[1]), float(angles[2]))).astype(np.float32)
    shift = rng.uniform(-1, 1, 3) * (12, 14, 10)
    size = rng.uniform(0.88, 1.12)
    scale = size * rng.uniform(0.95, 1.05, 3)
    x, y, z = x - np.float32(shift[0]), y - np.float32(shift[1] - 8), z - np.float32(shift[2])
    turned = [
        (row[0] * x + row[1] * y + row[2] * z) / np.float32(s)
        for row, s in zip(m, scale, strict=True)
    ]
    at = Coordinates(turned[0], turned[1], turned[2])
    amplitude = float(rng.uniform(2, 6)) * (0.6 if modality == "MRI" else 1.0)
    warped = [
        axis + np.float32(amplitude) * draw_ripple(rng, 160, 4)(at) for axis in (at.x, at.y, at.z)
    ]
    return Coordinates(warped[0], warped[1], warped[2]), float(size)


def _drop_fragments(labels: NDArray[np.uint8], grid: Grid) -> None:
    """Return to the liver what other organs left of a tumor, where it is hardly anything."""
    parts, count = ndimage.label(labels == LABELS["Liver tumors"])
    voxels = MIN_TUMOR_ML * 1000 / float(np.prod(grid.spacing_hwd_mm))
    small = np.flatnonzero(np.bincount(parts.ravel(), minlength=count + 1) < voxels)
    labels[np.isin(parts, small[small > 0])] = LABELS["Liver"]


def make_phantom(
    seed: int, grid: Grid, *, modality: str = "CT", tumor_count: int | None = None
) -> Phantom:
    """Paint one phantom, without noise.

    Parameters
    ----------
    seed
        Fixes subject, intensities and position; the grid does not change them.
    grid
        Where to sample. Slabs far above the shoulders or below the kidneys are possible.
    modality
        "CT" or "MRI".
    tumor_count
        Liver tumors wanted (fewer where they don't fit); drawn from 0 to 6 if not given.
    """
    rng = np.random.default_rng([seed, 20250])
    drawn = int(rng.integers(0, 7))
    count = drawn if tumor_count is None else tumor_count
    sign = 1 if rng.random() < 0.25 else -1
    tumor = sign * float(rng.uniform(35, 60))
    subject: Subject = draw_subject(np.random.default_rng([seed, 1]), seed, count)
    values_rng = np.random.default_rng([seed, 2])
    values = _ct_values(values_rng, tumor) if modality == "CT" else _mr_values(values_rng, tumor)
    coordinates, _ = _coordinates(np.random.default_rng([seed, 3]), grid, modality)
    edge = float(np.mean(grid.spacing_hwd_mm))
    canvas = Canvas(
        coordinates,
        np.full(grid.shape_hwd, values["air"], np.float32),
        np.zeros(grid.shape_hwd, np.uint8),
        edge,
    )
    trunk = measure_trunk(subject, coordinates)
    paint_rng = np.random.default_rng([seed, 4])
    paint_outside(canvas, subject, values)
    paint_belly(canvas, subject, trunk, values, paint_rng)
    paint_chest(canvas, subject, trunk, values, paint_rng)
    paint_liver(canvas, subject, trunk, values, paint_rng)
    paint_belly_organs(canvas, subject, trunk, values, paint_rng)
    paint_heart_and_vessels(canvas, subject, values, paint_rng)
    paint_bones(canvas, subject, trunk, values, paint_rng)
    _drop_fragments(canvas.labels, grid)
    image = canvas.values
    if modality == "MRI":
        bias = draw_ripple(paint_rng, 420, 4)(coordinates)
        image *= np.exp(np.float32(paint_rng.uniform(0.05, 0.22)) * bias)
    return Phantom(image, canvas.labels, grid.spacing_hwd_mm, modality, seed, len(subject.tumors))
