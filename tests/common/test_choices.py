"""Closed lists, and the checks against them."""

import pytest

from medals_rt.common.choices import (
    CPU_RUNNERS,
    KINDS,
    MODALITIES,
    RUNNER_KINDS,
    check_kind,
    modality_named,
)
from medals_rt.common.errors import InputError
from tests.errors import raises


def test_runners_of_the_processor_are_runners() -> None:
    assert set(CPU_RUNNERS) < set(RUNNER_KINDS)


def test_known_choices_and_none_pass() -> None:
    for modality in (*MODALITIES, None):
        assert modality_named(modality) == modality
    for kind in (*KINDS, None):
        check_kind(kind)


@pytest.mark.parametrize(
    ("name", "modality"),
    [("MR", "MRI"), ("mr", "MRI"), (" ct", "CT"), ("pt", "PET"), ("Pet", "PET"), ("us", "US")],
)
def test_a_modality_is_known_in_any_case_and_by_the_name_of_dicom(name: str, modality: str) -> None:
    assert modality_named(name) == modality


@pytest.mark.parametrize("name", ["XR", ""])
def test_a_name_of_no_modality_is_refused(name: str) -> None:
    with raises(InputError, "modality-unknown", "CT, MRI"):
        modality_named(name)


@pytest.mark.parametrize("kind", ["organ", "Lesion", ""])
def test_an_unknown_kind_is_refused(kind: str) -> None:
    with raises(InputError, "kind-unknown", "anatomy, lesion"):
        check_kind(kind)
