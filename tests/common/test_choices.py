"""Closed lists, and the checks against them."""

import pytest

from medals_rt.common.choices import (
    CPU_RUNNERS,
    KINDS,
    MODALITIES,
    RUNNER_KINDS,
    check_kind,
    check_modality,
)
from medals_rt.common.errors import InputError


def test_runners_of_the_processor_are_runners() -> None:
    assert set(CPU_RUNNERS) < set(RUNNER_KINDS)


def test_known_choices_and_none_pass() -> None:
    for modality in (*MODALITIES, None):
        check_modality(modality)
    for kind in (*KINDS, None):
        check_kind(kind)


@pytest.mark.parametrize("modality", ["ct", "XR", ""])
def test_an_unknown_modality_is_refused(modality: str) -> None:
    with pytest.raises(InputError, match="choose from CT, MRI") as caught:
        check_modality(modality)
    assert caught.value.code == "modality-unknown"


@pytest.mark.parametrize("kind", ["organ", "Lesion", ""])
def test_an_unknown_kind_is_refused(kind: str) -> None:
    with pytest.raises(InputError, match="choose from anatomy, lesion") as caught:
        check_kind(kind)
    assert caught.value.code == "kind-unknown"
