"""Streams, events and graphs that run at once; `log` tells what was asked of them, in order."""

from types import SimpleNamespace

import numpy as np

from ._log import log
from .device import Device  # noqa: F401

streams: dict = {}
current: list = []

runtime = SimpleNamespace(
    memGetInfo=lambda: (70 << 30, 80 << 30),
    runtimeGetVersion=lambda: 12090,
    driverGetVersion=lambda: 13000,
)


class Event:
    def __init__(self, block=False, disable_timing=False):
        self.block, self.disable_timing = block, disable_timing

    def record(self, stream=None):
        log.append(("record", id(self), (stream or get_current_stream()).ptr))

    def synchronize(self):
        log.append(("synchronize event", id(self)))


class Graph:
    def __init__(self, work):
        self._work = work

    def launch(self, stream=None):
        log.append(("launch graph", (stream or get_current_stream()).ptr))
        for work in self._work:
            work()


class Stream:
    def __init__(self, null=False, non_blocking=False):
        self.null, self.non_blocking = null, non_blocking
        self.ptr = len(streams) + 1
        self._captured = None
        streams[self.ptr] = self

    def __enter__(self):
        current.append(self)
        return self

    def __exit__(self, *_):
        current.pop()

    def record(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event):
        assert isinstance(event, Event)
        log.append(("wait", id(event), self.ptr))

    def synchronize(self):
        log.append(("synchronize", self.ptr))

    def begin_capture(self):
        assert self.ptr != 1, "the default stream can't be captured"
        self._captured = []

    def end_capture(self):
        captured, self._captured = self._captured, None
        return Graph(captured)

    def queue(self, work):
        """What a launch on this stream does: the work, or its recording."""
        log.append(("launch", self.ptr))
        if self._captured is None:
            work()
        else:
            self._captured.append(work)


class _Memory:
    def __init__(self, size):
        self.bytes = np.empty(max(size, 1), np.uint8)
        self.ptr = self.bytes.ctypes.data
        self.stream = current[-1].ptr


alloc = _Memory


def get_elapsed_time(start_event, end_event):
    assert isinstance(start_event, Event)
    assert isinstance(end_event, Event)
    return 1.0


def get_current_stream():
    return current[-1]


def is_available():
    return True


current.append(Stream())  # the default stream, number 1
