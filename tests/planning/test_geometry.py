from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medals_rt.bundle.stage_spec import StageSpec
from medals_rt.planning.geometry import plan_stage, region_of_interest, separate_axis
from medals_rt.planning.image_spacing import clean_spacing, spacing_for
from medals_rt.planning.policy import CaseRules, load_policy
from tests.paths import NATIVE

COARSE = StageSpec(1, (224, 224, 128), (1.5, 1.5, 3.0))
FINE = StageSpec(2, (192, 192, 192), (1.0, 1.0, 1.0))
STAGES = {1: COARSE, 2: FINE}
SPACING_TOLERANCE = 1e-5  # relative; in fact ours are the release's float32 values to the bit


@dataclass(frozen=True)
class Key:
    policy_name: str
    kind: str = "anatomy"


def rules(names: list[str], preset: str = "release") -> CaseRules:
    return load_policy().rules([Key(name) for name in names], preset)


def test_golden_plans(golden: Path) -> None:
    """500 of 500 plans of the release: spacings, shapes, windows and iterations."""
    cases = json.loads((golden / "geometry.json").read_text(encoding="utf-8"))
    release = load_policy().preset("release")
    assert len(cases) == 500
    for case in cases:
        d, h, w = case["image_shape_dhw"]
        stage = STAGES[case["stage"]]
        plan = plan_stage((h, w, d), case["spacing_hwd"], stage, rules(case["classes"]), release)
        np.testing.assert_allclose(
            (plan.spacing_hwd_mm, plan.target_spacing_hwd_mm),
            (case["out_spacing_hwd"], case["out_target_spacing_hwd"]),
            rtol=SPACING_TOLERANCE,
            err_msg=str(case),
        )
        found = {
            "iterations": plan.iterations,
            "resampled_shape_hwd": list(plan.resampled_shape_hwd),
            "padded_shape_hwd": list(plan.padded_shape_hwd),
            "n_windows": len(plan.windows),
        }
        assert found == {name: case[name] for name in found}, case
        if case["windows"] is not None:
            edges = [
                [e for pair in zip(w.starts_hwd, w.stops_hwd, strict=True) for e in pair]
                for w in plan.windows
            ]
            assert edges == case["windows"], case


def native_cases() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((NATIVE / "geometry.json").read_text(encoding="utf-8"))
    assert len(found) == 163
    return found


def test_plans_of_the_authors_script() -> None:
    """163 of 163 images, both stages: spacing, target, shape and where windows start."""
    native = load_policy().preset("native")
    for case in native_cases():
        d, h, w = case["shape_dhw"]
        cleaned, _ = spacing_for(
            (d, h, w), case["spacing_hwd"], geometry_is_stated=True, preset=native, modality="CT"
        )
        assert list(cleaned) == case["cleaned_hwd"], case
        for stage, theirs in zip((COARSE, FINE), case["stages"], strict=True):
            plan = plan_stage((h, w, d), cleaned, stage, rules(["CT_Liver"], "native"), native)
            np.testing.assert_allclose(
                (plan.spacing_hwd_mm, plan.target_spacing_hwd_mm),
                (theirs["spacing"], theirs["target"]),
                rtol=SPACING_TOLERANCE,
                err_msg=str(case),
            )
            # a resampled axis of 0 voxels, which the script fails on, is 1 here
            assert list(plan.resampled_shape_hwd) == [max(1, n) for n in theirs["resampled"]], case
            starts = [sorted({each.starts_hwd[axis] for each in plan.windows}) for axis in range(3)]
            assert (starts, len(plan.windows)) == (theirs["starts"], theirs["windows"]), case


def test_regions_of_the_authors_script() -> None:
    native = load_policy().preset("native")
    for case in native_cases():
        low, high = (tuple(corner) for corner in case["coarse_box"])
        box = region_of_interest(
            (low, high),
            case["shape_dhw"],
            case["cleaned_hwd"],
            FINE,
            rules(["CT_Airway Tree"], "native"),
            native,
        )
        assert [list(corner) for corner in box] == case["region"], case


def test_golden_regions(golden: Path) -> None:
    """90 of 90: the cleaned spacing, which stages run, on which shapes, and the final box."""
    cases = json.loads((golden / "roi.json").read_text(encoding="utf-8"))
    assert len(cases) == 90
    for case in cases:
        assert calls_of_two_stages(case) == [
            {name: call[name] for name in ("stage", "shape", "spacing", "prompts")}
            for call in case["calls"]
        ], case


def calls_of_two_stages(case: dict[str, Any]) -> list[dict[str, Any]]:
    """What each stage is called with, by docs/algorithm.md, section 6."""
    shape, box = case["image_shape_dhw"], case["coarse_box"]
    kind = "lesion" if case["text_prompts"]["instance_label"] else "anatomy"
    keys = [Key(name, kind) for name in case["calls"][0]["classes"]]
    case_rules = load_policy().rules(keys, "release")
    release = load_policy().preset("release")
    spacing = clean_spacing(shape, case["spacing_npz"])
    whole: dict[str, Any] = {"shape": shape, "spacing": list(spacing), "prompts": False}
    calls = [] if case_rules.skip_coarse else [{"stage": 1, **whole}]
    if case_rules.skip_fine:
        return calls
    if case_rules.skip_coarse or box is None:
        return [*calls, {"stage": 2, **whole}]
    coarse_box = (tuple(box[0]), tuple(box[1]))
    low, high = region_of_interest(coarse_box, shape, spacing, FINE, case_rules, release)
    assert [list(low), list(high)] == case["final_box"], case
    size = [b - a for a, b in zip(low, high, strict=True)]
    return [*calls, {"stage": 2, **whole, "shape": size, "prompts": True}]


