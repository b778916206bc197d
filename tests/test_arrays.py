from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import label

from medals_rt.arrays import (
    as_namespace,
    bounding_box,
    count_values,
    label_components,
    namespace,
    to_device,
    to_host,
)
from medals_rt.errors import MissingDependencyError


def test_namespace_is_found_from_an_array(xp: Any) -> None:
    array = as_namespace(np.arange(3), xp)
    assert namespace(array).__name__ == xp.__name__
    assert isinstance(to_host(array), np.ndarray)
    np.testing.assert_array_equal(to_host(array), [0, 1, 2])


def test_what_is_no_array_is_refused() -> None:
    with pytest.raises(TypeError, match="found list"):
        namespace([1, 2])


def test_a_device_is_named_or_refused() -> None:
    array = np.arange(3)
    assert to_device(array, "cpu") is array
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        to_device(array, "gpu")


def test_a_missing_cupy_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(MissingDependencyError, match=r"medals-rt\[gpu\]"):
        to_device(np.arange(3), "cuda")


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


def test_counting_and_summing(xp: Any) -> None:
    indices = xp.asarray(np.array([[0, 2], [2, 3]], np.uint32))
    assert to_host(count_values(indices, 5)).tolist() == [1, 0, 2, 1, 0]
    weights = xp.asarray(np.array([[1.0, 0.25], [0.5, 2.0]], np.float32))
    assert to_host(count_values(indices, 4, weights)).tolist() == [1.0, 0.0, 0.75, 2.0]


def test_bounding_box(xp: Any) -> None:
    mask = np.zeros((5, 6, 7), np.bool_)
    assert bounding_box(xp.asarray(mask)) is None
    mask[1, 2, 3] = mask[3, 2, 6] = True
    assert bounding_box(xp.asarray(mask)) == ((1, 2, 3), (4, 3, 7))
