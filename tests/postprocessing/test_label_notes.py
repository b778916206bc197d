"""Classes that are missing, and organs at the edge of the image."""

from typing import Any

import numpy as np

from medals_rt.postprocessing.label_notes import label_notes
from medals_rt.prompts.prompt_set import parse_prompts

CT = parse_prompts({"3": "Liver in abdominal CT", "7": "Spleen in CT", "9": "Aorta in CT"})
FACES = {
    "feet": (0, 2, 2),
    "head": (-1, 2, 2),
    "front": (2, 0, 2),
    "back": (2, -1, 2),
    "right": (2, 2, 0),
    "left": (2, 2, -1),
}


def test_what_was_not_found_is_told() -> None:
    labels = np.zeros((5, 5, 5), np.uint8)
    labels[2, 2, 2] = 7
    (note,) = label_notes(labels, CT, {7: 1, 9: 0})
    assert (note.code, note.severity) == ("class-not-found", "warning")
    assert "Liver, Aorta" in note.text
    assert "Spleen" not in note.text


def test_each_side_of_the_image(xp: Any) -> None:
    voxels = dict.fromkeys(CT.labels, 1)
    for side, index in FACES.items():
        labels = np.zeros((5, 5, 5), np.uint8)
        labels[index] = 9
        labels[1:4, 1:4, 1:4] = 3
        (note,) = label_notes(xp.asarray(labels), CT, voxels)
        assert (note.code, note.severity) == ("cut-by-edge", "info")
        assert note.text.endswith(f"Aorta ({side})")


def test_a_corner_is_of_three_sides() -> None:
    labels = np.zeros((5, 5, 5), np.uint16)
    labels[0, 0, 0] = 7
    (note,) = label_notes(labels, CT, dict.fromkeys(CT.labels, 1))
    assert note.text.endswith("Spleen (feet, front, right)")


def test_inside_the_image_nothing_is_cut() -> None:
    labels = np.zeros((5, 5, 5), np.uint8)
    labels[1:4, 1:4, 1:4] = 7
    assert label_notes(labels, CT, dict.fromkeys(CT.labels, 1)) == ()


def test_one_slice_has_no_ends() -> None:
    labels = np.zeros((1, 5, 5), np.uint8)
    labels[0, 2, 2] = 7
    assert label_notes(labels, CT, dict.fromkeys(CT.labels, 1)) == ()


def test_a_microscope_shows_no_organs() -> None:
    cells = parse_prompts({"1": "Nuclei in microscopy", "instance_label": 1})
    assert label_notes(np.ones((5, 5, 5), np.uint8), cells, {1: 125}) == ()
