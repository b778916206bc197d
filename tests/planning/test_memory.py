"""How a stage is cut to fit a memory limit, and that no cut changes a label."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import medals_rt
from medals_rt.bundle.bundle import Bundle
from medals_rt.cli.plan import named_classes
from medals_rt.common.byte_sizes import parse_size
from medals_rt.common.errors import InputError
from medals_rt.common.typing import Shape
from medals_rt.inference.graph_chains import pass_chains
from medals_rt.inference.network import StageNetwork
from medals_rt.io.volume import Volume
from medals_rt.pipeline.options import RunOptions, SegmentOptions
from medals_rt.pipeline.plan_case import plan_numbers
from medals_rt.planning.axis_tiling import Columns
from medals_rt.planning.memory import (
    LARGEST_DEFAULT_SLAB,
    MemoryDemand,
    MemoryLimit,
    MemoryPlan,
    TileSweep,
    available_bytes,
    case_bytes,
    joined_chains,
    memory_limit,
    network_bytes,
    plan_memory,
    slab_bytes,
)
from medals_rt.planning.model_facts import RELEASED
from medals_rt.planning.sliding_window import Window, padded_shape, plan_windows, window_starts
from tests.errors import raises
from tests.paths import ROOT

DEMO = ROOT / "engines" / "demo"
FINE = (192, 192, 192)
PLENTY = MemoryLimit(10**15, "a test")
WEIGHTLESS = replace(RELEASED, weights=0)
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


@pytest.mark.parametrize(
    ("classes", "shape", "windows", "runs"),
    [
        (104, (192, 192, 192), 1, 1),
        (104, (365, 365, 365), 27, 45),
        (104, (512, 512, 400), 100, 150),  # 6 of 5 along W times 5 of 4 along D
        (243, (192, 192, 192), 1, 2),
        (243, (512, 512, 400), 100, 240),
    ],
)
def test_many_classes_stay_below_six_gigabytes(
    classes: int, shape: Shape, windows: int, runs: int
) -> None:
    limit = MemoryLimit(64 * 10**9, "a test", LARGEST_DEFAULT_SLAB)
    plan = plan_memory(MemoryDemand(WEIGHTLESS, classes), shape, plan_windows(shape, FINE), limit)
    assert plan.window_runs == runs
    assert plan.slab_bytes == max(sweep_bytes(sweep) for sweep in plan.sweeps) <= 6e9
    at_once = plan_memory(
        MemoryDemand(WEIGHTLESS, classes), shape, plan_windows(shape, FINE), PLENTY
    )
    assert (len(at_once.sweeps), at_once.window_runs) == (1, windows)


def sweep_bytes(sweep: TileSweep, rows: int = FINE[0]) -> int:
    """Sums of a sweep, counted from its classes and columns."""
    across = [block.stop - block.start for block in sweep.columns]
    return 4 * (sweep.classes.stop - sweep.classes.start + 1) * rows * prod(across)


@example(classes=28, shape=(542, 600, 600), overlap=0.5, gigabytes=12, held=True)
@given(
    classes=st.integers(1, 243),
    shape=st.tuples(*[st.integers(90, 600)] * 3),
    overlap=st.sampled_from([0.5, 0.25]),
    gigabytes=st.integers(12, 200),
    held=st.booleans(),
)
def test_every_plan_covers_all_classes_and_columns_within_the_limit(
    classes: int, shape: Shape, overlap: float, gigabytes: int, held: bool
) -> None:
    limit = MemoryLimit(gigabytes * 10**9, "asked for", LARGEST_DEFAULT_SLAB)
    windows = plan_windows(padded_shape(shape, FINE), FINE, overlap)
    plan = plan_memory(
        MemoryDemand(WEIGHTLESS, classes, held_classes=min(classes, 10) if held else 0),
        shape,
        windows,
        limit,
    )
    times = np.zeros((classes, *shape[1:]), np.uint8)
    for sweep in plan.sweeps:
        times[sweep.classes, *sweep.columns] += 1
        assert sweep.windows == tuple(
            index for index, window in enumerate(windows) if covers(window, sweep.columns)
        )
    assert (times == 1).all()
    assert len(plan.sweeps) == plan.class_groups * plan.column_blocks
    assert plan.window_runs >= len(windows)
    assert 1 <= plan.classes_per_chunk <= 32
    assert (
        max(sweep_bytes(sweep) for sweep in plan.sweeps) <= plan.slab_bytes <= LARGEST_DEFAULT_SLAB
    )
    assert plan.expected_bytes <= limit.total


def covers(window: Window, columns: Columns) -> bool:
    """Whether a window has a voxel of the columns, voxel by voxel along each axis."""
    return all(
        set(range(window.starts_hwd[axis], window.stops_hwd[axis]))
        & set(range(block.start, block.stop))
        for axis, block in zip((1, 2), columns, strict=True)
    )


def runs_of_every_cut(length: int, window: int, overlap: float) -> set[tuple[int, int, int]]:
    """Widest block, runs and blocks of every way to cut an axis."""
    starts = window_starts(max(length, window), window, overlap)
    found = set()
    for count in range(length):
        for inner in combinations(range(1, length), count):
            blocks = list(pairwise((0, *inner, length)))
            widest = max(b - a for a, b in blocks)
            runs = sum(start < b and start + window > a for a, b in blocks for start in starts)
            if widest >= min(length, window // 2):
                found.add((widest, runs, len(blocks)))
    return found


@given(
    classes=st.integers(1, 9),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    window=st.tuples(*[st.integers(1, 6)] * 3),
    overlap=st.sampled_from([0.5, 0.25]),
    share=st.floats(0.05, 1.2),
)
def test_no_other_cut_within_the_limit_runs_fewer_windows(
    classes: int, shape: Shape, window: Shape, overlap: float, share: float
) -> None:
    windows = plan_windows(padded_shape(shape, window), window, overlap)
    slab = int(share * slab_bytes(classes, (window[0], *shape[1:])))
    limit = MemoryLimit(10**12, "a test", slab)
    plan = plan_memory(
        MemoryDemand(replace(WEIGHTLESS, channels=1), classes), shape, windows, limit
    )
    rows = len({each.starts_hwd[0] for each in windows})
    along_w, along_d = (runs_of_every_cut(shape[k], window[k], overlap) for k in (1, 2))
    fitting = [
        (groups * w_runs * d_runs * rows, groups * w_blocks * d_blocks)
        for groups in range(1, classes + 1)
        for w, w_runs, w_blocks in along_w
        for d, d_runs, d_blocks in along_d
        if slab_bytes(-(-classes // groups), (window[0], w, d)) <= slab
    ]
    if fitting:
        assert plan.slab_bytes <= slab
        assert (plan.window_runs, len(plan.sweeps)) == min(fitting)
    else:  # unasked, the narrowest blocks of one class are held in any case
        assert {sweep.classes.stop - sweep.classes.start for sweep in plan.sweeps} == {1}


@pytest.mark.parametrize("classes", [1, 3, 104])
@pytest.mark.parametrize("shape", [FINE, (512, 512, 400), (90, 60, 500)])
def test_the_least_that_is_needed_suffices(classes: int, shape: Shape) -> None:
    windows = plan_windows(padded_shape(shape, FINE), FINE)
    demand = MemoryDemand(WEIGHTLESS, classes)
    short = plan_memory(demand, shape, windows, MemoryLimit(2 * 10**9, "asked for"))
    assert short.least_bytes > 2 * 10**9
    plan = plan_memory(demand, shape, windows, MemoryLimit(short.least_bytes, "asked for"))
    assert plan.expected_bytes <= plan.least_bytes == short.least_bytes


def test_a_limit_too_small_for_either_stage_is_refused_before_work(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figure that is named suffices for both stages; a little less is refused."""
    rng = np.random.default_rng(5)
    volume = Volume(rng.integers(0, 256, (8, 24, 22), dtype=np.uint8), (4.0, 4.0, 6.0))
    with medals_rt.load(tiny_bundle.folder, runner="onnxruntime", precision="fp32") as segmenter:
        with monkeypatch.context() as patch:
            patch.setattr(StageNetwork, "predict", None)
            with raises(InputError, "memory-too-small") as no:
                segmenter.segment(volume, ANATOMY, SegmentOptions(max_memory=2**20))
        enough = parse_size(str(no.value).rpartition("at least ")[2])
        assert segmenter.segment(
            volume, ANATOMY, SegmentOptions(max_memory=enough)
        ).labels_dhw.any()
        with raises(InputError, "memory-too-small"):
            segmenter.segment(volume, ANATOMY, SegmentOptions(max_memory=enough - 10**8))


