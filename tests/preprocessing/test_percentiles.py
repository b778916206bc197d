"""Percentiles against NumPy's on the voxels that are not 0."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medals_rt.preprocessing.percentiles import nonzero_percentiles

PERCENTS = (0.0, 0.5, 33.3, 50.0, 99.5, 100.0)
TOLERANCE = 1e-6  # relative to the extent: NumPy interpolates in float32, we in float64


def expected(image: np.ndarray, percents: tuple[float, ...]) -> np.ndarray:
    values = image.astype(np.float32)
    return np.percentile(values[values != 0].astype(np.float64), percents)


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.sampled_from(["normal", "gamma", "few values", "huge", "one voxel"]),
    st.sampled_from([np.int8, np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64]),
)
def test_equals_numpy(seed: int, shape: tuple[int, int, int], kind: str, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    values = {
        "normal": rng.normal(0, 40, shape),
        "gamma": rng.gamma(2, 10, shape) + 1,
        "few values": rng.integers(-2, 3, shape),
        "huge": rng.normal(0, 1, shape) * 10.0 ** rng.integers(-30, 30),
        "one voxel": np.zeros(shape),
    }[kind]
    values[rng.random(shape) < 0.4] = 0
    values.flat[rng.integers(values.size)] = 3
    if np.dtype(dtype).kind != "f":
        values = values.clip(np.iinfo(dtype).min, np.iinfo(dtype).max)
    image = values.astype(dtype)
    found = nonzero_percentiles(image, PERCENTS)
    assert found is not None
    reference = expected(image, PERCENTS)
    np.testing.assert_allclose(found, reference, rtol=0, atol=TOLERANCE * np.ptp(reference))


def test_every_library_and_every_slab(xp: Any) -> None:
    """A volume of several slabs, turned: the first axis is the fastest in memory."""
    rng = np.random.default_rng(0)
    image = rng.integers(-50, 400, (3, 300, 300)).astype(np.float32)
    found = nonzero_percentiles(xp.asarray(image), (0.5, 99.5))
    np.testing.assert_allclose(found, expected(image, (0.5, 99.5)), rtol=1e-6)
    turned = nonzero_percentiles(image[:, ::-1, ::-1], (0.5, 99.5))
    assert turned == found


def test_a_zero_is_a_zero_whatever_its_sign(xp: Any) -> None:
    image = np.array([[[0.0, -0.0, -1.0, 1.0]]], np.float32)
    assert nonzero_percentiles(xp.asarray(image), (0, 50, 100)) == (-1.0, 0.0, 1.0)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_of_zeros_there_is_none(xp: Any, dtype: type) -> None:
    assert nonzero_percentiles(xp.asarray(np.zeros((2, 3, 4), dtype)), (50,)) is None
