"""Classes that want different CT windows: grouped, segmented apart, merged."""

from typing import Any

import numpy as np
import pytest

from medals_rt.common.errors import InputError
from medals_rt.io.volume import Volume
from medals_rt.pipeline.window_groups import (
    GroupResult,
    WindowGroup,
    check_window,
    group_by_window,
    merge,
    part_of_annotation,
    progress_of,
)
from medals_rt.planning.memory import MemoryLimit
from medals_rt.prompts.prompt_set import PromptSet, numbered
from tests.errors import raises

SHAPE = (4, 5, 6)
HU = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
VOLUME = Volume(HU, (1.0, 1.0, 10.0))
ANATOMY = numbered(
    ("Liver in CT", "Left lung in CT", "Aorta in CT", "Right femur in CT"), "anatomy"
)


def result_of(
    label: int, depth: slice, probability: float, *, instances: bool = False
) -> GroupResult:
    """A group that found one label in some slices."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[depth] = label
    return GroupResult(
        group=WindowGroup("soft tissue", ANATOMY),
        sources=("class",) * 4,
        intensities={},
        labels_dhw=labels,
        instances_dhw=(labels > 0).astype(np.uint32) * 2 if instances else None,
        probability_dhw=np.where(labels > 0, np.float32(probability), np.float32(0.2)),
        stage_labels_dhw={},
        stages=(),
        removals=(),
        notes=(),
        memory=MemoryLimit(1, "made up"),
        budget=None,
        seconds={},
    )


def test_classes_are_grouped_by_the_window_they_want() -> None:
    groups = group_by_window(VOLUME, ANATOMY, "auto")
    assert {group.window: group.prompts.labels for group in groups} == {
        "soft tissue": (1, 3),
        "lung": (2,),
        "bone": (4,),
    }


@pytest.mark.parametrize(
    ("volume", "prompts", "window"),
    [
        (VOLUME, ANATOMY, "lung"),
        (VOLUME, ANATOMY, "400,40"),
        (VOLUME, numbered(("Liver in CT", "Aorta in CT"), "anatomy"), "auto"),
        (VOLUME, numbered(("Liver in MRI", "Left lung in MRI"), "anatomy"), "auto"),
        (Volume(abs(HU) // 4, (1.0, 1.0, 1.0)), ANATOMY, "auto"),
    ],
)
def test_one_group_where_one_is_enough(volume: Volume, prompts: PromptSet, window: str) -> None:
    (group,) = group_by_window(volume, prompts, window)
    assert (group.window, group.prompts) == (window, prompts)


def test_the_likelier_class_keeps_a_contested_voxel() -> None:
    merged = merge(
        [
            result_of(1, slice(0, 2), 0.7),
            result_of(2, slice(1, 3), 0.9),
            result_of(4, slice(2, 4), 0.8),
        ]
    )
    assert merged.labels_dhw[:, 0, 0].tolist() == [1, 2, 2, 4]
    assert merged.contested == 2 * 5 * 6
    assert merged.probability_dhw is not None
    np.testing.assert_allclose(merged.probability_dhw[:, 0, 0], [0.7, 0.9, 0.9, 0.8])


def test_of_equally_likely_classes_the_earlier_group_keeps_the_voxel() -> None:
    one, other = result_of(1, slice(0, 2), 0.7), result_of(2, slice(1, 3), 0.7)
    assert merge([one, other]).labels_dhw[:, 0, 0].tolist() == [1, 1, 2, 0]
    assert merge([other, one]).labels_dhw[:, 0, 0].tolist() == [1, 2, 2, 0]


def test_instances_are_numbered_on() -> None:
    merged = merge(
        [
            result_of(1, slice(0, 2), 0.7, instances=True),
            result_of(2, slice(1, 3), 0.6, instances=True),
        ]
    )
    assert merged.labels_dhw[:, 0, 0].tolist() == [1, 1, 2, 0]
    assert merged.instances_dhw is not None
    assert merged.instances_dhw[:, 0, 0].tolist() == [2, 2, 4, 0]
    assert merged.instances_dhw.dtype == np.uint32


def test_one_group_is_its_own_result() -> None:
    result = result_of(1, slice(0, 2), 0.7)
    assert merge([result]).labels_dhw is result.labels_dhw


def test_each_group_has_its_part_of_an_annotation() -> None:
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[0], drawn[1] = 1, 2
    kept = part_of_annotation(drawn, (1, 3))
    assert kept is not None
    assert kept.dtype == drawn.dtype
    np.testing.assert_array_equal(kept, np.where(drawn == 1, drawn, 0))
    assert part_of_annotation(drawn, (4,)) is None
    assert part_of_annotation(None, (1,)) is None


def test_progress_names_the_window_where_there_are_several() -> None:
    heard: list[tuple[Any, ...]] = []
    alone = progress_of(lambda *said: heard.append(said), WindowGroup("lung", ANATOMY))
    group = WindowGroup("lung", ANATOMY, "lung")
    one_of_two = progress_of(lambda *said: heard.append(said), group)
    assert alone is not None
    assert one_of_two is not None
    alone("coarse", 1, 2)
    one_of_two("coarse", 1, 2)
    assert heard == [("coarse", 1, 2), ("lung: coarse", 1, 2)]
    assert progress_of(None, group) is None


@pytest.mark.parametrize(
    ("window", "modality", "error"),
    [
        ("lungs", "CT", ("window-unknown", "lungs")),
        ("1,2,3", "CT", ("window-unknown",)),
        ("0,40", "CT", ("window-not-positive",)),
        ("nan,40", "CT", ("window-not-positive",)),
        ("lung", "MRI", ("window-not-for-modality", "MRI")),
    ],
)
def test_unusable_windows_are_refused(window: str, modality: str, error: tuple[str, ...]) -> None:
    with raises(InputError, *error):
        check_window(window, modality)


@pytest.mark.parametrize(("window", "modality"), [("auto", "MRI"), ("bone", "CT"), ("9,3", "PET")])
def test_usable_windows_are_taken(window: str, modality: str) -> None:
    check_window(window, modality)
