"""Corrected results: what differs, which windows are shown it, and that all else stays."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import medals_rt
from medals_rt import CaseError, Correction
from medals_rt.bundle.bundle import Bundle
from medals_rt.common.arrays import to_host
from medals_rt.inference.corrections import ShownPrompts, StageCorrection, correct
from medals_rt.inference.kept import FeatureCache
from medals_rt.inference.spatial_prompts import label_prompts
from medals_rt.io.volume import Volume
from medals_rt.pipeline.options import SegmentOptions
from medals_rt.pipeline.segmenter import Result, Segmenter
from medals_rt.planning.sliding_window import Window

BOTH = {"1": "Liver in abdominal CT", "4": "Right kidney in abdominal CT"}
LABELS = (1, 4)


def volume() -> Volume:
    rng = np.random.default_rng(11)
    image = rng.integers(0, 256, (8, 20, 18), dtype=np.uint8)
    image[2:7, 4:15, 3:14] = 200
    return Volume(image, (4.0, 4.0, 6.0), name="noise")


VOLUME = volume()


@pytest.fixture(scope="module")
def segmenter(tiny_bundle: Bundle) -> Iterator[Segmenter]:
    with medals_rt.load(
        tiny_bundle.folder, runner="onnxruntime", precision="fp32", threads=1
    ) as opened:
        yield opened


def map_of(**boxes: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    labels = np.zeros((6, 7, 8), np.uint8)
    for label, (d, h, w, stop_d, stop_h, stop_w) in boxes.items():
        labels[d:stop_d, h:stop_h, w:stop_w] = int(label.removeprefix("of"))
    return labels


def flipped(result: Result, voxels: tuple[slice, ...], label: int = 4) -> npt.NDArray[Any]:
    """Draw a label where it is not, and erase it where it is."""
    labels = result.labels_dhw.copy()
    labels[voxels] = np.where(labels[voxels] == label, 0, label)
    return labels


# What differs -------------------------------------------------------------------------------------


def test_a_correction_holds_what_differs_and_the_classes_that_do() -> None:
    result = map_of(of1=(0, 0, 0, 3, 3, 3), of4=(4, 4, 4, 6, 6, 6))
    corrected = result.copy()
    corrected[5, 6, 5] = 4
    found = Correction.of(result, corrected, LABELS)
    assert found.labels == {4}
    assert found.changed_dhw.tolist() == [[5, 6, 5]]
    assert found.changed_box_dhw == ((5, 6, 5), (6, 7, 6))
    assert (found.start_dhw, found.after_dhw.shape) == ((4, 4, 4), (2, 3, 2))
    np.testing.assert_array_equal(found.drawn_dhw(), np.where(corrected == 4, 4, 0))


def test_drawing_over_another_class_changes_both() -> None:
    result = map_of(of1=(0, 0, 0, 3, 3, 3))
    corrected = result.copy()
    corrected[0, 0, 0] = 4
    found = Correction.of(result, corrected, LABELS)
    assert found.labels == {1, 4}
    of_kidney = found.part([4])
    assert of_kidney is not None
    assert of_kidney.labels == {4}
    np.testing.assert_array_equal(of_kidney.drawn_dhw(), np.where(corrected == 4, 4, 0))
    assert found.part([7]) is None


def test_a_class_erased_altogether_is_a_change() -> None:
    result = map_of(of1=(0, 0, 0, 3, 3, 3), of4=(4, 4, 4, 6, 6, 6))
    found = Correction.of(result, np.where(result == 4, 0, result), LABELS)
    assert found.labels == {4}
    assert len(found.changed_dhw) == 8
    assert not found.drawn_dhw().any()


def test_what_is_not_asked_for_is_no_change() -> None:
    result = map_of(of1=(0, 0, 0, 3, 3, 3), of9=(4, 4, 4, 6, 6, 6))
    corrected = map_of(of1=(0, 0, 0, 3, 3, 2))
    found = Correction.of(result, corrected, LABELS)
    assert found.labels == {1}
    assert len(found.changed_dhw) == 9


def test_a_correction_is_applied_to_other_labels() -> None:
    result = map_of(of1=(0, 0, 0, 3, 3, 3))
    corrected = result.copy()
    corrected[0, 0, 0:3] = (0, 4, 4)
    made = Correction.of(result, corrected, LABELS)
    other = map_of(of1=(0, 0, 0, 6, 7, 8))
    other[0, 0, 1] = 9
    made.apply(other)
    assert other[0, 0, :4].tolist() == [0, 4, 4, 1]
    assert np.count_nonzero(other != 1) == 3
    other[0, 0, 0] = 9  # another class may be where one was erased
    made.apply(other)
    assert other[0, 0, 0] == 9


@pytest.mark.parametrize(
    ("result", "corrected", "code"),
    [
        (map_of(), map_of(), "correction-empty"),
        (map_of(of9=(0, 0, 0, 1, 1, 1)), map_of(), "correction-empty"),
        (map_of(), map_of()[1:], "annotation-shape"),
        (map_of(), map_of(of5=(0, 0, 0, 1, 1, 1)), "annotation-labels"),
        (map_of(), -map_of(of1=(0, 0, 0, 1, 1, 1)).astype(int), "annotation-labels"),
        (-map_of(of1=(0, 0, 0, 1, 1, 1)).astype(int), map_of(), "annotation-labels"),
        (map_of(), map_of().astype(float), "annotation-type"),
    ],
)
def test_what_can_be_no_correction(result: Any, corrected: Any, code: str) -> None:
    with pytest.raises(CaseError) as refused:
        Correction.of(result, corrected, LABELS)
    assert refused.value.code == code


# Which windows are shown what ---------------------------------------------------------------------


def test_only_the_windows_that_decide_are_shown_a_correction(xp: Any) -> None:
    windows = [Window((0, 0, k), (4, 4, k + 4)) for k in (0, 2, 4)]
    before = np.zeros((4, 4, 8), np.uint8)
    before[0], before[1] = 1, 4
    first, second = np.zeros_like(before), np.zeros_like(before)
    first[3], second[2] = 4, 1
    corrections = [
        StageCorrection(xp.asarray(first), frozenset({4}), np.array([True, True, False])),
        StageCorrection(xp.asarray(second), frozenset({1}), np.array([False, True, False])),
    ]
    there = xp.asarray(before)
    prompts = label_prompts(there, windows, LABELS, 2)
    shown = correct(ShownPrompts(prompts, there), corrections, windows, LABELS, 2)
    rows = [
        None if each is None else to_host(each.index_hwd)[:, 0, 0].tolist()
        for each in shown.of_windows
    ]
    assert rows == [[1, 0, 0, 2], [0, 0, 1, 2], [1, 2, 0, 0]]
    assert shown.of_windows[2] is prompts[2]
    assert shown.whole_hwd is not None
    assert to_host(shown.whole_hwd)[:, 0, 0].tolist() == [0, 0, 1, 4]
    assert shown.corrected == 2


def test_corrections_of_nothing_that_was_shown(xp: Any) -> None:
    windows = [Window((0, 0, k), (4, 4, k + 4)) for k in (0, 2, 4)]
    first, second = (np.zeros((4, 4, 8), np.uint8) for _ in range(2))
    first[3], second[2] = 4, 1
    corrections = [
        StageCorrection(xp.asarray(first), frozenset({4}), np.array([True, False, False])),
        StageCorrection(xp.asarray(second), frozenset({1}), np.array([False, True, False])),
    ]
    shown = correct(ShownPrompts([None] * 3, None), corrections, windows, LABELS, 2)
    left, middle, right = shown.of_windows
    assert left is not None
    assert middle is not None
    assert right is None
    assert to_host(left.index_hwd)[:, 0, 0].tolist() == [0, 0, 0, 2]
    assert to_host(middle.index_hwd)[:, 0, 0].tolist() == [0, 0, 1, 0], "the other is not its own"
    assert shown.whole_hwd is not None
    np.testing.assert_array_equal(to_host(shown.whole_hwd), first + second)
    nothing = ShownPrompts([None] * 3, None)
    assert correct(nothing, [], windows, LABELS, 2) == nothing


# Whole runs ---------------------------------------------------------------------------------------


def passes(result: Result) -> tuple[int, int, int]:
    """Passes, windows that needed none, and windows that were shown a correction."""
    stage = result.report.stages[-1]
    return stage.passes, stage.windows_kept, stage.windows_corrected


def run_all(
    segmenter: Segmenter, steps: Sequence[tuple[slice, ...]], options: SegmentOptions, **more: Any
) -> list[Result]:
    """Run, then correct each result in a session; compare with runs from nothing."""
    found: list[Result] = []
    corrections: list[Correction] = []
    with FeatureCache(2**26).image() as image:
        found.append(segmenter.segment(VOLUME, BOTH, options, kept=image, **more))
        for voxels in steps:
            made = Correction.of(found[-1].labels_dhw, flipped(found[-1], voxels), LABELS)
            corrections.append(made)
            result = segmenter.segment(
                VOLUME, BOTH, options, corrections=corrections, kept=image, **more
            )
            nothing = segmenter.segment(VOLUME, BOTH, options, corrections=corrections, **more)
            np.testing.assert_array_equal(result.labels_dhw, nothing.labels_dhw)
            assert passes(result)[0] < passes(nothing)[0]
            kept = result.labels_dhw.copy()
            made.apply(kept)
            np.testing.assert_array_equal(result.labels_dhw, kept)
            found.append(result)
    return found


CORNERS = ((slice(0, 2), slice(0, 2), slice(0, 2)), (slice(6, 8), slice(17, 20), slice(15, 18)))
PLAIN = SegmentOptions(postprocess="off")


@pytest.mark.parametrize(
    "options",
    [
        PLAIN,
        replace(PLAIN, refinement="unmasked"),
        replace(PLAIN, iterations=2, repetitions=2),
        replace(PLAIN, preset="native"),
    ],
    ids=["paper", "unmasked", "repeated", "native"],
)
def test_far_from_a_correction_nothing_changes(
    segmenter: Segmenter, options: SegmentOptions
) -> None:
    first, second, third = run_all(segmenter, CORNERS, options)
    windows = first.report.stages[-1].windows
    assert windows > 4
    for _before, after in ((first, second), (second, third)):
        assert 0 < passes(after)[0] < windows
        assert passes(after)[1] > 0
    assert 0 < passes(second)[2] < passes(third)[2] < windows
    far = second.labels_dhw != first.labels_dhw
    assert not far[-2:, -4:, -4:].any(), "what the first correction can't reach"
    assert {"corrected", "corrected-by-hand"} <= {note.code for note in second.report.notes}


def test_a_correction_reaches_the_windows_around_it(segmenter: Segmenter) -> None:
    first, second, _ = run_all(segmenter, CORNERS, PLAIN)
    fine = "fine"
    assert (first.stage_labels_dhw[fine] != second.stage_labels_dhw[fine]).any()
    nothing = segmenter.segment(VOLUME, BOTH, PLAIN, corrections=())
    np.testing.assert_array_equal(nothing.labels_dhw, first.labels_dhw)


def test_a_correction_of_a_run_that_was_guided_by_a_drawing(segmenter: Segmenter) -> None:
    drawn = np.zeros(VOLUME.shape_dhw, np.uint8)
    drawn[0, 0, 0] = drawn[-1, -1, -1] = 1
    drawn[3:5, 9:12, 6:14] = 4
    run_all(segmenter, CORNERS, PLAIN, spatial_prompts=drawn)


def test_a_correction_outside_of_what_was_looked_at_widens_it(segmenter: Segmenter) -> None:
    drawn = np.zeros(VOLUME.shape_dhw, np.uint8)
    drawn[3, 9, 8], drawn[3, 9, 9] = 1, 4
    first = segmenter.segment(VOLUME, BOTH, PLAIN, spatial_prompts=drawn)
    box = first.report.stages[-1].box_dhw
    assert box != ((0, 0, 0), VOLUME.shape_dhw)
    made = Correction.of(first.labels_dhw, flipped(first, CORNERS[1]), LABELS)
    second = segmenter.segment(VOLUME, BOTH, PLAIN, spatial_prompts=drawn, corrections=[made])
    assert second.report.stages[-1].box_dhw[1] == VOLUME.shape_dhw
    assert second.report.stages[-1].windows_corrected > 0


def test_lesions_are_corrected_where_they_are(segmenter: Segmenter) -> None:
    lesions = {"1": "Adrenocortical carcinoma in CT", "instance_label": 1}
    first = segmenter.segment(VOLUME, lesions, PLAIN)
    corrected = first.labels_dhw.copy()
    corrected[CORNERS[0]] = 1 - corrected[CORNERS[0]]
    made = Correction.of(first.labels_dhw, corrected, [1])
    with FeatureCache(2**26).image() as kept:
        segmenter.segment(VOLUME, lesions, PLAIN, kept=kept)
        found = segmenter.segment(VOLUME, lesions, PLAIN, corrections=[made], kept=kept)
    nothing = segmenter.segment(VOLUME, lesions, PLAIN, corrections=[made])
    np.testing.assert_array_equal(found.labels_dhw, nothing.labels_dhw)
    assert passes(found)[1] > 0


def test_corrections_that_fit_nothing_are_refused(segmenter: Segmenter) -> None:
    small = Correction.of(map_of(), map_of(of1=(0, 0, 0, 1, 1, 1)), LABELS)
    with pytest.raises(CaseError) as refused:
        segmenter.segment(VOLUME, BOTH, corrections=[small])
    assert refused.value.code == "annotation-shape"
    other = np.zeros(VOLUME.shape_dhw, np.uint8)
    other[0, 0, 0] = 7
    with pytest.raises(CaseError) as refused:
        segmenter.segment(
            VOLUME, BOTH, corrections=[Correction.of(np.zeros_like(other), other, [7])]
        )
    assert refused.value.code == "annotation-labels"
    with pytest.raises(TypeError, match=r"Correction\.of"):
        segmenter.segment(VOLUME, BOTH, corrections=[other])  # type: ignore[list-item]
    made = Correction.of(np.zeros_like(other), np.where(other > 0, 1, 0), LABELS)
    with pytest.raises(medals_rt.InputError) as start:
        segmenter.segment(VOLUME, BOTH, SegmentOptions(start_from="text"), corrections=[made])
    assert start.value.code == "annotation-not-used"
    result = segmenter.segment(VOLUME, BOTH, SegmentOptions(refinement="none"), corrections=[made])
    assert "annotation-not-shown" in {note.code for note in result.report.notes}
    assert result.report.stages[-1].windows_corrected == 0
