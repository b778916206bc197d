"""`index.html` of a batch: every case with its picture, volumes, time and warnings.

One file without scripts that works from a disk, beside the pictures that it links to. Names and
messages come from files and are escaped; a policy in the page forbids scripts and the network.
Needs jinja2 (the extra `preview`).
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from medals_rt.common.atomic_io import atomic_output
from medals_rt.common.distribution import VERSION
from medals_rt.common.templates import fill_template
from medals_rt.pipeline.batch.find import BatchCase
from medals_rt.pipeline.batch.records import Entry
from medals_rt.pipeline.preview import PALETTE

TEMPLATE: Final = "index.html.j2"


@dataclass(frozen=True)
class PageClass:
    """One class of a card: `color` is that of the picture's outline, `share` of the largest."""

    label: int
    name: str
    volume: str
    mean: str
    components: int
    color: str
    share_percent: float


@dataclass(frozen=True)
class PageCard:
    """One case as the page shows it; links are relative to the page and quoted, "" for none."""

    entry: Entry
    picture: str
    result: str
    report: str
    facts: tuple[str, ...]
    classes: tuple[PageClass, ...]


def write_page(
    path: Path,
    title: str,
    cases: Sequence[tuple[BatchCase, Entry]],
    notice: str | None = None,
) -> None:
    """Write the page, atomically.

    Parameters
    ----------
    path
        The file to write.
    title
        What stands above it.
    cases
        What is shown, in this order.
    notice
        What everyone who sees the model's results must be told.

    Raises
    ------
    MissingDependencyError
        Jinja2 is not installed.
    OutputError
        The file can't be written.
    """
    entries = [entry for _, entry in cases]
    text = fill_template(
        "medals_rt.pipeline.batch",
        TEMPLATE,
        title=title,
        notice=notice,
        cards=[card(entry, case, path.parent) for case, entry in cases],
        counts=Counter(entry.status for entry in entries),
        late=sum(entry.late for entry in entries),
        noted=sum(bool(entry.warnings) for entry in entries),
        seconds=duration(sum(entry.seconds or 0 for entry in entries)),
        version=VERSION,
    )
    with atomic_output(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def card(entry: Entry, case: BatchCase, folder: Path) -> PageCard:
    """Collect what the page in `folder` shows of a case."""
    job = case.job
    facts: list[str] = []
    if entry.shape_dhw and entry.spacing_hwd_mm:
        d, h, w = entry.shape_dhw
        spacing = " x ".join(f"{length:.3g}" for length in entry.spacing_hwd_mm)
        facts += [f"{h} x {w} x {d} voxels", f"{spacing} mm (H x W x D)"]
    if entry.seconds is not None and entry.seconds_per_class is not None:
        facts.append(f"{duration(entry.seconds)}, {entry.seconds_per_class:.1f} s a class")
    written = entry.status in {"done", "kept"}
    return PageCard(
        entry=entry,
        picture=_link(job.preview, folder) if written else "",
        result=_link(job.output, folder) if written else "",
        report=_link(job.report, folder) if written else "",
        facts=tuple(facts),
        classes=_classes(entry),
    )


def _classes(entry: Entry) -> tuple[PageClass, ...]:
    largest = max((found.volume_ml for found in entry.classes), default=0) or 1
    return tuple(
        PageClass(
            label=found.label,
            name=found.name,
            volume=f"{found.volume_ml:,.4g} mL" if found.voxels else "not found",
            mean="" if found.mean is None else f"{found.mean:,.1f} ± {found.sd:,.1f}",
            components=found.components,
            color=PALETTE[number % len(PALETTE)],
            share_percent=round(100 * found.volume_ml / largest, 1),
        )
        for number, found in enumerate(entry.classes)
    )


def duration(seconds: float) -> str:
    """Write seconds for people: 3.2 s, 2 min 05 s, 1 h 02 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _link(path: Path | None, folder: Path) -> str:
    """Relative link from a page in `folder` to a file, with what a URL can't hold quoted."""
    if path is None:
        return ""
    relative = os.path.relpath(path.resolve(), folder.resolve()).replace(os.sep, "/")
    return quote(os.fsencode(relative))
