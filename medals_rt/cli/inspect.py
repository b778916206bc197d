"""`medals-rt info` and `medals-rt version`: what there is."""

import json
from typing import TYPE_CHECKING

import typer

from medals_rt.cli.console import AsJson, Bundle, Debug, print_table

if TYPE_CHECKING:
    from medals_rt.bundle import Bundle as OpenedBundle

_NAMES_SHOWN = 12


def info_command(*, bundle: Bundle = None, as_json: AsJson = False, debug: Debug = False) -> None:
    """Check a bundle's files and tell what it holds."""
    del debug  # read by one_line_errors
    import msgspec

    from medals_rt.bundle import Bundle as OpenedBundle
    from medals_rt.bundle import resolve_bundle

    opened = OpenedBundle.open(resolve_bundle(bundle))
    if as_json:
        content = {"hash": opened.hash, **msgspec.to_builtins(opened.manifest)}
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        _print_bundle(opened)


def version_command(*, as_json: AsJson = False, debug: Debug = False) -> None:
    """Print the versions of this package and of the libraries that decide results."""
    del debug  # read by one_line_errors
    from medals_rt.report import library_versions

    versions = library_versions()
    if as_json:
        typer.echo(json.dumps(versions, indent=2))
    else:
        for name, found in versions.items():
            typer.echo(f"{name} {found}")


def _print_bundle(opened: "OpenedBundle") -> None:
    manifest = opened.manifest
    typer.echo(f"{opened.name}  ({opened.folder}, all files checked)")
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
    groups: dict[str, list[str]] = {}
    for record in opened.classes:
        groups.setdefault(" ".join(record.bank_key.split("/")[:2]), []).append(record.name)
    typer.echo(f"{len(opened.classes)} classes")
    for group, names in groups.items():
        shown = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
        typer.echo(f"  {group} ({len(names)}): {shown}")
