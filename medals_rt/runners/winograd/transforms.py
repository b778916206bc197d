"""The matrices of Winograd's minimal filtering F(4, 3), made exactly.

Four neighboring outputs of a filter of three taps need six products instead of twelve; nested over
three axes, 216 instead of 1,728. After Lavin and Gray, "Fast algorithms for convolutional neural
networks", CVPR 2016, and Jia et al., PPoPP 2018 (N dimensions on CPUs).
"""

from fractions import Fraction
from typing import Final

import numpy as np

OUTPUTS: Final = 4
TAPS: Final = 3
POINTS: Final = OUTPUTS + TAPS - 1
"""Inputs of a tile along an axis, and products."""

PRODUCTS: Final = POINTS**3

# Of the choices tried, the smallest error in float32: 2e-6 of the output's deviation.
_FINITE_POINTS: Final = (Fraction(0), Fraction(1), Fraction(-1), Fraction(1, 2), Fraction(-2))

Matrix = tuple[tuple[Fraction, ...], ...]


def _polynomial(roots: tuple[Fraction, ...]) -> list[Fraction]:
    """Coefficients of the product of ``(x - root)``, constant first."""
    found = [Fraction(1)]
    for root in roots:
        found = [
            low - root * high
            for low, high in zip([Fraction(0), *found], [*found, Fraction(0)], strict=True)
        ]
    return found


def _matrices() -> tuple[Matrix, Matrix, Matrix]:
    """Output `A^T (4, 6)`, weights `G (6, 3)`, input `B^T (6, 6)`; the last point is infinity."""
    points = _FINITE_POINTS
    others = [tuple(b for b in points if b != a) for a in points]
    zero, one = Fraction(0), Fraction(1)
    scale = []
    for a, rest in zip(points, others, strict=True):
        value = one
        for b in rest:
            value *= a - b
        scale.append(value)
    output = tuple(
        (*(a**row for a in points), one if row == OUTPUTS - 1 else zero) for row in range(OUTPUTS)
    )
    weights = (
        *(tuple(a**tap / s for tap in range(TAPS)) for a, s in zip(points, scale, strict=True)),
        (zero,) * (TAPS - 1) + (one,),
    )
    inputs = (*((*_polynomial(rest), zero) for rest in others), tuple(_polynomial(points)))
    return output, weights, inputs


OUTPUT_TRANSFORM, WEIGHT_TRANSFORM, INPUT_TRANSFORM = _matrices()


def transform_weights(weights: np.ndarray) -> np.ndarray:
    """Return weights `(K, C, 3, 3, 3)` as the factors of products, `(216, C, K)` float32.

    Computed in float64: they are made once, or for each window where prompts weigh.
    """
    g = np.array(WEIGHT_TRANSFORM, np.float64)
    values = np.asarray(weights, np.float64)
    for _ in range(3):  # each turn takes the first tap axis to the end, transformed
        values = np.tensordot(values, g, axes=(2, 1))
    count, channels = values.shape[:2]
    products = values.reshape(count, channels, PRODUCTS).transpose(2, 1, 0)
    return np.ascontiguousarray(products, np.float32)
