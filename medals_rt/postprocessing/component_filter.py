"""Connected components: drop small ones, keep the probable (Algorithm 3).

Connectivity is 6 throughout. Each function labels once what lies in the bounding box of the voxels
that it is about, whatever the number of labels, and works on tables of components afterwards. None
ever adds a voxel.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from medals_rt.common.arrays import bounding_box, box_slices, namespace
from medals_rt.common.typing import Array
from medals_rt.postprocessing.connected_components import (
    component_means,
    keep_components,
    measure_components,
)

_LARGEST_CONSIDERED = 3
_LARGEST_TRUSTED = 2
_CLOSE_TO_BEST = np.float32(0.1)
_SURE_ABOVE = np.float32(0.86)


def drop_small_components(mask: Array, min_voxels: int = 10) -> Array:
    """Remove the components of `mask` with fewer than `min_voxels` voxels.

    Parameters
    ----------
    mask
        ``(A, B, C)`` bool.
    min_voxels
        The smallest size that stays (system section 6: 10).

    Returns
    -------
    Array
        ``(A, B, C)`` bool, a new array.
    """
    result = namespace(mask).asarray(mask, copy=True)
    box = bounding_box(mask)
    if box is None:
        return result
    inside = box_slices(box)
    components = measure_components(mask[inside])
    result[inside] = keep_components(mask[inside], components, components.sizes >= min_voxels)
    return result


def keep_probable_components(
    labels: Array,
    probability: Array,
    labels_to_treat: Iterable[int],
    size_ratio: float | None = None,
) -> Array:
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

    Returns
    -------
    Array
        A new label map of the same dtype; removed voxels are 0.
    """
    xp = namespace(labels)
    result = xp.asarray(labels, copy=True)
    box = bounding_box(labels)
    if box is None:
        return result
    inside = box_slices(box)
    components = measure_components(labels[inside])
    means = component_means(components, probability[inside])
    treated = np.isin(components.labels, [int(label) for label in labels_to_treat])
    stays = _chosen(components.labels, components.sizes, means, size_ratio) | ~treated
    if not stays.all():
        result[inside] = keep_components(labels[inside], components, stays)
    return result


def _chosen(
    labels: npt.NDArray[np.integer],
    sizes: npt.NDArray[np.integer],
    means: npt.NDArray[np.float32],
    size_ratio: float | None,
) -> npt.NDArray[np.bool_]:
    """Say for each component of a table, in the order of first appearance, whether it stays."""
    stays = np.zeros(len(labels), dtype=np.bool_)
    order = np.lexsort((-sizes, labels))  # stable: of equal sizes the first met comes first
    for group in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        if len(group):
            stays[_kept_of_one_label(group[:_LARGEST_CONSIDERED], sizes, means, size_ratio)] = True
    return stays


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
