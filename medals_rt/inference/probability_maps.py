"""How likely each class is at each voxel: the numbers that a stage's labels are decided by.

A probability is the sigmoid of the network's logits, as the last stage that ran averaged it over
its windows (and, under refinement, over its masked pairs). A label is the likeliest class where
that has the threshold or more, so that before post-processing, on the stage's own grid, a map of
half or more is the label wherever no other class is likelier. Classes are judged one by one: maps
needn't add up to 1.

A map takes a byte a voxel, 0 to 255 for 0 to 1, and stays on the stage's grid; each is brought onto
the image's, linearly, when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from medals_rt.common.arrays import namespace, to_host
from medals_rt.common.typing import Array, Box
from medals_rt.io.volume import to_dhw
from medals_rt.preprocessing.resampling import FILE_ORDER, resample_image

ONE: Final = 255
"""The byte of a probability of 1."""


def as_bytes(probability: Array) -> Array:
    """Round probabilities to bytes; those of half and more become 128 and more, others less."""
    xp = namespace(probability)
    return xp.astype(xp.floor(probability * ONE + 0.5), xp.uint8)


@dataclass(frozen=True, eq=False)
class StageMaps:
    """The maps of one stage.

    Attributes
    ----------
    maps_nhwd
        ``(N, H, W, D)`` uint8 on the stage's grid, one a class.
    labels
        The label of each of the N.
    box_dhw
        The part of the image that the stage looked at.
    shape_dhw
        Of the image.
    """

    maps_nhwd: Array
    labels: tuple[int, ...]
    box_dhw: Box
    shape_dhw: tuple[int, int, int]

    def on_host(self) -> StageMaps:
        """Return the same in the memory of the host."""
        return replace(self, maps_nhwd=to_host(self.maps_nhwd))

    def on_image(self, label: int) -> npt.NDArray[np.uint8]:
        """Return the map of a label on the image's grid, ``(D, H, W)``; 0 outside the box."""
        d, h, w = (high - low for low, high in zip(*self.box_dhw, strict=True))
        of_class = self.maps_nhwd[self.labels.index(label), ...]
        values = resample_image(of_class, (h, w, d), order=FILE_ORDER)
        whole = np.zeros(self.shape_dhw, np.uint8)
        inside = tuple(slice(low, high) for low, high in zip(*self.box_dhw, strict=True))
        whole[inside] = np.floor(to_host(to_dhw(values)) + 0.5)
        return whole


class ProbabilityMaps(Mapping[int, npt.NDArray[np.uint8]]):
    """Map of each label, ``(D, H, W)`` uint8 on the image's grid: 255 is 1.

    Each is made when it is asked for, so that one at a time is held on the image's grid.

    Parameters
    ----------
    stages
        The maps of each group of classes that was segmented by itself.
    """

    def __init__(self, stages: Sequence[StageMaps]) -> None:
        self._stages = {label: each for each in stages for label in each.labels}

    def __getitem__(self, label: int) -> npt.NDArray[np.uint8]:
        return self._stages[label].on_image(label)

    def __iter__(self) -> Iterator[int]:
        return iter(self._stages)

    def __len__(self) -> int:
        return len(self._stages)
