"""A GPU while something is measured on it: waiting for it, and the most memory in use."""

import sys
import threading
from typing import Self

from medals_rt.common.arrays import is_cupy
from medals_rt.common.typing import Array

_SECONDS_BETWEEN_LOOKS = 0.02


def wait_for_device(array: Array) -> None:
    """Wait until the device of an array has finished; a processor's libraries already have."""
    if is_cupy(array):
        array.device.synchronize()


class GpuMemory:
    """Watch on the current GPU in a thread of its own, where CuPy is in use and finds one.

    What other programs hold when the watch begins is taken off. Without a GPU nothing is watched
    and `peak_mib` stays None. Untried on a GPU.
    """

    def __init__(self) -> None:
        self.peak_mib: float | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        base: int | None = None
        while not self._stop.wait(_SECONDS_BETWEEN_LOOKS):
            if "cupy" not in sys.modules:
                continue
            import cupy  # another thread may be halfway through importing it: this waits for it

            if not cupy.is_available():
                continue
            free, total = cupy.cuda.runtime.memGetInfo()
            base = total - free if base is None else base
            used = (total - free - base) / 2**20
            self.peak_mib = round(max(self.peak_mib or 0.0, used), 1)
