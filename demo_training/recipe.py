"""The numbers of the demo training: networks, windows, steps, learning rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from demo_training.phantoms import Shape3
from demo_training.prompt_simulation import PromptNoise
from demo_training.sampling import WindowPlan
from medals_export.model import ModelConfig


@dataclass(frozen=True)
class Phase:
    """A stretch of steps with one kind of window."""

    steps: int
    plan: WindowPlan


@dataclass(frozen=True)
class StageRecipe:
    """One stage's training.

    The last activation of the mask embedding is eased in from `ease_from` to 0 over the share
    `ease_until` of the training.

    At the share `fork_at` of its training the coarse stage hands its weights to the fine one, and
    both go on side by side: two processes of one thread each do almost twice the work of one of
    two. The handover must come late, when the coarse model tells all classes apart: once two
    queries share a channel of `T`, they part no more (GELU's minimum has no slope). For the same
    reason the query side of the fine model learns at the share `query_rate` of the learning rate.

    `minutes` bounds the wall time: on a slow machine the schedule runs through faster.
    """

    name: str
    config: ModelConfig
    spacing_mm: float
    phases: tuple[Phase, ...]
    peak_rate: float
    query_rate: float
    ease_from: float
    ease_until: float
    average_decay: float
    minutes: float
    validate_every_minutes: float
    fork_at: float | None = None

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)


@dataclass(frozen=True)
class TrainingRecipe:
    """The whole training: how many phantoms, and both stages."""

    phantoms: int
    coarse: StageRecipe
    fine: StageRecipe
    validation_cases: int
    save_every_minutes: float
    seed: int = 20251


def learning_rate(progress: float, peak: float, warmup: float = 0.02) -> float:
    """Linear warm-up, then cosine to zero; `progress` runs from 0 to 1."""
    if progress < warmup:
        return peak * (0.1 + 0.9 * progress / warmup)
    x = (progress - warmup) / (1 - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(x, 1.0)))


def ease(progress: float, start: float, until: float) -> float:
    """Share of the linear path in the mask embedding: from `start` down to 0 at `until`."""
    return start * max(0.0, 1 - progress / until) if until > 0 else 0.0


def _network(window: Shape3) -> ModelConfig:
    return ModelConfig(
        window_hwd=window,
        features=(16, 32, 48, 64, 80),
        text_dim=64,
        decoder_layers=3,
        heads=4,
        ffn=128,
        projection_hidden=128,
        mask_hidden=64,
    )


def demo_recipe() -> TrainingRecipe:
    """Return the demo model's recipe: about ninety minutes on two cores with AVX512-BF16."""

    def plan(size: int, spacing: float, tumor: float, zero: float) -> WindowPlan:
        return WindowPlan((size,) * 3, spacing, tumor, 0.3, 0.25, 0.35, PromptNoise(zero=zero))

    # Half of the last windows hold a tumor, the hardest class, and more show the lung window.
    last = WindowPlan((64,) * 3, 4.0, 0.5, 0.2, 0.4, 0.3, PromptNoise(zero=0.35))
    coarse = StageRecipe(
        name="coarse",
        config=_network((48, 48, 48)),
        spacing_mm=8.0,
        phases=(
            Phase(1200, plan(32, 12.0, 0.2, 0.7)),
            Phase(8000, plan(48, 8.0, 0.25, 0.6)),
        ),
        peak_rate=2e-3,
        query_rate=1.0,
        ease_from=1.0,
        ease_until=0.25,
        average_decay=0.995,
        minutes=60,
        validate_every_minutes=5,
        fork_at=0.65,
    )
    fine = StageRecipe(
        name="fine",
        config=_network((64, 64, 64)),
        spacing_mm=4.0,
        phases=(
            Phase(400, plan(48, 6.0, 0.25, 0.4)),
            Phase(2600, plan(64, 4.0, 0.3, 0.35)),
            Phase(1000, last),
        ),
        peak_rate=1.3e-3,
        query_rate=0.3,
        ease_from=0.0,
        ease_until=0.0,
        average_decay=0.997,
        minutes=46,
        validate_every_minutes=10,
    )
    return TrainingRecipe(480, coarse, fine, validation_cases=6, save_every_minutes=3)
