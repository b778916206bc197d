"""`medals-rt bench`: how fast a bundle is here, runners side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medals_rt.cli._console import (
    Bundle,
    Debug,
    PromptsFile,
    Refinement,
    RefinementOption,
    print_table,
    progress_bar,
)
from medals_rt.common.errors import InputError

if TYPE_CHECKING:
    from medals_rt.tools.bench.records import BenchReport


def bench_command(
    *,
    bundle: Bundle = None,
    input_file: Annotated[
        Path | None, typer.Option("--input", help="The case [default: the bundle's first].")
    ] = None,
    prompts: PromptsFile = None,
    runner: Annotated[
        list[str] | None,
        typer.Option(
            help="A library, or one with its precision: openvino, openvino:fp32. Repeat it for "
            "more; the first is measured most closely [default: all that can run the bundle here]."
        ),
    ] = None,
    stage1: Annotated[
        Path | None, typer.Option(help="Coarse checkpoint: adds eager PyTorch, with --stage2.")
    ] = None,
    stage2: Annotated[Path | None, typer.Option(help="Fine checkpoint.")] = None,
    output: Annotated[
        Path, typer.Option(help="Folder for report.json, report.md and report.html.")
    ] = Path("bench"),
    repetitions: Annotated[int, typer.Option(min=1, help="Runs that count.")] = 5,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the inference library.")
    ] = None,
    refinement: RefinementOption = Refinement.MASKED,
    thorough: Annotated[
        bool,
        typer.Option(
            "--thorough/--quick",
            help="Also measure growth with classes and volume, and the machine's own rates.",
        ),
    ] = True,
    debug: Debug = False,
) -> None:
    """Measure a bundle on this machine: cold and warm, steps, memory, growth, against PyTorch."""
    del debug  # read by one_line_errors
    from medals_rt.bundle.bundle import Bundle as OpenBundle
    from medals_rt.bundle.bundle import resolve_bundle
    from medals_rt.tools.bench.backends import parse_contestants, runners_for
    from medals_rt.tools.bench.pages import write_pages
    from medals_rt.tools.bench.run import BenchRequest, run_bench

    if (stage1 is None) != (stage2 is None):
        raise InputError("eager PyTorch needs both checkpoints: --stage1 and --stage2")
    folder = resolve_bundle(bundle)
    case, prompts_file = (input_file, prompts) if input_file else _bundled_case(folder, prompts)
    left_out: tuple[str, ...] = ()
    names = tuple(runner or ())
    if not names:
        names, left_out = runners_for(OpenBundle.open(folder, verify=False))
    for line in left_out:
        typer.echo(line, err=True)
    request = BenchRequest(
        bundle=folder,
        case=case,
        prompts=prompts_file,
        contestants=parse_contestants(names, pytorch=stage1 is not None),
        checkpoints=None if stage1 is None or stage2 is None else (stage1, stage2),
        threads=threads,
        repetitions=repetitions,
        refinement=refinement.value,
        thorough=thorough,
        left_out=left_out,
    )
    with progress_bar() as progress:
        report = run_bench(request, progress)
    written = write_pages(output, report)
    print_summary(report)
    for path in written:
        typer.echo(f"wrote {path}")
    if not report.finished:
        raise typer.Exit(1)


def print_summary(report: "BenchReport") -> None:
    """Print the runners side by side."""
    from medals_rt.tools.bench.pages import row_of

    columns = {
        "runner": "left",
        "arithmetic": "left",
        "case p50, s": "right",
        "p95, s": "right",
        "a class, s": "right",
        "against PyTorch": "right",
        "peak, MiB": "right",
    }
    rows = [
        [r.label, r.arithmetic, r.p50, r.p95, r.per_class, r.against_baseline, r.peak_memory]
        for r in (row_of(each, report) for each in report.standings)
    ]
    print_table(f"{report.case.name}, {len(report.case.prompts)} classes", columns, rows)
    for standing in report.standings:
        if standing.failure:
            typer.echo(f"{standing.contestant.label} failed: {standing.failure}", err=True)


def _bundled_case(folder: Path, prompts: Path | None) -> tuple[Path, Path | None]:
    """Take the first case that lies in the bundle, with the prompts beside it."""
    for case in sorted((folder / "cases").glob("*.npz")):
        beside = case.with_name(f"{case.stem}.prompts.json")
        return case, prompts or (beside if beside.is_file() else None)
    raise InputError(f"bundle {folder} has no cases of its own; name one with --input")
