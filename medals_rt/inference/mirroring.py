"""Test-time augmentation: the mean of a window's predictions over all its mirror images.

The paper has none; the authors' scripts have it, off, and average logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from medals_rt.common.arrays import contiguous, namespace
from medals_rt.common.typing import Array
from medals_rt.inference.refinement import Part, collect, mean_of
from medals_rt.inference.spatial_prompts import SpatialPrompts
from medals_rt.planning.window_pass import MIRRORINGS, Combine

PredictImage: TypeAlias = Callable[
    [Array, SpatialPrompts | None, slice], Iterable[tuple[slice, Array]]
]
"""One pass of the network on an image ``(1, 1, h, w, d)``; else as `refinement.Predict`."""


def mirrored(
    predict: PredictImage,
    image: Array,
    prompts: SpatialPrompts | None,
    classes: slice,
    combine: Combine,
) -> Iterator[tuple[slice, Array]]:
    """Run a pass once for each mirror image of a window and average what comes back.

    Parameters
    ----------
    predict
        One pass.
    image
        ``(1, 1, h, w, d)`` float32.
    prompts
        Of all classes; None: there are none.
    classes
        Those wanted.
    combine
        Whether probabilities or logits are averaged.

    Yields
    ------
    classes, probabilities
        All at once, for the mean needs them whole.
    """
    xp = namespace(image)

    def predictions() -> Iterator[Array]:
        for axes in MIRRORINGS:
            if not axes:
                yield collect((Part(*part) for part in predict(image, prompts, classes)), classes)
                continue
            flipped = contiguous(xp.flip(image, axis=tuple(axis - 3 for axis in axes)))
            seen = None if prompts is None else prompts.flipped(axes)
            parts = (Part(*part) for part in predict(flipped, seen, classes))
            yield xp.flip(collect(parts, classes), axis=tuple(axis - 3 for axis in axes))

    yield classes, mean_of(predictions(), combine)
