"""`medals-rt doctor`: what this machine has and what would run on it."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from medals_rt.cli._errors import EXIT_DONE, EXIT_FAILURE
from medals_rt.cli._options import AsJson
from medals_rt.cli._output import out

if TYPE_CHECKING:
    from medals_rt.tools.doctor.diagnosis import BundleState, Cache, Diagnosis
    from medals_rt.tools.doctor.machine import Graphics, Memory, Processor

REPORT_FORMAT = 1
EXAMPLES: Final = (
    "medals-rt doctor",
    "medals-rt doctor --bundle engines/mine --json",
)


def doctor_command(
    *,
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle", help="Also check this exported model, and which of its engines fit here."
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Show what this machine has, what runs on it, what to install.

    The exit code is 1 if nothing can run, or the bundle can't be opened.
    """
    from medals_rt.tools.doctor.diagnosis import diagnose

    found = diagnose(bundle)
    if as_json:
        content = {"format": REPORT_FORMAT, "can_run": found.can_run, **asdict(found)}
        out.json(content)
    else:
        _print_diagnosis(found)
    return EXIT_DONE if found.can_run else EXIT_FAILURE


def _print_diagnosis(found: "Diagnosis") -> None:
    """Print everything as tables, and the advice last."""
    rows = [
        ["processor", _processor(found.processor)],
        ["memory", _memory(found.memory)],
        *_gpus(found.graphics),
        ["cache", _cache(found.cache)],
        ["medals-rt", f"{found.versions['medals-rt']}, Python {found.versions['python']}"],
    ]
    out.table("machine", {"what": "left", "found": "left"}, rows)
    rows = [
        [each.name, each.state, each.version or "", each.extra, each.detail or each.reason or ""]
        for each in found.libraries
    ]
    headings = ("library", "state", "version", "extra", "detail")
    out.table("libraries", dict.fromkeys(headings, "left"), rows)
    rows = [
        [each.kind, "ready" if each.problem is None else each.problem, ", ".join(each.precisions)]
        for each in found.runners
    ]
    out.table("runners", dict.fromkeys(("runner", "state", "precisions"), "left"), rows)
    if found.bundle is not None:
        _print_bundle(found.bundle)
    chosen = found.automatic
    name = "nothing" if chosen.runner is None else f"{chosen.runner} in {chosen.precision}"
    out.line(f"--runner auto takes {name} ({chosen.why})")
    for advice in found.advice:
        out.line(f"- {advice}")


def _processor(processor: "Processor") -> str:
    features = processor.features
    shown = "features unknown" if features is None else ", ".join(features) or "none of interest"
    quota = "" if processor.quota is None else f", a quota of {processor.quota}"
    cores = f"{processor.cores} of {processor.cores_in_machine} cores{quota}"
    return f"{processor.name}, {cores} ({shown})"


def _memory(memory: "Memory") -> str:
    limit = "" if memory.limit_mib is None else f", at most {memory.limit_mib:,} in this container"
    return f"{memory.total_mib:,} MiB, {memory.available_mib:,} of it available{limit}"


def _cache(cache: "Cache") -> str:
    held = f"{cache.mib:,} MiB of at most {cache.kept_mib:,}"
    return f"{cache.folder}: {cache.problem or held}"


def _gpus(graphics: "Graphics") -> list[list[str]]:
    rows = [["GPU", name] for name in graphics.gpus] or [["GPU", "no NVIDIA GPU was found"]]
    if graphics.used is not None:
        rows.append(["GPU that is used", f"{graphics.used}, driver {graphics.driver}"])
    if graphics.remark is not None:
        rows.append(["", graphics.remark])
    return rows


def _print_bundle(bundle: "BundleState") -> None:
    if bundle.problem is not None:
        out.line(f"bundle {bundle.folder} can't be used: {bundle.problem}")
        return
    out.line(f"bundle {bundle.name} ({bundle.folder}): all files checked, {bundle.precision}")
    rows = [
        [each.file, "fits" if each.problem is None else each.problem] for each in bundle.engines
    ]
    if rows:
        out.table("engines", {"engine": "left", "state": "left"}, rows)