def test_fp32_takes_twice_the_memory_of_bf16() -> None:
    both = [replace(WEIGHTLESS, precision=precision) for precision in ("fp32", "bf16")]
    fp32, bf16 = (network_bytes(MemoryDemand(model, 4), FINE) for model in both)
    assert fp32 == 2 * bf16


def test_little_free_memory_does_not_cut_what_is_small() -> None:
    little = MemoryLimit(2 * 10**9, "what is free")
    window = plan_windows(FINE, FINE)
    assert len(plan_memory(MemoryDemand(WEIGHTLESS, 3), FINE, window, little).sweeps) == 1
    many = plan_memory(MemoryDemand(WEIGHTLESS, 200), FINE, window, little)
    assert 2**29 < many.slab_bytes <= 2**30


def test_held_probabilities_count() -> None:
    limit = MemoryLimit(12 * 10**9, "a test")
    window = plan_windows(FINE, FINE)
    free = plan_memory(MemoryDemand(WEIGHTLESS, 10), FINE, window, limit)
    held = plan_memory(MemoryDemand(WEIGHTLESS, 10, held_classes=10), FINE, window, limit)
    assert held.expected_bytes > free.expected_bytes


def test_the_limit_is_what_was_asked_for_or_most_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert memory_limit(5, "cpu") == MemoryLimit(5, "asked for")
    with raises(InputError, "memory-not-positive"):
        memory_limit(0, "cpu")
    free = memory_limit(None, "cpu")
    assert free.total > 0
    assert free.largest_slab == LARGEST_DEFAULT_SLAB
    monkeypatch.setattr("medals_rt.planning.memory.available_bytes", lambda *_: 10**10)
    assert memory_limit(None, "cpu").total == 8 * 10**9


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
    (tmp_path / "meminfo").write_text(
        "MemTotal: 8000 kB\nMemFree: 1 kB\nMemAvailable: 4000 kB\n", encoding="utf-8"
    )
    for name, text in groups.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert available_bytes(tmp_path, tmp_path) == expected
    assert available_bytes(tmp_path / "none", tmp_path) is None


