"""The kernels: on a GPU, and their source as C++ on the processor, a thread for each of theirs."""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest

from medals_rt.common.errors import RunnerError
from medals_rt.runners.cudnn.kernels import _SOURCE, Kernels
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
    launch(blocks, 256, [=] { scale_activate(volume, voxels, lanes, factors, alpha); });
}
extern "C" void lay(uint4* upsampled, uint4* bias, uint4* skip, long long voxels, int lanes,
                    int own, uint4* joined) {
    launch(3, 256, [=] { join(upsampled, bias, skip, voxels, lanes, own, joined); });
}
extern "C" void plus(uint4* first, uint4* second, long long vectors, uint4* sums) {
    launch(3, 256, [=] { add(first, second, vectors, sums); });
}
extern "C" void squares(int blocks, uint4* volume, int width, int depth, int edge, int lanes,
                        float* sums) {
    launch(blocks, 256, [=] { add_squares(volume, width, depth, edge, lanes, sums); });
}
extern "C" void sigmoid(unsigned short* logits, long long count, float* probabilities) {
    launch(2, 256, [=] { to_probability(logits, count, probabilities); });
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
    "__launch_bounds__(256, 4)": "",
    "__launch_bounds__(256, 6)": "",
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
    Kernels(cupy).norm_activate(found, cupy.asarray(scale), cupy.asarray(shift), EPSILON, ALPHA)
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


def address(array):
    return ctypes.c_void_p(array.ctypes.data)


@pytest.mark.parametrize("channels", [8, 24, 64])
def test_on_the_processor(compiled, channels):
    volume, scale, shift, wanted = values(channels, (5, 6, 7))
    partial = np.full((BLOCKS, channels, 2), 7, np.float32)
    factors = np.full((channels, 2), 7, np.float32)

    compiled.norm(
        *(address(volume), ctypes.c_longlong(volume.size // channels), channels // 8),
        *(address(partial), BLOCKS, address(scale), address(shift), ctypes.c_float(EPSILON)),
        *(address(factors), ctypes.c_float(ALPHA)),
    )
    np.testing.assert_allclose(volume, wanted, rtol=2e-3, atol=2e-3)


def volumes(own, other, shape=(3, 5, 4)):
    rng = np.random.default_rng(5)
    of_skip = rng.standard_normal((*shape, other)).astype(np.float16)
    return (
        rng.standard_normal((*shape, own)).astype(np.float16),
        rng.standard_normal(own).astype(np.float16),
        of_skip,
    )


@pytest.mark.parametrize(("own", "other"), [(8, 8), (64, 64), (24, 32)])
def test_joining_on_the_processor(compiled, own, other):
    upsampled, bias, skip = volumes(own, other)
    found = np.full((*skip.shape[:3], own + other), np.nan, np.float16)
    voxels, lanes = ctypes.c_longlong(found.size // (own + other)), (own + other) // 8
    given = (address(upsampled), address(bias), address(skip), voxels, lanes, own // 8)
    compiled.lay(*given, address(found))
    np.testing.assert_array_equal(found, NumpyOperations().join(upsampled, bias, skip))


def test_adding_on_the_processor(compiled):
    first, _, second = volumes(24, 24, (7, 9, 11))
    found = np.full(first.shape, np.nan, np.float16)
    vectors = ctypes.c_longlong(first.size // 8)
    compiled.plus(address(first), address(second), vectors, address(found))
    np.testing.assert_array_equal(found, NumpyOperations().add(first, second))


def test_volumes_that_differ_are_refused(fakes):
    cupy = fakes.cupy
    small, large = (cupy.zeros((size, 2, 2, 8), np.float16) for size in (2, 3))
    for act in (
        lambda: Kernels(cupy).add(small, large),
        lambda: Kernels(cupy).join(small, cupy.zeros((8,), np.float16), large),
        lambda: Kernels(cupy).join(small, cupy.zeros((4,), np.float16), small),
    ):
        with raises(RunnerError, "volumes-differ"):
            act()


@pytest.mark.gpu
def test_adding_on_a_gpu(cupy):
    first, _, second = volumes(24, 24, (20, 21, 22))
    found = Kernels(cupy).add(cupy.asarray(first), cupy.asarray(second))
    np.testing.assert_array_equal(found.get(), NumpyOperations().add(first, second))


@pytest.mark.parametrize(("channels", "edge"), [(8, 2), (64, 4), (24, 3)])
def test_pooling_on_the_processor(compiled, channels, edge):
    rng = np.random.default_rng(6)
    volume = rng.standard_normal((6, 9, 8, channels)).astype(np.float16)
    sums = np.full((6, 9 // edge, 8 // edge, channels), np.nan, np.float32)
    blocks = sums.size // channels
    compiled.squares(blocks, address(volume), 9, 8, edge, channels // 8, address(sums))
    cubes = sums[: 6 // edge * edge].reshape(6 // edge, edge, *sums.shape[1:]).sum(axis=1)
    wanted = NumpyOperations().pool(volume, edge)
    np.testing.assert_allclose(cubes / edge**3, wanted, rtol=1e-5, atol=1e-6)


def test_probabilities_on_the_processor(compiled):
    logits = np.concatenate([np.linspace(-30, 30, 4001), [-np.inf, np.inf]]).astype(np.float16)
    found = np.full(logits.shape, np.nan, np.float32)
    compiled.sigmoid(address(logits), ctypes.c_longlong(logits.size), address(found))
    np.testing.assert_allclose(found, NumpyOperations().to_probability(logits), atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize(("own", "other"), [(8, 8), (64, 64), (320, 256)])
def test_joining_on_a_gpu(cupy, own, other):
    upsampled, bias, skip = volumes(own, other, (20, 21, 22))
    found = Kernels(cupy).join(*(cupy.asarray(each) for each in (upsampled, bias, skip)))
    np.testing.assert_array_equal(found.get(), NumpyOperations().join(upsampled, bias, skip))


@pytest.mark.gpu
@pytest.mark.parametrize(("channels", "edge"), [(8, 2), (64, 32), (24, 5)])
def test_pooling_on_a_gpu(cupy, channels, edge):
    rng = np.random.default_rng(6)
    volume = rng.standard_normal((66, 64, 70, channels)).astype(np.float16)
    found = Kernels(cupy).pool(cupy.asarray(volume), edge)
    wanted = NumpyOperations().pool(volume, edge)
    np.testing.assert_allclose(found.get(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_probabilities_on_a_gpu(cupy):
    logits = np.linspace(-30, 30, 4001).astype(np.float16)
    found = Kernels(cupy).to_probability(cupy.asarray(logits))
    np.testing.assert_allclose(found.get(), NumpyOperations().to_probability(logits), atol=1e-6)


@pytest.mark.parametrize("channels", [4, 4096])
def test_channels_that_no_thread_has(fakes, channels):
    volume = fakes.cupy.zeros((2, 2, 2, channels), np.float16)
    with raises(RunnerError, "channels-unsupported", str(channels)):
        Kernels(fakes.cupy).norm_activate(volume, volume, volume, EPSILON, ALPHA)
