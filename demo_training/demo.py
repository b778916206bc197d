"""From a finished training to `engines/demo`: the bundle and two cases.

`python -m demo_training.demo --run runs/demo --out engines/demo`
"""

from __future__ import annotations

import argparse
from pathlib import Path

from demo_training.cases import CaseRecipe, write_case
from medals_export.export import export_bundle

DEMO_CASES = {
    "ct_anatomy": CaseRecipe(number=200),
    "ct_liver_tumors": CaseRecipe(number=201, kind="lesion", tumor_count=4),
}
"""Held-out phantoms that come with the project: never trained on, nor watched while training."""


def main() -> None:
    """Export the run's checkpoints with constants in fp16, and write the cases beside them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of the training")
    parser.add_argument("--out", type=Path, required=True, help="folder of the bundle")
    options = parser.parse_args()
    export_bundle(
        options.run / "coarse.pth",
        options.run / "fine.pth",
        options.run / "embeddings.safetensors",
        options.out,
        name="demo",
        weights="fp16",
        notice="trained on synthetic phantoms only; not for diagnosis",
        overwrite=True,
    )
    for name, recipe in DEMO_CASES.items():
        write_case(options.out / "cases", name, recipe)


if __name__ == "__main__":
    main()
