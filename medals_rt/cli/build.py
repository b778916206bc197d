"""`medals-rt build`: make TensorRT or TensorRT-RTX engines of a bundle's graphs."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from medals_rt.cli._completion import complete_recipe
from medals_rt.cli._options import Bundle
from medals_rt.cli._output import out
from medals_rt.common.choices import STAGE_NAMES, TensorRTKind
from medals_rt.common.errors import InputError
from medals_rt.common.gpu import find_gpu

if TYPE_CHECKING:
    from medals_rt.bundle.engines import BuildProgress, BuiltEngine, EngineInspection


EXAMPLES: Final = (
    "medals-rt build --target tensorrt-rtx --bundle engines/mine",
    "medals-rt build --target tensorrt-rtx --bundle engines/mine --arch SM89 --arch SM120",
    "medals-rt build --target tensorrt --bundle engines/mine --recipe h100-fp16",
    "medals-rt build --target tensorrt-rtx --bundle engines/mine --inspect --json layers.json",
)


def build_command(
    *,
    target: Annotated[
        TensorRTKind,
        typer.Option(
            help="tensorrt builds on the GPU that will run the engines; tensorrt-rtx needs none."
        ),
    ],
    bundle: Bundle = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            autocompletion=complete_recipe,
            help="A recipe that comes with medals-rt, such as rtx-fp16, or a file [default: the "
            "one for the target, the GPU and the bundle's precision].",
        ),
    ] = None,
    arch: Annotated[
        list[str] | None,
        typer.Option(
            help="Compute capability to build for, instead of those of the recipe: SM89 is 8.9, "
            "CURRENT that of this machine's GPU. Repeat it for more; tensorrt-rtx only."
        ),
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Also build engines that exist already.")
    ] = False,
    inspect: Annotated[
        bool,
        typer.Option(
            "--inspect",
            help="Print the layers of each engine, what they compute in, and their kernels; "
            "without a GPU its graph's, as the library parsed it.",
        ),
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write the engines' layers as JSON here, with --inspect."),
    ] = None,
) -> None:
    """Build TensorRT or TensorRT-RTX engines of a bundle's graphs.

    They go into the bundle's folder engines: those of all graphs, or none.
    """
    from medals_rt.bundle.bundle import Bundle as OpenedBundle
    from medals_rt.bundle.bundle import resolve_bundle
    from medals_rt.bundle.recipes import read_recipe, recipe_for
    from medals_rt.common.atomic_io import prepare_output, write_json
    from medals_rt.common.plugins import load_plugin
    from medals_rt.runners.tensorrt_library import open_library

    if json_file is not None:
        if not inspect:
            raise InputError("--json belongs to --inspect; give both", code="inspect-missing")
        prepare_output(json_file)
    build_engines = load_plugin("build", "medals-rt build")

    with out.progress() as progress:
        folder = resolve_bundle(bundle, progress)
    opened = OpenedBundle.open(folder)
    name, content = (
        recipe_for(target, opened.precision, _architecture(target, arch or ()))
        if recipe is None
        else (recipe, read_recipe(recipe))
    )
    library = open_library(target)
    began = time.perf_counter()
    with _build_bars() as report:
        engines = build_engines(
            opened,
            library,
            name,
            content,
            architectures=tuple(arch or ()),
            rebuild=rebuild,
            inspect=inspect,
            report=report,
        )
    inspections = [each.inspection for each in engines if each.inspection is not None]
    for each in inspections:
        _print_layers(each)
    if json_file is not None:
        write_json(json_file, {"format": 1, "engines": [_as_json(each) for each in inspections]})
    _print_engines(f"{library.label} {library.version}, recipe {name}", engines)
    count = sum(each.built for each in engines)
    out.line(f"built {count} engines in {time.perf_counter() - began:.1f} s")


def _architecture(target: TensorRTKind, asked: Sequence[str]) -> str | None:
    """Return the only architecture to build for; None where it is not known, or several are."""
    if target == "tensorrt" or list(asked) == ["CURRENT"]:
        gpu = find_gpu()
        return None if gpu is None else gpu.architecture
    return asked[0] if len(asked) == 1 else None


@contextmanager
def _build_bars() -> Iterator["Callable[[BuildProgress], None] | None"]:
    """Draw engines done, and below it the phase that the library is in; None as `out.bars`."""
    with out.bars("elapsed") as bars:
        if bars is None:
            yield None
            return
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


def _print_layers(found: "EngineInspection") -> None:
    """Print an engine's layers; before it is loaded on a GPU, those that were parsed."""
    record = found.record
    counts = Counter(layer.precision or "?" for layer in found.layers)
    title = (
        f"{STAGE_NAMES[record.stage]} {record.graph}: {len(found.layers)} layers "
        f"({', '.join(f'{count} {precision}' for precision, count in counts.most_common())}), "
        f"{record.bytes / 1e6:,.1f} MB"
    )
    if found.scratch_bytes is not None:
        title += f", {found.scratch_bytes / 1e6:,.1f} MB of scratch memory"
    if found.source == "network":
        title += "; as parsed: there is no GPU to load the engine with"
    columns = {"layer": "left", "kind": "left", "type": "left", "shape": "left", "kernel": "left"}
    rows = [
        [layer.name, layer.kind, layer.precision, layer.shape, layer.tactic]
        for layer in found.layers
    ]
    out.table(title, columns, rows)


def _as_json(found: "EngineInspection") -> dict[str, object]:
    return {
        "stage": STAGE_NAMES[found.record.stage],
        "graph": found.record.graph,
        "library": f"{found.record.key.library} {found.record.key.version}",
        "architectures": found.record.key.architectures,
        "bytes": found.record.bytes,
        "scratch_bytes": found.scratch_bytes,
        "source": found.source,
        "layers": [asdict(layer) for layer in found.layers],
    }


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
                STAGE_NAMES[record.stage],
                record.graph,
                " ".join(record.key.architectures),
                "" if counts is None else f"{counts.least} to {counts.most}",
                f"{record.bytes / 1e6:,.1f}",
                "built" if each.built else "existed",
            ]
        )
    out.table(title, columns, rows)
