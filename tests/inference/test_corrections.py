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
from medals_rt.inference.corrections import (
    ShownPrompts,
    StageCorrection,
    correct,
    corrected_labels,
    parts_of,
)
from medals_rt.inference.kept import FeatureCache
from medals_rt.inference.spatial_prompts import label_prompts
from medals_rt.io.volume import Volume
from medals_rt.pipeline.options import SegmentOptions
from medals_rt.pipeline.segmenter import Result, Segmenter
from medals_rt.planning.sliding_window import Window
from tests.inference.noise import volume_of

BOTH = {"1": "Liver in abdominal CT", "4": "Right kidney in abdominal CT"}
LABELS = (1, 4)

VOLUME = volume_of(11)


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
    assert found.voxels == 1
    assert np.argwhere(found.changed_dhw).tolist() == [[1, 2, 1]]
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
    assert found.voxels == 8
    assert not found.drawn_dhw().any()


def test_what_is_not_asked_for_is_no_change() -> None:
    result = map_of(of1=(0, 0, 0, 3, 3, 3), of9=(4, 4, 4, 6, 6, 6))
    corrected = map_of(of1=(0, 0, 0, 3, 3, 2))
    found = Correction.of(result, corrected, LABELS)
    assert found.labels == {1}
    assert found.voxels == 9


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
        (map_of()[0], map_of(of1=(0, 0, 0, 1, 1, 1))[0], "annotation-shape"),
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


@pytest.mark.parametrize(
    "kind",
    [
        lambda labels: labels.astype(np.int64),
        lambda labels: labels.astype(">u2"),
        lambda labels: labels.astype(np.uint64),
        np.asfortranarray,
        lambda labels: np.repeat(labels, 2, axis=2)[:, :, ::2],
        lambda labels: labels[::-1][::-1],
    ],
    ids=["int64", "big-endian", "uint64", "fortran", "strided", "reversed"],
)
def test_any_array_of_whole_numbers_is_a_label_map(kind: Any) -> None:
    result = map_of(of1=(0, 0, 0, 3, 3, 3))
    corrected = map_of(of1=(0, 0, 0, 3, 3, 2), of4=(5, 5, 5, 6, 6, 6))
    expected = Correction.of(result, corrected, LABELS)
    given = kind(result), kind(corrected)
    for each in given:
        each.flags.writeable = False
    found = Correction.of(*given, iter(LABELS))
    np.testing.assert_array_equal(found.drawn_dhw(), expected.drawn_dhw())
    assert (found.voxels, found.labels) == (10, {1, 4})


def test_masks_of_one_class() -> None:
    result = map_of(of1=(0, 0, 0, 3, 3, 3)) > 0
    found = Correction.of(result, np.zeros_like(result), [1])
    assert (found.voxels, found.labels) == (27, {1})


def test_what_else_a_result_holds_may_be_of_any_size() -> None:
    result = map_of().astype(np.int64)
    result[0, 0, 0] = 2**62  # a table of all labels would take more than there is
    found = Correction.of(result, map_of(of1=(1, 1, 1, 2, 2, 2)), LABELS)
    assert (found.voxels, found.labels) == (1, {1})


def test_a_correction_is_packed_small() -> None:
    """A server holds many of them, each with a whole organ."""
    result = np.zeros((40, 100, 100), np.uint16)
    result[5:35, 10:90, 10:90] = 300
    corrected = result.copy()
    corrected[20, 50:60, 50:60] = 0
    made = Correction.of(result, corrected, [300])
    packed = made.to_bytes()
    assert len(packed) < (made.before_dhw.nbytes + made.after_dhw.nbytes) / 100
    found = Correction.from_bytes(packed)
    assert (found.shape_dhw, found.start_dhw) == (made.shape_dhw, made.start_dhw)
    np.testing.assert_array_equal(found.before_dhw, made.before_dhw)
    np.testing.assert_array_equal(found.after_dhw, made.after_dhw)


def test_a_part_that_is_all_is_no_copy() -> None:
    """Or each job of a chain of corrections would hold all of those before it again."""
    made = Correction.of(map_of(), map_of(of1=(1, 1, 1, 2, 2, 2)), LABELS)
    assert made.part({1, 4, 9}) is made
    assert made.part({1}, covering={4}) is made


def test_a_lesion_drawn_in_an_organ_erases_nothing_of_it() -> None:
    """But what is drawn over a lesion is the organ's from then on."""
    organ, lesion = 1, 4
    result = map_of(of1=(0, 0, 0, 4, 4, 4))
    corrected = result.copy()
    corrected[1, 1, 1] = lesion
    made = Correction.of(result, corrected, LABELS)
    assert made.part([organ], covering=[lesion]) is None
    of_lesion = made.part([lesion])
    assert of_lesion is not None
    assert of_lesion.voxels == 1
    back = Correction.of(corrected, result, LABELS).part([organ], covering=[lesion])
    assert back is not None
    assert back.voxels == 1
    np.testing.assert_array_equal(back.drawn_dhw(), result)
    corrected[0, 0, 0] = 0
    both = Correction.of(result, corrected, LABELS).part([organ], covering=[lesion])
    assert both is not None
    assert both.voxels == 1
    assert both.drawn_dhw()[1, 1, 1] == organ


# Which windows are shown what ---------------------------------------------------------------------


