"""The color of each class, one for every output: pictures, pages, segmentations, meshes.

A class has the same color in every case, modality and format (`data/class_colors.json`). The table
was chosen color by color (`benchmarks/class_colors.py`): each as far as possible, also as people
with a red, green or blue color blindness see it, from those of its neighbors in the list of classes
and in the groups that are segmented together, and bright enough on gray images.
"""

from __future__ import annotations

import colorsys
from functools import lru_cache
from typing import Final, TypeAlias

import msgspec

from medals_rt.prompts.classes import read_data

Rgb: TypeAlias = tuple[float, float, float]
"""Red, green and blue, 0 to 1."""

_GOLDEN_RATIO: Final = (5**0.5 - 1) / 2
_SATURATION_VALUE: Final = ((0.6, 0.95), (0.85, 0.8), (0.4, 0.85))
_INSTANCE_TURN: Final = 0.16
"""Of a whole turn of hues: how much of it the instances of a class share."""
_INSTANCE_LIGHTNESS: Final = (0.66, 0.42, 0.82)
_LEAST_SATURATION: Final = 0.6


class _ColorTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of `class_colors.json`: class name to `#rrggbb`."""

    notice: str
    colors: dict[str, str]


@lru_cache(maxsize=1)
def class_colors() -> dict[str, Rgb]:
    """Color of every class, by name."""
    table: _ColorTable = read_data("class_colors.json", _ColorTable)
    return {name: _from_hex(color) for name, color in table.colors.items()}


def class_color(name: str) -> Rgb:
    """Return the color of a class of the table.

    Raises
    ------
    KeyError
        There is no such class.
    """
    return class_colors()[name]


def label_color(label: int, name: str) -> Rgb:
    """Return the color of a label: that of its class, or of its number where that isn't known."""
    known = class_colors().get(name)
    return numbered_color(label) if known is None else known


def numbered_color(number: int) -> Rgb:
    """Return color number 0, 1, 2, ... of an endless palette, for what is no class."""
    saturation, value = _SATURATION_VALUE[number % len(_SATURATION_VALUE)]
    return _whole_bytes(colorsys.hsv_to_rgb(number * _GOLDEN_RATIO % 1.0, saturation, value))


def instance_color(rgb: Rgb, instance: int) -> Rgb:
    """Return the color of a numbered instance: near its class' hue, unlike the next instances'."""
    hue, _, saturation = colorsys.rgb_to_hls(*rgb)
    turn = (instance * _GOLDEN_RATIO % 1.0 - 0.5) * _INSTANCE_TURN
    lightness = _INSTANCE_LIGHTNESS[instance % len(_INSTANCE_LIGHTNESS)]
    turned = colorsys.hls_to_rgb((hue + turn) % 1.0, lightness, max(saturation, _LEAST_SATURATION))
    return _whole_bytes(turned)


def hex_color(rgb: Rgb) -> str:
    """Write a color as pages do, `#rrggbb`."""
    return "#" + "".join(f"{round(255 * each):02x}" for each in rgb)


def _whole_bytes(rgb: Rgb) -> Rgb:
    """Round to what a byte a channel holds, so that every format has the same color."""
    return _from_hex(hex_color(rgb))


def _from_hex(color: str) -> Rgb:
    red, green, blue = (int(color[k : k + 2], 16) / 255 for k in (1, 3, 5))
    return red, green, blue
