"""BCE and Dice, with less weight on classes that a window does not hold."""

from __future__ import annotations

import torch
from torch import Tensor

ABSENT_BCE = 0.15
ABSENT_DICE = 0.05


def dice_loss(logits: Tensor, truth: Tensor, smooth: float = 1.0) -> Tensor:
    """Soft Dice loss with squares in the denominator, a value for each channel.

    Parameters
    ----------
    logits, truth
        `(N, H, W, D)`; `truth` is 0 or 1 in the dtype of the logits.
    smooth
        Added to numerator and denominator, so that an empty channel predicted empty costs nothing.
    """
    probability = logits.sigmoid().flatten(1)
    target = truth.flatten(1)
    overlap = (probability * target).sum(1)
    sizes = (probability * probability).sum(1) + (target * target).sum(1)
    return 1 - (2 * overlap + smooth) / (sizes + smooth)


def bce_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Binary cross-entropy, a mean over voxels for each channel of `(N, H, W, D)`."""
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return loss.flatten(1).mean(1)


def segmentation_loss(
    logits: Tensor,
    truth: Tensor,
    *,
    weights: Tensor | None = None,
    absent_bce: float = ABSENT_BCE,
    absent_dice: float = ABSENT_DICE,
) -> Tensor:
    """Sum of BCE and Dice, averaged over channels with weight 1 for classes that are present.

    Absent classes weigh `absent_bce` and `absent_dice`: with full weight a small network silences
    the queries of classes that most windows lack. `weights (N,)` multiplies both.
    """
    present = truth.flatten(1).any(1)
    weight_bce = torch.where(present, 1.0, absent_bce).to(logits)
    weight_dice = torch.where(present, 1.0, absent_dice).to(logits)
    if weights is not None:
        weight_bce, weight_dice = weight_bce * weights, weight_dice * weights
    total = weight_bce * bce_loss(logits, truth) + weight_dice * dice_loss(logits, truth)
    loss: Tensor = total.sum() / weight_dice.sum().clamp_min(1.0)
    return loss
