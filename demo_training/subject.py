"""What is drawn at random about the body of a phantom: sizes, places, tilts.

Millimeters with x to the patient's left, y to the back, z to the head; the origin is the axis of
the trunk at the height of the right dome of the diaphragm. Sizes are those of an average adult; a
`Subject` varies them. Organs are wrapped in thin planes of fat, which keeps every border visible.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from demo_training.canvas import Vector

LABELS = {
    "Left lung": 1,
    "Right lung": 2,
    "Liver": 3,
    "Spleen": 4,
    "Left kidney": 5,
    "Right kidney": 6,
    "Aorta": 7,
    "Stomach": 8,
    "Heart": 9,
    "Liver tumors": 10,
}
"""Values of a phantom's label array; tumors belong to the liver when the liver is asked for."""


@dataclass(frozen=True)
class Tumor:
    """An ellipsoid inside the liver."""

    center: Vector
    radii: Vector


@dataclass(frozen=True)
class Subject:
    """One body: everything that was drawn about it before painting.

    `pleura` is the thickness in mm and the fatness (0 muscle, 1 fat) of what lies between lung and
    ribs; `anterior_mm` is how much narrower the mediastinum is behind the breastbone.
    """

    seed: int
    half_x: float
    half_y: float
    wall_mm: float
    fat_mm: float
    fat_plane_mm: float
    arms: str
    breasts: bool
    table: bool
    dome_left_mm: float
    mediastinum_mm: float
    anterior_mm: float
    pleura: tuple[float, float]
    heart: tuple[Vector, Vector, Vector]
    liver: tuple[tuple[Vector, Vector], tuple[Vector, Vector]]
    spleen: tuple[Vector, Vector, Vector]
    kidneys: tuple[tuple[Vector, Vector, Vector], tuple[Vector, Vector, Vector]]
    stomach: tuple[Vector, Vector, Vector]
    stomach_gas: float
    aorta_mm: float
    bowel_gas: float
    tumors: tuple[Tumor, ...]


def _near(rng: np.random.Generator, center: Vector, spread: float) -> Vector:
    x, y, z = np.asarray(center) + rng.uniform(-spread, spread, 3)
    return float(x), float(y), float(z)


def _sized(rng: np.random.Generator, radii: Vector, spread: float = 0.15) -> Vector:
    common = rng.uniform(1 - spread, 1 + spread)
    x, y, z = np.asarray(radii) * common * rng.uniform(0.93, 1.07, 3)
    return float(x), float(y), float(z)


def _tilted(rng: np.random.Generator, angles: Vector, spread: float) -> Vector:
    return _near(rng, angles, spread)


def _draw_tumors(
    rng: np.random.Generator, lobes: tuple[tuple[Vector, Vector], ...], count: int
) -> tuple[Tumor, ...]:
    tumors: list[Tumor] = []
    for _ in range(40 * count):
        if len(tumors) == count:
            break
        center, radii = lobes[0] if rng.random() < 0.85 else lobes[1]
        direction = rng.normal(size=3)
        direction *= rng.uniform(0, 1) ** (1 / 3) / np.linalg.norm(direction)
        size = float(rng.uniform(11, 24))
        reach = 1 - (size + 5) / np.asarray(radii)
        if reach.min() <= 0:
            continue
        point = np.asarray(center) + direction * radii * reach
        free = all(
            np.linalg.norm(point - t.center) > size * 1.15 + max(t.radii) + 10 for t in tumors
        )
        if free and point[2] < -size - 12:
            x, y, z = size * rng.uniform(0.85, 1.15, 3)
            tumors.append(Tumor((float(point[0]), float(point[1]), float(point[2])), (x, y, z)))
    return tuple(tumors)


def draw_subject(rng: np.random.Generator, seed: int, tumor_count: int) -> Subject:
    """Draw sizes, positions and tilts of one body."""
    half_x, half_y = float(rng.uniform(122, 148)), float(rng.uniform(82, 106))
    wide, deep = half_x / 135, half_y / 95
    lobes = (
        (
            _near(rng, (-60 * wide, -2 * deep, -62), 6),
            _sized(rng, (74 * wide, 78 * deep, 78), 0.12),
        ),
        (
            _near(rng, (8 * wide, -42 * deep, -48), 8),
            _sized(rng, (70 * wide, 38 * deep, 36), 0.15),
        ),
    )
    return Subject(
        seed=seed,
        half_x=half_x,
        half_y=half_y,
        wall_mm=float(rng.uniform(10, 18)),
        fat_mm=float(rng.uniform(4, 30)),
        fat_plane_mm=float(rng.uniform(3.5, 6)),
        arms=str(rng.choice(["up", "down", "none"], p=[0.4, 0.25, 0.35])),
        breasts=bool(rng.random() < 0.3),
        table=bool(rng.random() < 0.8),
        dome_left_mm=float(rng.uniform(-28, -4)),
        mediastinum_mm=float(rng.uniform(12, 30)),
        heart=(
            _near(rng, (24 * wide, -32 * deep, 34), 8),
            _sized(rng, (54, 44, 50)),
            _tilted(rng, (15, 25, 25), 12),
        ),
        liver=lobes,
        spleen=(
            _near(rng, (92 * wide, 42 * deep, -58), 8),
            _sized(rng, (30, 44, 48), 0.2),
            _tilted(rng, (15, -10, 30), 15),
        ),
        kidneys=(
            (
                _near(rng, (64 * wide, 52 * deep, -128), 9),
                _sized(rng, (28, 27, 54)),
                _tilted(rng, (12, -14, 10), 8),
            ),
            (
                _near(rng, (-64 * wide, 52 * deep, -146), 9),
                _sized(rng, (28, 27, 54)),
                _tilted(rng, (12, 14, -10), 8),
            ),
        ),
        stomach=(
            _near(rng, (58 * wide, -38 * deep, -72), 9),
            _sized(rng, (40, 38, 54), 0.18),
            _tilted(rng, (20, 25, 0), 12),
        ),
        stomach_gas=float(rng.uniform(0.1, 0.8)),
        aorta_mm=float(rng.uniform(11, 16)),
        bowel_gas=float(rng.uniform(0.6, 1.4)),
        tumors=_draw_tumors(rng, lobes, tumor_count),
        anterior_mm=float(rng.uniform(0, 24)),
        pleura=(float(rng.uniform(0, 9)), float(rng.uniform(0, 1))),
    )
