"""A stand-in for CuPy: arrays in host memory at real addresses, streams that run at once.

Only what the runners use. `cuda.log` tells what was asked of streams and events, in order.
"""

import math

import numpy as np

ALIGNMENT = 512


class _Pointer:
    def __init__(self, ptr):
        self.ptr = ptr


class ndarray(np.ndarray):  # noqa: N801 - CuPy's name
    @property
    def data(self):
        return _Pointer(self.ctypes.data)

    def get(self):
        return np.array(self)

    def copy(self):
        return _filled(self.shape, self.dtype, self)


def _filled(shape, dtype, value):
    """A new array that begins where CuPy's do."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    array = memory[start : start + size].view(dtype).reshape(shape).view(ndarray)
    array[...] = value
    return array


def asarray(array, dtype=None):
    array = np.asarray(array, dtype)
    return _filled(array.shape, array.dtype, array)


def ascontiguousarray(array):
    return array if array.flags.c_contiguous else array.copy()


def empty(shape, dtype):
    return _filled(shape, dtype, 77)


def zeros(shape, dtype):
    return _filled(shape, dtype, 0)


def isfinite(array):
    return np.isfinite(np.asarray(array))


def is_available():
    return True


class Event:
    def __init__(self, disable_timing=False):
        assert disable_timing

    def record(self, stream):
        cuda.log.append(("record", id(self), stream.ptr))


class Graph:
    def __init__(self, work):
        self._work = work

    def launch(self, stream):
        cuda.log.append(("launch graph", stream.ptr))
        for work in self._work:
            work()


class Stream:
    def __init__(self, non_blocking=False):
        self.non_blocking = non_blocking
        self.ptr = len(cuda.streams) + 1
        self._captured = None
        cuda.streams[self.ptr] = self

    def __enter__(self):
        cuda.current.append(self)
        return self

    def __exit__(self, *_):
        cuda.current.pop()

    def wait_event(self, event):
        cuda.log.append(("wait", id(event), self.ptr))

    def synchronize(self):
        cuda.log.append(("synchronize", self.ptr))

    def begin_capture(self):
        assert self.ptr != 1, "the default stream can't be captured"
        self._captured = []

    def end_capture(self):
        captured, self._captured = self._captured, None
        return Graph(captured)

    def queue(self, work):
        """What a launch on this stream does: the work, or its recording."""
        cuda.log.append(("launch", self.ptr))
        if self._captured is None:
            work()
        else:
            self._captured.append(work)


class Device:
    id = 0

    def __init__(self, number=0):
        assert number == 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class _Memory:
    def __init__(self, size):
        self.bytes = np.empty(max(size, 1), np.uint8)
        self.ptr = self.bytes.ctypes.data
        self.stream = cuda.current[-1].ptr


class cuda:  # noqa: N801 - a module in CuPy
    log: list = []  # noqa: RUF012
    streams: dict = {}  # noqa: RUF012
    current: list = []  # noqa: RUF012
    Event, Stream, Device, Graph = Event, Stream, Device, Graph
    alloc = _Memory

    @staticmethod
    def get_current_stream():
        return cuda.current[-1]


cuda.current.append(Stream())  # the default stream, number 1
