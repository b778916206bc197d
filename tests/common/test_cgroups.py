"""A container's limits, from files as both generations of control groups have them."""

from pathlib import Path

import pytest

from medals_rt.common.cgroups import cpu_quota, memory_in_use, memory_limit


def write_files(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "broken\n"}, None),
        ({}, None),
    ],
)
def test_processors(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    assert cpu_quota(write_files(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("files", "limit", "used"),
    [
        ({"memory.max": "4294967296\n", "memory.current": "77\n"}, 2**32, 77),
        ({"memory.max": "max\n", "memory.current": "77\n"}, None, 77),
        ({"memory/memory.limit_in_bytes": "1048576\n"}, 2**20, None),
        ({"memory/memory.usage_in_bytes": "5\n"}, None, 5),
        ({"memory.max": "broken\n", "memory.current": ""}, None, None),
        ({}, None, None),
    ],
)
def test_memory(tmp_path: Path, files: dict[str, str], limit: int | None, used: int | None) -> None:
    group = write_files(tmp_path, files)
    assert (memory_limit(group), memory_in_use(group)) == (limit, used)
