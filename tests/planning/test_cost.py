"""The dry run: geometry as the release has it, passes, time and memory."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import medals_rt
from medals_rt.bundle.bundle import Bundle
from medals_rt.cli import app
from medals_rt.cli.plan import named_classes
from medals_rt.common.errors import InputError
from medals_rt.io.volume import Volume
from medals_rt.pipeline.case_setup import case_setup
from medals_rt.pipeline.options import RunOptions, SegmentOptions
from medals_rt.pipeline.plan_case import plan_numbers
from medals_rt.planning import pass_timings
from medals_rt.planning.cost import (
    BudgetPlan,
    CasePlan,
    StageCost,
    plan_case,
    with_seconds,
    with_time_budget,
)
from medals_rt.planning.memory import dry_run_limit
from medals_rt.planning.model_facts import RELEASED, ModelFacts
from medals_rt.planning.pass_timings import MeasuredPasses
from medals_rt.planning.policy import Preset, load_policy
from medals_rt.planning.time_budget import Budget
from medals_rt.prompts.classes import by_exact_name
from tests.errors import raises
from tests.paths import GOLDEN as REFERENCES

GOLDEN = json.loads((REFERENCES / "geometry.json").read_text(encoding="utf-8"))
LIVER = by_exact_name("CT", "Liver")
SPLEEN = by_exact_name("CT", "Spleen")
TUMOR = by_exact_name("CT", "Liver tumors")
RUNNER = ("--runner", "onnxruntime")
SHAPE, SPACING = (100, 400, 420), (0.8, 0.8, 3.0)


def plan_shape(
    shape: tuple,
    spacing: tuple,
    classes: list,
    preset: Preset | None = None,
    model: ModelFacts = RELEASED,
    **options: Any,
) -> CasePlan:
    """All classes in one run."""
    segment = SegmentOptions(**options)
    memory = dry_run_limit(segment.max_memory)
    setup = case_setup(shape, spacing, 2, segment, model, memory)
    if preset is not None:
        setup = replace(setup, preset=preset)
    return plan_case(setup, {"auto": classes})


def options_of(preset: str = "paper", **segment: Any) -> RunOptions:
    return RunOptions(segment=SegmentOptions(preset=preset, **segment))


def assert_golden(stage: dict, case: dict) -> None:
    assert stage["spacing_hwd_mm"] == pytest.approx(case["out_spacing_hwd"], rel=1e-5)
    assert stage["target_spacing_hwd_mm"] == pytest.approx(case["out_target_spacing_hwd"], rel=1e-5)
    assert list(stage["resampled_shape_hwd"]) == case["resampled_shape_hwd"]
    assert list(stage["padded_shape_hwd"]) == case["padded_shape_hwd"]
    assert stage["windows"] == case["n_windows"]
    assert stage["further_iterations"] == case["iterations"]


def test_all_golden_cases() -> None:
    for case in GOLDEN:
        plan = plan_numbers(
            tuple(case["image_shape_dhw"]),
            tuple(case["spacing_hwd"]),
            named_classes(
                ";".join(name.replace("_", "/", 1) for name in case["classes"]), "anatomy"
            ),
            options_of("release"),
            stage=case["stage"],
        )
        (stage,) = plan.to_dict()["stages"]
        assert_golden(stage, case)


@pytest.mark.parametrize("case", GOLDEN[::25])
def test_golden_cases_through_the_command(case: dict) -> None:
    options = {
        "--shape": ",".join(map(str, case["image_shape_dhw"])),
        "--spacing": ",".join(map(repr, case["spacing_hwd"])),
        "--classes": ";".join(name.replace("_", "/", 1) for name in case["classes"]),
        "--stage": str(case["stage"]),
        "--preset": "release",
    }
    arguments = ["plan", "--json", *(word for pair in options.items() for word in pair)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    (stage,) = plan["stages"]
    assert stage["stage"] == case["stage"]
    assert_golden(stage, case)


@pytest.mark.parametrize(
    ("classes", "preset", "refinement", "coarse", "fine"),
    [
        ([LIVER, SPLEEN], "paper", "masked", 1, 2),  # fine: one masked pair
        ([LIVER, SPLEEN], "paper", "unmasked", 1, 1),
        ([LIVER, SPLEEN], "paper", "none", 1, 1),
        ([TUMOR], "paper", "masked", 3, 4),  # a further pair in either stage
        ([TUMOR], "release", "masked", 3, 4),
    ],
)
def test_passes_a_window(
    classes: list, preset: str, refinement: str, coarse: int, fine: int
) -> None:
    chosen = load_policy().preset(preset)
    plan = plan_shape(SHAPE, SPACING, classes, chosen, refinement=refinement)
    assert [stage.passes for stage in plan.stages] == [
        coarse * plan.stages[0].windows,
        fine * plan.stages[1].windows,
    ]


def test_the_paper_preset_keeps_the_spacing_and_bounds_the_volume() -> None:
    small = plan_shape(SHAPE, SPACING, [LIVER])
    assert small.stages[1].spacing_hwd_mm == pytest.approx(SPACING)
    assert small.stages[1].target_spacing_hwd_mm == (1.0, 1.0, 1.0)
    huge = plan_shape((700, 900, 900), (1.0, 1.0, 1.0), [LIVER])
    assert all(
        size <= 1.9 * window + 1
        for size, window in zip(
            huge.stages[1].resampled_shape_hwd, huge.stages[1].window_hwd, strict=True
        )
    )


def test_the_region_of_interest_bounds_the_fine_stage_from_below() -> None:
    plan = plan_shape((400, 500, 500), (0.8, 0.8, 1.5), [LIVER, SPLEEN])
    coarse, fine = plan.stages
    assert coarse.windows == coarse.windows_smallest_region
    assert 1 <= fine.windows_smallest_region < fine.windows
    assert fine.passes_smallest_region == 2 * fine.windows_smallest_region


def test_seconds_are_passes_times_the_measured_pass() -> None:
    plan = plan_shape((400, 500, 500), (0.8, 0.8, 1.5), [LIVER, SPLEEN])
    coarse, fine = plan.stages
    timed = with_seconds(plan, MeasuredPasses("openvino/bf16", {1: 0.5, 2: 2.0}))
    least = 0.5 * coarse.passes + 2.0 * fine.passes_smallest_region
    assert timed.expected_seconds == pytest.approx((least, 0.5 * coarse.passes + 2 * fine.passes))
    assert timed.measured_on == "openvino/bf16"
    unknown = with_seconds(plan, MeasuredPasses("openvino/bf16", {1: 0.5}))
    assert unknown.expected_seconds is None


def test_memory_grows_with_the_network_and_with_the_image() -> None:
    narrow = replace(RELEASED, channels=16)
    tiny = plan_shape((32, 64, 64), (1.0, 1.0, 1.0), [LIVER], model=narrow)
    wide = plan_shape((32, 64, 64), (1.0, 1.0, 1.0), [LIVER])
    large = plan_shape((600, 600, 600), (0.5, 0.5, 0.5), [LIVER])
    assert tiny.expected_peak_memory_mib < wide.expected_peak_memory_mib
    assert wide.expected_peak_memory_mib < large.expected_peak_memory_mib


def test_a_memory_limit_is_planned_with() -> None:
    many = [LIVER] * 104
    shape, spacing = (400, 512, 512), (1.5, 1.5, 1.5)
    fine = plan_shape(shape, spacing, many).stages[1]
    assert fine.padded_shape_hwd == (512, 512, 400)
    assert (fine.class_groups, fine.column_blocks) == (1, 4)  # by default sums take at most 6 GB
    assert fine.accumulators_mib * 2**20 <= 6e9
    assert fine.window_runs == 1.5 * fine.windows
    tight = plan_shape(shape, spacing, many, max_memory=13 * 10**9)
    assert tight.stages[1].window_runs > fine.window_runs
    assert tight.stages[1].passes == 2 * tight.stages[1].window_runs
    assert tight.expected_peak_memory_mib * 2**20 < 15e9
    with raises(InputError, "memory-too-small"):
        plan_shape(shape, spacing, many, max_memory=10**9)


def timed_plan(seconds: dict[int, float], classes: list, budget: float) -> BudgetPlan:
    plan = plan_shape((400, 500, 500), (0.8, 0.8, 1.5), classes)
    timed = with_seconds(plan, MeasuredPasses("openvino/bf16", seconds))
    planned = with_time_budget(timed, budget).time_budget
    assert planned is not None
    return planned


def test_passes_shrink_with_the_effort() -> None:
    coarse, fine = plan_shape((400, 500, 500), (0.8, 0.8, 1.5), [TUMOR]).stages
    for cost in (coarse, fine):
        assert cost.passes_by_quality[0] == cost.passes
        assert cost.passes_by_quality_smallest_region[0] == cost.passes_smallest_region
        assert list(cost.passes_by_quality) == sorted(cost.passes_by_quality, reverse=True)
    assert [passes // coarse.windows for passes in coarse.passes_by_quality[:2]] == [3, 1]
    assert [passes // fine.windows for passes in fine.passes_by_quality[:2]] == [4, 2]


def test_time_enough_leaves_nothing_out() -> None:
    planned = timed_plan({1: 0.01, 2: 0.01}, [LIVER, SPLEEN], 60)
    assert planned.seconds == 120
    assert planned.network_seconds == 107.5
    for choices in (planned.smallest_region, planned.whole_image):
        assert choices is not None
        assert [(each.stage, each.runs, each.fits, each.degraded) for each in choices] == [
            (1, True, True, ""),
            (2, True, True, ""),
        ]


def test_what_would_be_left_out_comes_in_the_documented_order() -> None:
    """The whole image's fine stage is made to miss by more and more."""
    costs = plan_shape((400, 500, 500), (0.8, 0.8, 1.5), [TUMOR]).stages
    by_effort = costs[1].passes_by_quality
    assert by_effort[0] > by_effort[1] > by_effort[2]
    words = []
    for passes in (*by_effort, by_effort[2] - 1):
        budget = Budget(100.0, 0.0, lambda: 0.0).left
        planned = timed_plan({1: 1e-6, 2: (budget - 0.01) / passes}, [TUMOR], 100)
        assert planned.whole_image is not None
        fine = planned.whole_image[1]
        words.append((fine.runs, fine.degraded))
    assert words == [
        (True, ""),
        (True, "without further iterations"),
        (True, "without further iterations and with windows overlapping by 25%"),
        (False, ""),
    ]


