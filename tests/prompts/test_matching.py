"""Sentences to classes: the 2,715 known ones, phrasings of our own, and every class by template."""

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medals_rt.common.errors import InputError, PromptError
from medals_rt.prompts.classes import ClassKey, all_classes, by_bank_key
from medals_rt.prompts.matching import (
    find_class,
    free_text,
    known_sentences,
    match_words,
    readings,
)
from medals_rt.prompts.prompt_set import describe
from medals_rt.prompts.tokenization import prompt_words, tokenize
from medals_rt.prompts.word_roles import assign_roles, find_modality
from tests.errors import raises
from tests.paths import DATA, GOLDEN


def known() -> Iterator[tuple[str, ClassKey]]:
    """Golden sentences with their class."""
    table = json.loads((GOLDEN / "prompt_classes.json").read_text(encoding="utf-8"))
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
    rows = json.loads((DATA / "prompt_phrasings.json").read_text(encoding="utf-8"))
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


# Traps and natural phrasings ----------------------------------------------------------------------


Row = tuple[str, str, str | None, str | None]


def rows(name: str) -> dict[str, list[Row]]:
    """Rows of a data file by theme: kind, sentence, stated modality, class or None."""
    table = json.loads((DATA / name).read_text(encoding="utf-8"))
    return {theme: [tuple(row) for row in rows] for theme, rows in table.items()}


def read(kind: str, text: str, modality: str | None) -> str | None:
    """`MODALITY:class`, or None where the sentence is refused."""
    try:
        key = find_class(text, kind, modality).class_key
    except PromptError:
        return None
    return f"{key.modality}:{key.name}"


TRAPS = rows("prompt_traps.json")
NATURAL = rows("prompt_natural.json")


def test_there_are_enough_traps_and_natural_sentences() -> None:
    texts = [row[:3] for table in (TRAPS, NATURAL) for part in table.values() for row in part]
    assert len(texts) == len(set(texts))
    assert sum(map(len, TRAPS.values())) >= 1000
    assert sum(map(len, NATURAL.values())) >= 300


@pytest.mark.parametrize("theme", TRAPS)
def test_no_trap_leads_to_a_wrong_organ(theme: str) -> None:
    wrong = [
        (text, found)
        for kind, text, modality, expected in TRAPS[theme]
        if (found := read(kind, text, modality)) not in {None, expected}
    ]
    assert wrong == []


def test_natural_sentences_are_understood() -> None:
    refused = []
    for part in NATURAL.values():
        for kind, text, modality, expected in part:
            found = read(kind, text, modality)
            assert found in {None, expected}, text
            if found is None:
                refused.append(text)
    share = 1 - len(refused) / sum(map(len, NATURAL.values()))
    assert share >= 0.97, refused


REFUSING = (
    "no {name} on {modality}",
    "everything except the {name} on {modality}",
    "not the {name}, {modality}",
    "{modality} without the {name}",
    "fat around the {name} on {modality}",
    "structure behind the {name}, {modality}",
    "needle in the {name} on {modality}",
    "artifact in the {name} on {modality}",
)


@pytest.mark.parametrize("template", REFUSING)
def test_what_is_not_the_class_is_refused_for_every_class(template: str) -> None:
    read_anyway = [
        str(key)
        for key in all_classes()
        if read(key.kind, template.format(name=key.name, modality=key.modality), None) is not None
    ]
    assert read_anyway == []


# Sides of the picture -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "kidney on image left, CT",
        "image-left kidney on CT",
        "screen-left kidney on CT",
        "lung on the left half of the CT slice",
        "lung on the right edge of the image, CT",
        "kidney left in the axial view, CT",
        "kidney shown on the left, CT",
        "kidney in the left field of view, CT",
        "left kidney from the viewer's perspective, CT",
    ],
)
def test_a_side_of_the_picture_is_not_taken_for_the_patients(text: str) -> None:
    with raises(PromptError, "side-of-display"):
        find_class(text, "anatomy")


@pytest.mark.parametrize(
    "text",
    [
        "Left lung in CT image",
        "lung, left, CT image",
        "lung left in axial CT images",
        "please show the left lung in this CT slice",
        "left lung displayed in CT",
        "In this image, left lung, CT",
    ],
)
def test_a_side_of_the_patient_may_stand_in_a_sentence_about_an_image(text: str) -> None:
    assert find_class(text, "anatomy").class_key.name == "Left lung"


# The modality that is stated apart from the sentence ----------------------------------------------


def test_a_stated_modality_is_heard() -> None:
    for modality in ("CT", "MRI"):
        assert find_class("liver, portal venous phase", "anatomy", modality).modality == modality
        assert find_class("the spleen", "anatomy", modality).modality == modality
    assert find_class("liver on PET/CT", "anatomy", "CT").modality == "CT"
    assert find_class("lesion on PET/CT", "lesion", "PET").modality == "PET"


