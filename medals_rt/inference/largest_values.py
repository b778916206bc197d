"""Whether what a network gives is finite, found without waiting for a GPU.

A network whose weights are damaged, or that overflows in half precision, gives NaN. No comparison
with a threshold holds for NaN, so that its labels would be those of a scan that shows nothing.
"""

from __future__ import annotations

from medals_rt.common.arrays import namespace
from medals_rt.common.typing import Array


class LargestValues:
    """The largest of each of several arrays, looked at together.

    A maximum is NaN where one of its values is, in each array library. It stays on the arrays'
    device until it is asked for: one transfer, at a time of the caller's choice. Threads may share
    one.
    """

    def __init__(self) -> None:
        self._found: list[Array] = []

    def note(self, values: Array) -> None:
        """Note the largest value of an array."""
        self._found.append(namespace(values).max(values))

    def are_finite(self) -> bool:
        """Whether all values noted since this was last asked are finite, as far as they show.

        What is minus infinity does not: a maximum passes it over.
        """
        found, self._found = self._found, []
        if not found:
            return True
        xp = namespace(found[0])
        return bool(xp.isfinite(xp.max(xp.stack(found))))
