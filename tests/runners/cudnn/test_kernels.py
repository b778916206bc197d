"""The kernels: on a GPU, and their source as C++ on the processor, a thread for each of theirs."""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest

from medals_rt.common.errors import RunnerError
from medals_rt.runners.cudnn.kernels import _SOURCE, Norms
from tests.errors import raises
from tests.runners.reference import NumpyOperations

EPSILON, ALPHA = 1e-5, 0.01
BLOCKS = 2

BEFORE = """
#include <barrier>
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>
struct uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct Place { int x; };
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static float2 make_float2(float x, float y) { return {x, y}; }
static thread_local Place threadIdx, blockIdx;
static Place gridDim, blockDim;
static std::barrier<>* barrier;
static void __syncthreads() { barrier->arrive_and_wait(); }
"""
AFTER = """
template <class Kernel> static void launch(int grid, int block, Kernel kernel) {
    gridDim.x = grid; blockDim.x = block;
    for (int b = 0; b < grid; b++) {
        std::barrier<> all(block);
        barrier = &all;
        std::vector<std::thread> threads;
        for (int t = 0; t < block; t++)
            threads.emplace_back([=] { threadIdx.x = t; blockIdx.x = b; kernel(); });
        for (auto& each : threads) each.join();
    }
}
extern "C" void norm(uint4* volume, long long voxels, int lanes, float2* partial, int blocks,
                     float* scale, float* shift, float epsilon, float2* factors, float alpha) {
    launch(blocks, 256, [=] { add_up(volume, voxels, lanes, partial); });
    launch(8 * lanes, 128, [=] {
        finish((unsigned short*)volume, voxels, partial, blocks, scale, shift, epsilon, factors);
    });
    launch(blocks, 256, [=] { scale_activate(volume, voxels * lanes, lanes, factors, alpha); });
}
"""
REPLACED = {
    'asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));': (
        "_Float16 half; memcpy(&half, &bits, 2); value = (float)half;"
    ),
    'asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));': (
        "_Float16 half = (_Float16)value; memcpy(&bits, &half, 2);"
    ),
    "__device__ __forceinline__": "static inline",
    'extern "C" __global__': "static",
    "__shared__": "static",
    "__restrict__": "__restrict",
}


def values(channels, shape=(9, 8, 7)):
    """Means far from zero, scale and shift."""
    rng = np.random.default_rng(4)
    volume = rng.standard_normal((*shape, channels)) * rng.random(channels) * 5
    volume = (volume + rng.standard_normal(channels) * 50).astype(np.float16)
    scale, shift = (rng.random(channels).astype(np.float32) + 0.5 for _ in range(2))
    wanted = volume.copy()
    NumpyOperations().norm_activate(wanted, scale, shift, EPSILON, ALPHA)
    return volume, scale, shift, wanted


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [8, 32, 64, 320, 768])
def test_on_a_gpu(cupy, channels):
    volume, scale, shift, wanted = values(channels)
    found = cupy.asarray(volume)
    Norms(cupy).norm_activate(found, cupy.asarray(scale), cupy.asarray(shift), EPSILON, ALPHA)
    np.testing.assert_allclose(found.get(), wanted, rtol=2e-3, atol=2e-3)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The source for the processor."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    source = _SOURCE
    for cuda, plain in REPLACED.items():
        assert cuda in source
        source = source.replace(cuda, plain)
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "norm.cpp").write_text(BEFORE + source + AFTER, encoding="utf-8")
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-w"]
    subprocess.run(
        [shutil.which("g++"), *flags, "-o", str(folder / "norm.so"), str(folder / "norm.cpp")],
        check=True,
    )
    return ctypes.CDLL(str(folder / "norm.so"))


@pytest.mark.parametrize("channels", [8, 24, 64])
def test_on_the_processor(compiled, channels):
    volume, scale, shift, wanted = values(channels, (5, 6, 7))
    partial = np.full((BLOCKS, channels, 2), 7, np.float32)
    factors = np.full((channels, 2), 7, np.float32)

    def address(array):
        return ctypes.c_void_p(array.ctypes.data)

    compiled.norm(
        *(address(volume), ctypes.c_longlong(volume.size // channels), channels // 8),
        *(address(partial), BLOCKS, address(scale), address(shift), ctypes.c_float(EPSILON)),
        *(address(factors), ctypes.c_float(ALPHA)),
    )
    np.testing.assert_allclose(volume, wanted, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("channels", [4, 4096])
def test_channels_that_no_thread_has(fakes, channels):
    volume = fakes.cupy.zeros((2, 2, 2, channels), np.float16)
    with raises(RunnerError, "norm-unsupported", str(channels)):
        Norms(fakes.cupy).norm_activate(volume, volume, volume, EPSILON, ALPHA)
