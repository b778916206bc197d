"""`docs/report.md` and the report: whoever reads one must find the other's members and codes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from medals_rt.bundle.bundle import Bundle
from medals_rt.io.registry import read_case
from medals_rt.io.volume import Volume
from medals_rt.pipeline.report import REPORT_FORMAT
from medals_rt.pipeline.segmenter import Segmenter
from tests.dicom import write_series
from tests.paths import ROOT

PAGE = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
QUOTED = set(re.findall(r"`([^`]+)`", PAGE))
FREE = {"seconds", "versions", "machine", "budget"}
"""Members whose own members are names of steps, libraries and devices."""


def members(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every member of a report, and its path."""
    if isinstance(value, dict):
        for name, below in value.items():
            yield name, f"{place}.{name}".lstrip(".")
            if name not in FREE:
                yield from members(below, f"{place}.{name}")
    elif isinstance(value, list | tuple):
        for each in value:
            yield from members(each, place)


def note_codes() -> Iterator[str]:
    """The code of every note that the sources make."""
    for folder in ("medals_rt", "medals_serve"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            constants = {
                target.id: each.value
                for node in tree.body
                if isinstance(node, ast.Assign | ast.AnnAssign)
                for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
                if isinstance(target, ast.Name) and isinstance(each := node.value, ast.Constant)
            }
            for node in ast.walk(tree):
                if not isinstance(node, ast.Call) or not node.args:
                    continue
                makers = {each.id for each in ast.walk(node.func) if isinstance(each, ast.Name)}
                code = node.args[0]
                if not makers & {"Note", "warning", "note"}:
                    continue
                if isinstance(code, ast.Constant):
                    yield str(code.value)
                elif isinstance(code, ast.Name) and code.id in constants:
                    yield str(constants[code.id])


def test_every_member_is_explained(tiny_bundle: Bundle) -> None:
    volume = Volume(np.arange(2048, dtype=np.int16).reshape(8, 16, 16), (4.0, 4.0, 4.0))
    with Segmenter.open(tiny_bundle, threads=1) as segmenter:
        report = segmenter.segment(volume, ["Liver in abdominal CT"]).report.to_dict()
    assert report["format"] == REPORT_FORMAT
    assert f"this form: {REPORT_FORMAT}." in PAGE
    named = QUOTED | {each.partition(".")[0] for each in QUOTED}
    unknown = [path for name, path in members(report) if not {name, path} & named]
    assert unknown == []


def test_what_a_person_wrote_is_told(tmp_path: Path) -> None:
    """The page says which members repeat free text of a DICOM series or of a file's name."""
    write_series(
        tmp_path / "Doe^Jane", np.zeros((3, 4, 5), np.int16), np.diag([2.0, 2.0, 3.0, 1.0])
    )
    case = read_case(tmp_path / "Doe^Jane")
    assert case.volume.name == "Doe^Jane"
    head = PAGE.partition("## What was asked for")[0]
    for member in ("case", "image.origin.series_description", "image.origin"):
        assert f"`{member}`" in head
    assert {"series_description", "series_instance_uid"} <= case.origin.keys()


def test_every_code_of_a_note_is_explained() -> None:
    codes = set(note_codes())
    assert len(codes) > 60
    assert codes - QUOTED == set()


def test_no_code_is_explained_that_no_note_has() -> None:
    table = PAGE.partition("## Notes")[2]
    rows = re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE)
    explained = {code for row in rows for code in re.findall(r"`([^`]+)`", row)}
    assert explained - set(note_codes()) == set()
    assert Path(ROOT / "docs" / "README.md").read_text(encoding="utf-8").count("(report.md)") == 1
