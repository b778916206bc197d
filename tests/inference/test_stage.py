"""A stage cut for memory against the same stage in one piece, on a network that is a formula."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medals_rt.bundle.stage_spec import StageSpec
from medals_rt.common.arrays import namespace, to_host
from medals_rt.common.choices import Refinement
from medals_rt.common.errors import RunnerError
from medals_rt.common.progress import Progress
from medals_rt.common.stopwatch import Step, Stopwatch
from medals_rt.inference import stage
from medals_rt.inference.aggregation import LabelMap
from medals_rt.inference.network import PassInput
from medals_rt.inference.refinement import MaskRequest, seeded_masks
from medals_rt.inference.stage import StageInput, StageResult, StageTask, run_stage
from medals_rt.planning.memory import MemoryLimit
from medals_rt.planning.model_facts import RELEASED
from medals_rt.planning.policy import load_policy
from medals_rt.planning.stage_plan import CaseSetup, StagePlan, outline_groups, stage_plans
from medals_rt.planning.time_budget import QUALITY_LEVELS, Budget, Watchdog
from medals_rt.prompts.classes import by_exact_name
from tests.errors import raises

FINE = StageSpec(2, (16, 12, 8), (1.0, 1.0, 1.0))
SHAPE_HWD = (21, 27, 19)
WHOLE = ((0, 0, 0), (19, 21, 27))
ANATOMY = ("Liver", "Spleen", "Right kidney")
LESIONS = ("Liver tumors", "Pancreas tumors", "Colon cancer primaries")
LABELS = (4, 2, 9)
PLENTY, LITTLE, LEAST = 10**9, 80_000, 1


class Formula:
    """A fake network: a voxel's value, place in its window, class and prompts decide."""

    def prepare(self, *_: Any, **__: Any) -> None: ...

    def __init__(self) -> None:
        self.log: list[str] = []

    def release(self) -> None:
        self.log.append("release")

    def predict(self, one: PassInput) -> Iterator[tuple[slice, Any]]:
        assert one.features is None
        image, prompts, classes = one.image, one.prompts, one.wanted
        self.log.append("pass")
        xp = namespace(image)
        ramp = xp.reshape(xp.arange(image[0, 0, ...].size, dtype=xp.float32), image.shape[2:])
        place = 0.2 * xp.abs(xp.sin(ramp))
        shown = None if prompts is None else prompts.channels(one.count)
        for start in range(classes.start, classes.stop, one.classes_per_chunk):
            chunk = slice(start, min(start + one.classes_per_chunk, classes.stop))
            found = []
            for n in range(chunk.start, chunk.stop):
                value = place + 0.45 * xp.abs(xp.sin(image[0, 0, ...] / 40 + 2.0 * n))
                found.append(value if shown is None else value + 0.3 * shown[n, ...])
            yield chunk, xp.stack(found)


def planned_stage(largest_slab: int, mode: Refinement, names: tuple[str, ...]) -> StagePlan:
    setup = CaseSetup(
        shape_dhw=(SHAPE_HWD[2], *SHAPE_HWD[:2]),
        spacing_hwd_mm=(1.0, 1.0, 1.0),
        image_bytes=4,
        preset=load_policy().preset("paper"),
        mode=mode,
        model=replace(RELEASED, channels=4, weights=0),
        memory=MemoryLimit(10**12, "a test", largest_slab),
        classes_per_chunk=2,
    )
    (case,) = outline_groups(setup, [[by_exact_name("CT", name) for name in names]])
    (planned,) = stage_plans(case, FINE, case.whole, QUALITY_LEVELS[:1], prompted=True)
    return planned


def run(
    planned: StagePlan,
    xp: Any,
    asked: list[MaskRequest],
    watchdog: Watchdog | None = None,
    watch: Stopwatch | None = None,
    network: Formula | None = None,
    *,
    keep_maps: bool = False,
    progress: Progress | None = None,
) -> tuple[StageResult, list[tuple[int, int]]]:
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, SHAPE_HWD).astype(np.float32)
    prompts = rng.choice(np.asarray([0, *LABELS], np.uint8), SHAPE_HWD)
    prompts[:, :9] = 0
    draw = seeded_masks(5, "a case")

    def masks(request: MaskRequest) -> Any:
        asked.append(request)
        return draw(request)

    told: list[tuple[int, int]] = []
    task = StageTask(
        xp.zeros((3, 4), dtype=xp.float32),
        LABELS,
        masks,
        keep_probability=True,
        keep_maps=keep_maps,
        watch=watch or Stopwatch(),
        progress=progress or (lambda _, done, total: told.append((done, total))),
    )
    stage = StageInput(
        network or Formula(),  # type: ignore[arg-type]
        planned,
        task,
        WHOLE,
        xp.asarray(image),
        prompt_labels_hwd=None if planned.window_pass.mode == "none" else xp.asarray(prompts),
        watchdog=watchdog,
    )
    return run_stage(stage), told


@pytest.mark.parametrize(
    ("mode", "names"),
    [("masked", ANATOMY), ("masked", LESIONS), ("unmasked", LESIONS), ("none", ANATOMY)],
)
def test_blocks_and_groups_give_the_stage_in_one_piece(
    xp: Any, mode: Refinement, names: tuple[str, ...]
) -> None:
    whole = planned_stage(PLENTY, mode, names)
    assert len(whole.memory.sweeps) == 1
    requests: list[MaskRequest] = []
    expected, _ = run(whole, xp, requests)
    assert len(np.unique(to_host(expected.labels_hwd))) > 3
    for limit in (LITTLE, LEAST):
        cut = planned_stage(limit, mode, names)
        assert cut.memory.column_blocks > 1
        assert (cut.memory.class_groups > 1) == (limit == LEAST)
        again: list[MaskRequest] = []
        found, told = run(cut, xp, again)
        np.testing.assert_array_equal(to_host(found.labels_hwd), to_host(expected.labels_hwd))
        np.testing.assert_array_equal(
            to_host(found.probability_hwd), to_host(expected.probability_hwd)
        )
        assert set(again) == set(requests)
        runs = cut.memory.window_runs
        assert told == [(done, runs) for done in range(runs + 1)]
        assert expected.passes < found.passes <= cut.passes


