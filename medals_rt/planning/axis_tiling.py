"""Where an axis is cut into blocks so that few windows reach into more than one of them.

Sums over windows can be held for a block of columns at a time (a column is a line of voxels along
H). A window that reaches into several blocks is run once for each, so a cut costs as many more runs
as there are windows that it goes through: one where windows overlap by half and it lies where a
window starts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from heapq import heappop, heappush
from itertools import accumulate, pairwise
from typing import TypeAlias

Columns: TypeAlias = tuple[slice, slice]
"""A block of columns: its voxels along W and along D, with start and stop."""

Span: TypeAlias = tuple[int, int]
"""What a window covers along an axis: first voxel, and the one after its last."""


@dataclass(frozen=True)
class AxisCut:
    """An axis in blocks.

    Attributes
    ----------
    edges
        Where blocks start and end, from 0 to the axis' length.
    runs
        Windows that reach into a block, summed over the blocks.
    """

    edges: tuple[int, ...]
    runs: int

    @cached_property
    def blocks(self) -> tuple[slice, ...]:
        """The blocks, in order."""
        return tuple(slice(a, b) for a, b in pairwise(self.edges))

    @cached_property
    def widest(self) -> int:
        """Voxels of the widest block."""
        return max(b - a for a, b in pairwise(self.edges))


@lru_cache(maxsize=32)
def axis_cuts(spans: tuple[Span, ...], length: int) -> tuple[AxisCut, ...]:
    """Return the tilings of an axis that are worth having, from one block to narrow ones.

    Each has the fewest runs, and of these the fewest blocks, of all whose blocks are as narrow.
    Blocks are never required to be narrower than half a window: from there on, halving them doubles
    the runs.

    Parameters
    ----------
    spans
        What the windows cover; together all of the axis.
    length
        Voxels of the axis.
    """
    through = _windows_through(spans, length)
    latest = [_latest_cuts(through, most) for most in sorted(set(through[1:length]))]
    narrowest = min(length, max(1, (spans[0][1] - spans[0][0]) // 2))

    def cut(widest: int) -> AxisCut:
        edges = _fewest_runs(through, latest, widest)
        return AxisCut(edges, len(spans) + sum(through[edge] for edge in edges[1:-1]))

    def cost(widest: int) -> tuple[int, int]:
        found = cut(widest)
        return found.runs, len(found.edges)

    found, widest = [], length
    while widest >= narrowest:
        least = cost(widest)
        # as narrow as the same runs and blocks allow
        widest = narrowest + bisect_left(
            range(narrowest, widest), True, key=lambda size: cost(size) <= least
        )
        found.append(cut(widest))
        widest -= 1
    return tuple(found)


def _windows_through(spans: Sequence[Span], length: int) -> list[int]:
    """Count the windows that a cut before each voxel goes through; 0 and `length` are no cuts."""
    changes = [0] * (length + 2)
    for start, stop in spans:
        changes[start + 1] += 1
        changes[min(stop, length + 1)] -= 1
    return list(accumulate(changes))[: length + 1]


def _latest_cuts(through: Sequence[int], most: int) -> list[int]:
    """Find for each voxel the last cut up to it that goes through at most so many windows, or 0."""
    cuts = [0] * len(through)
    for at in range(1, len(through)):
        cuts[at] = at if through[at] <= most else cuts[at - 1]
    return cuts


def _fewest_runs(
    through: Sequence[int], latest: Sequence[Sequence[int]], widest: int
) -> tuple[int, ...]:
    """Cut an axis into blocks of at most `widest` voxels, through the fewest windows.

    The cheapest cuts so far are gone on with first (Dijkstra's algorithm). Of two that cost the
    same, the one that got farther can do all that the other can; so of all next cuts within reach
    only the last through at most 0, 1, 2, ... windows is tried.
    """
    length = len(through) - 1
    waiting: list[tuple[int, int, tuple[int, ...]]] = [(0, 0, (0,))]
    farthest = -1
    while True:
        runs, cuts, edges = heappop(waiting)
        reach = edges[-1] + widest
        if reach >= length:
            return (*edges, length)
        if edges[-1] <= farthest:
            continue
        farthest = edges[-1]
        for cut in {cuts_up_to[reach] for cuts_up_to in latest}:
            if cut > farthest:
                heappush(waiting, (runs + through[cut], cuts + 1, (*edges, cut)))
