r"""Checkpoints of the released size with made-up weights, and their bundle: what `gpu.sh` measures.

    python benchmarks/gpu_models.py --folder FOLDER --output benchmarks/results/gpu/models

The weights are drawn from a seed, so every machine has the same. Writes `stage1.pth`, `stage2.pth`,
the fp16 bundle `bundle/` and the demo in fp16, `demo/`, into the folder. Needs the extra `export`,
6 GB of memory and 2 GB of disk, no GPU and no network. With `--window 32` small networks, to
rehearse.
"""

import argparse
import time
from pathlib import Path

from gpu_report import PartReport

from medals_export.checkpoint import save_checkpoint
from medals_export.export import export_bundle
from medals_export.model import ModelConfig
from medals_export.text_bank import bundle_bank
from medals_rt.bundle.bundle import Bundle
from medals_rt.prompts.classes import ClassKey, all_classes
from tests.recipes import bank_of, e2e_embeddings, recipe_checkpoint

WINDOWS_HWD = {1: (224, 224, 128), 2: (192, 192, 192)}
SPACINGS_HWD_MM = {1: (1.5, 1.5, 3.0), 2: (1.0, 1.0, 1.0)}
SMALL_FEATURES = (8, 16, 16)
CLASSES = 13
CHECKPOINTS = Path(__file__).parent / "checkpoints"
DEMO = Path(__file__).parents[1] / "engines" / "demo"


def config_of(stage: int, window: int | None) -> ModelConfig:
    """Return the released network of a stage, or a small one for windows of so many voxels."""
    if window is None:
        return ModelConfig.released(WINDOWS_HWD[stage])
    return ModelConfig(window_hwd=(window, window, window), features=SMALL_FEATURES)


def organs_of_ct() -> list[ClassKey]:
    """Return the classes of a whole case: the first organs of a CT."""
    organs = [key for key in all_classes() if (key.modality, key.kind) == ("CT", "anatomy")]
    return organs[:CLASSES]


def main() -> None:
    """Make both checkpoints, export them, and write down how long it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="without ending")
    parser.add_argument("--window", type=int, help="edge of both windows, for small networks")
    parser.add_argument("--precision", choices=["fp16", "fp32"], default="fp16")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    report = PartReport(
        options.output, "How long does an export take, made on the spot?", ("step", "seconds")
    )
    checkpoints = []
    for stage in (1, 2):
        start = time.perf_counter()
        config = config_of(stage, options.window)
        made = recipe_checkpoint(config, SPACINGS_HWD_MM[stage], f"stage{stage}/")
        file = options.folder / f"stage{stage}.pth"
        checkpoints.append(save_checkpoint(file, made.model, SPACINGS_HWD_MM[stage]))
        report.add(
            step=f"checkpoint {stage}, window {config.window_hwd}",
            seconds=round(time.perf_counter() - start, 1),
        )
    start = time.perf_counter()
    bundle = export_bundle(
        *checkpoints,
        bank_of(e2e_embeddings([key.bank_key for key in organs_of_ct()], seed=1)),
        options.folder / "bundle",
        name="made up",
        precision=options.precision,
        verify_with=(),
    )
    report.add(step=f"export in {options.precision}", seconds=round(time.perf_counter() - start, 1))
    start = time.perf_counter()
    export_bundle(
        *(CHECKPOINTS / f"demo_{stage}.pth" for stage in ("coarse", "fine")),
        bundle_bank(Bundle.open(DEMO)),
        options.folder / "demo",
        name="the demo in fp16",
        precision=options.precision,
        verify_with=(),
    )
    report.add(step="export of the demo", seconds=round(time.perf_counter() - start, 1))
    size = sum(each.bytes for each in bundle.manifest.files())
    report.remark(f"The bundle has {size / 1e9:.2f} GB, {len(bundle.classes)} classes.")


if __name__ == "__main__":
    main()
