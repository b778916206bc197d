"""Two checkpoints and an embedding bank to a checked bundle."""

import copy
import dataclasses
import itertools
import math
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import onnx
import torch

from medals_export.arithmetic import ARITHMETICS, FP32, Arithmetic
from medals_export.bundle_writer import check_target, file_record, write_bundle
from medals_export.checkpoint import Checkpoint, load_checkpoint
from medals_export.graph_checks import tensor_records
from medals_export.graph_plans import graph_plans
from medals_export.half_storage import round_weights_to_fp16, store_constants_as_fp16
from medals_export.onnx_graphs import trace
from medals_export.quantization.calibrated import quantize_stages
from medals_export.quantization.layers import quantized_network
from medals_export.quantization.sensitivity import chosen_ranges
from medals_export.text_bank import TextBank, build_bank, load_bank, save_tensors
from medals_export.verify import GraphReference, reference_passes, unverified, verify_graph
from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import (
    FORMAT_VERSION,
    GRAPH_NAMES,
    ClassRecord,
    EmbeddingsRecord,
    GraphName,
    GraphRecord,
    Manifest,
    QuantizationRecord,
    Sources,
    StageRecord,
    Stages,
    TermsRecord,
    VerifiedRecord,
)
from medals_rt.bundle.released import CheckpointFile, Terms
from medals_rt.common.choices import (
    QUANTIZED_PRECISIONS,
    STAGE_NAMES,
    FloatPrecision,
    Precision,
    RunnerKind,
    StageNumber,
)
from medals_rt.common.distribution import VERSION
from medals_rt.common.errors import ExportError, InputError, MissingFileError
from medals_rt.common.limits import MAX_PROMPTS
from medals_rt.common.progress import Progress
from medals_rt.prompts.classes import by_bank_key
from medals_rt.runners.registry import CPU_RUNNERS
from medals_rt.runners.selection import installed
from medals_rt.tools.verify.cases import cases_in

AnyPath = str | os.PathLike[str]
# forward passes of a released network take seconds at 96^3 voxels, and minutes at full size
MOST_VERIFIED_VOXELS = 96**3


@dataclass(frozen=True)
class TextSource:
    """What a bank is computed from.

    Attributes
    ----------
    text_encoder
        The knowledge encoder's checkpoint, `text_encoder.pth`.
    biolord
        Local BioLORD folder: configuration and tokenizer.
    sentences
        Known sentences (`challenge_prompts.json`); None for one stated sentence a class.
    """

    text_encoder: Path
    biolord: Path
    sentences: Path | None = None


@dataclass(frozen=True)
class _Job:
    """What one stage's export needs."""

    folder: Path
    bank: TextBank
    arithmetic: Arithmetic
    weights: FloatPrecision
    kinds: tuple[RunnerKind, ...]
    progress: Progress
    quantization: QuantizationRecord | None


@dataclass(frozen=True)
class _Stage:
    """A stage that was written, and what was compared of it."""

    record: StageRecord
    verified: tuple[VerifiedRecord, ...]


