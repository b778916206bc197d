"""The report's pictures, as SVG text for one self-contained page. Needs matplotlib."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from medals_rt.common.optional_deps import require
from medals_rt.tools.bench.records import Answer, BenchReport, Scaling, Standing, quantile

_INK = "#1f2933"
_QUIET = "#8896a5"
_OURS = "#2f6f8f"
_BASE = "#c9793a"
_GRID = "#e3e8ee"
_STEP_COLORS = (
    "#2f6f8f",
    "#7fb0c6",
    "#c9793a",
    "#e5b98f",
    "#5b8c5a",
    "#a9c8a0",
    "#8d6a9f",
    "#c7b1d1",
    "#9a9a9a",
    "#d0d0d0",
)
_WIDTH_IN = 7.6
_HALF_WIDTH_IN = 4.4
_SHOWN_FROM_S = 0.0005


def runners_plot(report: BenchReport) -> str:
    """Draw the seconds a case takes, p50 with a mark at p95, the fastest on top."""
    rows = sorted(report.finished, key=_median, reverse=True)
    with _figure(0.55 * len(rows) + 0.8) as (axes, svg):
        for y, standing in enumerate(rows):
            seconds = _seconds(standing)
            median, late = quantile(seconds, 0.5), quantile(seconds, 0.95)
            color = _BASE if standing.backend.label == report.baseline else _OURS
            axes.barh(y, median, color=color, height=0.6)
            axes.plot([median, late], [y, y], color=_INK, linewidth=1.2)
            axes.plot([late, late], [y - 0.15, y + 0.15], color=_INK, linewidth=1.2)
            _say(axes, late, y, f"{median:.2f} s")
        axes.set_yticks(range(len(rows)), [row.backend.label for row in rows])
        axes.set_xlabel("seconds a case (bar p50, mark p95)")
        axes.margins(x=0.12)
        axes.set_xlim(left=0)
    return svg()


def waterfall_plot(answer: Answer) -> str:
    """Draw the steps of the median run, one after another."""
    run = sorted(answer.runs, key=lambda each: each.seconds)[len(answer.runs) // 2]
    steps = [(name, s) for name, s in run.steps.items() if s > _SHOWN_FROM_S]
    with _figure(0.32 * len(steps) + 0.9) as (axes, svg):
        start = 0.0
        for row, (_, seconds) in enumerate(steps):
            y = len(steps) - 1 - row
            color = _STEP_COLORS[row % len(_STEP_COLORS)]
            axes.barh(y, seconds, left=start, color=color, height=0.7)
            share = seconds / run.seconds
            _say(axes, start + seconds, y, f"{1000 * seconds:,.0f} ms, {share:.0%}")
            start += seconds
        axes.set_yticks(range(len(steps)), [name for name, _ in reversed(steps)])
        axes.set_xlabel("seconds from the start of the case")
        axes.set_xlim(0, 1.25 * start)
    return svg()


def scaling_plot(scaling: Sequence[Scaling], xlabel: str) -> str:
    """Draw seconds against size, both axes logarithmic."""
    from matplotlib.ticker import LogLocator

    with _figure(2.9, _HALF_WIDTH_IN) as (axes, svg):
        sizes = [each.size for each in scaling]
        axes.plot(
            sizes, [g.text_only_seconds for g in scaling], "o-", color=_OURS, label="text only"
        )
        prompted = [(g.size, g.prompted_seconds) for g in scaling if g.prompted_seconds is not None]
        if prompted:
            x, y = zip(*prompted, strict=True)
            axes.plot(x, y, "s--", color=_BASE, label="with spatial prompts")
            axes.legend(frameon=False)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        low, high = axes.get_ylim()
        axes.set_ylim(low / 1.5, high * 1.5)
        axes.set_xlabel(xlabel)
        axes.set_ylabel("seconds")
    return svg()


def roofline_plot(standing: Standing) -> str | None:
    """Draw the rates that the network reached beside those that the library reaches at best."""
    if standing.roofline is None or standing.roofline.roofline is None or standing.warm is None:
        return None
    roofline = standing.roofline.roofline
    rows = [
        ("matrix product alone", roofline.matrix_tflop_per_second, _QUIET),
        ("convolution alone", roofline.convolution_tflop_per_second, _QUIET),
    ]
    rows += [
        (f"network, {stage.name} stage", rate, _OURS)
        for stage in standing.warm.stages
        if (rate := stage.tflop_per_second) is not None
    ]
    with _figure(0.4 * len(rows) + 0.8) as (axes, svg):
        for row, (_, rate, color) in enumerate(rows):
            y = len(rows) - 1 - row
            axes.barh(y, rate, color=color, height=0.6)
            _say(axes, rate, y, f"{rate:.3g} TFLOP/s")
        axes.set_yticks(range(len(rows)), [name for name, _, _ in reversed(rows)])
        axes.set_xlabel("TFLOP/s")
        axes.margins(x=0.2)
        axes.set_xlim(left=0)
    return svg()


@contextmanager
def _figure(
    height_in: float, width_in: float = _WIDTH_IN
) -> Iterator[tuple[Any, Callable[[], str]]]:
    """Return axes, and a function that turns the finished figure into SVG text."""
    require("a plot", "Matplotlib")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "medals-rt",
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _QUIET,
        "xtick.color": _INK,
        "ytick.color": _INK,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)

        def svg() -> str:
            with mpl.rc_context(style):
                buffer = io.StringIO()
                figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
            text = buffer.getvalue()
            return text[text.index("<svg") :]

        yield axes, svg


def _say(axes: Any, x: float, y: float, text: str) -> None:
    """Write beside the end of a bar."""
    axes.annotate(text, (x, y), xytext=(6, 0), textcoords="offset points", va="center")


def _seconds(standing: Standing) -> list[float]:
    return [] if standing.warm is None else [run.seconds for run in standing.warm.runs]


def _median(standing: Standing) -> float:
    return quantile(_seconds(standing), 0.5)
