"""Volumes that are unlike those of the other cases."""

from dataclasses import replace

import numpy as np
import pytest

from medals_rt.pipeline.batch.outliers import FEWEST_CASES, volume_outliers
from medals_rt.pipeline.batch.records import Entry
from medals_rt.pipeline.class_statistics import ClassStatistics

LIVER = ClassStatistics(1, "Liver", 5, 1500.0, 60.5, 9.25, 2, None, None, None)
SPLEEN = replace(LIVER, label=2, name="Spleen")


def entries_of(livers: list[float], spleen: float | None = None) -> list[Entry]:
    beside = () if spleen is None else (replace(SPLEEN, volume_ml=spleen),)
    return [
        Entry("a", "", "", "done", classes=(replace(LIVER, volume_ml=volume), *beside))
        for volume in livers
    ]


def test_against_the_definition() -> None:
    volumes = np.random.default_rng(0).lognormal(7, 0.3, 50)
    volumes[[3, 40]] = 100_000, 10
    logs = np.log(volumes)
    scores = (logs - np.median(logs)) / (1.4826 * np.median(np.abs(logs - np.median(logs))))
    expected = {(int(case), 0): pytest.approx(scores[case], abs=0.05) for case in (3, 40)}
    assert volume_outliers(entries_of(list(volumes), spleen=200.0)) == expected
    assert {case for case, _ in expected} == set(np.flatnonzero(np.abs(scores) > 3.5))


def test_a_class_has_its_own_scale() -> None:
    entries = [*entries_of([1500.0] * 10, spleen=200.0), *entries_of([200.0], spleen=1500.0)]
    found = volume_outliers(entries)
    assert set(found) == {(10, 0), (10, 1)}
    assert found[10, 0] < 0 < found[10, 1]


def test_some_percent_are_no_outlier() -> None:
    assert volume_outliers(entries_of([1000.0] * 20 + [1100.0])) == {}


def test_of_few_cases_nothing_is_said() -> None:
    volumes = [1000.0] * (FEWEST_CASES - 2) + [9000.0]
    assert volume_outliers(entries_of(volumes)) == {}
    assert volume_outliers(entries_of([1000.0, *volumes])) != {}


def test_what_was_not_found_has_no_volume() -> None:
    assert volume_outliers(entries_of([1000.0] * 10 + [0.0] * 3)) == {}
