"""From the store to a training window: where to look, at which spacing, what to ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from demo_training.classes import LUNG_ROWS, masks_of, rows
from demo_training.intensities import scale_mr, scan, window_ct
from demo_training.phantoms import Shape3
from demo_training.prompt_simulation import PromptNoise, simulate_prompts
from demo_training.store import Store
from demo_training.subject import LABELS

TUMOR = LABELS["Liver tumors"]


@dataclass(frozen=True)
class WindowPlan:
    """How windows of one phase are drawn.

    `near_tumor` and `near_organ` are the shares of windows placed on a tumor or an organ,
    `mr_share` that of MR among the windows without a tumor; `prompts` holds the probability of no
    prompt at all and the rest of Algorithm 1.
    """

    window_hwd: Shape3
    spacing_mm: float
    near_tumor: float
    near_organ: float
    lung_window: float
    mr_share: float
    prompts: PromptNoise


@dataclass(frozen=True)
class Sample:
    """One window: image in 0..1 and S_f `(1, 1, H, W, D)`; truth and S_p `(N, H, W, D)`.

    `prompts` is None where no prompt was simulated. `rows` are indices into the embedding bank.
    """

    image: Tensor
    foreground: Tensor
    truth: Tensor
    prompts: Tensor | None
    rows: list[int]


def _field_of_view(
    rng: np.random.Generator, shape: Sequence[int], spacing_mm: float
) -> list[tuple[int, int]]:
    """Cut the phantom as a scan or a region of interest would be."""
    bounds = [(0, int(size)) for size in shape]
    if rng.random() < 0.5:
        length = int(rng.uniform(110, 300) / spacing_mm)
        start = int(rng.integers(0, max(1, shape[2] - length + 1)))
        bounds[2] = (start, min(shape[2], start + length))
    if rng.random() < 0.35:
        for axis in (0, 1):
            cut = (rng.uniform(0, 0.3, 2) * shape[axis]).astype(int)
            bounds[axis] = (int(cut[0]), int(shape[axis] - cut[1]))
    return bounds


def _place(
    rng: np.random.Generator, bounds: tuple[int, int], size: int, focus: tuple[int, int] | None
) -> int:
    """First source voxel of a window: inside the bounds, or their low end if they are short."""
    low, high = bounds
    room = high - low - size
    if room <= 0:
        return low
    if focus is not None:
        center = rng.integers(focus[0], focus[1]) + rng.integers(-size // 4, size // 4 + 1)
        return int(np.clip(center - size // 2, low, high - size))
    if rng.random() < 0.3:
        return low if rng.random() < 0.5 else high - size
    return int(rng.integers(low, high - size + 1))


def _resample(array: NDArray[np.float32], shape: Shape3) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))[None]
    if tuple(tensor.shape[2:]) == shape:
        return tensor
    return torch.nn.functional.interpolate(
        tensor, size=shape, mode="trilinear", align_corners=False
    )


def _choose_focus(rng: np.random.Generator, store: Store, plan: WindowPlan) -> tuple[int, int]:
    """Draw a phantom and the label to look at: 0 for anywhere."""
    wish = rng.random()
    modality = "MRI" if wish >= plan.near_tumor and rng.random() < plan.mr_share else "CT"
    choice = [i for i, kind in enumerate(store.modalities) if kind == modality]
    for _ in range(20):
        index = int(rng.choice(choice))
        present = [c for c in range(1, TUMOR + 1) if store.boxes[index, c, 0, 0] >= 0]
        if wish < plan.near_tumor:
            if TUMOR in present:
                return index, TUMOR
        elif wish < plan.near_tumor + plan.near_organ and present:
            return index, int(rng.choice(present))
        else:
            return index, 0
    return index, 0


def _questions(
    rng: np.random.Generator, modality: str, focus: int, window: str, *, prompted: bool
) -> list[int]:
    """Rows to ask for. Without prompts the queries are independent, so lesions ride along."""
    if window == "lung":
        return list(LUNG_ROWS)
    anatomy, lesion = rows(modality, "anatomy"), rows(modality, "lesion")
    if not prompted:
        return anatomy + lesion
    if lesion and (focus == TUMOR or rng.random() < 0.1):
        return lesion
    if rng.random() < 0.25:
        keep = rng.permutation(len(anatomy))[: rng.integers(1, len(anatomy) + 1)]
        return [anatomy[i] for i in sorted(keep)]
    return anatomy


def draw_sample(rng: np.random.Generator, store: Store, plan: WindowPlan) -> Sample:
    """Draw one training window."""
    index, focus = _choose_focus(rng, store, plan)
    modality = store.modalities[index]
    whole = store.images[index].shape
    jitter = rng.uniform(0.84, 1.16) * rng.uniform(0.95, 1.05, 3)
    size = [
        max(1, round(w * plan.spacing_mm * j / store.spacing_mm))
        for w, j in zip(plan.window_hwd, jitter, strict=True)
    ]
    bounds = _field_of_view(rng, whole, store.spacing_mm)
    box = store.boxes[index, focus]
    start = [
        _place(rng, bounds[a], size[a], (box[a, 0], box[a, 1]) if focus else None) for a in range(3)
    ]
    stop = [min(start[a] + size[a], bounds[a][1]) for a in range(3)]
    cut = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    raw = np.asarray(store.images[index][cut], np.float32)

    slab = int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))
    level = float(np.exp(rng.uniform(np.log(2), np.log(28)))) * (1.6 if modality == "MRI" else 1)
    blur = float(rng.uniform(0, 0.45))
    scanned = scan(rng, raw, modality, noise=level, blur_voxels=blur, slab=slab)
    window = "soft tissue"
    if modality == "MRI":
        cuts = np.percentile(store.images[index][::4, ::4, ::4], (0.5, 99.5))
        image = scale_mr(scanned, (float(cuts[0]), float(cuts[1]) * float(rng.uniform(0.9, 1.1))))
    else:
        if focus != TUMOR and rng.random() < plan.lung_window:
            window = "lung"
        shifted = scanned * np.float32(rng.uniform(0.95, 1.05)) + np.float32(rng.normal(0, 6))
        image = window_ct(np.where(raw < -950, scanned, shifted), window)

    padding = [(0, s - (b - a)) for s, a, b in zip(size, start, stop, strict=True)]
    image = np.pad(image / np.float32(255), padding)
    labels = np.pad(np.asarray(store.labels[index][cut]), padding)

    prompted = bool(rng.random() >= plan.prompts.zero)
    asked = _questions(rng, modality, focus, window, prompted=prompted)
    soft = _resample(masks_of(labels, asked).astype(np.float32), plan.window_hwd)[0]
    truth = soft > 0.5
    picture = _resample(image[None], plan.window_hwd)
    foreground = torch.zeros_like(picture)
    prompts: Tensor | None = None
    if prompted:
        noise = PromptNoise(
            0.0,
            plan.prompts.channel_zero,
            plan.prompts.block_sizes,
            plan.prompts.drop,
            plan.prompts.add,
        )
        s_f, s_p = simulate_prompts(rng, truth.numpy(), noise)
        foreground = torch.from_numpy(s_f).float()[None]
        prompts = torch.from_numpy(s_p).float()
    return Sample(picture, foreground, truth.float(), prompts, asked)


class Windows(Dataset[Sample]):
    """Windows by step number, reproducible whatever process draws them."""

    def __init__(self, store: Store, plan: WindowPlan, seed: int, first: int, last: int) -> None:
        self.store, self.plan, self.seed, self.first, self.last = store, plan, seed, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int) -> Sample:
        if index >= len(self):
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, self.first + index])
        return draw_sample(rng, self.store, self.plan)
