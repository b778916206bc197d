"""Networks with made-up weights, as the reference figures were computed with."""

import math
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
import torch
from onnx import numpy_helper

from medals_export.bundle_writer import file_record, write_bundle
from medals_export.checkpoint import Checkpoint, build_model
from medals_export.export import export_bundle
from medals_export.model import MedalS, ModelConfig
from medals_export.text_bank import TextBank, save_tensors
from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import ClassRecord, Manifest, SourceRecord, StageRecord, Stages
from medals_rt.prompts.classes import by_bank_key

NO_FILE_SHA256 = "0" * 64
E2E_WINDOWS_HWD = {1: (64, 64, 32), 2: (64, 64, 64)}
E2E_SPACINGS_HWD_MM = {1: (1.5, 1.5, 3.0), 2: (1.0, 1.0, 1.0)}


def recipe_tensor(key: str, shape: Sequence[int]) -> np.ndarray:
    """One tensor drawn from a generator that its key seeds; see the golden figures' description."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    x = rng.standard_normal(tuple(shape), dtype=np.float32)
    if len(shape) >= 2:
        return x * np.float32(1.4 / math.sqrt(math.prod(shape[1:])))
    if "norm" in key and key.endswith("weight"):
        return 1 + np.float32(0.1) * x
    return np.float32(0.1) * x


def recipe_state_dict(
    config: ModelConfig, prefix: str = "", shift: float | None = None
) -> dict[str, torch.Tensor]:
    """The recipe's weights for a network; `shift` is added to the refiner's norm bias."""
    with torch.device("meta"):
        shapes = {key: tuple(tensor.shape) for key, tensor in MedalS(config).state_dict().items()}
    state = {
        key: torch.from_numpy(recipe_tensor(prefix + key, shape)) for key, shape in shapes.items()
    }
    if shift is not None:
        state["fusion_conv.convs.0.norm.bias"] += shift
    return state


def recipe_checkpoint(
    config: ModelConfig,
    spacing_hwd_mm: tuple[float, float, float],
    prefix: str = "",
    shift: float | None = None,
) -> Checkpoint:
    """A network with the recipe's weights, as if it had been loaded from a file."""
    model = build_model(config, recipe_state_dict(config, prefix, shift), f"recipe {prefix!r}")
    return Checkpoint(model, spacing_hwd_mm, SourceRecord(file="recipe", sha256=NO_FILE_SHA256))


def e2e_config(stage: int) -> ModelConfig:
    """The small network of the golden whole cases."""
    return ModelConfig(window_hwd=E2E_WINDOWS_HWD[stage], features=(8, 16, 16, 24, 24, 32))


def e2e_embeddings(bank_keys: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """Text embeddings of a golden whole case, for its prompts' classes in their order."""
    drawn = np.random.default_rng(seed).standard_normal((len(bank_keys), 768), dtype=np.float32)
    return dict(zip(bank_keys, drawn, strict=True))


def bank_of(embeddings: Mapping[str, np.ndarray]) -> TextBank:
    """A bank of class embeddings, rows in the order given."""
    return TextBank(
        class_embeddings=np.stack(list(embeddings.values())),
        class_rows={key: row for row, key in enumerate(embeddings)},
        source="made up for tests",
    )


def export_e2e_bundle(
    out_dir: Path,
    shift: Sequence[float],
    embeddings: Mapping[str, np.ndarray],
    like: Bundle | None = None,
) -> Bundle:
    """The bundle of a golden whole case: `shift` of both stages, embeddings by bank key.

    A bundle made before can be given as `like`: the shift is in the refiners alone, so the graphs
    that cost most to trace are copied from it.
    """
    checkpoints = [
        recipe_checkpoint(
            e2e_config(stage), E2E_SPACINGS_HWD_MM[stage], f"stage{stage}/", float(shift[stage - 1])
        )
        for stage in (1, 2)
    ]
    bank = bank_of(embeddings)
    if like is None:
        return export_bundle(*checkpoints, bank, out_dir, name="e2e", verify_with=())

    def fill(folder: Path) -> Manifest:
        shutil.copytree(like.folder, folder, dirs_exist_ok=True)
        stages = [_with_refiners(like, folder, s, checkpoints[s - 1].model) for s in (1, 2)]
        save_tensors(folder / "embeddings.safetensors", bank)
        tensors = file_record(folder, "embeddings.safetensors")
        return msgspec.structs.replace(
            like.manifest,
            stages=Stages(*stages),
            embeddings=msgspec.structs.replace(
                like.manifest.embeddings, sha256=tensors.sha256, bytes=tensors.bytes
            ),
            classes=tuple(ClassRecord(key, by_bank_key(key).name) for key in bank.bank_keys),
        )

    return write_bundle(out_dir, fill)


def _with_refiners(like: Bundle, folder: Path, stage: int, network: MedalS) -> StageRecord:
    """Add the network's shift to a stage's copied refiners, which is in their norm's bias alone."""
    record = like.stage_record(stage)
    graphs = dict(record.graphs)
    bias = network.fusion_conv.convs[0].norm.bias.numpy()
    for name, old in record.graphs.items():
        if name in {"image_encoder", "query_decoder", "classifier"}:
            continue
        model = onnx.load(folder / old.file)
        (initializer,) = (
            each for each in model.graph.initializer if each.name.endswith("norm.bias")
        )
        initializer.CopyFrom(numpy_helper.from_array(bias, initializer.name))
        (folder / old.file).write_bytes(model.SerializeToString(deterministic=True))
        new = file_record(folder, old.file)
        graphs[name] = msgspec.structs.replace(old, sha256=new.sha256, bytes=new.bytes)
    return msgspec.structs.replace(record, graphs=graphs)
