"""The file of a node: what it may say, and which rules fit a series."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from medals_rt.common.errors import InputError
from medals_rt.pipeline.options import RunOptions
from medals_serve.node.configuration import NodeConfiguration, read_configuration
from medals_serve.node.worker import check_rules
from tests.errors import raises
from tests.serve.node.nodes import TITLE, write_configuration


def read(folder: Path, *changes: tuple[str, str]) -> NodeConfiguration:
    path = write_configuration(folder, 11112)
    text = path.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
    return read_configuration(path)


def test_a_whole_file(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert (found.title, found.callers, found.port) == (TITLE, ("ORTHANC", "SCANNER"), 11112)
    assert found.max_bytes == 100 * 10**9
    assert found.rules["liver"].outputs == ("sr", "rtstruct", "dicom-seg")
    check_rules(found, RunOptions())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('title = "MEDALSRT"', 'title = "SEVENTEEN LETTERS"'),
        ('title = "MEDALSRT"', ""),
        ('callers = ["ORTHANC", "SCANNER"]', "callers = []"),
        ("port = 11112", "port = 70000"),
        ("port = 11112", "port = 11112\nprot = 3"),
        ("port = 11112", 'port = 11112\nmax_disk = "much"'),
        ('"sr", "rtstruct", "dicom-seg"', '"nifti"'),
        ('"sr", "rtstruct", "dicom-seg"', '"sr", "rtstruct"'),
        ('"sr", "rtstruct", "dicom-seg"', ""),
        ('send_to = ["ORTHANC"]', 'send_to = ["NOBODY"]'),
        ('send_to = ["ORTHANC"]', "send_to = []"),
        ('send_to = ["ORTHANC"]', 'send_to = ["dicomweb+https://me:secret@h/w"]'),
        ('description = "made up"', 'description = "("'),
        ('modality = "CT"', 'modality = "MRI"'),  # which no series has: DICOM's name is MR
        ('prompts = ["Liver in abdominal CT"]', ""),
        ("[rules.liver]", '[rules."../liver"]'),
        ('host = "127.0.0.1"', 'host = "127.0.0.1"\ntls = true'),
        ("quiet_seconds = 1.0", "quiet_seconds = 0.0"),
        ("[peers", "[[peers"),
    ],
)
def test_files_that_are_refused(old: str, new: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        read(tmp_path, (old, new))
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_missing_is_told_in_plain_words(tmp_path: Path) -> None:
    with raises(InputError, "configuration-invalid") as refused:
        read(tmp_path, ('send_to = ["ORTHANC"]', ""))
    assert str(refused.value).endswith("can't be used: rules: 'send_to' is missing")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        read_configuration(tmp_path / "absent.toml")
    assert refused.value.code == "file-missing"


def test_prompts_that_name_no_class(tmp_path: Path) -> None:
    found = read(tmp_path, ("Liver in abdominal CT", "Nothing known in abdominal CT"))
    with raises(InputError, "no-class", "liver"):
        check_rules(found, RunOptions())


@pytest.mark.parametrize(
    ("attributes", "fits"),
    [
        ({"Modality": "CT", "SeriesDescription": "MADE UP, portal"}, True),
        ({"Modality": "CT", "StudyDescription": "made up"}, True),
        ({"Modality": "CT", "ProtocolName": "made up"}, True),
        ({"Modality": "MR", "SeriesDescription": "made up"}, False),
        ({"Modality": "CT", "SeriesDescription": "other"}, False),
        ({"SeriesDescription": "made up"}, False),
        ({"Modality": "CT", "BodyPartExamined": "MADE UP"}, False),
    ],
)
def test_which_series_a_rule_is_for(attributes: dict[str, str], fits: bool, tmp_path: Path) -> None:
    header = Dataset()
    for name, value in attributes.items():
        setattr(header, name, value)
    assert bool(read(tmp_path).rules_for(header)) is fits


def test_a_body_part(tmp_path: Path) -> None:
    rules = read(tmp_path, ('description = "made up"', 'body_part = "^(abdomen|liver)$"'))
    header = Dataset()
    header.Modality, header.BodyPartExamined = "CT", "ABDOMEN"
    assert rules.rules_for(header)
    header.BodyPartExamined = "ABDOMENPELVIS"
    assert not rules.rules_for(header)


def test_groups_of_classes(tmp_path: Path) -> None:
    sentence = 'prompts = ["Liver in abdominal CT"]'
    found = read(tmp_path, (sentence, 'groups = ["abdominal organs"]'))
    check_rules(found, RunOptions())
    unknown = read(tmp_path, (sentence, 'groups = ["nothing at all"]'))
    with raises(InputError, "group-unknown", "liver"):
        check_rules(unknown, RunOptions())
