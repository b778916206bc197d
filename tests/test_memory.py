"""How a stage is cut to fit a memory limit, and that no cut changes a label."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import medals_rt
from medals_rt.bundle import Bundle
from medals_rt.errors import InputError
from medals_rt.gathering import slab_bytes
from medals_rt.memory import (
    LARGEST_DEFAULT_SLAB,
    MemoryLimit,
    MemoryPlan,
    available_bytes,
    memory_limit,
    network_bytes,
    plan_memory,
)
from medals_rt.sizes import parse_size
from medals_rt.volume import Volume

FINE = (192, 192, 192)
PLENTY = MemoryLimit(10**15, "a test")
ANATOMY = {"1": "Liver in abdominal CT", "4": "Right kidney in abdominal CT"}
LESIONS = {"7": "Adrenocortical carcinoma in abdominal CT", "instance_label": 1}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("6GB", 6 * 10**9),
        ("6 gb", 6 * 10**9),
        ("6G", 6 * 10**9),
        ("6GiB", 6 * 2**30),
        ("512MiB", 512 * 2**20),
        ("1.5e9", 1_500_000_000),
        ("100", 100),
        ("2T", 2 * 10**12),
        ("20kB", 20_000),
    ],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "6XB", "-3GB", "0", "1..5GB", "GB", "0.1"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="no amount of memory"):
        parse_size(text)


@pytest.mark.parametrize(
    ("padded", "walks"), [((365, 365, 365), 2), ((512, 512, 400), 3), ((192, 192, 192), 1)]
)
def test_a_hundred_classes_stay_below_six_gigabytes(
    padded: tuple[int, int, int], walks: int
) -> None:
    limit = MemoryLimit(64 * 10**9, "a test", LARGEST_DEFAULT_SLAB)
    plan = plan_memory(104, padded, FINE, 64, limit)
    size = max(group.stop - group.start for group in plan.groups)
    assert len(plan.groups) == walks
    assert plan.slab_bytes == slab_bytes(size, padded, FINE) <= 6e9
    assert len(plan_memory(104, padded, FINE, 64, PLENTY).groups) == 1


@given(
    classes=st.integers(1, 243),
    padded=st.tuples(*[st.integers(192, 500)] * 3),
    gigabytes=st.integers(12, 200),
    held=st.booleans(),
)
def test_every_plan_covers_all_classes_within_the_limit(
    classes: int, padded: tuple[int, int, int], gigabytes: int, held: bool
) -> None:
    limit = MemoryLimit(gigabytes * 10**9, "a test", LARGEST_DEFAULT_SLAB)
    plan = plan_memory(classes, padded, FINE, 64, limit, held=min(classes, 10) if held else 0)
    covered = [n for group in plan.groups for n in range(group.start, group.stop)]
    assert covered == list(range(classes))
    assert 1 <= plan.classes_per_chunk <= 32
    assert plan.slab_bytes <= LARGEST_DEFAULT_SLAB
    assert plan.expected_bytes <= limit.total


def test_a_limit_too_small_is_refused_with_what_would_do() -> None:
    with pytest.raises(InputError, match=r"2\.0 GB of memory are too few .* allow at least") as no:
        plan_memory(3, FINE, FINE, 64, MemoryLimit(2 * 10**9, "asked for"))
    enough = parse_size(str(no.value).rpartition("at least ")[2])
    more = MemoryLimit(enough + 10**8, "asked for")
    assert plan_memory(3, FINE, FINE, 64, more).expected_bytes <= more.total


def test_little_free_memory_does_not_cut_what_is_small() -> None:
    little = MemoryLimit(2 * 10**9, "what is free")
    assert len(plan_memory(3, FINE, FINE, 64, little).groups) == 1
    many = plan_memory(200, FINE, FINE, 64, little)
    assert 2**29 < many.slab_bytes <= 2**30


def test_held_probabilities_count() -> None:
    limit = MemoryLimit(12 * 10**9, "a test")
    free = plan_memory(10, FINE, FINE, 64, limit)
    held = plan_memory(10, FINE, FINE, 64, limit, held=10)
    assert held.expected_bytes > free.expected_bytes


def test_the_limit_is_what_was_asked_for_or_most_of_what_is_free() -> None:
    assert memory_limit(5, "cpu") == MemoryLimit(5, "asked for")
    with pytest.raises(InputError, match="must be positive"):
        memory_limit(0, "cpu")
    free = memory_limit(None, "cpu")
    assert free.total > 0
    assert free.largest_slab == LARGEST_DEFAULT_SLAB


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({}, 4096_000),
        ({"memory.max": "3000000\n", "memory.current": "1000000\n"}, 2_000_000),
        ({"memory.max": "max\n", "memory.current": "1000000\n"}, 4096_000),
        ({"memory.max": "1000\n", "memory.current": "2000\n"}, 0),
        (
            {
                "memory/memory.limit_in_bytes": "500000\n",
                "memory/memory.usage_in_bytes": "100000\n",
            },
            400_000,
        ),
    ],
)
def test_a_containers_limit_is_respected(
    tmp_path: Path, groups: dict[str, str], expected: int
) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal: 8000 kB\nMemFree: 1 kB\nMemAvailable: 4000 kB\n")
    for name, text in groups.items():
        (tmp_path / name).write_text(text)
    assert available_bytes(tmp_path, tmp_path) == expected
    assert available_bytes(tmp_path / "none", tmp_path) is None


@pytest.mark.parametrize(
    ("prompts", "refinement"), [(ANATOMY, "masked"), (ANATOMY, "none"), (LESIONS, "masked")]
)
def test_a_case_in_groups_and_chunks_is_the_case(
    tiny_bundle: Bundle, prompts: dict, refinement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One class a walk and a chunk, through both stages, against all at once: the same bytes."""
    rng = np.random.default_rng(5)
    volume = Volume(rng.integers(0, 256, (14, 40, 36), dtype=np.uint8), (4.0, 4.0, 6.0))

    def one_by_one(classes: int, *arguments: Any, **options: Any) -> MemoryPlan:
        plan = plan_memory(classes, *arguments, **options)
        groups = tuple(slice(n, n + 1) for n in range(classes))
        return replace(plan, groups=groups, classes_per_chunk=1)

    with medals_rt.load(tiny_bundle.folder, runner="onnxruntime", precision="fp32") as segmenter:
        whole = segmenter.segment(volume, prompts, refinement=refinement)
        monkeypatch.setattr("medals_rt.two_stages.plan_memory", one_by_one)
        cut = segmenter.segment(volume, prompts, refinement=refinement)
    assert {stage.class_groups for stage in whole.report.stages} == {1}
    assert {stage.class_groups for stage in cut.report.stages} == {len(whole.report.classes)}
    assert whole.labels_dhw.any()
    np.testing.assert_array_equal(cut.labels_dhw, whole.labels_dhw)


def test_a_limit_is_honoured_and_reported(tiny_bundle: Bundle) -> None:
    volume = Volume(np.full((6, 10, 10), 90, np.uint8), (4.0, 4.0, 6.0))
    with medals_rt.load(tiny_bundle.folder, runner="onnxruntime", precision="fp32") as segmenter:
        report = segmenter.segment(volume, ANATOMY, max_memory=2 * 2**30).report
        assert report.memory == {"limit_mib": 2048.0, "limit_from": "asked for"}
        assert segmenter.segment(volume, ANATOMY).report.memory["limit_mib"] > 0
        with pytest.raises(InputError, match="allow at least"):
            segmenter.segment(volume, ANATOMY, max_memory=2**20)


def test_the_network_of_a_full_window_is_what_was_measured() -> None:
    assert 3.5e9 < network_bytes(FINE, 64, 4, "bf16") < 4.5e9
    assert 7e9 < network_bytes(FINE, 64, 40, "bf16") < 8e9
    assert 7e9 < network_bytes(FINE, 64, 4, "fp32") < 8e9  # twice: an estimate
