"""The loop: coarse model, fine model; a usable checkpoint exists at any time."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from demo_training.checkpoints import (
    Run,
    Training,
    coarse_predictions,
    load_fork,
    load_state,
    save_fork,
    save_state,
)
from demo_training.classes import QUERIES
from demo_training.losses import segmentation_loss
from demo_training.network import Average, Learner
from demo_training.recipe import StageRecipe, TrainingRecipe, ease, learning_rate
from demo_training.sampling import Sample, Windows
from demo_training.validation import score_cases

LESION_WEIGHT = 3.0
"""Weight of a lesion among the organs that are asked with it."""

Fork = Callable[[], None]


def _one(batch: list[Sample]) -> Sample:
    return batch[0]


def _quiet_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    os.nice(1)


def windows_from(
    run: Run, stage: StageRecipe, seed: int, first: int
) -> Iterator[tuple[int, Sample]]:
    """Yield the steps from `first` on with their windows, phase after phase."""
    begin = 0
    for phase in stage.phases:
        end = begin + phase.steps
        if first < end:
            start = max(first, begin)
            loader = DataLoader(
                Windows(run.store, phase.plan, seed, start, end),
                batch_size=1,
                collate_fn=_one,
                num_workers=run.loaders,
                worker_init_fn=_quiet_worker,
                prefetch_factor=4 if run.loaders else None,
            )
            yield from enumerate(loader, start)
        begin = end


def _groups(learner: Learner, query_rate: float) -> list[dict[str, Any]]:
    """Split parameters by weight decay, and by learning rate: the query side has a share of it."""
    model = learner.model
    query_side = {
        id(p)
        for part in (model.transformer_decoder, model.mask_embed_proj)
        for p in part.parameters()
    }
    groups: list[dict[str, Any]] = []
    for decayed in (True, False):
        for of_queries in (True, False):
            chosen = [
                p
                for p in learner.parameters()
                if p.requires_grad
                and (p.ndim > 1 and p is not learner.embeddings) == decayed
                and (id(p) in query_side) == of_queries
            ]
            groups.append(
                {
                    "params": chosen,
                    "weight_decay": 0.01 if decayed else 0.0,
                    "share": query_rate if of_queries else 1.0,
                }
            )
    return groups


@dataclass
class _Meter:
    """Losses since the last line of the log."""

    losses: list[float]
    since: float = field(default_factory=time.monotonic)

    def flush(self, run: Run, stage: StageRecipe, step: int, progress: float) -> None:
        now = time.monotonic()
        run.log(
            stage=stage.name,
            step=step,
            progress=round(progress, 4),
            loss=round(float(np.nanmean(self.losses)), 4),
            skipped=int(np.isnan(self.losses).sum()),
            seconds_a_step=round((now - self.since) / len(self.losses), 4),
        )
        self.losses, self.since = [], now


def _step(
    learner: Learner, sample: Sample, optimizer: torch.optim.Optimizer, mixing: float
) -> float:
    with torch.autocast("cpu", torch.bfloat16):
        logits = learner(sample, mixing)
    weights = torch.tensor(
        [LESION_WEIGHT if QUERIES[row].kind == "lesion" else 1.0 for row in sample.rows]
    )
    loss: Tensor = segmentation_loss(logits.float(), sample.truth, weights=weights)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
    if not torch.isfinite(norm):
        return math.nan
    optimizer.step()
    return float(loss.detach())


def validate(run: Run, stage: StageRecipe, training: Training) -> None:
    """Log the DSC a class on held-out phantoms, text only and, with prompts at hand, masked."""
    start = time.monotonic()
    learner, step, mixing = training.average.learner, training.step, training.ease
    modes: list[tuple[str, list[NDArray[np.bool_]] | None]] = [("text only", None)]
    if stage.name == "fine":
        modes.append(("masked", coarse_predictions(run)))
    for mode, prompts in modes:
        scores = score_cases(learner, run.cases, stage.spacing_mm, prompts, mixing)
        organs = [v for k, v in scores.items() if "tumor" not in k]
        run.log(
            stage=stage.name,
            step=step,
            mode=mode,
            dsc=scores,
            mean_anatomy=round(float(np.mean(organs)), 4) if organs else None,
            validation_seconds=round(time.monotonic() - start, 1),
        )
    if run.extra_cases:
        scores = {}
        for case in run.extra_cases:
            one = score_cases(learner, [case], stage.spacing_mm, None, mixing)
            scores.update({f"{case.name} {k}": v for k, v in one.items()})
        run.log(stage=stage.name, step=step, mode="extra", dsc=scores)


def _begin(run: Run, stage: StageRecipe, recipe: TrainingRecipe) -> Training:
    """Make the first weights of a stage, or take up those of a stage that was cut off."""
    torch.manual_seed(recipe.seed)
    learner = Learner(stage.config)
    if stage.name == "fine":
        learner.load_state_dict(load_fork(run))
        learner.embeddings.requires_grad_(False)
    learner = learner.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(
        _groups(learner, stage.query_rate), lr=stage.peak_rate, betas=(0.9, 0.99)
    )
    training = Training(learner, Average(learner, stage.average_decay), optimizer)
    load_state(run, stage, training)
    return training


def _fork(run: Run, training: Training, on_fork: Fork | None) -> None:
    """Fix the embeddings and hand the weights to the fine stage."""
    training.learner.embeddings.requires_grad_(False)
    average = training.average.learner
    with torch.no_grad():
        average.embeddings.copy_(training.learner.embeddings)
    save_fork(run, average)
    if on_fork is not None:
        on_fork()


def train_stage(
    run: Run, stage: StageRecipe, recipe: TrainingRecipe, on_fork: Fork | None = None
) -> None:
    """Train one stage; `<stage>.pth` holds its averaged weights after the first minutes.

    A stage that was cut off goes on from `<stage>.state`, written at every validation. The coarse
    stage hands its weights over at `stage.fork_at` by writing `fork.state` and calling `on_fork`;
    from then on its embeddings stay fixed. The fine stage starts from that file with the embeddings
    fixed, so that one bank serves both.
    """
    training = _begin(run, stage, recipe)
    begin = time.monotonic() - training.seconds
    meter = _Meter([])
    saved = looked = time.monotonic()
    fork_at = math.inf if stage.fork_at is None else stage.fork_at
    forked = False

    def keep() -> None:
        training.seconds = time.monotonic() - begin
        save_state(run, stage, training)

    seed = recipe.seed + (stage.name == "fine")
    for step, sample in windows_from(run, stage, seed, training.step):
        progress = max(step / stage.steps, (time.monotonic() - begin) / (60 * stage.minutes))
        if progress >= 1:
            break
        if not forked and progress >= fork_at:
            forked = True
            _fork(run, training, on_fork)
        for group in training.optimizer.param_groups:
            group["lr"] = group["share"] * learning_rate(progress, stage.peak_rate)
        training.ease = ease(progress, stage.ease_from, stage.ease_until)
        meter.losses.append(_step(training.learner, sample, training.optimizer, training.ease))
        training.average.update(training.learner)
        training.step = step + 1
        if training.step % 100 == 0:
            meter.flush(run, stage, training.step, progress)
        if (time.monotonic() - saved) / 60 > recipe.save_every_minutes:
            keep()
            saved = time.monotonic()
        if (time.monotonic() - looked) / 60 > stage.validate_every_minutes:
            validate(run, stage, training)
            looked = time.monotonic()
    if stage.fork_at is not None and not forked:
        _fork(run, training, on_fork)
    keep()
    validate(run, stage, training)
