"""What a training leaves on disk: checkpoints in the released form, the bank, states, the log."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from demo_training.classes import QUERIES
from demo_training.network import Average, Learner, export_state, load_exported
from demo_training.recipe import StageRecipe
from demo_training.store import Store
from demo_training.validation import CheckCase, read_case
from medals_export.model import ModelConfig
from medals_export.text_bank import TextBank, save_bank

BANK_SOURCE = "learned with the coarse network on synthetic phantoms"


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


def write_checkpoint(
    run: Run, stage: StageRecipe, learner: Learner, step: int, mixing: float
) -> None:
    """Write `<stage>.pth` in the released form and the embedding bank beside it."""
    _save(
        run.folder / f"{stage.name}.pth",
        {
            "model_state_dict": export_state(learner),
            "config": learner.config.to_dict(),
            "spacing_hwd_mm": [stage.spacing_mm] * 3,
            "step": step,
            "ease": mixing,
        },
    )
    rows = {query.bank_key: row for row, query in enumerate(QUERIES)}
    bank = TextBank(learner.embeddings.detach().float().numpy().copy(), rows, BANK_SOURCE)
    save_bank(run.folder / "embeddings.safetensors", bank)


@dataclass
class Training:
    """A stage under way: weights, their average, optimizer, steps done and seconds spent."""

    learner: Learner
    average: Average
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    ease: float = 0.0


def save_state(run: Run, stage: StageRecipe, training: Training) -> None:
    """Write everything needed to go on with a stage, and its checkpoint."""
    write_checkpoint(run, stage, training.average.learner, training.step, training.ease)
    payload = {
        "learner": training.learner.state_dict(),
        "average": training.average.learner.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "step": training.step,
        "seconds": training.seconds,
    }
    _save(run.folder / f"{stage.name}.state", payload)


def load_state(run: Run, stage: StageRecipe, training: Training) -> None:
    """Go on where `save_state` left off; nothing happens if there is no state."""
    path = run.folder / f"{stage.name}.state"
    if not path.exists():
        return
    state = torch.load(path, weights_only=True)
    training.learner.load_state_dict(state["learner"])
    training.average.learner.load_state_dict(state["average"])
    training.optimizer.load_state_dict(state["optimizer"])
    training.step = training.average.steps = int(state["step"])
    training.seconds = float(state["seconds"])


def save_fork(run: Run, learner: Learner) -> None:
    """Write the weights and embeddings that the fine stage starts from, once."""
    path = run.folder / "fork.state"
    if not path.exists():
        _save(path, learner.state_dict())


def load_fork(run: Run) -> dict[str, torch.Tensor]:
    """Read what `save_fork` wrote."""
    state: dict[str, torch.Tensor] = torch.load(run.folder / "fork.state", weights_only=True)
    return state


def coarse_predictions(run: Run) -> list[NDArray[np.bool_]]:
    """Text-only predictions of the coarse checkpoint on the validation cases."""
    checkpoint = torch.load(run.folder / "coarse.pth", weights_only=True)
    learner = Learner(ModelConfig.from_dict(checkpoint["config"]))
    load_exported(learner, checkpoint["model_state_dict"])
    learner.embeddings.data.copy_(load_fork(run)["embeddings"])
    spacing_mm = float(checkpoint["spacing_hwd_mm"][0])
    ease = float(checkpoint["ease"])
    return [read_case(learner, case, spacing_mm, None, ease) for case in run.cases]
