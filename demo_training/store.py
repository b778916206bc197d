"""A set of phantoms on disk: painted once, then read by whoever trains.

Files of a store: `images.npy` (K, H, W, D) int16, `labels.npy` (K, H, W, D) uint8, `index.json`.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demo_training.phantoms import Grid, Phantom, make_phantom
from demo_training.subject import LABELS

SPACING_MM = 4.0
SHAPE_HWD = (80, 96, 88)
MR_SHARE = 4
"""Every fourth phantom is an MR scan."""


@dataclass(frozen=True)
class Store:
    """Painted phantoms. `boxes[k, c]` holds (low, high) per axis of label c, -1 where absent."""

    images: NDArray[np.int16]
    labels: NDArray[np.uint8]
    modalities: tuple[str, ...]
    boxes: NDArray[np.int64]
    spacing_mm: float

    def __len__(self) -> int:
        return len(self.modalities)


def modality_of(seed: int) -> str:
    """Modality of a stored phantom, by its seed."""
    return "MRI" if seed % MR_SHARE == MR_SHARE - 1 else "CT"


def stored_phantom(
    seed: int, shape_hwd: tuple[int, int, int] = SHAPE_HWD, spacing_mm: float = SPACING_MM
) -> Phantom:
    """Paint the phantom of a seed on the store's grid, some at the belly and some at the chest."""
    rng = np.random.default_rng([seed, 5])
    bottom = rng.uniform(-255, -190) if rng.random() < 0.5 else rng.uniform(-190, -70)
    grid = Grid(shape_hwd, (spacing_mm,) * 3, float(bottom))
    return make_phantom(seed, grid, modality=modality_of(seed))


def _boxes(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    boxes = np.full((max(LABELS.values()) + 1, 3, 2), -1, np.int64)
    for label in LABELS.values():
        mask = labels == label
        if mask.any():
            for axis in range(3):
                hit = np.flatnonzero(mask.any(axis=tuple(i for i in range(3) if i != axis)))
                boxes[label, axis] = hit[0], hit[-1] + 1
    return boxes


def _paint_range(folder: str, first: int, last: int) -> list[Any]:
    images = np.load(Path(folder) / "images.npy", mmap_mode="r+")
    labels = np.load(Path(folder) / "labels.npy", mmap_mode="r+")
    boxes = []
    for seed in range(first, last):
        phantom = stored_phantom(seed, images.shape[1:])
        images[seed] = np.clip(np.rint(phantom.image_hwd), -1024, 3071)
        labels[seed] = phantom.labels_hwd
        boxes.append(_boxes(phantom.labels_hwd).tolist())
    return boxes


def build_store(
    folder: Path, count: int, *, workers: int = 2, shape_hwd: tuple[int, int, int] = SHAPE_HWD
) -> Store:
    """Paint phantoms of the seeds 0 to `count - 1` into `folder`; one that is complete is kept."""
    index = folder / "index.json"
    wanted = {"count": count, "shape_hwd": list(shape_hwd), "spacing_mm": SPACING_MM}
    if index.exists():
        found = json.loads(index.read_text(encoding="utf-8"))
        if {key: found.get(key) for key in wanted} == wanted:
            return open_store(folder)
    folder.mkdir(parents=True, exist_ok=True)
    index.unlink(missing_ok=True)
    for name, dtype in (("images", np.int16), ("labels", np.uint8)):
        np.lib.format.open_memmap(
            folder / f"{name}.npy", mode="w+", dtype=dtype, shape=(count, *shape_hwd)
        ).flush()
    step = max(1, min(8, count // max(1, workers)))
    starts = range(0, count, step)
    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            jobs = [pool.submit(_paint_range, str(folder), s, min(s + step, count)) for s in starts]
            boxes = [box for job in jobs for box in job.result()]
    else:
        boxes = _paint_range(str(folder), 0, count)
    index.write_text(json.dumps({**wanted, "boxes": boxes}), encoding="utf-8")
    return open_store(folder)


def open_store(folder: Path) -> Store:
    """Read a finished store: about a gigabyte, which the processes that draw windows share."""
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    return Store(
        np.load(folder / "images.npy"),
        np.load(folder / "labels.npy"),
        tuple(modality_of(seed) for seed in range(index["count"])),
        np.asarray(index["boxes"]),
        float(index["spacing_mm"]),
    )
