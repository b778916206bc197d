"""`medals-rt run`: segment one case."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medals_rt.cli.console import (
    Bundle,
    Debug,
    Kind,
    Preset,
    PresetOption,
    PromptsFile,
    Refinement,
    RefinementOption,
    Sentences,
    print_table,
    progress_bar,
)

if TYPE_CHECKING:
    from medals_rt.report import RunReport


class Runner(StrEnum):
    """Inference libraries."""

    AUTO = "auto"
    OPENVINO = "openvino"
    ONNXRUNTIME = "onnxruntime"


class Precision(StrEnum):
    """Arithmetic of the network."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


class Window(StrEnum):
    """Hounsfield windows of CT."""

    AUTO = "auto"
    SOFT_TISSUE = "soft tissue"
    LUNG = "lung"
    BRAIN = "brain"
    BONE = "bone"


def run_command(
    *,
    input_file: Annotated[
        Path, typer.Option("--input", help="The case: .npz, .nii, .nii.gz or .nrrd.")
    ],
    prompts: PromptsFile = None,
    prompt: Sentences = None,
    kind: Annotated[Kind, typer.Option(help="What --prompt asks for.")] = Kind.ANATOMY,
    output: Annotated[
        Path | None, typer.Option(help="Where the labels go [default: NAME_seg.npz].")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write a JSON report here.")] = None,
    preview: Annotated[Path | None, typer.Option(help="Write a picture (PNG) here.")] = None,
    bundle: Bundle = None,
    runner: Annotated[Runner, typer.Option(help="Inference library.")] = Runner.AUTO,
    precision: Annotated[
        Precision, typer.Option(help="Arithmetic; auto takes what the processor is good at.")
    ] = Precision.AUTO,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the inference library.")
    ] = None,
    preset: PresetOption = Preset.PAPER,
    refinement: RefinementOption = Refinement.MASKED,
    spatial_prompts: Annotated[
        Path | None, typer.Option(help="Labels that you have drawn, to start from (hybrid mode).")
    ] = None,
    window: Annotated[
        Window, typer.Option(help="Hounsfield window of a CT that is not in 0 to 255.")
    ] = Window.AUTO,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random block masks.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    debug: Debug = False,
) -> None:
    """Segment one case by text prompts."""
    del debug  # read by one_line_errors
    from medals_rt.job import Job, default_output, run_job

    job = Job(
        input=input_file,
        output=output or default_output(input_file),
        prompts_file=prompts,
        sentences=tuple(prompt or ()),
        kind=kind.value,
        report=report,
        preview=preview,
        bundle=bundle,
        spatial_prompts=spatial_prompts,
        runner=runner.value,
        precision=None if precision is Precision.AUTO else precision.value,
        threads=threads,
        preset=preset.value,
        refinement=refinement.value,
        seed=seed,
        window=window.value,
    )
    with progress_bar(quiet=quiet) as progress:
        result = run_job(job, progress)
    if not quiet:
        print_summary(result.report)
        for path in (job.output, job.report, job.preview):
            if path is not None:
                typer.echo(f"wrote {path}")


def print_summary(report: "RunReport") -> None:
    """Print what was found, for people."""
    columns = {"label": "right", "class": "left", "voxels": "right", "mL": "right"}
    lesions = any(found.components is not None for found in report.classes)
    if lesions:
        columns["lesions"] = "right"
    rows = []
    for found in report.classes:
        row = [str(found.label), found.name, f"{found.voxels:,}", f"{found.volume_ml:,.2f}"]
        rows.append([*row, str(found.components or 0)] if lesions else row)
    print_table(report.case, columns, rows)
    typer.echo(
        f"{report.seconds['total']:.1f} s, {report.seconds_per_class:.1f} s a class "
        f"({report.runner} {report.precision} on {report.device}, preset {report.preset})"
    )
