"""What DICOM results list: labels, or numbered instances."""

import numpy as np
import pytest

from medals_rt.common.errors import CaseError
from medals_rt.io.dicom.results import LONG_STRING, number_objects, object_color, object_name
from medals_rt.io.segment_metadata import segments_of

NOTHING = np.zeros((1, 1, 1), np.uint8)
SEGMENTS = segments_of({"3": "spleen", "7": "liver"}, NOTHING)


def test_labels_are_objects_also_where_nothing_was_found() -> None:
    labels = np.array([[[0, 7, 5, 7]]], np.uint8)
    numbers, objects = number_objects(labels, None, SEGMENTS, "a.dcm")
    assert numbers.tolist() == [[[0, 2, 0, 2]]]  # 5 isn't named
    assert [(segment.label, instance) for segment, instance in objects] == [(3, None), (7, None)]


def test_instances_are_objects_in_the_order_of_their_labels() -> None:
    labels = np.array([[[0, 7, 3, 7, 5]]], np.uint8)
    instances = np.array([[[0, 1, 4, 9, 2]]], np.uint32)
    numbers, objects = number_objects(labels, instances, SEGMENTS, "a.dcm")
    assert numbers.tolist() == [[[0, 2, 1, 3, 0]]]
    assert [(segment.label, instance) for segment, instance in objects] == [(3, 4), (7, 1), (7, 9)]
    assert [object_name(*each) for each in objects] == ["spleen 4", "liver 1", "liver 9"]
    assert len({object_color(*each) for each in objects}) == 3


def test_without_instances_the_labels_are_listed() -> None:
    numbers, objects = number_objects(NOTHING, NOTHING, SEGMENTS, "a.dcm")
    assert not numbers.any()
    assert [instance for _, instance in objects] == [None, None]


def test_more_than_dicom_can_number_is_refused() -> None:
    instances = np.arange(65_537, dtype=np.uint32).reshape(1, 1, -1)
    labels = (instances > 0) * np.uint8(7)
    assert (
        len(number_objects(labels[..., :-1], instances[..., :-1], SEGMENTS, "a.dcm")[1]) == 65_535
    )
    with pytest.raises(CaseError) as caught:
        number_objects(labels, instances, SEGMENTS, "a.dcm")
    assert caught.value.code == "too-many-segments"


def test_long_names_keep_their_number() -> None:
    (segment,) = segments_of({"1": "a very long name " * 9}, NOTHING)
    name = object_name(segment, 12_345)
    assert len(name) <= LONG_STRING
    assert name.endswith(" 12345")


def test_anatomy_beside_lesions_is_an_object_of_its_own() -> None:
    labels = np.array([[[0, 3, 7, 3, 7]]], np.uint8)
    instances = np.array([[[0, 0, 1, 0, 2]]], np.uint32)
    numbers, objects = number_objects(labels, instances, SEGMENTS, "a.dcm")
    assert [(segment.label, instance) for segment, instance in objects] == [
        (7, 1),
        (7, 2),
        (3, None),
    ]
    assert numbers.tolist() == [[[0, 3, 1, 3, 2]]]
