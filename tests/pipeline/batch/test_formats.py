"""One folder of scans in every format, and results that go back to where they came from."""

from pathlib import Path

import nibabel
import nrrd
import numpy as np

from medals_rt.bundle.bundle import Bundle
from medals_rt.io.registry import read_labels
from tests.dicom import write_series
from tests.pipeline.batch.helpers import SHAPE, batch, files_below, statuses, write_case

AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])  # RAS: i runs to the left, j to the back


def test_a_folder_of_all_formats(tiny_bundle: Bundle, tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    image = np.random.default_rng(0).integers(-200, 300, SHAPE).astype(np.int16)
    write_case(scans / "challenge.npz", prompts=None)
    nibabel.save(nibabel.Nifti1Image(image.T, AFFINE), scans / "nifti.nii.gz")
    nrrd.write(str(scans / "nrrd.nrrd"), image.T, {"space directions": np.diag([2.0, 2, 3])})
    write_series(scans / "patient" / "dicom", image, np.diag([2.0, 2.0, 3.0, 1.0]))
    words = ("--prompt", "liver in CT", "--no-preview", "--quiet")
    result = batch(tiny_bundle.folder, scans, out, *words)
    assert result.exit_code == 0, result.stderr
    own = {"challenge.npz", "nifti.nii.gz", "nrrd.nrrd", "patient/dicom.dcm"}
    assert own < set(files_below(out))
    assert nibabel.load(out / "nifti.nii.gz").affine.tolist() == AFFINE.tolist()
    result = batch(tiny_bundle.folder, scans, tmp_path / "one", "--format", "nrrd", *words)
    assert result.exit_code == 0, result.stderr
    assert set(statuses(tmp_path / "one")) == {"challenge", "nifti", "nrrd", "patient/dicom"}
    shapes = {
        path.name: read_labels(path).labels_dhw.shape for path in (tmp_path / "one").rglob("*.nrrd")
    }
    assert shapes == dict.fromkeys(
        ("challenge.nrrd", "nifti.nrrd", "nrrd.nrrd", "dicom.nrrd"), SHAPE
    )


def test_a_format_that_a_case_cannot_have_is_said_before_it_is_run(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    write_case(tmp_path / "scans" / "a.npz")
    out = tmp_path / "out"
    result = batch(tiny_bundle.folder, tmp_path / "scans", out, "--format", "dcm", "--no-preview")
    assert result.exit_code == 1
    assert "a: failed: " in result.stderr
    assert "DICOM" in result.stderr
    assert files_below(out) == ["summary.csv"]
