"""NaN is found wherever it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medals_rt.inference.largest_values import LargestValues


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("at", [0, 2, 3])
def test_one_value_among_many_shows(xp: Any, value: float, at: int) -> None:
    arrays = [np.zeros((3, 4), np.float32) for _ in range(4)]
    arrays[at][1, 2] = value
    largest = LargestValues()
    for array in arrays:
        largest.note(xp.asarray(array))
    assert not largest.are_finite()
    assert largest.are_finite()  # nothing was noted since


def test_finite_values_are_finite(xp: Any) -> None:
    largest = LargestValues()
    assert largest.are_finite()
    for value in (-3e38, 0.0, 3e38):
        largest.note(xp.full((2, 2), value, dtype=xp.float32))
    assert largest.are_finite()
