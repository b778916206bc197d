"""`medals-rt info`: what a bundle holds, and what was verified where."""

from typing import TYPE_CHECKING, Final

from medals_rt.cli._options import AsJson, Bundle
from medals_rt.cli._output import out
from medals_rt.common.choices import STAGE_NAMES

if TYPE_CHECKING:
    from medals_rt.bundle.bundle import Bundle as OpenedBundle
    from medals_rt.bundle.manifest import Manifest, ParityRecord, QuantizationRecord

EXAMPLES: Final = (
    "medals-rt info",
    "medals-rt info --json",
)
_NAMES_SHOWN = 12


def info_command(*, bundle: Bundle = None, as_json: AsJson = False) -> None:
    """Check a bundle's files and show what it holds."""
    import msgspec

    from medals_rt.bundle.bundle import Bundle as OpenedBundle
    from medals_rt.bundle.bundle import resolve_bundle

    with out.progress() as progress:
        folder = resolve_bundle(bundle, progress)
    opened = OpenedBundle.open(folder)
    if as_json:
        out.json({"hash": opened.hash, **msgspec.to_builtins(opened.manifest)})
    else:
        _print_bundle(opened)


def _print_bundle(opened: "OpenedBundle") -> None:
    manifest = opened.manifest
    out.line(f"{opened.name}  ({opened.folder}, all files checked)")
    if opened.notice is not None:
        out.line(f"notice: {opened.notice}")
    for terms in manifest.terms:
        texts = ", ".join(str(opened.folder / text.file) for text in terms.texts)
        out.line(
            f"license of {terms.source}: {terms.license or 'not stated by its publisher'}"
            + (f" ({texts})" if texts else "")
        )
    for stage, source in (("coarse", manifest.sources.coarse), ("fine", manifest.sources.fine)):
        if source.origin is not None:
            out.line(f"{stage} stage from {source.origin}: {source.file}")
    out.line(f"hash {opened.hash}")
    out.line(f"format {manifest.format_version}, {opened.precision}, made {manifest.created}")
    if manifest.quantization is not None:
        _print_quantization(manifest.quantization)
    rows = []
    for number, name in STAGE_NAMES.items():
        spec = opened.stage_spec(number)
        size = sum(graph.bytes for graph in opened.stage_record(number).graphs.values())
        window = " x ".join(map(str, spec.window_hwd))
        spacing = " x ".join(f"{value:g}" for value in spec.spacing_hwd_mm)
        rows.append([name, window, spacing, f"{size / 1e6:,.1f}"])
    columns = {
        "stage": "left",
        "window (H, W, D)": "left",
        "spacing, mm": "left",
        "MB": "right",
    }
    out.table("models", columns, rows)
    _print_checks(manifest)
    groups: dict[str, list[str]] = {}
    for record in opened.classes:
        groups.setdefault(" ".join(record.bank_key.split("/")[:2]), []).append(record.name)
    out.line(f"{len(opened.classes)} classes")
    for group, names in groups.items():
        shown = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
        out.line(f"  {group} ({len(names)}): {shown}")


def _print_quantization(record: "QuantizationRecord") -> None:
    """Print which convolutions are quantized, and what the export found that it costs."""
    for name, stage in (("coarse", record.coarse), ("fine", record.fine)):
        kept = [each.layer for each in stage.layers if not each.quantized]
        out.line(
            f"{name} stage: {stage.quantized_layers} of {len(stage.layers)} convolutions "
            f"quantized, mean DSC to the network in fp32 {stage.mean_dsc:.4f}"
            + (f"; in 16 bits: {', '.join(kept)}" if kept else "")
        )
    out.line(f"ranges from {len(record.cases)} cases")


def _print_checks(manifest: "Manifest") -> None:
    """Print what was compared with PyTorch: by the export, and by `medals-rt verify` since."""
    libraries: dict[str, list[float]] = {}
    for check in manifest.verified:
        name = f"{check.runner} {check.runner_version} {check.precision}"
        libraries.setdefault(name, []).append(check.relative_error)
    for name, errors in libraries.items():
        out.line(
            f"checked by the export: {len(errors)} graphs in {name}, relative error at most "
            f"{max(errors):.1e}"
        )
    for left_out in manifest.unverified:
        out.line(f"not checked in {left_out.runner}: {left_out.why}")
    if not libraries:
        out.line("the export compared no graph with PyTorch")
    if not manifest.parity:
        out.line("not verified since: run `medals-rt verify`")
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
    out.table("verified", dict.fromkeys(headings, "left"), rows)


def _machine(record: "ParityRecord") -> str:
    machine = record.machine
    return f"{machine.gpu or machine.processor}, {machine.cores} cores"


def _worst(record: "ParityRecord") -> str:
    """Return the largest error of a graph, or the lowest DSC of a class and the mean."""
    from medals_rt.tools.verify.verify import mean_and_lowest_dsc

    faults = [graph.fault for graph in record.graphs] + [case.fault for case in record.cases]
    if any(faults):
        return "failed to run"
    if record.part == "cases":
        found = mean_and_lowest_dsc(record.cases)
        if found is None:
            return "nothing to compare"
        mean, lowest = found
        return f"DSC {lowest:.5f}, mean {mean:.5f}"
    graphs = [each for each in record.graphs if each.rms_error is None]
    errors = [each.relative_error for each in graphs if each.relative_error is not None]
    return f"relative error {max(errors, default=0.0):.1e}"
