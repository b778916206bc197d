"""Progress of work that isn't done bit by bit."""

import pytest

from medals_rt.common.progress import whole


def test_a_block_begins_and_ends() -> None:
    said: list[tuple[str, int, int]] = []
    with whole(lambda *each: said.append(each), "read"):
        assert said == [("read", 0, 1)]
    assert said[1:] == [("read", 1, 1)]


def test_a_block_that_fails_is_never_done() -> None:
    said: list[tuple[str, int, int]] = []
    with pytest.raises(ValueError, match="broken"), whole(lambda *each: said.append(each), "read"):
        raise ValueError("broken")
    assert said == [("read", 0, 1)]


def test_nobody_need_listen() -> None:
    with whole(None, "read"):
        pass
