"""Spatial prompts from a person's annotation: the hybrid mode.

An annotation is a label map on the case's grid. It is `S_p` for the labels that it holds; the other
classes take the coarse prediction.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from medals_rt.common.arrays import label_dtype, look_up, namespace, present_values, to_host
from medals_rt.common.errors import CaseError, InputError
from medals_rt.common.typing import Array
from medals_rt.planning.policy import Preset, load_policy
from medals_rt.postprocessing.component_filter import drop_small_components
from medals_rt.prompts.prompt_set import PromptSet


def checked_annotation(
    annotation: npt.NDArray[Any] | None, shape_dhw: tuple[int, ...], prompts: PromptSet
) -> npt.NDArray[Any] | None:
    """Check that an annotation lies on the image's grid and holds only labels of the prompts.

    Returns
    -------
    numpy.ndarray or None
        `(D, H, W)`, uint8 (uint16 where a label needs it); None where there is no annotation.

    Raises
    ------
    CaseError
        It has another shape, holds no integers, no label at all, or labels that no prompt names.
    """
    if annotation is None:
        return None
    array = np.asarray(annotation)
    check_label_map(array, shape_dhw, "the annotation")
    found = labels_in(array)
    unknown = sorted(found - set(prompts.labels))
    if unknown:
        raise CaseError(
            f"the annotation holds labels that no prompt names: {unknown}; the prompts' labels are "
            f"{sorted(prompts.labels)}",
            code="annotation-labels",
        )
    if not found:
        raise CaseError(
            "the annotation is empty: leave it out, or draw something", code="annotation-empty"
        )
    return array.astype(label_dtype(max(prompts.labels)))


def check_label_map(array: npt.NDArray[Any], shape_dhw: tuple[int, ...], what: str) -> None:
    """Check that labels lie on the image's grid, as far as shapes tell, and are integers.

    Raises
    ------
    CaseError
        ``annotation-shape`` or ``annotation-type``.
    """
    if array.shape != tuple(shape_dhw):
        raise CaseError(
            f"{what} has shape {array.shape}, the image {tuple(shape_dhw)} (D, H, W): "
            "use one drawn on this image's grid",
            code="annotation-shape",
        )
    if array.dtype.kind not in "biu":
        raise CaseError(
            f"{what} must hold integer labels, its type is {array.dtype}",
            code="annotation-type",
        )


def check_start(preset: Preset, *, annotated: bool) -> None:
    """Refuse an annotation where refinement is to start from the text alone.

    Raises
    ------
    InputError
        ``annotation-not-used``.
    """
    if annotated and preset.start_from == "text":
        raise InputError(
            "refinement that starts from the text alone doesn't use spatial prompts: leave them "
            "out, or start from the coarse labels",
            code="annotation-not-used",
        )


def labels_in(array: Array | None) -> set[int]:
    """Labels that a label map holds, without the background."""
    return set() if array is None else present_values(array)


def only_labels(labels_dhw: npt.NDArray[Any], kept: Collection[int]) -> npt.NDArray[Any]:
    """Keep some labels of a map of integers from 0 on; 0 for all else."""
    highest = max(kept, default=0)
    if int(labels_dhw.max(initial=0)) > highest:  # a table of all that is there has no bound
        labels_dhw = np.where(labels_dhw > highest, 0, labels_dhw)
    table = np.zeros(highest + 1, label_dtype(highest))
    table[list(kept)] = list(kept)
    return to_host(look_up(table, labels_dhw))


def fine_prompts(coarse_dhw: Array, annotation_dhw: Array | None, *, lesion: bool) -> Array:
    """Make the fine stage's prompts: the coarse labels with the annotation over them.

    Specks of the coarse foreground are dropped for anatomy (section 6, rule 2). Labels that the
    annotation holds come from it alone.

    Parameters
    ----------
    coarse_dhw, annotation_dhw
        Label maps `(D, H, W)` on one grid and device.
    lesion
        Lesions keep their specks: a small lesion is still a lesion.
    """
    xp = namespace(coarse_dhw)
    labels = coarse_dhw
    if not lesion:
        nothing = xp.zeros((), dtype=labels.dtype, device=labels.device)
        fewest = load_policy().components.fewest_voxels
        labels = xp.where(drop_small_components(labels > 0, fewest), labels, nothing)
    if annotation_dhw is None:
        return labels
    return drawn_over(labels, annotation_dhw, labels_in(annotation_dhw))


def drawn_over(labels: Array, drawn: Array, replaced: Collection[int]) -> Array:
    """Draw over a label map, of which the labels `replaced` go: they come from the drawing alone.

    Both are ``(A, B, C)``, on one grid and device; what is 0 in `drawn` is not drawn over.
    """
    xp = namespace(labels)
    stays = np.ones(int(xp.max(labels)) + 1, dtype=np.bool_)
    stays[[label for label in replaced if label < len(stays)]] = False
    nothing = xp.zeros((), dtype=labels.dtype, device=labels.device)
    kept = xp.where(look_up(stays, labels), labels, nothing)
    return xp.where(drawn > 0, xp.astype(drawn, labels.dtype), kept)
