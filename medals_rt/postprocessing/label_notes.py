"""What a person should look at in a label map: classes that are missing, organs that are cut."""

from __future__ import annotations

from collections.abc import Mapping

from medals_rt.common.arrays import present_values
from medals_rt.common.choices import traits_of
from medals_rt.common.notes import Note, warning
from medals_rt.common.typing import Array
from medals_rt.prompts.prompt_set import PromptSet

_SIDES_DHW = (("feet", "head"), ("front", "back"), ("right", "left"))
"""Of the canonical orientation: the side of the lowest and of the highest index."""


def label_notes(
    labels_dhw: Array, prompts: PromptSet, voxels: Mapping[int, int]
) -> tuple[Note, ...]:
    """Note which classes were not found, and which reach the edge of the image.

    Only the six faces are read. What reaches an edge is probably cut there, so that its volume is
    that of a part. An axis of a single voxel has no edge, and a microscope's image has no organs.

    Parameters
    ----------
    labels_dhw
        Final labels, canonical orientation, NumPy or CuPy.
    prompts
        The classes asked for.
    voxels
        How many voxels each label has; labels that are missing have none.

    Returns
    -------
    tuple of Note
        At most two: a warning ``"class-not-found"`` and a remark ``"cut-by-edge"``.
    """
    names = {each.label: each.class_key.name for each in prompts.prompts}
    notes = []
    missing = [name for label, name in names.items() if not voxels.get(label, 0)]
    if missing:
        notes.append(warning("class-not-found", f"asked for and not found: {', '.join(missing)}"))
    if traits_of(prompts.modality).has_body:
        cut = _sides_reached(labels_dhw)
        listed = [
            f"{name} ({', '.join(cut[label])})" for label, name in names.items() if label in cut
        ]
        if listed:
            text = (
                "cut off at the edge of the scan, so that the volume is of the visible part only: "
                f"{', '.join(listed)}"
            )
            notes.append(Note("cut-by-edge", text))
    return tuple(notes)


def _sides_reached(labels_dhw: Array) -> dict[int, list[str]]:
    """Find for each label the sides of the image that it touches."""
    reached: dict[int, list[str]] = {}
    for axis, sides in enumerate(_SIDES_DHW):
        if labels_dhw.shape[axis] == 1:
            continue
        for index, side in zip((0, -1), sides, strict=True):
            face = [slice(None)] * 3
            face[axis] = slice(index, None if index else 1)
            for label in present_values(labels_dhw[tuple(face)]):
                reached.setdefault(label, []).append(side)
    return reached
