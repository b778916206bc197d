"""`medals-rt export`: turn checkpoints into a bundle. Needs the extra `export` (torch)."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from medals_rt.cli._output import out as output
from medals_rt.common.choices import FloatPrecision, Precision
from medals_rt.common.errors import InputError

if TYPE_CHECKING:
    from medals_rt.bundle.bundle import Bundle
    from medals_rt.bundle.released import CheckpointFile, ReleasedFiles
    from medals_rt.bundle.sources import ExportSources
    from medals_rt.common.choices import RunnerKind
    from medals_rt.common.progress import Progress


EXAMPLES: Final = (
    "medals-rt export --stage1 runs/demo/coarse.pth --stage2 runs/demo/fine.pth \\",
    "  --bank runs/demo/bank.safetensors --out engines/mine",
    "medals-rt export --from hf:spc819/Medal-S-V1.0 --unpinned --out engines/medal-s",
    "medals-rt export --from weights/medal-s --biolord weights/BioLORD-2023-C --out engines/mine",
    "medals-rt export --stage1 coarse.pth --stage2 fine.pth --text-encoder text_encoder.pth \\",
    "  --biolord BioLORD-2023-C --precision bf16 --out engines/mine",
    "medals-rt export --stage1 coarse.pth --stage2 fine.pth --bank bank.safetensors \\",
    "  --precision int8 --calibrate cases --out engines/mine-int8",
)
_REMARKS_SHOWN = 10
_Number = TypeVar("_Number", int, float)


def export_command(
    *,
    out: Annotated[Path, typer.Option(help="Folder of the new bundle.")],
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="DIR|hf:OWNER/NAME@COMMIT",
            help="Where the released files lie: both checkpoints and the text encoder, found by "
            "name or content, and BioLORD if it is there. Each can have an address of its own too.",
        ),
    ] = None,
    unpinned: Annotated[
        bool,
        typer.Option(
            "--unpinned",
            help="Accept addresses without a commit, and print the commit that is taken.",
        ),
    ] = False,
    stage1: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Checkpoint of the coarse stage (.pth or .safetensors), inside the folder of "
            "--from if that is given.",
        ),
    ] = None,
    stage2: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Checkpoint of the fine stage, likewise.")
    ] = None,
    stage1_window: Annotated[
        str | None,
        typer.Option(
            metavar="H,W,D",
            help="Window of the coarse stage in voxels, where neither its name nor its content "
            "says it.",
        ),
    ] = None,
    stage1_spacing: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Its spacing in mm (H,W,D), likewise.")
    ] = None,
    stage1_heads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Attention heads of the coarse stage, where its content doesn't say them "
            "[default: the 8 of the released networks].",
        ),
    ] = None,
    stage2_window: Annotated[
        str | None, typer.Option(metavar="H,W,D", help="Window of the fine stage, likewise.")
    ] = None,
    stage2_spacing: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Spacing of the fine stage, likewise.")
    ] = None,
    stage2_heads: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Attention heads of the fine stage, likewise."),
    ] = None,
    text_encoder: Annotated[
        Path | None,
        typer.Option(help="Checkpoint of the text encoder (text_encoder.pth); with --biolord."),
    ] = None,
    biolord: Annotated[
        Path | None,
        typer.Option(
            help="Folder or address of BioLORD, with the text encoder's configuration and "
            "tokenizer [default: in the folder of --from, else where it was published]."
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
            "is in every report, picture and DICOM SEG [default: that of the published weights].",
        ),
    ] = None,
    precision: Annotated[
        Precision,
        typer.Option(
            help="Arithmetic of the graphs; norms and softmax are always fp32. int8 and fp8 are "
            "of most convolutions, and need --calibrate."
        ),
    ] = "fp32",
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="CASE|DIR",
            help="For int8 and fp8: a case, or a folder of cases, with prompts. Its windows say "
            "which convolutions can be quantized, and how.",
        ),
    ] = None,
    weights: Annotated[
        FloatPrecision | None,
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
    from medals_rt.bundle.sources import ExportSources
    from medals_rt.common.optional_deps import require
    from medals_rt.common.plugins import load_plugin

    require("export", "PyTorch", "ONNX", "ONNX Script")
    export_bundle = load_plugin("export", "medals-rt export")

    named = (
        _stage(1, stage1, stage1_window, stage1_spacing, stage1_heads),
        _stage(2, stage2, stage2_window, stage2_spacing, stage2_heads),
    )
    with output.progress() as progress:
        sources = ExportSources(progress, unpinned=unpinned, remark=output.remark)
        files = sources.checkpoints(source, *named)
        encoder_options = {
            "--text-encoder": text_encoder,
            "--biolord": biolord,
            "--sentences": sentences,
        }
        embeddings = _embeddings(sources, files, encoder_options, bank)
    if with_text_encoder and embeddings == bank:
        raise InputError(
            "--with-text-encoder needs --text-encoder and --biolord, not --bank",
            code="text-encoder-missing",
        )
    with output.progress() as drawn, _ending_at_steps(drawn) as progress:
        bundle = export_bundle(
            files.coarse,
            files.fine,
            embeddings,
            out,
            name=name or out.resolve().name,
            notice=sources.notice if notice is None else notice or None,
            terms=sources.terms,
            precision=precision,
            weights=weights,
            calibrate=calibrate,
            with_text_encoder=with_text_encoder,
            verify_with=None if verify is None else _libraries(verify=verify),
            overwrite=overwrite,
            progress=progress,
            remark=output.remark,
        )
    output.line(f"wrote {bundle.folder}: {len(bundle.classes)} classes, hash {bundle.hash[:12]}")
    _print_remarks(bundle)
    _print_verified(bundle, files.coarse.path, files.fine.path)


@contextmanager
def _ending_at_steps(progress: "Progress | None") -> "Iterator[Progress]":
    """Have Ctrl-C or SIGTERM end the work at its next step where it didn't at once.

    Python drops what is raised while a callback of a weak reference runs, and tracing has many.
    """
    came: list[Callable[[], object]] = []

    def remembered(handler: Callable[[int, FrameType | None], object]) -> Callable[..., None]:
        def handle(number: int, frame: FrameType | None) -> None:
            came.append(lambda: handler(number, None))
            handler(number, frame)

        return handle

    def advance(name: str, done: int, total: int) -> None:
        for end in came:
            end()
        if progress is not None:
            progress(name, done, total)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    own = {number: handler for number, handler in handlers.items() if callable(handler)}
    if threading.current_thread() is not threading.main_thread():
        own = {}  # signals are the main thread's
    for number, handler in own.items():
        signal.signal(number, remembered(handler))
    try:
        yield advance
    finally:
        for number, handler in own.items():
            signal.signal(number, handler)


def _stage(
    number: int, path: Path | None, window: str | None, spacing: str | None, heads: int | None
) -> "CheckpointFile | None":
    """Make a stage's checkpoint from its options; None where it isn't named.

    Raises
    ------
    InputError
        Window or spacing are no three positive numbers, or are given for no file.
    """
    from medals_rt.bundle.released import CheckpointFile

    if path is None:
        if (window, spacing, heads) != (None, None, None):
            raise InputError(
                f"--stage{number}-window, --stage{number}-spacing and --stage{number}-heads "
                f"describe the file that --stage{number} names; name it",
                code="checkpoint-missing",
            )
        return None
    return CheckpointFile(
        path,
        None if window is None else _sizes(window, int, f"--stage{number}-window H,W,D"),
        None if spacing is None else _sizes(spacing, float, f"--stage{number}-spacing A,B,C"),
        heads,
    )


def _sizes(
    text: str, read: Callable[[str], _Number], what: str
) -> tuple[_Number, _Number, _Number]:
    from medals_rt.common.numbers import three_numbers

    sizes = three_numbers(text, read, what)
    if not min(sizes) > 0:
        raise InputError(
            f"{what} needs three positive numbers, not {text!r}", code="no-three-numbers"
        )
    return sizes


def _embeddings(
    sources: "ExportSources",
    files: "ReleasedFiles",
    options: "Mapping[str, Path | None]",
    bank: Path | None,
) -> Any:
    """Return where the text embeddings come from: a bank or a text encoder, never both."""
    from medals_rt.common.plugins import load_plugin

    if bank is None:
        encoder, biolord, sentences = options.values()
        found = sources.text_encoder(files, encoder, biolord)
        return load_plugin("text-source", "medals-rt export")(*found, sentences)
    if given := [option for option, value in options.items() if value is not None]:
        raise InputError(
            f"text embeddings come from --bank or from --text-encoder and --biolord, not both: "
            f"leave out --bank or {', '.join(given)}",
            code="text-embeddings-twice",
        )
    return bank


def _libraries(*, verify: bool) -> "tuple[RunnerKind, ...]":
    """Return the libraries to compare with PyTorch, if the user said whether to."""
    from medals_rt.common.optional_deps import missing_one_of
    from medals_rt.runners.registry import CPU_RUNNERS, libraries_of, runner_spec
    from medals_rt.runners.selection import installed

    found = tuple(kind for kind in CPU_RUNNERS if installed(kind))
    if verify and not found:
        raise missing_one_of("--verify", *libraries_of(map(runner_spec, CPU_RUNNERS)))
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
            f"{worst:.2g}, allowed {manifest.verified[0].tolerance:.2g}"
        )
        return
    output.line(
        "no graph was compared with PyTorch yet; do so with: "
        f"medals-rt verify --bundle {bundle.folder} --against {stage1} {stage2}"
    )
