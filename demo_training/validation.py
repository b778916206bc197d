"""A plain sliding-window reading of a learner, to watch it while it trains.

Not the run time: no region of interest, no post-processing. Whole images, half-window steps,
Gaussian weights, and the same masked pair of passes where prompts are given.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demo_training.canvas import Floats
from demo_training.classes import QUERIES, masks_of, rows
from demo_training.intensities import scale_mr, scan, window_ct
from demo_training.network import Learner
from demo_training.phantoms import HELD_OUT_SEED, Shape3
from demo_training.sampling import Sample
from demo_training.store import SHAPE_HWD, stored_phantom


@dataclass(frozen=True)
class CheckCase:
    """One scan to look at: image in 0..255 and labels `(H, W, D)`, and what is asked."""

    name: str
    image_hwd: Floats
    truth: NDArray[np.bool_]
    spacing_hwd_mm: tuple[float, float, float]
    rows: tuple[int, ...]


def held_out_case(number: int, shape_hwd: Shape3 = SHAPE_HWD) -> CheckCase:
    """Return a noisy phantom that nobody trains on; every fourth is an MR scan."""
    phantom = stored_phantom(HELD_OUT_SEED + number, shape_hwd)
    rng = np.random.default_rng([phantom.seed, 6])
    raw = scan(
        rng,
        phantom.image_hwd,
        phantom.modality,
        noise=float(rng.uniform(4, 22)),
        blur_voxels=float(rng.uniform(0, 0.6)),
        slab=1,
    )
    image = window_ct(raw, "soft tissue") if phantom.modality == "CT" else scale_mr(raw)
    asked = rows(phantom.modality, "anatomy") + rows(phantom.modality, "lesion")
    return CheckCase(
        f"phantom {number}",
        image,
        masks_of(phantom.labels_hwd, asked),
        phantom.spacing_hwd_mm,
        tuple(asked),
    )


def _starts(size: int, window: int) -> list[int]:
    count = max(-(-size // (window // 2)) - 1, 1)
    return [min(i * (window // 2), max(size - window, 0)) for i in range(count)]


def _weights(window: Shape3) -> Tensor:
    axes = [
        torch.exp(-0.5 * ((torch.arange(w) - (w - 1) / 2) / (w / 8)) ** 2).clamp_min(1e-4)
        for w in window
    ]
    return axes[0][:, None, None] * axes[1][:, None] * axes[2]


def _half_of_blocks(rng: np.random.Generator, window: Shape3, block: int = 8) -> Tensor:
    blocks = [-(-w // block) for w in window]
    total = int(np.prod(blocks))
    chosen = np.zeros(total, np.float32)
    chosen[rng.permutation(total)[: max(1, total // 2)]] = 1
    mask = chosen.reshape(blocks)
    for axis in range(3):
        mask = mask.repeat(block, axis=axis)
    return torch.from_numpy(mask[: window[0], : window[1], : window[2]].copy())


def _window_probability(
    learner: Learner,
    image: Tensor,
    asked: list[int],
    prompts: Tensor | None,
    mask: Tensor,
    ease: float,
) -> Tensor:
    def predict(given: Tensor | None) -> Tensor:
        foreground = torch.zeros_like(image)
        if given is not None:
            foreground = given.any(0)[None, None].float()
        sample = Sample(image, foreground, image, given, asked)
        with torch.autocast("cpu", torch.bfloat16):
            logits = learner(sample, ease)
        probability: Tensor = logits.float().sigmoid()
        return probability

    if prompts is None or not prompts.any():
        return predict(None)
    return predict(prompts * mask) * (1 - mask) + predict(prompts * (1 - mask)) * mask


@torch.no_grad()
def read_case(
    learner: Learner,
    case: CheckCase,
    spacing_mm: float,
    prompts: NDArray[np.bool_] | None = None,
    ease: float = 0.0,
) -> NDArray[np.bool_]:
    """Predict `(N, H, W, D)` bool on the case's own grid.

    Parameters
    ----------
    spacing_mm
        The stage's spacing; the image is resampled to it.
    prompts
        `(N, H, W, D)` on the case's grid for the masked pair of passes, or None for text only.
    """
    window = learner.config.window_hwd
    size = [
        max(1, round(n * s / spacing_mm))
        for n, s in zip(case.image_hwd.shape, case.spacing_hwd_mm, strict=True)
    ]
    padded = [max(n, w) for n, w in zip(size, window, strict=True)]

    def fit(array: Tensor) -> Tensor:
        small = torch.nn.functional.interpolate(
            array[None], size=size, mode="trilinear", align_corners=False
        )[0]
        pad = [p - n for p, n in zip(padded, size, strict=True)]
        return torch.nn.functional.pad(small, (0, pad[2], 0, pad[1], 0, pad[0]))

    image = fit(torch.from_numpy(np.ascontiguousarray(case.image_hwd))[None] / 255)
    given = None if prompts is None else (fit(torch.from_numpy(prompts).float()) > 0.5).float()
    total = torch.zeros((len(case.rows), *padded))
    weight_sum = torch.zeros(padded)
    weight = _weights(window)
    rng = np.random.default_rng(0)
    for corner in product(*(_starts(n, w) for n, w in zip(padded, window, strict=True))):
        cut = tuple(slice(c, c + w) for c, w in zip(corner, window, strict=True))
        part = None if given is None else given[(slice(None), *cut)]
        mask = _half_of_blocks(rng, window)
        probability = _window_probability(
            learner, image[(slice(None), *cut)][None], list(case.rows), part, mask, ease
        )
        total[(slice(None), *cut)] += probability * weight
        weight_sum[cut] += weight
    probability = (total / weight_sum)[:, : size[0], : size[1], : size[2]]
    back = torch.nn.functional.interpolate(
        probability[None], size=case.image_hwd.shape, mode="trilinear", align_corners=False
    )[0]
    return _decide(back, case.rows).numpy()


def _decide(probability: Tensor, asked: tuple[int, ...]) -> Tensor:
    """Anatomy is exclusive, lesions stand for themselves."""
    out = probability >= 0.5
    anatomy = [i for i, row in enumerate(asked) if QUERIES[row].kind == "anatomy"]
    if anatomy:
        best = probability[anatomy].argmax(0)
        out[anatomy] &= torch.nn.functional.one_hot(best, len(anatomy)).movedim(-1, 0).bool()
    return out


def dice(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """DSC of two masks; 1 where both are empty."""
    total = int(prediction.sum()) + int(truth.sum())
    return 2 * int((prediction & truth).sum()) / total if total else 1.0


def score_cases(
    learner: Learner,
    cases: list[CheckCase],
    spacing_mm: float,
    coarse: list[NDArray[np.bool_]] | None,
    ease: float = 0.0,
) -> dict[str, float]:
    """Mean DSC a query over the cases in which it has at least 50 voxels."""
    learner.eval()
    found: dict[str, list[float]] = {}
    for i, case in enumerate(cases):
        prediction = read_case(
            learner, case, spacing_mm, None if coarse is None else coarse[i], ease
        )
        for channel, row in enumerate(case.rows):
            if case.truth[channel].sum() >= 50:
                query = QUERIES[row]
                name = f"{query.modality} {query.name}"
                found.setdefault(name, []).append(dice(prediction[channel], case.truth[channel]))
    learner.train()
    return {name: round(float(np.mean(values)), 4) for name, values in sorted(found.items())}
