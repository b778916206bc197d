"""What is left out to keep a case within its time: decisions on a clock that the tests turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import medals_rt
from medals_rt.bundle.bundle import Bundle
from medals_rt.cli import app
from medals_rt.common.errors import InputError
from medals_rt.inference.network import StageNetwork
from medals_rt.io.volume import Volume
from medals_rt.pipeline.job import passes_recorded
from medals_rt.pipeline.options import SegmentOptions
from medals_rt.pipeline.report import Provenance
from medals_rt.pipeline.segmenter import Result, Segmenter
from medals_rt.planning import pass_timings
from medals_rt.planning.memory import MemoryLimit, MemoryPlan, plan_memory
from medals_rt.planning.pass_timings import MeasuredPasses
from medals_rt.planning.time_budget import (
    QUALITY_LEVELS,
    Budget,
    QualityChoice,
    Watchdog,
    case_budget,
    choose_quality,
    choose_stage,
    degraded_words,
)
from tests.errors import raises

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
        (20, (), QualityChoice(0, 9)),
        (8, (), QualityChoice(1, 5, "without further iterations")),
        (1, (), QualityChoice(None, 2)),
        (12, (8, 4, 3), QualityChoice(1, 5, "without further iterations")),
        (
            6,
            (8, 4, 3),
            QualityChoice(2, 2, "without further iterations and with windows overlapping by 25%"),
        ),
        (
            4,
            (8, 4, 3),
            QualityChoice(2, 2, "without further iterations and with windows overlapping by 25%"),
        ),
        (9, (80, 40, 30), QualityChoice(0, 9)),  # none leaves time for what follows
    ],
)
def test_a_stage_leaves_time_for_the_next_where_that_can_be(
    left: float, after: tuple[float, ...], expected: QualityChoice
) -> None:
    assert choose_stage((9, 5, 2), left, after=after, lesions=True) == expected


def test_an_effort_that_saves_nothing_gives_nothing_up() -> None:
    assert choose_stage((5, 5, 2), 6, after=(3, 1, 1), lesions=False) == QualityChoice(1, 5)


def test_efforts_give_up_one_thing_after_another() -> None:
    assert [(each.iterates, each.overlap) for each in QUALITY_LEVELS] == [
        (True, 1.0),
        (False, 1.0),
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
        with raises(InputError, "budget-not-positive"):
            case_budget(wrong, 1, spent=0.0)


def watchdog(seconds: float, expected: float) -> tuple[Watchdog, FakeClock]:
    clock = FakeClock()
    budget = Budget(seconds / 0.9 + 0.5 / 0.9, clock.now, clock)
    assert budget.left == pytest.approx(seconds)
    return Watchdog(budget, expected), clock


def test_a_stage_that_keeps_its_plan_is_left_alone() -> None:
    dog, clock = watchdog(seconds=41.0, expected=1.0)
    for left in range(10, 0, -1):
        assert dog.choose([4, 2, 1], left) == 0
        dog.window_begins()
        clock.now += 4.0
        dog.window_ended(4)


def test_slower_than_planned_falls_back_and_still_runs_every_window() -> None:
    """Planned 40 s for ten windows; passes then take 1.7 s instead of 1."""
    dog, clock = watchdog(seconds=41.0, expected=1.0)
    ways = []
    for left in range(10, 0, -1):
        way = dog.choose([4, 2, 1], left)
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
        way = dog.choose([4, 1], left)
        if way is None:
            left_out += 1
            continue
        passes = (4, 1)[way]
        dog.window_begins()
        clock.now += 6.0 * passes
        dog.window_ended(passes)
    assert left_out > 0
    assert clock.now <= 141.0
    assert not dog.allows(1, 1)


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
    """Have the stages' passes known to take so long, by an earlier process."""
    segmenter._model.measured.clear()
    pass_timings.record(segmenter.bundle.hash, MeasuredPasses("onnxruntime/fp32", seconds))


def degraded(result: Result) -> str:
    notes = [note.text for note in result.report.notes if note.code == "time-budget"]
    assert result.report.budget is not None
    assert len(notes) == len(result.report.budget["degraded"])
    return "\n".join(notes)


def test_time_enough_changes_nothing(segmenter: Segmenter, volume: Volume) -> None:
    free = segmenter.segment(volume, ANATOMY)
    assert free.report.budget is None
    kept = segmenter.segment(volume, ANATOMY, SegmentOptions(time_budget=600))
    np.testing.assert_array_equal(kept.labels_dhw, free.labels_dhw)
    assert degraded(kept) == ""
    planned = kept.report.budget["planned_seconds"]
    assert set(planned) == {"coarse", "fine"}