@pytest.mark.parametrize(
    ("prompts", "refinement"), [(ANATOMY, "masked"), (ANATOMY, "none"), (LESIONS, "masked")]
)
def test_a_case_in_groups_and_chunks_is_the_case(
    tiny_bundle: Bundle, prompts: dict, refinement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One class a sweep and a chunk, in many blocks, through both stages: the same bytes."""
    rng = np.random.default_rng(5)
    volume = Volume(rng.integers(0, 256, (8, 24, 22), dtype=np.uint8), (4.0, 4.0, 6.0))

    def one_by_one(*arguments: Any, **options: Any) -> MemoryPlan:
        tiny = MemoryLimit(10**12, "a test", 1)
        plan = plan_memory(*arguments[:-1], tiny, **options)
        return replace(plan, classes_per_chunk=1)

    with medals_rt.load(tiny_bundle.folder, runner="onnxruntime", precision="fp32") as segmenter:
        whole = segmenter.segment(volume, prompts, SegmentOptions(refinement=refinement))
        monkeypatch.setattr("medals_rt.planning.stage_plan.plan_memory", one_by_one)
        cut = segmenter.segment(volume, prompts, SegmentOptions(refinement=refinement))
    assert {stage.class_groups for stage in whole.report.stages} == {1}
    assert {stage.class_groups for stage in cut.report.stages} == {len(whole.report.classes)}
    for before, after in zip(whole.report.stages, cut.report.stages, strict=True):
        assert (before.column_blocks, before.window_runs) == (1, before.windows)
        assert after.column_blocks >= 4
        assert after.window_runs > 3 * after.windows * after.class_groups
        assert after.passes > 3 * before.passes
    assert whole.labels_dhw.any()
    np.testing.assert_array_equal(cut.labels_dhw, whole.labels_dhw)


def test_max_memory_cuts_the_image_into_blocks_and_changes_no_label(tiny_bundle: Bundle) -> None:
    """A limit that is short of half of the fine stage's sums; the coarse stage's need less."""
    rng = np.random.default_rng(5)
    volume = Volume(rng.integers(0, 256, (8, 24, 22), dtype=np.uint8), (4.0, 4.0, 6.0))
    with medals_rt.load(tiny_bundle.folder, runner="onnxruntime", precision="fp32") as segmenter:
        whole = segmenter.segment(volume, ANATOMY)
        fine = whole.report.stages[1]
        slab = int(fine.accumulators_mib * 2**20)
        limit = int(fine.expected_peak_mib * 2**20) - slab // 2
        cut = segmenter.segment(volume, ANATOMY, SegmentOptions(max_memory=limit))
    after = cut.report.stages[1]
    assert (fine.column_blocks, fine.window_runs) == (1, fine.windows)
    assert after.column_blocks > 1
    assert after.windows == fine.windows < after.window_runs
    assert whole.labels_dhw.any()
    np.testing.assert_array_equal(cut.labels_dhw, whole.labels_dhw)
    np.testing.assert_array_equal(cut.stage_labels_dhw["fine"], whole.stage_labels_dhw["fine"])


def test_a_limit_is_honoured_and_reported(tiny_bundle: Bundle) -> None:
    volume = Volume(np.full((6, 10, 10), 90, np.uint8), (4.0, 4.0, 6.0))
    with medals_rt.load(tiny_bundle.folder, runner="onnxruntime", precision="fp32") as segmenter:
        report = segmenter.segment(volume, ANATOMY, SegmentOptions(max_memory=2 * 2**30)).report
        assert report.memory["limit_mib"] == 2048.0
        assert report.memory["limit_from"] == "asked for"
        assert 0 < report.memory["expected_peak_mib"] < 2048
        assert segmenter.segment(volume, ANATOMY).report.memory["limit_mib"] > 0
        with raises(InputError, "memory-too-small"):
            segmenter.segment(volume, ANATOMY, SegmentOptions(max_memory=2**20))


@pytest.mark.parametrize(
    ("precision", "convolution", "kinds", "classes", "gigabytes"),
    [
        ("bf16", "direct", "text", 4, 4.83),
        ("bf16", "direct", "text", 13, 5.48),
        ("bf16", "direct", "both", 4, 5.71),
        ("fp32", "direct", "text", 4, 8.45),
        ("bf16", "winograd", "text", 4, 3.82),
        ("bf16", "winograd", "text", 13, 4.54),
        ("bf16", "winograd", "prompted", 4, 4.06),
        ("bf16", "winograd", "prompted", 13, 5.23),
        ("bf16", "winograd", "both", 4, 5.09),
        ("fp32", "winograd", "text", 4, 6.15),
        ("fp32", "winograd", "both", 4, 8.05),
    ],
)
def test_full_size_takes_what_was_measured(
    precision: str, convolution: Any, kinds: str, classes: int, gigabytes: float
) -> None:
    """One window of 192^3, the fine network alone: benchmarks/results/full_size.md."""
    demand = MemoryDemand(
        replace(RELEASED, precision=precision, convolution=convolution),
        classes,
        open_chains=2 if kinds == "both" else 1,
        prompted=kinds != "text",
    )
    plan = plan_memory(demand, FINE, plan_windows(FINE, FINE), PLENTY)
    assert plan.expected_bytes - plan.slab_bytes == pytest.approx(gigabytes * 1e9, rel=0.15)


def test_onnx_runtime_takes_what_was_measured() -> None:
    """One window of 192^3 and 4 classes: benchmarks/NOTES.md."""
    demand = MemoryDemand(replace(RELEASED, runner="onnxruntime", precision="fp32"), 4)
    plan = plan_memory(demand, FINE, plan_windows(FINE, FINE), PLENTY)
    assert plan.expected_bytes - plan.slab_bytes == pytest.approx(15.55e9, rel=0.15)


def test_each_chain_and_each_earlier_group_counts() -> None:
    """Where graphs are joined: ONNX Runtime opens each graph once."""
    window = plan_windows(FINE, FINE)
    for runner, expected in (("openvino", True), ("onnxruntime", False)):
        model = replace(RELEASED, runner=runner, precision="fp32", weights=10**8)
        demand = MemoryDemand(model, 4)
        more = replace(demand, open_chains=3)
        two, three = (plan_memory(each, FINE, window, PLENTY) for each in (demand, more))
        assert (three.expected_bytes > two.expected_bytes + 4 * 10**8) is expected
    assert case_bytes(10**6, 4) == case_bytes(10**6, 2) + 2 * 10**6
    assert case_bytes(10**6, 2, 2) > case_bytes(10**6, 2, 1) > case_bytes(10**6, 2)


def test_chains_are_named_as_the_network_opens_them() -> None:
    """As many as `pass_chains` names, single graphs aside, which weigh little."""
    for count in (1, 2, 3, 9, 17, 40):
        names = {name for _, name in joined_chains(2, count, prompted=True)}
        chains = set(pass_chains(1, prompted=False))
        for prompted in (False, True):
            chains.update(pass_chains(count, prompted=prompted))
        assert len(names) == len({chain for chain in chains if len(chain) > 1})


def test_a_group_keeps_the_chains_of_earlier_ones() -> None:
    """A run expects for its second group what the plan of both groups does."""
    values = np.linspace(-1000, 1000, 600).astype(np.int16).reshape(6, 10, 10)
    volume = Volume(values, (4.0, 4.0, 6.0), geometry_is_stated=True)
    classes = {"CT/Liver": "Liver in CT", "CT/Left lung": "Left lung in CT"}
    prompts = {str(label): text for label, text in enumerate(classes.values(), start=1)}
    with medals_rt.load(DEMO, runner="openvino", precision="fp32") as segmenter:
        report = segmenter.segment(volume, prompts).report
    plan = plan_numbers(
        (6, 10, 10),
        (4.0, 4.0, 6.0),
        named_classes(";".join(classes), "anatomy"),
        RunOptions(bundle=DEMO, runner="openvino", precision="fp32"),
    )
    assert len(report.stages) == len(plan.stages) == 4
    for stage, cost in zip(report.stages, plan.stages, strict=True):
        assert abs(stage.expected_peak_mib - cost.peak_memory_mib) < 2
    coarse, _, second, _ = (cost.peak_memory_mib for cost in plan.stages)
    assert second > coarse + 10


def test_memory_that_a_later_group_lacks_is_refused_before_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = np.linspace(-1000, 1000, 600).astype(np.int16).reshape(6, 10, 10)
    volume = Volume(values, (4.0, 4.0, 6.0), geometry_is_stated=True)
    both = {"1": "Left lung in CT", "2": "Right lung in CT", "3": "Liver in CT"}
    options = RunOptions(bundle=DEMO, runner="openvino", precision="fp32")
    first, last = (
        plan_numbers(
            (6, 10, 10), (4.0, 4.0, 6.0), named_classes(classes, "anatomy"), options
        ).expected_peak_memory_mib
        for classes in ("CT/Left lung;CT/Right lung", "CT/Left lung;CT/Right lung;CT/Liver")
    )
    assert first < last
    with medals_rt.load(DEMO, runner="openvino", precision="fp32") as segmenter:
        for limit in (2**20, (first + last) * 2**19):  # too few for both groups; for the last alone
            with monkeypatch.context() as patch:
                patch.setattr(StageNetwork, "predict", None)
                with raises(InputError, "memory-too-small") as no:
                    segmenter.segment(volume, both, SegmentOptions(max_memory=limit))
            enough = parse_size(str(no.value).rpartition("at least ")[2])
            segmenter.segment(volume, both, SegmentOptions(max_memory=enough))
