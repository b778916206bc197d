"""`medals-rt verify`: hold a bundle to PyTorch on this machine."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medals_rt.cli._console import (
    EXIT_FAILURE,
    Bundle,
    Debug,
    PromptsFile,
    print_table,
    progress_bar,
)
from medals_rt.common.errors import InputError
from medals_rt.common.optional_deps import require
from medals_rt.common.plugins import load_plugin

if TYPE_CHECKING:
    from medals_rt.bundle.bundle import Bundle as OpenedBundle
    from medals_rt.bundle.manifest import CaseParity, GraphParity, ParityRecord
    from medals_rt.tools.verify.references import Reference
    from medals_rt.tools.verify.verify import Outcome

REPORT_FORMAT = 1


def verify_command(
    *,
    bundle: Bundle = None,
    against: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="COARSE FINE",
            help="The two checkpoints (.pth) it was exported from: PyTorch in fp32 is then the "
            "reference. Without them: ONNX Runtime on the bundle's own graphs, a weaker check.",
        ),
    ] = None,
    case: Annotated[
        Path | None,
        typer.Option(help="A case to run end to end [default: those in the bundle's cases/]."),
    ] = None,
    prompts: PromptsFile = None,
    runner: Annotated[
        list[str] | None,
        typer.Option(help="What to verify; repeat it for more [default: all that are there]."),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(help="In which arithmetic; repeat it for more [default: all on offer]."),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="A recipe, by file or name (cpu-bf16), whose runners, precision and tolerances "
            "count [default: each precision's own tolerances]."
        ),
    ] = None,
    stage: Annotated[
        int | None, typer.Option(min=1, max=2, help="Of the graphs, those of stage 1 or 2 only.")
    ] = None,
    graphs_only: Annotated[
        bool, typer.Option("--graphs-only", help="No end-to-end cases.")
    ] = False,
    cases_only: Annotated[
        bool, typer.Option("--cases-only", help="No single graphs, just end-to-end cases.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything found as JSON here.")
    ] = None,
    record: Annotated[
        bool, typer.Option(help="Write the result into the bundle's bundle.json.")
    ] = True,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to compute with.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    debug: Debug = False,
) -> None:
    """Compare every graph and whole cases with PyTorch, on every runner that this machine has.

    Exit code 1 where something lies outside the tolerances.
    """
    del debug  # read by one_line_errors
    from medals_rt.bundle.bundle import Bundle as OpenedBundle
    from medals_rt.bundle.bundle import resolve_bundle
    from medals_rt.bundle.recipes import read_recipe
    from medals_rt.common.atomic_io import prepare_output, write_json
    from medals_rt.tools.verify.cases import cases_of, read_parity_case
    from medals_rt.tools.verify.references import find_candidates
    from medals_rt.tools.verify.verify import check_recordable, record_in_bundle, verify_bundle

    if graphs_only and cases_only:
        raise InputError("--graphs-only and --cases-only leave nothing to do; give one of them")
    if prompts is not None and case is None:
        raise InputError("--prompts belongs to --case; give both")
    if json_file is not None:
        prepare_output(json_file)
    chosen = None if recipe is None else read_recipe(recipe)
    opened = OpenedBundle.open(resolve_bundle(bundle))
    candidates = find_candidates(opened, tuple(runner or ()), tuple(precision or ()), chosen)
    paths = () if graphs_only else cases_of(opened) if case is None else (case,)
    cases = [read_parity_case(path, prompts) for path in paths]
    if record:
        check_recordable(opened)
    reference = _reference(opened, against, threads)
    with progress_bar(quiet=quiet) as progress:
        outcome = verify_bundle(
            opened,
            reference,
            candidates,
            stages=() if cases_only else (1, 2) if stage is None else (stage,),
            cases=cases,
            recipe=chosen,
            threads=threads,
            progress=progress,
        )
    if json_file is not None:
        write_json(json_file, _content(opened, reference, outcome))
    if not quiet:
        print_outcome(outcome, reference.name)
    if record:
        record_in_bundle(opened, outcome.records)
    if not quiet and record:
        typer.echo(f"recorded in {opened.folder / 'bundle.json'}")
    if not outcome.passed:
        raise typer.Exit(EXIT_FAILURE)


def print_outcome(outcome: "Outcome", reference: str) -> None:
    """Print what was found: a table for each stage's graphs and for each case."""
    for part, what in (("coarse", "coarse graphs"), ("fine", "fine graphs")):
        records = [each for each in outcome.records if each.part == part]
        if records:
            _print_graphs(f"{what}: relative error against {reference}", records)
    records = [each for each in outcome.records if each.part == "cases"]
    for index, first in enumerate(records[0].cases if records else ()):
        found = [record.cases[index] for record in records]
        _print_case(f"case {first.case}: DSC against {reference}", records, found)
    for record in records:
        _print_dsc(record)
    for note in outcome.notes:
        typer.echo(note)
    typer.echo("passed" if outcome.passed else "NOT PASSED: see the entries marked with !")


