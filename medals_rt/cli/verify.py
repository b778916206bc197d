"""`medals-rt verify`: compare a bundle with PyTorch on this machine."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from medals_rt.cli._completion import complete_precision, complete_recipe, complete_runner
from medals_rt.cli._errors import EXIT_DONE, EXIT_FAILURE
from medals_rt.cli._options import Bundle, PromptsFile, Threads, stage_asked
from medals_rt.cli._output import out
from medals_rt.common.choices import STAGE_NAMES
from medals_rt.common.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medals_rt.bundle.bundle import Bundle as OpenedBundle
    from medals_rt.bundle.manifest import CaseParity, GraphParity, ParityRecord
    from medals_rt.tools.verify.layers import LayerComparison
    from medals_rt.tools.verify.references import Reference
    from medals_rt.tools.verify.verify import Outcome

REPORT_FORMAT = 1
_SOURCES: Final = 4
EXAMPLES: Final = (
    "medals-rt verify --runner openvino --graphs-only --no-record",
    "medals-rt verify --bundle engines/mine --against coarse.pth fine.pth --json parity.json",
    "medals-rt verify --bundle engines/mine --recipe cpu-bf16 --case case.npz --prompts p.json",
)


def verify_command(
    *,
    bundle: Bundle = None,
    against: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="COARSE FINE",
            help="The two checkpoints (.pth) that the bundle was exported from: the reference is "
            "PyTorch in fp32. Without them it is ONNX Runtime on the same graphs, a weaker check.",
        ),
    ] = None,
    case: Annotated[
        Path | None,
        typer.Option(help="Case to run end to end [default: those in the bundle's cases/]."),
    ] = None,
    prompts: PromptsFile = None,
    runner: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            autocompletion=complete_runner,
            help="Runner to verify; repeat it for more [default: all that are installed].",
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            autocompletion=complete_precision,
            help="Precision to verify; repeat it for more [default: all that a runner offers].",
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="NAME|FILE",
            autocompletion=complete_recipe,
            help="Recipe, such as cpu-bf16, whose runners, precision and tolerances apply "
            "[default: each precision's own tolerances].",
        ),
    ] = None,
    stage: Annotated[
        int | None, typer.Option(min=1, max=2, help="Verify only the graphs of this stage.")
    ] = None,
    graphs_only: Annotated[
        bool, typer.Option("--graphs-only", help="Verify graphs, but no whole cases.")
    ] = False,
    cases_only: Annotated[
        bool, typer.Option("--cases-only", help="Verify whole cases, but no single graphs.")
    ] = False,
    layers: Annotated[
        bool,
        typer.Option(
            "--layers",
            help="Narrow graphs that differ too much down to the layer at which they begin to.",
        ),
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all results as JSON here.")
    ] = None,
    record: Annotated[
        bool, typer.Option(help="Write the result into the bundle's bundle.json.")
    ] = True,
    threads: Threads = None,
) -> int:
    """Compare graphs and whole cases of each runner with PyTorch.

    Every graph is compared on every runner that this machine has.

    The exit code is 1 if a difference exceeds the tolerances.
    """
    from medals_rt.bundle.bundle import Bundle as OpenedBundle
    from medals_rt.bundle.bundle import resolve_bundle
    from medals_rt.bundle.recipes import read_recipe
    from medals_rt.common.atomic_io import prepare_output, write_json
    from medals_rt.common.optional_deps import require
    from medals_rt.tools.verify.cases import cases_of, read_parity_case
    from medals_rt.tools.verify.layers import compare_failing_graphs
    from medals_rt.tools.verify.references import find_candidates
    from medals_rt.tools.verify.verify import check_recordable, record_in_bundle, verify_bundle

    _check_parts(graphs_only=graphs_only, cases_only=cases_only, layers=layers)
    if prompts is not None and case is None:
        raise InputError("--prompts belongs to --case; give both", code="case-missing")
    if json_file is not None:
        prepare_output(json_file)
    if against is not None:
        require("--against", "PyTorch", "ONNX")
    if layers:
        require("--layers", "ONNX", "ONNX Runtime")
    chosen = None if recipe is None else read_recipe(recipe)
    with out.progress() as progress:
        folder = resolve_bundle(bundle, progress)
    opened = OpenedBundle.open(folder)
    candidates = find_candidates(opened, tuple(runner or ()), tuple(precision or ()), chosen)
    paths = () if graphs_only else cases_of(opened) if case is None else (case,)
    cases = [read_parity_case(path, prompts) for path in paths]
    if record:
        check_recordable(opened)
    reference = _reference(opened, against, threads)
    asked = stage_asked(stage)
    with out.progress() as progress:
        outcome = verify_bundle(
            opened,
            reference,
            candidates,
            stages=() if cases_only else tuple(STAGE_NAMES) if asked is None else (asked,),
            cases=cases,
            recipe=chosen,
            threads=threads,
            progress=progress,
        )
        compared = (
            compare_failing_graphs(opened, reference, candidates, outcome, threads, progress)
            if layers
            else ()
        )
    if json_file is not None:
        write_json(json_file, _content(opened, reference, outcome, compared))
    _print_outcome(outcome, reference.name)
    if layers and not outcome.passed:
        _print_layers(compared)
    if record:
        record_in_bundle(opened, outcome.records)
        out.line(f"recorded in {opened.folder / 'bundle.json'}")
    return EXIT_DONE if outcome.passed else EXIT_FAILURE


def _check_parts(*, graphs_only: bool, cases_only: bool, layers: bool) -> None:
    """Refuse to leave out all that there is to do, or what is to be narrowed down.

    Raises
    ------
    InputError
    """
    if graphs_only and cases_only:
        raise InputError(
            "--graphs-only and --cases-only leave nothing to do; give one of them",
            code="nothing-to-verify",
        )
    if layers and cases_only:
        raise InputError(
            "--layers narrows single graphs down, and --cases-only compares none; give one of them",
            code="layers-without-graphs",
        )


def _print_outcome(outcome: "Outcome", reference: str) -> None:
    """Print what was found: a table for each stage's graphs and for each case."""
    for part in STAGE_NAMES.values():
        records = [each for each in outcome.records if each.part == part]
        if records:
            _print_graphs(f"{part} graphs: relative error against {reference}", records)
    records = [each for each in outcome.records if each.part == "cases"]
    for index, first in enumerate(records[0].cases if records else ()):
        found = [record.cases[index] for record in records]
        _print_case(f"case {first.case}: DSC against {reference}", records, found)
    for record in records:
        _print_dsc(record)
    for note in outcome.notes:
        out.line(note)
    out.line("passed" if outcome.passed else "NOT PASSED: see the entries marked with !")


