"""A training of a few steps on a tiny recipe, and what its files hold."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from demo_training.checkpoints import Run
from demo_training.classes import QUERIES, masks_of, rows
from demo_training.network import (
    BatchOneInstanceNorm,
    Learner,
    export_state,
    load_exported,
    use_fast_norms,
)
from demo_training.prompt_simulation import PromptNoise
from demo_training.recipe import Phase, StageRecipe, TrainingRecipe, ease, learning_rate
from demo_training.sampling import Sample, WindowPlan, draw_sample
from demo_training.store import Store, build_store
from demo_training.subject import LABELS
from demo_training.train import train_stage
from demo_training.validation import held_out_case
from medals_export.model import MedalS, ModelConfig
from medals_export.text_bank import load_bank

TINY = ModelConfig(
    window_hwd=(16, 16, 16),
    features=(4, 6, 8),
    text_dim=12,
    decoder_layers=1,
    heads=2,
    ffn=16,
    projection_hidden=12,
    mask_hidden=12,
)
SHAPE = (32, 40, 32)
PLAN = WindowPlan((16, 16, 16), 12.0, 0.3, 0.3, 0.3, 0.3, PromptNoise(zero=0.5))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return build_store(tmp_path_factory.mktemp("store"), 4, workers=1, shape_hwd=SHAPE)


def _stage(name: str, fork_at: float | None = None) -> StageRecipe:
    return StageRecipe(
        name=name,
        config=TINY,
        spacing_mm=12.0,
        phases=(Phase(2, PLAN), Phase(2, dataclasses.replace(PLAN, spacing_mm=10.0))),
        peak_rate=1e-3,
        query_rate=0.5,
        ease_from=1.0,
        ease_until=0.5,
        average_decay=0.9,
        minutes=10,
        validate_every_minutes=100,
        fork_at=fork_at,
    )


def test_both_stages_train_and_share_one_bank(store: Store, tmp_path: Path) -> None:
    recipe = TrainingRecipe(4, _stage("coarse", 0.5), _stage("fine"), 1, 100)
    run = Run(tmp_path, store, [held_out_case(0, SHAPE)], [], loaders=0)
    forks: list[int] = []
    train_stage(run, recipe.coarse, recipe, on_fork=lambda: forks.append(1))
    bank = load_file(tmp_path / "embeddings.safetensors")["class_embeddings"]
    train_stage(run, recipe.fine, recipe)
    assert forks == [1]
    assert torch.equal(load_file(tmp_path / "embeddings.safetensors")["class_embeddings"], bank)
    rows = load_bank(tmp_path / "embeddings.safetensors").class_rows
    assert rows == {query.bank_key: row for row, query in enumerate(QUERIES)}
    assert bank.shape == (len(QUERIES), TINY.text_dim)
    for name in ("coarse", "fine"):
        checkpoint = torch.load(tmp_path / f"{name}.pth", weights_only=True)
        assert checkpoint["step"] == 4
        config = ModelConfig.from_dict(checkpoint["config"])
        MedalS(config).load_state_dict(checkpoint["model_state_dict"])
    lines = [
        json.loads(line)
        for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert {line["mode"] for line in lines if "mode" in line} == {"text only", "masked"}


def test_a_finished_stage_is_not_trained_again(store: Store, tmp_path: Path) -> None:
    recipe = TrainingRecipe(4, _stage("coarse"), _stage("fine"), 1, 100)
    run = Run(tmp_path, store, [held_out_case(0, SHAPE)], [], loaders=0)
    train_stage(run, recipe.coarse, recipe)
    first = torch.load(tmp_path / "coarse.pth", weights_only=True)["model_state_dict"]
    train_stage(run, recipe.coarse, recipe)
    again = torch.load(tmp_path / "coarse.pth", weights_only=True)["model_state_dict"]
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_exported_network_takes_0_to_255() -> None:
    torch.manual_seed(0)
    learner = Learner(TINY).eval()
    image = torch.rand(1, 1, 16, 16, 16)
    prompts = (torch.rand(2, 16, 16, 16) > 0.7).float()
    foreground = prompts.amax(0)[None, None]
    model = MedalS(TINY).eval()
    model.load_state_dict(export_state(learner))
    with torch.no_grad():
        ours = learner(Sample(image, foreground, image, prompts, [0, 3]))
        theirs = model(255 * image, foreground, learner.embeddings[[0, 3]], prompts[None])[0]
    assert torch.allclose(ours, theirs, atol=1e-3, rtol=1e-3)
    other = Learner(TINY)
    load_exported(other, export_state(learner))
    for a, b in zip(other.model.parameters(), learner.model.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-6)


def test_fast_norm_is_instance_norm_forwards_and_backwards() -> None:
    slow = torch.nn.Sequential(torch.nn.InstanceNorm3d(5, affine=True)).double()
    torch.nn.init.normal_(slow[0].weight)
    fast = torch.nn.Sequential(torch.nn.InstanceNorm3d(5, affine=True)).double()
    fast.load_state_dict(slow.state_dict())
    use_fast_norms(fast)
    assert isinstance(fast[0], BatchOneInstanceNorm)
    x = torch.randn(1, 5, 4, 6, 3, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    weight = torch.randn(1, 5, 4, 6, 3, dtype=torch.float64)
    (slow(x) * weight).sum().backward()
    (fast(y) * weight).sum().backward()
    assert torch.allclose(slow(x), fast(y))
    assert torch.allclose(x.grad, y.grad)
    assert torch.allclose(slow[0].weight.grad, fast[0].weight.grad)
    with pytest.raises(ValueError, match="batch of one"):
        fast(torch.zeros(2, 5, 4, 4, 4, dtype=torch.float64))


def test_samples_are_what_they_say(store: Store) -> None:
    kinds = set()
    for seed in range(60):
        sample = draw_sample(np.random.default_rng(seed), store, PLAN)
        count = len(sample.rows)
        assert sample.image.shape == (1, 1, 16, 16, 16)
        assert float(sample.image.min()) >= 0
        assert float(sample.image.max()) <= 1
        assert sample.truth.shape == (count, 16, 16, 16)
        assert len({QUERIES[row].modality for row in sample.rows}) == 1
        if sample.prompts is None:
            assert not sample.foreground.any()
        else:
            assert sample.prompts.shape == sample.truth.shape
        kinds.add((QUERIES[sample.rows[0]].modality, sample.prompts is None))
    assert len(kinds) == 4


def test_tumors_belong_to_the_liver() -> None:
    labels = np.array([[[LABELS["Liver"], LABELS["Liver tumors"], LABELS["Spleen"]]]], np.uint8)
    liver, spleen = (
        next(i for i in rows("CT", "anatomy") if QUERIES[i].name == name)
        for name in ("Liver", "Spleen")
    )
    found = masks_of(labels, [liver, spleen, *rows("CT", "lesion")])
    assert found[:, 0, 0].tolist() == [
        [True, True, False],
        [False, False, True],
        [False, True, False],
    ]


def test_schedules() -> None:
    assert learning_rate(0.0, 2.0) == pytest.approx(0.2)
    assert learning_rate(0.02, 2.0) == pytest.approx(2.0)
    assert learning_rate(0.51, 2.0) == pytest.approx(1.0)
    assert learning_rate(1.0, 2.0) == pytest.approx(0.0)
    assert ease(0.0, 0.6, 0.5) == pytest.approx(0.6)
    assert ease(0.25, 0.6, 0.5) == pytest.approx(0.3)
    assert ease(0.5, 0.6, 0.5) == 0
    assert ease(0.3, 0.6, 0.0) == 0