def test_the_coarse_stage_leaves_time_for_the_smallest_fine_stage() -> None:
    coarse, fine = plan_shape((400, 500, 500), (0.8, 0.8, 1.5), [TUMOR]).stages
    everything = coarse.passes + fine.passes_smallest_region
    short = (everything - 1) / 0.9 + 0.6
    planned = timed_plan({1: 1.0, 2: 1.0}, [TUMOR], short)
    assert planned.smallest_region is not None
    assert planned.whole_image is not None
    assert planned.smallest_region[0].degraded == "without further iterations"
    assert planned.smallest_region[1].runs
    assert planned.whole_image[0] == planned.smallest_region[0]
    assert not planned.whole_image[1].runs


def test_a_budget_below_a_pass_would_be_refused() -> None:
    planned = timed_plan({1: 10.0, 2: 10.0}, [LIVER], 1)
    assert planned.refused is not None
    assert planned.whole_image is None


def test_a_budget_below_the_coarse_stage_is_cut_short() -> None:
    planned = timed_plan({1: 10.0, 2: 10.0}, [LIVER], 15)
    assert planned.whole_image is not None
    coarse, fine = planned.whole_image
    assert (coarse.runs, coarse.fits, fine.runs, fine.fits) == (True, False, False, False)


def test_passes_of_every_window_group_count() -> None:
    shape, spacing = (60, 300, 300), (1.0, 1.0, 2.0)
    classes = [LIVER, by_exact_name("CT", "Left lung")]
    both = plan_numbers(shape, spacing, classes, options_of())
    names = [(cost.intensity_window, cost.stage, cost.classes) for cost in both.stages]
    assert names == [
        ("soft tissue", 1, 1),
        ("soft tissue", 2, 1),
        ("lung", 1, 1),
        ("lung", 2, 1),
    ]
    one = plan_numbers(shape, spacing, classes, options_of(window="400,40"))
    assert [(cost.intensity_window, cost.stage, cost.classes) for cost in one.stages] == [
        (None, 1, 2),
        (None, 2, 2),
    ]
    timed = with_seconds(both, MeasuredPasses("openvino/bf16", {1: 1.0, 2: 1.0}))
    assert timed.expected_seconds is not None
    assert timed.expected_seconds[1] == sum(cost.passes for cost in both.stages)
    budget = with_time_budget(timed, 600).time_budget
    assert budget is not None
    assert budget.seconds == 1200
    assert budget.whole_image is not None
    assert [each.intensity_window for each in budget.whole_image] == [
        cost.intensity_window for cost in both.stages
    ]


