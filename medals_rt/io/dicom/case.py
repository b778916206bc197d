"""DICOM series as cases, with pydicom (extra "dicom")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np

from medals_rt.common.choices import MODALITY_OF_DICOM, traits_of_dicom
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
from medals_rt.io.dicom.headers import agreed_value
from medals_rt.io.dicom.selection import check_one_image, parse_selection, select_slices
from medals_rt.io.dicom.series import (
    Image,
    Series,
    check_identity,
    choose_series,
    group_series,
    is_image,
    kinds_of,
    pixel_bytes,
    without_copies,
)
from medals_rt.io.dicom.slices import Slice, Stack, slices_of, stack_slices
from medals_rt.io.volume import SourceGrid, Volume, check_shape, check_spacing

_LARGEST_INTERCEPT: Final = 2**30
_JPEG_EXTENDED: Final = "1.2.840.10008.1.2.4.51"
_DECODERS: Final = {
    "High-Throughput": "pip install pylibjpeg pylibjpeg-openjpeg",
    "2000": "pip install pylibjpeg pylibjpeg-openjpeg, or pip install python-gdcm",
    "JPEG-LS": "pip install pyjpegls, or pip install python-gdcm",
    "": "pip install python-gdcm (BSD license), or pip install pylibjpeg pylibjpeg-libjpeg (GPL)",
}
"""What installs a decoder, by a part of the compression's name; the first that fits counts."""

_OVERLAP: Final = 1.5
"""Thickness in slice distances from which slices are said to overlap."""

_NAMED: Final = 3
_DIRECTORY: Final = "DICOMDIR"

_PIXEL_ELEMENTS: Final = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


@dataclass(frozen=True, eq=False)
class DicomSource:
    """What DICOM results need to know of the series that was segmented.

    Attributes
    ----------
    slices
        In the order of the volume's slices, with headers without pixels.
    distance_mm
        Distance of neighboring slices.
    """

    slices: tuple[Slice, ...]
    distance_mm: float


def read_dicom_case(
    path: Path, *, max_voxels: int, series: str | None = None, select: Sequence[str] = ()
) -> Case:
    """Read one series of a folder, a zip or a multi-frame file. See `registry.read_case`.

    Slices are sorted along their normal, and their values scaled by each slice's own slope and
    intercept, to Hounsfield units for CT.

    Parameters
    ----------
    series
        SeriesNumber of the series, or the beginning of its UID.
    select
        Which of its slices, as ``KEY=VALUE``; see `selection.KEYS`.

    Raises
    ------
    CaseError
        If there is no series, more than one and `series` doesn't choose, or the one taken is no
        regular grid of gray slices of one patient; the message says what was found. A folder
        whose DICOM files hold no image has the code ``"no-images"``.
    MissingDependencyError
        If pydicom isn't installed.
    """
    require_pydicom()
    selection = parse_selection(select)
    with (
        silence(),
        reading(path.name),
        dicom_files(path, max_voxels=max_voxels) as (files, others),
    ):
        images, without_image = _images(files)
        if not images:
            kinds = kinds_of(without_image) or "none"
            elsewhere = "; `medals-rt batch` takes folders of other files"
            instead = elsewhere if others and not without_image else ""
            raise CaseError(
                f"{path} holds no DICOM image (DICOM files: {kinds}; {len(others)} other files); "
                f"give the folder of a series{instead}",
                code="no-images" if without_image else "no-dicom",
            )
        found = choose_series(group_series(images), series, str(path))
        chosen, copies = without_copies(found)
        slices = select_slices(slices_of(chosen), selection, chosen)
        check_identity([each.image for each in slices], chosen)
        mixed = check_one_image(slices, selection, chosen)
        stack = stack_slices(slices, chosen)
        rows, columns = stack.slices[0].shape
        shape = (len(stack.slices), rows, columns)
        check_shape(shape, max_voxels=max_voxels, what=f"the series [{chosen}]")
        _check_decoders(stack)
        _check_scaling(stack.slices, chosen)
        array_kji, padding = _read_pixels(stack)
    source = SourceGrid.from_affine(
        stack.affine_lps, frame_uid=str(stack.slices[0].image.header.get("FrameOfReferenceUID", ""))
    )
    spacing = check_spacing(source.spacing_hwd_mm or ())
    return Case(
        Volume(source.to_canonical(array_kji), spacing, _case_name(path), source),
        None,
        None,
        path,
        header=DicomSource(stack.slices, stack.distance_mm),
        modality=MODALITY_OF_DICOM.get(chosen.modality),
        notes=(
            *_passed_over(others, without_image),
            *copies,
            *mixed,
            *padding,
            *_notes(stack, chosen),
        ),
        origin={
            "series_instance_uid": chosen.uid,
            "series_number": chosen.number,
            "series_description": chosen.description,
            "modality": chosen.modality,
            **_body(stack),
            "images": len(stack.slices),
            "selected": {key: list(values) for key, values in selection.items()},
        },
    )


