"""What every format says of its spacing and values is believed, but a challenge case's."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from medals_rt.io.registry import FORMATS, read_case
from medals_rt.planning.image_spacing import spacing_of_volume
from medals_rt.planning.policy import load_policy
from medals_rt.preprocessing.intensity import prepare_intensities
from tests.dicom import write_series

SHAPE_KJI = (24, 12, 16)
"""More slices than rows: the challenge's rule would move the largest spacing to the rows."""
SPACING_IJK_MM = (0.7, 0.7, 1.25)
SPACING_HWD_MM = (0.7, 0.7, 1.25)
VALUES_KJI = np.random.default_rng(0).integers(0, 201, SHAPE_KJI).astype(np.int16)
"""An MR whose values end below 255 by chance."""

NAMES = {
    "npz": "case.npz",
    "nifti": "scan.nii.gz",
    "nrrd": "scan.nrrd",
    "metaimage": "scan.mha",
    "freesurfer": "scan.mgz",
    "dicom": "series",
}
OVER_HTTP = {"dicomweb"}
"""Read by `read_dicom_case`, once fetched."""


def write(folder: Path, name: str) -> Path:
    path = folder / name
    if name == "series":
        write_series(path, VALUES_KJI, np.diag([*SPACING_IJK_MM, 1.0]))
    elif name.endswith(".npz"):
        np.savez_compressed(path, imgs=VALUES_KJI, spacing=SPACING_HWD_MM)
    elif name.endswith(".mgz"):
        affine = np.diag([*SPACING_IJK_MM, 1.0])
        nibabel.save(nibabel.freesurfer.MGHImage(VALUES_KJI.transpose(), affine), path)
    else:
        image = SimpleITK.GetImageFromArray(VALUES_KJI)
        image.SetSpacing(SPACING_IJK_MM)
        SimpleITK.WriteImage(image, str(path))
    return path


def test_every_format_is_here() -> None:
    assert {each.name for each in FORMATS if each.read_case} == NAMES.keys() | OVER_HTTP


@pytest.mark.parametrize("name", NAMES.values())
def test_spacing_and_values_of_files_are_believed(tmp_path: Path, name: str) -> None:
    volume = read_case(write(tmp_path, name)).volume
    spacing_hwd_mm, notes = spacing_of_volume(volume, load_policy().preset("paper"), "MRI")
    if name == "case.npz":  # its three spacings have no axes, and its values are prepared
        assert spacing_hwd_mm == pytest.approx((1.25, 0.7, 0.7))
        assert [note.code for note in notes] == ["spacing-repaired"]
        assert prepare_intensities(volume, "MRI").action == "unchanged"
        return
    assert spacing_hwd_mm == pytest.approx(SPACING_HWD_MM)
    assert notes == ()
    assert prepare_intensities(volume, "MRI").action == "percentiles"
