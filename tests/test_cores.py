"""How the processes of a test run share the machine."""

import os

import pytest

from tests import cores


@pytest.mark.parametrize(
    ("present", "workers", "shares"),
    [
        ({0, 1}, 2, [{0}, {1}]),
        ({2, 3, 5, 8, 9}, 2, [{2, 5, 9}, {3, 8}]),
        ({7}, 2, [{7}, {7}]),
        (set(), 2, []),
        ({0, 1}, 0, []),
    ],
)
def test_each_process_has_a_share(
    monkeypatch: pytest.MonkeyPatch, present: set[int], workers: int, shares: list[set[int]]
) -> None:
    found: list[set[int]] = []
    monkeypatch.setattr(cores, "ALL", frozenset(present))
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, share: found.append(set(share)), False)
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", str(workers))
    for worker in [f"gw{number}" for number in range(workers)] or [""]:
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        cores.take_a_share()
    assert found == shares


@pytest.mark.skipif(not cores.ALL, reason="processes aren't tied to cores here")
def test_a_test_may_have_all_cores() -> None:
    before = os.sched_getaffinity(0)
    with cores.all_cores():
        assert os.sched_getaffinity(0) == cores.ALL
    assert os.sched_getaffinity(0) == before
