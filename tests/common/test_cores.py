"""How many processors a process may use, and that all ask in one place."""

import os

import pytest

from medals_rt.common import cores
from medals_rt.common.environment import machine_facts


@pytest.mark.parametrize("quota", [None, 1])
def test_a_quota_of_a_container_counts(monkeypatch: pytest.MonkeyPatch, quota: int | None) -> None:
    monkeypatch.setattr(cores, "cpu_quota", lambda _: quota)
    cores.usable_cores.cache_clear()
    try:
        assert cores.usable_cores() == (quota or len(os.sched_getaffinity(0)))
        assert machine_facts()["cores"] == cores.usable_cores()
    finally:
        cores.usable_cores.cache_clear()
