"""What is given up to keep a case within its time: decisions on a clock that the tests turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import medals_rt
from medals_rt.bundle.bundle import Bundle
from medals_rt.cli import app
from medals_rt.common.errors import InputError
from medals_rt.io.volume import Volume
from medals_rt.pipeline.options import SegmentOptions
from medals_rt.pipeline.segmenter import Result, Segmenter
from medals_rt.planning import pass_timings
from medals_rt.planning.memory import MemoryLimit, MemoryPlan, plan_memory
from medals_rt.planning.time_budget import (
    QUALITY_LEVELS,
    Budget,
    Choice,
    Watchdog,
    case_budget,
    choose_quality,
    choose_stage,
    degraded_words,
)

LESIONS = {"7": "Adrenocortical carcinoma in abdominal CT", "instance_label": 1}
ANATOMY = {"1": "Liver in abdominal CT", "4": "Right kidney in abdominal CT"}


@dataclass
class FakeClock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "left", "chosen"),
    [([9, 5, 2], 9, 0), ([9, 5, 2], 8.9, 1), ([9, 5, 2], 2, 2), ([9, 5, 2], 1, None)],
)
def test_the_most_thorough_way_that_fits_is_chosen(
    seconds: list[float], left: float, chosen: int | None
) -> None:
    assert choose_quality(seconds, left) == chosen


@pytest.mark.parametrize(
    ("left", "after", "expected"),
    [
        (20, (), Choice(0, 9)),
        (8, (), Choice(1, 5, "without further iterations")),
        (1, (), Choice(None, 2)),
        (12, (8, 4, 3), Choice(1, 5, "without further iterations")),
        (
            6,
            (8, 4, 3),
            Choice(2, 2, "without further iterations and with windows overlapping by 25%"),
        ),
        (
            4,
            (8, 4, 3),
            Choice(2, 2, "without further iterations and with windows overlapping by 25%"),
        ),
        (9, (80, 40, 30), Choice(0, 9)),  # nothing leaves time for what follows: all of it for this
    ],
)
def test_a_stage_leaves_time_for_the_next_where_that_can_be(
    left: float, after: tuple[float, ...], expected: Choice
) -> None:
    assert choose_stage((9, 5, 2), left, after=after, lesions=True) == expected


def test_an_effort_that_saves_nothing_gives_nothing_up() -> None:
    assert choose_stage((5, 5, 2), 6, after=(3, 1, 1), lesions=False) == Choice(1, 5)


def test_efforts_give_up_one_thing_after_another() -> None:
    assert [(each.iterates, each.overlap) for each in QUALITY_LEVELS] == [
        (True, 0.5),
        (False, 0.5),
        (False, 0.25),
    ]


def test_time_already_spent_and_a_reserve_are_off_the_budget() -> None:
    clock = FakeClock()
    budget = case_budget(10.0, 3, spent=4.0, clock=clock)
    assert budget is not None
    assert budget.seconds == 30
    assert budget.left == pytest.approx(30 - 4 - 3.5)
    clock.now += 5
    assert budget.left == pytest.approx(30 - 4 - 3.5 - 5)
    assert case_budget(None, 3, spent=0.0) is None
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="positive number of seconds"):
            case_budget(wrong, 1, spent=0.0)


def watchdog(seconds: float, expected: float) -> tuple[Watchdog, FakeClock]:
    clock = FakeClock()
    budget = Budget(seconds / 0.9 + 0.5 / 0.9, clock.now, clock)
    assert budget.left == pytest.approx(seconds)
    return Watchdog(budget, expected), clock


def test_a_stage_that_keeps_its_plan_is_left_alone() -> None:
    dog, clock = watchdog(seconds=41.0, expected=1.0)
    for left in range(10, 0, -1):
        assert dog.choose_way([4, 2, 1], left) == 0
        dog.window_begins()
        clock.now += 4.0
        dog.window_ended(4)


def test_slower_than_planned_falls_back_and_still_runs_every_window() -> None:
    """Planned 40 s for ten windows; passes then take 1.7 s instead of 1."""
    dog, clock = watchdog(seconds=41.0, expected=1.0)
    ways = []
    for left in range(10, 0, -1):
        way = dog.choose_way([4, 2, 1], left)
        assert way is not None
        ways.append(way)
        passes = (4, 2, 1)[way]
        dog.window_begins()
        clock.now += 1.7 * passes
        dog.window_ended(passes)
    assert ways[0] == 0
    assert ways[1:] == sorted(ways[1:], reverse=True)
    assert clock.now <= 141.0


def test_much_slower_leaves_windows_out_and_ends_in_time() -> None:
    dog, clock = watchdog(seconds=41.0, expected=1.0)
    left_out = 0
    for left in range(10, 0, -1):
        way = dog.choose_way([4, 1], left)
        if way is None:
            left_out += 1
            continue
        passes = (4, 1)[way]
        dog.window_begins()
        clock.now += 6.0 * passes
        dog.window_ended(passes)
    assert left_out > 0
    assert clock.now <= 141.0
    assert not dog.allows(1)


def test_what_an_effort_leaves_out_in_words() -> None:
    full, without, least = QUALITY_LEVELS
    assert degraded_words(full, lesions=True) == ""
    assert degraded_words(without, lesions=True) == "without further iterations"
    assert degraded_words(least, lesions=False) == "with windows overlapping by 25%"
    assert degraded_words(least, lesions=True) == (
        "without further iterations and with windows overlapping by 25%"
    )


@pytest.fixture(scope="module")
def volume() -> Volume:
    rng = np.random.default_rng(11)
    image = rng.integers(0, 256, (12, 30, 26), dtype=np.uint8)
    image[3:9, 8:22, 6:20] = 200
    return Volume(image, (4.0, 4.0, 6.0), name="noise")


@pytest.fixture
def segmenter(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Segmenter]:
    """With nothing measured yet."""
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path))
    with medals_rt.load(tiny_bundle.folder, runner="onnxruntime", precision="fp32") as opened:
        yield opened


def told(segmenter: Segmenter, seconds: dict[int, float]) -> None:
    """Have the stages' passes known to take so long."""
    pass_timings.record(segmenter.bundle.hash, "onnxruntime/fp32", seconds)


