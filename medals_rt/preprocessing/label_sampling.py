"""Label maps brought from one grid onto another by the affines of both."""

from __future__ import annotations

import numpy as np

from medals_rt.common.arrays import namespace
from medals_rt.common.typing import Array, HostArray

_DECIMALS = 6
"""Places of an index that count: farther behind is rounding, which must not decide ties."""


def sample_labels(
    labels_dhw: Array,
    affine: HostArray,
    onto_affine: HostArray,
    onto_shape_dhw: tuple[int, int, int],
) -> Array:
    """Sample a label map at the voxel centers of another grid, nearest neighbor.

    Parameters
    ----------
    labels_dhw
        Labels `(D, H, W)`, NumPy or CuPy, any integer type.
    affine, onto_affine
        4 x 4 each, index `(w, h, d, 1)` to millimeters in one frame: of the labels, and of the grid
        that they are wanted on.
    onto_shape_dhw
        Voxels of that grid.

    Returns
    -------
    Array
        Labels `(D, H, W)` of `onto_shape_dhw`, of the same type and device; 0 where the grid
        reaches beyond the labels. Halfway between two voxels the later one is taken, as ITK does.
    """
    xp = namespace(labels_dhw)
    device = labels_dhw.device
    matrix = np.linalg.solve(affine, onto_affine)
    depth, height, width = onto_shape_dhw
    sampled = xp.zeros(onto_shape_dhw, dtype=labels_dhw.dtype, device=device)
    lengths = tuple(reversed(labels_dhw.shape))
    w = xp.arange(width, dtype=xp.float64, device=device)[None, :]
    h = xp.arange(height, dtype=xp.float64, device=device)[:, None]
    for d in range(depth):
        inside = xp.ones((height, width), dtype=xp.bool, device=device)
        flat = xp.zeros((height, width), dtype=xp.int64, device=device)
        stride = 1
        for row, length in zip(matrix[:3].tolist(), lengths, strict=True):
            place = row[0] * w + row[1] * h + (row[2] * d + row[3])
            steps = 10.0**_DECIMALS
            index = xp.astype(xp.floor(xp.round(place * steps) / steps + 0.5), xp.int64)
            inside &= (index >= 0) & (index < length)
            flat += index * stride
            stride *= length
        chosen = xp.reshape(xp.where(inside, flat, xp.zeros_like(flat)), (-1,))
        values = xp.reshape(xp.take(xp.reshape(labels_dhw, (-1,)), chosen), (height, width))
        sampled[d, ...] = xp.where(inside, values, xp.zeros_like(values))
    return sampled
