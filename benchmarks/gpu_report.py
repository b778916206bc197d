r"""The report of one part of `gpu.sh`: it is on disk after every row, so that none is lost.

    python benchmarks/gpu_report.py --output benchmarks/results/gpu/tests --result passed \
        --seconds 12 --limit 240

As a program it notes how a part ended: in the report that the part left, or in one of its own.
"""

import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
from reporting import new_parser, today

from medals_rt.common.atomic_io import write_json
from medals_rt.common.choices import RunnerKind
from medals_rt.common.environment import library_versions, machine_facts
from medals_rt.common.gpu import find_gpu
from medals_rt.runners.selection import installed

_PACKAGES = ("torch", "cupy-cuda12x", "cupy-cuda13x", "cucim-cu12", "cucim-cu13", "onnxruntime-gpu")


def facts() -> dict[str, Any]:
    """Return date, GPU, driver, processor and versions: what a figure is worth nothing without."""
    gpu = find_gpu()
    versions = library_versions()
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "date": today(),
        "gpu": None if gpu is None else gpu.name,
        "gpu_memory_mib": None if gpu is None else gpu.memory_bytes >> 20,
        "driver": None if gpu is None else gpu.driver,
        "machine": machine_facts(),
        "versions": versions,
    }


class PartReport:
    """Rows of a table, written as `output` with the endings .json and .md after each.

    Parameters
    ----------
    output
        Without ending.
    title
        The question that the part answers.
    columns
        Keys of the rows, in the table's order; rows may have more.
    """

    def __init__(self, output: Path, title: str, columns: Sequence[str]) -> None:
        self._output = output
        self._columns = columns
        self._content: dict[str, Any] = {"title": title, **facts(), "rows": [], "remarks": []}
        output.parent.mkdir(parents=True, exist_ok=True)
        self._write()

    def add(self, **row: Any) -> None:
        """Add a row, and write the report."""
        self._content["rows"].append(row)
        print(row, flush=True)
        self._write()

    def remark(self, text: str) -> None:
        """Add a line below the table, and write the report."""
        self._content["remarks"].append(text)
        print(text, flush=True)
        self._write()

    def _write(self) -> None:
        write_json(self._output.with_suffix(".json"), self._content)
        text = markdown(self._content, self._columns)
        self._output.with_suffix(".md").write_text(text, encoding="utf-8")


def usable_runners(report: PartReport, kinds: Iterable[RunnerKind]) -> list[RunnerKind]:
    """Return those that are installed here; a remark names the others."""
    found = {kind: installed(kind) for kind in kinds}
    for kind, is_there in found.items():
        if not is_there:
            report.remark(f"Not installed here: {kind}.")
    return [kind for kind, is_there in found.items() if is_there]


def markdown(content: dict[str, Any], columns: Sequence[str]) -> str:
    """Write a report as text and one table."""
    versions = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    where = content["gpu"] or f"no GPU: {content['machine']['processor']}"
    lines = [f"# {content['title']}", "", f"{content['date']}, {where}, {content['driver'] or ''}."]
    lines += [f"{versions}.", ""]
    if columns:
        lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        lines += [
            f"| {' | '.join(str(row.get(column, '')) for column in columns)} |"
            for row in content["rows"]
        ]
    return "\n".join([*lines, "", *(f"- {remark}" for remark in content["remarks"])]) + "\n"


def main() -> None:
    """Note how a part ended."""
    parser = new_parser(__doc__)
    parser.add_argument("--result", required=True)
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--limit", type=int, required=True)
    options = parser.parse_args()
    ended = {"result": options.result, "seconds": options.seconds, "limit": options.limit}
    record, text = options.output.with_suffix(".json"), options.output.with_suffix(".md")
    line = f"Ended: {options.result}, after {options.seconds} s of at most {options.limit} s.\n"
    if record.is_file():
        write_json(record, {**facts(), **msgspec.json.decode(record.read_bytes()), "ended": ended})
        with text.open("a", encoding="utf-8") as file:
            file.write(f"\n{line}")
        return
    log = options.output.with_suffix(".log")
    said = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    content = {**facts(), "title": options.output.name, "rows": [], "remarks": said[-20:]}
    write_json(record, {**content, "ended": ended})
    text.write_text(f"{markdown(content, ())}\n{line}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
