"""What stands between convolutions, on volumes with the channels last.

A thread has eight neighboring channels of a voxel, 16 bytes, and keeps them from voxel to voxel.
A norm with its activation is two sweeps: the first adds up each channel's values and squares,
measured from its first voxel so that a large mean takes no digits away, in blocks whose partial
sums are added in a fixed order; the second scales, shifts and activates in place. Joining adds the
bias of what was upsampled and lays the encoder's channels beside it. Pooling adds up squares of a
plane; NumPy's code does the rest of it.
"""

from typing import Any, Final

from medals_rt.common.errors import RunnerError

_THREADS: Final = 256
_ADDING_BLOCKS: Final = 4
_SWEEPING_BLOCKS: Final = 6
"""So many are at work on a processor at once, with the registers that `__launch_bounds__` leaves
to each of their threads: none waits for a second turn."""

_ADDING_THREADS: Final = 128
_MOST_CHANNELS: Final = 8 * _THREADS

_SOURCE: Final = r"""
__device__ __forceinline__ float wide(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
__device__ __forceinline__ unsigned short narrow(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
__device__ __forceinline__ void unpack(const uint4 packed, float* values) {
    const unsigned int words[4] = {packed.x, packed.y, packed.z, packed.w};
    #pragma unroll
    for (int i = 0; i < 4; i++) {
        values[2 * i] = wide((unsigned short)(words[i] & 0xffffu));
        values[2 * i + 1] = wide((unsigned short)(words[i] >> 16));
    }
}
__device__ __forceinline__ uint4 pack(const float* values) {
    unsigned int words[4];
    #pragma unroll
    for (int i = 0; i < 4; i++)
        words[i] = (unsigned int)narrow(values[2 * i])
                 | ((unsigned int)narrow(values[2 * i + 1]) << 16);
    return make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ __forceinline__ void add_voxel(const uint4 packed, const float* first, float* sum,
                                          float* square) {
    float value[8];
    unpack(packed, value);
    #pragma unroll
    for (int i = 0; i < 8; i++) {
        const float away = value[i] - first[i];
        sum[i] += away;
        square[i] += away * away;
    }
}

// lanes = channels / 8; in a block, each thread has a lane, and every so many threads a voxel
// partial[block][channel] = sums of (x - x0) and of its square
extern "C" __global__ void __launch_bounds__(256, 4)
add_up(const uint4* __restrict__ volume, const long long voxels, const int lanes,
       float2* __restrict__ partial) {
    __shared__ float sums[256][17];
    const int together = 256 / lanes;
    const int lane = threadIdx.x % lanes, row = threadIdx.x / lanes;
    float first[8], sum[8], square[8];
    unpack(volume[lane], first);
    #pragma unroll
    for (int i = 0; i < 8; i++) sum[i] = square[i] = 0.0f;
    if (row < together) {
        const long long step = (long long)gridDim.x * together;
        long long voxel = (long long)blockIdx.x * together + row;
        for (; voxel + 3 * step < voxels; voxel += 4 * step) {  // four loads on their way at once
            const uint4 a = volume[voxel * lanes + lane];
            const uint4 b = volume[(voxel + step) * lanes + lane];
            const uint4 c = volume[(voxel + 2 * step) * lanes + lane];
            const uint4 d = volume[(voxel + 3 * step) * lanes + lane];
            add_voxel(a, first, sum, square);
            add_voxel(b, first, sum, square);
            add_voxel(c, first, sum, square);
            add_voxel(d, first, sum, square);
        }
        for (; voxel < voxels; voxel += step)
            add_voxel(volume[voxel * lanes + lane], first, sum, square);
    }
    #pragma unroll
    for (int i = 0; i < 8; i++) {
        sums[threadIdx.x][i] = sum[i];
        sums[threadIdx.x][8 + i] = square[i];
    }
    __syncthreads();
    const int channels = 8 * lanes;
    for (int channel = threadIdx.x; channel < channels; channel += 256) {
        float a = 0.0f, b = 0.0f;
        for (int r = 0; r < together; r++) {
            a += sums[r * lanes + channel / 8][channel % 8];
            b += sums[r * lanes + channel / 8][8 + channel % 8];
        }
        partial[(long long)blockIdx.x * channels + channel] = make_float2(a, b);
    }
}

// one block a channel: factor and offset of the norm with its scale and shift
extern "C" __global__ void finish(const unsigned short* __restrict__ volume, const long long voxels,
                                  const float2* __restrict__ partial, const int blocks,
                                  const float* __restrict__ scale, const float* __restrict__ shift,
                                  const float epsilon, float2* __restrict__ factors) {
    __shared__ double a[128], b[128];
    const int channel = blockIdx.x, channels = gridDim.x;
    double sum = 0.0, square = 0.0;
    for (int block = threadIdx.x; block < blocks; block += 128) {
        const float2 each = partial[(long long)block * channels + channel];
        sum += each.x;
        square += each.y;
    }
    a[threadIdx.x] = sum;
    b[threadIdx.x] = square;
    __syncthreads();
    for (int half = 64; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            a[threadIdx.x] += a[threadIdx.x + half];
            b[threadIdx.x] += b[threadIdx.x + half];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        const double away = a[0] / (double)voxels;
        const double variance = fmax(b[0] / (double)voxels - away * away, 0.0);
        const double factor = (double)scale[channel] / sqrt(variance + (double)epsilon);
        const double mean = (double)wide(volume[channel]) + away;
        const double offset = (double)shift[channel] - mean * factor;
        factors[channel] = make_float2((float)factor, (float)offset);
    }
}

extern "C" __global__ void __launch_bounds__(256, 6)
scale_activate(uint4* __restrict__ volume, const long long voxels, const int lanes,
               const float2* __restrict__ factors, const float alpha) {
    const int together = 256 / lanes;
    const int lane = threadIdx.x % lanes, row = threadIdx.x / lanes;
    if (row >= together) return;
    float factor[8], offset[8];
    #pragma unroll
    for (int i = 0; i < 8; i++) {
        factor[i] = factors[8 * lane + i].x;
        offset[i] = factors[8 * lane + i].y;
    }
    const long long step = (long long)gridDim.x * together;
    for (long long voxel = (long long)blockIdx.x * together + row; voxel < voxels; voxel += step) {
        float value[8];
        unpack(volume[voxel * lanes + lane], value);
        #pragma unroll
        for (int i = 0; i < 8; i++) {
            const float found = fmaf(value[i], factor[i], offset[i]);
            value[i] = found > 0.0f ? found : alpha * found;
        }
        volume[voxel * lanes + lane] = pack(value);
    }
}

// joined[voxel] = upsampled[voxel] + bias, then skip[voxel]
extern "C" __global__ void __launch_bounds__(256, 6)
join(const uint4* __restrict__ upsampled, const uint4* __restrict__ bias,
     const uint4* __restrict__ skip, const long long voxels, const int lanes,
     const int upsampled_lanes, uint4* __restrict__ joined) {
    const int together = 256 / lanes;
    const int lane = threadIdx.x % lanes, row = threadIdx.x / lanes;
    if (row >= together) return;
    const bool is_skip = lane >= upsampled_lanes;
    const int own_lanes = is_skip ? lanes - upsampled_lanes : upsampled_lanes;
    const uint4* own = is_skip ? skip + (lane - upsampled_lanes) : upsampled + lane;
    float added[8];
    if (!is_skip) unpack(bias[lane], added);
    const long long step = (long long)gridDim.x * together;
    for (long long voxel = (long long)blockIdx.x * together + row; voxel < voxels; voxel += step) {
        uint4 packed = own[voxel * own_lanes];
        if (!is_skip) {
            float value[8];
            unpack(packed, value);
            #pragma unroll
            for (int i = 0; i < 8; i++) value[i] += added[i];
            packed = pack(value);
        }
        joined[voxel * lanes + lane] = packed;
    }
}

extern "C" __global__ void __launch_bounds__(256, 6)
add(const uint4* __restrict__ first, const uint4* __restrict__ second, const long long vectors,
    uint4* __restrict__ sums) {
    const long long step = (long long)gridDim.x * blockDim.x;
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    for (; at < vectors; at += step) {
        float a[8], b[8];
        unpack(first[at], a);
        unpack(second[at], b);
        #pragma unroll
        for (int i = 0; i < 8; i++) a[i] += b[i];
        sums[at] = pack(a);
    }
}

// a block adds up a square of edge x edge voxels of one plane: sums[plane][row][column][channel]
extern "C" __global__ void __launch_bounds__(256, 4)
add_squares(const uint4* __restrict__ volume, const int width, const int depth, const int edge,
            const int lanes, float* __restrict__ sums) {
    __shared__ float parts[256][9];
    const int columns = depth / edge, rows = width / edge;
    const int column = blockIdx.x % columns, row_of = blockIdx.x / columns % rows;
    const long long plane = blockIdx.x / (columns * rows);
    const int together = 256 / lanes;
    const int lane = threadIdx.x % lanes, first = threadIdx.x / lanes;
    float sum[8], value[8];
    #pragma unroll
    for (int i = 0; i < 8; i++) sum[i] = 0.0f;
    if (first < together)
        for (int at = first; at < edge * edge; at += together) {
            const long long i = row_of * edge + at / edge, j = column * edge + at % edge;
            unpack(volume[((plane * width + i) * depth + j) * lanes + lane], value);
            #pragma unroll
            for (int i = 0; i < 8; i++) sum[i] += value[i];
        }
    #pragma unroll
    for (int i = 0; i < 8; i++) parts[threadIdx.x][i] = sum[i];
    __syncthreads();
    const int channels = 8 * lanes;
    for (int channel = threadIdx.x; channel < channels; channel += 256) {
        float all = 0.0f;
        for (int r = 0; r < together; r++) all += parts[r * lanes + channel / 8][channel % 8];
        sums[(long long)blockIdx.x * channels + channel] = all;
    }
}

extern "C" __global__ void __launch_bounds__(256, 6)
to_probability(const unsigned short* __restrict__ logits, const long long count,
               float* __restrict__ probabilities) {
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x; at < count; at += step)
        probabilities[at] = 0.5f + 0.5f * tanhf(0.5f * wide(logits[at]));
}
"""