def test_where_nothing_was_measured_the_first_window_measures(
    segmenter: Segmenter, volume: Volume
) -> None:
    """No pass is run beside those of the windows."""
    free = segmenter.segment(volume, ANATOMY)
    segmenter._model.measured.clear()
    assert pass_timings.recall(segmenter.bundle.hash) is None
    result = segmenter.segment(volume, ANATOMY, SegmentOptions(time_budget=600))
    assert "measure a pass" not in result.report.seconds
    assert [each.passes for each in result.report.stages] == [
        each.passes for each in free.report.stages
    ]
    assert "coarse" not in result.report.budget["planned_seconds"]
    assert result.report.budget["planned_seconds"]["fine"] > 0
    assert degraded(result) == ""
    np.testing.assert_array_equal(result.labels_dhw, free.labels_dhw)


def test_a_first_window_that_takes_all_the_time_is_kept_and_the_result_says_what_is_missing(
    segmenter: Segmenter, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass takes 132 s on a clock that is turned, of 120; nothing was known of that."""
    clock = FakeClock()
    predict = StageNetwork.predict

    def slow(*arguments: Any, **options: Any) -> Iterator[Any]:
        clock.now += 132.0
        return predict(*arguments, **options)

    monkeypatch.setattr(StageNetwork, "predict", slow)
    monkeypatch.setattr(Budget, "clock", clock)
    monkeypatch.setattr(
        "medals_rt.pipeline.segmenter.case_budget",
        lambda seconds, classes, _, **options: case_budget(seconds, classes, 0.0, clock, **options),
    )
    result = segmenter.segment(volume, ANATOMY, SegmentOptions(time_budget=60.0))
    (coarse,) = result.report.stages
    assert coarse.passes == 1
    count = f"{coarse.windows - 1} of {coarse.windows} windows of the coarse stage were left out"
    assert result.report.incomplete is not None
    assert count in result.report.incomplete
    assert "the fine stage was not run" in result.report.incomplete
    assert segmenter.measured_passes is not None
    assert set(segmenter.measured_passes.seconds_per_pass) == {1}


def test_a_budget_that_holds_no_pass_is_refused_before_any_work(
    segmenter: Segmenter, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(segmenter, {1: 1e3, 2: 1e3})
    monkeypatch.setattr(StageNetwork, "predict", None)
    with raises(InputError, "budget-too-small") as no:
        segmenter.segment(volume, ANATOMY, SegmentOptions(time_budget=1.0))
    enough = float(str(no.value).rpartition("at least ")[2].split()[0])
    assert enough > 1e3 / 2


@pytest.mark.parametrize(("seconds", "classes"), [(0.4, 1), (3.0, 2), (60.0, 13)])
@pytest.mark.parametrize("spent", [0.0, 7.5])
def test_the_figure_that_is_named_suffices(seconds: float, classes: int, spent: float) -> None:
    clock = FakeClock()
    budget = case_budget(seconds, classes, spent, clock)
    assert budget is not None
    assert budget.shortfall(max(0.0, budget.left), 0.0, classes) is None
    for least in (0.0, 100.0, 5000.0):
        of_pass = budget.left + 20.0 if budget.left > 0 else 20.0
        reason = budget.shortfall(of_pass, least, classes)
        assert reason is not None
        enough = float(reason.rpartition("at least ")[2].split()[0])
        more = case_budget(enough, classes, spent, clock)
        less = case_budget(enough - 0.2, classes, spent, clock)
        assert more is not None
        assert less is not None
        assert more.left >= max(of_pass, least) > less.left


def test_a_budget_is_not_refused_once_work_was_done(
    segmenter: Segmenter, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two window groups has no time for a pass, as it turns out after the first."""
    monkeypatch.setattr(
        "medals_rt.pipeline.window_groups.classes_by_window",
        lambda classes, *_: {"soft tissue": [classes[0]], "lung": [classes[1]]},
    )
    shortfalls = iter([None, "too small"])
    monkeypatch.setattr(Budget, "shortfall", lambda *_: next(shortfalls))
    told(segmenter, {1: 0.001, 2: 0.001})
    hounsfield = replace(volume, image_dhw=volume.image_dhw.astype(np.int16) * 8 - 1000)
    report = segmenter.segment(hounsfield, ANATOMY, SegmentOptions(time_budget=600.0)).report
    assert set(report.budget["groups"]) == {"soft tissue", "lung"}


def test_each_group_says_its_own_seconds(
    segmenter: Segmenter, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read before counts as the first group's; together they are within the case's."""
    monkeypatch.setattr(
        "medals_rt.pipeline.window_groups.classes_by_window",
        lambda classes, *_: {"soft tissue": [classes[0]], "lung": [classes[1]]},
    )
    hounsfield = replace(volume, image_dhw=volume.image_dhw.astype(np.int16) * 8 - 1000)
    report = segmenter.segment(
        hounsfield, ANATOMY, SegmentOptions(time_budget=600.0), provenance=Provenance({"read": 3.0})
    ).report
    first, second = (each["taken_seconds"] for each in report.budget["groups"].values())
    of_groups = [
        sum(seconds for step, seconds in report.seconds.items() if step.startswith(name))
        for name in report.budget["groups"]
    ]
    assert first >= 3.0 + of_groups[0] - 0.01
    assert second >= of_groups[1] - 0.01
    assert first + second <= report.seconds["total"] + 0.01


def test_what_was_measured_is_kept_when_a_run_fails(
    segmenter: Segmenter, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict, calls = StageNetwork.predict, []

    def failing(*arguments: Any, **options: Any) -> Iterator[Any]:
        calls.append(0)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return predict(*arguments, **options)

    monkeypatch.setattr(StageNetwork, "predict", failing)
    with pytest.raises(KeyboardInterrupt), passes_recorded(segmenter):
        segmenter.segment(volume, ANATOMY)
    kept = pass_timings.recall(segmenter.bundle.hash, "onnxruntime/fp32")
    assert kept is not None
    assert set(kept.seconds_per_pass) == {1}


def test_a_call_of_the_library_writes_nothing_into_the_cache(
    segmenter: Segmenter, volume: Volume, tmp_path: Path
) -> None:
    segmenter.segment(volume, ANATOMY)
    assert not (tmp_path / "measured_passes.json").exists()


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
    assert "the fine stage was run without further iterations" in degraded(without)
    assert "overlapping" not in degraded(without)
    fine = without.report.stages[-1]
    assert (fine.name, fine.iterations, fine.windows) == ("fine", 1, windows["fine"])
    assert full.report.stages[-1].iterations == 2


def test_a_slow_fine_stage_is_not_run(segmenter: Segmenter, volume: Volume) -> None:
    full = segmenter.segment(volume, ANATOMY)
    told(segmenter, {1: 0.001, 2: 1e4})
    result = segmenter.segment(volume, ANATOMY, SegmentOptions(time_budget=60))
    assert "the fine stage was not run" in degraded(result)
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
    assert "the coarse stage was run with windows overlapping by 25%" in degraded(result)
    coarse = result.report.stages[0]
    assert (full.windows, coarse.windows) == (27, 8)
    assert result.labels_dhw.shape == small.shape_dhw


def test_what_does_not_fit_is_cut_short(segmenter: Segmenter, volume: Volume) -> None:
    """One pass of twenty-six seconds fits into the budget, all of them don't."""
    told(segmenter, {1: 26.0, 2: 1e3})
    result = segmenter.segment(volume, ANATOMY, SegmentOptions(time_budget=15.0))
    assert result.labels_dhw.shape == volume.shape_dhw
    notes = degraded(result)
    assert "the coarse stage does not fit" in notes
    coarse = result.report.stages[0]
    assert coarse.passes >= 1
    assert "the fine stage was not run" in str(result.report.incomplete)


def test_a_fine_stage_that_turns_slow_keeps_the_coarse_result_where_it_did_not_get(
    segmenter: Segmenter, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its first window, no time is left for any other."""
    full = segmenter.segment(volume, ANATOMY)
    calls: list[int] = []

    def choose(_: Watchdog, passes: list[int], windows_left: int) -> int | None:
        del windows_left
        if len(passes) == 1:  # the coarse stage, whose one way is text only
            return 0
        calls.append(0)
        return 0 if len(calls) == 1 else None

    monkeypatch.setattr(Watchdog, "choose", choose)
    result = segmenter.segment(volume, ANATOMY, SegmentOptions(time_budget=600))
    fine = result.report.stages[-1]
    assert fine.windows > 1
    assert f"{fine.windows - 1} of {fine.windows} windows of the fine stage" in degraded(result)
    assert "the coarse result stands" in degraded(result)
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
    monkeypatch.setattr(Watchdog, "choose", lambda *_: None)
    result = segmenter.segment(volume, ANATOMY, SegmentOptions(time_budget=600.0))
    coarse = result.report.stages[0]
    assert coarse.window_runs > coarse.windows
    runs = f"{coarse.window_runs} of {coarse.window_runs} window runs of the coarse stage"
    assert f"{runs} were left out" in degraded(result)


def test_the_command_says_loudly_what_was_degraded(
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
    assert result.exit_code == 3, result.output
    assert (tmp_path / "seg.npz").is_file()
    assert result.stderr.startswith("warning: time budget: the fine stage was not run")
    assert result.stderr.splitlines()[-1].startswith("incomplete: the fine stage was not run")
    assert result.stdout == ""
