"""Dry runs of files and of numbers, which have to agree."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.pipeline.job import open_models
from medals_rt.pipeline.job_inputs import read_prompted_case
from medals_rt.pipeline.options import PromptSource, RunOptions, SegmentOptions
from medals_rt.pipeline.plan_case import plan_files, plan_numbers
from medals_rt.prompts.classes import by_exact_name
from tests.paths import ROOT

DEMO = ROOT / "engines" / "demo"
SHAPE_DHW = (70, 51, 51)
LONG_HWD_MM = (0.75, 0.75, 1.0)
"""Longer along the body than across: the repair of challenge files would swap two spacings."""
LIVER = PromptSource(sentences=("Liver in abdominal CT",))


def write_nifti(path: Path) -> Path:
    nibabel = pytest.importorskip("nibabel", reason="needs the extra 'formats'")
    image = np.full(SHAPE_DHW[::-1], -500, np.int16)
    h, w, d = LONG_HWD_MM
    nibabel.save(nibabel.Nifti1Image(image, np.diag([-w, -h, d, 1.0])), path)
    return path


def options_of(bundle: Bundle, **segment: Any) -> RunOptions:
    return RunOptions(bundle=bundle.folder, runner="onnxruntime", segment=SegmentOptions(**segment))


def test_a_plan_of_numbers_equals_that_of_a_file(tiny_bundle: Bundle, tmp_path: Path) -> None:
    scan = write_nifti(tmp_path / "legs.nii.gz")
    classes = [by_exact_name("CT", "Liver")]
    for preset in ("paper", "release"):
        options = options_of(tiny_bundle, preset=preset)
        of_file = plan_files(scan, LIVER, options)
        assert of_file == plan_numbers(SHAPE_DHW, LONG_HWD_MM, classes, options)
        if preset == "paper":
            assert of_file.stages[0].spacing_hwd_mm == LONG_HWD_MM
        repaired = [] if preset == "paper" else ["spacing-repaired"]
        assert [note.code for note in of_file.notes] == repaired


@pytest.mark.parametrize("stage", ["coarse", "fine"])
@pytest.mark.parametrize(
    "changed",
    [{}, {"classes_per_chunk": 1}, {"probabilities": True}, {"refinement": "none"}],
    ids=str,
)
def test_a_plan_says_what_a_run_does(tmp_path: Path, stage: str, changed: dict[str, Any]) -> None:
    """Two groups of classes and one stage of each, on the whole image: there is no region to guess.

    The limit is a gigabyte for both, or a run would take what is free here.
    """
    scan = write_nifti(tmp_path / "legs.nii.gz")
    source = PromptSource(sentences=("Liver in CT", "Spleen in CT", "Left lung in CT"))
    options = options_of(Bundle.open(DEMO), stages=stage, max_memory=10**9, **changed)
    case, prompts = read_prompted_case(scan, source, options)
    with open_models(options) as segmenter:
        found = segmenter.segment(case.volume, prompts, options.segment).report.stages
    planned = plan_files(scan, source, options).stages
    assert len(planned) == len(found) == 2
    for cost, record in zip(planned, found, strict=True):
        for mib, exact in (
            (cost.peak_memory_mib, record.expected_peak_mib),
            (cost.accumulators_mib, record.accumulators_mib),
        ):
            assert mib <= exact + 0.05 < mib + 1.1  # cut to whole ones, and rounded to tenths
        assert cost.resampled_shape_hwd == record.resampled_shape_hwd
        assert (cost.windows, cost.window_runs) == (record.windows, record.window_runs)


def test_bare_numbers_of_a_challenge_file_are_repaired_aloud(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    path = tmp_path / "legs.npz"
    np.savez(path, imgs=np.zeros(SHAPE_DHW, np.uint8), spacing=np.array(LONG_HWD_MM))
    plan = plan_files(path, LIVER, options_of(tiny_bundle))
    assert [note.code for note in plan.notes] == ["spacing-repaired"]
