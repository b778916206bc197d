"""Connected components: drop small ones, keep the probable (Algorithm 3).

Connectivity is 6 throughout. Each function numbers the components once, within the bounding box of
the voxels that it is about and whatever the number of labels, and works on tables of components
afterwards. None ever adds a voxel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medals_rt.common.arrays import bounding_box, box_slices, namespace, to_host
from medals_rt.common.typing import Array
from medals_rt.postprocessing.connected_components import (
    Components,
    component_means,
    cut_components,
    keep_components,
    label_components,
    measure_components,
    values_of_components,
)

_LARGEST_CONSIDERED = 3
_LARGEST_TRUSTED = 2
_CLOSE_TO_BEST = np.float32(0.1)
_SURE_ABOVE = np.float32(0.86)


@dataclass(frozen=True)
class ComponentRemoval:
    """What was removed of one label, and what stayed.

    Attributes
    ----------
    label
        The label value.
    components_removed, voxels_removed
        6-connected components that became background, and their voxels.
    voxels_kept
        Voxels of the label afterwards.
    """

    label: int
    components_removed: int
    voxels_removed: int
    voxels_kept: int


def drop_small_components(mask: Array, min_voxels: int) -> Array:
    """Remove the components of `mask` with fewer than `min_voxels` voxels.

    Parameters
    ----------
    mask
        ``(A, B, C)`` bool.
    min_voxels
        The smallest size that stays.

    Returns
    -------
    Array
        ``(A, B, C)`` bool, a new array.
    """
    kept, _ = remove_specks(mask, min_voxels)
    return kept


def remove_specks(labels: Array, min_voxels: int) -> tuple[Array, tuple[ComponentRemoval, ...]]:
    """Remove the small components of a label map's foreground, and count them by label.

    Parameters
    ----------
    labels
        ``(A, B, C)`` integers, 0 for background, or bool. Touching labels are one component.
    min_voxels
        The smallest size that stays.

    Returns
    -------
    labels
        A new label map of the same dtype.
    removals
        One for each label that is there; a component of several labels is counted for one of them.
    """
    xp = namespace(labels)
    result = xp.asarray(labels, copy=True)
    box = bounding_box(labels)
    if box is None:
        return result, ()
    inside = box_slices(box)
    components = measure_components(xp.astype(labels[inside], xp.bool))
    stays = components.sizes >= min_voxels
    result[inside] = keep_components(labels[inside], components, stays)
    values = values_of_components(components, labels[inside])
    return result, _removals(values, components.sizes, stays, np.unique(values).tolist())


def keep_probable_components(
    labels: Array,
    probability: Array,
    labels_to_treat: Iterable[int],
    size_ratio: float | None = None,
    *,
    keeps_cut_pieces: bool = False,
    known: Array | None = None,
) -> tuple[Array, tuple[ComponentRemoval, ...]]:
    """Keep the components of each class that are likely, or failing that large (Algorithm 3).

    Of the three largest components of a label, K are those whose mean probability is within 0.1 of
    the best mean and above 0.86. Two or more: K stays. Otherwise the component of the best mean
    stays if it is among the two largest and, where `size_ratio` is given, has more than that share
    of the largest's voxels; else the largest stays. Of equal sizes the component met first counts
    as larger; of equal means the larger component as better.

    Parameters
    ----------
    labels
        ``(A, B, C)`` integers, 0 for background.
    probability
        ``(A, B, C)`` float32: each voxel's largest class probability.
    labels_to_treat
        The labels that are treated; others stay as they are.
    size_ratio
        Paper: 0.6. None: no such condition, as in the release.
    keeps_cut_pieces
        Whether a component at the edge of the image stays wherever its mean is within 0.1 of the
        best mean, however small or many: it may be joined to the others outside the image. Axes of
        a single voxel have no edge. Neither the paper nor the release does this.
    known
        ``(A, B, C)`` labels that a person has seen to, 0 where nobody has; None: there are none.
        Of a label of which components share voxels with it, those stay and no others: which piece
        of a class is the true one was decided by whoever corrected it.

    Returns
    -------
    labels
        A new label map of the same dtype; removed voxels are 0.
    removals
        One for each label that was treated and is there, in the order of the labels' values.
    """
    xp = namespace(labels)
    result = xp.asarray(labels, copy=True)
    box = bounding_box(labels)
    if box is None:
        return result, ()
    inside = box_slices(box)
    components = measure_components(labels[inside])
    means = component_means(components, probability[inside])
    to_treat = sorted({int(label) for label in labels_to_treat})
    stays = _chosen(components.labels, components.sizes, means, size_ratio)
    if keeps_cut_pieces:
        edges = [
            (low == 0 and size > 1, high == size and size > 1)
            for low, high, size in zip(*box, labels.shape, strict=True)
        ]
        best = _best_means(components.labels, components.sizes, means)
        stays |= cut_components(components, edges) & (best - means <= _CLOSE_TO_BEST)
    if known is not None:
        is_known = _share_voxels(components, labels[inside], known[inside])
        settled = np.isin(components.labels, components.labels[is_known])
        stays = np.where(settled, is_known, stays)
    stays |= ~np.isin(components.labels, to_treat)
    if not stays.all():
        result[inside] = keep_components(labels[inside], components, stays)
    return result, _removals(components.labels, components.sizes, stays, to_treat)


def drop_remains(labels: Array, found: Array, known: Array) -> Array:
    """Remove what is left of components most of which a person erased.

    A model may find what was erased once more, a voxel wider: its rim would stay around the hole.

    Parameters
    ----------
    labels
        ``(A, B, C)`` integers, 0 for background: what was found, as it was corrected.
    found
        The same before it was corrected.
    known
        As for `keep_probable_components`: components that share voxels with it stay.

    Returns
    -------
    Array
        A new label map of the same dtype, without those components that hung together with a voxel
        that lost its label and share none with `known`.
    """
    xp = namespace(labels)
    result = xp.asarray(labels, copy=True)
    lost = (found > 0) & (labels != found)
    whole = xp.where(lost, found, labels)
    box = bounding_box(whole)
    if not bool(xp.any(lost)) or box is None:
        return result
    inside = box_slices(box)
    before, count = label_components(whole[inside])
    has_lost = np.zeros(count + 1, np.bool_)
    has_lost[to_host(xp.unique_values(before[lost[inside]]))] = True
    components = measure_components(labels[inside])
    came_from = values_of_components(components, before)
    stays = ~has_lost[came_from] | _share_voxels(components, labels[inside], known[inside])
    result[inside] = keep_components(labels[inside], components, stays)
    return result


def _share_voxels(components: Components, labels: Array, known: Array) -> npt.NDArray[np.bool_]:
    """Find which components have a voxel whose label is known to be theirs, ``(n,)``."""
    shared = components.numbers[(known == labels) & (labels > 0)]
    shares = np.zeros(len(components.sizes) + 1, np.bool_)
    shares[to_host(namespace(labels).unique_values(shared))] = True
    return shares[1:]


def _removals(
    labels: npt.NDArray[Any],
    sizes: npt.NDArray[np.integer],
    stays: npt.NDArray[np.bool_],
    treated: Iterable[int],
) -> tuple[ComponentRemoval, ...]:
    """Count what goes and what stays of each label that is there, from a table of components."""
    found = []
    for label in treated:
        of_label = labels == label
        if of_label.any():
            goes, kept = sizes[of_label & ~stays], sizes[of_label & stays]
            found.append(ComponentRemoval(int(label), len(goes), int(goes.sum()), int(kept.sum())))
    return tuple(found)


def _chosen(
    labels: npt.NDArray[Any],
    sizes: npt.NDArray[np.integer],
    means: npt.NDArray[np.float32],
    size_ratio: float | None,
) -> npt.NDArray[np.bool_]:
    """Decide for each component of a table, in the order of first appearance, whether it stays."""
    stays = np.zeros(len(labels), dtype=np.bool_)
    for largest in _largest_of_each_label(labels, sizes):
        stays[_kept_of_one_label(largest, sizes, means, size_ratio)] = True
    return stays


def _best_means(
    labels: npt.NDArray[Any], sizes: npt.NDArray[np.integer], means: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return for each component the best mean among the three largest of its label."""
    best = np.zeros(len(labels), np.float32)
    for largest in _largest_of_each_label(labels, sizes):
        best[labels == labels[largest[0]]] = means[largest].max()
    return best


def _largest_of_each_label(
    labels: npt.NDArray[Any], sizes: npt.NDArray[np.integer]
) -> list[npt.NDArray[np.intp]]:
    """Find the three largest components of each label, falling in size."""
    order = np.lexsort((-sizes, labels))  # stable: of equal sizes the first met comes first
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return [group[:_LARGEST_CONSIDERED] for group in groups if len(group)]


def _kept_of_one_label(
    largest: npt.NDArray[np.intp],
    sizes: npt.NDArray[np.integer],
    means: npt.NDArray[np.float32],
    size_ratio: float | None,
) -> npt.NDArray[np.intp]:
    """Choose among the `largest` components (at most three, falling in size) of one label."""
    mean = means[largest]
    sure = (mean.max() - mean <= _CLOSE_TO_BEST) & (mean > _SURE_ABOVE)
    if np.count_nonzero(sure) >= 2:
        several: npt.NDArray[np.intp] = largest[sure]
        return several
    best = int(np.argmax(mean))
    trusted = best < _LARGEST_TRUSTED
    if size_ratio is not None:
        trusted = trusted and bool(sizes[largest[best]] > size_ratio * sizes[largest[0]])
    kept: npt.NDArray[np.intp] = largest[[best if trusted else 0]]
    return kept
