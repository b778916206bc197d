"""Labels that a person drew and gives to Python as `read_labels` read them."""

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

import medals_rt
from medals_rt.bundle.bundle import Bundle
from medals_rt.common.errors import CaseError
from medals_rt.inference.corrections import Correction
from medals_rt.io.registry import read_case, read_labels
from medals_rt.pipeline.drawn_labels import placed_labels
from medals_rt.prompts.prompt_set import parse_prompts
from tests.errors import raises

SHAPE_IJK = (20, 18, 12)
AFFINE_RAS = np.diag([-3.0, -3.0, 4.0, 1.0])
PROMPTS = parse_prompts({"1": "Liver in abdominal CT", "2": "Right kidney in abdominal CT"})


def image_of(folder: Path) -> Path:
    values = np.random.default_rng(0).normal(0, 200, SHAPE_IJK).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, AFFINE_RAS), folder / "scan.nii.gz")
    return folder / "scan.nii.gz"


def drawing(path: Path, *, moved_mm: float = 0.0, label: int = 1) -> Path:
    """Labels at one end of the first axis, stored along it in the other direction."""
    labels = np.zeros(SHAPE_IJK, np.uint8)
    labels[-4:, 2:9, 3:8] = label  # the last along i, which is the first of the scan
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = SHAPE_IJK[0] - 1
    affine = AFFINE_RAS @ flip
    affine[2, 3] += moved_mm
    nibabel.save(nibabel.Nifti1Image(labels, affine), path)
    return path


def test_a_label_file_is_taken_where_it_lies(tiny_bundle: Bundle, tmp_path: Path) -> None:
    case = read_case(image_of(tmp_path))
    drawn = read_labels(drawing(tmp_path / "drawn.nii.gz"))
    as_stored = np.asarray(nibabel.load(tmp_path / "drawn.nii.gz").dataobj).T
    assert not np.array_equal(as_stored, drawn.labels_dhw)  # of the same shape, and mirrored
    with medals_rt.load(tiny_bundle.folder, runner="onnxruntime", precision="fp32") as segmenter:
        by_file, by_array = (
            segmenter.segment(case.volume, PROMPTS, spatial_prompts=given)
            for given in (drawn, drawn.labels_dhw)
        )
        np.testing.assert_array_equal(by_file.labels_dhw, by_array.labels_dhw)
        named = replace(drawn, segment_names={1: "Right kidney"})
        notes = segmenter.segment(case.volume, PROMPTS, spatial_prompts=named).report.notes
        assert "annotation-renumbered" in {note.code for note in notes}
        moved = read_labels(drawing(tmp_path / "moved.nii.gz", moved_mm=8.0))
        with raises(CaseError, "annotation-on-another-grid"):
            segmenter.segment(case.volume, PROMPTS, spatial_prompts=moved)
        before = np.zeros_like(drawn.labels_dhw)
        made = [Correction.of(before, each, PROMPTS.labels) for each in (drawn, moved)]
        assert segmenter.segment(case.volume, PROMPTS, corrections=made[:1]).labels_dhw.any()
        with raises(CaseError, "annotation-on-another-grid"):
            segmenter.segment(case.volume, PROMPTS, corrections=made[1:])


def test_files_that_are_compared_are_of_one_grid_and_name_labels_alike(tmp_path: Path) -> None:
    before = read_labels(drawing(tmp_path / "a.nii.gz"))
    after = read_labels(drawing(tmp_path / "b.nii.gz", label=2))
    assert Correction.of(before, after, [1, 2]).labels == {1, 2}
    assert Correction.of(before, after.labels_dhw, [1, 2]).grid is not None
    with raises(CaseError, "annotation-on-another-grid"):
        Correction.of(before, read_labels(drawing(tmp_path / "c.nii.gz", moved_mm=8.0)), [1, 2])
    with raises(CaseError, "annotation-names"):
        Correction.of(
            replace(before, segment_names={1: "Liver", 2: "Right kidney"}),
            replace(after, segment_names={1: "Right kidney", 2: "liver"}),
            [1, 2],
        )


@pytest.mark.parametrize("resample", [None, False, True])
def test_only_what_can_be_resampled_is_told_so(tmp_path: Path, *, resample: bool | None) -> None:
    volume = read_case(image_of(tmp_path)).volume
    moved = read_labels(drawing(tmp_path / "moved.nii.gz", moved_mm=8.0))
    if resample:
        _, notes = placed_labels(moved, "drawn", volume, PROMPTS, resample=resample)
        assert [note.code for note in notes] == ["annotation-resampled"]
        return
    with pytest.raises(CaseError) as refused:
        placed_labels(moved, "drawn", volume, PROMPTS, resample=resample)
    assert ("--resample" in str(refused.value)) == (resample is False)
