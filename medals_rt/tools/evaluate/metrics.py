"""Scores of a segmentation against a reference, as the public challenge defines them.

DSC and NSD a label for anatomy; for lesions F1 over matched instances and the
mean DSC of the matched pairs. Everything is counted from tables of label pairs, never from one mask
a pair, so that hundreds of instances in a large volume take seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medals_rt.common.typing import HostArray
from medals_rt.tools.evaluate.surface import surface_of, surfaces_dice

_NSD_TOLERANCE_MM = 2.0
"""Distance up to which two surfaces touch, in the challenge."""

_IOU_THRESHOLD = 0.5
"""Overlap from which a predicted instance counts as found, in the challenge."""

_LARGEST_DENSE_TABLE = 1 << 24

Spacing3 = tuple[float, float, float]


@dataclass(frozen=True)
class InstanceScore:
    """How well instances were found.

    `f1` and `dsc_tp` are 0 where nothing matched, even where there was nothing to find: so does
    the public script.
    """

    true_positives: int
    false_positives: int
    false_negatives: int
    dsc_tp: float

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN)."""
        hits = 2 * self.true_positives
        counted = hits + self.false_positives + self.false_negatives
        return hits / counted if counted else 0.0


@dataclass(frozen=True)
class OverlapTable:
    """Voxel counts of the labels of two label maps and of the pairs that overlap.

    `first_labels (m,)`, `second_labels (n,)`: the labels above 0 that occur, ascending, with
    `first_sizes` and `second_sizes` voxels. Pair k joins `first_labels[pair_first[k]]` and
    `second_labels[pair_second[k]]` in `overlaps[k]` voxels; pairs without overlap are left out.
    """

    first_labels: HostArray
    first_sizes: HostArray
    second_labels: HostArray
    second_sizes: HostArray
    pair_first: HostArray
    pair_second: HostArray
    overlaps: HostArray


def overlap_table(first: HostArray, second: HostArray) -> OverlapTable:
    """Count the voxels of each label and of each pair of labels of two maps.

    Parameters
    ----------
    first, second
        Integer label maps of one shape, values of 0 (background) or more.
    """
    in_first, in_second = first != 0, second != 0
    first_labels, first_sizes = label_sizes(first[in_first])
    second_labels, second_sizes = label_sizes(second[in_second])
    both = in_first & in_second
    rows = np.searchsorted(first_labels, first[both])
    codes = rows * len(second_labels) + np.searchsorted(second_labels, second[both])
    table_size = len(first_labels) * len(second_labels)
    if table_size <= _LARGEST_DENSE_TABLE:
        counts = np.bincount(codes, minlength=table_size)
        pairs = np.flatnonzero(counts)
        overlaps = counts[pairs]
    else:
        pairs, overlaps = np.unique(codes, return_counts=True)
    pair_first, pair_second = np.divmod(pairs, max(len(second_labels), 1))
    return OverlapTable(
        first_labels, first_sizes, second_labels, second_sizes, pair_first, pair_second, overlaps
    )


def label_sizes(values: HostArray) -> tuple[HostArray, HostArray]:
    """Return the distinct values, ascending, and how often each occurs."""
    if values.size == 0 or values.max() > _LARGEST_DENSE_TABLE:
        return np.unique(values, return_counts=True)
    counts = np.bincount(values.ravel())
    labels = np.flatnonzero(counts)
    return labels, counts[labels]


def dice_by_label(
    predicted: HostArray, reference: HostArray, labels: Sequence[int]
) -> dict[int, float]:
    """Return each label's DSC; NaN for a label that is in neither map.

    Parameters
    ----------
    predicted, reference
        Integer label maps of one shape.
    labels
        The labels to score.
    """
    table = overlap_table(predicted, reference)
    predicted_sizes = dict(zip(table.first_labels.tolist(), table.first_sizes, strict=True))
    reference_sizes = dict(zip(table.second_labels.tolist(), table.second_sizes, strict=True))
    same = table.first_labels[table.pair_first] == table.second_labels[table.pair_second]
    same_labels = table.first_labels[table.pair_first[same]].tolist()
    common = dict(zip(same_labels, table.overlaps[same], strict=True))
    scores = {}
    for label in labels:
        total = predicted_sizes.get(label, 0) + reference_sizes.get(label, 0)
        scores[label] = float(2 * common.get(label, 0) / total) if total else float("nan")
    return scores


