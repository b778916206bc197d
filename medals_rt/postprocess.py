"""Connected components: drop small ones, keep the probable (Algorithm 3).

Connectivity is 6 throughout. Each function labels once what lies in the bounding box of the voxels
that it is about, whatever the number of labels, and works on tables of components afterwards. None
ever adds a voxel.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from medals_rt.arrays import (
    Array,
    as_namespace,
    bounding_box,
    box_slices,
    count_values,
    label_components,
    look_up,
    namespace,
    to_host,
    value_of_each,
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
    numbers, count = label_components(mask[inside])
    stays = to_host(count_values(numbers[mask[inside]], count + 1)) >= min_voxels
    stays[0] = False
    result[inside] = look_up(stays, numbers)
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
    labels, probability = labels[inside], probability[inside]
    treated = look_up(_zero_unless(labels_to_treat, labels), labels)
    is_treated = xp.reshape(treated != 0, (-1,))
    (at,) = xp.nonzero(is_treated)
    numbers, count = label_components(treated)
    if count == 0:
        return result
    component, label, probable = (
        xp.take(xp.reshape(array, (-1,)), at) for array in (numbers, treated, probability)
    )
    sizes = to_host(count_values(component, count + 1))[1:]
    means = to_host(count_values(component, count + 1, probable))[1:] / sizes
    labels_of_components = to_host(value_of_each(component, count + 1, label))[1:]
    stays = np.ones(count + 1, dtype=np.bool_)
    stays[1:] = _chosen(labels_of_components, sizes, means.astype(np.float32), size_ratio)
    if not stays.all():
        kept = xp.take(as_namespace(stays, xp, labels), xp.astype(component, xp.int64))
        cleaned = xp.reshape(xp.asarray(labels, copy=True), (-1,))
        cleaned[is_treated] = label * xp.astype(kept, label.dtype)
        result[inside] = xp.reshape(cleaned, labels.shape)
    return result


def _zero_unless(kept: Iterable[int], labels: Array) -> Array:
    """Make a table from each value up to the largest of `labels` to itself, or to 0 if not kept."""
    xp = namespace(labels)
    table = np.zeros(int(xp.max(labels)) + 1, dtype=np.int64)
    values = [value for value in {int(each) for each in kept} if value < len(table)]
    table[values] = values
    return xp.astype(as_namespace(table, xp, labels), labels.dtype)


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
