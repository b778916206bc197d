"""The network against forward passes of the released code (golden/model_64.npz)."""

import json

import numpy as np
import pytest
import torch

from medals_export.model import MedalS, ModelConfig
from medals_rt.common.errors import ExportError
from tests.errors import raises
from tests.paths import GOLDEN
from tests.recipes import recipe_state_dict

RELATIVE_ERROR = 1e-4


@pytest.fixture(scope="module")
def passes() -> dict[str, np.ndarray]:
    """Run the full-size widths once on a 64^3 window, without and with prompts."""
    config = ModelConfig.released((64, 64, 64))
    model = MedalS(config).eval()
    model.load_state_dict(recipe_state_dict(config))
    rng = np.random.default_rng(5)
    queries = torch.from_numpy(rng.standard_normal((3, 768), np.float32))
    image = torch.from_numpy(rng.random((1, 1, 64, 64, 64), np.float32) * 255)
    labels = np.zeros((64, 64, 64), np.uint8)
    labels[8:30, 10:40, 12:50] = 1
    labels[34:60, 20:50, 5:25] = 3
    prompts = torch.from_numpy(np.stack([labels == n for n in (1, 2, 3)])[None].astype(np.float32))
    foreground = torch.from_numpy((labels > 0)[None, None].astype(np.float32))
    with torch.inference_mode():
        text_only = model(image, torch.zeros_like(image), queries)
        features, embedding = model.encode(image, foreground)
        adapted = model.adapt(embedding, queries)
        prompted = model.refine(features, adapted, prompts)
    return {
        "queries": queries.numpy(),
        "logits_text_only": text_only.numpy(),
        "logits_prompted": prompted.numpy(),
        "adapted_text": adapted[0].numpy(),
        "image_embedding": embedding[0].numpy(),
    }


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@pytest.mark.parametrize("name", ["queries", "adapted_text", "image_embedding"])
def test_embeddings_are_the_released_ones(passes: dict[str, np.ndarray], name: str) -> None:
    golden = np.load(GOLDEN / "model_64.npz")
    assert relative_error(passes[name], golden[name]) < RELATIVE_ERROR


@pytest.mark.parametrize("name", ["text_only", "prompted"])
def test_logits_are_the_released_ones(passes: dict[str, np.ndarray], name: str) -> None:
    golden = np.load(GOLDEN / "model_64.npz")
    ours, theirs = passes[f"logits_{name}"], golden[f"logits_{name}"]
    assert relative_error(ours[:, :, ::4, 1::4, 2::4], theirs) < RELATIVE_ERROR
    statistics = np.array([ours.mean(), ours.std()])
    np.testing.assert_allclose(statistics, golden[f"{name}_stats"], rtol=RELATIVE_ERROR)


def test_state_dict_has_the_released_keys_and_shapes() -> None:
    golden = json.loads((GOLDEN / "checkpoint_keys.json").read_text(encoding="utf-8"))
    once = {key: shape for key, shape in golden.items() if "all_modules" not in key}
    with torch.device("meta"):
        model = MedalS(ModelConfig.released((192, 192, 192)))
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == once


def test_text_only_is_the_same_as_zero_prompts() -> None:
    config = ModelConfig((16, 16, 16), (4, 6, 8), text_dim=12, decoder_layers=1, heads=2, ffn=8)
    model = MedalS(config).eval()
    image = torch.rand(1, 1, 16, 16, 16) * 255
    zeros, queries = torch.zeros_like(image), torch.rand(2, 12)
    with torch.inference_mode():
        with_zeros = model(image, zeros, queries, torch.zeros(1, 2, 16, 16, 16))
        without = model(image, zeros, queries)
    torch.testing.assert_close(without, with_zeros, rtol=1e-5, atol=1e-5)


def test_a_window_that_does_not_fit_the_stride_is_refused() -> None:
    with raises(ExportError, "window-not-multiple"):
        ModelConfig.released((100, 64, 64))
