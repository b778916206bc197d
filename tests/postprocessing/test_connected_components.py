from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import label, mean

from medals_rt.common.arrays import to_host
from medals_rt.postprocessing.connected_components import (
    _in_steps,
    component_means,
    keep_components,
    label_components,
    measure_components,
    values_of_components,
)
from tests.fakes import Fakes


@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 9)] * 3))
def test_components_of_a_label_map_are_numbered_as_in_its_masks(
    seed: int, shape: tuple[int, ...]
) -> None:
    """Within a label, the order of first appearance: ties of size in Algorithm 3 rest on it."""
    labels = np.random.default_rng(seed).integers(0, 4, shape).astype(np.uint8)
    numbers, count = label_components(labels)
    assert count == len(np.unique(numbers[numbers > 0]))
    for value in (1, 2, 3):
        of_mask, _ = label(labels == value)
        mine = np.where(labels == value, numbers, 0)
        _, dense = np.unique(mine[mine > 0], return_inverse=True)
        np.testing.assert_array_equal(dense + 1, of_mask[mine > 0])


def test_transposed_views_are_labeled_in_their_own_order() -> None:
    mask = np.random.default_rng(0).random((6, 7, 8)) > 0.6
    view = mask.transpose(2, 0, 1)
    np.testing.assert_array_equal(
        label_components(view)[0], label_components(np.ascontiguousarray(view))[0]
    )


def test_components_are_numbered_from_one(xp: Any) -> None:
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0, 0, 1] = labels[1, 1, 1] = labels[3, 3] = 2
    labels[3, 3, 2:] = 1
    numbers, count = label_components(xp.asarray(labels))
    assert count == 4
    assert numbers.dtype == xp.uint32
    assert to_host(numbers)[[0, 1, 3, 3], [0, 1, 3, 3], [1, 1, 0, 3]].tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(to_host(numbers) > 0, labels > 0)
    numbers, count = label_components(xp.asarray(labels > 0))
    assert count == 3
    assert to_host(numbers)[3, 3].tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize("shape", [(3, 3, 3), (1, 1, 1), (0, 2, 2)])
def test_nothing_has_no_components(xp: Any, shape: tuple[int, int, int]) -> None:
    numbers, count = label_components(xp.zeros(shape, dtype=xp.uint8))
    assert count == 0
    assert numbers.shape == shape
    assert not to_host(numbers).any()


def several_slabs() -> tuple[np.ndarray, np.ndarray]:
    """Return a label map and values that take more than one slab, cut out of larger ones.

    Blocks of 3 voxels: components cross slabs, rows and planes.
    """
    rng = np.random.default_rng(5)
    blocks = rng.choice(np.array([0, 0, 0, 2, 7], np.uint8), (45, 28, 21))
    labels = blocks.repeat(3, 0).repeat(3, 1).repeat(3, 2)
    values = rng.random(labels.shape, dtype=np.float32)
    box = (slice(1, None), slice(0, 83), slice(2, None))
    return labels[box], values[box]


def scipy_components(labels: np.ndarray) -> np.ndarray:
    """Number the components of each label by scipy, and all in the order of their first voxels."""
    numbers = np.zeros(labels.shape, np.int64)
    for value in np.unique(labels[labels > 0]):
        found, _ = label(labels == value)
        numbers[found > 0] = found[found > 0] + numbers.max()
    _, first = np.unique(numbers[numbers > 0], return_index=True)
    order = np.zeros(len(first) + 1, np.int64)
    order[1 + np.argsort(first)] = np.arange(1, len(first) + 1)
    return order[numbers]


def check(xp: Any, labels: np.ndarray, values: np.ndarray) -> None:
    """Compare everything with scipy and with plain masks."""
    expected = scipy_components(labels)
    count = expected.max()
    found = measure_components(xp.asarray(labels))
    np.testing.assert_array_equal(to_host(found.numbers), expected)
    assert found.sizes.tolist() == np.bincount(expected.reshape(-1))[1:].tolist()
    _, first = np.unique(expected[expected > 0], return_index=True)
    np.testing.assert_array_equal(found.labels, labels[expected > 0][first])
    means = component_means(found, xp.asarray(values))
    exact = mean(values.astype(np.float64), expected, np.arange(1, count + 1))
    np.testing.assert_allclose(means, exact, rtol=3e-7)
    stays = np.random.default_rng(count).random(count) < 0.5
    kept = to_host(keep_components(xp.asarray(labels), found, stays))
    assert kept.dtype == labels.dtype
    gone = np.isin(expected, np.flatnonzero(~stays) + 1)
    np.testing.assert_array_equal(kept, np.where(gone, 0, labels))


def test_components_in_several_slabs(xp: Any) -> None:
    check(xp, *several_slabs())


@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 9)] * 3))
def test_components_are_measured_and_kept(seed: int, shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(seed)
    labels = (rng.integers(0, 4, shape) * (rng.random(shape) < rng.random())).astype(np.uint16)
    labels[0, 0, 0] = 3
    check(np, labels, rng.random(shape, dtype=np.float32))


def test_components_of_a_mask(xp: Any) -> None:
    mask = np.array([[[True, False, True, True]]])
    found = measure_components(xp.asarray(mask))
    assert found.sizes.tolist() == [1, 2]
    kept = keep_components(xp.asarray(mask), found, np.array([False, True]))
    assert kept.dtype == xp.bool
    assert to_host(kept).tolist() == [[[False, False, True, True]]]


def test_means_in_steps_are_those_of_before_and_do_not_depend_on_the_order() -> None:
    """Of probabilities: sums in steps are exact, so that any order gives the same bits."""
    rng = np.random.default_rng(3)
    values = (rng.random(200_001) ** 9).astype(np.float32)  # also tiny ones, of many fine bits
    steps = _in_steps(values)
    assert np.abs(steps - values).max() <= 2.0**-25
    exact = sum(int(each * 2**24) for each in steps.tolist()) / 2**24
    sums = {float(np.cumsum(rng.permutation(steps))[-1]) for _ in range(20)}
    assert sums == {exact}
    assert exact / values.size == pytest.approx(values.mean(dtype=np.float64), abs=2.0**-25)
    plain = values.astype(np.float64)
    assert len({float(np.cumsum(rng.permutation(plain))[-1]) for _ in range(20)}) > 1


def test_on_a_gpu_every_run_gives_the_same_to_the_last_bit(fakes: Fakes) -> None:
    """The fake of CuPy adds in another order each time, as a GPU does."""
    labels, values = several_slabs()
    values = values**9
    weights = fakes.cupy.asarray(values.astype(np.float64).reshape(-1))
    numbers = fakes.cupy.asarray((labels > 0).reshape(-1).astype(np.uint32))
    plain = {fakes.cupy.bincount(numbers, weights).get()[0] for _ in range(5)}
    assert len(plain) > 1  # the fake would show it
    touching = (labels > 0) * np.arange(1, labels.size + 1, dtype=np.uint32).reshape(labels.shape)
    found = []
    for _ in range(3):
        components = measure_components(fakes.cupy.asarray((labels > 0).astype(np.uint8)))
        found.append(
            (
                component_means(components, fakes.cupy.asarray(values)),
                components.sizes,
                values_of_components(components, fakes.cupy.asarray(touching)),
            )
        )
    for again in found[1:]:
        for first, second in zip(found[0], again, strict=True):
            np.testing.assert_array_equal(first, second)
    here = measure_components((labels > 0).astype(np.uint8))
    np.testing.assert_allclose(found[0][0], component_means(here, values), atol=6e-8)
    np.testing.assert_array_equal(found[0][2], values_of_components(here, touching))
