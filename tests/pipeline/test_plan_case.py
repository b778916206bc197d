"""Dry runs of files and of numbers, which have to agree."""

from pathlib import Path

import numpy as np
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.pipeline.options import PromptSource, RunOptions, SegmentOptions
from medals_rt.pipeline.plan_case import plan_files, plan_numbers

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


def options_of(bundle: Bundle, **segment: str) -> RunOptions:
    return RunOptions(bundle=bundle.folder, runner="onnxruntime", segment=SegmentOptions(**segment))


def test_a_plan_of_numbers_equals_that_of_a_file(tiny_bundle: Bundle, tmp_path: Path) -> None:
    scan = write_nifti(tmp_path / "legs.nii.gz")
    shape, spacing = (",".join(map(str, each)) for each in (SHAPE_DHW, LONG_HWD_MM))
    for preset in ("paper", "release"):
        options = options_of(tiny_bundle, preset=preset)
        of_file = plan_files(scan, LIVER, options)
        assert of_file == plan_numbers(shape, spacing, "CT/Liver", options)
        if preset == "paper":
            assert of_file.stages[0].spacing_mm_hwd == LONG_HWD_MM
        repaired = [] if preset == "paper" else ["spacing-repaired"]
        assert [note.code for note in of_file.notes] == repaired


def test_bare_numbers_of_a_challenge_file_are_repaired_aloud(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    path = tmp_path / "legs.npz"
    np.savez(path, imgs=np.zeros(SHAPE_DHW, np.uint8), spacing=np.array(LONG_HWD_MM))
    plan = plan_files(path, LIVER, options_of(tiny_bundle))
    assert [note.code for note in plan.notes] == ["spacing-repaired"]