def nsd_by_label(
    predicted: HostArray,
    reference: HostArray,
    labels: Sequence[int],
    spacings_mm: Sequence[Spacing3],
    tolerance_mm: float = _NSD_TOLERANCE_MM,
) -> dict[int, tuple[float, ...]]:
    """Return each label's NSD, once for each reading of the spacing.

    Parameters
    ----------
    predicted, reference
        Three-dimensional integer label maps of one shape.
    labels
        The labels to score; one that is in neither map gets NaN.
    spacings_mm
        Voxel spacings along the maps' axes.
    tolerance_mm
        Distance up to which two surfaces touch.
    """
    from scipy.ndimage import find_objects

    boxes = [find_objects(labels_map) for labels_map in (predicted, reference)]
    scores = {}
    for label in labels:
        first, second = (box[label - 1] if label <= len(box) else None for box in boxes)
        if first is None or second is None:
            absent = first is None and second is None
            scores[label] = (float("nan") if absent else 0.0,) * len(spacings_mm)
            continue
        masks = (predicted[first] == label, reference[second] == label)
        origins = tuple(tuple(axis.start for axis in box) for box in (first, second))
        by_spacing = {}
        for spacing_mm in dict.fromkeys(spacings_mm):
            one, other = (
                surface_of(mask, spacing_mm, origin)
                for mask, origin in zip(masks, origins, strict=True)
            )
            by_spacing[spacing_mm] = surfaces_dice(one, other, spacing_mm, tolerance_mm)
        scores[label] = tuple(by_spacing[spacing_mm] for spacing_mm in spacings_mm)
    return scores


def split_binary(labels: HostArray) -> HostArray:
    """Split a map of one label into its 6-connected components; return any other map unchanged.

    The public script does this to predictions, so that a binary lesion mask can be scored.
    """
    import cc3d

    if len(np.unique(labels[labels != 0])) != 1:
        return labels
    return np.asarray(cc3d.connected_components(labels != 0, connectivity=6))


def match_instances(
    predicted: HostArray, reference: HostArray, iou_threshold: float = _IOU_THRESHOLD
) -> InstanceScore:
    """Match predicted instances with reference instances and score the matching.

    The matching is the Hungarian one on IoU. Only instances with a partner at or above the
    threshold enter it: the others can't add a true positive, and at a threshold of 0.5 or more a
    tie between partners is one of equal overlap.

    Parameters
    ----------
    predicted, reference
        Integer instance maps of one shape, 0 is background.
    iou_threshold
        Overlap from which a pair counts, in [0.5, 1].
    """
    from scipy.optimize import linear_sum_assignment

    table = overlap_table(predicted, reference)
    sizes = table.first_sizes[table.pair_first] + table.second_sizes[table.pair_second]
    iou = table.overlaps / (sizes - table.overlaps)
    close = iou >= iou_threshold
    rows, row_of = np.unique(table.pair_first[close], return_inverse=True)
    columns, column_of = np.unique(table.pair_second[close], return_inverse=True)
    worth = np.zeros((len(rows), len(columns)))
    # A pair counts first, and its IoU only decides between matchings of as many pairs.
    worth[row_of, column_of] = 1 + iou[close] / (2 * max(min(worth.shape), 1))
    dice = np.zeros_like(worth)
    dice[row_of, column_of] = 2 * table.overlaps[close] / sizes[close]
    chosen = linear_sum_assignment(worth, maximize=True)
    matched = dice[chosen][worth[chosen] > 0]
    return InstanceScore(
        true_positives=len(matched),
        false_positives=len(table.first_labels) - len(matched),
        false_negatives=len(table.second_labels) - len(matched),
        dsc_tp=float(matched.mean()) if len(matched) else 0.0,
    )
