"""Sentences to classes: the 2,715 known ones, phrasings of our own, and every class by template."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medals_rt.common.errors import MissingFileError, PromptError
from medals_rt.prompts.classes import ClassKey, all_classes, by_bank_key, by_exact_name
from medals_rt.prompts.matching import assign_roles, find_modality, known_sentences, match_words
from medals_rt.prompts.prompt_set import describe, find_class, numbered, parse_prompts, read_prompts
from medals_rt.prompts.tokenization import tokenize
from tests.paths import DATA, GOLDEN


def known() -> Iterator[tuple[str, ClassKey]]:
    """Golden sentences with their class."""
    table = json.loads((GOLDEN / "prompt_classes.json").read_text())
    for key, texts in table.items():
        bank_key, name = key.split("|")
        found = by_bank_key(bank_key)
        assert found.name == name
        for text in texts:
            yield text, found


def test_known_sentences_are_read_exactly() -> None:
    sentences = list(known())
    assert len(sentences) == 2715
    wrong = [text for text, key in sentences if find_class(text, key.kind).class_key != key]
    assert not wrong


def test_the_rules_alone_never_misread_a_known_sentence() -> None:
    refused = []
    for text, key in known():
        try:
            tokens = tokenize(text)
            modality = find_modality(tokens, repr(text), None)
            words = assign_roles(tokens, modality, tolerant=key.kind == "anatomy")
            assert match_words(words, repr(text), modality, key.kind).class_key == key
        except PromptError:
            refused.append(text)
    assert set(refused) == set(known_sentences()), "the table holds what the rules refuse, no more"
    assert len(refused) <= 40


def phrasings() -> list[tuple[str, str, str | None]]:
    rows = json.loads((DATA / "prompt_phrasings.json").read_text())
    return [tuple(row) for row in rows]


def test_no_phrasing_is_misread_and_few_are_refused() -> None:
    wrong, refused, named = [], [], 0
    for kind, text, expected in phrasings():
        named += expected is not None
        try:
            key = find_class(text, kind).class_key
        except PromptError:
            if expected is not None:
                refused.append((text, expected.endswith("?")))
            continue
        modality, _, name = (expected or ":").rstrip("?").partition(":")
        if (key.modality, key.name) != (modality, name):
            wrong.append((text, str(key)))
    assert not wrong
    assert named >= 500
    assert not [text for text, fair in refused if not fair]
    assert len(refused) / named < 0.06


TEMPLATES = (
    "{name} on {modality}",
    "{modality} scan showing the {name}",
    "segment the {name} in this {modality}",
    "Please find the {name} ({modality}).",
    "{modality}: {name}",
    "{name}; {modality}",
)


@pytest.mark.parametrize("key", all_classes(), ids=lambda key: key.bank_key)
def test_every_class_is_found_by_its_name(key: ClassKey) -> None:
    for template in TEMPLATES:
        for name in {key.name, key.name.lower(), key.name.upper(), key.name.replace(" ", "-")}:
            text = template.format(name=name, modality=key.modality)
            assert find_class(text, key.kind).class_key == key, text


@pytest.mark.parametrize(
    "key", [key for key in all_classes() if {"Left", "Right"} & set(key.name.split())], ids=str
)
def test_the_side_may_stand_behind(key: ClassKey) -> None:
    side = key.name.split()[0]
    rest = key.name.partition(" ")[2]
    for text in (
        f"{rest}, {side.lower()}, {key.modality}",
        f"{rest} ({side.lower()}) on {key.modality}",
        f"{side}-sided {rest} in {key.modality}",
        f"{rest} on the {side.lower()} side, {key.modality}",
    ):
        assert find_class(text, key.kind).class_key == key, text
    other = {"Left": "right", "Right": "left"}[side]
    for text in (f"{rest} on {key.modality}", f"{side} and {other} {rest} on {key.modality}"):
        with pytest.raises(PromptError):
            find_class(text, key.kind)


def test_plurals_mean_the_same_where_the_singular_is_one_thing() -> None:
    for key in all_classes():
        last = key.name.rpartition(" ")[2]
        if last[-1] in "aeioustx" or last[-1].isdigit() or last in {"left", "right"}:
            continue
        assert find_class(f"{key.name}s on {key.modality}", key.kind).class_key == key, key


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    for kind in ("anatomy", "lesion"):
        message = ""
        try:
            find_class(text, kind, "CT")
        except PromptError as error:
            message = str(error)
        assert len(message.splitlines()) <= 1


NAMES = sorted({key.name for key in all_classes() if key.modality == "CT"})


@given(st.sampled_from(NAMES), st.sampled_from(NAMES))
def test_two_classes_in_one_sentence_are_never_read_as_a_third(one: str, two: str) -> None:
    try:
        key = find_class(f"{one} and {two} on CT", "anatomy").class_key
    except PromptError:
        return
    assert key.name in {one, two, "Portal vein and splenic vein", "Prostate/uterus"}
    assert one == two or {one, two} <= {"Prostate", "Prostate/uterus", "Thyroid", "Thyroid gland"}


# Messages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kidney on CT", "'CT Right kidney' or 'CT Left kidney'"),
        ("both lungs on CT", "'CT Left lung' or 'CT Right lung'"),
        ("lefft kidny on CT", "'CT Left kidney'"),
        ("liver vessels on CT", "'vessels'"),
        ("liver and spleen on CT", "'CT Liver' and 'CT Spleen'"),
        ("liver in CT and MRI", "CT ('CT') and MRI ('MRI')"),
        ("liver", "names no modality"),
        ("right atrial appendage on CT", "'CT Left atrial appendage'"),
        ("liver tumor on CT", "kind lesion"),
        ("liver on an x-ray", "another kind"),
        ("abdominal aorta on CT", "'abdominal' part of 'CT Aorta'"),
        ("left kidney with cyst on CT", "'with'"),
        ("  ", "is empty"),
        ("liver on CT " * 100, "longer than"),
    ],
)
def test_refusals_say_what_and_what_to_do(text: str, said: str) -> None:
    with pytest.raises(PromptError) as caught:
        find_class(text, "anatomy")
    assert said in str(caught.value)


def test_an_unknown_class_gets_three_nearest() -> None:
    with pytest.raises(PromptError, match=r"the nearest are: '[^']+', '[^']+', '[^']+'$"):
        find_class("blob on CT", "anatomy")


def test_a_match_describes_itself() -> None:
    match = find_class("left renal cyst on CT", "anatomy")
    assert describe(match) == {
        "modality": "CT",
        "class": "Left kidney cyst",
        "id": 85,
        "matched": "left renal cyst",
    }


# Sets ---------------------------------------------------------------------------------------------


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
    ("mapping", "said"),
    [
        ({}, "no prompt"),
        ({"instance_label": 1}, "no prompt"),
        ({"0": "Liver in CT"}, "label '0'"),
        ({"-1": "Liver in CT"}, "label '-1'"),
        ({"1.5": "Liver in CT"}, "label '1.5'"),
        ({"one": "Liver in CT"}, "label 'one'"),
        ({True: "Liver in CT"}, "label True"),
        ({"70000": "Liver in CT"}, "label 70000"),
        ({"9" * 5000: "Liver in CT"}, "isn't a label value"),
        ({"1": "Liver in CT", "01": "Spleen in CT"}, "label 1 is given twice"),
        ({"1": "Liver in CT", 1: "Spleen in CT"}, "label 1 is given twice"),
        ({"1": "Liver in CT", "2": "hepatic tissue in CT"}, "both mean 'CT Liver'"),
        ({"1": "Liver in CT", "2": "Spleen in MRI"}, "2 modalities: CT (label 1), MRI (label 2)"),
        ({"1": 5}, "is 5; write a sentence"),
        ({"1": "Liver in CT", "instance_label": 2}, "instance_label is 2"),
        ({"1": "Liver in CT", "instance_label": True}, "instance_label is True"),
        ({"1": "Liver in CT", "instance_label": [0]}, "instance_label is [0]"),
        ({"1": "Liver in CT", "instance_label": 0.0}, "instance_label is 0.0"),
        ({"1": "Spleen", "2": "Liver"}, "names no modality"),
        ([("1", "Liver in CT")], "prompts are a list"),
    ],
)
def test_contradictions_are_refused(mapping: dict[str, object], said: str) -> None:
    with pytest.raises(PromptError) as caught:
        parse_prompts(mapping)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_repeated_prompts_are_numbered() -> None:
    prompts = numbered(["Liver tumors in CT", "Kidney lesions in CT"], "lesion")
    assert prompts.labels == (1, 2)
    assert prompts.kind == "lesion"
    with pytest.raises(PromptError, match="no prompt"):
        numbered([], "lesion")


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
