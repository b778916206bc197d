"""Signed distances and painting: what analytic phantoms are drawn with.

Shapes are functions of millimeter coordinates whose negative side is the inside. Painting blends
with the part of a voxel that a shape covers: partial volumes on any grid without supersampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Vector = tuple[float, float, float]
Box = tuple[slice, slice, slice]

_PROBE_STEP = 4


@dataclass(frozen=True)
class Coordinates:
    """Anatomical millimeters of each voxel: x to the left, y to the back, z to the head."""

    x: Floats
    y: Floats
    z: Floats

    def __getitem__(self, box: Box) -> Coordinates:
        return Coordinates(self.x[box], self.y[box], self.z[box])


@dataclass(frozen=True)
class Ripple:
    """A smooth random field of unit variance: a few plane waves, so it has a value at any point."""

    waves: NDArray[np.float64]
    phases: NDArray[np.float64]

    def __call__(self, at: Coordinates) -> Floats:
        """Field at the given coordinates, same shape, float32."""
        total = np.zeros(at.x.shape, np.float32)
        for (kx, ky, kz), phase in zip(
            self.waves.astype(np.float32), self.phases.astype(np.float32), strict=True
        ):
            total += np.sin(kx * at.x + ky * at.y + kz * at.z + phase)
        return total * np.float32(np.sqrt(2.0 / len(self.phases)))


def draw_ripple(rng: np.random.Generator, wavelength_mm: float, count: int = 8) -> Ripple:
    """Draw a field whose waves have lengths of 0.7 to 1.4 times `wavelength_mm`."""
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    lengths = wavelength_mm * rng.uniform(0.7, 1.4, (count, 1))
    return Ripple(direction * 2 * np.pi / lengths, rng.uniform(0, 2 * np.pi, count))


def rotation(angles_deg: Vector) -> NDArray[np.float64]:
    """Rotation matrix from angles about x, y and z in degrees."""
    ax, ay, az = np.deg2rad(angles_deg)
    rx = np.array([[1, 0, 0], [0, np.cos(ax), -np.sin(ax)], [0, np.sin(ax), np.cos(ax)]])
    ry = np.array([[np.cos(ay), 0, np.sin(ay)], [0, 1, 0], [-np.sin(ay), 0, np.cos(ay)]])
    rz = np.array([[np.cos(az), -np.sin(az), 0], [np.sin(az), np.cos(az), 0], [0, 0, 1]])
    matrix: NDArray[np.float64] = rz @ ry @ rx
    return matrix


def ellipsoid(
    at: Coordinates, center: Vector, radii: Vector, angles_deg: Vector = (0, 0, 0), power: float = 2
) -> Floats:
    """Distance along the ray from the center to the surface of a (super)ellipsoid, in mm."""
    dx, dy, dz = at.x - center[0], at.y - center[1], at.z - center[2]
    if any(angles_deg):
        m = rotation(angles_deg).T.astype(np.float32)
        dx, dy, dz = (row[0] * dx + row[1] * dy + row[2] * dz for row in m)
    if power == 2:
        level = np.sqrt((dx / radii[0]) ** 2 + (dy / radii[1]) ** 2 + (dz / radii[2]) ** 2)
    else:
        level = (
            np.abs(dx / radii[0]) ** power
            + np.abs(dy / radii[1]) ** power
            + np.abs(dz / radii[2]) ** power
        ) ** (1 / power)
    length = np.sqrt(dx * dx + dy * dy + dz * dz)
    distance: Floats = np.where(
        level > 0.05, length * (1 - 1 / np.maximum(level, 0.05)), -min(radii)
    ).astype(np.float32)
    return distance


def superellipse(x: Floats, y: Floats, half_x: Floats | float, half_y: Floats | float) -> Floats:
    """Distance along the ray to a superellipse of power 2.4 in the axial plane, in mm."""
    power = np.float32(2.4)
    level = (np.abs(x / half_x) ** power + np.abs(y / half_y) ** power) ** (1 / power)
    length = np.sqrt(x * x + y * y)
    distance: Floats = (length * (1 - 1 / np.maximum(level, 0.2))).astype(np.float32)
    return distance


def capsules(at: Coordinates, points: list[Vector], radius_mm: float) -> Floats:
    """Distance to a tube along a polyline, in mm."""
    best = np.full(at.x.shape, np.inf, np.float32)
    for a, b in pairwise(points):
        ab = np.subtract(b, a).astype(np.float32)
        px, py, pz = at.x - a[0], at.y - a[1], at.z - a[2]
        t = np.clip((px * ab[0] + py * ab[1] + pz * ab[2]) / float(ab @ ab), 0, 1)
        d2 = (px - t * ab[0]) ** 2 + (py - t * ab[1]) ** 2 + (pz - t * ab[2]) ** 2
        np.minimum(best, d2, out=best)
    distance: Floats = np.sqrt(best) - np.float32(radius_mm)
    return distance


@dataclass(frozen=True)
class Canvas:
    """A picture being painted: values, labels, and the width in mm over which edges blend."""

    at: Coordinates
    values: Floats
    labels: NDArray[np.uint8]
    edge_mm: float

    def box(self, low: Vector, high: Vector) -> Box:
        """Index box that covers an anatomical box, found on every fourth voxel."""
        step = _PROBE_STEP
        p = self.at[(slice(None, None, step),) * 3]
        inside = np.ones(p.x.shape, bool)
        reach = step * self.edge_mm
        for axis, lo, hi in zip((p.x, p.y, p.z), low, high, strict=True):
            inside &= (axis > lo - reach) & (axis < hi + reach)
        if not inside.any():
            return (slice(0, 0),) * 3
        slices = []
        for axis_index, size in enumerate(self.at.x.shape):
            others = tuple(i for i in range(3) if i != axis_index)
            hit = np.flatnonzero(inside.any(axis=others))
            slices.append(slice(max(0, (hit[0] - 1) * step), min(size, (hit[-1] + 2) * step)))
        return slices[0], slices[1], slices[2]

    def around(self, center: Vector, reach: Vector | float) -> Box:
        """Index box around a point, `reach` mm to each side."""
        r = (reach, reach, reach) if isinstance(reach, int | float) else reach
        return self.box(
            (center[0] - r[0], center[1] - r[1], center[2] - r[2]),
            (center[0] + r[0], center[1] + r[1], center[2] + r[2]),
        )

    def paint(
        self, box: Box, distance: Floats, value: Floats | float, label: int | None = None
    ) -> None:
        """Blend `value` in where the distance is negative; set the label there if there is one."""
        if distance.size == 0:
            return
        cover = np.clip(0.5 - distance / np.float32(self.edge_mm), 0, 1)
        values = self.values[box]
        values += cover * (np.asarray(value, np.float32) - values)
        if label is not None:
            self.labels[box][distance < 0] = label