def export_bundle(
    stage1: Checkpoint | CheckpointFile | AnyPath,
    stage2: Checkpoint | CheckpointFile | AnyPath,
    bank: TextBank | TextSource | AnyPath,
    out: AnyPath,
    *,
    name: str,
    precision: Precision = "fp32",
    weights: FloatPrecision | None = None,
    calibrate: AnyPath | None = None,
    with_text_encoder: bool = False,
    verify_with: Sequence[RunnerKind] | None = None,
    notice: str | None = None,
    terms: Sequence[Terms] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
    remark: Callable[[str], None] | None = None,
) -> Bundle:
    """Export both stages to ONNX, check every graph, and write the bundle.

    Parameters
    ----------
    stage1, stage2
        Checkpoints of the coarse and the fine network, loaded or as files.
    bank
        The embedding bank: loaded, as the path of its safetensors file, or what to compute it from.
    out
        Folder to make. It appears whole, or not at all.
    name
        Name of the bundle, for people.
    precision
        What the graphs compute in; see `medals_export.arithmetic`.
    weights
        How constants are stored; None for the precision. "fp16" with precision "fp32" halves the
        bundle; graphs compute in fp32 all the same.
    calibrate
        For precision "int8" and "fp8": a case, or a folder of cases, with prompts in them or beside
        them. They are segmented in PyTorch, which says what ranges values lie in and which
        convolutions can be quantized; see `medals_export.quantization`.
    with_text_encoder
        Put the text encoder itself into the bundle, so that the run time can embed free text; the
        bank must be given as what it is computed from.
    verify_with
        Inference libraries to compare the graphs with PyTorch in. Comparing runs whole forward
        passes at the graphs' window; an empty sequence leaves it out, and the manifest then records
        nothing as verified. None takes all that are installed where both windows have at most
        `MOST_VERIFIED_VOXELS` voxels, else none.
    notice
        A warning for everyone who sees a result, one line, such as "for research only".
    terms
        Licenses and notices of the weights' publishers; their texts are copied into the bundle.
    overwrite
        Replace a bundle that is there.
    progress
        Called with each stage, or the bank, how many steps are done, and how many there are.
    remark
        Called with each sentence about what was assumed of a checkpoint.

    Raises
    ------
    ExportError
        If checkpoints and bank do not fit each other or the precision, `out` may not be written, or
        a graph breaks the contract or differs from PyTorch by more than its precision allows.
    MissingFileError
        If a checkpoint or the bank is not there.
    InputError
        If the bank's index names a class that does not exist, known sentences can't be read, or
        `calibrate` is missing where something is quantized, or given where nothing is.
    MissingDependencyError
        If the bank is to be computed and a library for that is not installed.
    """
    target = Path(out)
    check_target(target, overwrite=overwrite)
    stored = _weights(precision, weights)
    cases = _calibration_cases(precision, calibrate)
    checkpoints = [_loaded(item) for item in (stage1, stage2)]
    _check_order(*checkpoints)
    for text in (text for each in checkpoints for text in each.remarks):
        if remark is not None:
            remark(text)
    if with_text_encoder and not isinstance(bank, TextSource):
        raise ExportError(
            "to put the text encoder into the bundle, give what the bank comes from",
            code="text-encoder-missing",
        )
    embeddings = _bank(bank, progress)
    for number, checkpoint in zip(STAGE_NAMES, checkpoints, strict=True):
        if checkpoint.model.config.text_dim != embeddings.dim:
            raise ExportError(
                f"the bank's embeddings have width {embeddings.dim}, stage {number} "
                f"({checkpoint.source.file}) wants {checkpoint.model.config.text_dim}",
                code="bank-width",
            )
    classes = tuple(ClassRecord(key, by_bank_key(key).name) for key in embeddings.bank_keys)
    kinds = _default_kinds(checkpoints) if verify_with is None else tuple(verify_with)

    quantization = _quantization(precision, checkpoints, embeddings, cases, progress)

    def fill(folder: Path) -> Manifest:
        job = _Job(
            folder,
            embeddings,
            ARITHMETICS[precision],
            stored,
            kinds,
            progress or _no_progress,
            quantization,
        )
        stages = [
            _export_stage(job, number, checkpoint)
            for number, checkpoint in zip(STAGE_NAMES, checkpoints, strict=True)
        ]
        manifest = _manifest(job, name, classes, checkpoints, stages)
        manifest = msgspec.structs.replace(
            manifest, notice=notice, terms=tuple(_copy_terms(folder, terms))
        )
        if not with_text_encoder or not isinstance(bank, TextSource):
            return manifest
        from medals_export.text_graph import export_text_encoder

        record = export_text_encoder(bank.text_encoder, bank.biolord, folder)
        return msgspec.structs.replace(manifest, text_encoder=record)

    return write_bundle(target, fill, overwrite=overwrite)


def _loaded(given: Checkpoint | CheckpointFile | AnyPath) -> Checkpoint:
    """Load a checkpoint unless it is."""
    if isinstance(given, Checkpoint):
        return given
    if not isinstance(given, CheckpointFile):
        return load_checkpoint(given)
    loaded = load_checkpoint(
        given.path,
        window_hwd=given.window_hwd,
        spacing_hwd_mm=given.spacing_hwd_mm,
        heads=given.heads,
    )
    source = msgspec.structs.replace(loaded.source, origin=given.origin)
    return dataclasses.replace(loaded, source=source)


def _check_order(coarse: Checkpoint, fine: Checkpoint) -> None:
    """Refuse stages that were given the wrong way round."""
    if math.prod(coarse.spacing_hwd_mm) < math.prod(fine.spacing_hwd_mm):
        raise ExportError(
            f"stage 1 ({coarse.source.file}, {coarse.spacing_hwd_mm} mm) has smaller voxels than "
            f"stage 2 ({fine.source.file}, {fine.spacing_hwd_mm} mm); name the coarse one first",
            code="stages-swapped",
        )


def _copy_terms(folder: Path, terms: Sequence[Terms]) -> Iterator[TermsRecord]:
    """Copy the texts of licenses into the bundle, those of each source into a folder."""
    for number, each in enumerate(terms, start=1):
        files = []
        for text in each.texts:
            file = f"licenses/{number}/{text.name}"
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(text, folder / file)
            files.append(file_record(folder, file))
        yield TermsRecord(each.source, each.license, tuple(files))


def _bank(bank: TextBank | TextSource | AnyPath, progress: Progress | None) -> TextBank:
    """Load or compute the bank."""
    if isinstance(bank, TextBank):
        return bank
    if isinstance(bank, TextSource):
        return build_bank(bank.text_encoder, bank.biolord, bank.sentences, progress)
    return load_bank(bank)


def _weights(precision: Precision, weights: FloatPrecision | None) -> FloatPrecision:
    """Decide how constants are stored; of int8 and fp8 bundles, those that are not quantized."""
    own: FloatPrecision = (
        "fp16" if precision == "int8" or precision == "fp8" else precision  # noqa: PLR1714 - mypy
    )
    allowed: tuple[FloatPrecision, ...] = ("fp32", "fp16") if own == "fp32" else (own,)
    if weights is None:
        return own
    if weights not in allowed:
        raise ExportError(
            f"a bundle that computes in {precision} stores weights in {' or '.join(allowed)}, "
            f"not in {weights}",
            code="weights-precision",
        )
    return weights