def _print_layers(compared: "Sequence[LayerComparison]") -> None:
    """Print where each graph begins to differ, and which layers add most."""
    if not compared:
        out.line("no single graph differs too much, so that there are no layers to compare")
    columns = {
        "layer": "left",
        "operator": "left",
        "tensor": "left",
        "shape": "left",
        "error": "right",
        "inherited": "right",
    }
    for each in compared:
        what = f"{each.candidate}, {STAGE_NAMES[each.stage]} {each.graph}"
        if each.fault is not None:
            out.line(f"! {what}: its layers can't be compared: {each.fault}")
            continue
        first = each.first
        shown = ([] if first is None else [first]) + [
            layer for layer in each.sources[:_SOURCES] if layer is not first
        ]
        rows = [
            [
                f"{'! ' if layer is first else ''}{layer.node}",
                layer.operator,
                layer.tensor,
                "x".join(map(str, layer.shape)),
                f"{layer.error:.1e}",
                f"{layer.inherited:.1e}",
            ]
            for layer in shown
        ]
        out.table(f"{what}: where it begins to differ (!), and what adds most", columns, rows)
        if each.unpaired:
            out.line(f"{each.unpaired} tensors are in one of the two graphs alone")
        if first is None:
            out.line(
                f"no layer of {each.graph} differs by more than {each.allowed:.0e} while it is "
                f"looked at (its outputs by {each.output_error:.1e}): the fault is in what "
                f"{each.candidate.kind} makes of several layers at once"
            )


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
    out.table(title, columns | _columns(records), rows)
    for fault in faults:
        out.line(fault)
    out.line("of windows the root mean square decides; the largest difference is in brackets")


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
        [
            "largest difference of probability",
            *(_score(each.probability_difference, 0) for each in found),
        ],
    ]
    out.table(title, {"class": "left"} | _columns(records), rows)
    for record, each in pairs:
        if each.fault is not None:
            out.line(f"! {record.runner} {record.precision}: {each.fault}")
        elif each.mean_dsc is None:
            out.line(
                f"{record.runner} {record.precision}: not compared, for neither it nor the "
                "reference finds a class in this case"
            )


def _print_dsc(record: "ParityRecord") -> None:
    """Print what decides: mean and lowest DSC over all classes of all cases."""
    from medals_rt.tools.verify.verify import cases_pass, mean_and_lowest_dsc

    found = mean_and_lowest_dsc(record.cases)
    if found is None:
        out.line(
            f"! {record.runner} {record.precision}: no case has a class to compare; name one that "
            "shows what is asked for by --case and --prompts"
        )
        return
    mean, lowest = found
    mark = "" if cases_pass(record.cases, record) else "! "
    out.line(
        f"{mark}{record.runner} {record.precision}: over all classes of all cases the mean DSC is "
        f"{mean:.5f} (at least {record.mean_dsc}), the lowest {lowest:.5f} (at least "
        f"{record.lowest_class_dsc})"
    )


def _columns(records: "list[ParityRecord]") -> dict[str, str]:
    return {f"{record.runner} {record.precision}": "right" for record in records}


def _error(found: "GraphParity", allowed: float) -> str:
    """Return the error that decides: the largest; of windows root mean square and largest."""
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
    """Return the reference: PyTorch's networks if checkpoints are named."""
    if against is None:
        from medals_rt.tools.verify.references import OwnGraphs

        return OwnGraphs(opened, threads)
    from medals_rt.common.plugins import load_plugin

    reference: Reference = load_plugin("torch-reference", "--against")(
        opened, *against, threads=threads
    )
    return reference


def _content(
    opened: "OpenedBundle",
    reference: "Reference",
    outcome: "Outcome",
    compared: "Sequence[LayerComparison]",
) -> dict[str, object]:
    """Return everything as JSON has it."""
    import msgspec

    def first(each: "LayerComparison") -> object:
        return None if each.first is None else msgspec.to_builtins(each.first)

    return {
        "format": REPORT_FORMAT,
        "bundle": {"name": opened.name, "hash": opened.hash},
        "reference": reference.name,
        "independent": reference.independent,
        "passed": outcome.passed,
        "notes": outcome.notes,
        "records": json.loads(msgspec.json.encode(outcome.records)),
        "layers": [{**msgspec.to_builtins(each), "first": first(each)} for each in compared],
    }