def test_paper_resamples_physically_and_pads_small_images() -> None:
    paper = load_policy().preset("paper")
    plan = plan_stage((40, 60, 20), (0.75, 0.75, 2.0), FINE, rules(["US_Thyroid"], "paper"), paper)
    assert plan.target_spacing_hwd_mm == FINE.spacing_hwd_mm
    assert plan.spacing_hwd_mm == (0.75, 0.75, 2.0)
    assert plan.resampled_shape_hwd == (30, 45, 40)
    assert plan.padded_shape_hwd == FINE.window_hwd


def test_paper_names_no_class_in_its_geometry() -> None:
    paper = load_policy().preset("paper")
    plans = {
        plan_stage((900, 900, 300), (0.8, 0.8, 1.2), FINE, rules([name], "paper"), paper)
        for name in ("PET_Lesion", "US_Brain tumor", "Microscopy_Endolysosomes", "CT_Liver")
    }
    assert len(plans) == 1


def test_paper_bounds_memory() -> None:
    """Paper 2.5 with a = 1.9 where the volume exceeds 1.8^3 windows; never an enlargement."""
    paper = load_policy().preset("paper")
    plan = plan_stage((512, 512, 600), (0.8, 0.8, 2.5), FINE, rules(["CT_Liver"], "paper"), paper)
    assert plan.resampled_shape_hwd == (365, 365, 600)  # 1.9 * 192 = 364.8; d > 1.9 p keeps d
    small = plan_stage((300, 300, 300), (0.8, 0.8, 0.8), FINE, rules(["CT_Liver"], "paper"), paper)
    assert small.spacing_hwd_mm == tuple(float(np.float32(0.8)) for _ in range(3))


def test_an_axis_never_vanishes() -> None:
    release = load_policy().preset("release")
    plan = plan_stage((1, 1, 1), (0.2, 0.2, 0.2), FINE, rules(["CT_Liver", "CT_Spleen"]), release)
    assert min(plan.resampled_shape_hwd) >= 1


@pytest.mark.parametrize(
    ("spacing", "target", "axis"),
    [
        ((1.0, 1.0, 3.0), (1.0, 1.0, 1.0), None),
        ((1.0, 1.0, 3.1), (1.0, 1.0, 1.0), 2),
        ((3.1, 1.0, 3.1), (1.0, 1.0, 1.0), None),  # two coarse axes: no separate one
        ((1.0, 1.0, 1.0), (1.0, 4.0, 1.0), 1),
        ((5.0, 1.0, 1.0), (1.0, 4.0, 1.0), 0),  # the image's own spacing comes first
    ],
)
def test_separate_axis(
    spacing: tuple[float, ...], target: tuple[float, ...], axis: int | None
) -> None:
    assert separate_axis(np.asarray(spacing, np.float32), target) == axis


@st.composite
def images_with_a_box(draw: st.DrawFn) -> tuple[Any, ...]:
    shape = tuple(draw(st.integers(1, 900)) for _ in range(3))
    low = tuple(draw(st.integers(0, size - 1)) for size in shape)
    high = tuple(draw(st.integers(a + 1, size)) for a, size in zip(low, shape, strict=True))
    spacing = tuple(draw(st.floats(0.1, 12.0)) for _ in range(3))
    names = draw(st.sampled_from([["CT_Liver"], ["CT_Airway Tree"], ["PET_Lesion", "CT_Liver"]]))
    preset = draw(st.sampled_from(["paper", "release"]))
    return shape, low, high, spacing, names, preset


@given(images_with_a_box())
def test_region_holds_the_coarse_box(case: tuple[Any, ...]) -> None:
    shape, low, high, stored, names, preset = case
    case_rules = rules(names, preset)
    spacing = clean_spacing(shape, stored)
    found_low, found_high = region_of_interest(
        (low, high), shape, spacing, FINE, case_rules, load_policy().preset(preset)
    )
    for axis in range(3):
        assert 0 <= found_low[axis] <= low[axis]
        assert high[axis] <= found_high[axis] <= shape[axis]


@given(images_with_a_box(), st.sampled_from([COARSE, FINE]))
def test_windows_of_a_plan_cover_its_image(case: tuple[Any, ...], stage: StageSpec) -> None:
    shape, _, _, stored, names, preset = case
    plan = plan_stage(
        (shape[1], shape[2], shape[0]),
        clean_spacing(shape, stored),
        stage,
        rules(names, preset),
        load_policy().preset(preset),
    )
    for axis, length in enumerate(plan.padded_shape_hwd):
        spans = sorted({(w.starts_hwd[axis], w.stops_hwd[axis]) for w in plan.windows})
        assert spans[0][0] == 0
        assert spans[-1][1] == length >= plan.resampled_shape_hwd[axis]
        assert all(b[0] <= a[1] for a, b in pairwise(spans))
