"""`medals-rt export`: turn checkpoints into a bundle. Needs the extra `export` (torch)."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medals_rt.cli._console import Debug, progress_bar
from medals_rt.common.errors import InputError
from medals_rt.common.optional_deps import missing_one_of, require
from medals_rt.common.plugins import load_plugin

if TYPE_CHECKING:
    from medals_rt.bundle.bundle import Bundle
    from medals_rt.common.choices import RunnerKind


class Precision(StrEnum):
    """What graphs compute in."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


_REMARKS_SHOWN = 10


def export_command(
    *,
    stage1: Annotated[Path, typer.Option(help="Checkpoint of the coarse stage (.pth).")],
    stage2: Annotated[Path, typer.Option(help="Checkpoint of the fine stage (.pth).")],
    out: Annotated[Path, typer.Option(help="Folder of the new bundle.")],
    text_encoder: Annotated[
        Path | None,
        typer.Option(help="Checkpoint of the text encoder (text_encoder.pth); with --biolord."),
    ] = None,
    biolord: Annotated[
        Path | None,
        typer.Option(help="Local BioLORD folder: the text encoder's configuration and tokenizer."),
    ] = None,
    sentences: Annotated[
        Path | None,
        typer.Option(
            help="Known sentences (challenge_prompts.json), each to get an embedding of its own."
        ),
    ] = None,
    bank: Annotated[
        Path | None,
        typer.Option(
            help="Text embeddings computed elsewhere, instead of the text encoder (.safetensors, "
            "with its index in .json beside it)."
        ),
    ] = None,
    with_text_encoder: Annotated[
        bool,
        typer.Option(
            "--with-text-encoder",
            help="Put the text encoder into the bundle, for sentences that are not known.",
        ),
    ] = False,
    name: Annotated[str | None, typer.Option(help="Its name [default: the folder's].")] = None,
    precision: Annotated[
        Precision,
        typer.Option(help="What the graphs compute in; norms and softmax are fp32 in any case."),
    ] = Precision.FP32,
    weights: Annotated[
        Precision | None,
        typer.Option(
            help="How weights are stored [default: in the precision]. fp16 halves an fp32 bundle."
        ),
    ] = None,
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify",
            help="Compare every graph with PyTorch, in each library that is installed "
            "[default: where windows have at most 96 x 96 x 96 voxels].",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a bundle that is there.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    debug: Debug = False,
) -> None:
    """Export two checkpoints and their text embeddings as a bundle of ONNX graphs."""
    del debug  # read by one_line_errors
    require("export", "PyTorch", "ONNX", "ONNX Script")
    export_bundle = load_plugin("export", "medals-rt export")

    source = _bank_source(text_encoder, biolord, sentences, bank)
    if with_text_encoder and source == bank:
        raise InputError("--with-text-encoder needs --text-encoder and --biolord, not --bank")
    with progress_bar(quiet=quiet) as progress:
        bundle = export_bundle(
            stage1,
            stage2,
            source,
            out,
            name=name or out.resolve().name,
            precision=precision.value,
            weights=None if weights is None else weights.value,
            with_text_encoder=with_text_encoder,
            verify_with=None if verify is None else _libraries(verify=verify),
            overwrite=overwrite,
            progress=progress,
        )
    if not quiet:
        typer.echo(f"wrote {bundle.folder}: {len(bundle.classes)} classes, hash {bundle.hash[:12]}")
        _tell_remarks(bundle)
        _tell_verified(bundle, stage1, stage2)


def _bank_source(
    text_encoder: Path | None, biolord: Path | None, sentences: Path | None, bank: Path | None
) -> Any:
    """Decide where the text embeddings come from: exactly one of two ways."""
    encoder_options = {
        "--text-encoder": text_encoder,
        "--biolord": biolord,
        "--sentences": sentences,
    }
    given = [option for option, value in encoder_options.items() if value is not None]
    if bank is not None:
        if given:
            raise InputError(
                f"text embeddings come from --bank or from --text-encoder and --biolord, not both: "
                f"leave out --bank or {', '.join(given)}"
            )
        return bank
    if text_encoder is None or biolord is None:
        raise InputError(
            "text embeddings need --text-encoder FILE and --biolord DIR, or --bank FILE; given: "
            f"{', '.join(given) or 'none of them'}"
        )
    return load_plugin("text-source", "medals-rt export")(text_encoder, biolord, sentences)


def _libraries(*, verify: bool) -> "tuple[RunnerKind, ...]":
    """Give the libraries to compare with where the user has said whether to."""
    from medals_rt.common.choices import CPU_RUNNERS
    from medals_rt.runners.selection import installed

    found = tuple(kind for kind in CPU_RUNNERS if installed(kind))
    if verify and not found:
        raise missing_one_of("--verify", "OpenVINO", "ONNX Runtime")
    return found if verify else ()


def _tell_remarks(bundle: "Bundle") -> None:
    """Say what could not be used for the bank; the manifest holds all of it."""
    remarks = bundle.manifest.embeddings.remarks
    for remark in remarks[:_REMARKS_SHOWN]:
        typer.echo(f"text bank: {remark}")
    if len(remarks) > _REMARKS_SHOWN:
        typer.echo(f"text bank: {len(remarks) - _REMARKS_SHOWN} more such remarks in bundle.json")


def _tell_verified(bundle: "Bundle", stage1: Path, stage2: Path) -> None:
    """Say what was compared with PyTorch, and what was not."""
    manifest = bundle.manifest
    for record in manifest.unverified:
        typer.echo(f"not compared in {record.runner}: {record.why}")
    if manifest.verified:
        libraries = dict.fromkeys(record.runner for record in manifest.verified)
        worst = max(record.relative_error for record in manifest.verified)
        typer.echo(
            f"every graph agrees with PyTorch in {', '.join(libraries)}: relative error at most "
            f"{worst:.2g}, allowed {manifest.verified[0].tolerance:.0e}"
        )
        return
    typer.echo(
        "no graph was compared with PyTorch yet; to do so: "
        f"medals-rt verify --bundle {bundle.folder} --against {stage1} {stage2}"
    )
