"""How near two results are."""

from types import SimpleNamespace

import numpy as np
import pytest

from medals_rt.common.errors import RunnerError
from medals_rt.tools.verify import measures
from medals_rt.tools.verify.measures import compare_cases, relative_error, rms_error
from tests.errors import raises

NAMES = {1: "Liver", 2: "Spleen", 3: "Pancreas"}
WHOLE = ((0, 0, 0), (2, 3, 4))


def result(labels, probability, box=WHOLE):
    return SimpleNamespace(
        labels_dhw=labels,
        probability_dhw=probability,
        report=SimpleNamespace(stages=[SimpleNamespace(box_dhw=box)]),
    )


@pytest.mark.parametrize("block", [1, 4, 1 << 22])
def test_error_is_relative_to_the_largest_value(monkeypatch, block):
    monkeypatch.setattr(measures, "_BLOCK_ELEMENTS", block)
    expected = np.array([[1.0, -8.0, 2.0], [0.0, 4.0, 1.0]], np.float32)
    found = expected.copy()
    found[1, 2] += 2
    assert relative_error(expected, expected) == 0
    assert relative_error(found, expected) == pytest.approx(0.25)


def test_error_of_half_precision_is_taken_in_float32():
    expected = np.full(3, 60000, np.float16)
    assert relative_error(-expected, expected) == 2


@pytest.mark.parametrize("measure", [relative_error, rms_error])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_infinitely_wrong(measure, value):
    expected = np.ones(5, np.float32)
    found = expected.copy()
    found[3] = value
    assert measure(found, expected) == float("inf")


def test_all_zero_reference_leaves_the_absolute_error():
    assert relative_error(np.full(2, 0.5), np.zeros(2)) == 0.5


@pytest.mark.parametrize("block", [1, 2, 1 << 22])
def test_root_mean_square_is_relative_to_that_of_the_reference(monkeypatch, block):
    monkeypatch.setattr(measures, "_BLOCK_ELEMENTS", block)
    expected = np.array([3.0, 4.0, 0.0], np.float32)
    assert rms_error(expected, expected) == 0
    assert rms_error(np.array([3.0, 4.0, 5.0]), expected) == pytest.approx(1)
    assert rms_error(np.ones(2), np.zeros(2)) == pytest.approx(np.sqrt(2))


@pytest.mark.parametrize("measure", [relative_error, rms_error])
def test_shapes_that_differ_are_an_error(measure):
    with raises(RunnerError, "shapes-differ", (2,), (3,)):
        measure(np.zeros(2), np.zeros(3))


def test_labels_are_compared_class_by_class():
    theirs = np.zeros((2, 3, 4), np.uint8)
    theirs[0, :2] = 1  # 8 voxels
    theirs[1, 0] = 2  # 4 voxels
    ours = theirs.copy()
    ours[0, 1, :2] = 2  # two of class 1 go to class 2
    found = compare_cases("x", NAMES, result(ours, None), result(theirs, None))
    assert found.case == "x"
    assert found.agreement == pytest.approx(22 / 24)
    assert found.dsc["Liver"] == pytest.approx(2 * 6 / (6 + 8))
    assert found.dsc["Spleen"] == pytest.approx(2 * 4 / (6 + 4))
    assert found.dsc["Pancreas"] is None  # in neither
    assert found.mean_dsc == pytest.approx((found.dsc["Liver"] + found.dsc["Spleen"]) / 2)
    assert found.probability_difference is None


def test_a_class_that_only_one_result_has_scores_zero():
    ours, theirs = np.zeros((2, 3, 4), np.uint8), np.zeros((2, 3, 4), np.uint8)
    ours[0, 0, 0] = 3
    assert compare_cases("x", NAMES, result(ours, None), result(theirs, None)).mean_dsc == 0


def test_probabilities_are_compared_where_both_looked():
    labels = np.zeros((2, 3, 4), np.uint8)
    theirs = np.full((2, 3, 4), 0.5, np.float32)
    ours = theirs.copy()
    ours[0, 1, 1] += 0.125
    ours[1, 2, 3] = 0  # outside the second box
    boxes = ((0, 0, 0), (2, 3, 3)), ((0, 1, 0), (2, 3, 4))
    found = compare_cases(
        "x", NAMES, result(labels, ours, boxes[0]), result(labels, theirs, boxes[1])
    )
    assert found.probability_difference == 0.125
    apart = ((0, 0, 0), (1, 1, 1)), ((1, 1, 1), (2, 3, 4))
    found = compare_cases(
        "x", NAMES, result(labels, ours, apart[0]), result(labels, theirs, apart[1])
    )
    assert found.probability_difference is None