def given_up(result: Result) -> str:
    notes = [note.text for note in result.report.notes if note.code == "time-budget"]
    assert result.report.budget is not None
    assert len(notes) == len(result.report.budget["given_up"])
    return "\n".join(notes)


def test_time_enough_changes_nothing(segmenter: Segmenter, volume: Volume) -> None:
    free = segmenter.segment(volume, ANATOMY)
    assert free.report.budget is None
    kept = segmenter.segment(volume, ANATOMY, SegmentOptions(time_budget=600))
    np.testing.assert_array_equal(kept.labels_dhw, free.labels_dhw)
    assert given_up(kept) == ""
    planned = kept.report.budget["planned_seconds"]
    assert set(planned) == {"coarse", "fine"}


def test_nothing_measured_is_measured_first(segmenter: Segmenter, volume: Volume) -> None:
    report = segmenter.segment(volume, ANATOMY, SegmentOptions(time_budget=600)).report
    assert report.seconds["measure a pass"] > 0
    assert (
        "measure a pass"
        not in segmenter.segment(volume, ANATOMY, SegmentOptions(time_budget=600)).report.seconds
    )


def test_what_is_given_up_comes_in_the_documented_order(
    segmenter: Segmenter, volume: Volume
) -> None:
    """The passes are told to be as slow as it takes for the plan to miss the next step."""
    full = segmenter.segment(volume, LESIONS)
    windows = {stage.name: stage.windows for stage in full.report.stages}
    told(segmenter, {1: 0.001, 2: 1.0})
    # four passes of a second each a window with a further iteration, two without
    seconds = 4.0 * windows["fine"]
    without = segmenter.segment(volume, LESIONS, SegmentOptions(time_budget=0.8 * seconds))
    assert "the fine stage was run without further iterations" in given_up(without)
    assert "overlapping" not in given_up(without)
    fine = without.report.stages[-1]
    assert (fine.name, fine.iterations, fine.windows) == ("fine", 0, windows["fine"])


def test_a_slow_fine_stage_is_not_run(segmenter: Segmenter, volume: Volume) -> None:
    full = segmenter.segment(volume, ANATOMY)
    told(segmenter, {1: 0.001, 2: 1e4})
    result = segmenter.segment(volume, ANATOMY, SegmentOptions(time_budget=60))
    assert "the fine stage was not run" in given_up(result)
    assert [stage.name for stage in result.report.stages] == ["coarse"]
    np.testing.assert_array_equal(
        result.stage_labels_dhw["coarse"], full.stage_labels_dhw["coarse"]
    )
    assert result.labels_dhw.any()


