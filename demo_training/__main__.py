"""Train the demo model: `python -m demo_training --out runs/demo`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from demo_training.cases import read_check_case
from demo_training.checkpoints import Run
from demo_training.recipe import TrainingRecipe, demo_recipe
from demo_training.store import build_store
from demo_training.train import train_stage
from demo_training.validation import held_out_case


def main() -> None:
    """Paint phantoms, train the coarse and then the fine model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything written")
    parser.add_argument("--loaders", type=int, default=1, help="processes that draw windows")
    parser.add_argument(
        "--check-case",
        type=Path,
        action="append",
        default=[],
        help="CT case (.npz with gts, .labels.json beside it) to score, never to train on",
    )
    parser.add_argument("--stage", choices=("both", "coarse", "fine"), default="both")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe: TrainingRecipe = demo_recipe()
    options.out.mkdir(parents=True, exist_ok=True)
    run = Run(
        options.out,
        build_store(options.out / "phantoms", recipe.phantoms, workers=2),
        [held_out_case(i) for i in range(recipe.validation_cases)],
        [
            read_check_case(path, window)
            for path in options.check_case
            for window in ("soft tissue", "lung")
        ],
        options.loaders,
    )
    if options.stage == "fine":
        train_stage(run, recipe.fine, recipe)
        return
    started: list[subprocess.Popen[bytes]] = []

    def start_fine() -> None:
        if options.stage == "both":
            command = [sys.executable, "-m", "demo_training", "--stage", "fine"]
            started.append(subprocess.Popen([*command, *_without_stage(sys.argv[1:])]))

    train_stage(run, recipe.coarse, recipe, on_fork=start_fine)
    for process in started:
        if process.wait():
            raise SystemExit(process.returncode)


def _without_stage(arguments: list[str]) -> list[str]:
    """Options of this call for the second process, which has a stage of its own."""
    return [
        value
        for i, value in enumerate(arguments)
        if not value.startswith("--stage") and (i == 0 or arguments[i - 1] != "--stage")
    ]


if __name__ == "__main__":
    main()
