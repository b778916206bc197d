"""A minuscule text encoder for tests: an MPNet with made-up weights and a vocabulary of words."""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import torch
from transformers import AutoModel, MPNetConfig, MPNetTokenizer

from medals_export.text_encoder import KnowledgeEncoder
from medals_export.text_graph import export_text_encoder
from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import MANIFEST_FILE, dump_manifest

TINY_DIM = 24
# of one token, of words and pieces of words, and one that is cut
SENTENCES = ("Liver in abdominal CT", "", "unknown spots", "LIVER, zebra!", "x " * 400)
_MARKS = ("<s>", "<pad>", "</s>", "<unk>", "[PAD]", "[UNK]", "[CLS]", "[SEP]")
_WORDS = (
    "liver", "spleen", "kidney", "left", "right", "lung", "tumor", "in", "the", "of", "a",
    "abdominal", "chest", "ct", "mri", "us", "pet", "microscopy", "imaging", "scan", "organ",
    "made", "-", "up", "spot", "un", "##s", "##known", "##x", "x", "y",
)  # fmt: skip


def close_to(found: np.ndarray, expected: np.ndarray) -> None:
    """Ask for agreement to 1e-4 of the largest value."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def write_biolord(folder: Path, *, weights: bool = True, dim: int = TINY_DIM) -> Path:
    """Write the folder that transformers writes: configuration, tokenizer, perhaps weights."""
    config = MPNetConfig(
        vocab_size=len(_MARKS) + len(_WORDS) + 1,
        hidden_size=dim,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=300,
    )
    config.architectures = ["MPNetModel"]
    if weights:
        AutoModel.from_config(config).save_pretrained(folder)
    config.save_pretrained(folder)
    words = (*_MARKS, *_WORDS, "<mask>")
    MPNetTokenizer(vocab={word: row for row, word in enumerate(words)}).save_pretrained(folder)
    return folder


def text_encoder_state(biolord: Path) -> dict[str, torch.Tensor]:
    """Made-up weights under the keys of `text_encoder.pth`."""
    config = MPNetConfig.from_pretrained(biolord)
    model = KnowledgeEncoder(AutoModel.from_config(config), config.hidden_size)
    made = torch.Generator().manual_seed(7)
    return {
        f"module.{key}": torch.randn(tensor.shape, generator=made) * 0.3
        for key, tensor in model.state_dict().items()
    }


def write_text_encoder(path: Path, biolord: Path) -> Path:
    """Write a checkpoint as the authors' looks, with what pre-training leaves in it."""
    state = text_encoder_state(biolord)
    state["module.text_tower.biolord.embeddings.position_ids"] = torch.arange(300)[None]
    state["module.atlas_tower.head.weight"] = torch.ones(2, 2)
    state["module.temperature"] = torch.ones(())
    torch.save({"model_state_dict": state}, path)
    return path


def add_text_encoder(bundle: Bundle, folder: Path, sources: tuple[Path, Path]) -> Bundle:
    """Copy a bundle and put a text encoder into the copy."""
    shutil.copytree(bundle.folder, folder)
    record = export_text_encoder(*sources, folder)
    manifest = msgspec.structs.replace(bundle.manifest, text_encoder=record)
    (folder / MANIFEST_FILE).write_bytes(dump_manifest(manifest))
    return Bundle.open(folder)
