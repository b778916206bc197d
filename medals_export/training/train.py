"""The loop: phantoms, coarse model, fine model; a usable checkpoint exists at any time."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from medals_export.training.classes import QUERIES
from medals_export.training.losses import segmentation_loss
from medals_export.training.network import Average, Learner, export_state
from medals_export.training.recipe import Recipe, StageRecipe, ease, learning_rate
from medals_export.training.sampling import Sample, Windows
from medals_export.training.store import Store
from medals_export.training.validation import CheckCase, read_case, score_cases


@dataclass(frozen=True)
class Run:
    """Where a training writes and what it looks at."""

    folder: Path
    store: Store
    cases: list[CheckCase]
    extra_cases: list[CheckCase]
    loaders: int

    def log(self, **values: Any) -> None:
        """Append one line to `log.jsonl`."""
        line = json.dumps({"time": round(time.time(), 1), **values})
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _save(path: Path, payload: Any) -> None:
    part = path.with_suffix(path.suffix + ".part")
    torch.save(payload, part)
    part.replace(path)


def write_checkpoint(run: Run, stage: StageRecipe, learner: Learner, step: int) -> None:
    """Write `<stage>.pth` in the released form and the embedding bank beside it."""
    _save(
        run.folder / f"{stage.name}.pth",
        {
            "model_state_dict": export_state(learner),
            "config": learner.config.to_dict(),
            "spacing_hwd_mm": [stage.spacing_mm] * 3,
            "step": step,
        },
    )
    bank = learner.embeddings.detach().clone().float().contiguous()
    save_file({"class_embeddings": bank}, run.folder / "embeddings.safetensors")
    index = {query.bank_key: row for row, query in enumerate(QUERIES)}
    names = {query.bank_key: query.name for query in QUERIES}
    (run.folder / "embeddings.json").write_text(
        json.dumps({"class_embeddings": index, "names": names}, indent=1), encoding="utf-8"
    )


def _one(batch: list[Sample]) -> Sample:
    return batch[0]


def _quiet_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    os.nice(1)


def windows_from(
    run: Run, stage: StageRecipe, seed: int, first: int
) -> Iterator[tuple[int, Sample]]:
    """Give the steps from `first` on with their windows, phase after phase."""
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


def _groups(learner: Learner) -> list[dict[str, Any]]:
    decayed = [p for p in learner.parameters() if p.ndim > 1 and p is not learner.embeddings]
    rest = [p for p in learner.parameters() if p.ndim <= 1 or p is learner.embeddings]
    return [
        {"params": [p for p in decayed if p.requires_grad], "weight_decay": 0.01},
        {"params": [p for p in rest if p.requires_grad], "weight_decay": 0.0},
    ]


@dataclass
class _Meter:
    """Losses since the last line of the log."""

    losses: list[float]
    since: float

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
    loss: Tensor = segmentation_loss(logits.float(), sample.truth)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
    if not torch.isfinite(norm):
        return math.nan
    optimizer.step()
    return float(loss.detach())


def validate(
    run: Run,
    stage: StageRecipe,
    learner: Learner,
    step: int,
    coarse: list[NDArray[np.bool_]] | None,
) -> None:
    """Log the DSC a class on held-out phantoms, text only and, with prompts at hand, masked."""
    start = time.monotonic()
    for mode, prompts in (("text only", None), ("masked", coarse)):
        if mode == "masked" and prompts is None:
            continue
        scores = score_cases(learner, run.cases, stage.spacing_mm, prompts)
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
            one = score_cases(learner, [case], stage.spacing_mm, None)
            scores.update({f"{case.name} {k}": v for k, v in one.items()})
        run.log(stage=stage.name, step=step, mode="extra", dsc=scores)


def train_stage(
    run: Run,
    stage: StageRecipe,
    recipe: Recipe,
    *,
    start_from: Learner | None,
    coarse: list[NDArray[np.bool_]] | None,
) -> Learner:
    """Train one stage and give its averaged weights.

    A stage that was cut off goes on from `<stage>.state`, written at every validation. `start_from`
    gives the first weights and the embeddings, which stay fixed then: one bank serves both stages.
    """
    torch.manual_seed(recipe.seed)
    learner = Learner(stage.config)
    if start_from is not None:
        learner.load_state_dict(start_from.state_dict())
        learner.embeddings.requires_grad_(requires_grad=False)
    learner = learner.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(_groups(learner), lr=stage.peak_rate, betas=(0.9, 0.99))
    average = Average(learner, stage.average_decay)
    state_path = run.folder / f"{stage.name}.state"
    first, spent = 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        learner.load_state_dict(state["learner"])
        average.learner.load_state_dict(state["average"])
        average.steps = first = int(state["step"])
        optimizer.load_state_dict(state["optimizer"])
        spent = float(state["seconds"])
    begin = time.monotonic() - spent
    meter = _Meter([], time.monotonic())
    looked, step, progress = time.monotonic(), first, 0.0
    offset = recipe.seed if stage.name == "coarse" else recipe.seed + 1

    def keep(step: int) -> None:
        write_checkpoint(run, stage, average.learner, step)
        payload = {
            "learner": learner.state_dict(),
            "average": average.learner.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "seconds": time.monotonic() - begin,
        }
        _save(state_path, payload)

    for step, sample in windows_from(run, stage, offset, first):
        progress = max(step / stage.steps, (time.monotonic() - begin) / (60 * stage.minutes))
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, stage.peak_rate)
        mixing = ease(progress, stage.ease_until)
        meter.losses.append(_step(learner, sample, optimizer, mixing))
        average.update(learner)
        if (step + 1) % 100 == 0:
            meter.flush(run, stage, step + 1, progress)
        if (time.monotonic() - looked) / 60 > recipe.validate_every_minutes:
            keep(step + 1)
            validate(run, stage, average.learner, step + 1, coarse)
            looked = time.monotonic()
    keep(step + 1)
    validate(run, stage, average.learner, step + 1, coarse)
    return average.learner


def coarse_predictions(learner: Learner, run: Run, spacing_mm: float) -> list[NDArray[np.bool_]]:
    """Text-only predictions of the coarse model on the validation cases: prompts of the fine one."""
    learner.eval()
    return [read_case(learner, case, spacing_mm) for case in run.cases]
