"""The bank that the text encoder makes: all classes, the known sentences, nothing lost silently."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from medals_export.known_sentences import read_sentences
from medals_export.text_bank import build_bank, load_bank, save_bank
from medals_export.text_encoder import load_text_encoder
from medals_rt.common.errors import InputError, MissingFileError
from medals_rt.prompts.classes import (
    all_classes,
    by_bank_key,
    by_exact_name,
    canonical_sentence,
)
from medals_rt.prompts.matching import find_class
from tests.errors import raises
from tests.texts import TINY_DIM

KNOWN = {
    "CT_Made": {
        "1": ["Liver", "Liver in abdominal CT", "CT scan of the liver"],
        "2": ["Spleen in abdominal CT", "Spleen in abdominal CT"],
        "instance_label": 0,
    },
    "MR_Made": {"1": ["Liver", "Liver in abdominal MRI"], "instance_label": 0},
    "CT_Lesions": {"1": ["A zebra in CT", "Liver tumor in CT"], "instance_label": 1},
}
LIVER, SPLEEN, MRI_LIVER = (
    by_exact_name(modality, name, "anatomy").bank_key
    for modality, name in (("CT", "Liver"), ("CT", "Spleen"), ("MRI", "Liver"))
)


@pytest.fixture(scope="module")
def encoder(text_sources):
    return load_text_encoder(*text_sources)


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    path = tmp_path_factory.mktemp("known") / "sentences.json"
    path.write_text(json.dumps(KNOWN), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def bank(text_sources, sentences):
    return build_bank(*text_sources, sentences)


def close_to(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def row(bank, key):
    return bank.class_embeddings[bank.class_rows[key]]


def test_a_class_is_the_mean_of_its_sentences(bank, encoder):
    texts = ["Liver", "Liver in abdominal CT", "CT scan of the liver"]
    close_to(row(bank, LIVER), encoder.embed(texts, "CT").mean(0))
    close_to(row(bank, SPLEEN), encoder.embed(["Spleen in abdominal CT"], "CT")[0])
    close_to(
        row(bank, MRI_LIVER), encoder.embed(["Liver", "Liver in abdominal MRI"], "MRI").mean(0)
    )


def test_every_class_has_a_row(bank, encoder):
    assert bank.class_embeddings.shape == (243, TINY_DIM)
    assert bank.bank_keys == tuple(key.bank_key for key in all_classes())
    pet = next(key for key in all_classes() if key.modality == "PET")
    close_to(row(bank, pet.bank_key), encoder.embed([f"{pet.name} in PET"], "PET")[0])


def test_every_known_sentence_has_a_row_under_its_modality(bank, encoder):
    assert bank.sentence_rows.keys() == {"CT", "MRI"}
    assert set(bank.sentence_rows["MRI"]) == {"Liver", "Liver in abdominal MRI"}
    assert len(bank.sentence_rows["CT"]) == 5
    for modality, rows in bank.sentence_rows.items():
        for text, place in rows.items():
            close_to(bank.sentence_embeddings[place], encoder.embed([text], modality)[0])


def test_what_could_not_be_used_is_told(bank):
    unread = [remark for remark in bank.remarks if "zebra" in remark]
    assert len(unread) == 1
    assert unread[0].startswith("CT_Lesions 1: prompt 'A zebra in CT' names no class")
    without = [remark for remark in bank.remarks if remark.startswith("no known sentence for")]
    assert len(without) == 243 - 4
    assert "no known sentence for CT Aorta; took 'Aorta in CT'" in without
    assert len(bank.remarks) == len(without) + 1


def test_source_and_files(bank, tmp_path):
    assert bank.source.startswith("text_encoder.pth (")
    assert "mean over its sentences in sentences.json" in bank.source
    save_bank(tmp_path / "bank.safetensors", bank)
    found = load_bank(tmp_path / "bank.safetensors")
    np.testing.assert_array_equal(found.class_embeddings, bank.class_embeddings)
    assert found.sentence_rows == bank.sentence_rows


def test_without_sentences_the_stated_sentence_stands(text_sources, encoder):
    told = []
    bank = build_bank(*text_sources, None, lambda *step: told.append(step))
    assert bank.sentence_embeddings is None
    assert bank.remarks == ()
    assert "NAME in MODALITY" in bank.source
    close_to(row(bank, SPLEEN), encoder.embed(["Spleen in CT"], "CT")[0])
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1][1] == told[-1][2] >= 240


def test_the_stated_sentence_names_its_class():
    found = [find_class(canonical_sentence(key), key.kind).class_key for key in all_classes()]
    assert tuple(found) == all_classes()


def test_read_sentences_takes_the_modality_of_the_label(sentences):
    known = read_sentences(sentences)
    assert known.by_class[by_bank_key(LIVER)] == tuple(KNOWN["CT_Made"]["1"])
    assert known.by_class[by_bank_key(SPLEEN)] == ("Spleen in abdominal CT",)
    assert known.by_class[by_bank_key(MRI_LIVER)] == ("Liver", "Liver in abdominal MRI")
    assert known.count == 3 + 1 + 2 + 1


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("[", "sentences-form"),
        ('{"A": ["x"]}', "sentences-form"),
        ('{"A": {"1": [1], "instance_label": 0}}', "sentences-form"),
        ('{"A": {"1": ["Liver in CT"]}}', "instance-label-invalid"),
        ('{"A": {"1": ["Liver in CT"], "instance_label": 2}}', "instance-label-invalid"),
        ('{"A": {"1": ["Zebra in CT"], "instance_label": 0}}', "no-class"),
        ("{}", "no-class"),
    ],
)
def test_files_of_another_form(tmp_path, content, code):
    path = tmp_path / "sentences.json"
    path.write_text(content, encoding="utf-8")
    with raises(InputError, code):
        read_sentences(path)


def test_no_file(tmp_path):
    with raises(MissingFileError, "sentences-file-missing"):
        read_sentences(tmp_path / "none.json")
