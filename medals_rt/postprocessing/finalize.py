"""What happens to a case's final labels: Algorithm 3 for anatomy, instances for lesions.

The algorithms are those of `component_filter`; this module says which of them a case gets
(docs/algorithm.md, section 8), and what a person should know of the outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medals_rt.common.arrays import namespace
from medals_rt.common.choices import POSTPROCESS, Postprocess
from medals_rt.common.errors import InputError
from medals_rt.common.notes import Note, warning
from medals_rt.common.typing import Array
from medals_rt.planning.policy import Preset, load_policy
from medals_rt.postprocessing.component_filter import (
    ComponentRemoval,
    keep_probable_components,
    remove_specks,
)
from medals_rt.postprocessing.connected_components import label_components
from medals_rt.prompts.prompt_set import PromptSet

_LARGEST_UNREMARKABLE_SHARE = 0.02
"""Of a class's voxels: Algorithm 3 mostly removes crumbs, of which no one needs a warning."""


@dataclass(frozen=True, eq=False)
class FinalLabels:
    """The labels of a case after post-processing.

    Attributes
    ----------
    labels_dhw
        Label map.
    instances_dhw
        uint32, each 6-connected component of one label numbered from 1, for lesions where the
        preset numbers them; else None.
    removals
        What was removed, for each label that was treated and is there.
    """

    labels_dhw: Array
    instances_dhw: Array | None
    removals: tuple[ComponentRemoval, ...]


def treated_labels(
    voxels: int, prompts: PromptSet, preset: str | Preset, choice: Postprocess = "auto"
) -> tuple[int, ...]:
    """Labels that Algorithm 3 treats in a case of so many voxels under a preset.

    Parameters
    ----------
    voxels
        Of the image: a preset may leave large ones alone.
    prompts, preset
        The classes and whose rule applies to them.
    choice
        ``"auto"``: the preset's rule. ``"all"``: every anatomy class, whatever the image's size.
        ``"off"``: none.

    Raises
    ------
    InputError
        There is no such choice or preset.
    """
    if choice not in POSTPROCESS:
        raise InputError(
            f"no post-processing {choice!r}: choose one of {', '.join(POSTPROCESS)}",
            code="postprocess-unknown",
        )
    policy = load_policy()
    limit = policy.preset(preset).components.fewer_voxels_than
    if choice == "auto" and limit is not None and voxels >= limit:
        return ()
    return tuple(
        each.label
        for each in prompts.prompts
        if policy.treats_components(each.class_key, preset, choice)
    )


def finish_labels(
    labels_dhw: Array,
    probability_dhw: Array | None,
    treated: tuple[int, ...],
    *,
    lesion: bool,
    preset: Preset,
    known_dhw: Array | None = None,
) -> FinalLabels:
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
    known_dhw
        What a person has seen to, as for `keep_probable_components`; None: nothing.

    Raises
    ------
    ValueError
        Labels are to be treated, and the probability is missing.
    """
    if not lesion:
        if not treated:
            return FinalLabels(labels_dhw, None, ())
        if probability_dhw is None:
            raise ValueError("components are chosen by their probability, and there is none")
        rule = preset.components
        labels, removals = keep_probable_components(
            labels_dhw,
            probability_dhw,
            treated,
            rule.size_ratio,
            keeps_cut_pieces=rule.keeps_cut_pieces,
            known=known_dhw,
        )
        return FinalLabels(labels, None, removals)
    xp = namespace(labels_dhw)
    labels, removals = remove_specks(labels_dhw, load_policy().components.fewest_voxels)
    if preset.lesions == "binary":
        return FinalLabels(xp.astype(labels > 0, xp.uint8), None, removals)
    numbers, _ = label_components(labels)
    return FinalLabels(labels, numbers, removals)


def removal_notes(
    removals: Sequence[ComponentRemoval], prompts: PromptSet, voxel_ml: float
) -> tuple[Note, ...]:
    """Note what post-processing removed: a line a class where it was much, one for all crumbs.

    Much is more than 2 % of what had been found: it may have been a true object, and is a warning.

    Parameters
    ----------
    removals
        From `finish_labels`.
    prompts
        Whose labels they are.
    voxel_ml
        Volume of a voxel in mL.
    """
    names = {each.label: each.class_key.name for each in prompts.prompts}
    notes, crumbs = [], []
    for each in removals:
        if not each.components_removed:
            continue
        count, ml = each.components_removed, each.voxels_removed * voxel_ml
        if each.voxels_removed > _LARGEST_UNREMARKABLE_SHARE * (
            each.voxels_removed + each.voxels_kept
        ):
            text = (
                f"{names[each.label]}: post-processing removed {count} "
                f"component{'s' if count > 1 else ''} ({ml:.3g} mL)"
            )
            notes.append(warning("components-removed", text))
        else:
            pieces = "1 piece" if count == 1 else f"{count} pieces"
            crumbs.append(f"{names[each.label]} ({pieces}, {ml:.3g} mL)")
    if crumbs:
        text = f"small separate pieces were left out of {', '.join(crumbs)}"
        notes.append(Note("crumbs-removed", text))
    return tuple(notes)
