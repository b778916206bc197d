"""How every benchmark is written down: its figures as JSON, a table for people as Markdown."""

import datetime as dt
from pathlib import Path
from typing import Any

from medals_rt.common.atomic_io import write_json


def today() -> str:
    """Date of a measurement, as reports give it."""
    return dt.datetime.now(dt.UTC).date().isoformat()


def write_report(output: Path, report: dict[str, Any], text: str) -> None:
    """Write `output` with the endings .json and .md, its folder made if missing, and print it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output.with_suffix(".json"), report)
    output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
