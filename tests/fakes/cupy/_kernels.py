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


def scale_activate(_, volume, voxels, lanes, factors, alpha):
    rows = volume.reshape(voxels, 8 * lanes)
    found = rows.astype(np.float32) * factors[:, 0] + factors[:, 1]
    rows[...] = np.where(found > 0, found, alpha * found)


def join(_, upsampled, bias, skip, voxels, lanes, upsampled_lanes, joined):
    assert joined.shape[-1] == 8 * lanes
    assert upsampled.shape[-1] == 8 * upsampled_lanes
    assert joined.size == voxels * 8 * lanes
    joined[..., : 8 * upsampled_lanes] = upsampled + bias
    joined[..., 8 * upsampled_lanes :] = skip


def add(_, first, second, vectors, sums):
    assert first.size == second.size == 8 * vectors
    sums[...] = first + second


def add_squares(blocks, volume, width, depth, edge, lanes, sums):
    assert volume.shape[1:] == (width, depth, 8 * lanes)
    rows, columns = width // edge, depth // edge
    assert blocks == volume.shape[0] * rows * columns
    whole = volume[:, : rows * edge, : columns * edge].astype(np.float32)
    squares = whole.reshape(-1, rows, edge, columns, edge, 8 * lanes)
    sums[...] = squares.sum(axis=(2, 4))


def to_probability(_, logits, count, probabilities):
    assert logits.size == probabilities.size == count
    probabilities[...] = 0.5 + 0.5 * np.tanh(0.5 * logits.astype(np.float32))
