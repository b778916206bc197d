"""Voxels that a person corrected keep what they were made, whatever the model answers there.

The model is shown a correction and looks again around it (`inference.corrections`); half of what
was drawn is hidden from it at a time, and what it then says of those voxels is its own opinion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from medals_rt.common.arrays import to_host
from medals_rt.common.notes import Note
from medals_rt.inference.corrections import Correction
from medals_rt.pipeline.window_groups import Merged
from medals_rt.postprocessing.connected_components import label_components
from medals_rt.prompts.prompt_set import PromptSet


def keep_corrected(
    merged: Merged, corrections: Sequence[Correction], prompts: PromptSet
) -> tuple[Merged, tuple[Note, ...]]:
    """Give corrected voxels their labels again, those of later corrections last.

    Lesions are numbered again, for corrections may join, part, add or remove them.

    Returns
    -------
    merged
        Of the same arrays where there are no corrections.
    notes
        How many voxels that were, and how many the model answered otherwise.
    """
    if not corrections:
        return merged, ()
    labels = merged.labels_dhw.copy()
    for each in corrections:
        each.apply(labels)
    count = len(np.unique(np.concatenate([each.changed_dhw for each in corrections]), axis=0))
    otherwise = int(np.count_nonzero(labels != merged.labels_dhw))
    text = f"{count:,} voxel{' is' if count == 1 else 's are'} as corrected by hand"
    if otherwise:
        text += f"; the model had answered otherwise in {otherwise:,} of them"
    instances = merged.instances_dhw
    if instances is not None:
        lesions = [each.label for each in prompts.prompts if each.class_key.kind == "lesion"]
        found = np.where(np.isin(labels, lesions), labels, np.zeros_like(labels))
        instances = to_host(label_components(found)[0])
    kept = replace(merged, labels_dhw=labels, instances_dhw=instances)
    return kept, (Note("corrected-by-hand", text),)
