"""`medals-rt export`: turn checkpoints into a bundle. Needs the extra `export` (torch)."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from medals_rt.cli._output import out as output
from medals_rt.common.choices import Precision
from medals_rt.common.errors import InputError

if TYPE_CHECKING:
    from medals_rt.bundle.bundle import Bundle
    from medals_rt.bundle.released import ReleasedFiles
    from medals_rt.common.choices import RunnerKind
    from medals_rt.common.progress import Progress


EXAMPLES: Final = (
    "medals-rt export --stage1 runs/demo/coarse.pth --stage2 runs/demo/fine.pth \\",
    "  --bank runs/demo/bank.safetensors --out engines/mine",
    "medals-rt export --from weights/medal-s --biolord weights/BioLORD-2023-C --out engines/mine",
    "medals-rt export --stage1 coarse.pth --stage2 fine.pth --text-encoder text_encoder.pth \\",
    "  --biolord BioLORD-2023-C --precision bf16 --out engines/mine",
)
_REMARKS_SHOWN = 10


def export_command(
    *,
    out: Annotated[Path, typer.Option(help="Folder of the new bundle.")],
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="DIR|hf:OWNER/NAME@COMMIT",
            help="Where the released files lie: both checkpoints, found by their names, and "
            "text_encoder.pth. Each of them can also be given by its own address.",
        ),
    ] = None,
    stage1: Annotated[
        Path | None, typer.Option(help="Checkpoint of the coarse stage (.pth); without --from.")
    ] = None,
    stage2: Annotated[
        Path | None, typer.Option(help="Checkpoint of the fine stage (.pth); without --from.")
    ] = None,
    text_encoder: Annotated[
        Path | None,
        typer.Option(help="Checkpoint of the text encoder (text_encoder.pth); with --biolord."),
    ] = None,
    biolord: Annotated[
        Path | None,
        typer.Option(
            help="Folder of BioLORD, with the text encoder's configuration and tokenizer."
        ),
    ] = None,
    sentences: Annotated[
        Path | None,
        typer.Option(
            help="Known sentences (challenge_prompts.json), each of which gets its own embedding."
        ),
    ] = None,
    bank: Annotated[
        Path | None,
        typer.Option(
            help="Text embeddings computed elsewhere (.safetensors, with its index in .json "
            "beside it), instead of a text encoder."
        ),
    ] = None,
    with_text_encoder: Annotated[
        bool,
        typer.Option(
            "--with-text-encoder",
            help="Put the text encoder into the bundle, for sentences that name no known class.",
        ),
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="Name of the bundle [default: the folder's].")
    ] = None,
    notice: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="What everyone who sees a result must be told, such as 'for research only'; it "
            "is in every report, picture and DICOM SEG.",
        ),
    ] = None,
    precision: Annotated[
        Precision,
        typer.Option(help="Arithmetic of the graphs; norms and softmax are always fp32."),
    ] = "fp32",
    weights: Annotated[
        Precision | None,
        typer.Option(
            help="Precision that weights are stored in [default: --precision]; fp16 halves an "
            "fp32 bundle."
        ),
    ] = None,
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify",
            help="Compare every graph with PyTorch in each installed library [default: if "
            "windows have at most 96 x 96 x 96 voxels].",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing bundle.")
    ] = False,
) -> None:
    """Export two checkpoints and their text embeddings as ONNX graphs."""
    from medals_rt.common.optional_deps import require
    from medals_rt.common.plugins import load_plugin

    require("export", "PyTorch", "ONNX", "ONNX Script")
    export_bundle = load_plugin("export", "medals-rt export")

    with output.progress() as progress:
        files = _checkpoints(source, stage1, stage2, progress)
        if bank is None:
            text_encoder = text_encoder or files.text_encoder
        embeddings = _bank_source(text_encoder, biolord, sentences, bank, progress)
    if with_text_encoder and embeddings == bank:
        raise InputError(
            "--with-text-encoder needs --text-encoder and --biolord, not --bank",
            code="text-encoder-missing",
        )
    with output.progress() as progress:
        bundle = export_bundle(
            files.coarse,
            files.fine,
            embeddings,
            out,
            name=name or out.resolve().name,
            notice=notice,
            precision=precision,
            weights=weights,
            with_text_encoder=with_text_encoder,
            verify_with=None if verify is None else _libraries(verify=verify),
            overwrite=overwrite,
            progress=progress,
        )
    output.line(f"wrote {bundle.folder}: {len(bundle.classes)} classes, hash {bundle.hash[:12]}")
    _print_remarks(bundle)
    _print_verified(bundle, files.coarse, files.fine)


def _checkpoints(
    source: Path | None, stage1: Path | None, stage2: Path | None, progress: "Progress | None"
) -> "ReleasedFiles":
    """Return both checkpoints, and the text encoder that lies with them; addresses are fetched."""
    from medals_rt.bundle.hub import local_path
    from medals_rt.bundle.released import ReleasedFiles, find_released

    if source is not None:
        if stage1 is not None or stage2 is not None:
            raise InputError(
                "checkpoints come from --from or from --stage1 and --stage2, not both",
                code="checkpoints-twice",
            )
        return find_released(local_path(source, progress))
    if stage1 is None or stage2 is None:
        raise InputError(
            "checkpoints are missing: name --stage1 and --stage2, or --from with a folder or an "
            "address that holds both",
            code="checkpoint-missing",
        )
    return ReleasedFiles(local_path(stage1, progress), local_path(stage2, progress), None)


def _bank_source(
    text_encoder: Path | None,
    biolord: Path | None,
    sentences: Path | None,
    bank: Path | None,
    progress: "Progress | None",
) -> Any:
    """Return where the text embeddings come from: a bank or a text encoder, never both."""
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
                f"leave out --bank or {', '.join(given)}",
                code="text-embeddings-twice",
            )
        return bank
    if text_encoder is None or biolord is None:
        raise InputError(
            "text embeddings need --text-encoder FILE and --biolord DIR, or --bank FILE; given: "
            f"{', '.join(given) or 'none of them'}",
            code="text-embeddings-missing",
        )
    from medals_rt.bundle.hub import local_path
    from medals_rt.common.plugins import load_plugin

    text_source = load_plugin("text-source", "medals-rt export")
    encoder, folder = (local_path(each, progress) for each in (text_encoder, biolord))
    return text_source(encoder, folder, sentences)


def _libraries(*, verify: bool) -> "tuple[RunnerKind, ...]":
    """Return the libraries to compare with PyTorch, if the user said whether to."""
    from medals_rt.common.choices import CPU_RUNNERS
    from medals_rt.common.optional_deps import missing_one_of
    from medals_rt.runners.selection import installed

    found = tuple(kind for kind in CPU_RUNNERS if installed(kind))
    if verify and not found:
        raise missing_one_of("--verify", "OpenVINO", "ONNX Runtime")
    return found if verify else ()


def _print_remarks(bundle: "Bundle") -> None:
    """Print what could not be used for the bank; the manifest lists all of it."""
    remarks = bundle.manifest.embeddings.remarks
    for remark in remarks[:_REMARKS_SHOWN]:
        output.line(f"text bank: {remark}")
    if len(remarks) > _REMARKS_SHOWN:
        output.line(f"text bank: {len(remarks) - _REMARKS_SHOWN} more such remarks in bundle.json")


def _print_verified(bundle: "Bundle", stage1: Path, stage2: Path) -> None:
    """Print what was compared with PyTorch, and what was not."""
    manifest = bundle.manifest
    for record in manifest.unverified:
        output.line(f"not compared in {record.runner}: {record.why}")
    if manifest.verified:
        libraries = dict.fromkeys(record.runner for record in manifest.verified)
        worst = max(record.relative_error for record in manifest.verified)
        output.line(
            f"every graph agrees with PyTorch in {', '.join(libraries)}: relative error at most "
            f"{worst:.2g}, allowed {manifest.verified[0].tolerance:.0e}"
        )
        return
    output.line(
        "no graph was compared with PyTorch yet; do so with: "
        f"medals-rt verify --bundle {bundle.folder} --against {stage1} {stage2}"
    )
