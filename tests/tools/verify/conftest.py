"""Checkpoints, and a bundle to verify."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from medals_rt.bundle.bundle import Bundle

PROMPTS = {"1": "Liver in abdominal CT", "2": "Right kidney in CT", "instance_label": 0}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The checkpoints that the tiny bundle was exported from."""
    from medals_export.checkpoint import save_checkpoint
    from tests.bundles import tiny_checkpoint

    folder = tmp_path_factory.mktemp("checkpoints")
    paths = [folder / "coarse.pth", folder / "fine.pth"]
    for stage, path in enumerate(paths, 1):
        checkpoint = tiny_checkpoint(stage)
        save_checkpoint(path, checkpoint.model, checkpoint.spacing_hwd_mm)
    return paths


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy to write into, with one case."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle.folder, folder)
    (folder / "cases").mkdir()
    rng = np.random.default_rng(0)
    image = rng.random((12, 20, 24), dtype=np.float32) * 255
    np.savez(folder / "cases" / "noise.npz", imgs=image, spacing=np.array([2.0, 2.0, 3.0]))
    (folder / "cases" / "noise.prompts.json").write_text(json.dumps(PROMPTS), encoding="utf-8")
    return Bundle.open(folder)
