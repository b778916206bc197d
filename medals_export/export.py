"""Two checkpoints and an embedding bank to a checked bundle."""

import copy
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec
import onnx
import torch

from medals_export.bundle_writer import check_target, file_record, write_bundle
from medals_export.checkpoint import Checkpoint, load_checkpoint
from medals_export.half_storage import round_weights_to_fp16, store_constants_as_fp16
from medals_export.onnx_graphs import (
    graph_plans,
    tensor_records,
    trace,
)
from medals_export.text_bank import TextBank, load_bank, save_tensors
from medals_export.verify import reference_passes, verify_graph
from medals_rt import __version__
from medals_rt.bundle import Bundle
from medals_rt.errors import ExportError
from medals_rt.manifest import (
    FORMAT_VERSION,
    ClassRecord,
    EmbeddingsRecord,
    GraphRecord,
    Manifest,
    Sources,
    StageRecord,
    Stages,
    VerifiedRecord,
)
from medals_rt.runners import RUNNER_KINDS, RunnerKind, installed
from medals_rt.vocabulary import by_bank_key

AnyPath = str | os.PathLike[str]
Progress = Callable[[str, int, int], None]
Weights = Literal["fp32", "fp16"]
_STAGES: tuple[tuple[Literal[1, 2], str], ...] = ((1, "coarse"), (2, "fine"))


@dataclass(frozen=True)
class _Job:
    """What one stage's export needs; `advance` is told each step before it begins."""

    folder: Path
    bank: TextBank
    classes: tuple[ClassRecord, ...]
    weights: Weights
    kinds: tuple[RunnerKind, ...]
    advance: Callable[[str], None]


def export_bundle(
    stage1: Checkpoint | AnyPath,
    stage2: Checkpoint | AnyPath,
    bank: TextBank | AnyPath,
    out: AnyPath,
    *,
    name: str,
    weights: Weights = "fp32",
    verify_with: Sequence[RunnerKind] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Export both stages to ONNX, check every graph against PyTorch, and write the bundle.

    Parameters
    ----------
    stage1, stage2
        Checkpoints of the coarse and the fine network, loaded or as paths.
    bank
        The embedding bank, loaded or as the path of its safetensors file.
    out
        Folder to make. It appears whole, or not at all.
    name
        Name of the bundle, for people.
    weights
        How constants are stored: "fp16" halves the bundle; graphs compute in fp32 all the same.
    verify_with
        Inference libraries to check the graphs with; None for all that are installed. Checking
        runs whole forward passes at the graphs' window; an empty sequence leaves it out, and the
        manifest then records nothing as verified.
    overwrite
        Replace a bundle that is there.
    progress
        Called before each step with what it is, how many are done, and how many there are.

    Raises
    ------
    ExportError
        If checkpoints and bank do not fit each other, `out` may not be written, or a graph breaks
        the contract or differs from PyTorch by more than 1e-4.
    MissingFileError
        If a checkpoint or the bank is not there.
    InputError
        If the bank's index names a class that does not exist.
    """
    target = Path(out)
    check_target(target, overwrite=overwrite)
    checkpoints = [
        item if isinstance(item, Checkpoint) else load_checkpoint(item) for item in (stage1, stage2)
    ]
    embeddings = bank if isinstance(bank, TextBank) else load_bank(bank)
    for (number, _), checkpoint in zip(_STAGES, checkpoints, strict=True):
        if checkpoint.model.config.text_dim != embeddings.dim:
            raise ExportError(
                f"the bank's embeddings have width {embeddings.dim}, stage {number} "
                f"({checkpoint.source.file}) wants {checkpoint.model.config.text_dim}"
            )
    classes = tuple(ClassRecord(key, by_bank_key(key).name) for key in embeddings.bank_keys)
    kinds = tuple(k for k in RUNNER_KINDS if installed(k)) if verify_with is None else verify_with
    advance = _counter(progress, total=len(_STAGES) * 5 + 1)

    def fill(folder: Path) -> Manifest:
        job = _Job(folder, embeddings, classes, weights, tuple(kinds), advance)
        coarse, fine = (
            _export_stage(job, number, label, checkpoint)
            for (number, label), checkpoint in zip(_STAGES, checkpoints, strict=True)
        )
        advance("embedding bank")
        return _manifest(job, name, checkpoints, (coarse, fine))

    return write_bundle(target, fill, overwrite=overwrite)


def _export_stage(
    job: _Job, number: Literal[1, 2], label: str, checkpoint: Checkpoint
) -> tuple[StageRecord, tuple[VerifiedRecord, ...]]:
    """Write and check the four graphs of a stage."""
    original = network = checkpoint.model
    if job.weights == "fp16":
        network = copy.deepcopy(original)
        round_weights_to_fp16(network)
    (job.folder / label).mkdir()
    job.advance(f"{label}: PyTorch reference")
    references = reference_passes(network, original, job.bank.class_embeddings) if job.kinds else {}
    graphs: dict[str, GraphRecord] = {}
    verified: list[VerifiedRecord] = []
    for plan in graph_plans(network):
        job.advance(f"{label}: {plan.name}")
        model = trace(plan)
        if job.weights == "fp16":
            store_constants_as_fp16(model)
        file = f"{label}/{plan.name}.onnx"
        (job.folder / file).write_bytes(model.SerializeToString(deterministic=True))
        record = file_record(job.folder, file)
        graphs[plan.name] = GraphRecord(
            file=record.file,
            sha256=record.sha256,
            bytes=record.bytes,
            inputs=tensor_records(model.graph.input),
            outputs=tensor_records(model.graph.output),
        )
        if job.kinds:
            reference = references[plan.name]
            verified += verify_graph(job.folder / file, plan, reference, number, job.kinds)
    stage = StageRecord(
        window_hwd=network.config.window_hwd,
        spacing_hwd_mm=checkpoint.spacing_hwd_mm,
        graphs=graphs,
    )
    return stage, tuple(verified)


def _manifest(
    job: _Job,
    name: str,
    checkpoints: Sequence[Checkpoint],
    stages: tuple[
        tuple[StageRecord, tuple[VerifiedRecord, ...]],
        tuple[StageRecord, tuple[VerifiedRecord, ...]],
    ],
) -> Manifest:
    """Write the bank and describe everything."""
    bank = job.bank
    save_tensors(job.folder / "embeddings.safetensors", bank)
    tensors = file_record(job.folder, "embeddings.safetensors")
    sentences = None
    if bank.sentence_rows:
        (job.folder / "sentences.json").write_bytes(
            msgspec.json.encode(bank.sentence_rows, order="sorted")
        )
        sentences = file_record(job.folder, "sentences.json")
    (coarse, coarse_verified), (fine, fine_verified) = stages
    return Manifest(
        format_version=FORMAT_VERSION,
        name=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        precision="fp32",
        weights=job.weights,
        stages=Stages(coarse, fine),
        embeddings=EmbeddingsRecord(
            file=tensors.file,
            sha256=tensors.sha256,
            bytes=tensors.bytes,
            dim=bank.dim,
            source=bank.source,
        ),
        classes=job.classes,
        sources=Sources(checkpoints[0].source, checkpoints[1].source),
        versions={
            "medals-rt": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "onnx": onnx.__version__,
        },
        sentences=sentences,
        verified=(*coarse_verified, *fine_verified),
    )


def _counter(progress: Progress | None, total: int) -> Callable[[str], None]:
    """Turn a progress callback into one that counts the steps itself."""
    done = iter(range(total))

    def advance(step: str) -> None:
        count = next(done)
        if progress is not None:
            progress(step, count, total)

    return advance
