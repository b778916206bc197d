"""Memory of volumes: kept from pass to pass, with spare rows so that they are convolved in place.

New memory costs time where it is first written, as much as a tenth of a pass.
"""

from collections.abc import Sequence
from threading import Lock
from typing import Final

import numpy as np


class Buffer:
    """Memory of a volume `(H, W, D, C)` and of spare rows along H: it lies at either end.

    Parameters
    ----------
    shape
        Of the volume.
    dtype
        Of its values.
    spare
        Rows more.
    """

    def __init__(self, shape: Sequence[int], dtype: str, spare: int) -> None:
        height, *rest = shape
        self.spare = spare
        whole = np.empty((height + spare, *rest), dtype)
        self.first, self.last = whole[:height], whole[spare:]

    def other(self, values: np.ndarray) -> np.ndarray:
        """Return the end at which a volume of this memory does not lie."""
        return self.last if values.ctypes.data == self.first.ctypes.data else self.first


class Buffers:
    """Memory that is free for volumes of the same shape; safe to share between threads."""

    def __init__(self) -> None:
        self._free: list[Buffer] = []
        self._lock = Lock()

    def take(self, shape: Sequence[int], dtype: str, spare: int) -> Buffer:
        """Return memory whose content is anything."""
        with self._lock:
            for number, buffer in enumerate(self._free):
                fits = buffer.first.shape == tuple(shape) and buffer.first.dtype == dtype
                if fits and buffer.spare == spare:
                    return self._free.pop(number)
        return Buffer(shape, dtype, spare)

    def give_back(self, buffer: Buffer) -> None:
        """Let later volumes have it."""
        with self._lock:
            self._free.append(buffer)

    def release(self) -> None:
        """Return all that is free to the system."""
        with self._lock:
            self._free.clear()


BUFFERS: Final = Buffers()
"""Of the process: windows with and without prompts are of two models, and of one size."""
