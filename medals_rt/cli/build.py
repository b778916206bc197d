"""`medals-rt build`: make TensorRT or TensorRT-RTX engines of a bundle's graphs."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from medals_rt.cli._console import Bundle, Debug, print_table

if TYPE_CHECKING:
    from medals_rt.bundle.engines import BuildProgress, BuiltEngine


class Target(StrEnum):
    """Libraries that engines are built for."""

    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


def build_command(
    *,
    target: Annotated[
        Target,
        typer.Option(
            help="tensorrt builds on the card that is to run it; tensorrt-rtx needs no card."
        ),
    ],
    bundle: Bundle = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A recipe's file, or the name of one that comes with medals-rt, such as "
            "rtx-fp16 [default: the one for the target and the bundle's precision]."
        ),
    ] = None,
    arch: Annotated[
        list[str] | None,
        typer.Option(
            help="Build for this compute capability (SM89 is 8.9, CURRENT this machine's card), "
            "not for those of the recipe; repeat it for more. tensorrt-rtx only."
        ),
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Build also the engines that are there.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    debug: Debug = False,
) -> None:
    """Build engines of all graphs of a bundle, into its folder engines: all or none."""
    del debug  # read by one_line_errors
    from medals_rt.bundle.bundle import Bundle as OpenedBundle
    from medals_rt.bundle.bundle import resolve_bundle
    from medals_rt.bundle.recipes import read_recipe, recipe_for
    from medals_rt.common.plugins import load_plugin
    from medals_rt.runners.tensorrt_library import open_library

    build_engines = load_plugin("build", "medals-rt build")

    opened = OpenedBundle.open(resolve_bundle(bundle))
    name, content = (
        recipe_for(target.value, opened.precision)
        if recipe is None
        else (recipe, read_recipe(recipe))
    )
    library = open_library(target.value)
    began = time.perf_counter()
    with _build_bars(quiet=quiet) as report:
        engines = build_engines(
            opened,
            library,
            name,
            content,
            architectures=tuple(arch or ()),
            rebuild=rebuild,
            report=report,
        )
    if not quiet:
        _print_engines(f"{library.label} {library.version}, recipe {name}", engines)
        count = sum(each.built for each in engines)
        typer.echo(f"built {count} engines in {time.perf_counter() - began:.1f} s")


@contextmanager
def _build_bars(*, quiet: bool) -> Iterator["Callable[[BuildProgress], None] | None"]:
    """Draw engines done, and below it the phase that the library is in; None without a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:32.32}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bars:
        engines = bars.add_task("engines", total=None)
        phase = bars.add_task("", total=None)

        def report(progress: "BuildProgress") -> None:
            bars.update(
                engines,
                description=progress.graph,
                completed=progress.engines_done,
                total=progress.engines,
            )
            bars.update(
                phase,
                description=progress.phase,
                completed=progress.steps_done,
                total=progress.steps,
            )

        yield report


def _print_engines(title: str, engines: tuple["BuiltEngine", ...]) -> None:
    columns = {
        "stage": "left",
        "graph": "left",
        "for": "left",
        "prompts": "right",
        "MB": "right",
        "": "left",
    }
    rows = []
    for each in engines:
        record = each.engine.record
        counts = record.key.prompt_counts
        rows.append(
            [
                "coarse" if record.stage == 1 else "fine",
                record.graph,
                " ".join(record.key.architectures),
                "" if counts is None else f"{counts.least} to {counts.most}",
                f"{record.bytes / 1e6:,.1f}",
                "built" if each.built else "was there",
            ]
        )
    print_table(title, columns, rows)
