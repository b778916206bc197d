"""Norm and activation of a volume with the channels last, in two sweeps over its memory.

The first adds up each channel's values and squares, measured from its first voxel so that a large
mean takes no digits away: a thread has eight neighboring channels, blocks leave partial sums, which
are added in a fixed order. The second scales, shifts and activates in place.
"""

from typing import Any, Final

from medals_rt.common.errors import RunnerError

_THREADS: Final = 256
_BLOCKS_PER_PROCESSOR: Final = 8
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

// partial[block][channel] = sums of (x - x0) and of its square; lanes = channels / 8
extern "C" __global__ void add_up(const uint4* __restrict__ volume, const long long voxels,
                                  const int lanes, float2* __restrict__ partial) {
    __shared__ float sums[256][17];
    const int together = 256 / lanes;
    const int lane = threadIdx.x % lanes, row = threadIdx.x / lanes;
    float first[8], value[8], sum[8], square[8];
    unpack(volume[lane], first);
    #pragma unroll
    for (int i = 0; i < 8; i++) sum[i] = square[i] = 0.0f;
    if (row < together) {
        const long long step = (long long)gridDim.x * together;
        long long voxel = (long long)blockIdx.x * together + row;
        for (; voxel < voxels; voxel += step) {
            unpack(volume[voxel * lanes + lane], value);
            #pragma unroll
            for (int i = 0; i < 8; i++) {
                const float away = value[i] - first[i];
                sum[i] += away;
                square[i] += away * away;
            }
        }
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

extern "C" __global__ void scale_activate(uint4* __restrict__ volume, const long long vectors,
                                          const int lanes, const float2* __restrict__ factors,
                                          const float alpha) {
    const long long step = (long long)gridDim.x * blockDim.x;
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    for (; at < vectors; at += step) {
        const float2* own = factors + 8 * (int)(at % lanes);
        float value[8];
        unpack(volume[at], value);
        #pragma unroll
        for (int i = 0; i < 8; i++) {
            const float2 factor = own[i];
            const float found = fmaf(value[i], factor.x, factor.y);
            value[i] = found > 0.0f ? found : alpha * found;
        }
        volume[at] = pack(value);
    }
}
"""


class Norms:
    """The kernels, compiled for CuPy's current device; CuPy keeps what it compiled on disk."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        module = cupy.RawModule(code=_SOURCE, options=("--std=c++14",))
        self._add_up = module.get_function("add_up")
        self._finish = module.get_function("finish")
        self._scale_activate = module.get_function("scale_activate")
        processors = int(cupy.cuda.Device().attributes["MultiProcessorCount"])
        self._blocks = _BLOCKS_PER_PROCESSOR * processors

    def norm_activate(
        self, volume: Any, scale: Any, shift: Any, epsilon: float, alpha: float
    ) -> None:
        """Norm, scale, shift and activate each channel of a volume, in place.

        Parameters
        ----------
        volume
            `(H, W, D, C)` float16, contiguous; C a multiple of 8, at most 2,048.
        scale, shift
            `(C,)` float32.
        epsilon
            What is added to a variance.
        alpha
            Slope of the leaky ReLU below zero.
        """
        channels = volume.shape[-1]
        if channels % 8 or channels > _MOST_CHANNELS:
            raise RunnerError(
                f"a norm of {channels} channels, which must be a multiple of 8 and at most "
                f"{_MOST_CHANNELS}",
                code="norm-unsupported",
            )
        cupy, blocks = self._cupy, self._blocks
        lanes, voxels = cupy.int32(channels // 8), cupy.int64(volume.size // channels)
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
        self._scale_activate(
            (2 * blocks,),
            (_THREADS,),
            (volume, cupy.int64(volume.size // 8), lanes, factors, cupy.float32(alpha)),
        )
