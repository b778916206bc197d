"""`medals-rt export`: turn checkpoints into a bundle. Needs the extra `export` (torch)."""

from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from medals_rt.cli.console import Debug, progress_bar
from medals_rt.errors import MissingDependencyError


class Weights(StrEnum):
    """How a bundle stores its numbers."""

    FP32 = "fp32"
    FP16 = "fp16"


def export_command(
    *,
    stage1: Annotated[Path, typer.Option(help="Checkpoint of the coarse stage (.pth).")],
    stage2: Annotated[Path, typer.Option(help="Checkpoint of the fine stage (.pth).")],
    bank: Annotated[
        Path,
        typer.Option(help="Text embeddings (.safetensors, with its index in .json beside it)."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new bundle.")],
    name: Annotated[str | None, typer.Option(help="Its name [default: the folder's].")] = None,
    weights: Annotated[
        Weights, typer.Option(help="fp16 halves the files; the arithmetic stays fp32.")
    ] = Weights.FP32,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a bundle that is there.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Export two checkpoints and a text bank as a bundle of ONNX graphs."""
    del debug  # read by one_line_errors
    for library in ("torch", "onnx", "onnxscript"):
        if find_spec(library) is None:
            raise MissingDependencyError(f"export needs {library}: pip install 'medals-rt[export]'")
    from medals_export.export import export_bundle

    with progress_bar() as progress:
        bundle = export_bundle(
            stage1,
            stage2,
            bank,
            out,
            name=name or out.resolve().name,
            weights=weights.value,
            overwrite=overwrite,
            progress=progress,
        )
    typer.echo(f"wrote {bundle.folder}: {len(bundle.classes)} classes, hash {bundle.hash[:12]}")