@pytest.mark.parametrize(
    ("text", "modality", "code"),
    [
        ("liver on CT", "MRI", "modality-contradiction"),
        ("liver on T2w", "CT", "modality-contradiction"),
        ("liver on PET/CT", "MRI", "several-modalities"),
        ("liver on x-ray", "CT", "modality-unsupported"),
        ("liver, portal venous phase", None, "no-modality"),
        ("liver", "XR", "modality-unknown"),
    ],
)
def test_a_contradicted_modality_is_refused(text: str, modality: str | None, code: str) -> None:
    with raises(InputError, code):
        find_class(text, "anatomy", modality)
    with raises(InputError, code):
        free_text(text, "anatomy", modality)


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("kidney on CT", "side-missing"),
        ("both lungs on CT", "both-sides"),
        ("lefft kidny on CT", "no-class"),
        ("liver vessels on CT", "word-unexplained"),
        ("liver and spleen on CT", "several-classes"),
        ("liver in CT and MRI", "several-modalities"),
        ("liver", "no-modality"),
        ("right atrial appendage on CT", "side-contradiction"),
        ("liver tumor on CT", "wrong-kind"),
        ("liver on an x-ray", "modality-unsupported"),
        ("abdominal aorta on CT", "part-of-class"),
        ("aorta, thoracic, CT", "part-of-class"),
        ("left kidney with cyst on CT", "relation"),
        ("contrast in the stomach, CT", "relation"),
        ("portal vein or splenic vein on CT", "relation"),
        ("left ventricle on head MRI", "region-contradiction"),
        ("axial CT of the abdomen", "no-structure"),
        ("  ", "prompt-empty"),
        ("\ud800 liver on CT", "prompt-not-unicode"),
        ("liver on CT " * 100, "prompt-too-long"),
    ],
)
def test_refusals_have_codes_and_one_line(text: str, code: str) -> None:
    with raises(PromptError, code) as caught:
        find_class(text, "anatomy")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("kidney on CT", ["'CT Right kidney'", "'CT Left kidney'"]),
        ("lefft kidny on CT", ["'CT Left kidney'"]),
        ("liver vessels on CT", ["'vessels'", "'CT Liver'"]),
        ("liver and spleen on CT", ["'CT Liver' and 'CT Spleen'"]),
        ("right atrial appendage on CT", ["'right'", "'CT Left atrial appendage'"]),
        ("left ventricle on head MRI", ["'head'", "'MRI Left ventricle'"]),
        ("left eye on CT", ["are: 'CT Left anterior segment of the eyeball'"]),
        ("right psoas on CT", ["are: 'CT Right iliopsoas'"]),
        ("HCC on CT", ["are: 'CT Liver tumors (kind lesion)'"]),
    ],
)
def test_refusals_name_what_was_found_and_the_nearest(text: str, named: list[str]) -> None:
    with pytest.raises(PromptError) as caught:
        find_class(text, "anatomy")
    for said in named:
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("HCC on CT", "CT Liver tumors"),
        ("RCC on CT", "CT Kidney lesions"),
        ("PDAC, CT", "CT Pancreas tumors"),
        ("glioblastoma on MRI", "MRI Brain tumor"),
    ],
)
def test_a_diagnosis_suggests_its_class_first(text: str, nearest: str) -> None:
    with raises(PromptError, "no-class") as caught:
        find_class(text, "lesion")
    assert f"the nearest are: '{nearest}'" in str(caught.value)


def test_suggestions_keep_the_side_and_are_not_led_by_it() -> None:
    for side, other in (("left", "Right"), ("right", "Left")):
        for organ in ("eye", "hand", "ovary", "psoas", "kidny"):
            with pytest.raises(PromptError) as caught:
                find_class(f"{side} {organ} on CT", "anatomy")
            assert f"'CT {other}" not in str(caught.value)


def test_what_is_like_no_class_gets_none_that_is_far() -> None:
    for text in ("blob on CT", "膝 on CT"):
        with raises(PromptError, "no-class", "English names, such as 'CT Liver'") as caught:
            find_class(text, "anatomy")
        assert "nearest" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Leber im CT", "'CT Liver'"),
        ("rein gauche", "'CT Right kidney', 'CT Left kidney'"),
        ("Hígado en TC", "'CT Liver'"),
        ("milza", "'CT Spleen'"),
        ("PULMÃO DIREITO", "'CT Left lung', 'CT Right lung'"),
    ],
)
def test_organs_in_other_languages_are_suggested_not_taken(text: str, names: str) -> None:
    with raises(PromptError, "no-class") as caught:
        find_class(text, "anatomy", "CT")
    assert str(caught.value).endswith(f"the nearest are: {names}")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Brainstem in MR", "'CT Brainstem', and there is none of it in MRI"),
        ("left atrium CT", "'MRI Left atrium' or 'US Left atrium', and there is none of it in CT"),
    ],
)
def test_a_class_of_other_modalities_is_named(text: str, names: str) -> None:
    for read in (readings, lambda text: find_class(text, "anatomy")):
        with raises(PromptError, "wrong-modality", f"names a class of other images, {names}"):
            read(text)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("LLL", ["CT Lung lower lobe left"]),
        ("heart", ["CT Heart", "MRI Heart", "US Heart"]),
        ("heart in MR", ["MRI Heart"]),
        ("brain tumor", ["MRI Brain tumor", "US Brain tumor"]),
    ],
)
def test_a_sentence_that_leaves_the_modality_open_has_several_readings(
    text: str, names: list[str]
) -> None:
    assert [f"{found.modality} {found.class_key.name}" for found in readings(text)] == names


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("kidneys", "side-missing"),
        ("Leber", "no-class"),
        ("heart in CT and MR", "several-modalities"),
    ],
)
def test_a_sentence_without_a_reading_is_refused_for_what_is_nearest(text: str, code: str) -> None:
    with raises(PromptError, code):
        readings(text)


def test_a_match_describes_itself() -> None:
    match = find_class("left renal cyst on CT", "anatomy")
    assert describe(match) == {
        "modality": "CT",
        "class": "Left kidney cyst",
        "id": 85,
        "matched": "left renal cyst",
    }


def test_every_suggested_class_exists() -> None:
    names = {key.name for key in all_classes()}
    lists = prompt_words().suggestions | prompt_words().other_languages
    suggested = {name for names in lists.values() for name in names}
    assert suggested <= names
