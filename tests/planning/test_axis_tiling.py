"""Cuts of an axis: against all ways to cut it, for axes short enough to try them all."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medals_rt.planning.axis_tiling import AxisCut, Span, axis_cuts
from medals_rt.planning.sliding_window import window_starts


def spans_of(length: int, window: int, overlap: float = 0.5) -> tuple[Span, ...]:
    """Windows of an axis; of one that is shorter than the window, of the padded axis."""
    starts = window_starts(max(length, window), window, overlap)
    return tuple((start, start + window) for start in starts)


def every_cut(spans: tuple[Span, ...], length: int) -> Iterator[AxisCut]:
    """Cut an axis in every way, and count the windows of each block."""
    for count in range(length):
        for inner in combinations(range(1, length), count):
            edges = (0, *inner, length)
            runs = sum(start < b and stop > a for a, b in pairwise(edges) for start, stop in spans)
            yield AxisCut(edges, runs)


@given(
    length=st.integers(1, 11), window=st.integers(1, 9), overlap=st.sampled_from([0.5, 0.25, 0.7])
)
def test_no_cut_into_blocks_as_narrow_has_fewer_runs(
    length: int, window: int, overlap: float
) -> None:
    spans = spans_of(length, window, overlap)
    found = axis_cuts(spans, length)
    costs = {(cut.widest, cut.runs, len(cut.edges)) for cut in every_cut(spans, length)}
    for widest in range(max(1, min(length, window // 2)), length + 1):
        least = min((runs, edges) for most, runs, edges in costs if most <= widest)
        first = next(cut for cut in found if cut.widest <= widest)
        assert (first.runs, len(first.edges)) == least


@given(length=st.integers(1, 700), window=st.integers(1, 200), overlap=st.sampled_from([0.5, 0.25]))
def test_cuts_cover_the_axis_and_count_what_they_run(
    length: int, window: int, overlap: float
) -> None:
    spans = spans_of(length, window, overlap)
    found = axis_cuts(spans, length)
    assert found[0] == AxisCut((0, length), len(spans))
    assert found[-1].widest <= max(1, window // 2)
    for cut in found:
        assert cut.edges[0] == 0
        assert cut.edges[-1] == length
        assert all(block.start < block.stop for block in cut.blocks)
        assert cut.widest == max(block.stop - block.start for block in cut.blocks)
        assert cut.runs == sum(
            start < block.stop and stop > block.start
            for block in cut.blocks
            for start, stop in spans
        )
    for one, other in pairwise(found):
        assert one.widest > other.widest
        assert (one.runs, len(one.edges)) < (other.runs, len(other.edges))


@pytest.mark.parametrize(
    ("length", "runs", "edges"),
    [
        (512, 6, (0, 288, 512)),  # a window starts at 288: one goes through, 192 to 384
        (400, 5, (0, 192, 400)),
        (192, 2, (0, 96, 192)),
        (100, 2, (0, 96, 100)),  # padded to one window
    ],
)
def test_halving_an_axis_runs_one_more_window(
    length: int, runs: int, edges: tuple[int, ...]
) -> None:
    second = axis_cuts(spans_of(length, 192), length)[1]
    assert (second.runs, second.edges) == (runs, edges)
