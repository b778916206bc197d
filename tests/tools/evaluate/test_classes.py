"""What labels are called, and which belong together."""

import numpy as np
import pytest

from medals_rt.common.errors import CaseError
from medals_rt.io.case import LabelFile
from medals_rt.prompts.prompt_set import parse_prompts
from medals_rt.tools.evaluate.classes import (
    LabelNames,
    names_in,
    names_of_prompts,
    pair_labels,
    shared_label_notes,
)
from tests.errors import raises


def file(**fields: object) -> LabelFile:
    return LabelFile(np.zeros((1, 1, 1), np.uint8), None, None, **fields)


def named(**names: int) -> LabelNames:
    texts = {label: name.replace("_", " ") for name, label in names.items()}
    return names_in(file(segment_names=texts))


def test_prompts_name_labels_by_class() -> None:
    stored = {"1": "Liver tumors in CT", "instance_label": 1}
    for names in (names_in(file(prompts=stored)), names_of_prompts(parse_prompts(stored))):
        assert names.names == {1: "Liver tumors"}
        assert (names.classes, names.kind) == ({1}, "lesion")


def test_segments_are_known_by_any_words_for_a_class() -> None:
    names = named(liver=1, hepar=2, thing=3, label_4=4)
    assert names.names == {1: "Liver", 2: "Liver", 3: "thing"}
    assert names.classes == {1, 2}
    assert names.kind is None
    assert not names.are_unique()
    assert named(liver=1, spleen=2).kind == "anatomy"
    assert named(Liver_tumors=1).kind == "lesion"
    instances = named(Liver_tumors_1=1, Liver_tumors_2=2)
    assert (set(instances.names.values()), instances.kind) == ({"Liver tumors"}, "lesion")


def test_a_file_without_names_names_nothing() -> None:
    assert not names_in(file())
    assert not names_in(None)
    assert names_in(file(prompts={"2": "odd thing", "instance_label": 1})).kind == "lesion"


@pytest.mark.parametrize(
    ("predicted", "reference"),
    [
        (named(), named(liver=1)),
        (named(liver=1), named()),
        (named(liver=1), named(Liver=1, spleen=2)),
        (named(liver=1, spleen=2), named(spleen=2)),
    ],
)
def test_values_are_kept_where_names_agree(predicted: LabelNames, reference: LabelNames) -> None:
    pairing = pair_labels("x", predicted, reference, present=((1, 2), (1, 2)))
    assert (pairing.moved, pairing.notes) == ({}, ())


def test_labels_are_paired_by_class() -> None:
    predicted, reference = named(liver=1, spleen=2, pancreas=3), named(left_lung=1, liver=2)
    pairing = pair_labels("x", predicted, reference, present=((1, 2, 3), (1, 2)))
    assert pairing.moved[1] == 2
    # What the reference doesn't name must meet none of its labels.
    assert len({2, pairing.moved[2], pairing.moved[3]} - {1}) == 3
    assert [note.code for note in pairing.notes] == ["labels-paired-by-class"]
    # A class under another value alone, without a contradiction, is paired too.
    assert pair_labels("x", named(liver=1), named(liver=6)).moved == {1: 6}


@pytest.mark.parametrize(
    ("predicted", "reference", "present"),
    [
        (named(liver=1), named(odd_thing=1), ((1,), (1,))),  # perhaps the same
        (named(liver=1), named(spleen=1, liver=2), ((1, 9), (1, 2))),  # 9 has no name
        (named(liver=1, hepar=2), named(spleen=1, liver=2), ((1, 2), (1, 2))),  # which liver?
    ],
)
def test_doubt_is_refused(predicted: LabelNames, reference: LabelNames, present: tuple) -> None:
    with raises(CaseError, "label-names-differ"):
        pair_labels("x", predicted, reference, present=present)
    pairing = pair_labels("x", predicted, reference, present=present, by_value=True)
    assert pairing.moved == {}
    (note,) = pairing.notes
    assert (note.code, note.severity) == ("label-names-differ", "warning")


def test_nothing_in_common_is_refused_with_both_names() -> None:
    with raises(CaseError, "no-class-shared", "Liver", "Left lung"):
        pair_labels("x", named(liver=1), named(left_lung=1), present=((1,), (1,)))


def test_no_shared_value_is_a_warning() -> None:
    (note,) = shared_label_notes("x", [1], [2, 3], {1: "Liver"})
    assert (note.code, note.severity) == ("no-label-shared", "warning")
    assert "1 (Liver)" in note.text
    for ours, theirs in (([], [1]), ([1], []), ([1, 2], [2])):
        assert shared_label_notes("x", ours, theirs, {}) == ()
