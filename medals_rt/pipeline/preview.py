"""A picture of a result: overlays in three planes, every class named in its color.

Needs matplotlib (the extra `preview`), and no screen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from medals_rt.common.arrays import label_counts
from medals_rt.common.atomic_io import atomic_output
from medals_rt.common.errors import InputError
from medals_rt.common.optional_deps import require
from medals_rt.common.typing import HostArray
from medals_rt.io.palette import Rgb, label_color

_LineStyle = Literal["solid", "dashed", "dotted"]


class _Style(NamedTuple):
    """How a label is drawn, and what it is called by."""

    color: Rgb
    line: _LineStyle
    tag: str


_LINE_STYLES: tuple[_LineStyle, ...] = ("solid", "dashed", "dotted")
_LABELS_A_STYLE = 16
"""Of more labels some colors are alike, which lines then tell apart."""

_WIDTH_IN = 13.0
_TALLEST_PANELS_IN = 9.0
_GAP_IN = 0.35
_THIN_IN = 0.8
_LEGEND_ROW_IN = 0.2
_NOTICE_IN = 0.2
_DPI = 120
_FULLNESS_WEIGHT = 0.01
_LONGEST_TEXT = 100

# Canonical arrays run to superior, posterior and left (see `volume`). A plane cuts across one axis;
# its rows run down and its columns to the right, as radiologists are used to: the patient faces the
# viewer. Superior is up, so that D runs against the rows.
_PLANES = (
    ("axial", 0, ("A", "P", "R", "L")),
    ("coronal", 1, ("S", "I", "R", "L")),
    ("sagittal", 2, ("S", "I", "A", "P")),
)
_FOOTNOTES = {
    "known": "radiological view: the patient's right is on the left of the picture",
    "assumed": "radiological view, as far as known: the file holds no orientation, its axes are "
    "taken to run to S, P and L",
    "none": "slices across the array's axes D, H and W",
}

Orientation = Literal["known", "assumed", "none"]


@dataclass(frozen=True)
class Panel:
    """One plane's slice, turned as it is shown: rows down, columns to the right.

    `marks` are the body directions at the top, bottom, left and right.
    """

    plane: str
    image: HostArray
    labels: HostArray
    pixel_mm: tuple[float, float]
    marks: tuple[str, str, str, str]
    index: int
    count: int

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width."""
        rows, columns = self.image.shape
        return rows * self.pixel_mm[0], columns * self.pixel_mm[1]


