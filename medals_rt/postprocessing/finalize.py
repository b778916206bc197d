"""What happens to a case's final labels: Algorithm 3 for anatomy, instances for lesions.

The algorithms stand in `postprocess`; this module says which of them a case gets (system rules 6.5
and 8).
"""

from __future__ import annotations

from medals_rt.common.arrays import namespace
from medals_rt.common.typing import Array
from medals_rt.planning.policy import Preset, load_policy
from medals_rt.postprocessing.component_filter import (
    drop_small_components,
    keep_probable_components,
)
from medals_rt.postprocessing.connected_components import label_components
from medals_rt.prompts.prompt_set import PromptSet

SMALLEST_COMPONENT_VOXELS = 10
"""Components of fewer voxels are taken for noise (section 6, rules 2 and 5)."""


def treated_labels(voxels: int, prompts: PromptSet, preset: str) -> tuple[int, ...]:
    """Labels that Algorithm 3 treats in a case of so many voxels under a preset."""
    policy = load_policy()
    limit = policy.preset(preset).components.fewer_voxels_than
    if limit is not None and voxels >= limit:
        return ()
    return tuple(
        each.label for each in prompts.prompts if policy.treats_components(each.class_key, preset)
    )


def finish_labels(
    labels_dhw: Array,
    probability_dhw: Array | None,
    treated: tuple[int, ...],
    *,
    lesion: bool,
    preset: Preset,
) -> tuple[Array, Array | None]:
    """Clean up the last stage's labels.

    Parameters
    ----------
    labels_dhw
        Label map of the whole grid.
    probability_dhw
        The largest probability of each voxel, float32; needed where `treated` is not empty.
    treated
        From `treated_labels`.
    lesion, preset
        What the case asks for and how.

    Returns
    -------
    labels, instances
        Labels of the same shape. Instances: uint32, each 6-connected component of one label
        numbered from 1, for lesions where the preset numbers them; else None.
    """
    if not lesion:
        if treated and probability_dhw is not None:
            ratio = preset.components.size_ratio
            labels_dhw = keep_probable_components(labels_dhw, probability_dhw, treated, ratio)
        return labels_dhw, None
    xp = namespace(labels_dhw)
    kept = drop_small_components(labels_dhw > 0, SMALLEST_COMPONENT_VOXELS)
    if preset.lesions == "binary":
        return xp.astype(kept, xp.uint8), None
    background = xp.zeros((), dtype=labels_dhw.dtype, device=labels_dhw.device)
    labels = xp.where(kept, labels_dhw, background)
    numbers, _ = label_components(labels)
    return labels, numbers
