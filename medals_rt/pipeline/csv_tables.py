"""Tables that spreadsheets open: CSV files, written whole, that can't carry a formula in."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from medals_rt.common.atomic_io import atomic_output
from medals_rt.pipeline.class_statistics import ClassStatistics
from medals_rt.pipeline.lesion_statistics import LesionStatistics

Cell: TypeAlias = str | int | float | bool | None

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")

STATISTICS_COLUMNS: Final = (
    "label", "class", "voxels", "volume_ml", "mean", "sd", "components",
    "i_low", "j_low", "k_low", "i_high", "j_high", "k_high", "i_mm", "j_mm", "k_mm",
)  # fmt: skip
"""Columns of `statistics_row`; what they hold stands at `class_statistics.ClassStatistics`."""

LESION_COLUMNS: Final = (
    "label", "class", "instance", "voxels", "volume_ml", "mean",
    "longest_mm", "axial_longest_mm", "axial_short_mm", "x_mm", "y_mm", "z_mm",
)  # fmt: skip
"""Columns of `lesion_row`; what they hold stands at `lesion_statistics.LesionStatistics`."""


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """Write a table with its headings, atomically.

    Floats keep 6 significant digits, True and False become yes and no, None an empty cell. A text
    that a spreadsheet would run as a formula (names come from files) gets an apostrophe in front.

    Raises
    ------
    OutputError
        The file can't be written.
    """
    with atomic_output(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_text(cell) for cell in row] for row in rows)


def statistics_row(found: ClassStatistics) -> tuple[Cell, ...]:
    """Return one class as cells under `STATISTICS_COLUMNS`."""
    nothing = (None, None, None)
    return (
        found.label,
        found.name,
        found.voxels,
        found.volume_ml,
        found.mean,
        found.sd,
        found.components,
        *(found.low_ijk or nothing),
        *(found.high_ijk or nothing),
        *(found.size_ijk_mm or nothing),
    )


def lesion_row(found: LesionStatistics) -> tuple[Cell, ...]:
    """Return one lesion as cells under `LESION_COLUMNS`."""
    return (
        found.label,
        found.name,
        found.instance,
        found.voxels,
        found.volume_ml,
        found.mean,
        found.longest_mm,
        found.axial_longest_mm,
        found.axial_short_mm,
        *(found.center_lps_mm or (None, None, None)),
    )


def _text(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.6g}"
    if isinstance(cell, str):
        # A file's name may hold bytes that are no text; they stay visible as escapes.
        text = cell.encode("utf-8", "backslashreplace").decode("utf-8")
        guarded = f"'{text}" if text.startswith(_FORMULA) else text
        return guarded.replace("\r", "\n")  # which the writer puts in quotes, and a lone \r not
    return str(cell)
