"""Where resampling reads, axis by axis."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

_HALF = 0.5


@dataclass(frozen=True, eq=False)
class Axis:
    """Where each output position of one axis reads.

    Attributes
    ----------
    length
        Voxels of the input along this axis.
    lower, upper
        The two input voxels, ``(m,)``; the same one where the axis is not interpolated.
    share
        The upper one's share of the weight, ``(m,)`` float32 in 0..1.
    """

    length: int
    lower: npt.NDArray[np.intp]
    upper: npt.NDArray[np.intp]
    share: npt.NDArray[np.float32]

    @property
    def new_length(self) -> int:
        """Voxels of the output."""
        return len(self.lower)

    @cached_property
    def reads(self) -> npt.NDArray[np.int32]:
        """The input voxels that each output voxel mixes, ``(m, k)``; k is 1 where none mixes."""
        pairs = (self.lower, self.upper) if self.mixes else (self.lower,)
        return np.stack(pairs, axis=1).astype(np.int32)

    @cached_property
    def weights(self) -> npt.NDArray[np.float32]:
        """Their weights, ``(m, k)``."""
        return np.ascontiguousarray(self.weights_of_pair[: self.reads.shape[1], :].T)

    @cached_property
    def weights_of_pair(self) -> npt.NDArray[np.float32]:
        """The weights of the lower and the upper one, ``(2, m)``."""
        return np.stack([np.float32(1) - self.share, self.share])

    @cached_property
    def near_far(self) -> npt.NDArray[np.intp]:
        """The nearer input voxel of each output voxel, the lower of two as near, and the other.

        ``(k, m)``, k as in `reads`.
        """
        pair = np.stack([self.lower, self.upper])
        return np.where(self.share > _HALF, pair[::-1], pair)[: self.reads.shape[1]]

    @cached_property
    def weights_near_far(self) -> npt.NDArray[np.float32]:
        """Their weights, ``(k, m)``."""
        return np.sort(self.weights_of_pair, axis=0)[::-1][: self.reads.shape[1]]

    @cached_property
    def mixes(self) -> bool:
        """Whether any output voxel lies between two input voxels."""
        return bool(self.share.any())

    @cached_property
    def keeps(self) -> bool:
        """Whether the output is the input."""
        return (
            self.length == self.new_length
            and not self.mixes
            and bool((self.lower == np.arange(self.length)).all())
        )


@lru_cache(maxsize=64)
def make_axis(n: int, m: int, *, nearest: bool = False, scale: float | None = None) -> Axis:
    """Place `m` half-pixel centers among `n` voxels, in float32 as torch does.

    `scale` is how many of the `n` voxels one of the `m` is long (as with torch's
    `scale_factor`); None: so many that both grids end at the same place.

    `nearest`: each takes the voxel that holds it (torch's "nearest-exact"); else it lies between
    two, or on the first or last one where it is beyond their centers.
    """
    step = np.float32(n) / np.float32(m) if scale is None else np.float32(scale)
    centers = np.arange(m, dtype=np.float32) + np.float32(0.5)
    if nearest or (n == m and step == 1):
        lower = np.minimum((centers * step).astype(np.intp), n - 1)
        return Axis(n, lower, lower, np.zeros(m, np.float32))
    # rounded once: torch's kernels use a fused multiply-add where the processor has one
    exact = np.float64(step) * centers - 0.5
    position = np.maximum(exact.astype(np.float32), np.float32(0))
    lower = np.minimum(position.astype(np.intp), n - 1)
    upper = np.minimum(lower + 1, n - 1)
    share = np.clip(position - lower.astype(np.float32), 0, 1).astype(np.float32)
    return Axis(n, lower, upper, share)
