"""Descriptions that are kept on disk."""

import numpy as np

from medals_rt.runners.winograd.cut import (
    WHOLE,
    Block,
    Cut,
    Handed,
    Pool,
    Sweep,
    Term,
    from_bytes,
    to_bytes,
)


def test_a_description_comes_back() -> None:
    weights = np.arange(2 * 27, dtype=np.float32).reshape(2, 1, 3, 3, 3)
    terms = (Term(0, weights), Term("x", "w"))
    cut = Cut(
        (
            Block((), "into", None, 1e-5, np.ones(2, np.float32), None, 0.01),
            Block(
                terms,
                "",
                np.zeros(2, np.float32),
                None,
                None,
                None,
                1.0,
                (Pool("means", (2, 2, 4)),),
            ),
        ),
        ({}, {"block_0_1": 0}, {"block_1_2": 1}),
        (True, False, True),
        (Sweep(1, 0, "rows", "out", 4, 1, 6), Sweep(2, "refined", "more", "last", 4, 0, 6)),
        (Handed("features", 1, (1, 4, 4, 8, 2)),),
        ("probabilities",),
    )
    found = from_bytes(to_bytes(cut))
    assert found is not None
    assert (found.reads, found.computes, found.outputs) == (cut.reads, cut.computes, cut.outputs)
    assert (found.sweeps, found.handed) == (cut.sweeps, cut.handed)
    assert found.blocks[1].pools == cut.blocks[1].pools
    assert to_bytes(found) == to_bytes(cut)
    term = found.blocks[1].terms[0]
    assert term.source == 0
    np.testing.assert_array_equal(term.weights, weights)
    assert found.blocks[1].terms[1] == Term("x", "w")


def test_a_model_left_whole_comes_back() -> None:
    assert from_bytes(to_bytes(WHOLE)) == WHOLE


def test_what_cannot_be_read_is_made_again() -> None:
    content = to_bytes(WHOLE)
    for damaged in (b"", b"not a file", content[:-1], content.replace(b"cut", b"tuc")):
        assert from_bytes(damaged) is None
