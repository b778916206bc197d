"""Transforms, exactly: the products of a tile are its convolution."""

from fractions import Fraction

import numpy as np
import pytest

from medals_rt.runners.winograd.transforms import (
    INPUT_TRANSFORM,
    OUTPUT_TRANSFORM,
    OUTPUTS,
    POINTS,
    TAPS,
    WEIGHT_TRANSFORM,
    transform_weights,
)


def times(matrix: tuple[tuple[Fraction, ...], ...], values: list[Fraction]) -> list[Fraction]:
    return [sum((a * b for a, b in zip(row, values, strict=True)), Fraction(0)) for row in matrix]


@pytest.mark.parametrize("place", range(POINTS))
@pytest.mark.parametrize("tap", range(TAPS))
def test_a_filter_of_one_tap_on_one_value_is_exact(place: int, tap: int) -> None:
    values = [Fraction(number == place) for number in range(POINTS)]
    weights = [Fraction(number == tap) for number in range(TAPS)]
    products = [
        a * b
        for a, b in zip(
            times(INPUT_TRANSFORM, values), times(WEIGHT_TRANSFORM, weights), strict=True
        )
    ]
    expected = [Fraction(number + tap == place) for number in range(OUTPUTS)]
    assert times(OUTPUT_TRANSFORM, products) == expected


def test_weights_are_transformed_along_each_axis() -> None:
    weights = np.random.default_rng(0).standard_normal((2, 3, TAPS, TAPS, TAPS))
    g = np.array(WEIGHT_TRANSFORM, float)
    expected = np.einsum("xa,yb,zc,kiabc->xyzik", g, g, g, weights).reshape(-1, 3, 2)
    found = transform_weights(weights)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
