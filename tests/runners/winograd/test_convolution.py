"""Convolutions against plain ones in float64."""

from dataclasses import replace

import numpy as np
import pytest

from medals_rt.runners.winograd.buffers import Buffer
from medals_rt.runners.winograd.convolution import (
    STORED,
    Factors,
    Source,
    Workers,
    activate,
    average,
    convolve,
    measure,
    packed,
    spare_rows,
    unpacked,
)
from medals_rt.runners.winograd.machine_code import Storage
from tests.runners.winograd.plain import activated, convolved

pytest.importorskip("llvmlite")

# of the output's deviation, root mean square: rounding of float32, of bfloat16 (8 bits)
TOLERANCE: dict[Storage, float] = {"float32": 3e-6, "bfloat16": 3e-3}
STORAGES: tuple[Storage, ...] = ("float32", "bfloat16")


def stored(values: np.ndarray, storage: Storage) -> np.ndarray:
    return values if storage == "float32" else packed(values)


def made_up(shape: tuple[int, ...], wide: tuple[int, ...], outputs: int, storage: Storage):
    rng = np.random.default_rng(1)
    sources, parts, weights = [], [], []
    for channels in wide:
        values = stored(rng.standard_normal((*shape, channels), dtype=np.float32), storage)
        scale = rng.random(channels, dtype=np.float32) + np.float32(0.5)
        shift = rng.standard_normal(channels, dtype=np.float32)
        sources.append(Source(values, scale, shift, 0.01))
        parts.append(activated(unpacked(values), scale, shift, 0.01))
        own = rng.standard_normal((outputs, channels, 3, 3, 3)) / np.sqrt(27 * sum(wide))
        weights.append(own.astype(np.float32))
    return sources, parts, weights, rng.standard_normal(outputs).astype(np.float32)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("shape", "wide", "outputs"),
    [
        ((4, 4, 4), (3,), 16),
        ((8, 12, 20), (16,), 32),
        ((9, 10, 7), (16, 5), 32),
        ((4, 8, 60), (64, 64), 64),
        ((12, 8, 8), (16,), 48),
        ((1, 1, 1), (16,), 16),
    ],
)
def test_a_convolution_is_that_of_its_activated_sources(
    shape: tuple[int, ...], wide: tuple[int, ...], outputs: int, threads: int, storage: Storage
) -> None:
    sources, parts, weights, bias = made_up(shape, wide, outputs, storage)
    expected = sum(convolved(part, own) for part, own in zip(parts, weights, strict=True)) + bias
    workers = Workers(threads)
    found, sums = convolve(sources, Factors(weights, bias), storage, workers)
    workers.close()
    assert (found.shape, found.dtype) == ((*shape, outputs), STORED[storage])
    error = np.sqrt(np.mean((unpacked(found) - expected) ** 2)) / expected.std()
    assert error < TOLERANCE[storage]
    values = unpacked(found).astype(np.float64)
    np.testing.assert_allclose(sums.total, values.sum(axis=(0, 1, 2)), rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(sums.squares, (values**2).sum(axis=(0, 1, 2)), rtol=1e-5)
    assert sums.voxels == np.prod(shape)


def test_threads_change_nothing() -> None:
    sources, _, weights, bias = made_up((16, 12, 8), (16,), 16, "float32")
    results = []
    for threads in (1, 2, 5):
        workers = Workers(threads)
        results.append(convolve(sources, Factors(weights, bias), "float32", workers)[0])
        workers.close()
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize("storage", STORAGES)
def test_sums_give_an_instance_norm(storage: Storage) -> None:
    rng = np.random.default_rng(2)
    values = stored(rng.normal(3, 2, (5, 6, 7, 32)).astype(np.float32), storage)
    workers = Workers(2)
    factor, offset = measure(values, storage, workers).normalization(1e-5)
    plain = unpacked(values).astype(np.float64)
    mean, deviation = plain.mean(axis=(0, 1, 2)), np.sqrt(plain.var(axis=(0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(factor, 1 / deviation, rtol=1e-5)
    np.testing.assert_allclose(offset, -mean / deviation, rtol=1e-5)
    workers.close()


def test_a_constant_channel_has_no_negative_variance() -> None:
    workers = Workers(1)
    sums = measure(np.full((4, 4, 4, 16), 0.1, np.float32), "float32", workers)
    factor, _ = sums.normalization(1e-5)
    np.testing.assert_allclose(factor, 1e5**0.5, rtol=1e-2)


@pytest.mark.parametrize("storage", STORAGES)
def test_activating_in_place_is_what_readers_do(storage: Storage) -> None:
    sources, (part,), _, _ = made_up((5, 3, 4), (32,), 16, storage)
    workers = Workers(2)
    found = activate(sources[0], storage, workers)
    workers.close()
    assert found.values is sources[0].values
    tolerance = 1e-6 if storage == "float32" else 2**-8
    np.testing.assert_allclose(unpacked(found.values), part, rtol=tolerance, atol=1e-6)


def test_bfloat16_is_rounded_to_nearest_even() -> None:
    # 1 + 1/256 lies between 1 and 1 + 1/128, which end in an even and an odd bit
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -2.5, 0.0], np.float32)
    expected = np.array([1.0, 1.0, 1 + 2**-6, -2.5, 0.0], np.float32)
    np.testing.assert_array_equal(unpacked(packed(values)), expected)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("upward", [False, True])
@pytest.mark.parametrize("wide", [(16,), (16, 5)])
def test_written_over_its_source_it_is_the_same(
    wide: tuple[int, ...], threads: int, storage: Storage, *, upward: bool
) -> None:
    sources, _, weights, bias = made_up((40, 12, 8), wide, 16, storage)
    factors, workers = Factors(weights, bias), Workers(threads)
    expected, sums = convolve(sources, factors, storage, workers)
    spare = spare_rows((40, 12), threads)
    buffer = Buffer((40, 12, 8, 16), STORED[storage], spare)
    place, to = (buffer.first, buffer.last) if upward else (buffer.last, buffer.first)
    place[...] = sources[0].values
    over = [replace(sources[0], values=place), *sources[1:]]
    found, again = convolve(over, factors, storage, workers, to)
    workers.close()
    assert found is to
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(again.total, sums.total, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("storage", STORAGES)
def test_averages_are_those_of_what_readers_see(storage: Storage) -> None:
    sources, (part,), _, _ = made_up((6, 4, 10), (32,), 16, storage)
    workers = Workers(2)
    found = average(sources[0], (3, 2, 5), storage, workers)
    workers.close()
    expected = part.reshape(2, 3, 2, 2, 2, 5, 32).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert found.dtype == np.float32
