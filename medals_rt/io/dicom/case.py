"""DICOM series as cases, with pydicom (extra "dicom")."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from medals_rt.common.errors import CaseError
from medals_rt.common.notes import Note, warning
from medals_rt.common.typing import HostArray
from medals_rt.io.case import Case
from medals_rt.io.dicom.files import (
    DicomFile,
    dicom_files,
    printable,
    read_header,
    read_whole,
    reading,
    require_pydicom,
    silence,
)
from medals_rt.io.dicom.series import Image, Series, choose_series, group_series, is_image
from medals_rt.io.dicom.slices import Stack, slices_of, stack_slices
from medals_rt.io.volume import SourceGrid, Volume, check_shape, check_spacing

MODALITIES: Final = {"CT": "CT", "MR": "MRI", "PT": "PET", "US": "US"}
"""DICOM's names of modalities, and those of prompts."""

_LARGEST_INTERCEPT: Final = 2**30
_PIXEL_ELEMENTS: Final = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


@dataclass(frozen=True, eq=False)
class DicomSource:
    """What a DICOM SEG needs to know of the series that was segmented.

    Attributes
    ----------
    headers
        pydicom data sets without pixels, in the order of the volume's slices; one for a multi-frame
        file.
    frames
        For each slice of the volume its frame in that file, from 0; for single-frame files zeros.
    """

    headers: tuple[Any, ...]
    frames: tuple[int, ...]

    @property
    def multi_frame(self) -> bool:
        """Whether one file holds all slices."""
        return "NumberOfFrames" in self.headers[0]


def read_dicom_case(path: Path, *, max_voxels: int, series: str | None = None) -> Case:
    """Read one series of a folder, a zip or a multi-frame file. See `cases.read_case`.

    Slices are sorted along their normal, and their values scaled by each slice's own slope and
    intercept, to Hounsfield units for CT.

    Raises
    ------
    CaseError
        If there is no series, more than one and `series` doesn't choose, or the one taken is no
        regular grid of gray slices; the message says what was found.
    MissingDependencyError
        If pydicom isn't installed.
    """
    require_pydicom()
    with (
        silence(),
        reading(path.name),
        dicom_files(path, max_voxels=max_voxels) as (files, others),
    ):
        images, without_image = _images(files)
        if not images:
            raise CaseError(
                f"{path} holds no DICOM image ({without_image} DICOM files without one, {others} "
                "other files); give the folder of a series"
            )
        chosen = choose_series(group_series(images), series, str(path))
        stack = stack_slices(slices_of(chosen), chosen)
        rows, columns = stack.slices[0].shape
        shape = (len(stack.slices), rows, columns)
        check_shape(shape, max_voxels=max_voxels, what=f"the series {chosen}")
        _check_decoders(chosen)
        array_kji = _read_pixels(stack)
    source = SourceGrid.from_affine(stack.affine_lps)
    spacing = check_spacing(source.spacing_hwd_mm or ())
    volume = Volume(source.to_canonical(array_kji), spacing, _case_name(path), source)
    in_order = dict.fromkeys(each.image for each in stack.slices)
    origin = DicomSource(
        tuple(image.header for image in in_order), tuple(each.frame for each in stack.slices)
    )
    return Case(
        volume,
        None,
        None,
        path,
        header=origin,
        modality=MODALITIES.get(chosen.modality),
        notes=_notes(chosen, others, without_image),
    )


def _images(files: list[DicomFile]) -> tuple[list[Image], int]:
    """Images among DICOM files, and the number of files that hold none."""
    every = [Image(file, read_header(file)) for file in files]
    images = [image for image in every if is_image(image)]
    return images, len(every) - len(images)


def _check_decoders(series: Series) -> None:
    """Refuse compressed pixels whose decoder isn't installed, or isn't known."""
    from pydicom.pixels.decoders.base import get_decoder

    for image in series.images:
        syntax = image.header.file_meta.TransferSyntaxUID
        name = printable(syntax.name)
        try:
            decoder = get_decoder(syntax)
        except NotImplementedError as error:
            raise CaseError(
                f"{image.file.name} is stored as {name}, which isn't read; convert the series to "
                "Explicit VR Little Endian"
            ) from error
        if not decoder.is_available:
            needed = "; or ".join(decoder.missing_dependencies)
            raise CaseError(
                f"{image.file.name} is compressed as {name}, for which no decoder is installed; "
                f"install one ({needed}) or convert the series to Explicit VR Little Endian"
            )


def _read_pixels(stack: Stack) -> HostArray:
    """Values of every slice, `(k, j, i)`: int16 (int32 where one needs it) or float32."""
    from pydicom.pixels.utils import pixel_array

    rows, columns = stack.slices[0].shape
    array: HostArray = np.empty((len(stack.slices), rows, columns), dtype=_value_type(stack))
    loaded: tuple[DicomFile | None, Any] = (None, None)
    for number, each in enumerate(stack.slices):
        file, header = each.image.file, each.image.header
        if loaded[0] is not file:
            loaded = (file, read_whole(file, _pixel_bytes(each.image)))
        data = loaded[1]
        with reading(file.name):
            if not any(element in data for element in _PIXEL_ELEMENTS):
                raise CaseError(f"{file.name} has no pixels; export the series anew")
            if (data.Rows, data.Columns) != (header.Rows, header.Columns):
                raise CaseError(f"{file.name} changed while it was read; try again")
            stored = pixel_array(data, index=each.frame)
            if stored.shape != (rows, columns):
                raise CaseError(
                    f"{file.name} holds pixels of shape {stored.shape}, not {(rows, columns)}"
                )
            if array.dtype.kind == "f":
                array[number] = stored.astype(np.float64) * each.slope + each.intercept
                continue
            values = stored.astype(np.int64) + int(each.intercept)
            limits = np.iinfo(array.dtype)
            if values.min() < limits.min or values.max() > limits.max:
                array = array.astype(np.int32)
            array[number] = values
    return array


def _pixel_bytes(image: Image) -> int:
    """Bytes of a file's pixels when they aren't compressed."""
    header = image.header
    with reading(image.file.name):
        frames = int(header.get("NumberOfFrames") or 1)
        return int(header.Rows * header.Columns * frames * -(-int(header.BitsAllocated) // 8))


def _value_type(stack: Stack) -> type[np.int16 | np.float32]:
    """Whole numbers where nothing but a whole intercept is added, else float32."""
    for each in stack.slices:
        with reading(each.image.file.name):
            short = int(each.image.header.BitsAllocated) <= 16
        whole = each.slope == 1 and float(each.intercept).is_integer()
        if not (short and whole and abs(each.intercept) < _LARGEST_INTERCEPT):
            return np.float32
    return np.int16


def _notes(series: Series, others: int, without_image: int) -> tuple[Note, ...]:
    notes = []
    if others or without_image:
        text = (
            f"passed over {others} files that aren't DICOM and {without_image} DICOM files "
            "without an image"
        )
        notes.append(Note("files-passed-over", text))
    header = series.images[0].header
    unscaled = "RescaleSlope" not in header and "NumberOfFrames" not in header
    if series.modality == "CT" and unscaled:
        text = "the CT names no rescale slope: its values are taken as Hounsfield units"
        notes.append(warning("rescale-assumed", text))
    return tuple(notes)


def _case_name(path: Path) -> str:
    """Name of the folder or file: never a patient's name."""
    resolved = path.resolve()
    return resolved.name if path.is_dir() else resolved.stem
