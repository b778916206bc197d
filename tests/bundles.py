"""A minuscule bundle for tests that need one but not its results."""

import contextlib
import functools
from pathlib import Path

import numpy as np

from medals_export.checkpoint import Checkpoint
from medals_export.export import export_bundle
from medals_export.model import ModelConfig
from medals_export.text_bank import TextBank
from medals_rt.bundle.bundle import Bundle
from tests.recipes import recipe_checkpoint

# The tracer reads its table of operators again for each graph, which takes most of its time; tests
# let it read the table once. It is no public function: where it has moved, tests only take longer.
with contextlib.suppress(ImportError, AttributeError):
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))

TINY_CLASS_KEYS = ("CT/anatomy/1", "CT/anatomy/2", "CT/lesion/1", "MRI/anatomy/1")
TINY_SENTENCE = "Made-up organ in abdominal CT"
TINY_SPACINGS_HWD_MM = {1: (4.0, 4.0, 6.0), 2: (2.0, 2.0, 3.0)}


def tiny_config(stage: int, features: tuple[int, ...] = (4, 8, 8)) -> ModelConfig:
    """Three stages, windows of 16x16x8 and 16x16x16."""
    return ModelConfig(
        window_hwd=(16, 16, 8 * stage),
        features=features,
        text_dim=24,
        decoder_layers=2,
        heads=4,
        ffn=32,
        projection_hidden=16,
        mask_hidden=12,
    )


def tiny_checkpoint(stage: int, **options: tuple[int, ...]) -> Checkpoint:
    """Made-up weights for a stage."""
    return recipe_checkpoint(
        tiny_config(stage, **options), TINY_SPACINGS_HWD_MM[stage], f"tiny{stage}/"
    )


def tiny_bank() -> TextBank:
    """Four classes and one sentence."""
    rng = np.random.default_rng(3)
    return TextBank(
        class_embeddings=rng.standard_normal((len(TINY_CLASS_KEYS), 24), dtype=np.float32),
        class_rows={key: row for row, key in enumerate(TINY_CLASS_KEYS)},
        source="made up for tests",
        sentence_embeddings=rng.standard_normal((1, 24), dtype=np.float32),
        sentence_rows={"CT": {TINY_SENTENCE: 0}},
    )


def export_tiny_bundle(out_dir: Path, **options: object) -> Bundle:
    """Both stages of the minuscule network; `options` are those of `export_bundle`."""
    return export_bundle(
        tiny_checkpoint(1), tiny_checkpoint(2), tiny_bank(), out_dir, name="tiny", **options
    )


def export_tiny_half_bundle(out_dir: Path) -> Bundle:
    """The same in fp16, with as many channels as a GPU's matrix units take at once, or more."""
    checkpoints = (tiny_checkpoint(stage, features=(8, 16, 24)) for stage in (1, 2))
    return export_bundle(
        *checkpoints, tiny_bank(), out_dir, name="tiny half", precision="fp16", verify_with=()
    )