def _calibration_cases(precision: Precision, calibrate: AnyPath | None) -> tuple[Path, ...]:
    """Find the cases to calibrate with; none where nothing is quantized.

    Raises
    ------
    InputError
        If there are none where there should be, or the other way round.
    MissingFileError
        If there is no such file or folder.
    """
    quantized = ARITHMETICS[precision].number_format is not None
    if calibrate is None:
        if quantized:
            raise InputError(
                f"{precision} needs cases to calibrate with: name some with --calibrate",
                code="calibration-missing",
            )
        return ()
    if not quantized:
        raise InputError(
            f"--calibrate is for precision {' and '.join(QUANTIZED_PRECISIONS)}, not for "
            f"{precision}: leave it out",
            code="calibration-not-needed",
        )
    path = Path(calibrate)
    if not path.exists():
        raise MissingFileError(f"there is no case or folder {path}", code="case-missing")
    return cases_in(path) or (path,)


def _quantization(
    precision: Precision,
    checkpoints: Sequence[Checkpoint],
    bank: TextBank,
    cases: Sequence[Path],
    progress: Progress | None,
) -> QuantizationRecord | None:
    """Decide what is quantized; None in other precisions. The pipeline takes a bundle of floats."""
    number_format = ARITHMETICS[precision].number_format
    if number_format is None:
        return None
    coarse, fine = checkpoints
    with TemporaryDirectory(prefix="medals-rt-") as folder:
        floats = export_bundle(
            coarse, fine, bank, folder, name="floats", verify_with=(), progress=progress
        )
        networks = dict(zip(STAGE_NAMES, checkpoints, strict=True))
        return quantize_stages(floats, networks, number_format, cases, progress or _no_progress)


def _default_kinds(checkpoints: Sequence[Checkpoint]) -> tuple[RunnerKind, ...]:
    """Return the libraries to compare with where nobody says."""
    voxels = max(math.prod(each.model.config.window_hwd) for each in checkpoints)
    if voxels > MOST_VERIFIED_VOXELS:
        return ()
    return tuple(kind for kind in CPU_RUNNERS if installed(kind))


def _no_progress(_: str, __: int, ___: int) -> None:
    """Report nothing."""


def _export_stage(job: _Job, number: StageNumber, checkpoint: Checkpoint) -> _Stage:
    """Write and check the graphs of a stage."""
    label = STAGE_NAMES[number]
    network = checkpoint.model
    if job.weights == "fp16" and job.arithmetic is FP32:
        network = copy.deepcopy(network)
        round_weights_to_fp16(network)
    ranges: dict[str, float] = {}
    computed = network
    if job.quantization is not None and job.arithmetic.number_format is not None:
        quantization = job.quantization.coarse if number == 1 else job.quantization.fine
        ranges = chosen_ranges(quantization)
        computed = quantized_network(network, ranges, job.arithmetic.number_format)
    (job.folder / label).mkdir()
    steps = itertools.count()
    total = len(GRAPH_NAMES) + bool(job.kinds)

    def advance() -> None:
        job.progress(label, next(steps), total)

    advance()
    references: dict[GraphName, GraphReference] = {}
    if job.kinds:
        references = reference_passes(computed, checkpoint.model, job.bank.class_embeddings)
        advance()
    graphs: dict[str, GraphRecord] = {}
    verified: list[VerifiedRecord] = []
    for plan, model in trace(graph_plans(network, job.arithmetic, ranges)):
        if job.weights == "fp16" and job.arithmetic is FP32:
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
        advance()
    stage = StageRecord(
        window_hwd=network.config.window_hwd,
        spacing_hwd_mm=checkpoint.spacing_hwd_mm,
        graphs=graphs,
    )
    return _Stage(stage, tuple(verified))


def _manifest(
    job: _Job,
    name: str,
    classes: tuple[ClassRecord, ...],
    checkpoints: Sequence[Checkpoint],
    stages: Sequence[_Stage],
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
    coarse, fine = stages
    return Manifest(
        format_version=FORMAT_VERSION,
        name=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        precision=job.arithmetic.precision,
        weights=job.weights,
        stages=Stages(coarse.record, fine.record),
        embeddings=EmbeddingsRecord(
            file=tensors.file,
            sha256=tensors.sha256,
            bytes=tensors.bytes,
            dim=bank.dim,
            source=bank.source,
            remarks=bank.remarks,
        ),
        classes=classes,
        sources=Sources(checkpoints[0].source, checkpoints[1].source),
        versions={
            "medals-rt": VERSION,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "onnx": onnx.__version__,
        },
        sentences=sentences,
        max_prompts=MAX_PROMPTS,
        quantization=job.quantization,
        verified=(*coarse.verified, *fine.verified),
        unverified=unverified(job.arithmetic, job.kinds),
    )
