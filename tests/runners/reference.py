"""A backend of `medals_rt.runners.cudnn` on the processor, slow, and surely right."""

import numpy as np
from scipy import special


class NumpyOperations:
    """Convolutions and norms in fp32 and fp64; what comes back is float16."""

    xp = np

    def convolve(self, volume, weights, stride):
        assert volume.dtype == weights.dtype == np.float16
        assert volume.flags.c_contiguous
        assert weights.flags.c_contiguous
        assert volume.shape[-1] == weights.shape[-1]
        assert volume.shape[-1] % 8 == 0
        padded = np.pad(volume.astype(np.float32), [(1, 1)] * 3 + [(0, 0)])
        sizes = volume.shape[:3]
        found = np.zeros((*sizes, weights.shape[0]), np.float32)
        for i, j, k in np.ndindex(3, 3, 3):
            part = padded[i : i + sizes[0], j : j + sizes[1], k : k + sizes[2]]
            found += part @ weights[:, i, j, k].astype(np.float32).T
        return np.ascontiguousarray(found[::stride, ::stride, ::stride]).astype(np.float16)

    def norm_activate(self, volume, scale, shift, epsilon, alpha):
        assert volume.flags.c_contiguous
        exact = volume.astype(np.float64)
        axes = (0, 1, 2)
        exact = (exact - exact.mean(axes)) / np.sqrt(exact.var(axes) + epsilon) * scale + shift
        volume[...] = np.where(exact > 0, exact, alpha * exact)

    def upsample(self, volume, weights):
        assert volume.dtype == weights.dtype == np.float16
        assert volume.flags.c_contiguous
        assert weights.flags.c_contiguous
        height, width, depth, channels = volume.shape
        assert weights.shape[:4] == (channels, 2, 2, 2)
        found = np.zeros((2 * height, 2 * width, 2 * depth, weights.shape[-1]), np.float16)
        for i, j, k in np.ndindex(2, 2, 2):
            part = volume.astype(np.float32) @ weights[:, i, j, k].astype(np.float32)
            found[i::2, j::2, k::2] = part
        return found

    def join(self, upsampled, bias, skip):
        assert upsampled.dtype == bias.dtype == skip.dtype == np.float16
        return np.concatenate([upsampled + bias, skip], axis=-1)

    def add(self, first, second):
        assert first.dtype == second.dtype == np.float16
        assert first.shape == second.shape
        return first + second

    def pool(self, volume, edge):
        assert volume.flags.c_contiguous
        sizes = [size // edge for size in volume.shape[:3]]
        whole = volume[tuple(slice(size * edge) for size in sizes)]
        cubes = whole.reshape(sizes[0], edge, sizes[1], edge, sizes[2], edge, -1)
        return cubes.astype(np.float64).mean(axis=(1, 3, 5)).astype(np.float32)

    def to_probability(self, logits):
        assert logits.dtype == np.float16
        return special.expit(logits.astype(np.float32))

    def erf(self, values):
        return special.erf(values)