def save_preview(
    path: Path,
    image_dhw: HostArray,
    labels_dhw: HostArray,
    spacing_dhw_mm: tuple[float, float, float],
    names: Mapping[int, str],
    *,
    title: str,
    voxel_ml: float | None = None,
    tags: Mapping[int, str] | None = None,
    colors: Mapping[int, Rgb] | None = None,
    orientation: Orientation = "known",
    notices: Sequence[str] = (),
) -> None:
    """Draw axial, coronal and sagittal overlays and write them as a PNG, atomically.

    Parameters
    ----------
    path
        The file to write.
    image_dhw
        `(D, H, W)`, gray values; 0 to 255 is black to white.
    labels_dhw
        `(D, H, W)`, integers; 0 is background.
    spacing_dhw_mm
        Voxel spacing along (D, H, W).
    names
        Label to class name, in the order of the legend.
    title
        A line above the picture, such as the case's name.
    voxel_ml
        Milliliters of a voxel; None: of a grid that isn't sheared.
    tags
        What each label is called by in the picture, where that isn't its number.
    colors
        Of each label of `names`; None: those of the classes (`palette.label_color`).
    orientation
        Whether the directions of the canonical axes come from the file ("known"), from the
        convention of challenge files ("assumed"), or mean nothing ("none": microscopy).
    notices
        What everyone who sees the picture should know, a line each below it.

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    InputError
        If the shapes differ or are not three-dimensional.
    """
    if image_dhw.ndim != 3 or image_dhw.shape != labels_dhw.shape:
        raise InputError(
            f"a preview needs an image and labels of one (D, H, W) shape, "
            f"not {image_dhw.shape} and {labels_dhw.shape}",
            code="shapes-differ",
        )
    require("a preview", "Matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = cut_panels(image_dhw, labels_dhw, spacing_dhw_mm)
    scale = _inches_per_mm(panels)
    upright_ml = prod(spacing_dhw_mm) / 1000
    tags = {label: str(label) for label in names} | dict(tags or {})
    texts = _legend_texts(names, tags, labels_dhw, upright_ml if voxel_ml is None else voxel_ml)
    legend_rows = -(-len(texts) // _legend_columns(texts))
    panels_in = scale * max(panel.size_mm[0] for panel in panels)
    top_in = 0.75
    bottom_in = 0.5 + _LEGEND_ROW_IN * legend_rows + _NOTICE_IN * len(notices)
    height_in = top_in + panels_in + bottom_in
    figure = Figure(figsize=(_WIDTH_IN, height_in), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    styles = {
        label: _Style(
            label_color(label, name) if colors is None else colors[label],
            _LINE_STYLES[k // _LABELS_A_STYLE % len(_LINE_STYLES)],
            tags[label],
        )
        for k, (label, name) in enumerate(names.items())
    }
    used_in = sum(scale * panel.size_mm[1] for panel in panels) + _GAP_IN * (len(panels) - 1)
    left_in = (_WIDTH_IN - used_in) / 2
    bar_mm = _bar_length(max(panel.size_mm[1] for panel in panels))
    for panel in panels:
        width_in, panel_in = scale * panel.size_mm[1], scale * panel.size_mm[0]
        low_in = bottom_in + (panels_in - panel_in) / 2
        place = (left_in / _WIDTH_IN, low_in / height_in)
        size = (width_in / _WIDTH_IN, panel_in / height_in)
        axes = figure.add_axes((*place, *size))
        _draw_panel(axes, panel, styles)
        is_thin = min(width_in, panel_in) < _THIN_IN  # what is written would cover it
        if not is_thin:
            _draw_bar(axes, panel, bar_mm)
        if orientation != "none":
            sides = ("", "", panel.marks[2], panel.marks[3])
            _write_marks(axes, sides if is_thin else panel.marks)
        left_in += width_in + _GAP_IN
    figure.text(
        0.5,
        1 - 0.13 / height_in,
        _drawable(title),
        ha="center",
        va="top",
        fontsize=14,
        weight="bold",
        parse_math=False,
    )
    _draw_legend(figure, texts, styles, bottom_in - 0.08)
    _write_foot(figure, 0.1 / height_in, _FOOTNOTES[orientation], "#555555")
    for row, text in enumerate(reversed(notices)):
        height = (0.28 + _NOTICE_IN * row) / height_in
        _write_foot(figure, height, _drawable(text), "#9a3412", weight="bold")
    with atomic_output(path) as temporary:
        figure.savefig(temporary, format="png")


def _write_foot(figure: Any, height: float, text: str, color: str, **style: str) -> None:
    figure.text(0.5, height, text, ha="center", va="bottom", fontsize=8, color=color, **style)


def cut_panels(
    image_dhw: HostArray, labels_dhw: HostArray, spacing_dhw_mm: tuple[float, float, float]
) -> tuple[Panel, ...]:
    """Cut the three planes where they show most of the labels, turned to the radiological view.

    Each label counts by its share of its own largest slice, so that a large structure does not hide
    a small one, and counts less where an earlier plane shows it already. The fuller slice wins
    among equals; without any label it is the middle one.
    """
    panels = []
    weights = np.ones(int(labels_dhw.max(initial=0)) + 1)
    weights[0] = _FULLNESS_WEIGHT
    for plane, axis, marks in _PLANES:
        shares = slice_shares(labels_dhw, axis)
        index = int(np.argmax(shares @ weights)) if shares.any() else len(shares) // 2
        weights[1:] *= 1 - shares[index, 1:] / 2
        image, labels = (np.take(array, index, axis=axis) for array in (image_dhw, labels_dhw))
        if axis != 0:
            image, labels = image[::-1], labels[::-1]
        row_mm, column_mm = spacing_dhw_mm[:axis] + spacing_dhw_mm[axis + 1 :]
        panels.append(
            Panel(plane, image, labels, (row_mm, column_mm), marks, index, image_dhw.shape[axis])
        )
    return tuple(panels)


def slice_shares(labels: HostArray, axis: int) -> HostArray:
    """Count how much of each label every slice across an axis shows.

    Gives (slices, labels + 1) float64: the voxels of label 1, 2, ... as a share of that label's
    largest slice, and first of all those of any label as a share of the fullest slice.
    """
    length = int(labels.max(initial=0)) + 1
    planes = np.moveaxis(labels, axis, 0)
    counts: HostArray = np.stack([np.bincount(p.ravel(), minlength=length) for p in planes])
    counts[:, 0] = counts[:, 1:].sum(axis=1)
    shares: HostArray = counts / np.maximum(counts.max(axis=0), 1)
    return shares


def _inches_per_mm(panels: tuple[Panel, ...]) -> float:
    """Return one scale for all panels, so that lengths compare across them."""
    wide_mm = sum(panel.size_mm[1] for panel in panels)
    tall_mm = max(panel.size_mm[0] for panel in panels)
    free_in = _WIDTH_IN - 0.8 - _GAP_IN * (len(panels) - 1)
    return min(free_in / wide_mm, _TALLEST_PANELS_IN / tall_mm)


def _draw_panel(axes: Any, panel: Panel, styles: Mapping[int, _Style]) -> None:
    """Draw one slice: gray image, filled labels, outlines and numbers, small ones over large."""
    height_mm, width_mm = panel.size_mm
    extent = (0.0, width_mm, height_mm, 0.0)
    axes.set_facecolor("black")
    axes.imshow(panel.image, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="bilinear")
    rows_mm = (np.arange(panel.labels.shape[0]) + 0.5) * panel.pixel_mm[0]
    columns_mm = (np.arange(panel.labels.shape[1]) + 0.5) * panel.pixel_mm[1]
    masks = {label: panel.labels == label for label in styles}
    for label, mask in sorted(masks.items(), key=lambda each: -int(each[1].sum())):
        if not mask.any():
            continue
        color, style, tag = styles[label]
        fill = np.zeros((*mask.shape, 4))
        fill[mask] = (*color, 0.33)
        axes.imshow(fill, extent=extent, interpolation="nearest")
        if min(mask.shape) > 1:
            axes.contour(
                columns_mm, rows_mm, mask, [0.5], colors=[color], linewidths=1.3, linestyles=style
            )
        _write_tag(axes, tag, mask, panel.pixel_mm)
    axes.set(xlim=(0, width_mm), ylim=(height_mm, 0), xticks=[], yticks=[], aspect="equal")
    axes.set_title(f"{panel.plane}, slice {panel.index + 1} of {panel.count}", fontsize=10, pad=4)


def _draw_bar(axes: Any, panel: Panel, bar_mm: float) -> None:
    """Draw a scale bar."""
    height_mm, width_mm = panel.size_mm
    x, y = width_mm * 0.04, height_mm * 0.96
    axes.plot((x, x + bar_mm), (y, y), color="white", linewidth=2.5, solid_capstyle="butt")
    _write(axes, x + bar_mm / 2, y - height_mm * 0.03, f"{bar_mm:g} mm", fontsize=7)


def _write_marks(axes: Any, marks: tuple[str, str, str, str]) -> None:
    """Write the body directions at the middle of each side."""
    places = ((0.5, 0.965), (0.5, 0.035), (0.025, 0.5), (0.975, 0.5))
    for mark, (x, y) in zip(marks, places, strict=True):
        _write(axes, x, y, mark, transform=axes.transAxes, fontsize=10)


def _write_tag(axes: Any, tag: str, mask: HostArray, pixel_mm: tuple[float, float]) -> None:
    """Write what a label is called by into the thickest part of its area."""
    from scipy.ndimage import distance_transform_edt

    depth = distance_transform_edt(np.pad(mask, 1), sampling=pixel_mm)[1:-1, 1:-1]
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    _write(axes, (column + 0.5) * pixel_mm[1], (row + 0.5) * pixel_mm[0], tag, fontsize=8)


def _bar_length(widest_mm: float) -> float:
    """Choose a round length for the scale bars, at most a fifth of the widest panel."""
    power = 10.0 ** np.floor(np.log10(widest_mm / 5))
    return float(max(step * power for step in (1, 2, 5) if step * power <= widest_mm / 5))


def _write(axes: Any, x: float, y: float, text: str, **options: Any) -> None:
    """Write white text with a dark rim, readable on any ground."""
    from matplotlib.patheffects import withStroke

    rim = [withStroke(linewidth=2, foreground="black")]
    axes.text(x, y, text, color="white", ha="center", va="center", path_effects=rim, **options)


def _drawable(text: str) -> str:
    """Replace what the font has no sign for: matplotlib would warn and draw boxes."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    short = (
        text
        if len(text) <= _LONGEST_TEXT
        else f"{text[: _LONGEST_TEXT - 1]}\N{HORIZONTAL ELLIPSIS}"
    )
    return "".join(letter if ord(letter) in known else "?" for letter in short)


def _legend_columns(texts: Mapping[int, str]) -> int:
    """Choose how many columns fit: about 0.085 inch a letter, and the color's patch."""
    widest = max((len(text) for text in texts.values()), default=1)
    return max(1, min(len(texts), 5, int((_WIDTH_IN - 0.6) / (0.7 + 0.085 * widest))))


def _legend_texts(
    names: Mapping[int, str], tags: Mapping[int, str], labels_dhw: HostArray, voxel_ml: float
) -> dict[int, str]:
    """List every class's tag, name and volume, those that were not found as well."""
    voxels = label_counts(labels_dhw, max(names, default=0) + 1)
    texts = {}
    for label, name in names.items():
        volume_ml = float(voxels[label] * voxel_ml)
        texts[label] = f"{tags[label]}  {name}, " + (
            f"{volume_ml:,.4g} mL" if voxels[label] else "not found"
        )
    return texts


def _draw_legend(
    figure: Any, texts: Mapping[int, str], styles: Mapping[int, _Style], top_in: float
) -> None:
    """Write the legend below the panels, its upper edge `top_in` above the figure's lower one."""
    from matplotlib.patches import Patch

    handles = [
        Patch(
            facecolor=(*styles[label].color, 0.45),
            edgecolor=styles[label].color,
            linestyle=styles[label].line,
            label=_drawable(text),
        )
        for label, text in texts.items()
    ]
    columns = _legend_columns(texts)
    legend = figure.legend(  # which fills columns: rows are to be read
        handles=[each for first in range(columns) for each in handles[first::columns]],
        loc="upper center",
        bbox_to_anchor=(0.5, top_in / figure.get_figheight()),
        ncols=columns,
        fontsize=9.5,
        frameon=False,
        handlelength=1.6,
        borderaxespad=0,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
