"""What the kernels of `medals_rt.runners.cudnn.kernels` compute, block by block."""

import numpy as np


def add_up(blocks, volume, voxels, lanes, partial):
    away = volume.reshape(voxels, 8 * lanes).astype(np.float32)
    away = away - away[0]
    for block, part in enumerate(np.array_split(away, blocks)):
        partial[block, :, 0] = part.sum(axis=0)
        partial[block, :, 1] = (part**2).sum(axis=0)


def finish(channels, volume, voxels, partial, blocks, scale, shift, epsilon, factors):
    assert partial.shape == (blocks, channels, 2)
    sums, squares = partial.astype(np.float64).sum(axis=0).T / voxels
    factor = scale / np.sqrt(np.maximum(squares - sums**2, 0) + epsilon)
    factors[:, 0] = factor
    factors[:, 1] = shift - (volume.reshape(-1, channels)[0] + sums) * factor


def scale_activate(_, volume, vectors, lanes, factors, alpha):
    assert volume.size == 8 * vectors
    rows = volume.reshape(-1, 8 * lanes)
    found = rows.astype(np.float32) * factors[:, 0] + factors[:, 1]
    rows[...] = np.where(found > 0, found, alpha * found)
