"""`report.md` and `report.html` of a benchmark: the same tables, the page with pictures.

Needs jinja2 and, for the page, matplotlib (the extra `bench`).
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from medals_rt.common.atomic_io import atomic_output
from medals_rt.common.templates import fill_template
from medals_rt.tools.bench import plots
from medals_rt.tools.bench.records import Answer, BenchReport, Standing, quantile


@dataclass(frozen=True)
class Row:
    """One backend as the tables show it; cells are text, "" where nothing was measured."""

    label: str
    arithmetic: str
    cold_open: str
    cold_first: str
    warm_open: str
    p50: str
    p95: str
    per_class: str
    against_baseline: str
    peak_memory: str
    peak_gpu_memory: str
    failure: str


@dataclass(frozen=True)
class Headline:
    """One large figure with what it says."""

    figure: str
    meaning: str


def write_pages(folder: Path, report: BenchReport) -> tuple[Path, ...]:
    """Write `report.json`, `report.md` and `report.html` into a folder, made if missing.

    Raises
    ------
    MissingDependencyError
        jinja2 or matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "report.json": msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n",
        "report.md": render("report.md.j2", report, pictures=False),
        "report.html": render("report.html.j2", report, pictures=True),
    }
    for name, text in contents.items():
        with atomic_output(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return tuple(folder / name for name in contents)


def render(template: str, report: BenchReport, *, pictures: bool) -> str:
    """Fill a template of this package."""
    return fill_template(
        "medals_rt.tools.bench",
        template,
        report=report,
        rows=[row_of(each, report) for each in report.standings],
        headlines=headlines(report),
        pictures=draw(report) if pictures else {},
        leader=leader(report),
    )


def leader(report: BenchReport) -> Standing | None:
    """Return the backend that was measured most closely: the first, if its case was timed."""
    finished = report.finished
    return finished[0] if finished else None


def draw(report: BenchReport) -> dict[str, str]:
    """Draw every picture that there are figures for, SVG by name."""
    found: dict[str, str | None] = {}
    first = leader(report)
    if first is not None and first.warm is not None:
        found["runners"] = plots.runners_plot(report)
        found["waterfall"] = plots.waterfall_plot(first.warm)
        found["roofline"] = plots.roofline_plot(first)
        if first.classes is not None:
            found["classes"] = plots.scaling_plot(first.classes.scaling, "classes")
        if first.volumes is not None:
            found["volumes"] = plots.scaling_plot(first.volumes.scaling, "voxels of the image")
    return {name: picture for name, picture in found.items() if picture is not None}


def row_of(standing: Standing, report: BenchReport) -> Row:
    """Put a backend's figures into words."""
    cold, warm = standing.cold, standing.warm
    seconds = _seconds(warm)
    best_known = warm or cold
    baseline = next(
        (_seconds(s.warm) for s in report.finished if s.backend.label == report.baseline), []
    )
    return Row(
        label=standing.backend.label,
        arithmetic="" if best_known is None else f"{best_known.precision}, {best_known.device}",
        cold_open="" if cold is None else f"{cold.open_seconds:.2f}",
        cold_first="" if cold is None else f"{cold.runs[0].seconds:.2f}",
        warm_open="" if warm is None else f"{warm.open_seconds:.2f}",
        p50=_at(seconds, 0.5),
        p95=_at(seconds, 0.95),
        per_class=_per_class(seconds, report),
        against_baseline=(
            f"{quantile(baseline, 0.5) / quantile(seconds, 0.5):.2f}x"
            if baseline and seconds
            else ""
        ),
        peak_memory=_mib(None if warm is None else warm.peak_memory_mib),
        peak_gpu_memory=_mib(None if warm is None else warm.peak_gpu_memory_mib),
        failure=standing.failure or "",
    )


def headlines(report: BenchReport) -> tuple[Headline, ...]:
    """Choose the figures that people ask for first."""
    first = leader(report)
    if first is None or first.warm is None:
        return ()
    row = row_of(first, report)
    found = [
        Headline(f"{row.p50} s", f"a case, {first.backend.label}, models open (p50)"),
        Headline(
            f"{row.per_class} s", f"a class; the budget is {report.budget_seconds_per_class:g} s"
        ),
    ]
    if row.against_baseline and first.backend.label != report.baseline:
        found.append(Headline(row.against_baseline, f"as fast as {report.baseline} autocast"))
    if row.peak_memory:
        found.append(Headline(f"{row.peak_memory} MiB", "of memory at most"))
    return tuple(found)


def _seconds(answer: Answer | None) -> list[float]:
    return [] if answer is None else [run.seconds for run in answer.runs]


def _at(seconds: list[float], share: float) -> str:
    return f"{quantile(seconds, share):.2f}" if seconds else ""


def _per_class(seconds: list[float], report: BenchReport) -> str:
    return f"{quantile(seconds, 0.5) / len(report.case.prompts):.2f}" if seconds else ""


def _mib(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"
