"""`medals-rt bench`: how fast a bundle is here, runners side by side."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from medals_rt.cli._completion import complete_backend
from medals_rt.cli._errors import EXIT_DONE, EXIT_FAILURE
from medals_rt.cli._options import Bundle, PromptsFile, RefinementOption, Threads
from medals_rt.cli._output import out
from medals_rt.common.errors import InputError

if TYPE_CHECKING:
    from medals_rt.runners.winograd.choice import Timing
    from medals_rt.tools.bench.records import BenchReport

EXAMPLES: Final = (
    "medals-rt bench --quick",
    "medals-rt bench --runner openvino:bf16 --runner onnxruntime",
    "medals-rt bench --convolution",
)


_BESIDE_CONVOLUTION: Final = ("convolution", "threads")


def bench_command(
    context: typer.Context,
    *,
    bundle: Bundle = None,
    input_file: Annotated[
        Path | None, typer.Option("--input", help="The case [default: the bundle's first].")
    ] = None,
    prompts: PromptsFile = None,
    runner: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:PRECISION]",
            autocompletion=complete_backend,
            help="Runner to measure, such as openvino or openvino:fp32; repeat it for more, the "
            "first is measured in most detail [default: all that can run the bundle here].",
        ),
    ] = None,
    stage1: Annotated[
        Path | None,
        typer.Option(help="Coarse checkpoint; with --stage2, eager PyTorch is measured too."),
    ] = None,
    stage2: Annotated[Path | None, typer.Option(help="Fine checkpoint.")] = None,
    output: Annotated[
        Path, typer.Option(help="Folder for report.json, report.md and report.html.")
    ] = Path("bench"),
    repetitions: Annotated[int, typer.Option(metavar="N", min=1, help="Timed runs.")] = 5,
    threads: Threads = None,
    refinement: RefinementOption = "masked",
    thorough: Annotated[
        bool,
        typer.Option(
            "--thorough/--quick",
            help="Also measure scaling with classes and volume, and the machine's peak rates.",
        ),
    ] = True,
    convolution: Annotated[
        bool,
        typer.Option(
            "--convolution",
            help="Only time OpenVINO's convolutions beside Winograd's on this machine, and let "
            "--convolution auto of other commands decide by what is found.",
        ),
    ] = False,
) -> int:
    """Measure latency, steps, memory and scaling of each runner."""
    from medals_rt.bundle.bundle import Bundle as OpenBundle
    from medals_rt.bundle.bundle import resolve_bundle
    from medals_rt.tools.bench.backends import parse_backends, runners_for
    from medals_rt.tools.bench.pages import write_pages
    from medals_rt.tools.bench.run import BenchRequest, run_bench

    if convolution:
        _refuse_beside_convolution(context)
        return _bench_convolutions(threads)
    if (stage1 is None) != (stage2 is None):
        raise InputError(
            "eager PyTorch needs both checkpoints: --stage1 and --stage2", code="checkpoint-missing"
        )
    with out.progress() as progress:
        folder = resolve_bundle(bundle, progress)
    case, prompts_file = (input_file, prompts) if input_file else _bundled_case(folder, prompts)
    left_out: tuple[str, ...] = ()
    names = tuple(runner or ())
    if not names:
        names, left_out = runners_for(OpenBundle.open(folder, verify=False))
    for line in left_out:
        out.remark(line)
    request = BenchRequest(
        bundle=folder,
        case=case,
        prompts=prompts_file,
        backends=parse_backends(names, pytorch=stage1 is not None),
        checkpoints=None if stage1 is None or stage2 is None else (stage1, stage2),
        threads=threads,
        repetitions=repetitions,
        refinement=refinement,
        thorough=thorough,
        left_out=left_out,
    )
    with out.progress() as progress:
        report = run_bench(request, progress)
    written = write_pages(output, report)
    print_summary(report)
    out.wrote(*written)
    return EXIT_DONE if report.finished else EXIT_FAILURE


def _bench_convolutions(threads: int | None) -> int:
    """Measure convolutions, keep what was found, also until an interruption, and print it."""
    from medals_rt.tools.bench.convolutions import time_convolutions

    timings: list[Timing] = []
    try:
        with out.progress() as progress:
            timings.extend(time_convolutions(threads, progress))
    finally:
        if timings:
            _keep_timings(timings)
    return EXIT_DONE


def _refuse_beside_convolution(context: typer.Context) -> None:
    """Refuse options of other measurements; those of a configuration file are passed over.

    Raises
    ------
    InputError
    """
    others = inspect.signature(bench_command).parameters.keys() - set(_BESIDE_CONVOLUTION)
    given = [
        "/".join((*each.opts, *each.secondary_opts))
        for each in context.command.params
        if each.name in others and _typed(context, each.name)
    ]
    if given:
        raise InputError(
            "--convolution measures layers of its own, on OpenVINO, and takes only --threads: "
            f"leave out {', '.join(given)}",
            code="option-beside-convolution",
        )


def _typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _keep_timings(timings: "Sequence[Timing]") -> None:
    from medals_rt.runners.winograd.choice import keep

    columns = {
        "precision": "left",
        "channels": "right",
        "voxels": "right",
        "direct, s": "right",
        "winograd, s": "right",
        "times as fast": "right",
        "auto": "left",
    }
    rows = [
        [
            each.precision,
            str(each.channels),
            f"{each.voxels:,}",
            f"{each.direct_seconds:.4f}",
            f"{each.winograd_seconds:.4f}",
            f"{each.ratio:.2f}",
            "winograd" if each.pays else "direct",
        ]
        for each in timings
    ]
    out.table("convolutions, processor seconds", columns, rows)
    file = keep(timings)
    if file is None:
        out.remark("there is no home folder to keep this in; set MEDALS_RT_CACHE")
    else:
        out.wrote(file)


def print_summary(report: "BenchReport") -> None:
    """Print the runners side by side."""
    from medals_rt.tools.bench.pages import row_of

    columns = {
        "runner": "left",
        "arithmetic": "left",
        "case p50, s": "right",
        "p95, s": "right",
        "per class, s": "right",
        "against PyTorch": "right",
        "peak, MiB": "right",
    }
    rows = [
        [r.label, r.arithmetic, r.p50, r.p95, r.per_class, r.against_baseline, r.peak_memory]
        for r in (row_of(each, report) for each in report.standings)
    ]
    out.table(f"{report.case.name}, {len(report.case.prompts)} classes", columns, rows)
    for standing in report.standings:
        if standing.failure:
            out.failure(f"error: {standing.backend.label} failed: {standing.failure}")


def _bundled_case(folder: Path, prompts: Path | None) -> tuple[Path, Path | None]:
    """Return the first case in the bundle's folder, and the prompts beside it."""
    for case in sorted((folder / "cases").glob("*.npz")):
        beside = case.with_name(f"{case.stem}.prompts.json")
        return case, prompts or (beside if beside.is_file() else None)
    raise InputError(
        f"bundle {folder} has no case of its own; name one with --input", code="case-missing"
    )
