"""Synthetic DICOM series, written with pydicom alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

Change = Callable[[int, Dataset], Any]


def slice_dataset(
    array: np.ndarray, affine_lps: np.ndarray, k: int, uids: dict[str, str]
) -> Dataset:
    """Slice `k` of `(k, j, i)` int16 Hounsfield units."""
    spacing = np.linalg.norm(affine_lps[:3, :3], axis=0)
    cosines = affine_lps[:3, :3] / spacing
    position = affine_lps[:3, :3] @ (0, 0, k) + affine_lps[:3, 3]
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = CTImageStorage
    data.SOPInstanceUID = f"{uids['series']}.{k + 1}"
    data.StudyInstanceUID, data.SeriesInstanceUID = uids["study"], uids["series"]
    data.FrameOfReferenceUID = uids["frame"]
    data.Modality, data.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.PatientName, data.PatientID = "Phantom^Made Up", "none"
    data.PatientBirthDate = data.PatientSex = data.AccessionNumber = ""
    data.StudyID, data.StudyDate, data.StudyTime = "1", "20260101", "120000"
    data.SeriesNumber, data.InstanceNumber = 3, k + 1
    data.SeriesDescription = "made up"
    data.Manufacturer = "nobody"
    data.ImagePositionPatient = [f"{value:.10g}" for value in position]
    data.ImageOrientationPatient = [f"{value:.10g}" for value in cosines[:, :2].T.ravel()]
    data.PixelSpacing = [f"{spacing[1]:.10g}", f"{spacing[0]:.10g}"]
    data.SliceThickness = f"{spacing[2]:.10g}"
    data.Rows, data.Columns = array.shape[1:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelRepresentation = 0
    data.RescaleSlope, data.RescaleIntercept = "1", "-1024"
    data.PixelData = (array[k].astype(np.int32) + 1024).astype("<u2").tobytes()
    return data


def write_series(
    folder: Path,
    array: np.ndarray,
    affine_lps: np.ndarray,
    *,
    change: Change | None = None,
    skip: tuple[int, ...] = (),
    seed: int = 0,
) -> list[Dataset]:
    """Write `(k, j, i)` int16 as a CT series under shuffled names.

    `change(k, dataset)` may alter a slice before it is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    uids = {"study": "1.2.3.4", "series": f"1.2.3.4.{seed + 1}", "frame": "1.2.3.5"}
    names = np.random.default_rng(seed).permutation(len(array))
    written = []
    for k in range(len(array)):
        if k in skip:
            continue
        data = slice_dataset(array, affine_lps, k, uids)
        if change is not None:
            change(k, data)
        data.save_as(folder / f"IM{names[k]:04d}", enforce_file_format=True)
        written.append(data)
    return written
