"""`medals-rt info` and `medals-rt version`: what there is."""

import json
from typing import TYPE_CHECKING

import typer

from medals_rt.cli._console import AsJson, Bundle, Debug, print_table

if TYPE_CHECKING:
    from medals_rt.bundle.bundle import Bundle as OpenedBundle
    from medals_rt.bundle.manifest import Manifest, ParityRecord

_NAMES_SHOWN = 12


def info_command(*, bundle: Bundle = None, as_json: AsJson = False, debug: Debug = False) -> None:
    """Check a bundle's files and tell what it holds."""
    del debug  # read by one_line_errors
    import msgspec

    from medals_rt.bundle.bundle import Bundle as OpenedBundle
    from medals_rt.bundle.bundle import resolve_bundle

    opened = OpenedBundle.open(resolve_bundle(bundle))
    if as_json:
        content = {"hash": opened.hash, **msgspec.to_builtins(opened.manifest)}
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        _print_bundle(opened)


def version_command(*, as_json: AsJson = False, debug: Debug = False) -> None:
    """Print the versions of this package and of the libraries that decide results."""
    del debug  # read by one_line_errors
    from medals_rt.common.environment import library_versions

    versions = library_versions()
    if as_json:
        typer.echo(json.dumps(versions, indent=2))
    else:
        for name, found in versions.items():
            typer.echo(f"{name} {found}")


def _print_bundle(opened: "OpenedBundle") -> None:
    manifest = opened.manifest
    typer.echo(f"{opened.name}  ({opened.folder}, all files checked)")
    if opened.notice is not None:
        typer.echo(f"notice: {opened.notice}")
    typer.echo(f"hash {opened.hash}")
    typer.echo(f"format {manifest.format_version}, {opened.precision}, made {manifest.created}")
    rows = []
    for number, name in ((1, "coarse"), (2, "fine")):
        spec = opened.stage_spec(number)
        size = sum(graph.bytes for graph in opened.stage_record(number).graphs.values())
        window = " x ".join(map(str, spec.window_hwd))
        spacing = " x ".join(f"{value:g}" for value in spec.spacing_hwd_mm)
        rows.append([name, window, spacing, f"{size / 1e6:,.1f}"])
    columns = {"stage": "left", "window (H, W, D)": "left", "spacing, mm": "left", "MB": "right"}
    print_table("models", columns, rows)
    _print_checks(manifest)
    groups: dict[str, list[str]] = {}
    for record in opened.classes:
        groups.setdefault(" ".join(record.bank_key.split("/")[:2]), []).append(record.name)
    typer.echo(f"{len(opened.classes)} classes")
    for group, names in groups.items():
        shown = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
        typer.echo(f"  {group} ({len(names)}): {shown}")


def _print_checks(manifest: "Manifest") -> None:
    """Tell what was compared with PyTorch: by the export, and by `medals-rt verify` since then."""
    libraries: dict[str, list[float]] = {}
    for check in manifest.verified:
        name = f"{check.runner} {check.runner_version} {check.precision}"
        libraries.setdefault(name, []).append(check.relative_error)
    for name, errors in libraries.items():
        typer.echo(
            f"checked by the export: {len(errors)} graphs in {name}, relative error at most "
            f"{max(errors):.1e}"
        )
    for left_out in manifest.unverified:
        typer.echo(f"not checked in {left_out.runner}: {left_out.why}")
    if not libraries:
        typer.echo("the export did not check its graphs")
    if not manifest.parity:
        typer.echo("not verified since then: `medals-rt verify` does")
        return
    rows = [
        [
            record.when.partition("T")[0],
            _machine(record),
            f"{record.runner} {record.versions.get(record.runner, '')} {record.precision}",
            "whole cases" if record.part == "cases" else f"{record.part} graphs",
            _worst(record),
            "yes" if record.passed else "NO",
            record.reference,
        ]
        for record in manifest.parity
    ]
    headings = ("when", "where", "runner", "what", "worst", "passed", "against")
    print_table("verified", dict.fromkeys(headings, "left"), rows)


def _machine(record: "ParityRecord") -> str:
    machine = record.machine
    return f"{machine.card or machine.processor}, {machine.cores} cores"


def _worst(record: "ParityRecord") -> str:
    """Give the largest error of a graph, or the lowest DSC of a class and the mean."""
    from medals_rt.tools.verify.verify import mean_and_lowest_dsc

    faults = [graph.fault for graph in record.graphs] + [case.fault for case in record.cases]
    if any(faults):
        return "failed to run"
    if record.part == "cases":
        mean, lowest = mean_and_lowest_dsc(record.cases)
        return f"DSC {lowest:.5f}, mean {mean:.5f}"
    graphs = [each for each in record.graphs if each.rms_error is None]
    errors = [each.relative_error for each in graphs if each.relative_error is not None]
    return f"relative error {max(errors, default=0.0):.1e}"
