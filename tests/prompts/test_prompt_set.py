"""The prompts of a case: sets, files, and every form in which a caller may have them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from medals_rt.common.choices import KINDS, MODALITIES
from medals_rt.common.errors import InputError, MissingFileError, PromptError
from medals_rt.prompts.classes import by_exact_name, class_groups, classes_of
from medals_rt.prompts.matching import find_class
from medals_rt.prompts.prompt_set import (
    MAX_PROMPTS,
    PromptReading,
    PromptSet,
    as_prompt_set,
    class_prompts,
    numbered,
    parse_prompts,
    read_prompts,
)
from tests.errors import raises


def test_a_set_keeps_order_labels_and_kind() -> None:
    mapping = {"7": "Spleen in abdominal CT", "2": "Liver in CT", "instance_label": 0}
    prompts = parse_prompts(mapping)
    assert prompts.labels == (7, 2)
    assert prompts.kind == "anatomy"
    assert prompts.modality == "CT"
    assert [key.name for key in prompts.class_keys] == ["Spleen", "Liver"]
    assert not prompts.single
    assert prompts.as_mapping() == mapping
    assert parse_prompts(prompts.as_mapping()) == prompts


def test_a_prompt_without_modality_takes_that_of_the_others() -> None:
    prompts = parse_prompts({"1": "Liver in abdominal MRI", "2": "Spleen"})
    assert prompts.class_keys[1] == by_exact_name("MRI", "Spleen")


@pytest.mark.parametrize(
    ("mapping", "code"),
    [
        ({}, "no-prompt"),
        ({"instance_label": 1}, "no-prompt"),
        ({"0": "Liver in CT"}, "label-invalid"),
        ({"-1": "Liver in CT"}, "label-invalid"),
        ({"1.5": "Liver in CT"}, "label-invalid"),
        ({"one": "Liver in CT"}, "label-invalid"),
        ({True: "Liver in CT"}, "label-invalid"),
        ({"70000": "Liver in CT"}, "label-invalid"),
        ({"9" * 5000: "Liver in CT"}, "label-invalid"),
        ({"1": "Liver in CT", "01": "Spleen in CT"}, "label-repeated"),
        ({"1": "Liver in CT", 1: "Spleen in CT"}, "label-repeated"),
        ({"1": "Liver in CT", "2": "hepatic tissue in CT"}, "class-repeated"),
        ({"1": "Liver in CT", "2": "Spleen in MRI"}, "several-modalities"),
        ({"1": 5}, "prompt-not-text"),
        ({"1": "Liver in CT", "instance_label": 2}, "instance-label-invalid"),
        ({"1": "Liver in CT", "instance_label": True}, "instance-label-invalid"),
        ({"1": "Liver in CT", "instance_label": [0]}, "instance-label-invalid"),
        ({"1": "Liver in CT", "instance_label": 0.0}, "instance-label-invalid"),
        ({"1": "Spleen", "2": "Liver"}, "no-modality"),
        ([("1", "Liver in CT")], "prompts-form"),
    ],
)
def test_contradictions_are_refused(mapping: dict[str, object], code: str) -> None:
    with pytest.raises(PromptError) as caught:
        parse_prompts(mapping)
    assert caught.value.code == code
    assert len(str(caught.value).splitlines()) == 1


def test_repeated_prompts_are_numbered() -> None:
    prompts = numbered(["Liver tumors in CT", "Kidney lesions in CT"], "lesion")
    assert prompts.labels == (1, 2)
    assert prompts.kind == "lesion"
    with pytest.raises(PromptError) as caught:
        numbered([], "lesion")
    assert caught.value.code == "no-prompt"


def test_a_prompts_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text('{"1": "Liver in abdominal CT", "instance_label": 0}', encoding="utf-8-sig")
    assert read_prompts(path).labels == (1,)
    with pytest.raises(MissingFileError):
        read_prompts(tmp_path / "none.json")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b'"Liver in CT"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"1": "a", "1": "b"}',
        b"null",
    ],
)
def test_a_broken_prompts_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "prompts.json"
    path.write_bytes(content)
    with pytest.raises(PromptError) as caught:
        read_prompts(path)
    assert len(str(caught.value).splitlines()) == 1


def test_more_prompts_than_the_limit_are_refused() -> None:
    with pytest.raises(PromptError) as caught:
        numbered(["Liver in CT"] * (MAX_PROMPTS + 1), "anatomy")
    assert caught.value.code == "too-many-prompts"


def test_the_stated_modality_reads_the_whole_set() -> None:
    prompts = parse_prompts({"1": "liver", "2": "spleen"}, PromptReading(modality="MRI"))
    assert prompts.modality == "MRI"
    with pytest.raises(PromptError) as caught:
        parse_prompts({"1": "liver", "2": "spleen on CT"}, PromptReading(modality="MRI"))
    assert caught.value.code == "modality-contradiction"


# Any form -----------------------------------------------------------------------------------------

SENTENCE = "Liver in abdominal CT"


@pytest.mark.parametrize(
    "prompts",
    [
        SENTENCE,
        [SENTENCE],
        (SENTENCE,),
        {"1": SENTENCE},
        {1: SENTENCE, "instance_label": 0},
        numbered([SENTENCE], "anatomy"),
    ],
    ids=lambda prompts: type(prompts).__name__,
)
def test_prompts_may_have_any_form(
    prompts: PromptSet | Mapping[str, object] | Sequence[str] | str,
) -> None:
    expected = numbered([SENTENCE], "anatomy")
    assert as_prompt_set(prompts) == expected
    assert as_prompt_set(prompts, "anatomy", PromptReading(modality="CT")) == expected


def test_the_kind_reads_sentences_and_mappings() -> None:
    for prompts in ("Liver tumors", ["Liver tumors"], {"1": "Liver tumors"}):
        found = as_prompt_set(prompts, "lesion", PromptReading(modality="CT"))
        assert found.class_keys == (by_exact_name("CT", "Liver tumors"),)


@pytest.mark.parametrize(
    "prompts",
    [5, b"Liver in CT", ["Liver in CT", 5], [b"Liver"], Path("prompts.json")],
    ids=str,
)
def test_another_type_is_told_what_to_give(prompts: object) -> None:
    with pytest.raises(TypeError, match="a list of sentences, a mapping"):
        as_prompt_set(prompts)  # type: ignore[arg-type]


def test_what_a_file_without_prompts_gives_is_told_apart() -> None:
    with raises(PromptError, "no-prompts"):
        as_prompt_set(None)  # type: ignore[arg-type]


def test_a_modality_is_read_in_any_case_and_by_its_name_in_dicom() -> None:
    assert PromptReading("mr") == PromptReading("MRI")
    with raises(InputError, "modality-unknown", "XR"):
        PromptReading("XR")
    assert numbered(["Liver"], "anatomy", PromptReading("ct")).modality == "CT"
    assert class_prompts("mr", "kidneys").modality == "MRI"
    assert by_exact_name("ct", "Liver") == by_exact_name("CT", "Liver")
    assert class_groups("ct") == class_groups("CT") != ()
    assert find_class("Lesion", "lesion", "pt") == find_class("Lesion", "lesion", "PET")


@pytest.mark.parametrize(
    ("kind", "reading", "code"),
    [
        ("lesion", PromptReading(), "kind-contradiction"),
        (None, PromptReading(modality="MRI"), "modality-contradiction"),
        ("organ", PromptReading(), "kind-unknown"),
    ],
)
def test_a_contradicted_set_is_refused(kind: str | None, reading: PromptReading, code: str) -> None:
    read = numbered([SENTENCE], "anatomy")
    for prompts in (read, read.as_mapping()):
        with pytest.raises(InputError) as caught:
            as_prompt_set(prompts, kind, reading)
        assert caught.value.code == code


def names(prompts: PromptSet) -> list[str]:
    return [key.name for key in prompts.class_keys]


def codes(prompts: PromptSet) -> list[str]:
    return [note.code for note in prompts.notes]


def test_groups_are_numbered_in_order_and_no_class_twice() -> None:
    found = class_prompts("CT", ["kidneys", "Urinary-Tract"])
    assert names(found) == [
        "Right kidney",
        "Left kidney",
        "Left kidney cyst",
        "Right kidney cyst",
        "Urinary bladder",
    ]
    assert found.labels == (1, 2, 3, 4, 5)
    assert found.notes == ()
    assert parse_prompts(found.as_mapping()).class_keys == found.class_keys


def test_groups_follow_what_is_asked_for_one_by_one() -> None:
    stated = parse_prompts({"7": "Left kidney in CT", "lesions": {"9": "Liver tumors in CT"}})
    found = class_prompts("CT", ["kidneys"], beside=stated)
    assert dict(zip(found.labels, names(found), strict=True)) == {
        7: "Left kidney",
        10: "Right kidney",
        11: "Left kidney cyst",
        12: "Right kidney cyst",
        9: "Liver tumors",
    }
    assert [part.kind for part in found.parts] == ["anatomy", "lesion"]


def test_what_the_model_lacks_is_left_out_with_a_note() -> None:
    covered = {by_exact_name("CT", name).bank_key for name in ("Liver", "Left kidney")}
    found = class_prompts("CT", ["abdominal organs"], covered=covered)
    assert names(found) == ["Liver", "Left kidney"]
    (note,) = found.notes
    assert note.code == "classes-not-covered"
    assert "13 of 15" in note.text
    with pytest.raises(PromptError) as caught:
        class_prompts("CT", ["vertebrae"], covered=covered)
    assert caught.value.code == "no-class-covered"


@pytest.mark.parametrize(
    ("modality", "kind", "count", "found_kind", "code"),
    [
        ("CT", "anatomy", 126, "anatomy", "other-kind-left-out"),
        ("CT", "lesion", 11, "lesion", "other-kind-left-out"),
        ("MRI", "anatomy", 76, "anatomy", "other-kind-left-out"),
        ("PET", "anatomy", 1, "lesion", "only-other-kind"),
        ("Microscopy", "anatomy", 9, "lesion", "only-other-kind"),
    ],
)
def test_all_classes_of_a_kind(
    modality: str, kind: str, count: int, found_kind: str, code: str
) -> None:
    found = class_prompts(modality, kind=kind)
    assert (len(found.prompts), found.kind, codes(found)) == (count, found_kind, [code])
    assert found.notes[0].severity == "info"


def test_the_sentence_of_every_class_names_it() -> None:
    for modality in MODALITIES:
        for kind in KINDS:
            if classes_of(modality, kind):
                found = class_prompts(modality, kind=kind)
                assert parse_prompts(found.as_mapping()).class_keys == found.class_keys


@pytest.mark.parametrize(
    ("modality", "group", "code"),
    [("CT", "abdominal orgens", "group-unknown"), ("PET", "kidneys", "group-empty")],
)
def test_unusable_groups(modality: str, group: str, code: str) -> None:
    with pytest.raises(InputError) as caught:
        class_prompts(modality, [group])
    assert caught.value.code == code


def test_groups_are_of_anatomy() -> None:
    with pytest.raises(PromptError) as caught:
        class_prompts("CT", ["kidneys"], kind="lesion")
    assert caught.value.code == "groups-are-anatomy"
