"""Bringing arrays to a GPU and back through page-locked memory.

A copy from ordinary memory goes through a small buffer of the driver and holds the host up. Here
two page-locked buffers take turns: while one is on the bus, the processor fills or empties the
other. Copies go over a stream of their own, which waits for the caller's stream, as the caller's
waits for it. Written against CuPy's documented API; not yet run on a GPU.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from medals_rt.common.typing import Array

_CHUNK_BYTES = 32 << 20
_WORTH_STAGING_BYTES = 1 << 20


def upload(host: npt.NDArray[Any]) -> Array:
    """Copy a host array to the current GPU; it may be changed as soon as this returns."""
    import cupy

    if host.nbytes < _WORTH_STAGING_BYTES:
        small: Array = cupy.asarray(host)
        return small
    flat = np.ascontiguousarray(host).reshape(-1)
    result = cupy.empty(flat.shape, flat.dtype)
    stream = _copy_stream(cupy.cuda.Device().id)
    buffers = _buffers(flat.dtype)
    copied = [None, None]
    _follow(stream, cupy.cuda.get_current_stream())
    for number, chunk in enumerate(_chunks(flat)):
        turn = number % 2
        _wait(copied[turn])
        buffer = buffers[turn][: chunk.stop - chunk.start]
        buffer[...] = flat[chunk]
        result[chunk].set(buffer, stream=stream)
        copied[turn] = stream.record()
    _follow(cupy.cuda.get_current_stream(), stream)
    stream.synchronize()
    whole: Array = result.reshape(host.shape)
    return whole


def download(array: Any) -> npt.NDArray[Any]:
    """Copy an array from its GPU, with its memory in the order of its axes."""
    import cupy

    with array.device:
        flat = cupy.ascontiguousarray(array).reshape(-1)
        if flat.nbytes < _WORTH_STAGING_BYTES:
            small: npt.NDArray[Any] = flat.get().reshape(array.shape)
            return small
        result = np.empty(flat.shape, flat.dtype)
        stream = _copy_stream(array.device.id)
        buffers = _buffers(result.dtype)
        on_the_way: list[tuple[slice, Any]] = []
        _follow(stream, cupy.cuda.get_current_stream())
        for number, chunk in enumerate(_chunks(result)):
            buffer = buffers[number % 2][: chunk.stop - chunk.start]
            flat[chunk].get(stream=stream, out=buffer, blocking=False)
            on_the_way.append((chunk, stream.record()))
            if number:
                _empty(result, buffers, number - 1, on_the_way)
        _empty(result, buffers, len(on_the_way) - 1, on_the_way)
    return result.reshape(array.shape)


def _empty(
    result: npt.NDArray[Any],
    buffers: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    number: int,
    on_the_way: list[tuple[slice, Any]],
) -> None:
    """Wait for chunk `number` to arrive and move it out of its buffer."""
    chunk, arrived = on_the_way[number]
    _wait(arrived)
    result[chunk] = buffers[number % 2][: chunk.stop - chunk.start]


def _buffers(dtype: npt.DTypeLike) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Take two page-locked buffers; CuPy's pool keeps their memory from one copy to the next."""
    import cupyx

    length = _CHUNK_BYTES // np.dtype(dtype).itemsize
    return cupyx.empty_pinned(length, dtype), cupyx.empty_pinned(length, dtype)


def _chunks(flat: npt.NDArray[Any]) -> list[slice]:
    step = _CHUNK_BYTES // flat.itemsize
    return [slice(at, min(at + step, flat.size)) for at in range(0, flat.size, step)]


def _follow(stream: Any, earlier: Any) -> None:
    """Let a stream wait for what another was given so far; the host goes on."""
    stream.wait_event(earlier.record())


def _wait(event: Any) -> None:
    if event is not None:
        event.synchronize()


@cache
def _copy_stream(device: int) -> Any:
    import cupy

    with cupy.cuda.Device(device):
        return cupy.cuda.Stream(non_blocking=True)
