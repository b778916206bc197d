"""`medals-rt plan`: what a case will cost, before it is run."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from medals_rt.cli._options import (
    AsJson,
    Select,
    Series,
    prompt_source,
    run_options,
    stage_asked,
    takes,
)
from medals_rt.cli._output import out
from medals_rt.common.choices import STAGE_NAMES
from medals_rt.common.errors import InputError

if TYPE_CHECKING:
    from medals_rt.pipeline.options import PromptSource, RunOptions
    from medals_rt.planning.cost import BudgetPlan, CasePlan, StageChoice, StageCost
    from medals_rt.prompts.classes import ClassKey

EXAMPLES: Final = (
    'medals-rt plan --input scan.nii.gz --prompt "Liver in CT"',
    'medals-rt plan --shape 400,512,512 --spacing 0.8,0.8,1.5 --classes "CT/Liver;CT/Spleen"',
)


@takes(source=prompt_source, options=run_options)
def plan_command(
    *,
    input_file: Annotated[
        Path | None, typer.Option("--input", help="The case; or describe it by --shape and so on.")
    ] = None,
    source: "PromptSource",
    series: Series = None,
    select: Select = None,
    shape: Annotated[str | None, typer.Option(metavar="D,H,W", help="Shape in voxels.")] = None,
    spacing: Annotated[
        str | None, typer.Option(metavar="H,W,D", help="Spacing in mm, with --shape.")
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help='Classes, with --shape: "CT/Liver;CT/Spleen". Without --bundle and '
            "$MEDALS_RT_BUNDLE a network of the released size is planned for.",
        ),
    ] = None,
    stage: Annotated[
        int | None,
        typer.Option(
            min=1, max=2, help="Plan this stage alone, all classes in one run, with --shape."
        ),
    ] = None,
    probabilities: Annotated[
        bool,
        typer.Option("--probabilities", help="Include the memory of probability maps of classes."),
    ] = False,
    options: "RunOptions",
    as_json: AsJson = False,
) -> None:
    """Show geometry, passes, time and memory of a case; run nothing."""
    from medals_rt.common.numbers import three_numbers
    from medals_rt.pipeline.options import without_effect
    from medals_rt.pipeline.plan_case import plan_files, plan_numbers

    options = replace(options, segment=replace(options.segment, probabilities=probabilities))
    if input_file is not None:
        if shape or spacing or classes or stage:
            raise InputError(
                "--shape, --spacing, --classes and --stage describe a case that --input names; "
                "leave out one or the other",
                code="case-twice",
            )
        result = plan_files(input_file, source, options, series, tuple(select or ()))
    elif shape and spacing and classes:
        _refuse_beside_numbers(source, series, select)
        keys = named_classes(classes, source.kind)
        result = plan_numbers(
            three_numbers(shape, int, "--shape D,H,W"),
            three_numbers(spacing, float, "--spacing H,W,D"),
            keys,
            options,
            stage=stage_asked(stage),
        )
        idle = _idle_beside_classes(options, source.kind, {key.kind for key in keys})
        why = "--classes names modality and class"
        result = replace(result, notes=(*result.notes, *without_effect(idle, why)))
    else:
        raise InputError(
            "give --input CASE, or all of --shape, --spacing and --classes", code="case-missing"
        )
    if as_json:
        out.json(result.to_dict())
    else:
        for note in result.notes:
            out.note(note)
        _print_plan(result)


def named_classes(text: str, kind: str) -> "list[ClassKey]":
    """Find the classes of a text such as "CT/Liver;CT/Spleen".

    Parameters
    ----------
    text
        Modality and name of each.
    kind
        Taken of what is both anatomy and lesion.

    Raises
    ------
    InputError
        There is none of that name.
    """
    from medals_rt.prompts.classes import by_exact_name, classes_of

    found = []
    for each in filter(None, map(str.strip, text.split(";"))):
        modality, _, name = each.partition("/")
        of_kind = [key for key in classes_of(modality, kind) if key.name == name]
        found.append(of_kind[0] if of_kind else by_exact_name(modality, name))
    return found


def _idle_beside_classes(options: "RunOptions", kind: str, kinds: "set[str]") -> list[str]:
    """Name options about sentences, of which there are none."""
    reading = options.reading
    return [
        *(["modality"] if reading.modality is not None else []),
        *(["free_text"] if reading.free_text else []),
        *(["kind"] if kind == "lesion" and kind not in kinds else []),
    ]


def _refuse_beside_numbers(
    source: "PromptSource", series: str | None, select: list[str] | None
) -> None:
    """Refuse what --classes says already, and what is about a file.

    Raises
    ------
    InputError
    """
    if not source.is_empty:
        raise InputError(
            "--classes names what is asked for: leave out --prompts, --prompt, --lesion, --group "
            "and --all, or describe the case by --input",
            code="classes-twice",
        )
    if series or select:
        raise InputError(
            "--series and --select choose images of a DICOM case, and --shape describes one "
            "without a file: leave them out, or name it by --input",
            code="series-without-case",
        )


def _print_plan(result: "CasePlan") -> None:
    columns = {"": "left"} | {_name(cost): "right" for cost in result.stages}
    rows = [
        ["spacing (H, W, D), mm", *(_triple(cost.spacing_hwd_mm) for cost in result.stages)],
        ["target spacing, mm", *(_triple(cost.target_spacing_hwd_mm) for cost in result.stages)],
        ["resampled shape", *(_triple(cost.resampled_shape_hwd) for cost in result.stages)],
        ["padded shape", *(_triple(cost.padded_shape_hwd) for cost in result.stages)],
        ["windows", *(_range(c.windows_smallest_region, c.windows) for c in result.stages)],
        ["window runs to fit memory", *(_runs(cost) for cost in result.stages)],
        ["passes", *(_range(c.passes_smallest_region, c.passes) for c in result.stages)],
    ]
    if any(cost.lesions for cost in result.stages):
        iterations = (str(cost.further_iterations if cost.lesions else 0) for cost in result.stages)
        rows.insert(5, ["further iterations of lesions", *iterations])
    count = len(result.classes)
    what = result.classes[0] if count == 1 else f"{count} classes"
    title = f"{what}, preset {result.preset}"
    if len({cost.stage for cost in result.stages}) == 1:
        title += f", {STAGE_NAMES[result.stages[0].stage]} stage alone"
    out.table(title, columns, rows)
    if result.expected_seconds is None:
        out.line("network time: known after the bundle's first run on this machine")
    else:
        least, most = result.expected_seconds
        out.line(f"network time: {_range(least, most)} s (last measured: {result.measured_on})")
    memory = f"{result.expected_peak_memory_mib:,} MiB"
    out.line(f"peak memory: about {memory} with {result.runner} in {result.precision}")
    if result.time_budget is not None:
        _print_budget(result.time_budget)


def _print_budget(budget: "BudgetPlan") -> None:
    seconds = f"{budget.seconds:g} s, {budget.network_seconds:g} s of it for the network"
    out.line(f"time budget: {seconds}")
    if budget.refused is not None:
        out.line(f"a run would be refused: {budget.refused}")
        return
    if budget.smallest_region is None or budget.whole_image is None:
        out.line(
            "what that leaves out is not known: no pass of the bundle was measured on this "
            "machine; name it with --bundle, and run a case with it once"
        )
        return
    columns = {"": "left", "smallest region": "left", "whole image": "left"}
    rows = [
        [f"{_name(one)} stage", _choice(one), _choice(other)]
        for one, other in zip(budget.smallest_region, budget.whole_image, strict=True)
    ]
    out.table("what a run would do", columns, rows)


def _name(stage: "StageCost | StageChoice") -> str:
    """Name a stage, with the intensity window that its classes want where there are several."""
    name = STAGE_NAMES[stage.stage]
    return name if stage.intensity_window is None else f"{stage.intensity_window}: {name}"


def _choice(choice: "StageChoice") -> str:
    seconds = f"{choice.expected_seconds:,.1f} s"
    if not choice.runs:
        return f"not run: it takes at least {seconds}"
    if not choice.fits:
        return f"does not fit: it takes at least {seconds}, and is cut short"
    return f"{choice.degraded or 'everything'}: {seconds}"


def _runs(cost: "StageCost") -> str:
    """Describe how often windows are run, and why more than once."""
    parts = {"blocks": cost.column_blocks, "groups of classes": cost.class_groups}
    cut = " x ".join(f"{count} {what}" for what, count in parts.items() if count > 1)
    return f"{cost.window_runs} ({cut})" if cut else str(cost.window_runs)


def _triple(values: tuple[float, float, float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _range(one: float, other: float) -> str:
    low, high = sorted((one, other))
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
