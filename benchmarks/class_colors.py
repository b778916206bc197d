"""Which colors tell classes apart, also for people with a color blindness?

    python benchmarks/class_colors.py --output medals_rt/prompts/data/class_colors.json

Chooses the table of `medals_rt/io/palette.py`, class by class in the order of `classes.json`: of
some hundred colors (bright and saturated enough to be seen on a gray image) the one whose smallest
distance to the colors before it is largest. Distances are Euclidean in OKLab, the smallest of four
kinds of sight (normal, and without red, green or blue cones: Machado et al. 2009); they count most
between neighbors in the list (a pair of kidneys), less within a group that is segmented together,
least between other classes. A class that is added gets a color; `--keep` leaves the others theirs.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medals_rt.common.choices import MODALITIES
from medals_rt.prompts.classes import class_groups, class_table

Floats = npt.NDArray[np.float64]

NEIGHBORS, NEARBY, LARGEST_GROUP = 3, 8, 40
OF_NEIGHBORS, OF_GROUP, OF_OTHERS = 1.0, 0.8, 0.25
"""What a distance is divided by."""
NORMAL_SIGHT = 0.55
"""What distances in normal sight are multiplied by: there they are larger anyway."""
LIGHTNESS, CHROMA, HUES = (0.52, 0.60, 0.68, 0.76, 0.84, 0.92), (0.13, 0.18, 0.23), 48
FIRST = (0.9, 0.62, 0.0)

SIGHTS = np.array(
    [
        np.eye(3),
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ],
    ]
)
"""What linear RGB looks like to each kind of sight."""
TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def seen(rgb: Floats) -> Floats:
    """OKLab coordinates of colors ``(n, 3)`` to each kind of sight, ``(4, n, 3)``."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    simulated = np.clip(np.einsum("vab,nb->vna", SIGHTS, linear), 0, 1)
    lab: Floats = np.cbrt(simulated @ TO_CONES.T) @ TO_OKLAB.T
    return lab


def candidates() -> Floats:
    """Colors to choose from, ``(n, 3)``."""
    found = []
    for lightness in LIGHTNESS:
        for chroma in CHROMA:
            for turn in 2 * np.pi * np.arange(HUES) / HUES:
                lab = (lightness, chroma * np.cos(turn), chroma * np.sin(turn))
                linear = np.linalg.inv(TO_CONES) @ (np.linalg.inv(TO_OKLAB) @ lab) ** 3
                if linear.min() >= -0.02 and linear.max() <= 1.02:
                    inside = np.clip(linear, 0, 1)
                    curved = 1.055 * inside ** (1 / 2.4) - 0.055
                    found.append(np.where(inside <= 0.0031308, 12.92 * inside, curved))
    return np.round(255 * np.array(found)) / 255


def closeness(names: list[str]) -> Floats:
    """Return what the distance of two classes is divided by, ``(n, n)``."""
    apart = np.abs(np.subtract.outer(np.arange(len(names)), np.arange(len(names))))
    together = apart <= NEARBY
    for group in class_groups(None):
        for modality in MODALITIES:
            places = [names.index(key.name) for key in group.keys(modality)]
            if len(places) <= LARGEST_GROUP:
                together[np.ix_(places, places)] = True
    far: Floats = np.where(together, OF_GROUP, OF_OTHERS)
    return np.where(apart <= NEIGHBORS, OF_NEIGHBORS, far)


def distances(of: Floats, to: Floats) -> Floats:
    """Distance of each color ``(4, n, 3)`` to one ``(4, 3)``, the smallest of all sights."""
    apart = np.linalg.norm(of - to[:, None, :], axis=2)
    apart[0] *= NORMAL_SIGHT
    smallest: Floats = apart.min(axis=0)
    return smallest


def choose(names: list[str], kept: dict[str, str]) -> dict[str, str]:
    """Choose the color of each class that has none yet."""
    free, near = candidates(), closeness(names)
    free_seen = seen(free)
    chosen: dict[int, Floats] = {
        place: np.array([int(kept[name][k : k + 2], 16) / 255 for k in (1, 3, 5)])
        for place, name in enumerate(names)
        if name in kept
    }
    away = {place: distances(free_seen, seen(rgb[None])[:, 0]) for place, rgb in chosen.items()}
    for place in range(len(names)):
        if place in chosen:
            continue
        pick = int(np.linalg.norm(free - FIRST, axis=1).argmin())
        if chosen:
            least = np.min([away[other] / near[place, other] for other in chosen], axis=0)
            pick = int(np.round(least, 6).argmax())
        chosen[place], away[place] = free[pick], distances(free_seen, free_seen[:, pick])
    return {
        name: "#" + "".join(f"{round(255 * part):02x}" for part in chosen[place])
        for place, name in enumerate(names)
    }


def main() -> None:
    """Choose the colors and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--keep", action="store_true", help="keep the colors of the table there")
    asked = parser.parse_args()
    names = list(dict.fromkeys(entry.name for entry in class_table().classes))
    kept = json.loads(asked.output.read_text(encoding="utf-8"))["colors"] if asked.keep else {}
    notice = "Color of each class by name, chosen by benchmarks/class_colors.py."
    table = {"notice": notice, "colors": choose(names, kept)}
    text = json.dumps(table, indent=1, ensure_ascii=False) + "\n"
    asked.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
