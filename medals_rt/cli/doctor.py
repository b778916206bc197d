"""`medals-rt doctor`: what this machine has and what would run on it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medals_rt.cli._console import EXIT_FAILURE, AsJson, Debug, print_table

if TYPE_CHECKING:
    from medals_rt.tools.doctor.diagnosis import BundleState, Cache, Diagnosis
    from medals_rt.tools.doctor.machine import Graphics, Memory, Processor

REPORT_FORMAT = 1


def doctor_command(
    *,
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle", help="Also check this exported model, and which of its engines fit here."
        ),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Tell what this machine has, what would run on it and why, and what to install for more.

    Exit code 1 where nothing could run, or the bundle can't be opened.
    """
    del debug  # read by one_line_errors
    from medals_rt.tools.doctor.diagnosis import diagnose

    found = diagnose(bundle)
    if as_json:
        content = {"format": REPORT_FORMAT, "can_run": found.can_run, **asdict(found)}
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        print_diagnosis(found)
    if not found.can_run:
        raise typer.Exit(EXIT_FAILURE)


def print_diagnosis(found: "Diagnosis") -> None:
    """Print everything as tables, and the advice last."""
    rows = [
        ["processor", _processor(found.processor)],
        ["memory", _memory(found.memory)],
        *_cards(found.graphics),
        ["cache", _cache(found.cache)],
        ["medals-rt", f"{found.versions['medals-rt']}, Python {found.versions['python']}"],
    ]
    print_table("machine", {"what": "left", "found": "left"}, rows)
    rows = [
        [each.name, each.state, each.version or "", each.extra, each.detail or each.reason or ""]
        for each in found.libraries
    ]
    headings = ("library", "state", "version", "extra", "detail")
    print_table("libraries", dict.fromkeys(headings, "left"), rows)
    rows = [
        [each.kind, "ready" if each.problem is None else each.problem, ", ".join(each.precisions)]
        for each in found.runners
    ]
    print_table("runners", dict.fromkeys(("runner", "state", "precisions"), "left"), rows)
    if found.bundle is not None:
        _print_bundle(found.bundle)
    chosen = found.automatic
    name = "nothing" if chosen.runner is None else f"{chosen.runner} in {chosen.precision}"
    typer.echo(f"auto takes {name} ({chosen.why})")
    for advice in found.advice:
        typer.echo(f"- {advice}")


def _processor(processor: "Processor") -> str:
    features = processor.features
    shown = "features unknown" if features is None else ", ".join(features) or "none that matter"
    quota = "" if processor.quota is None else f", a quota of {processor.quota}"
    cores = f"{processor.cores} of {processor.cores_in_machine} cores{quota}"
    return f"{processor.name}, {cores} ({shown})"


def _memory(memory: "Memory") -> str:
    limit = "" if memory.limit_mib is None else f", at most {memory.limit_mib:,} in this container"
    return f"{memory.total_mib:,} MiB, {memory.available_mib:,} of them available{limit}"


def _cache(cache: "Cache") -> str:
    held = f"{cache.mib:,} MiB, compiled graphs are kept up to {cache.kept_mib:,}"
    return f"{cache.folder}: {cache.problem or held}"


def _cards(graphics: "Graphics") -> list[list[str]]:
    rows = [["card", card] for card in graphics.cards] or [["card", "no NVIDIA card is found"]]
    if graphics.used is not None:
        rows.append(["card that is used", f"{graphics.used}, driver {graphics.driver}"])
    if graphics.remark is not None:
        rows.append(["", graphics.remark])
    return rows


def _print_bundle(bundle: "BundleState") -> None:
    if bundle.problem is not None:
        typer.echo(f"bundle {bundle.folder} can't be used: {bundle.problem}")
        return
    typer.echo(f"bundle {bundle.name} ({bundle.folder}): all files checked, {bundle.precision}")
    rows = [
        [each.file, "fits" if each.problem is None else each.problem] for each in bundle.engines
    ]
    if rows:
        print_table("engines", {"engine": "left", "state": "left"}, rows)
