"""The order of things: stages, hybrid prompts, determinism, records. On a minuscule network."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medals_rt
from medals_rt.bundle.bundle import Bundle
from medals_rt.common.choices import Stages
from medals_rt.common.errors import BundleError, CaseError, InputError
from medals_rt.common.notes import Note
from medals_rt.io.case import Case
from medals_rt.io.volume import Volume
from medals_rt.pipeline.options import SegmentOptions
from medals_rt.pipeline.report import Provenance, RunReport
from medals_rt.pipeline.segmenter import Segmenter
from medals_rt.planning.policy import Policy
from medals_rt.prompts.prompt_set import parse_prompts
from tests.errors import raises

ANATOMY = {"1": "Liver in abdominal CT", "4": "Right kidney in abdominal CT"}
CORRECTION = medals_rt.Correction.of(
    np.zeros((2, 2, 2), np.uint8), np.ones((2, 2, 2), np.uint8), [1]
)


@pytest.fixture(scope="module")
def segmenter(tiny_bundle: Bundle) -> Iterator[Segmenter]:
    with medals_rt.load(tiny_bundle.folder, runner="onnxruntime", precision="fp32") as opened:
        yield opened


@pytest.fixture(scope="module")
def volume() -> Volume:
    rng = np.random.default_rng(11)
    image = rng.integers(0, 256, (12, 30, 26), dtype=np.uint8)
    image[3:9, 8:22, 6:20] = 200
    return Volume(image, (4.0, 4.0, 6.0), name="noise")


def test_the_same_seed_gives_the_same_bytes(segmenter: Segmenter, volume: Volume) -> None:
    first = segmenter.segment(volume, ANATOMY, SegmentOptions(seed=3))
    second = segmenter.segment(replace(volume, name="renamed"), ANATOMY, SegmentOptions(seed=3))
    assert first.labels_dhw.tobytes() == second.labels_dhw.tobytes()
    assert first.labels_dhw.any()
    assert first != second  # as results; no array is compared


def test_a_result_is_printed_in_a_line(segmenter: Segmenter, volume: Volume) -> None:
    result = segmenter.segment(volume, ANATOMY)
    liver, kidney = (f"{each.volume_ml:,.2f} mL" for each in result.report.classes)
    assert repr(result) == f"<Result of noise: Liver {liver}, Right kidney {kidney}>"
    many = replace(result.report, classes=result.report.classes * 4)
    assert repr(replace(result, report=many)).endswith(f"{liver} and 3 more>")


def test_another_seed_draws_other_masks(segmenter: Segmenter, volume: Volume) -> None:
    one, other = (
        segmenter.segment(volume, ANATOMY, SegmentOptions(seed=seed)).stage_labels_dhw["fine"]
        for seed in (0, 1)
    )
    assert (one != other).any()


def test_chunks_of_classes_change_nothing(segmenter: Segmenter, volume: Volume) -> None:
    whole, cut = (
        segmenter.segment(volume, ANATOMY, SegmentOptions(classes_per_chunk=size))
        for size in (32, 1)
    )
    np.testing.assert_array_equal(whole.labels_dhw, cut.labels_dhw)


def test_both_stages_are_recorded(segmenter: Segmenter, volume: Volume) -> None:
    report = segmenter.segment(volume, ANATOMY).report
    assert [stage.name for stage in report.stages] == ["coarse", "fine"]
    coarse, fine = report.stages
    assert coarse.box_dhw == ((0, 0, 0), (12, 30, 26))
    assert (coarse.prompts, fine.prompts) == ("text only", "text and masked spatial prompts")
    assert coarse.passes == coarse.windows
    assert fine.windows < fine.passes <= 2 * fine.windows
    assert [record.name for record in report.classes] == ["Liver", "Right kidney"]
    voxels = sum(record.voxels for record in report.classes)
    volume_ml = sum(record.volume_ml for record in report.classes)
    assert volume_ml == pytest.approx(voxels * 4 * 4 * 6 / 1000, abs=0.01)
    assert report.to_dict()["limits"] == {
        "challenge_seconds_per_class": 60.0,
        "within_challenge": True,
        "asked_seconds_per_class": None,
        "within_asked": None,
    }


def test_progress_counts_every_window(segmenter: Segmenter, volume: Volume) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    result = segmenter.segment(
        volume,
        ANATOMY,
        progress=lambda stage, done, total: seen.setdefault(stage, []).append((done, total)),
    )
    for stage in result.report.stages:
        expected = [(done, stage.windows) for done in range(stage.windows + 1)]
        assert seen[stage.name] == expected


def test_text_only_runs_one_pass_a_window(segmenter: Segmenter, volume: Volume) -> None:
    report = segmenter.segment(volume, ANATOMY, SegmentOptions(refinement="none")).report
    assert all(stage.passes == stage.windows for stage in report.stages)
    assert all(stage.prompts == "text only" for stage in report.stages)


def test_lesions_are_numbered_in_paper_and_binary_in_release(
    segmenter: Segmenter, volume: Volume
) -> None:
    prompts = {"7": "Adrenocortical carcinoma in abdominal CT", "instance_label": 1}
    paper = segmenter.segment(volume, prompts, SegmentOptions(preset="paper"))
    assert paper.instances_dhw is not None
    assert set(np.unique(paper.labels_dhw)) <= {0, 7}
    np.testing.assert_array_equal(paper.instances_dhw > 0, paper.labels_dhw > 0)
    (record,) = paper.report.classes
    assert record.components == paper.instances_dhw.max()
    release = segmenter.segment(volume, prompts, SegmentOptions(preset="release"))
    assert release.instances_dhw is None
    assert set(np.unique(release.labels_dhw)) <= {0, 1}


def test_an_annotation_of_every_class_needs_no_coarse_stage(
    segmenter: Segmenter, volume: Volume
) -> None:
    drawn = np.zeros(volume.shape_dhw, np.uint8)
    drawn[3:6, 8:14, 6:12], drawn[6:9, 14:20, 12:18] = 1, 4
    report = segmenter.segment(volume, ANATOMY, spatial_prompts=drawn).report
    assert [stage.name for stage in report.stages] == ["fine"]
    low, high = report.stages[0].box_dhw
    assert all(a <= b for a, b in zip(low, (3, 8, 6), strict=True))
    assert all(a >= b for a, b in zip(high, (9, 20, 18), strict=True))


def test_an_annotation_of_one_class_leaves_the_others_to_the_coarse_stage(
    segmenter: Segmenter, volume: Volume
) -> None:
    drawn = np.zeros(volume.shape_dhw, np.uint8)
    drawn[3:6, 8:14, 6:12] = 4
    with_it = segmenter.segment(volume, ANATOMY, spatial_prompts=drawn)
    without = segmenter.segment(volume, ANATOMY)
    assert [stage.name for stage in with_it.report.stages] == ["coarse", "fine"]
    np.testing.assert_array_equal(
        with_it.stage_labels_dhw["coarse"], without.stage_labels_dhw["coarse"]
    )
    assert (with_it.stage_labels_dhw["fine"] != without.stage_labels_dhw["fine"]).any()


def test_an_annotation_that_is_no_prompt_is_told(segmenter: Segmenter, volume: Volume) -> None:
    drawn = np.zeros(volume.shape_dhw, np.uint8)
    drawn[3:6, 8:14, 6:12] = 4
    for refinement, codes in (("none", {"annotation-not-shown"}), ("masked", set())):
        options = SegmentOptions(refinement=refinement)
        report = segmenter.segment(volume, ANATOMY, options, spatial_prompts=drawn).report
        found = {note.code for note in report.notes}
        assert found & {"annotation-not-shown"} == codes


@pytest.mark.parametrize(
    ("shape", "label", "error"),
    [
        ((12, 30, 25), 1, ("annotation-shape", "(12, 30, 25)", "(12, 30, 26)")),
        ((12, 30, 26), 9, ("annotation-labels", "[9]")),
        ((12, 30, 26), 0, ("annotation-empty",)),
    ],
)
def test_a_wrong_annotation_is_refused(
    segmenter: Segmenter, volume: Volume, shape: tuple[int, ...], label: int, error: tuple[str, ...]
) -> None:
    drawn = np.full(shape, label, np.uint8)
    with raises(CaseError, *error):
        segmenter.segment(volume, ANATOMY, spatial_prompts=drawn)


def test_prompts_come_in_several_forms(segmenter: Segmenter, volume: Volume) -> None:
    sentence = "Liver in abdominal CT"
    forms = (sentence, [sentence], {"1": sentence}, parse_prompts({"1": sentence}))
    first, *others = [segmenter.segment(volume, form).labels_dhw for form in forms]
    for other in others:
        np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"volume": np.zeros((3, 3, 3))}, "Volume.from_nibabel"),
        (
            {
                "volume": Case(
                    Volume(np.zeros((3, 3, 3)), (1.0, 1.0, 1.0)), None, None, Path("a.npz")
                )
            },
            "write case.volume",
        ),
        ({"prompts": 7}, "prompts"),
        ({"prompts": ["Liver in CT", 3]}, "prompts"),
        ({"options": {"preset": "paper"}}, "SegmentOptions"),
        ({"corrections": CORRECTION}, "corrections="),
    ],
)
def test_wrong_types_are_told_what_to_pass(
    segmenter: Segmenter, volume: Volume, given: dict[str, Any], says: str
) -> None:
    arguments = {"volume": volume, "prompts": "Liver in CT", "options": None} | given
    with pytest.raises(TypeError, match=says):
        segmenter.segment(**arguments)


def test_a_file_without_prompts_is_told_to_name_them(segmenter: Segmenter, volume: Volume) -> None:
    with raises(InputError, "no-prompts"):
        segmenter.segment(volume, None)  # type: ignore[arg-type]


def test_a_closed_segmenter_says_so(tiny_bundle: Bundle, volume: Volume) -> None:
    with medals_rt.load(tiny_bundle.folder, runner="onnxruntime", precision="fp32") as opened:
        assert repr(opened) == "<Segmenter of tiny, onnxruntime/fp32>"
    assert repr(opened) == "<Segmenter of tiny, closed>"
    with raises(InputError, "segmenter-closed"):
        opened.segment(volume, ANATOMY)


def test_a_model_is_opened_as_the_command_opens_it(tiny_bundle: Bundle) -> None:
    with medals_rt.load(tiny_bundle.folder, runner="onnxruntime", precision="auto") as opened:
        assert opened.arithmetic == "onnxruntime/fp32"
    with raises(InputError, "convolution-unknown", "Direct"):
        medals_rt.load(tiny_bundle.folder, convolution="Direct")  # type: ignore[arg-type]


def test_a_segmenter_is_used_by_one_at_a_time(segmenter: Segmenter, volume: Volume) -> None:
    """By a callback neither; afterwards it is free again."""

    def again(*_: object) -> None:
        segmenter.segment(volume, ANATOMY)

    for call in (again, lambda *_: segmenter.close()):
        with raises(InputError, "segmenter-in-use"):
            segmenter.segment(volume, ANATOMY, progress=call)
    segmenter.segment(volume, ANATOMY)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_segmenter_of_another_process_is_refused(segmenter: Segmenter, volume: Volume) -> None:
    """Else its libraries would wait for threads that the fork hasn't."""
    monkey = os.getpid() + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: monkey)
        with raises(InputError, "segmenter-elsewhere"):
            segmenter.segment(volume, ANATOMY)