def test_a_corrected_class_is_known_everywhere() -> None:
    result = map_of(of1=(0, 0, 0, 3, 3, 3), of4=(4, 4, 4, 6, 6, 6))
    first, second = result.copy(), result.copy()
    first[5, 6, 7], first[0, 0, 0] = 4, 0
    second[...] = first
    second[0, 0, 1] = 0
    made = [Correction.of(result, first, LABELS), Correction.of(first, second, LABELS)]
    np.testing.assert_array_equal(corrected_labels(made[:1]), first)
    np.testing.assert_array_equal(corrected_labels(made), second)
    np.testing.assert_array_equal(corrected_labels(parts_of(made, [4])), np.where(first == 4, 4, 0))


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
        replace(PLAIN, postprocess="all"),
    ],
    ids=["paper", "unmasked", "repeated", "native", "cleaned up"],
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
    assert "corrected-outside" in {note.code for note in second.report.notes}


def test_what_was_looked_at_stays_for_what_is_corrected_in_it(segmenter: Segmenter) -> None:
    """Also for what lies outside of what was looked at before the correction that widened it."""
    long = Volume(np.random.default_rng(5).integers(0, 256, (8, 90, 8), np.uint8), (4.0, 4.0, 6.0))
    drawn = np.zeros(long.shape_dhw, np.uint8)
    drawn[3, 10, 4], drawn[3, 11, 4] = 1, 4
    boxes, codes, corrections = [], [], []
    result = segmenter.segment(long, BOTH, PLAIN, spatial_prompts=drawn)
    for row in (12, 45, 47, 80):
        changed = flipped(result, np.s_[3:5, row : row + 2, 3:5])
        corrections.append(Correction.of(result.labels_dhw, changed, LABELS))
        result = segmenter.segment(
            long, BOTH, PLAIN, spatial_prompts=drawn, corrections=corrections
        )
        boxes.append(result.report.stages[-1].box_dhw)
        codes.append("corrected-outside" in {note.code for note in result.report.notes})
    assert boxes[1][1][1] == 49, "the third lies in what was looked at for the second"
    assert boxes[1] == boxes[2]
    assert len(set(boxes)) == 3
    assert codes == [False, True, False, True]


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


def test_a_result_that_tells_lesions_not_apart_is_not_corrected(segmenter: Segmenter) -> None:
    several = {"1": "Adrenocortical carcinoma in CT", "2": "Liver tumors in CT"}
    drawn = np.ones(VOLUME.shape_dhw, np.uint8)
    made = Correction.of(np.zeros_like(drawn), drawn, [1, 2])
    release = replace(PLAIN, preset="release")
    with pytest.raises(medals_rt.InputError) as refused:
        segmenter.segment(VOLUME, {**several, "instance_label": 1}, release, corrections=[made])
    assert refused.value.code == "corrections-without-labels"


def test_corrections_are_taken_from_any_iterable(segmenter: Segmenter) -> None:
    first = segmenter.segment(VOLUME, BOTH, PLAIN)
    made = Correction.of(first.labels_dhw, flipped(first, CORNERS[0]), LABELS)
    listed = segmenter.segment(VOLUME, BOTH, PLAIN, corrections=[made])
    once: Any = (each for each in (made,))
    found = segmenter.segment(VOLUME, BOTH, PLAIN, corrections=once)
    assert passes(found) == passes(listed)
    np.testing.assert_array_equal(found.labels_dhw, listed.labels_dhw)


def test_a_lesion_drawn_in_an_organ_is_no_correction_of_the_organ(segmenter: Segmenter) -> None:
    asked = {"1": BOTH["1"], "lesions": {"2": "Adrenocortical carcinoma in CT"}}
    first = segmenter.segment(VOLUME, asked, PLAIN)
    drawn = first.labels_dhw.copy()
    drawn[(first.labels_dhw == 1) & (np.arange(18) < 3)] = 2
    made = Correction.of(first.labels_dhw, drawn, (1, 2))
    assert made.labels == {1, 2}
    second = segmenter.segment(VOLUME, asked, PLAIN, corrections=[made])
    corrected = {each.name: each.windows_corrected for each in second.report.stages}
    assert corrected["lesions: fine"] > 0
    assert corrected["organs: fine"] == 0
    organs = "organs: fine"
    np.testing.assert_array_equal(second.stage_labels_dhw[organs], first.stage_labels_dhw[organs])


def test_where_a_lesion_is_erased_the_organ_is_found(segmenter: Segmenter) -> None:
    asked = {"1": BOTH["1"], "lesions": {"2": "Adrenocortical carcinoma in CT"}}
    first = segmenter.segment(VOLUME, asked, PLAIN)
    organ = first.stage_labels_dhw["organs: fine"] == 1
    lies_over = organ & (first.labels_dhw == 2)
    assert lies_over.any()
    made = Correction.of(first.labels_dhw, np.where(lies_over, 0, first.labels_dhw), (1, 2))
    assert made.labels == {2}
    second = segmenter.segment(VOLUME, asked, PLAIN, corrections=[made])
    assert (second.labels_dhw[lies_over] == 1).all(), "no hole is left in it"
    back = Correction.of(first.labels_dhw, np.where(lies_over, 1, first.labels_dhw), (1, 2))
    painted = segmenter.segment(VOLUME, asked, PLAIN, corrections=[back])
    assert (painted.labels_dhw[lies_over] == 1).all()


def test_corrections_for_which_there_is_no_time(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coarse answer stands but for the voxels themselves, and a warning says so."""
    first = segmenter.segment(VOLUME, BOTH, PLAIN)
    made = Correction.of(first.labels_dhw, flipped(first, CORNERS[0]), LABELS)
    for stage, seconds_per_pass in ((1, 0.001), (2, 1e4)):
        monkeypatch.setitem(segmenter._model.measured, stage, seconds_per_pass)
    hasty = replace(PLAIN, time_budget=60.0)
    found = segmenter.segment(VOLUME, BOTH, hasty, corrections=[made])
    assert [(each.name, each.windows_corrected) for each in found.report.stages] == [("coarse", 0)]
    (note,) = (each for each in found.report.notes if each.code == "corrected")
    assert note.severity == "warning"


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
