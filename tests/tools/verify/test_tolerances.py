"""How near graphs and cases have to be to pass."""

import numpy as np
import pytest

from medals_rt.bundle.manifest import CaseParity, GraphParity
from medals_rt.bundle.recipes import Verification
from medals_rt.tools.verify.verify import cases_pass, graph_passes, mean_and_lowest_dsc


@pytest.mark.parametrize(
    ("dsc", "passes"),
    [
        ({"Liver": 1.0, "Spleen": 0.9985}, True),
        ({"Liver": 1.0, "Spleen": 0.98}, False),  # the lowest class
        ({"Liver": 0.998, "Spleen": 0.998}, False),  # the mean
        ({"Liver": 1.0, "Spleen": None}, True),
        ({"Liver": None}, False),  # nothing was compared
        ({"Liver": 0.0}, False),
    ],
)
def test_tolerances_of_cases(dsc: dict[str, float | None], *, passes: bool) -> None:
    allowed = Verification(relative_error=1e-4, mean_dsc=0.999, lowest_class_dsc=0.99)
    scored = [score for score in dsc.values() if score is not None]
    mean = float(np.mean(scored)) if scored else None
    case = CaseParity("x", 1.0, dsc, mean, 0.0)
    assert cases_pass([case], allowed) is passes
    assert not cases_pass([case, CaseParity("y", fault="it failed")], allowed)


def test_the_mean_is_one_over_all_cases() -> None:
    allowed = Verification(relative_error=1e-4, mean_dsc=0.999, lowest_class_dsc=0.99)
    lesion = CaseParity("lesion", 1.0, {"Liver tumors": 0.996}, 0.996, 0.0)
    organs = CaseParity("organs", 1.0, {f"organ {n}": 0.9995 for n in range(9)}, 0.9995, 0.0)
    assert not cases_pass([lesion], allowed)
    assert cases_pass([lesion, organs], allowed)
    assert mean_and_lowest_dsc([lesion, organs]) == (pytest.approx(0.99915), 0.996)


def test_a_case_that_shows_nothing_is_no_error_beside_one_that_does() -> None:
    allowed = Verification(relative_error=1e-4, mean_dsc=0.999, lowest_class_dsc=0.99)
    empty = CaseParity("empty", 1.0, {"Liver": None}, None, 0.0)
    assert cases_pass([empty, CaseParity("liver", 1.0, {"Liver": 1.0}, 1.0, 0.0)], allowed)
    assert not cases_pass([empty, empty], allowed)
    assert not cases_pass([], allowed)
    assert mean_and_lowest_dsc([empty]) is None


def test_tolerances_of_graphs() -> None:
    assert graph_passes(GraphParity("refiner", (1,), 1e-4), 1e-4)
    assert not graph_passes(GraphParity("refiner", (1,), 1.01e-4), 1e-4)
    assert not graph_passes(GraphParity("refiner", (1,), None, fault="not finite"), 1e-4)
    assert graph_passes(GraphParity("window", (1,), 0.5, rms_error=1e-4), 1e-4)
    assert not graph_passes(GraphParity("window", (1,), 0.5, rms_error=2e-4), 1e-4)
