"""Organs and lesions in one run: what each pass is alone, lesions over organs. A tiny network."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest

import medals_rt
from medals_rt.bundle.bundle import Bundle
from medals_rt.common.errors import PromptError
from medals_rt.io.registry import read_case, read_labels
from medals_rt.io.volume import Volume
from medals_rt.pipeline.job import run_job
from medals_rt.pipeline.job_request import Job
from medals_rt.pipeline.options import PromptSource, RunOptions, SegmentOptions
from medals_rt.pipeline.segmenter import Result, Segmenter
from medals_rt.planning.policy import Policy
from medals_rt.prompts.prompt_set import PromptSet, combine, parse_prompts
from tests.dicom import write_series
from tests.pipeline.batch.helpers import batch, write_case

ORGANS = {"1": "Liver in abdominal CT", "4": "Right kidney in abdominal CT"}
LESION = {"7": "Adrenocortical carcinoma in abdominal CT"}
BOTH = {**ORGANS, "instance_label": 0, "lesions": LESION}
PROBABILITY = SegmentOptions(keep_probability=True)


@pytest.fixture(scope="module")
def segmenter(tiny_bundle: Bundle) -> Iterator[Segmenter]:
    with medals_rt.load(tiny_bundle.folder, runner="onnxruntime", precision="fp32") as opened:
        yield opened


@pytest.fixture(scope="module")
def volume() -> Volume:
    rng = np.random.default_rng(11)
    image = rng.integers(0, 256, (10, 22, 18), dtype=np.uint8)
    image[3:9, 8:22, 6:18] = 200
    return Volume(image, (4.0, 4.0, 6.0), name="noise")


@pytest.fixture(scope="module")
def alone(segmenter: Segmenter, volume: Volume) -> tuple[Result, Result]:
    organs = segmenter.segment(volume, ORGANS, PROBABILITY)
    lesions = segmenter.segment(volume, {**LESION, "instance_label": 1}, PROBABILITY)
    assert ((organs.labels_dhw > 0) & (lesions.labels_dhw > 0)).any()
    return organs, lesions


def test_each_pass_is_what_it_is_alone_and_lesions_lie_over_organs(
    segmenter: Segmenter, volume: Volume, alone: tuple[Result, Result]
) -> None:
    """The probability is that of the class that is seen."""
    organs, lesions = alone
    heard: list[str] = []
    result = segmenter.segment(
        volume, BOTH, PROBABILITY, progress=lambda stage, *_: heard.append(stage)
    )
    for one, name in ((organs, "organs"), (lesions, "lesions")):
        for stage, labels in one.stage_labels_dhw.items():
            np.testing.assert_array_equal(result.stage_labels_dhw[f"{name}: {stage}"], labels)
    covers = lesions.labels_dhw > 0
    expected = np.where(covers, lesions.labels_dhw, organs.labels_dhw)
    np.testing.assert_array_equal(result.labels_dhw, expected)
    assert result.instances_dhw is not None
    np.testing.assert_array_equal(result.instances_dhw, lesions.instances_dhw)
    probability = np.where(covers, lesions.probability_dhw, organs.probability_dhw)
    np.testing.assert_array_equal(result.probability_dhw, probability)
    report = result.report
    assert list(dict.fromkeys(heard)) == [each.name for each in report.stages]
    assert [each.name for each in report.stages] == list(result.stage_labels_dhw)
    counts = {label: int((expected == label).sum()) for label in (1, 4, 7)}
    assert {each.label: each.voxels for each in report.classes} == counts
    assert [each.components for each in report.classes] == [
        None,
        None,
        int(result.instances_dhw.max()),
    ]
    covered = int(np.count_nonzero(covers & (organs.labels_dhw > 0)))
    (note,) = (each for each in report.notes if each.code == "lesions-over-organs")
    assert f"{covered:,} voxels" in note.text


def test_an_annotation_goes_to_the_pass_of_its_label(
    segmenter: Segmenter, volume: Volume, alone: tuple[Result, Result]
) -> None:
    drawn = np.zeros(volume.shape_dhw, np.uint8)
    drawn[3:6, 8:14, 6:12] = 7
    both = segmenter.segment(volume, BOTH, spatial_prompts=drawn)
    lesions = segmenter.segment(volume, {**LESION, "instance_label": 1}, spatial_prompts=drawn)
    np.testing.assert_array_equal(both.labels_dhw == 7, lesions.labels_dhw == 7)
    outside = both.labels_dhw != 7
    np.testing.assert_array_equal(both.labels_dhw[outside], alone[0].labels_dhw[outside])


def test_organs_in_two_windows_and_lesions(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    volume = Volume(rng.integers(-900, 900, (8, 18, 16)).astype(np.int16), (4.0, 4.0, 6.0))
    wanted = {"Liver": "soft tissue", "Right kidney": "lung"}
    monkeypatch.setattr(Policy, "window_of", lambda _, key: wanted.get(key.name, "soft tissue"))
    organs = segmenter.segment(volume, ORGANS)
    lesions = segmenter.segment(volume, {**LESION, "instance_label": 1})
    options = SegmentOptions(time_budget=600.0)
    result = segmenter.segment(volume, BOTH, options)
    np.testing.assert_array_equal(
        result.labels_dhw,
        np.where(lesions.labels_dhw > 0, lesions.labels_dhw, organs.labels_dhw),
    )
    assert result.report.budget is not None
    groups = ["organs, soft tissue", "organs, lung", "lesions"]
    assert list(result.report.budget["groups"]) == groups
    shown = result.report.intensities["windows"]
    assert [each["labels"] for each in shown] == [[1], [4], [7]]


@pytest.mark.parametrize(
    ("prompts", "code"),
    [
        ({**ORGANS, "lesions": {"4": LESION["7"]}}, "label-repeated"),
        ({**LESION, "instance_label": 1, "lesions": LESION}, "kinds-not-combinable"),
        ({**ORGANS, "lesions": {**ORGANS, "instance_label": 0}}, "kinds-not-combinable"),
        ({**ORGANS, "lesions": {"7": "Liver tumors in MRI"}}, "modality-contradiction"),
        ({**ORGANS, "lesions": {}}, "no-prompt"),
        ({**ORGANS, "lesions": list(LESION)}, "prompts-form"),
        ({"lesions": LESION}, "no-prompt"),
    ],
)
def test_what_cannot_be_combined_is_refused(prompts: dict[str, object], code: str) -> None:
    with pytest.raises(PromptError) as caught:
        parse_prompts(prompts)
    assert caught.value.code == code


def test_combined_prompts_in_every_form() -> None:
    both = parse_prompts(BOTH)
    organs, lesions = parse_prompts(ORGANS), parse_prompts({**LESION, "instance_label": 1})
    assert both == combine(organs, lesions)
    assert both.parts == (organs, lesions)
    assert both.as_mapping() == BOTH
    assert both.as_case_mapping() == {**ORGANS, **LESION, "instance_label": 0}
    with pytest.raises(PromptError) as caught:
        PromptSet(both.prompts)
    assert caught.value.code == "several-kinds"


def test_the_release_preset_can_tell_no_lesion_from_an_organ(
    segmenter: Segmenter, volume: Volume
) -> None:
    with pytest.raises(PromptError) as caught:
        segmenter.segment(volume, BOTH, SegmentOptions(preset="release"))
    assert caught.value.code == "lesions-without-labels"


def test_python_jobs_and_batches_agree(
    segmenter: Segmenter, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    path = write_case(tmp_path / "in" / "a.npz", prompts={"1": ORGANS["1"]})
    words = ("--lesion", LESION["7"])
    source = PromptSource(sentences=(ORGANS["1"],), lesions=(LESION["7"],))
    options = RunOptions(bundle=tiny_bundle.folder, runner="onnxruntime", precision="fp32")
    run_job(Job(path, tmp_path / "job.npz", source, options=options))
    done = batch(
        tiny_bundle.folder, path, tmp_path / "out", "--prompt", ORGANS["1"], *words, "--no-preview"
    )
    assert done.exit_code == 0, done.output
    prompts = {"1": ORGANS["1"], "lesions": {"2": LESION["7"]}}
    expected = segmenter.segment(read_case(path).volume, prompts)
    assert (tmp_path / "job.npz").read_bytes() == (tmp_path / "out" / "a.npz").read_bytes()
    found = read_labels(tmp_path / "job.npz")
    np.testing.assert_array_equal(found.labels_dhw, expected.labels_dhw)
    assert found.segment_names == {1: ORGANS["1"], 2: LESION["7"]}
    with np.load(tmp_path / "job.npz") as stored:
        np.testing.assert_array_equal(stored["instances"], expected.instances_dhw)


def test_a_dicom_seg_has_organs_lesions_and_the_notice(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bundle, "notice", "for tests only")
    image = np.random.default_rng(0).integers(-200, 300, (6, 14, 14)).astype(np.int16)
    write_series(tmp_path / "series", image, np.diag([2.0, 2.0, 3.0, 1.0]))
    source = PromptSource(sentences=(ORGANS["1"],), lesions=(LESION["7"],))
    options = RunOptions(bundle=tiny_bundle.folder, runner="onnxruntime", precision="fp32")
    result = run_job(Job(tmp_path / "series", tmp_path / "seg.dcm", source, options=options))
    assert result.instances_dhw is not None
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert seg.ContentDescription == "for tests only"
    organs = int((result.labels_dhw == 1).any())
    assert len(seg.SegmentSequence) == int(result.instances_dhw.max()) + organs
