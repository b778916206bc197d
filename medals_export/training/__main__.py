"""Train the demo model: `python -m medals_export.training --out runs/demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from medals_export.training.cases import read_check_case
from medals_export.training.recipe import Recipe, demo_recipe
from medals_export.training.store import build_store
from medals_export.training.train import Run, coarse_predictions, train_stage
from medals_export.training.validation import held_out_case


def main() -> None:
    """Paint phantoms, train the coarse and then the fine model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything written")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--loaders", type=int, default=1, help="processes that draw windows")
    parser.add_argument(
        "--check-case",
        type=Path,
        action="append",
        default=[],
        help="CT case (.npz with gts, .labels.json beside it) to score, never to train on",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe: Recipe = demo_recipe()
    options.out.mkdir(parents=True, exist_ok=True)
    run = Run(
        options.out,
        build_store(options.out / "phantoms", recipe.phantoms, workers=options.threads),
        [held_out_case(i) for i in range(recipe.validation_cases)],
        [
            read_check_case(path, window)
            for path in options.check_case
            for window in ("soft tissue", "lung")
        ],
        options.loaders,
    )
    coarse = train_stage(run, recipe.coarse, recipe, start_from=None, coarse=None)
    prompts = coarse_predictions(coarse, run, recipe.coarse.spacing_mm)
    train_stage(run, recipe.fine, recipe, start_from=coarse, coarse=prompts)


if __name__ == "__main__":
    main()