def test_an_unmeasured_stage_counts_by_its_voxels() -> None:
    both = timed_plan({1: 0.224 * 0.224 * 0.128, 2: 0.192**3}, [LIVER], 60)
    assert timed_plan({1: 0.224 * 0.224 * 0.128}, [LIVER], 60) == both
    assert timed_plan({}, [LIVER], 60).whole_image is None


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan")])
def test_a_budget_that_is_no_time(budget: float) -> None:
    with raises(InputError, "budget-not-positive"):
        timed_plan({}, [LIVER], budget)


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Bundle, float], None]:
    """Have the passes of a bundle known, and no others."""
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path))

    def tell(bundle: Bundle, seconds: float) -> None:
        figures = MeasuredPasses("onnxruntime/fp32", {1: seconds, 2: seconds})
        pass_timings.record(bundle.hash, figures)

    return tell


def on(bundle: Bundle) -> tuple[str, ...]:
    return ("--bundle", str(bundle.folder), *RUNNER)


def planned_by_command(bundle: Bundle, *options: str) -> str:
    words = ["--shape", "12,60,60", "--spacing", "4,4,6", "--classes", "CT/Liver"]
    result = CliRunner().invoke(app, ["plan", *words, *on(bundle), *options])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_tells_what_a_budget_leaves_out(
    tiny_bundle: Bundle, measured: Callable[[Bundle, float], None]
) -> None:
    unknown = planned_by_command(tiny_bundle, "--time-budget", "60")
    assert "time budget: 60 s, 53.5 s of it for the network" in unknown
    assert "no pass of the bundle was measured on this machine" in unknown
    measured(tiny_bundle, 0.001)
    assert planned_by_command(tiny_bundle, "--time-budget", "60").count("everything: ") == 4
    assert "time budget" not in planned_by_command(tiny_bundle)
    measured(tiny_bundle, 1.0)
    printed = planned_by_command(tiny_bundle, "--time-budget", "60")
    fine = next(line for line in printed.splitlines() if line.startswith("fine stage"))
    assert "everything: " in fine
    assert "not run: it takes" in fine
    measured(tiny_bundle, 1e4)
    assert "would be refused: a time budget of 60 s a class leaves" in planned_by_command(
        tiny_bundle, "--time-budget", "60"
    )