def list_series(path: Path, *, max_voxels: int) -> list[Series]:
    """List the series of a folder or a zip, by their numbers; no pixels are read.

    Raises
    ------
    CaseError
        As `read_dicom_case`.
    """
    require_pydicom()
    with (
        silence(),
        reading(path.name),
        dicom_files(path, max_voxels=max_voxels) as (files, _),
    ):
        images, _ = _images(files)
        return group_series(images)


def _images(files: list[DicomFile]) -> tuple[list[Image], list[Image]]:
    """DICOM files that hold images, and those that hold none."""
    every = [Image(file, read_header(file)) for file in files]
    holds = [is_image(each) for each in every]
    return (
        [each for each, image in zip(every, holds, strict=True) if image],
        [each for each, image in zip(every, holds, strict=True) if not image],
    )


def _check_decoders(stack: Stack) -> None:
    """Refuse compressed pixels whose decoder isn't installed, or isn't known."""
    from pydicom.pixels.decoders.base import get_decoder

    for image in _in_order(stack):
        syntax = image.header.file_meta.TransferSyntaxUID
        name = printable(syntax.name)
        try:
            decoder = get_decoder(syntax)
        except NotImplementedError as error:
            raise CaseError(
                f"{image.file.name} is stored as {name}, which isn't read; convert the series to "
                "Explicit VR Little Endian",
                code="transfer-syntax-unknown",
            ) from error
        usable = set(decoder.available_plugins)
        if str(syntax) == _JPEG_EXTENDED and int(image.header.get("BitsStored") or 0) > 8:
            usable -= {"pillow"}  # It decodes 8 bits only.
            name = f"{name} with more than 8 bits"
        if decoder.is_available and (usable or not decoder.available_plugins):
            continue
        advice = next(text for word, text in _DECODERS.items() if word in name)
        raise CaseError(
            f"{image.file.name} is compressed as {name}, for which no decoder is installed; "
            f"{advice}, or convert the series to Explicit VR Little Endian",
            code="decoder-missing",
        )


def _body(stack: Stack) -> dict[str, str | None]:
    """Part and side of the body for the report, where the series names one that is legal."""
    part, _ = agreed_value(stack.slices, "BodyPartExamined")
    side, _ = agreed_value(stack.slices, "Laterality", "ImageLaterality")
    return {"body_part": part, "laterality": side}


def _in_order(stack: Stack) -> list[Image]:
    """Files of the slices, each once."""
    return list(dict.fromkeys(each.image for each in stack.slices))


