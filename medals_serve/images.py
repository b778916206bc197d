"""Uploaded images and masks, and the images that are kept in memory for the next job."""

from __future__ import annotations

import gzip
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Final
from weakref import WeakSet

import numpy as np

from medals_rt.common.atomic_io import atomic_output
from medals_rt.common.optional_deps import import_optional
from medals_rt.inference.kept import KeptImage
from medals_rt.io.case import Case
from medals_rt.io.format import stem
from medals_rt.io.nifti_geometry import RAS_TO_LPS
from medals_rt.io.registry import DICOM_ENDINGS, ENDINGS, FORMATS, LABEL_ENDINGS, read_case
from medals_rt.io.volume import Volume

_LONGEST_NAME: Final = 128
_SHOWN: Final = {"i": "int16", "u": "uint16", "b": "uint8", "f": "float32"}


@dataclass(frozen=True, eq=False)
class Upload:
    """A file that a client sent.

    Attributes
    ----------
    name
        Its id, which is the name of its folder.
    path
        The file, under a name that this server gave it.
    shown
        What its user calls it, for people.
    size_bytes
        Of the file.
    """

    name: str
    path: Path
    shown: str
    size_bytes: int


@dataclass(frozen=True, eq=False)
class ServedImage:
    """An image that a client uploaded; its masks and jobs lie in its folder.

    Attributes
    ----------
    found
        What `reader_process.describe_image` said of it.
    kept
        What jobs leave for later ones of the same image; None: nothing.
    series, select
        As for `registry.read_case`.
    """

    upload: Upload
    found: Mapping[str, Any]
    kept: KeptImage | None = None
    series: str | None = None
    select: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its id."""
        return self.upload.name

    @property
    def shown(self) -> str:
        """What its user calls it."""
        return self.upload.shown

    @property
    def grid(self) -> dict[str, Any]:
        """Its name and grid, for a reader of what is drawn on it."""
        return {"name": stem(Path(self.shown), FORMATS), **self.found["grid"]}

    @property
    def folder(self) -> Path:
        """Where everything about it lies."""
        return self.upload.path.parent

    def forget(self) -> None:
        """Keep nothing that jobs left, now and later."""
        if self.kept is not None:
            self.kept.close()


@dataclass(frozen=True, eq=False)
class ServedMask:
    """A label map that a client drew on an image, named by its id."""

    upload: Upload
    image: str
    labels: tuple[int, ...]

    @property
    def name(self) -> str:
        """Its id."""
        return self.upload.name


def shown_name(filename: str, default: str) -> str:
    """Return a client's name for a file as one printable line without folders."""
    last = PureWindowsPath(PurePosixPath(filename).name).name
    line = "".join(letter if letter.isprintable() else " " for letter in last).strip()
    return line[-_LONGEST_NAME:] or default


def stored_name(shown: str, *, labels: bool = False) -> str:
    """Return the name under which a file is stored: only its ending is its client's.

    A file without an ending that is known has none; it may be DICOM. Its name is no word then, for
    it is replaced in messages, which may tell to "upload" something.
    """
    lower = shown.lower()
    endings = LABEL_ENDINGS if labels else (*ENDINGS, *DICOM_ENDINGS)
    return "upload" + max((each for each in endings if lower.endswith(each)), key=len, default="_")


class CaseCache:
    """Images as they were read, the last ones used, up to so many bytes of voxels."""

    def __init__(self, max_bytes: int, max_voxels: int) -> None:
        self._max_bytes = max_bytes
        self._max_voxels = max_voxels
        self._cases: OrderedDict[str, Case] = OrderedDict()
        self._forgotten: WeakSet[ServedImage] = WeakSet()
        self._lock = threading.Lock()
        self._reading = threading.Lock()

    @property
    def bytes(self) -> int:
        """Bytes of voxels that are kept."""
        with self._lock:
            return sum(case.volume.image_dhw.nbytes for case in self._cases.values())

    def case(self, image: ServedImage) -> Case:
        """Return an image, read again where it was not kept.

        Raises
        ------
        CaseError
            As `registry.read_case`; the file was read before, so that this is rare.
        """
        if (kept := self._kept(image)) is not None:
            return kept
        with self._reading:  # one at a time: each takes the memory of an image
            if (kept := self._kept(image)) is not None:  # another thread has read it
                return kept
            case = read_case(
                image.upload.path,
                max_voxels=self._max_voxels,
                series=image.series,
                select=image.select,
            )
            shown = Path(image.shown)
            volume = replace(case.volume, name=stem(shown, FORMATS))
            case = replace(case, volume=volume, path=shown)
            with self._lock:
                if image in self._forgotten:  # while it was read
                    return case
                self._cases[image.name] = case
                held = sum(each.volume.image_dhw.nbytes for each in self._cases.values())
                while held > self._max_bytes and self._cases:
                    _, dropped = self._cases.popitem(last=False)
                    held -= dropped.volume.image_dhw.nbytes
            return case

    def _kept(self, image: ServedImage) -> Case | None:
        with self._lock:
            case = self._cases.get(image.name)
            if case is not None:
                self._cases.move_to_end(image.name)
            return case

    def __contains__(self, image: ServedImage) -> bool:
        with self._lock:
            return image.name in self._cases

    def forget(self, image: ServedImage) -> None:
        """Keep an image no longer, nor again where a job still reads it."""
        with self._lock:
            self._forgotten.add(image)
            self._cases.pop(image.name, None)


def write_volume(path: Path, volume: Volume) -> None:
    """Write an image for display: NIfTI, on the file's own grid, gzipped as fast as can be.

    Values keep their kind in at most two bytes for whole numbers that fit, else float32.
    """
    array_kji = np.ascontiguousarray(volume.restore(volume.image_dhw))
    write_on_grid(path, displayed(array_kji), volume)


def write_on_grid(path: Path, array_kji: Any, volume: Volume) -> None:
    """Write an array on the grid of a volume's file as NIfTI; see `write_placed`."""
    write_placed(path, array_kji, volume.affine_lps)


def write_placed(path: Path, array_kji: Any, affine_lps: Any) -> None:
    """Write an array as NIfTI, gzipped as fast as can be.

    `affine_lps` is 4 x 4, index `(i, j, k, 1)` to millimeters in the LPS frame.
    """
    nibabel = import_optional("NiBabel", "an image as NIfTI")
    affine = RAS_TO_LPS @ affine_lps
    image = nibabel.Nifti1Image(array_kji.transpose(), affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    with (
        atomic_output(path) as temporary,
        temporary.open("wb") as file,
        gzip.GzipFile("", "wb", 1, file, mtime=0) as packed,  # neither name nor time in its header
    ):
        packed.write(image.to_bytes())


def displayed(array: Any) -> Any:
    """Return voxels in a type that is fit for display; see `write_volume`."""
    kind = _SHOWN[array.dtype.kind]
    if array.dtype.kind in "iu":
        limits = np.iinfo(kind)
        if array.min() < limits.min or array.max() > limits.max:
            kind = "float32"
        elif array.dtype.itemsize <= 2:
            kind = array.dtype.name
    return array.astype(kind, copy=False)