class Overflowing(Formula):
    """Gives NaN for some classes in one pass, wherever a norm spreads it."""

    info = SimpleNamespace(runner="tensorrt", precision="fp16")

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def predict(self, one: PassInput) -> Iterator[tuple[slice, Any]]:
        for chunk, found in super().predict(one):
            overflows = self.log.count("pass") == self.number and chunk.start <= one.wanted.start
            yield chunk, found * float("nan") if overflows else found


@pytest.mark.parametrize("limit", [PLENTY, LEAST])
@pytest.mark.parametrize(("mode", "names"), [("masked", LESIONS), ("none", ANATOMY)])
def test_what_is_not_finite_is_no_scan_that_shows_nothing(
    xp: Any, mode: Refinement, names: tuple[str, ...], limit: int
) -> None:
    """In whichever pass: the first ones of lesions are prompts of the next, and no more."""
    planned = planned_stage(limit, mode, names)
    passes = run(planned, xp, [])[0].passes
    for number in (1, 2, 3, passes // 2, passes):
        network = Overflowing(number)
        with raises(RunnerError, "output-not-finite", "fine", "tensorrt", "fp16"):
            run(planned, xp, [], network=network)
        assert network.log[-1] == "release"


def test_a_card_is_waited_for_inside_the_step_that_it_works_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a step's seconds would be those of asking, and estimates of time rest on them."""

    class Noting(Stopwatch):
        at: str | None = None

        @contextmanager
        def step(self, name: str) -> Iterator[Step]:
            self.at = name
            with super().step(name) as step:
                yield step
            self.at = None

    watch, waited = Noting(), []
    monkeypatch.setattr(stage, "settle", lambda _: waited.append(watch.at))
    planned = planned_stage(LEAST, "masked", ANATOMY)
    run(planned, np, [], watch=watch)
    sweeps = len(planned.memory.sweeps)
    assert waited == ["fine: resample", *["fine: network"] * sweeps, "fine: restore"]


def test_memory_is_released_once_when_all_windows_were_run() -> None:
    network = Formula()
    run(planned_stage(LEAST, "masked", ANATOMY), np, [], network=network)
    assert network.log.count("release") == 1
    assert network.log[-1] == "release"
    assert network.log.count("pass") > 1


@pytest.mark.parametrize("end", [RuntimeError, KeyboardInterrupt])
def test_memory_is_released_when_a_stage_is_canceled(end: type[BaseException]) -> None:
    """By its progress, as the service cancels; an opened model may then idle for hours."""
    network = Formula()

    def cancel(_: str, done: int, __: int) -> None:
        if done == 2:
            raise end

    planned = planned_stage(LEAST, "masked", ANATOMY)
    with pytest.raises(end):
        run(planned, np, [], network=network, progress=cancel)
    assert network.log.count("release") == 1
    assert network.log[-1] == "release"
    assert 0 < network.log.count("pass") < planned.passes


def test_prompts_fill_only_what_no_window_decided(xp: Any) -> None:
    """A voxel whose class another sweep decided keeps it, though a later one left it out."""
    label_map = LabelMap(
        labels_hwd=xp.asarray([[[3, 0, 0, 3]]], dtype=xp.uint8),
        probability_hwd=None,
        uncovered_hwd=xp.asarray([[[True, True, False, False]]]),
    )
    prompts = xp.asarray([[[7, 7, 7, 7, 7]]], dtype=xp.uint16)
    found = stage._with_prompts_where_uncovered(label_map, prompts)
    assert to_host(found).tolist() == [[[3, 7, 0, 3]]]
    assert found.dtype == xp.uint8
    assert stage._with_prompts_where_uncovered(label_map, None) is label_map.labels_hwd


def test_windows_are_counted_once_a_run_when_time_is_short() -> None:
    """No time at all: every run of a window is left out, and the prompts stand."""
    cut = planned_stage(LEAST, "masked", ANATOMY)
    clock = SimpleNamespace(now=50.0)
    watchdog = Watchdog(Budget(10.0, started=0.0, clock=lambda: clock.now), 1.0)
    result, told = run(cut, np, [], watchdog)
    assert result.left_out == cut.memory.window_runs > len(cut.geometry.windows)
    assert told[-1] == (result.left_out, result.left_out)
    assert set(np.unique(result.labels_hwd)) == {0, *LABELS}
    assert not result.labels_hwd[:, :9].any()


def test_the_watchdog_looks_at_all_runs_that_are_left() -> None:
    """A pass of 1 s: what would do for the windows once does not for their runs in blocks."""
    cut, whole = planned_stage(LITTLE, "masked", ANATOMY), planned_stage(PLENTY, "masked", ANATOMY)
    once, runs = len(whole.geometry.windows), cut.memory.window_runs
    assert runs > once

    def hastened(planned: StagePlan) -> int:
        clock = SimpleNamespace(now=0.0)
        budget = Budget(1.0, started=0.0, clock=lambda: clock.now)
        budget.seconds = (2 * once + 0.5) / 0.9 + 1.0
        return run(planned, np, [], Watchdog(budget, 1.0))[0].hastened

    assert hastened(whole) == 0
    assert hastened(cut) > 0
