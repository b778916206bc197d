"""The 243 classes and how they are found by name."""

from collections import Counter

import pytest

from medals_rt.common.choices import KINDS, MODALITIES
from medals_rt.common.errors import InputError
from medals_rt.prompts.classes import (
    all_classes,
    by_bank_key,
    by_exact_name,
    class_groups,
    classes_of,
    classes_of_group,
    nearest_names,
)
from tests.errors import raises


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
        assert by_exact_name(key.modality, key.name.upper(), key.kind) == key


def test_a_name_of_both_kinds_needs_its_kind() -> None:
    with raises(InputError, "kind-missing"):
        by_exact_name("MRI", "Vertebrae")


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


@pytest.mark.parametrize("text", ["knee cap", "rein", "toe", "膝"])
def test_what_is_like_no_name_gets_none(text: str) -> None:
    assert nearest_names(text, "CT", "anatomy") == ()


def test_the_side_leads_no_suggestion() -> None:
    names = nearest_names("kidny", "CT", "anatomy", side="left")
    assert names[0] == "CT Left kidney"
    assert not [name for name in names if "Right" in name]


def test_unknown_names_are_refused() -> None:
    with raises(InputError, "class-unknown", "Left kidney"):
        by_exact_name("CT", "Left kidny")
    with raises(InputError, "bank-key-unknown"):
        by_bank_key("CT/anatomy/999")
    with raises(InputError, "modality-unknown"):
        classes_of("XR")
    with raises(InputError, "kind-unknown"):
        classes_of("CT", "organ")


# Groups -------------------------------------------------------------------------------------------


def test_every_anatomy_class_is_in_a_group() -> None:
    pairs = ((modality, each) for modality in MODALITIES for each in class_groups(modality))
    grouped = {key for modality, each in pairs for key in each.keys(modality)}
    assert grouped == set(classes_of(kind="anatomy"))


def test_groups_hold_known_classes_once_and_have_their_own_names() -> None:
    known = {key.name for key in classes_of(kind="anatomy")}
    names = [name for group in class_groups() for name in (group.name, *group.also)]
    assert len(names) == len(set(names))
    for group in class_groups():
        assert set(group.classes) <= known
        assert len(group.classes) == len(set(group.classes))


def test_a_group_lists_its_classes_by_id() -> None:
    lobes = classes_of_group("Lungs_and-lobes", "CT")
    assert [key.id for key in lobes] == [46, 47, 75, 76, 77, 78, 79]
    assert classes_of_group("lungs", "MRI") == tuple(
        by_exact_name("MRI", name) for name in ("Left lung", "Right lung")
    )
    assert len(classes_of_group("vertebrae", "CT")) == 26


def test_groups_of_a_modality_are_those_it_has_classes_of() -> None:
    assert {group.name for group in class_groups("US")} >= {"heart chambers", "calf muscles"}
    assert class_groups("PET") == ()
    for modality in MODALITIES:
        for group in class_groups(modality):
            assert classes_of_group(group.name, modality)


@pytest.mark.parametrize(
    ("name", "modality", "code", "said"),
    [
        ("abdominal organ", "CT", "group-unknown", "'abdominal organs'"),
        ("vertebra", "CT", "group-unknown", "'vertebrae'"),
        ("ribs", "CT", "group-unknown", "nearest"),
        ("bones", "US", "group-empty", "'calf muscles'"),
        ("bones", "PET", "group-empty", "none"),
        ("bones", "XR", "modality-unknown", "CT"),
    ],
)
def test_a_group_that_is_not_there_is_refused(
    name: str, modality: str, code: str, said: str
) -> None:
    with raises(InputError, code, said):
        classes_of_group(name, modality)
