"""Voxels that a person corrected keep what they were made, whatever the model answers there.

The model is shown a correction and looks again around it (`inference.corrections`); half of what
was drawn is hidden from it at a time, and what it then says of those voxels is its own opinion. It
may draw what was erased once more, and a voxel farther: the rim that would stay goes, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from medals_rt.common.arrays import to_host
from medals_rt.common.notes import Note
from medals_rt.inference.corrections import Correction, corrected_labels
from medals_rt.pipeline.window_groups import Merged
from medals_rt.postprocessing.component_filter import drop_remains
from medals_rt.postprocessing.connected_components import label_components


def keep_corrected(merged: Merged, corrections: Sequence[Correction]) -> Merged:
    """Set corrected voxels to what they were made, later corrections over earlier ones.

    Lesions are numbered again, for corrections may join, part, add or remove them.

    Parameters
    ----------
    merged
        Labels of one kind.
    corrections
        Of this kind's labels alone (`inference.corrections.parts_of`).
    """
    if not corrections:
        return merged
    labels = merged.labels_dhw.copy()
    for each in corrections:
        each.apply(labels)
    # a class that nobody corrected may reach into what was drawn: nothing of it was erased
    touched = set[int]().union(*(each.labels for each in corrections))
    found = np.where(np.isin(merged.labels_dhw, list(touched)), merged.labels_dhw, labels)
    labels = to_host(drop_remains(labels, found, corrected_labels(corrections)))
    instances = merged.instances_dhw
    if instances is not None:
        instances = to_host(label_components(labels)[0])
    overruled = labels != merged.labels_dhw
    return replace(merged, labels_dhw=labels, instances_dhw=instances, overruled_dhw=overruled)


def drawn_last(merged: Merged, corrections: Sequence[Correction]) -> Merged:
    """Draw again what labels of another kind cover, unless it was erased since.

    Parameters
    ----------
    merged
        Labels of all kinds.
    corrections
        Of all labels.
    """
    if not corrections:
        return merged
    labels, settled = merged.labels_dhw.copy(), np.zeros(merged.labels_dhw.shape, np.bool_)
    for each in reversed(corrections):
        drawn = each.changed_dhw & (each.after_dhw > 0) & ~settled[each.box]
        labels[each.box][drawn] = each.after_dhw[drawn]
        settled[each.box] |= each.changed_dhw
    covered = labels != merged.labels_dhw
    instances = merged.instances_dhw
    if instances is not None:
        instances = np.where(covered, np.uint32(0), instances)
    overruled = covered if merged.overruled_dhw is None else merged.overruled_dhw | covered
    return replace(merged, labels_dhw=labels, instances_dhw=instances, overruled_dhw=overruled)


def corrected_notes(corrections: Sequence[Correction], merged: Merged) -> tuple[Note, ...]:
    """Note how many voxels are as corrected, and how many the model answered otherwise."""
    by_hand = [each for each in corrections if not each.is_earlier]
    if not by_hand:
        return ()
    changed = np.zeros(merged.labels_dhw.shape, np.bool_)
    made = np.zeros(merged.labels_dhw.shape, np.int32)
    for each in by_hand:
        changed[each.box] |= each.changed_dhw
        each.apply(made)
    # A lesion that was erased may lie in an organ, which is there then.
    taken = changed & (made == 0) & (merged.labels_dhw != 0)
    changed &= ~taken
    count = int(np.count_nonzero(changed))
    text = f"{count:,} voxel{' is' if count == 1 else 's are'} as corrected by hand"
    overruled = merged.overruled_dhw
    otherwise = 0 if overruled is None else int(np.count_nonzero(overruled & changed))
    if otherwise:
        text += f"; the model had answered otherwise in {otherwise:,} of them"
    if beneath := int(np.count_nonzero(taken)):
        text += f"; {beneath:,} more, which were erased, are of another class now"
    return (Note("corrected-by-hand", text),)
