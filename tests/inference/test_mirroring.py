"""Test-time augmentation against its definition: mirror, predict, mirror back, average."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from medals_rt.common.arrays import namespace, to_host
from medals_rt.inference.mirroring import mirrored
from medals_rt.inference.refinement import expand_mask, mask_from_order
from medals_rt.inference.spatial_prompts import channel_prompts, label_prompts
from medals_rt.planning.sliding_window import Window
from medals_rt.planning.window_pass import Combine

SHAPE = (6, 8, 10)
CLASSES = slice(0, 2)
TOLERANCE = 1e-6


def formula(image: Any, shown: Any, xp: Any) -> Any:
    """Probabilities that depend on place, image and prompts, as no mirror image leaves them."""
    ramp = xp.reshape(xp.arange(image.size, dtype=xp.float32), image.shape) / image.size
    prompted = 0 if shown is None else 0.2 * shown
    return xp.stack([0.1 + 0.4 * ramp * image, 0.3 * (1 - ramp) + 0.2 * image]) + prompted


def predict(image: Any, prompts: Any, classes: slice) -> Any:
    xp = namespace(image)
    shown = None if prompts is None else prompts.channels(2)
    found = formula(image[0, 0, ...], shown, xp)
    for n in range(classes.start, classes.stop):
        yield slice(n, n + 1), found[n : n + 1, ...]


def expected(image: np.ndarray, shown: np.ndarray | None, combine: Combine) -> np.ndarray:
    every = []
    for flips in product([False, True], repeat=3):
        axes = tuple(axis for axis in range(3) if flips[axis])
        seen = None if shown is None else np.flip(shown, [axis + 1 for axis in axes])
        found = np.flip(formula(np.flip(image, axes), seen, np), [axis + 1 for axis in axes])
        every.append(np.log(found / (1 - found)) if combine == "logit" else found)
    mean = np.mean(every, axis=0)
    return 1 / (1 + np.exp(-mean)) if combine == "logit" else mean


@pytest.mark.parametrize("combine", ["probability", "logit"])
@pytest.mark.parametrize("prompted", ["nothing", "labels", "channels"])
def test_mean_of_all_mirror_images(xp: Any, prompted: str, combine: Combine) -> None:
    rng = np.random.default_rng(1)
    image = rng.random(SHAPE, dtype=np.float32)
    labels = rng.integers(0, 3, SHAPE).astype(np.uint8)
    shown = np.stack([labels == 1, labels == 2]).astype(np.float32)
    prompts: Any = None
    if prompted == "labels":
        window = Window((0, 0, 0), SHAPE)
        (prompts,) = label_prompts(xp.asarray(labels), [window], (1, 2), 4)
    elif prompted == "channels":
        prompts = channel_prompts(xp.asarray(shown > 0), 4)
    ((classes, found),) = mirrored(
        predict, xp.asarray(image)[None, None, ...], prompts, CLASSES, combine
    )
    assert classes == CLASSES
    np.testing.assert_allclose(
        to_host(found),
        expected(image, None if prompted == "nothing" else shown, combine),
        atol=TOLERANCE,
    )


def test_mirrored_prompts_can_be_masked(xp: Any) -> None:
    """Blocks that the far end cuts don't mirror onto blocks."""
    shown = np.zeros((1, *SHAPE), np.bool_)
    shown[0, 0, 0, 0] = True
    prompts = channel_prompts(xp.asarray(shown), 4)
    assert prompts is not None
    flipped = prompts.flipped((0, 1, 2))
    mask = mask_from_order(np.arange(12)[::-1].copy(), (2, 2, 3), 4)
    kept = flipped.where(expand_mask(mask, SHAPE, xp), mask)
    assert kept is not None
    np.testing.assert_array_equal(to_host(kept.shown), shown[:, ::-1, ::-1, ::-1])
