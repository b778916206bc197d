"""`index.html` of a batch: a table over all cases, and of each its picture, volumes and warnings.

One file that works from a disk, beside the pictures that it links to. It holds the cases as JSON
and one script that shows a page of them at a time; a policy allows that script, by its hash, and no
other, and no network. Names and messages come from files: the script puts them in as text only.
Needs jinja2 (the extra `preview`).
"""

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from medals_rt.common.atomic_io import atomic_output
from medals_rt.common.distribution import VERSION
from medals_rt.common.templates import fill_template
from medals_rt.io.palette import hex_color, label_color
from medals_rt.pipeline.batch.outliers import volume_outliers
from medals_rt.pipeline.batch.plan import BatchCase
from medals_rt.pipeline.batch.records import Entry

_PACKAGE: Final = "medals_rt.pipeline.batch"
TEMPLATE: Final = "index.html.j2"
SCRIPT: Final = "index.js"
MOST_CASES: Final = 200_000
"""Of more cases a page shows the first: 100,000 are 43 MB, which browsers open in some seconds."""


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
    seconds = duration(sum(entry.seconds or 0 for _, entry in cases))
    count, cases = len(cases), cases[:MOST_CASES]
    script = resources.files(_PACKAGE).joinpath(SCRIPT).read_text(encoding="utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    text = fill_template(
        _PACKAGE,
        TEMPLATE,
        title=title,
        notice=notice,
        count=count,
        left_out=count - len(cases),
        seconds=seconds,
        version=VERSION,
        script=script,
        script_hash=base64.b64encode(digest).decode(),
        content=_as_json(page_content(cases, path.parent)),
    )
    with atomic_output(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def page_content(cases: Sequence[tuple[BatchCase, Entry]], folder: Path) -> dict[str, Any]:
    """Collect what the page in `folder` shows: texts that recur are listed once, and numbered.

    A row's members are those of `COLUMNS`, a class' those of `CLASS_COLUMNS`.
    """
    texts = _Numbered()
    outliers = volume_outliers([entry for _, entry in cases])
    links = _Links(folder)
    rows = []
    for number, (case, entry) in enumerate(cases):
        job, written = case.job, entry.status in {"done", "kept"}
        rows.append(
            [
                entry.name,
                entry.status,
                entry.error or "",
                "" if written else entry.input,
                texts[", ".join(filter(None, (entry.modality, entry.kind)))],
                entry.shape_dhw,
                entry.spacing_hwd_mm,
                _rounded(entry.seconds),
                _rounded(entry.seconds_per_class),
                int(entry.late),
                [texts[text] for text in entry.warnings],
                [texts[text] for text in entry.remarks],
                [
                    [
                        found.label,
                        texts[found.name],
                        _rounded(found.volume_ml if found.voxels else None),
                        _rounded(found.mean),
                        _rounded(found.sd),
                        found.components,
                        outliers.get((number, place), 0),
                        texts[hex_color(label_color(found.label, found.name))],
                    ]
                    for place, found in enumerate(entry.classes)
                ],
                [links.to(each) for each in (job.output, job.report, job.preview)]
                if written
                else [],
            ]
        )
    return {"texts": texts.all, "cases": rows}


COLUMNS: Final = (
    "name", "status", "error", "input", "what", "shape_dhw", "spacing_hwd_mm", "seconds",
    "seconds_per_class", "late", "warnings", "remarks", "classes", "links",
)  # fmt: skip
"""Members of a row of `page_content`, in order."""
CLASS_COLUMNS: Final = (
    "label",
    "name",
    "volume_ml",
    "mean",
    "sd",
    "components",
    "outlier",
    "color",
)
"""Members of a class in a row, in order; `outlier` is a score of `outliers`, 0 for
none; `color` is that of the class in all outputs."""


class _Numbered:
    """Texts, each once, by number."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._numbers: dict[str, int] = {}

    def __getitem__(self, text: str) -> int:
        number = self._numbers.setdefault(text, len(self.all))
        if number == len(self.all):
            self.all.append(text)
        return number


class _Links:
    """Relative links from a page to files, with what a URL can't hold quoted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._known: dict[Path, str] = {}

    def to(self, path: Path | None) -> str:
        """Link to a file; "" for none."""
        if path is None:
            return ""
        parent = self._known.get(path.parent)
        if parent is None:
            relative = os.path.relpath(path.parent.resolve(), self._folder).replace(os.sep, "/")
            parent = "" if relative == "." else f"{quote(os.fsencode(relative))}/"
            self._known[path.parent] = parent
        # a first part with a colon would be read as a scheme: quote() writes it as %3A
        return parent + quote(os.fsencode(path.name))


def duration(seconds: float) -> str:
    """Write seconds for people: 3.2 s, 2 min 05 s, 1 h 02 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _rounded(value: float | None) -> float | None:
    """Keep what a page shows of a number: five digits."""
    return None if value is None else float(f"{value:.5g}")


def _as_json(content: dict[str, Any]) -> str:
    """Write JSON that can stand in a script element: no text in it ends the element."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return _escaped(text, "<>&\u2028\u2029")


def _escaped(text: str, letters: Iterable[str]) -> str:
    for letter in letters:
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text