def test_fewer_windows_overlap_where_that_suffices(segmenter: Segmenter) -> None:
    """Three windows an axis become two; at 1.9 windows, the memory bound, three stay three."""
    rng = np.random.default_rng(2)
    small = Volume(rng.integers(0, 256, (13, 27, 27), dtype=np.uint8), (4.0, 4.0, 6.0))
    full = segmenter.segment(small, ANATOMY).report.stages[0]
    told(segmenter, {1: 1.0, 2: 0.001})
    result = segmenter.segment(small, ANATOMY, SegmentOptions(time_budget=0.45 * full.passes))
    assert "the coarse stage was run with windows overlapping by 25%" in given_up(result)
    coarse = result.report.stages[0]
    assert (full.windows, coarse.windows) == (27, 8)
    assert result.labels_dhw.shape == small.shape_dhw


def test_no_time_at_all_still_gives_a_segmentation(segmenter: Segmenter, volume: Volume) -> None:
    told(segmenter, {1: 1e3, 2: 1e3})
    result = segmenter.segment(volume, ANATOMY, SegmentOptions(time_budget=1.0))
    assert result.labels_dhw.shape == volume.shape_dhw
    assert not result.labels_dhw.any()
    notes = given_up(result)
    assert "the coarse stage does not fit" in notes
    coarse = result.report.stages[0]
    count = f"{coarse.windows} of {coarse.windows} windows of the coarse stage were left out"
    assert count in notes
    assert "they are background" in notes


def test_a_fine_stage_that_turns_slow_keeps_the_coarse_result_where_it_did_not_get(
    segmenter: Segmenter, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its first window, no time is left for any other."""
    full = segmenter.segment(volume, ANATOMY)
    calls: list[int] = []

    def choose_way(_: Watchdog, passes: list[int], windows_left: int) -> int | None:
        del windows_left
        if len(passes) == 1:  # the coarse stage, whose one way is text only
            return 0
        calls.append(0)
        return 0 if len(calls) == 1 else None

    monkeypatch.setattr(Watchdog, "choose_way", choose_way)
    result = segmenter.segment(volume, ANATOMY, SegmentOptions(time_budget=600))
    fine = result.report.stages[-1]
    assert fine.windows > 1
    assert f"{fine.windows - 1} of {fine.windows} windows of the fine stage" in given_up(result)
    assert "the coarse result stands" in given_up(result)
    _, high = fine.box_dhw
    corner = tuple(slice(size - 3, size) for size in high)
    ours, coarse = (
        result.stage_labels_dhw["fine"][corner],
        full.stage_labels_dhw["coarse"][corner],
    )
    assert np.mean(ours == coarse) > 0.7  # but for what resampling does at edges


def test_windows_run_for_several_blocks_are_counted_a_run(
    segmenter: Segmenter, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With sums of a byte at most, blocks are as narrow as can be."""

    def tiny_sums(*arguments: Any, **options: Any) -> MemoryPlan:
        return plan_memory(*arguments[:-1], MemoryLimit(10**12, "a test", 1), **options)

    monkeypatch.setattr("medals_rt.planning.stage_plan.plan_memory", tiny_sums)
    told(segmenter, {1: 1e3, 2: 1e3})
    result = segmenter.segment(volume, ANATOMY, SegmentOptions(time_budget=1.0))
    coarse = result.report.stages[0]
    assert coarse.window_runs > coarse.windows
    runs = f"{coarse.window_runs} of {coarse.window_runs} window runs of the coarse stage"
    assert f"{runs} were left out" in given_up(result)


def test_the_command_says_loudly_what_was_given_up(
    segmenter: Segmenter, volume: Volume, tmp_path: Path
) -> None:
    told(segmenter, {1: 0.001, 2: 1e4})
    np.savez(tmp_path / "case.npz", imgs=volume.image_dhw, spacing=volume.spacing_hwd_mm)
    words = {
        "--input": tmp_path / "case.npz",
        "--output": tmp_path / "seg.npz",
        "--prompt": "Liver in abdominal CT",
        "--bundle": segmenter.bundle.folder,
        "--runner": "onnxruntime",
        "--time-budget": 30,
    }
    arguments = ["run", "--quiet", *(str(word) for pair in words.items() for word in pair)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "seg.npz").is_file()
    assert result.stderr.startswith("warning: time budget: the fine stage was not run")
    assert result.stdout == ""