class Kernels:
    """The kernels, compiled for CuPy's current device; CuPy keeps what it compiled on disk.

    Volumes are `(H, W, D, C)` float16, contiguous; C is a multiple of 8, at most 2,048.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        module = cupy.RawModule(code=_SOURCE, options=("--std=c++14",))
        self._add_up = module.get_function("add_up")
        self._finish = module.get_function("finish")
        self._scale_activate = module.get_function("scale_activate")
        self._join = module.get_function("join")
        self._add = module.get_function("add")
        self._add_squares = module.get_function("add_squares")
        self._to_probability = module.get_function("to_probability")
        processors = int(cupy.cuda.Device().attributes["MultiProcessorCount"])
        self._adding_blocks = _ADDING_BLOCKS * processors
        self._sweeping_blocks = _SWEEPING_BLOCKS * processors

    def norm_activate(
        self, volume: Any, scale: Any, shift: Any, epsilon: float, alpha: float
    ) -> None:
        """Norm, scale, shift and activate each channel of a volume, in place.

        Parameters
        ----------
        volume
            The volume.
        scale, shift
            `(C,)` float32.
        epsilon
            What is added to a variance.
        alpha
            Slope of the leaky ReLU below zero.
        """
        cupy, blocks = self._cupy, self._adding_blocks
        channels = volume.shape[-1]
        lanes, voxels = self._lanes(channels), cupy.int64(volume.size // channels)
        partial = cupy.empty((blocks, channels, 2), cupy.float32)
        factors = cupy.empty((channels, 2), cupy.float32)
        self._add_up((blocks,), (_THREADS,), (volume, voxels, lanes, partial))
        self._finish(
            (channels,),
            (_ADDING_THREADS,),
            (
                *(volume, voxels, partial, cupy.int32(blocks)),
                *(scale, shift, cupy.float32(epsilon), factors),
            ),
        )
        given = (volume, voxels, lanes, factors, cupy.float32(alpha))
        self._scale_activate((self._sweeping_blocks,), (_THREADS,), given)

    def join(self, upsampled: Any, bias: Any, skip: Any) -> Any:
        """Add a bias `(C,)` float16 to a volume, and lay the channels of another beside it.

        Returns
        -------
        array
            `(H, W, D, C + S)` float16.
        """
        cupy = self._cupy
        if upsampled.shape[:-1] != skip.shape[:-1] or bias.shape != upsampled.shape[-1:]:
            raise RunnerError(
                f"{upsampled.shape} with a bias of {bias.shape} can't lie beside {skip.shape}",
                code="volumes-differ",
            )
        shape = (*upsampled.shape[:-1], upsampled.shape[-1] + skip.shape[-1])
        joined = cupy.empty(shape, cupy.float16)
        lanes, own = self._lanes(shape[-1]), self._lanes(upsampled.shape[-1])
        voxels = cupy.int64(joined.size // shape[-1])
        given = (upsampled, bias, skip, voxels, lanes, own, joined)
        self._join((self._sweeping_blocks,), (_THREADS,), given)
        return joined

    def add(self, first: Any, second: Any) -> Any:
        """Add two volumes of one shape."""
        if first.shape != second.shape:
            raise RunnerError(f"{first.shape} is no {second.shape}", code="volumes-differ")
        cupy = self._cupy
        self._lanes(first.shape[-1])
        sums = cupy.empty(first.shape, cupy.float16)
        given = (first, second, cupy.int64(first.size // 8), sums)
        self._add((self._sweeping_blocks,), (_THREADS,), given)
        return sums

    def pool(self, volume: Any, edge: int) -> Any:
        """Return the means of cubes of a volume, `(H // edge, W // edge, D // edge, C)` float32."""
        cupy = self._cupy
        *sizes, channels = volume.shape
        height, width, depth = (size // edge for size in sizes)
        sums = cupy.empty((sizes[0], width, depth, channels), cupy.float32)
        of_plane = tuple(cupy.int32(size) for size in (*sizes[1:], edge))
        given = (volume, *of_plane, self._lanes(channels), sums)
        self._add_squares((sizes[0] * width * depth,), (_THREADS,), given)
        cubes = sums[: height * edge].reshape(height, edge, width, depth, channels).sum(axis=1)
        return cubes / cupy.float32(edge**3)

    def to_probability(self, logits: Any) -> Any:
        """Return the sigmoid of an array in float16, contiguous, as float32 of its shape."""
        cupy = self._cupy
        probabilities = cupy.empty(logits.shape, cupy.float32)
        given = (logits, cupy.int64(logits.size), probabilities)
        self._to_probability((self._sweeping_blocks,), (_THREADS,), given)
        return probabilities

    def _lanes(self, channels: int) -> Any:
        if channels % 8 or channels > _MOST_CHANNELS:
            raise RunnerError(
                f"a volume of {channels} channels, which must be a multiple of 8 and at most "
                f"{_MOST_CHANNELS}",
                code="channels-unsupported",
            )
        return self._cupy.int32(channels // 8)
