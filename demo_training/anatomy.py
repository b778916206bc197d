"""The trunk of a phantom: skin, muscle, bowel, lungs, spine and ribs.

Millimeters with x to the patient's left, y to the back, z to the head; the origin is the axis of
the trunk at the height of the right dome of the diaphragm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from demo_training.canvas import (
    Canvas,
    Coordinates,
    Floats,
    Vector,
    capsules,
    draw_ripple,
    ellipsoid,
    superellipse,
)
from demo_training.subject import LABELS, Subject


@dataclass(frozen=True)
class Trunk:
    """Distances shared by several organs, over the whole canvas."""

    cavity: Floats
    thorax: Floats
    below_diaphragm: Floats


def measure_trunk(subject: Subject, at: Coordinates) -> Trunk:
    """Measure distances to cavity, thorax and diaphragm at every voxel."""
    x, y, z = at.x, at.y, at.z
    rise = np.clip((z - 30) / 185, 0, 1.02)
    shrink = np.sqrt(np.maximum(1 - rise**2.6, 0.02)).astype(np.float32)
    waist = np.float32(1) - 0.08 * np.clip((-z - 60) / 120, 0, 1)
    cavity = superellipse(x, y, subject.half_x * waist, subject.half_y * waist)
    thorax = superellipse(
        x, y - 8 * rise, (subject.half_x - 6) * shrink, (subject.half_y - 5) * shrink
    )
    sides = []
    for center, top in ((-62, 0.0), (62, subject.dome_left_mm)):
        back, front = np.maximum(y + 10, 0), np.minimum(y + 10, 0)
        sides.append(
            top - 50 * ((x - center) / 82) ** 2 - 62 * (back / 88) ** 2 - 26 * (front / 80) ** 2
        )
    dome = np.maximum(sides[0], sides[1])
    return Trunk(cavity, thorax, ((z - dome) * 0.8).astype(np.float32))


def paint_outside(canvas: Canvas, subject: Subject, values: Mapping[str, float]) -> None:
    """Skin, fat, muscle, shoulders, arms and table."""
    at = canvas.at
    everything = canvas.box((-999, -999, -999), (999, 999, 999))
    shell = subject.wall_mm + subject.fat_mm
    shoulder = np.clip((at.z - 120) / 90, 0, 1)
    neck = np.clip((at.z - 235) / 40, 0, 1)
    spread = 0 if subject.arms == "none" else 45
    wide = (subject.half_x + shell + spread * shoulder) * (1 - 0.5 * neck)
    deep = (subject.half_y + shell - 22 * shoulder) * (1 - 0.25 * neck)
    body = superellipse(at.x, at.y, wide, deep)
    if subject.table:
        for gap, thick, value in ((10, 2.5, "table"), (32, 2.5, "table core")):
            plate = at.y - (subject.half_y + shell + gap) + 0.0012 * at.x**2
            canvas.paint(
                everything,
                np.maximum(np.abs(plate) - thick, np.abs(at.x) - 205),
                values[value],
            )
    if subject.arms == "down":
        for side in (-1, 1):
            tube = [(side * (subject.half_x + shell + 48), 15.0, z) for z in (-400.0, 150.0)]
            canvas.paint(everything, capsules(at, tube, 42), values["fat"])
            canvas.paint(everything, capsules(at, tube, 36), values["muscle"])
            canvas.paint(everything, capsules(at, tube, 11), values["bone"])
    if subject.breasts:
        for side in (-1, 1):
            center = (side * 72.0, -subject.half_y - shell + 8, 85.0)
            box = canvas.around(center, 80)
            canvas.paint(box, ellipsoid(canvas.at[box], center, (62, 38, 62)), values["fat"])
    canvas.paint(everything, body, values["fat"])
    canvas.paint(everything, body + subject.fat_mm, values["muscle"])
    if subject.arms != "none":
        for side in (-1, 1):
            tube = [
                (side * 60.0, 62.0, 215.0),
                (side * 125.0, 30.0, 232.0),
                (side * 170.0, 0.0, 190.0),
            ]
            canvas.paint(everything, capsules(at, tube, 9), values["bone"])
            canvas.paint(
                everything,
                capsules(at, [(side * 20.0, -58.0, 205.0), (side * 120.0, -30.0, 235.0)], 6),
                values["bone"],
            )


def paint_belly(
    canvas: Canvas,
    subject: Subject,
    trunk: Trunk,
    values: Mapping[str, float],
    rng: np.random.Generator,
) -> None:
    """Fat of the abdomen with loops of bowel, and the muscles along the spine."""
    everything = canvas.box((-999, -999, -999), (999, 999, 999))
    canvas.paint(everything, trunk.cavity, values["fat"])
    low, high = (-subject.half_x, -subject.half_y, -999.0), (subject.half_x, 60.0, -30.0)
    box = canvas.box(low, high)
    at = canvas.at[box]
    inside = np.maximum(trunk.cavity[box] + 8, trunk.below_diaphragm[box] + 12)
    inside = np.maximum(inside, at.y - 45)
    loops = draw_ripple(rng, 48, 10)
    level = loops(at)
    canvas.paint(box, np.maximum(inside, (np.abs(level) - 0.75) * 14), values["bowel"])
    gas = np.maximum(inside + 3, (subject.bowel_gas * 1.0 + 0.6 - draw_ripple(rng, 60)(at)) * 14)
    canvas.paint(box, np.maximum(gas, (np.abs(level) - 0.55) * 14), values["gas"])
    for side in (-1, 1):
        tube = [(side * 34.0, 62.0, -90.0), (side * 52.0, 50.0, -300.0)]
        part = canvas.box((-90, 10, -340), (90, 99, -60))
        canvas.paint(part, capsules(canvas.at[part], tube, 21), values["muscle"])


def paint_chest(
    canvas: Canvas,
    subject: Subject,
    trunk: Trunk,
    values: Mapping[str, float],
    rng: np.random.Generator,
) -> None:
    """Lungs with their vessels, and the mediastinum between them."""
    box = canvas.box((-170, -130, -110), (170, 130, 260))
    at = canvas.at[box]
    inner, above = trunk.thorax[box], -trunk.below_diaphragm[box]
    thickness, fatness = subject.pleura
    rim = values["muscle"] + fatness * (values["mediastinum"] - values["muscle"])
    canvas.paint(box, np.maximum(inner - thickness, above - 4), rim)
    canvas.paint(box, np.maximum(inner + 4, above), values["mediastinum"])
    half_width = subject.mediastinum_mm + 5 * draw_ripple(rng, 90, 4)(at)
    half_width = half_width + 8 * np.clip((at.z - 100) / 90, 0, 1)
    half_width -= subject.anterior_mm * np.clip((-at.y - 15) / 55, 0, 1)
    half_width = np.maximum(half_width, 2)
    spine = 32 - np.hypot(at.x, at.y - 0.78 * subject.half_y)
    vessels = (draw_ripple(rng, 46)(at), draw_ripple(rng, 46)(at))
    thin = (np.hypot(*vessels) - 0.2) * 7
    hilum = np.clip(1 - np.abs(at.z - 75) / 110, 0.15, 1)
    dependent = np.clip(at.y / 90, -1, 1)
    haze = 25 * draw_ripple(rng, 70, 6)(at)
    air = values["lung"] + (values["lung gradient"] * dependent + haze) * values["haze"]
    base = np.maximum(inner, above)
    for side, label in ((1, LABELS["Left lung"]), (-1, LABELS["Right lung"])):
        middle = half_width - side * at.x
        shape = np.maximum(np.maximum(base, middle), spine)
        canvas.paint(box, shape, air, label)
        fine = np.maximum(shape + 3, thin + 2.2 * (1 - hilum))
        canvas.paint(box, fine, values["lung vessel"], label)
    trachea: list[Vector] = [(0, 10, 270), (0, 18, 150), (2, 22, 112)]
    for points, radius in (
        (trachea, 8.5),
        ([trachea[-1], (38.0, 22.0, 88.0)], 6),
        ([trachea[-1], (-34.0, 22.0, 90.0)], 6.5),
    ):
        part = canvas.box((-60, -20, 70), (60, 60, 290))
        tube = capsules(canvas.at[part], list(points), radius)
        canvas.paint(part, tube - 3, values["muscle"])
        canvas.paint(part, tube, values["air"])


def paint_bones(
    canvas: Canvas,
    subject: Subject,
    trunk: Trunk,
    values: Mapping[str, float],
    rng: np.random.Generator,
) -> None:
    """Spine with disks and canal, ribs, breastbone. None of them has a label."""
    back = 0.78 * subject.half_y
    box = canvas.box((-75, back - 40, -999), (75, back + 75, 999))
    at = canvas.at[box]
    y = at.y - back - 6 * np.sin((at.z + 60) / 110)
    body = np.hypot(at.x, y) - 21
    beat = np.sin(2 * np.pi * at.z / 31 + rng.uniform(0, 6))
    disk = np.clip((beat - 0.55) * 4, 0, 1)
    value = values["marrow"] * (1 - disk) + values["disk"] * disk
    arch = np.hypot(at.x, y - 26) - 17
    wings = np.maximum(np.abs(y - 24) - 6 + 3 * beat, np.abs(at.x) - 40)
    process = np.maximum(np.abs(at.x) - 4.5, np.abs(y - 48) - 16)
    for part in (wings + 6 * np.maximum(beat, 0), process + 4 * np.maximum(beat, 0), arch):
        canvas.paint(box, part, values["bone"], 0)
    canvas.paint(box, body, values["bone"], 0)
    canvas.paint(box, body + 3.5, value, 0)
    canvas.paint(box, np.hypot(at.x, y - 27) - 9, values["cord"], 0)
    box = canvas.box((-190, -150, -130), (190, 150, 245))
    at, shell = canvas.at[box], trunk.thorax[box]
    shell = np.where(at.z > 20, shell, trunk.cavity[box])
    front = np.clip(-at.y / subject.half_y, -1, 1)
    along = at.z + 45 * front + 12 * np.abs(at.x) / subject.half_x
    rib = np.cos(2 * np.pi * along / float(rng.uniform(25, 31)) + rng.uniform(0, 6))
    short = np.where(front > 0.55, (front - 0.55) * 60 + np.maximum(-at.z - 20, 0), 0)
    low = np.maximum(-at.z - 95, 0) * 0.5
    ribs = np.maximum(np.abs(shell - 7) - 4.5, (0.45 - rib) * 9) + short + low
    canvas.paint(box, ribs.astype(np.float32), values["bone"], 0)
    center = (0.0, -subject.half_y - 6, 95.0)
    part = canvas.around(center, (40, 40, 100))
    sternum = ellipsoid(canvas.at[part], center, (21, 6.5, 85), (-6, 0, 0), power=4)
    canvas.paint(part, sternum, values["bone"], 0)
