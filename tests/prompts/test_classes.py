"""The 243 classes and how they are found by name."""

from collections import Counter

import pytest

from medals_rt.common.errors import InputError
from medals_rt.prompts.classes import (
    KINDS,
    MODALITIES,
    all_classes,
    by_bank_key,
    by_exact_name,
    by_policy_name,
    classes_of,
    nearest_names,
)


def test_counts_are_those_of_the_released_models() -> None:
    counts = Counter((key.modality, key.kind) for key in all_classes())
    assert counts == {
        ("CT", "anatomy"): 126,
        ("CT", "lesion"): 11,
        ("MRI", "anatomy"): 76,
        ("MRI", "lesion"): 10,
        ("US", "anatomy"): 9,
        ("US", "lesion"): 1,
        ("PET", "lesion"): 1,
        ("Microscopy", "lesion"): 9,
    }


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_ids_count_from_one_within_modality_and_kind(modality: str, kind: str) -> None:
    ids = [key.id for key in classes_of(modality, kind)]
    assert ids == list(range(1, len(ids) + 1))


def test_keys_lead_back() -> None:
    for key in all_classes():
        assert by_bank_key(key.bank_key) == key
        assert by_policy_name(key.policy_name, key.kind) == key
        assert by_exact_name(key.modality, key.name.upper(), key.kind) == key


def test_a_name_of_both_kinds_needs_its_kind() -> None:
    with pytest.raises(InputError, match="both kinds"):
        by_policy_name("MRI_Vertebrae")


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("lefft kidny", "CT Left kidney"),
        ("spleeen", "CT Spleen"),
        ("gall bladder", "CT Gallbladder"),
    ],
)
def test_misspelled_names_find_the_meant_one_first(text: str, nearest: str) -> None:
    names = nearest_names(text, "CT", "anatomy")
    assert names[0] == nearest
    assert len(names) == 3


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="Left kidney"):
        by_exact_name("CT", "Left kidny")
    with pytest.raises(InputError, match="modality/kind/id"):
        by_bank_key("CT/anatomy/999")
    with pytest.raises(InputError, match="no modality 'XR'"):
        classes_of("XR")
    with pytest.raises(InputError, match="no kind 'organ'"):
        classes_of("CT", "organ")
