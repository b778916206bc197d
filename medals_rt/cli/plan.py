"""`medals-rt plan`: what a case will cost, before it is run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medals_rt.cli.console import (
    AsJson,
    Bundle,
    Debug,
    Preset,
    PresetOption,
    Refinement,
    RefinementOption,
    print_table,
)
from medals_rt.cli.options import prompt_source, takes
from medals_rt.errors import InputError
from medals_rt.options import PromptSource, RunOptions
from medals_rt.sizes import parse_size

if TYPE_CHECKING:
    from medals_rt.plan import CasePlan


@takes(source=prompt_source)
def plan_command(
    *,
    input_file: Annotated[
        Path | None, typer.Option("--input", help="The case, or give --shape and so on.")
    ] = None,
    source: PromptSource,
    shape: Annotated[str | None, typer.Option(metavar="D,H,W", help="Shape in voxels.")] = None,
    spacing: Annotated[
        str | None, typer.Option(metavar="H,W,D", help="Spacing in mm, with --shape.")
    ] = None,
    classes: Annotated[str | None, typer.Option(help='With --shape: "CT/Liver;CT/Spleen".')] = None,
    stage: Annotated[
        int | None, typer.Option(min=1, max=2, help="With --shape: only this stage.")
    ] = None,
    preset: PresetOption = Preset.PAPER,
    refinement: RefinementOption = Refinement.MASKED,
    bundle: Bundle = None,
    max_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory that the run may take, such as 6GB.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Tell the geometry, passes, time and memory of a case without running it."""
    del debug  # read by one_line_errors
    from medals_rt.plan_inputs import plan_files, plan_numbers

    limit = None if max_memory is None else parse_size(max_memory)
    if input_file is not None:
        if shape or spacing or classes or stage:
            raise InputError("--shape, --spacing, --classes and --stage don't go with --input")
        options = RunOptions(
            bundle=bundle,
            preset=preset.value,
            refinement=refinement.value,
            max_memory=limit,
        )
        result = plan_files(input_file, source, options)
    elif shape and spacing and classes:
        result = plan_numbers(
            shape,
            spacing,
            classes,
            kind=source.kind,
            stage=stage,
            bundle=bundle,
            preset=preset.value,
            refinement=refinement.value,
            max_memory=limit,
        )
    else:
        raise InputError("give --input CASE, or all of --shape, --spacing and --classes")
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    else:
        _print_plan(result)


def _print_plan(result: "CasePlan") -> None:
    columns = {"": "left"}
    columns |= {("coarse", "fine")[cost.stage - 1]: "right" for cost in result.stages}
    rows = [
        ["spacing (H, W, D), mm", *(_triple(cost.spacing_mm_hwd) for cost in result.stages)],
        ["target spacing, mm", *(_triple(cost.target_spacing_mm_hwd) for cost in result.stages)],
        ["resampled shape", *(_triple(cost.resampled_shape_hwd) for cost in result.stages)],
        ["padded shape", *(_triple(cost.padded_shape_hwd) for cost in result.stages)],
        ["windows", *(_range(c.windows_smallest_region, c.windows) for c in result.stages)],
        ["further iterations of lesions", *(str(cost.iterations) for cost in result.stages)],
        ["walks over the windows", *(str(cost.class_groups) for cost in result.stages)],
        ["passes", *(_range(c.passes_smallest_region, c.passes) for c in result.stages)],
    ]
    count = len(result.classes)
    what = result.classes[0] if count == 1 else f"{count} classes"
    print_table(f"{what}, preset {result.preset}", columns, rows)
    if result.expected_seconds is None:
        typer.echo("network time: known after a first run of the bundle on this machine")
    else:
        least, most = result.expected_seconds
        typer.echo(f"network time: {_range(least, most)} s (last measured: {result.measured_on})")
    typer.echo(f"peak memory: about {result.expected_peak_memory_mib:,} MiB")


def _triple(values: tuple[float, float, float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _range(one: float, other: float) -> str:
    low, high = sorted((one, other))
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
