"""The dry run: geometry as the release has it, passes, time and memory."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medals_rt.cli import app
from medals_rt.errors import InputError
from medals_rt.plan import plan_shape, with_seconds
from medals_rt.plan_inputs import plan_numbers
from medals_rt.timings import MeasuredPasses
from medals_rt.vocabulary import by_exact_name

GOLDEN = json.loads((Path(__file__).parent / "golden" / "geometry.json").read_text())
LIVER = by_exact_name("CT", "Liver")
SPLEEN = by_exact_name("CT", "Spleen")
TUMOR = by_exact_name("CT", "Liver tumors")
SHAPE, SPACING = (100, 400, 420), (0.8, 0.8, 3.0)


def assert_golden(stage: dict, case: dict) -> None:
    assert stage["spacing_mm_hwd"] == pytest.approx(case["out_spacing_hwd"], rel=1e-5)
    assert stage["target_spacing_mm_hwd"] == pytest.approx(case["out_target_spacing_hwd"], rel=1e-5)
    assert list(stage["resampled_shape_hwd"]) == case["resampled_shape_hwd"]
    assert list(stage["padded_shape_hwd"]) == case["padded_shape_hwd"]
    assert stage["windows"] == case["n_windows"]
    assert stage["iterations"] == case["iterations"]


def test_all_golden_cases() -> None:
    for case in GOLDEN:
        plan = plan_numbers(
            ",".join(map(str, case["image_shape_dhw"])),
            ",".join(map(repr, case["spacing_hwd"])),
            ";".join(name.replace("_", "/", 1) for name in case["classes"]),
            stage=case["stage"],
            preset="release",
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
    plan = plan_shape(SHAPE, SPACING, classes, preset=preset, refinement=refinement)
    assert [stage.passes for stage in plan.stages] == [
        coarse * plan.stages[0].windows,
        fine * plan.stages[1].windows,
    ]


def test_the_paper_preset_keeps_the_spacing_and_bounds_the_volume() -> None:
    small = plan_shape(SHAPE, SPACING, [LIVER])
    assert small.stages[1].spacing_mm_hwd == pytest.approx(SPACING)
    assert small.stages[1].target_spacing_mm_hwd == (1.0, 1.0, 1.0)
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
    tiny = plan_shape((32, 64, 64), (1.0, 1.0, 1.0), [LIVER], features=16)
    wide = plan_shape((32, 64, 64), (1.0, 1.0, 1.0), [LIVER])
    large = plan_shape((600, 600, 600), (0.5, 0.5, 0.5), [LIVER])
    assert tiny.expected_peak_memory_mib < wide.expected_peak_memory_mib
    assert wide.expected_peak_memory_mib < large.expected_peak_memory_mib
    assert 4_300 < wide.expected_peak_memory_mib < 5_400  # measured for its window: 4.6 GiB


def test_a_memory_limit_is_planned_with() -> None:
    many = [LIVER] * 104
    shape, spacing = (400, 512, 512), (1.5, 1.5, 1.5)
    fine = plan_shape(shape, spacing, many).stages[1]
    assert fine.padded_shape_hwd == (512, 512, 400)
    assert fine.class_groups == 3  # by default the sums take at most 6 GB
    assert fine.accumulators_mib * 2**20 <= 6e9
    tight = plan_shape(shape, spacing, many, max_memory=13 * 10**9)
    assert tight.stages[1].class_groups > 3
    assert tight.stages[1].passes == 2 * fine.windows * tight.stages[1].class_groups
    assert tight.expected_peak_memory_mib * 2**20 < 15e9
    with pytest.raises(InputError, match="allow at least"):
        plan_shape(shape, spacing, many, max_memory=10**9)


@pytest.mark.parametrize(
    ("shape", "spacing", "classes", "message"),
    [
        ("10,10", "1,1,1", "CT/Liver", "shape D,H,W needs three numbers"),
        ("10,10,x", "1,1,1", "CT/Liver", "shape D,H,W needs three numbers"),
        ("10,10,10", "1,1,1,1", "CT/Liver", "spacing H,W,D needs three numbers"),
        ("10,10,0", "1,1,1", "CT/Liver", "positive sizes"),
        ("10,10,10", "1,1,-1", "CT/Liver", "positive lengths"),
        ("10,10,10", "1,1,nan", "CT/Liver", "positive lengths"),
        ("10,10,10", "1,1,1", "CT/Livr", "Liver"),
        ("10,10,10", "1,1,1", "Liver", "Liver"),
        ("10,10,10", "1,1,1", " ; ", "no class"),
    ],
)
def test_what_cannot_be_planned(shape: str, spacing: str, classes: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_numbers(shape, spacing, classes)