def test_the_command_gives_the_budget_as_json(
    tiny_bundle: Bundle, measured: Callable[[Bundle, float], None]
) -> None:
    options = ("--time-budget", "60", "--json")
    unknown = json.loads(planned_by_command(tiny_bundle, *options))["time_budget"]
    assert unknown["seconds_per_class"] == 60
    assert (unknown["smallest_region"], unknown["whole_image"]) == (None, None)
    measured(tiny_bundle, 1.0)
    plan = json.loads(planned_by_command(tiny_bundle, *options))
    coarse, fine = plan["time_budget"]["whole_image"]
    assert coarse["expected_seconds"] == plan["stages"][0]["passes"]
    assert fine == {
        "stage": 2,
        "intensity_window": None,
        "runs": False,
        "fits": False,
        "degraded": "",
        "expected_seconds": min(plan["stages"][1]["passes_by_quality"]),
    }


def test_a_run_does_what_the_plan_of_its_case_said(
    tiny_bundle: Bundle, tmp_path: Path, measured: Callable[[Bundle, float], None]
) -> None:
    """Passes are told to take a second: all but one of those of the coarse stage would fit."""
    measured(tiny_bundle, 1.0)
    image = np.random.default_rng(1).integers(0, 256, (12, 60, 60), dtype=np.uint8)
    np.savez(tmp_path / "case.npz", imgs=image, spacing=(4.0, 4.0, 6.0))
    prompts = {"1": "Adrenocortical carcinoma in abdominal CT", "instance_label": 1}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")
    words = ["plan", "--json", "--input", str(tmp_path / "case.npz")]
    words += [
        "--prompts",
        str(tmp_path / "prompts.json"),
        *on(tiny_bundle),
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    coarse, fine = json.loads(result.stdout)["stages"]
    everything = coarse["passes"] + fine["passes_smallest_region"]
    budget = (everything - 1 + 0.5) / 0.9
    result = CliRunner().invoke(app, [*words, "--time-budget", str(budget)])
    assert result.exit_code == 0, result.output
    planned = json.loads(result.stdout)["time_budget"]
    assert planned["network_seconds"] == pytest.approx(everything - 1)
    degraded = planned["smallest_region"][0]["degraded"]
    assert degraded == "without further iterations"
    with medals_rt.load(tiny_bundle.folder, runner="onnxruntime", precision="fp32") as segmenter:
        report = segmenter.segment(
            Volume(image, (4.0, 4.0, 6.0)), prompts, SegmentOptions(time_budget=budget)
        ).report
    assert report.budget is not None
    assert f"the coarse stage was run {degraded}" in report.budget["degraded"]
    expected = planned["smallest_region"][0]["expected_seconds"]
    assert report.budget["planned_seconds"]["coarse"] == expected == coarse["windows"]


def test_a_budget_is_for_both_stages() -> None:
    with raises(InputError, "budget-of-one-stage"):
        plan_numbers((10,) * 3, (1.0,) * 3, [LIVER], options_of(time_budget=60), stage=1)


@pytest.mark.parametrize(
    ("shape", "spacing", "classes", "code"),
    [
        ((10, 10, 0), (1.0, 1.0, 1.0), [LIVER], "not-positive"),
        ((10, 10, 10), (1.0, 1.0, -1.0), [LIVER], "not-positive"),
        ((10, 10, 10), (1.0, 1.0, float("nan")), [LIVER], "not-positive"),
        ((10, 10, 10), (1.0, 1.0, 1.0), [], "no-class"),
    ],
)
def test_what_cannot_be_planned(shape: Any, spacing: Any, classes: Any, code: str) -> None:
    with raises(InputError, code):
        plan_numbers(shape, spacing, classes, options_of())


def test_options_of_the_algorithm_are_counted() -> None:
    shape, spacing = (300, 400, 400), (1.0, 1.0, 1.0)
    paper = load_policy().preset("paper")

    def stages(**changes: Any) -> dict[int, StageCost]:
        plan = plan_shape(shape, spacing, [LIVER], paper.changed(**changes))
        return {cost.stage: cost for cost in plan.stages}

    both = stages()
    fine = stages(stages="fine")[2]
    assert set(stages(stages="coarse")) == {1}
    assert fine.passes == fine.windows == fine.windows_smallest_region == both[2].windows
    assert stages(iterations=3, repetitions=2)[2].passes == 6 * both[2].passes
    assert stages(start_from="text")[2].passes == 3 * both[2].windows
    assert stages(mirrored=True)[1].passes == 8 * both[1].passes
    assert stages(overlap=0.0)[2].windows < both[2].windows
    for larger in ({"mirrored": True}, {"repetitions": 2}, {"iterations": 2}):
        assert stages(**larger)[2].peak_memory_mib > both[2].peak_memory_mib
