"""Staged copies, on a fake of CuPy here and on CuPy itself where there is a GPU."""

from __future__ import annotations

import sys
import types
from typing import Any, Self

import numpy as np
import pytest

from medals_rt.common import pinned_memory
from medals_rt.common.arrays import to_device, to_host

MIB = 1 << 20


class Event:
    def __init__(self, pending: list[Any]) -> None:
        self._pending = pending

    def synchronize(self) -> None:
        """Now, and not earlier, what was given to the stream happens."""
        while self._pending:
            self._pending.pop(0)()


class Stream:
    """Does nothing before someone waits for it, as a slow GPU would."""

    def __init__(self, **_: Any) -> None:
        self.pending: list[Any] = []
        self.followed: list[Event] = []

    def record(self) -> Event:
        return Event(self.pending)

    def wait_event(self, event: Event) -> None:
        self.followed.append(event)

    def synchronize(self) -> None:
        self.record().synchronize()


class Device:
    id = 0

    def __init__(self, _: int = 0) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class GpuArray(np.ndarray):
    """Memory of the fake GPU."""

    device = Device()

    def set(self, host: np.ndarray, stream: Stream) -> None:
        stream.pending.append(lambda: np.copyto(self, host))

    def get(
        self, stream: Stream | None = None, out: np.ndarray | None = None, *, blocking: bool = True
    ) -> np.ndarray:
        if out is None:
            return np.array(self)
        assert stream is not None
        assert not blocking
        stream.pending.append(lambda: np.copyto(out, self))
        return out


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    """Put the fake in CuPy's place; gives the caller's stream."""
    callers = Stream()
    cupy: Any = types.ModuleType("cupy")
    cupy.asarray = lambda host: np.array(host).view(GpuArray)
    cupy.empty = lambda shape, dtype: np.full(shape, 77, dtype).view(GpuArray)
    cupy.ascontiguousarray = lambda array: np.ascontiguousarray(array).view(GpuArray)
    cupy.cuda = types.SimpleNamespace(
        Device=Device, Stream=Stream, get_current_stream=lambda: callers
    )
    cupyx: Any = types.ModuleType("cupyx")
    cupyx.empty_pinned = np.empty
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupyx", cupyx)
    monkeypatch.setattr(pinned_memory, "_CHUNK_BYTES", MIB)
    pinned_memory._copy_stream.cache_clear()
    yield callers
    pinned_memory._copy_stream.cache_clear()


@pytest.mark.parametrize("shape", [(3, 4), (1, MIB, 1), (5, 700, 1000), (4, 512, 512)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
def test_up_and_down_again(stream: Stream, shape: tuple[int, ...], dtype: type) -> None:
    host = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    uploaded = pinned_memory.upload(host)
    np.testing.assert_array_equal(np.asarray(uploaded), host)
    found = pinned_memory.download(uploaded)
    assert type(found) is np.ndarray
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, host)
    staged = host.nbytes >= MIB
    assert len(stream.followed) == int(staged)  # the caller's stream waits for the upload


@pytest.mark.usefixtures("stream")
def test_turned_arrays_come_down_in_the_order_of_their_axes() -> None:
    host = np.random.default_rng(0).integers(0, 200, (30, 200, 250)).astype(np.uint8)
    view = pinned_memory.upload(host).transpose(2, 0, 1)
    found = pinned_memory.download(view)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, host.transpose(2, 0, 1))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(3, 4), (5, 700, 1000), (40, 1024, 1024)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
def test_up_and_down_on_a_gpu(shape: tuple[int, ...], dtype: type) -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    if not cupy.is_available():
        pytest.skip("CuPy finds no CUDA GPU")
    host = np.random.default_rng(0).integers(0, 200, shape, np.uint8).astype(dtype)
    uploaded = to_device(host, "cuda")
    assert np.array_equal(to_host(uploaded), host)
    assert np.array_equal(to_host(uploaded.T), np.ascontiguousarray(host.T))
