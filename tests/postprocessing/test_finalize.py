"""Which cleaning a case gets, what is counted, and what is said of it."""

from typing import Any

import numpy as np
import pytest

from medals_rt.common.arrays import to_host
from medals_rt.common.errors import InputError
from medals_rt.planning.policy import load_policy
from medals_rt.postprocessing.component_filter import ComponentRemoval
from medals_rt.postprocessing.finalize import finish_labels, removal_notes, treated_labels
from medals_rt.prompts.prompt_set import parse_prompts

SPINE = parse_prompts(
    {
        "1": "Vertebrae in MRI",
        "2": "Intervertebral discs in MRI",
        "3": "Sacrum in MRI",
        "instance_label": 0,
    }
)
LESIONS = parse_prompts(
    {"2": "Liver tumors in CT", "5": "Kidney lesions in CT", "instance_label": 1}
)
PAPER, RELEASE = load_policy().preset("paper"), load_policy().preset("release")
RELEASE_LIMIT = 650 * 650 * 100


@pytest.mark.parametrize(
    ("preset", "choice", "voxels", "treated"),
    [
        ("paper", "auto", 10, (3,)),
        ("paper", "auto", RELEASE_LIMIT, (3,)),
        ("paper", "all", 10, (1, 2, 3)),
        ("paper", "off", 10, ()),
        ("release", "auto", RELEASE_LIMIT - 1, (3,)),
        ("release", "auto", RELEASE_LIMIT, ()),
        ("release", "all", RELEASE_LIMIT, (1, 2, 3)),
        ("release", "off", 10, ()),
    ],
)
def test_which_labels_are_treated(
    preset: str, choice: Any, voxels: int, treated: tuple[int, ...]
) -> None:
    assert treated_labels(voxels, SPINE, preset, choice) == treated


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(InputError) as refused:
        treated_labels(10, SPINE, "paper", "components")  # type: ignore[arg-type]
    assert refused.value.code == "postprocess-unknown"


def spine() -> tuple[np.ndarray, np.ndarray]:
    """Twenty vertebrae; a sacrum in two pieces, the smaller one of which is unlikely."""
    labels = np.zeros((82, 9, 9), np.uint8)
    labels[1:81:4, 3:6, 3:6] = 1
    labels[2:62, 1, 1:7] = 3
    labels[70:74, 1, 2] = 3
    probability = np.full(labels.shape, 0.8, np.float32)
    probability[70:] = 0.55
    return labels, probability


def test_twenty_vertebrae_stay_twenty(xp: Any) -> None:
    labels, probability = spine()
    treated = treated_labels(labels.size, SPINE, "paper")
    final = finish_labels(
        xp.asarray(labels), xp.asarray(probability), treated, lesion=False, preset=PAPER
    )
    expected = labels.copy()
    expected[70:74, 1, 2] = 0
    np.testing.assert_array_equal(to_host(final.labels_dhw), expected)
    assert final.instances_dhw is None
    assert final.removals == (ComponentRemoval(3, 1, 4, 360),)


def test_all_removes_all_but_one_vertebra() -> None:
    """What the printed algorithm does to them, and says that it did."""
    labels, probability = spine()
    treated = treated_labels(labels.size, SPINE, "paper", "all")
    final = finish_labels(labels, probability, treated, lesion=False, preset=PAPER)
    assert final.removals[0] == ComponentRemoval(1, 19, 171, 9)
    notes = removal_notes(final.removals, SPINE, voxel_ml=0.5)
    assert [(note.code, note.severity) for note in notes] == [
        ("components-removed", "warning"),
        ("crumbs-removed", "info"),  # 4 of 364 voxels
    ]
    assert "19 components (85.5 mL)" in str(notes[0])
    assert str(notes[1]).endswith("left out of Sacrum (1 piece, 2 mL)")


def test_off_changes_nothing() -> None:
    labels, _ = spine()
    treated = treated_labels(labels.size, SPINE, "paper", "off")
    final = finish_labels(labels, None, treated, lesion=False, preset=PAPER)
    np.testing.assert_array_equal(final.labels_dhw, labels)
    assert removal_notes(final.removals, SPINE, 1.0) == ()


def test_components_are_not_left_untreated_for_lack_of_a_probability() -> None:
    labels, _ = spine()
    with pytest.raises(ValueError, match="probability"):
        finish_labels(labels, None, (3,), lesion=False, preset=PAPER)


def lesions() -> np.ndarray:
    labels = np.zeros((5, 5, 12), np.uint8)
    labels[0, 0, :10] = 2
    labels[2, 0, :9] = 2
    labels[4, 0, :3] = 5
    labels[4, 4, :6] = 2  # one component of two labels
    labels[4, 4, 6:12] = 5
    return labels


def test_lesions_lose_specks_and_are_numbered(xp: Any) -> None:
    final = finish_labels(xp.asarray(lesions()), None, (), lesion=True, preset=PAPER)
    expected = lesions()
    expected[2, 0] = expected[4, 0] = 0
    np.testing.assert_array_equal(to_host(final.labels_dhw), expected)
    instances = to_host(final.instances_dhw)
    assert instances.dtype == np.uint32
    assert instances.max() == 3
    assert len(np.unique(instances[4, 4])) == 2
    removed = {each.label: each for each in final.removals}
    assert (removed[2].components_removed, removed[2].voxels_removed) == (1, 9)
    assert (removed[5].components_removed, removed[5].voxels_removed) == (1, 3)
    assert len(removal_notes(final.removals, LESIONS, 1.0)) == 2


def test_the_release_gives_lesions_as_one_mask(xp: Any) -> None:
    final = finish_labels(xp.asarray(lesions()), None, (), lesion=True, preset=RELEASE)
    found = to_host(final.labels_dhw)
    assert found.dtype == np.uint8
    assert np.unique(found).tolist() == [0, 1]
    assert final.instances_dhw is None
    assert found.sum() == 22


def test_nothing_found_nothing_removed(xp: Any) -> None:
    empty = xp.zeros((3, 4, 5), dtype=xp.uint8)
    for lesion in (True, False):
        final = finish_labels(
            empty, xp.zeros((3, 4, 5), dtype=xp.float32), (1,), lesion=lesion, preset=PAPER
        )
        assert final.removals == ()
        assert not to_host(final.labels_dhw).any()
