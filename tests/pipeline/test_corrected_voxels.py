"""Voxels that were corrected keep what they were made."""

import numpy as np

from medals_rt.inference.corrections import Correction
from medals_rt.pipeline.corrected_voxels import corrected_notes, drawn_last, keep_corrected
from medals_rt.pipeline.window_groups import Merged

SHAPE = (3, 4, 5)


def corrections(
    *places: tuple[tuple[int, int, int], int], of: np.ndarray | None = None
) -> list[Correction]:
    """One after the other, of a result or from nothing."""
    found, labels = [], np.zeros(SHAPE, np.uint8) if of is None else of
    for place, label in places:
        after = labels.copy()
        after[place] = label
        found.append(Correction.of(labels, after, (1, 4, 7)))
        labels = after
    return found


def test_without_corrections_nothing_is_copied() -> None:
    merged = Merged(np.zeros(SHAPE, np.uint8), None, None)
    assert keep_corrected(merged, []) is merged
    assert corrected_notes([], merged) == ()


def test_the_last_correction_of_a_voxel_is_kept() -> None:
    labels = np.ones(SHAPE, np.uint8)
    made = corrections(((0, 0, 0), 4), ((0, 0, 1), 4), ((0, 0, 0), 0), ((2, 3, 4), 1))
    kept = keep_corrected(Merged(labels, None, None), made)
    (note,) = corrected_notes(made, kept)
    assert labels.all(), "what was found is left as it is"
    assert kept.labels_dhw[0, 0, :3].tolist() == [0, 4, 1]
    assert np.count_nonzero(kept.labels_dhw != 1) == 2
    assert note.text == (
        "3 voxels are as corrected by hand; the model had answered otherwise in 2 of them"
    )


def test_the_model_may_agree() -> None:
    labels = np.ones(SHAPE, np.uint8)
    made = corrections(((0, 0, 0), 1))
    (note,) = corrected_notes(made, keep_corrected(Merged(labels, None, None), made))
    assert note.text == "1 voxel is as corrected by hand"


def test_what_was_erased_may_be_of_another_class() -> None:
    before, found = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    before[0, 0, :3] = 7
    made = corrections(((0, 0, 0), 0), ((0, 0, 1), 0), ((0, 0, 2), 0), of=before)
    found[0, 0, 1:3] = 4
    (note,) = corrected_notes(made, Merged(found, None, None))
    assert note.text == (
        "1 voxel is as corrected by hand; 2 more, which were erased, are of another class now"
    )


def test_lesions_are_numbered_again() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[0, 0] = (7, 7, 0, 7, 7)
    numbers = np.zeros(SHAPE, np.uint32)
    numbers[0, 0] = (1, 1, 0, 2, 2)
    merged = Merged(labels, numbers, None)
    kept = keep_corrected(merged, corrections(((0, 0, 2), 7)))
    assert kept.instances_dhw is not None
    assert kept.instances_dhw[0, 0].tolist() == [1, 1, 1, 1, 1]
    assert kept.instances_dhw.max() == 1
    kept = keep_corrected(merged, corrections(((0, 0, 1), 0), ((2, 3, 4), 7), of=labels))
    assert kept.instances_dhw is not None
    assert kept.instances_dhw[0, 0].tolist() == [1, 0, 0, 2, 2]
    assert kept.instances_dhw[2, 3, 4] == 3


def test_a_class_that_nobody_corrected_stays_where_it_reaches_into_what_was_drawn() -> None:
    result = np.zeros((6, 6, 6), np.uint8)
    result[:3] = 1
    drawn, answered = result.copy(), result.copy()
    drawn[3, 2:4, 2:4] = 4
    answered[3, 2, 2] = 1
    made = [Correction.of(result, drawn, (1, 4))]
    kept = keep_corrected(Merged(answered, None, None), made)
    np.testing.assert_array_equal(kept.labels_dhw, drawn)


def test_no_rim_stays_around_what_was_erased() -> None:
    """The model finds it again, a voxel wider; what is by itself and was not erased stays."""
    before, answered = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    before[0, 0, 1:4], before[2, 0, :2] = 7, 7
    answered[0, 0], answered[2, 0, :2], answered[2, 3] = 7, 7, 7
    erased = corrections(((0, 0, 1), 0), ((0, 0, 2), 0), ((0, 0, 3), 0), of=before)
    kept = keep_corrected(Merged(answered, None, None), erased)
    assert np.argwhere(kept.labels_dhw)[:, 0].tolist() == [2] * 7
    a_part = keep_corrected(Merged(answered, None, None), erased[:2])
    assert a_part.labels_dhw[0, 0].tolist() == [0, 0, 0, 7, 7]


def test_a_lesion_that_is_found_later_covers_no_drawn_organ() -> None:
    """But for one that was erased since, or lies where nothing was drawn."""
    labels = np.full(SHAPE, 7, np.uint8)
    merged = Merged(labels, labels.astype(np.uint32), None, 0, 0, np.zeros(SHAPE, np.bool_))
    made = corrections(((0, 0, 0), 1), ((0, 0, 1), 1), ((0, 0, 1), 0))
    kept = drawn_last(merged, made)
    assert kept.labels_dhw[0, 0, :3].tolist() == [1, 7, 7]
    assert kept.instances_dhw is not None
    assert kept.instances_dhw[0, 0, :3].tolist() == [0, 7, 7]
    assert kept.overruled_dhw is not None
    assert np.argwhere(kept.overruled_dhw).tolist() == [[0, 0, 0]]
    assert labels.all()
    assert drawn_last(merged, []) is merged
