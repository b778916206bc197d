"""Liver, spleen, kidneys, stomach, heart and great vessels, each inside a plane of fat."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from demo_training.anatomy import Trunk
from demo_training.canvas import Box, Canvas, Floats, Vector, capsules, draw_ripple, ellipsoid
from demo_training.subject import LABELS, Subject

Values = Mapping[str, float]


def _lumpy(canvas: Canvas, box: Box, rng: np.random.Generator, amplitude_mm: float) -> Floats:
    field: Floats = np.float32(amplitude_mm) * draw_ripple(rng, 75, 6)(canvas.at[box])
    return field


def _organ(
    canvas: Canvas,
    box: Box,
    shape: Floats,
    value: Floats | float,
    label: int,
    fat: tuple[float, float],
) -> None:
    """Paint a plane of fat and the organ inside it."""
    canvas.paint(box, shape - fat[0], fat[1], 0)
    canvas.paint(box, shape, value, label)


def paint_liver(
    canvas: Canvas, subject: Subject, trunk: Trunk, values: Values, rng: np.random.Generator
) -> None:
    """Two lobes under the diaphragm, vessels inside, tumors well inside."""
    box = canvas.box((-160, -130, -190), (120, 130, 25))
    at = canvas.at[box]
    lobes = [ellipsoid(at, center, radii, power=2.3) for center, radii in subject.liver]
    shape = np.minimum(lobes[0], lobes[1]) + _lumpy(canvas, box, rng, 3)
    shape = np.maximum(shape, trunk.below_diaphragm[box] + 3)
    shape = np.maximum(shape, trunk.cavity[box] + 4)
    tubes = np.hypot(draw_ripple(rng, 60)(at), draw_ripple(rng, 60)(at))
    fat = (subject.fat_plane_mm, values["fat"])
    _organ(canvas, box, shape, values["liver"], LABELS["Liver"], fat)
    canvas.paint(box, np.maximum(shape + 8, (tubes - 0.16) * 9), values["liver vessel"], None)
    for tumor in subject.tumors:
        part = canvas.around(tumor.center, 1.4 * max(tumor.radii) + 4)
        spot = ellipsoid(canvas.at[part], tumor.center, tumor.radii)
        spot = spot + np.float32(0.07 * max(tumor.radii)) * draw_ripple(rng, 25, 5)(canvas.at[part])
        offset = tuple(
            slice(p.start - b.start, p.stop - b.start) for p, b in zip(part, box, strict=True)
        )
        if any(o.start < 0 for o in offset) or shape[offset].shape != spot.shape:
            continue
        spot = np.maximum(spot, shape[offset] + 3)
        canvas.paint(part, spot, values["tumor"], LABELS["Liver tumors"])


def paint_belly_organs(
    canvas: Canvas, subject: Subject, trunk: Trunk, values: Values, rng: np.random.Generator
) -> None:
    """Spleen, stomach, kidneys, and the gallbladder and pancreas that nobody asks for."""
    fat = (subject.fat_plane_mm, values["fat"])
    gallbladder: Vector = (-38.0, -48.0, -118.0)
    box = canvas.around(gallbladder, 40)
    shape = ellipsoid(canvas.at[box], gallbladder, (14, 14, 27), (20, 0, 0))
    _organ(canvas, box, shape, values["bile"], 0, (3, values["fat"]))
    box = canvas.box((-60, -60, -170), (110, 60, -60))
    shape = capsules(
        canvas.at[box], [(-30.0, -8.0, -132.0), (15.0, -22.0, -112.0), (72.0, 22.0, -92.0)], 11
    )
    _organ(canvas, box, shape, values["pancreas"], 0, fat)
    _paint_stomach(canvas, subject, trunk, values, rng)
    center, radii, angles = subject.spleen
    box = canvas.around(center, 75)
    shape = ellipsoid(canvas.at[box], center, radii, angles) + _lumpy(canvas, box, rng, 2.5)
    shape = np.maximum(shape, trunk.below_diaphragm[box] + 3)
    shape = np.maximum(shape, trunk.cavity[box] + 4)
    _organ(canvas, box, shape, values["spleen"], LABELS["Spleen"], fat)
    for (center, radii, angles), name, side in zip(
        subject.kidneys, ("Left kidney", "Right kidney"), (1, -1), strict=True
    ):
        box = canvas.around(center, 80)
        at = canvas.at[box]
        shape = ellipsoid(at, center, radii, angles) + _lumpy(canvas, box, rng, 1.5)
        notch = ellipsoid(at, (center[0] - side * 25, center[1] - 8, center[2]), (17, 12, 22))
        shape = np.maximum(shape, -notch)
        _organ(canvas, box, shape, values["kidney"], LABELS[name], (fat[0] + 1.5, fat[1]))
        canvas.paint(box, shape + 10, values["kidney core"], LABELS[name])


def _paint_stomach(
    canvas: Canvas, subject: Subject, trunk: Trunk, values: Values, rng: np.random.Generator
) -> None:
    center, radii, angles = subject.stomach
    box = canvas.box((-40, -130, -170), (150, 90, 10))
    at = canvas.at[box]
    pocket = ellipsoid(at, center, radii, angles)
    outlet: list[Vector] = [
        (center[0], center[1] - 4, center[2] - 22),
        (center[0] - 34, center[1] - 16, center[2] - 48),
        (center[0] - 62, center[1] - 10, center[2] - 46),
    ]
    shape = np.minimum(pocket, capsules(at, outlet, 19)) + _lumpy(canvas, box, rng, 2)
    shape = np.maximum(shape, trunk.below_diaphragm[box] + 3)
    shape = np.maximum(shape, trunk.cavity[box] + 4)
    label = LABELS["Stomach"]
    _organ(canvas, box, shape, values["wall"], label, (subject.fat_plane_mm + 1, values["fat"]))
    canvas.paint(box, shape + 4, values["gastric fluid"], label)
    level = center[1] - radii[1] + 2 * radii[1] * subject.stomach_gas
    canvas.paint(box, np.maximum(shape + 4, at.y - level), values["gas"], label)


def paint_heart_and_vessels(
    canvas: Canvas, subject: Subject, values: Values, rng: np.random.Generator
) -> None:
    """Heart, pulmonary trunk, the two caval veins and the aorta with its arch."""
    fat = (subject.fat_plane_mm, values["fat"])
    deep = 0.78 * subject.half_y
    (hx, hy, hz), radii, angles = subject.heart
    tubes: list[tuple[list[Vector], float]] = [
        ([(-24.0, hy + 2, hz + 20), (-26.0, -22.0, 130.0), (-26.0, -30.0, 195.0)], 10.0),
        ([(-24.0, deep - 36, -999.0), (-24.0, deep - 38, -60.0), (-24.0, hy + 18, hz - 20)], 12.0),
        ([(hx, hy - 6, hz + 30), (16.0, -8.0, 98.0), (34.0, 6.0, 96.0)], 12.0),
        ([(16.0, -8.0, 98.0), (-36.0, 4.0, 92.0)], 11.0),
    ]
    for points, radius in tubes:
        box = canvas.box((-60, -90, -999), (70, 110, 220))
        tube = capsules(canvas.at[box], points, radius)
        canvas.paint(box, tube - 3, values["fat"], 0)
        canvas.paint(box, tube, values["vein"], 0)
    box = canvas.around((hx, hy, hz), 85)
    at = canvas.at[box]
    shape = ellipsoid(at, (hx, hy, hz), radii, angles, power=2.2) + _lumpy(canvas, box, rng, 2.5)
    _organ(canvas, box, shape, values["myocardium"], LABELS["Heart"], fat)
    chamber = np.maximum(shape + 11, 3 - np.abs(at.x - hx + 0.6 * (at.y - hy)))
    canvas.paint(box, chamber, values["blood"], LABELS["Heart"])
    top = float(rng.uniform(128, 150))
    aorta: list[Vector] = [
        (4.0, hy + 8, hz + 28),
        (-12.0, hy + 6, top - 40),
        (-6.0, hy + 14, top - 10),
        (6.0, 4.0, top),
        (20.0, 24.0, top - 6),
        (25.0, deep - 26, top - 30),
        (24.0, deep - 28, 60.0),
        (16.0, deep - 30, -20.0),
        (9.0, deep - 36, -100.0),
        (7.0, deep - 36, -999.0),
    ]
    box = canvas.box((-50, -90, -999), (70, 120, top + 40))
    vessel = capsules(canvas.at[box], aorta, subject.aorta_mm)
    _organ(canvas, box, vessel, values["aorta"], LABELS["Aorta"], (3.5, values["fat"]))
