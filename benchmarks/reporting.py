"""How every benchmark is written down: its figures as JSON, a table for people as Markdown."""

import argparse
import datetime as dt
from pathlib import Path
from typing import Any

from medals_rt.common.atomic_io import write_json
from medals_rt.common.environment import library_versions, machine_facts


def new_parser(doc: str | None) -> argparse.ArgumentParser:
    """Parser of a script with this docstring, that is told where to write its report."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="without ending")
    return parser


def today() -> str:
    """Date of a measurement, as reports give it."""
    return dt.datetime.now(dt.UTC).date().isoformat()


def circumstances() -> dict[str, Any]:
    """When and where it was measured, and with which libraries."""
    return {"date": today(), "machine": machine_facts(), "versions": library_versions()}


def write_report(output: Path, report: dict[str, Any], text: str) -> None:
    """Write `output` with the endings .json and .md, its folder made if missing, and print it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output.with_suffix(".json"), report)
    output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
