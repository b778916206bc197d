"""Losses against figures worked out by hand."""

import math

import pytest
import torch

from demo_training.losses import bce_loss, dice_loss, segmentation_loss


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_dice_has_squares_in_the_denominator() -> None:
    logits = torch.tensor([_logit(0.5), _logit(0.9), _logit(0.2), _logit(0.1)]).reshape(1, 1, 1, 4)
    truth = torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(1, 1, 1, 4)
    overlap = 0.5 + 0.9
    sizes = 0.25 + 0.81 + 0.04 + 0.01 + 2
    expected = 1 - (2 * overlap + 1) / (sizes + 1)
    assert dice_loss(logits, truth).item() == pytest.approx(expected, rel=1e-6)


def test_empty_channel_predicted_empty_costs_nothing() -> None:
    logits = torch.full((1, 4, 4, 4), -40.0)
    assert dice_loss(logits, torch.zeros_like(logits)).item() == pytest.approx(0, abs=1e-6)


def test_bce_is_a_mean_over_voxels_for_each_channel() -> None:
    logits = torch.tensor([[_logit(0.5), _logit(0.8)], [_logit(0.25), _logit(0.5)]])
    truth = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    expected = [-(math.log(0.5) + math.log(0.2)) / 2, -(math.log(0.75) + math.log(0.5)) / 2]
    found = bce_loss(logits.reshape(2, 1, 1, 2), truth.reshape(2, 1, 1, 2))
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_absent_classes_weigh_less() -> None:
    logits = torch.zeros(2, 4, 4, 4)
    truth = torch.zeros(2, 4, 4, 4)
    truth[0, :2] = 1
    bce = bce_loss(logits, truth)
    dice = dice_loss(logits, truth)
    expected = (bce[0] + 0.15 * bce[1] + dice[0] + 0.05 * dice[1]) / 1.05
    assert segmentation_loss(logits, truth).item() == pytest.approx(expected.item(), rel=1e-6)


def test_gradient_is_finite_and_points_towards_the_truth() -> None:
    truth = (torch.arange(64).reshape(1, 4, 4, 4) % 3 == 0).float()
    logits = torch.zeros(1, 4, 4, 4, requires_grad=True)
    segmentation_loss(logits, truth).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[truth == 1] < 0).all()
    assert (logits.grad[truth == 0] > 0).all()


def test_weights_shift_the_average_between_channels() -> None:
    logits = torch.tensor([0.5, -1.0]).reshape(2, 1, 1, 1).expand(2, 2, 2, 2)
    truth = torch.zeros(2, 2, 2, 2)
    truth[:, 0] = 1
    one, other = (bce_loss(logits, truth) + dice_loss(logits, truth)).tolist()
    found = segmentation_loss(logits, truth, weights=torch.tensor([3.0, 1.0]))
    assert found.item() == pytest.approx((3 * one + other) / 4, rel=1e-6)