def _read_pixels(stack: Stack) -> tuple[HostArray, tuple[Note, ...]]:
    """Values of every slice, `(k, j, i)`: int16 (int32 where one needs it) or float32.

    Padding that is brighter than the whole image gets its lowest value.
    """
    from pydicom.pixels.utils import pixel_array

    rows, columns = stack.slices[0].shape
    array: HostArray = np.empty((len(stack.slices), rows, columns), dtype=_value_type(stack))
    padded: dict[int, HostArray] = {}
    loaded: tuple[DicomFile | None, Any] = (None, None)
    for number, each in enumerate(stack.slices):
        file, header = each.image.file, each.image.header
        if loaded[0] is not file:
            loaded = (file, read_whole(file, pixel_bytes(each.image)))
        data = loaded[1]
        with reading(file.name):
            if not any(element in data for element in _PIXEL_ELEMENTS):
                raise CaseError(
                    f"{file.name} has no pixels; export the series again", code="pixels-missing"
                )
            if (data.Rows, data.Columns) != (header.Rows, header.Columns):
                raise CaseError(
                    f"{file.name} changed while it was read; try again", code="file-changed"
                )
            stored = pixel_array(data, index=each.frame)
            if stored.shape != (rows, columns):
                raise CaseError(
                    f"{file.name} holds pixels of shape {stored.shape}, not {(rows, columns)}",
                    code="shape-contradicts",
                )
            values: HostArray
            if array.dtype.kind == "f":
                values = stored.astype(np.float64) * each.slope + each.intercept
            else:
                values = stored.astype(np.int64) + int(each.intercept)
                limits = np.iinfo(array.dtype)
                if values.min() < limits.min or values.max() > limits.max:
                    array = array.astype(np.int32)
            array[number] = values
            padding = _padding(data, stored)
            inside = values[~padding]
            if not inside.size or (padding.any() and values[padding].max() > inside.min()):
                padded[number] = padding
    return array, _blank_padding(array, padded)


