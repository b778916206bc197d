"""Closed lists, and the checks against them."""

from typing import get_args

import pytest

from medals_rt.common.choices import (
    KINDS,
    MODALITIES,
    MODALITY_OF_DICOM,
    MODALITY_TRAITS,
    DicomModality,
    check_kind,
    modality_named,
    traits_of,
    traits_of_dicom,
)
from medals_rt.common.errors import InputError
from tests.errors import raises


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


def test_every_modality_has_traits_and_every_name_of_dicom_one_modality() -> None:
    assert tuple(MODALITY_TRAITS) == MODALITIES
    assert set(MODALITY_OF_DICOM) == set(get_args(DicomModality))
    named = [each for each in MODALITY_TRAITS.values() if each.dicom is not None]
    assert len(MODALITY_OF_DICOM) == len(named)


def test_traits_are_asked_by_any_name() -> None:
    assert traits_of("ct") is traits_of("CT") is traits_of_dicom("CT")
    assert traits_of("CT").in_hounsfield
    assert not traits_of("Microscopy").has_body
    assert not traits_of_dicom("NM").in_hounsfield
    with raises(InputError, "modality-unknown", "XR"):
        traits_of("XR")
