"""`medals-rt plan`: what a case will cost, before it is run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medals_rt.cli._console import (
    AsJson,
    Bundle,
    Debug,
    Preset,
    PresetOption,
    Refinement,
    RefinementOption,
    print_table,
)
from medals_rt.cli._options import prompt_source, takes
from medals_rt.common.byte_sizes import parse_size
from medals_rt.common.errors import InputError
from medals_rt.pipeline.options import PromptSource, RunOptions, SegmentOptions

if TYPE_CHECKING:
    from medals_rt.planning.cost import CasePlan, StageCost
    from medals_rt.planning.cost_budget import BudgetPlan, StageChoice

_STAGES = {1: "coarse", 2: "fine"}


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
    time_budget: Annotated[
        float | None,
        typer.Option(
            min=0.1, help="Seconds a class: tell what a run with that budget would leave out."
        ),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Tell the geometry, passes, time and memory of a case without running it."""
    del debug  # read by one_line_errors
    from medals_rt.pipeline.plan_case import plan_files, plan_numbers

    limit = None if max_memory is None else parse_size(max_memory)
    if input_file is not None:
        if shape or spacing or classes or stage:
            raise InputError("--shape, --spacing, --classes and --stage don't go with --input")
        options = RunOptions(
            bundle=bundle,
            segment=SegmentOptions(
                preset=preset.value,
                refinement=refinement.value,
                max_memory=limit,
                time_budget=time_budget,
            ),
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
            time_budget=time_budget,
        )
    else:
        raise InputError("give --input CASE, or all of --shape, --spacing and --classes")
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    else:
        _print_plan(result)


def _print_plan(result: "CasePlan") -> None:
    columns = {"": "left"}
    columns |= {_STAGES[cost.stage]: "right" for cost in result.stages}
    rows = [
        ["spacing (H, W, D), mm", *(_triple(cost.spacing_mm_hwd) for cost in result.stages)],
        ["target spacing, mm", *(_triple(cost.target_spacing_mm_hwd) for cost in result.stages)],
        ["resampled shape", *(_triple(cost.resampled_shape_hwd) for cost in result.stages)],
        ["padded shape", *(_triple(cost.padded_shape_hwd) for cost in result.stages)],
        ["windows", *(_range(c.windows_smallest_region, c.windows) for c in result.stages)],
        ["further iterations of lesions", *(str(cost.iterations) for cost in result.stages)],
        ["window runs to fit memory", *(_runs(cost) for cost in result.stages)],
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
    if result.time_budget is not None:
        _print_budget(result.time_budget)


def _print_budget(budget: "BudgetPlan") -> None:
    seconds = f"{budget.seconds:g} s, {budget.network_seconds:g} s of it for the network"
    typer.echo(f"time budget: {seconds}")
    if budget.smallest_region is None or budget.whole_image is None:
        typer.echo(
            "can't tell what that leaves out: no pass of the bundle was measured on this machine; "
            "give --bundle, and run a case with it once"
        )
        return
    columns = {"": "left", "smallest region": "left", "whole image": "left"}
    rows = [
        [f"{_STAGES[one.stage]} stage", _choice(one), _choice(other)]
        for one, other in zip(budget.smallest_region, budget.whole_image, strict=True)
    ]
    print_table("what a run would do", columns, rows)


def _choice(choice: "StageChoice") -> str:
    seconds = f"{choice.expected_seconds:,.1f} s"
    if not choice.runs:
        return f"not run: it takes {seconds} at the least"
    if not choice.fits:
        return f"does not fit: it takes {seconds} at the least, and is cut short"
    return f"{choice.gives_up or 'everything'}: {seconds}"


def _runs(cost: "StageCost") -> str:
    """Say how often windows are run, and for what that is more than once."""
    parts = {"blocks": cost.column_blocks, "groups of classes": cost.class_groups}
    cut = " x ".join(f"{count} {what}" for what, count in parts.items() if count > 1)
    return f"{cost.window_runs} ({cut})" if cut else str(cost.window_runs)


def _triple(values: tuple[float, float, float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _range(one: float, other: float) -> str:
    low, high = sorted((one, other))
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