def test_segmenting_writes_nothing_into_the_users_cache(
    segmenter: Segmenter, volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path / "cache"))
    segmenter.segment(volume, ANATOMY)
    assert not (tmp_path / "cache").exists()


def test_a_case_in_two_windows_is_one_result(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both kidneys and the liver, where the policy is made to want two windows."""
    rng = np.random.default_rng(3)
    volume = Volume(rng.integers(-900, 900, (8, 18, 16)).astype(np.int16), (4.0, 4.0, 6.0))
    wanted = {"Liver": "soft tissue", "Right kidney": "lung"}
    monkeypatch.setattr(Policy, "window_of", lambda _, key: wanted[key.name])
    heard: list[str] = []
    before = Provenance({"read": 3.0}, (Note("x", "remark"),), {"series": 2})
    result = segmenter.segment(
        volume,
        ANATOMY,
        provenance=before,
        progress=lambda stage, *_: heard.append(stage),
    )
    report = result.report
    names = [f"{window}: {stage}" for window in wanted.values() for stage in ("coarse", "fine")]
    assert list(dict.fromkeys(heard)) == [stage.name for stage in report.stages] == names
    assert list(result.stage_labels_dhw) == names
    assert [each.label for each in report.classes] == [1, 4]
    assert report.intensities["action"] == "windows"
    assert [each["labels"] for each in report.intensities["windows"]] == [[1], [4]]
    assert report.seconds["read"] == 3.0
    assert report.seconds["total"] > 3.0
    assert Note("x", "remark") in report.notes
    assert report.image["origin"] == {"series": 2}
    assert result.probability_dhw is None
    alone = {
        label: segmenter.segment(volume, {label: text}, SegmentOptions(window=window)).labels_dhw
        for (label, text), window in zip(ANATOMY.items(), wanted.values(), strict=True)
    }
    claimed = (alone["1"] > 0) | (alone["4"] > 0)
    np.testing.assert_array_equal(result.labels_dhw > 0, claimed)
    both = (alone["1"] > 0) & (alone["4"] > 0)
    assert report.intensities["contested_voxels"] == np.count_nonzero(both)
    np.testing.assert_array_equal(result.labels_dhw[~both], (alone["1"] + alone["4"])[~both])


def test_window_groups_share_the_time_of_their_case(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two windows, of one class each: the second has what the first left."""
    volume = Volume(np.full((4, 8, 8), -500, np.int16), (4.0, 4.0, 6.0))
    wanted = {"Liver": "soft tissue", "Right kidney": "lung"}
    monkeypatch.setattr(Policy, "window_of", lambda _, key: wanted[key.name])
    asked: list[tuple[float | None, int, float]] = []
    refusable = []

    def case_budget(seconds: float | None, classes: int, spent: float, *, may_refuse: bool) -> None:
        asked.append((seconds, classes, spent))
        refusable.append(may_refuse)

    monkeypatch.setattr("medals_rt.pipeline.segmenter.case_budget", case_budget)
    segmenter.segment(
        volume, ANATOMY, SegmentOptions(time_budget=600.0), provenance=Provenance({"read": 3.0})
    )
    (first, second) = asked
    assert refusable == [True, False]
    assert first[:2] == second[:2] == (600.0, 1)
    assert 3.0 <= first[2] < 100.0
    assert first[2] - 600.0 < second[2] < first[2] - 500.0


def test_a_class_outside_the_bundle_is_refused_with_those_it_has(
    segmenter: Segmenter, volume: Volume
) -> None:
    with raises(BundleError, "class-not-covered", "CT Spleen"):
        segmenter.segment(volume, parse_prompts({"1": "Spleen in abdominal CT"}))


def test_a_case_smaller_than_a_window_and_of_one_slice(segmenter: Segmenter) -> None:
    image = np.full((1, 5, 6), 120, np.uint8)
    for preset in ("paper", "release"):
        result = segmenter.segment(
            Volume(image, (1.0, 1.0, 5.0)), ANATOMY, SegmentOptions(preset=preset)
        )
        assert result.labels_dhw.shape == (1, 5, 6)


def notes_of(report: RunReport, code: str) -> list[str]:
    return [note.text for note in report.notes if note.code == code]


@pytest.mark.parametrize("stage", ["coarse", "fine"])
def test_one_stage_alone(segmenter: Segmenter, volume: Volume, stage: Stages) -> None:
    """It sees the whole image and the text alone, and the report says that it is alone."""
    result = segmenter.segment(volume, ANATOMY, SegmentOptions(stages=stage, postprocess="off"))
    (record,) = result.report.stages
    assert (record.name, record.prompts) == (stage, "text only")
    assert record.box_dhw == ((0, 0, 0), (12, 30, 26))
    assert record.passes == record.windows
    assert result.report.algorithm["stages"] == stage
    assert notes_of(result.report, "one-stage") == [
        f"the result is that of the {stage} stage alone"
    ]
    assert list(result.stage_labels_dhw) == [stage]
    np.testing.assert_array_equal(result.labels_dhw, result.stage_labels_dhw[stage])
    both = segmenter.segment(volume, ANATOMY)
    assert notes_of(both.report, "one-stage") == []
    if stage == "coarse":
        np.testing.assert_array_equal(result.labels_dhw, both.stage_labels_dhw["coarse"])


def test_native_is_the_fine_stage_alone(segmenter: Segmenter, volume: Volume) -> None:
    report = segmenter.segment(volume, ANATOMY, SegmentOptions(preset="native")).report
    assert [stage.name for stage in report.stages] == ["fine"]
    both = segmenter.segment(volume, ANATOMY, SegmentOptions(preset="native", stages="both"))
    assert [stage.name for stage in both.report.stages] == ["coarse", "fine"]


def test_an_empty_coarse_result_is_final_where_the_preset_says_so(
    segmenter: Segmenter, volume: Volume
) -> None:
    nothing = {"stages": "both", "threshold": 0.99}
    final = segmenter.segment(volume, ANATOMY, SegmentOptions(preset="native", **nothing))
    assert [stage.name for stage in final.report.stages] == ["coarse"]
    assert not final.labels_dhw.any()
    (text,) = notes_of(final.report, "one-stage")
    assert "found nothing" in text
    goes_on = segmenter.segment(volume, ANATOMY, SegmentOptions(**nothing))
    assert [stage.box_dhw for stage in goes_on.report.stages] == [((0, 0, 0), (12, 30, 26))] * 2


def test_lesions_are_labels_under_native(segmenter: Segmenter, volume: Volume) -> None:
    prompts = {"7": "Adrenocortical carcinoma in abdominal CT", "instance_label": 1}
    result = segmenter.segment(volume, prompts, SegmentOptions(preset="native"))
    assert result.instances_dhw is None
    assert set(np.unique(result.labels_dhw)) <= {0, 7}
    assert result.report.stages[0].iterations == 0


def test_refinement_from_the_text_alone(segmenter: Segmenter, volume: Volume) -> None:
    options = SegmentOptions(stages="fine", start_from="text")
    result = segmenter.segment(volume, ANATOMY, options)
    (record,) = result.report.stages
    assert record.prompts == "text, then its own labels as masked spatial prompts"
    assert record.windows < record.passes <= 3 * record.windows
    drawn = np.ones(volume.shape_dhw, np.uint8)
    with pytest.raises(InputError) as caught:
        segmenter.segment(volume, ANATOMY, options, spatial_prompts=drawn)
    assert caught.value.code == "annotation-not-used"


def test_a_stage_records_every_refinement_and_how_it_was_resampled(
    segmenter: Segmenter, volume: Volume
) -> None:
    options = SegmentOptions(iterations=3, repetitions=2)
    coarse, fine = segmenter.segment(volume, ANATOMY, options).report.stages
    assert (coarse.iterations, fine.iterations) == (0, 3)
    for stage in (coarse, fine):
        d, h, w = (high - low for low, high in zip(*stage.box_dhw, strict=True))
        scales = np.divide(stage.spacing_hwd_mm, stage.target_spacing_hwd_mm)
        assert stage.resampled_shape_hwd == tuple(np.round(scales * (h, w, d)).astype(int))


def test_mirroring_and_overlap_are_counted_and_change_the_result(
    segmenter: Segmenter, volume: Volume
) -> None:
    plain, mirrored, apart = (
        segmenter.segment(volume, ANATOMY, SegmentOptions(stages="fine", **options))
        for options in ({}, {"mirrored": True}, {"overlap": 0.0})
    )
    (one,), (eight,), (few,) = (each.report.stages for each in (plain, mirrored, apart))
    assert eight.passes == 8 * one.passes
    assert few.windows < one.windows
    assert (plain.labels_dhw != mirrored.labels_dhw).any()


def test_a_lower_threshold_labels_more(segmenter: Segmenter, volume: Volume) -> None:
    counts = [
        np.count_nonzero(
            segmenter.segment(
                volume, ANATOMY, SegmentOptions(stages="coarse", threshold=each)
            ).stage_labels_dhw["coarse"]
        )
        for each in (0.7, 0.5, 0.3)
    ]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_options_that_change_nothing_are_noted(segmenter: Segmenter, volume: Volume) -> None:
    def noted(options: SegmentOptions) -> list[str]:
        report = segmenter.segment(volume, ANATOMY, options).report
        return [text.split(" change")[0] for text in notes_of(report, "option-without-effect")]

    coarse = SegmentOptions(stages="coarse", iterations=2, block_sizes=(4,))
    assert noted(coarse) == ["--iterations and --block-sizes"]
    unmasked = SegmentOptions(refinement="unmasked", repetitions=2, lesion_iterations=3)
    assert noted(unmasked) == ["--repetitions", "--lesion-iterations"]
    assert noted(SegmentOptions(refinement="none", iterations=2)) == ["--iterations"]
    assert noted(SegmentOptions(repetitions=2)) == []


def test_what_is_not_drawn_is_looked_for_everywhere(segmenter: Segmenter, volume: Volume) -> None:
    """Without the coarse stage, a region around one drawn class would hide the others."""
    drawn = np.zeros(volume.shape_dhw, np.uint8)
    drawn[4, 10:12, 8:10] = 1
    for prompts, whole in ((ANATOMY, True), ({"1": ANATOMY["1"]}, False)):
        result = segmenter.segment(
            volume, prompts, SegmentOptions(stages="fine"), spatial_prompts=drawn
        )
        (record,) = result.report.stages
        assert (record.box_dhw == ((0, 0, 0), volume.shape_dhw)) is whole