def _print_graphs(title: str, records: "list[ParityRecord]") -> None:
    rows = []
    faults = []
    for index, first in enumerate(records[0].graphs):
        row = [first.graph, ", ".join(map(str, first.prompt_counts))]
        for record in records:
            found = record.graphs[index]
            row.append(_error(found, record.relative_error))
            if found.fault:
                faults.append(f"! {record.runner} {record.precision}, {found.graph}: {found.fault}")
        rows.append(row)
    rows.append(["allowed", "", *(f"{record.relative_error:.0e}" for record in records)])
    columns = {"graph": "left", "N": "left"}
    print_table(title, columns | _columns(records), rows)
    for fault in faults:
        typer.echo(fault)
    typer.echo("of windows the root mean square counts, the largest difference is in brackets")


def _print_case(title: str, records: "list[ParityRecord]", found: "list[CaseParity]") -> None:
    names = next((list(each.dsc) for each in found if each.dsc), [])
    pairs = list(zip(records, found, strict=True))
    rows = [
        [name, *(_score(each.dsc.get(name), record.lowest_class_dsc) for record, each in pairs)]
        for name in names
    ]
    rows += [
        ["mean", *(_score(each.mean_dsc, 0) for each in found)],
        ["voxels of equal label", *(_score(each.agreement, 0) for each in found)],
        ["probability, most apart", *(_score(each.probability_difference, 0) for each in found)],
    ]
    print_table(title, {"class": "left"} | _columns(records), rows)
    for record, each in pairs:
        if each.fault is not None:
            typer.echo(f"! {record.runner} {record.precision}: {each.fault}")


def _print_dsc(record: "ParityRecord") -> None:
    """Tell what decides: mean and lowest DSC over all classes of all cases."""
    from medals_rt.tools.verify.verify import cases_pass, mean_and_lowest_dsc

    mean, lowest = mean_and_lowest_dsc(record.cases)
    mark = "" if cases_pass(record.cases, record) else "! "
    typer.echo(
        f"{mark}{record.runner} {record.precision}: over all classes of all cases the mean DSC is "
        f"{mean:.5f} (at least {record.mean_dsc}), the lowest {lowest:.5f} (at least "
        f"{record.lowest_class_dsc})"
    )


def _columns(records: "list[ParityRecord]") -> dict[str, str]:
    return {f"{record.runner} {record.precision}": "right" for record in records}


def _error(found: "GraphParity", allowed: float) -> str:
    """Give the error that counts: the largest, of windows the root mean square and the largest."""
    from medals_rt.tools.verify.verify import graph_passes

    mark = "" if graph_passes(found, allowed) else "! "
    if found.relative_error is None:
        return f"{mark}-"
    if found.rms_error is None:
        return f"{mark}{found.relative_error:.1e}"
    return f"{mark}{found.rms_error:.1e} (at most {found.relative_error:.1e})"


def _score(found: float | None, least: float) -> str:
    if found is None:
        return "-"
    return f"{found:.5f}" if found >= least else f"! {found:.5f}"


def _reference(
    opened: "OpenedBundle", against: tuple[Path, Path] | None, threads: int | None
) -> "Reference":
    """Load PyTorch's networks where checkpoints are named."""
    if against is None:
        from medals_rt.tools.verify.references import OwnGraphs

        return OwnGraphs(opened, threads)
    require("--against", "PyTorch", "ONNX")
    reference: Reference = load_plugin("torch-reference", "--against")(
        opened, *against, threads=threads
    )
    return reference


def _content(
    opened: "OpenedBundle", reference: "Reference", outcome: "Outcome"
) -> dict[str, object]:
    """Give everything as JSON has it."""
    import msgspec

    return {
        "format": REPORT_FORMAT,
        "bundle": {"name": opened.name, "hash": opened.hash},
        "reference": reference.name,
        "independent": reference.independent,
        "passed": outcome.passed,
        "notes": outcome.notes,
        "records": json.loads(msgspec.json.encode(outcome.records)),
    }
