"""How large the values are that a layer reads, and the range that represents them best."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medals_export.quantization.number_format import NumberFormat

_BINS = 2048
_LEAST_SHARE = 0.05
_SHARES = 96


class Magnitudes:
    """A histogram of absolute values that grows with them: nothing of the values is kept.

    Attributes
    ----------
    largest
        The largest absolute value so far.
    """

    def __init__(self) -> None:
        self.largest = 0.0
        self._span = 0.0
        self._counts = torch.zeros(_BINS, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Count the values of a float32 tensor of any shape."""
        magnitudes = values.abs()
        largest = float(magnitudes.max())
        if largest == 0.0:
            return
        self.largest = max(self.largest, largest)
        self._span = self._span or largest
        while self._span < self.largest:  # two bins become one
            folded = self._counts.reshape(-1, 2).sum(dim=1)
            self._counts = torch.cat([folded, torch.zeros_like(folded)])
            self._span *= 2
        self._counts += torch.histc(magnitudes, _BINS, 0.0, self._span)

    def histogram(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the middles of the bins and how many values lie in each."""
        middles = (np.arange(_BINS, dtype=np.float64) + 0.5) * (self._span / _BINS)
        return middles, np.asarray(self._counts, np.float64)


def best_range(seen: Magnitudes, number_format: NumberFormat) -> float:
    """Return the range at which the mean squared error of all values is least.

    Values beyond it are cut off, and those within it lie nearer to each other: integers gain by a
    range below the largest value. Floats mostly don't.
    """
    if seen.largest == 0.0:
        return 1.0
    middles, counts = seen.histogram()
    values, weights = torch.from_numpy(middles).float(), torch.from_numpy(counts)
    best, least = seen.largest, float("inf")
    for share in np.linspace(1.0, _LEAST_SHARE, _SHARES):
        tried = seen.largest * float(share)
        scale = number_format.scale(torch.tensor(tried, dtype=torch.float32))
        wrong = (number_format.rounded(values, scale) - values).square().double()
        error = float(weights @ wrong)
        if error < least:
            best, least = tried, error
    return best
