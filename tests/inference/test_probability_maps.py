"""Probability maps: the numbers that labels are decided by, a byte each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from medals_rt.common.arrays import to_host
from medals_rt.inference.probability_maps import ProbabilityMaps, StageMaps, as_bytes
from medals_rt.planning.memory import MemoryDemand, MemoryLimit, plan_memory
from medals_rt.planning.model_facts import RELEASED
from medals_rt.planning.sliding_window import Window
from tests.inference.test_stage import (
    ANATOMY,
    LABELS,
    LEAST,
    LESIONS,
    PLENTY,
    planned_stage,
    run,
)


def test_half_and_more_is_told_from_less_by_the_byte(xp: Any) -> None:
    near = np.float32([0.5, np.nextafter(np.float32(0.5), np.float32(0)), 0.0, 1.0, 0.25])
    assert to_host(as_bytes(xp.asarray(near))).tolist() == [128, 127, 0, 255, 64]
    rng = np.random.default_rng(0)
    many = rng.random(10_000, dtype=np.float32)
    found = to_host(as_bytes(xp.asarray(many)))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found >= 128, many >= 0.5)
    assert np.abs(found / 255 - many).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(
    ("mode", "names"), [("masked", ANATOMY), ("masked", LESIONS), ("none", ANATOMY)]
)
def test_labels_are_the_likeliest_class_of_half_and_more(
    xp: Any, mode: Any, names: tuple[str, ...]
) -> None:
    """On the stage's own grid, whatever is cut for memory."""
    planned = (planned_stage(limit, mode, names) for limit in (PLENTY, LEAST))
    plans = [
        replace(
            each,
            geometry=replace(each.geometry, input_shape_hwd=each.geometry.resampled_shape_hwd),
        )
        for each in planned
    ]
    whole, cut = (run(plan, xp, [], keep_maps=True)[0] for plan in plans)
    maps, labels = to_host(whole.maps_nhwd), to_host(whole.labels_hwd)
    np.testing.assert_array_equal(to_host(cut.maps_nhwd), maps)
    assert run(plans[0], xp, [])[0].maps_nhwd is None
    values = np.array(LABELS)
    decided = maps.max(axis=0) >= 128
    np.testing.assert_array_equal(decided, labels > 0)
    np.testing.assert_array_equal(maps.max(axis=0), to_host(as_bytes(whole.probability_hwd)))
    for value, of_class in zip(values, maps, strict=True):
        # Of two bytes alike the likelier class has the label, so >= instead of ==.
        assert (of_class[labels == value] >= maps.max(axis=0)[labels == value]).all()


def test_a_map_comes_onto_the_grid_of_the_image() -> None:
    stage = np.zeros((2, 4, 6, 3), np.uint8)
    stage[1, 1:3, 2:4, 1] = 200
    box = ((2, 0, 1), (5, 4, 7))  # D, H, W: as large as the stage's grid
    (seven, nine) = ProbabilityMaps([StageMaps(stage, (7, 9), box, (6, 5, 8))]).values()
    assert seven.dtype == np.uint8
    assert not seven.any()
    expected = np.zeros((6, 5, 8), np.uint8)
    expected[2:5, 0:4, 1:7] = stage[1].transpose(2, 0, 1)
    np.testing.assert_array_equal(nine, expected)
    larger = ProbabilityMaps([StageMaps(stage, (7, 9), ((0, 0, 0), (6, 8, 12)), (6, 8, 12))])[9]
    assert int(larger.max()) == pytest.approx(200 * 0.75, abs=1)  # one plane, between two of zeros
    assert int(larger.sum()) == pytest.approx(8 * int(expected.sum()), rel=0.01)


def test_the_estimate_of_memory_includes_them() -> None:
    windows = [Window((0, 0, 0), (32, 32, 32))]
    limit = MemoryLimit(10**12, "a test")
    bare, kept = (
        plan_memory(
            MemoryDemand(replace(RELEASED, channels=4, weights=0), classes=20, keeps_maps=keeps),
            (32, 32, 32),
            windows,
            limit,
        ).expected_bytes
        for keeps in (False, True)
    )
    assert kept - bare == 20 * 32**3
