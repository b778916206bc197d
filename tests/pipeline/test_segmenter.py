"""The order of things: stages, hybrid prompts, determinism, records. On a minuscule network."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

import medals_rt
from medals_rt.bundle.bundle import Bundle
from medals_rt.common.errors import BundleError, CaseError, InputError
from medals_rt.io.volume import Volume
from medals_rt.pipeline.segmenter import Segmenter
from medals_rt.prompts.prompt_set import parse_prompts

ANATOMY = {"1": "Liver in abdominal CT", "4": "Right kidney in abdominal CT"}


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
    first = segmenter.segment(volume, ANATOMY, seed=3)
    second = segmenter.segment(replace(volume, name="renamed"), ANATOMY, seed=3)
    assert first.labels_dhw.tobytes() == second.labels_dhw.tobytes()
    assert first.labels_dhw.any()


def test_another_seed_draws_other_masks(segmenter: Segmenter, volume: Volume) -> None:
    one, other = (
        segmenter.segment(volume, ANATOMY, seed=seed).stage_labels_dhw["fine"] for seed in (0, 1)
    )
    assert (one != other).any()


def test_chunks_of_classes_change_nothing(segmenter: Segmenter, volume: Volume) -> None:
    whole, cut = (segmenter.segment(volume, ANATOMY, classes_per_chunk=size) for size in (32, 1))
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
    assert report.to_dict()["within_budget"] is True


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
    report = segmenter.segment(volume, ANATOMY, refinement="none").report
    assert all(stage.passes == stage.windows for stage in report.stages)
    assert all(stage.prompts == "text only" for stage in report.stages)


def test_lesions_are_numbered_in_paper_and_binary_in_release(
    segmenter: Segmenter, volume: Volume
) -> None:
    prompts = {"7": "Adrenocortical carcinoma in abdominal CT", "instance_label": 1}
    paper = segmenter.segment(volume, prompts, preset="paper")
    assert paper.instances_dhw is not None
    assert set(np.unique(paper.labels_dhw)) <= {0, 7}
    np.testing.assert_array_equal(paper.instances_dhw > 0, paper.labels_dhw > 0)
    (record,) = paper.report.classes
    assert record.components == paper.instances_dhw.max()
    release = segmenter.segment(volume, prompts, preset="release")
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


@pytest.mark.parametrize(
    ("shape", "label", "message"),
    [
        ((12, 30, 25), 1, r"annotation has shape \(12, 30, 25\), the image \(12, 30, 26\)"),
        ((12, 30, 26), 9, r"no prompt names: \[9\]"),
        ((12, 30, 26), 0, "annotation is empty"),
    ],
)
def test_a_wrong_annotation_is_refused(
    segmenter: Segmenter, volume: Volume, shape: tuple[int, ...], label: int, message: str
) -> None:
    drawn = np.full(shape, label, np.uint8)
    with pytest.raises(CaseError, match=message):
        segmenter.segment(volume, ANATOMY, spatial_prompts=drawn)


def test_unknown_choices_are_refused(segmenter: Segmenter, volume: Volume) -> None:
    with pytest.raises(InputError, match="no refinement 'blurred'"):
        segmenter.segment(volume, ANATOMY, refinement="blurred")
    with pytest.raises(InputError, match="no preset 'book'"):
        segmenter.segment(volume, ANATOMY, preset="book")


def test_a_class_outside_the_bundle_is_refused_with_those_it_has(
    segmenter: Segmenter, volume: Volume
) -> None:
    with pytest.raises(BundleError, match="not CT Spleen"):
        segmenter.segment(volume, parse_prompts({"1": "Spleen in abdominal CT"}))


def test_a_case_smaller_than_a_window_and_of_one_slice(segmenter: Segmenter) -> None:
    image = np.full((1, 5, 6), 120, np.uint8)
    for preset in ("paper", "release"):
        result = segmenter.segment(Volume(image, (1.0, 1.0, 5.0)), ANATOMY, preset=preset)
        assert result.labels_dhw.shape == (1, 5, 6)