def _padding(data: Any, stored: HostArray) -> HostArray:
    """Pixels that the file itself calls padding.

    Files write the value with another sign than their pixels have, or with more bits.
    """
    kind = {"FloatPixelData": "Float", "DoubleFloatPixelData": "DoubleFloat"}
    prefix = next((kind[name] for name in kind if name in data), "")
    value = data.get(f"{prefix}PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, dtype=bool)
    limit = data.get(f"{prefix}PixelPaddingRangeLimit")
    limit = value if limit is None else limit
    if not prefix:
        value, limit = (_as_stored(int(each), data) for each in (value, limit))
    low, high = sorted((value, limit))
    padding: HostArray = (stored >= low) & (stored <= high)
    return padding


def _as_stored(value: int, data: Any) -> int:
    """Return what pixels of these bits are where their tag says `value`."""
    size = 1 << int(data.BitsStored)
    value %= size
    return value - size if int(data.PixelRepresentation) and value >= size // 2 else value


def _blank_padding(array: HostArray, padded: Mapping[int, HostArray]) -> tuple[Note, ...]:
    """Set padding to the lowest value of the image where it is brighter than all of it.

    Padding in the range of the image stays, with a warning: files name a padding value that is a
    true one elsewhere.

    Parameters
    ----------
    array
        The image, which is changed.
    padded
        By slice, the pixels of padding; of slices that hold something darker, or nothing else.
    """
    if not padded:
        return ()
    real = [
        array[number][~padded[number]] if number in padded else array[number].ravel()
        for number in range(len(array))
    ]
    real = [values for values in real if values.size]
    if not real:
        return ()
    lowest, highest = min(each.min() for each in real), max(each.max() for each in real)
    values = np.concatenate([array[number][padding] for number, padding in padded.items()])
    if values.max() <= lowest:
        return ()
    if values.min() <= highest:
        text = (
            f"{values.size:,} voxels have the value that the file calls padding, which lies in "
            "the range of the image: they are taken as they are"
        )
        return (warning("padding-in-range", text),)
    for number, padding in padded.items():
        array[number][padding] = lowest
    text = f"{values.size:,} voxels of padding, brighter than the image, were set to {lowest:g}"
    return (Note("padding-blanked", text),)


def _value_type(stack: Stack) -> type[np.int16 | np.float32]:
    """Whole numbers where nothing but a whole intercept is added, else float32."""
    for each in stack.slices:
        with reading(each.image.file.name):
            short = int(each.image.header.BitsAllocated) <= 16
        whole = each.slope == 1 and float(each.intercept).is_integer()
        if not (short and whole and abs(each.intercept) < _LARGEST_INTERCEPT):
            return np.float32
    return np.int16


def _may_be_slice(file: DicomFile) -> bool:
    """Whether a file that isn't DICOM may have been a slice: an empty one, or one named so."""
    name = PurePosixPath(file.name).name
    if name == _DIRECTORY or name.startswith((".", "_")):  # also what macOS and Hadoop leave
        return False
    return not file.size or name.lower().endswith(".dcm")


def _passed_over(others: list[DicomFile], without_image: list[Image]) -> tuple[Note, ...]:
    """Note what was passed over, and warn where it may have been slices."""
    if not others and not without_image:
        return ()
    counts = []
    doubtful = [each for each in others if _may_be_slice(each)]
    if others:
        count = len(others)
        counts.append(
            "1 file that isn't DICOM" if count == 1 else f"{count} files that aren't DICOM"
        )
    if without_image:
        count, kinds = len(without_image), kinds_of(without_image)
        files = "1 DICOM file" if count == 1 else f"{count} DICOM files"
        counts.append(f"{files} without an image ({kinds})")
    text = f"passed over {' and '.join(counts)}"
    if not doubtful:
        return (Note("files-passed-over", text),)
    named = ", ".join(each.name for each in doubtful[:_NAMED])
    more = f" and {len(doubtful) - _NAMED} more" if len(doubtful) > _NAMED else ""
    text = f"{text}; slices may be missing, for {named}{more} may be damaged or cut off"
    return (warning("files-passed-over", text),)


def _notes(stack: Stack, series: Series) -> tuple[Note, ...]:
    notes = list(stack.notes)
    first = stack.slices[0]
    if traits_of_dicom(series.modality).in_hounsfield:
        notes += next(filter(None, map(_unit_notes, stack.slices)), [])
    thickness = first.thickness_mm or 0.0
    if thickness > _OVERLAP * stack.distance_mm:
        text = (
            f"slices of {thickness:g} mm lie {stack.distance_mm:g} mm apart: they overlap, or are "
            "of several acquisitions"
        )
        notes.append(Note("slices-overlap", text))
    return tuple(notes)


def _check_scaling(slices: Sequence[Slice], series: Series) -> None:
    """Refuse slices of which some are scaled and others don't say how.

    Raises
    ------
    CaseError
        Code `rescale-mixed`.
    """
    missing = [each for each in slices if "RescaleSlope" not in _scaling(each)]
    scaled = [
        each
        for each in slices
        if "RescaleSlope" in _scaling(each) and (each.slope, each.intercept) != (1.0, 0.0)
    ]
    if missing and scaled:
        raise CaseError(
            f"the series [{series}] mixes scaled values and values without a rescale slope: "
            f"{scaled[0].image.file.name} has one, {missing[0].image.file.name} and "
            f"{len(missing) - 1} more have none; export it again",
            code="rescale-mixed",
        )


def _scaling(each: Slice) -> Any:
    """Part of a slice's header that says how its values are scaled."""
    for groups in each.groups:
        if "PixelValueTransformationSequence" in groups:
            return groups.PixelValueTransformationSequence[0]
    return each.image.header


def _unit_notes(each: Slice) -> list[Note]:
    """Warn where a CT doesn't say that its values are Hounsfield units."""
    scaling = _scaling(each)
    if "RescaleSlope" not in scaling:
        text = "the CT names no rescale slope: its values are taken as Hounsfield units"
        return [warning("rescale-assumed", text)]
    unit = printable(scaling.get("RescaleType") or "HU")
    if unit.upper().startswith("HU"):
        return []
    text = f"the CT says that its values are {unit!r}: they are taken as Hounsfield units"
    return [warning("rescale-type", text)]


def _case_name(path: Path) -> str:
    """Name of the folder or file: never a patient's name."""
    resolved = path.resolve()
    return resolved.name if path.is_dir() else resolved.stem
