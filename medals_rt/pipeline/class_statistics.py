"""What a segmentation measures: volume, intensity, components and place of each class.

Pure functions of an image and its labels; `csv_tables` writes them down.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medals_rt.common.arrays import bounding_box, box_slices
from medals_rt.common.errors import InputError
from medals_rt.io.volume import SourceGrid, Volume
from medals_rt.postprocessing.connected_components import measure_components

Box3 = tuple[int, int, int]
Size3 = tuple[float, float, float]


@dataclass(frozen=True)
class ClassStatistics:
    """One class in one segmentation.

    Attributes
    ----------
    label, name
        Label value and class.
    voxels, volume_ml
        How much was found.
    mean, sd
        Mean and (population) standard deviation of the image's own intensities, as the file holds
        them: Hounsfield units of a CT, not the 0 to 255 that the network saw. None where nothing
        was found.
    components
        6-connected parts.
    low_ijk, high_ijk
        The bounding box in voxels of the file, i running fastest, as viewers and SimpleITK count
        them from 0: lowest index, and highest index plus 1. None where nothing was found.
    size_ijk_mm
        Edges of the bounding box in millimeters along the same axes.
    """

    label: int
    name: str
    voxels: int
    volume_ml: float
    mean: float | None
    sd: float | None
    components: int
    low_ijk: Box3 | None
    high_ijk: Box3 | None
    size_ijk_mm: Size3 | None


def class_statistics(
    volume: Volume, labels_dhw: npt.NDArray[Any], names: Mapping[int, str]
) -> tuple[ClassStatistics, ...]:
    """Measure every class of a segmentation.

    Parameters
    ----------
    volume
        The image as it was read, intensities untouched.
    labels_dhw
        ``(D, H, W)`` unsigned integers on the host, on the volume's grid; 0 is background.
    names
        Label to class, in the order of the result; labels that are not named are left out.

    Raises
    ------
    InputError
        The shapes differ.
    """
    from scipy.ndimage import find_objects

    if labels_dhw.shape != volume.shape_dhw:
        raise InputError(
            f"labels of shape {labels_dhw.shape} don't belong to an image of shape "
            f"{volume.shape_dhw} (D, H, W)",
            code="shapes-differ",
        )
    highest = max(names, default=0)
    known = np.where(labels_dhw <= highest, labels_dhw, 0)
    voxels, means, deviations = _moments(volume.image_dhw, known, highest)
    components = _components(known, highest)
    boxes = find_objects(known, max_label=highest)
    measured = []
    for label, name in names.items():
        count, box = int(voxels[label]), boxes[label - 1]
        low, high, size = (None, None, None) if box is None else _own_box(volume, box)
        measured.append(
            ClassStatistics(
                label=label,
                name=name,
                voxels=count,
                volume_ml=count * volume.voxel_ml,
                mean=float(means[label]) if count else None,
                sd=float(deviations[label]) if count else None,
                components=int(components[label]),
                low_ijk=low,
                high_ijk=high,
                size_ijk_mm=size,
            )
        )
    return tuple(measured)


def _moments(
    image_dhw: npt.NDArray[Any], labels_dhw: npt.NDArray[Any], highest: int
) -> tuple[npt.NDArray[np.float64], ...]:
    """Count, mean and standard deviation of every label from 0, slice by slice in float64.

    The deviations are taken from the mean in a second pass: sums of squares of values around 1000
    would lose their digits.
    """
    count, total, squares = (np.zeros(highest + 1) for _ in range(3))
    for image, labels in zip(image_dhw, labels_dhw, strict=True):
        flat = labels.ravel()
        count += np.bincount(flat, minlength=highest + 1)
        total += np.bincount(flat, weights=image.ravel(), minlength=highest + 1)
    mean = total / np.maximum(count, 1)
    for image, labels in zip(image_dhw, labels_dhw, strict=True):
        flat = labels.ravel()
        distance = image.ravel() - mean[flat]
        squares += np.bincount(flat, weights=distance * distance, minlength=highest + 1)
    return count, mean, np.sqrt(squares / np.maximum(count, 1))


def _components(labels_dhw: npt.NDArray[Any], highest: int) -> npt.NDArray[np.intp]:
    """Count the components of every label from 0."""
    box = bounding_box(labels_dhw)
    if box is None:
        return np.zeros(highest + 1, np.intp)
    components = measure_components(labels_dhw[box_slices(box)])
    return np.bincount(components.labels, minlength=highest + 1)


def _own_box(volume: Volume, box_dhw: tuple[slice, ...]) -> tuple[Box3, Box3, Size3]:
    """Turn a box of the canonical array into one of the file's own axes i, j, k, with its size."""
    source: SourceGrid = volume.source
    low, high, size = [0, 0, 0], [0, 0, 0], [0.0, 0.0, 0.0]
    for axis, side in enumerate(box_dhw):
        own = 2 - source.permutation[axis]
        length = volume.shape_dhw[axis]
        start, stop = int(side.start), int(side.stop)
        if source.flips[axis]:
            start, stop = length - stop, length - start
        low[own], high[own] = start, stop
        size[own] = (stop - start) * volume.spacing_dhw_mm[axis]
    return (low[0], low[1], low[2]), (high[0], high[1], high[2]), (size[0], size[1], size[2])
