"""Challenge cases and results, `.npz`.

NumPy's own reader trusts what a file says about itself. This one reads each member's header, checks
the announced size against the stored one and against a limit before it allocates, and never
unpickles; see `safe_pickle` for `text_prompts`.

Results keep the file's own grid. A case that came from NIfTI or NRRD gets, beside `spacing` in
SimpleITK's order (x, y, z), the members `direction` (3 x 3, columns are the axes x, y, z in the LPS
frame) and `origin`, so that reading the result brings back its place. Without `direction` a file is
a challenge file, whose spacing is read as (H, W, D).
"""

from __future__ import annotations

import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from struct import error as struct_error
from tokenize import TokenError
from typing import IO, Any, Final

import numpy as np

from medals_rt.common.atomic_io import atomic_output
from medals_rt.common.errors import CaseError
from medals_rt.common.json_text import decode_json
from medals_rt.common.typing import HostArray
from medals_rt.io.case import Case, LabelFile, check_labels
from medals_rt.io.format import Format, Options, SegmentationOutput, stem
from medals_rt.io.safe_pickle import read_pickled_mapping
from medals_rt.io.volume import SourceGrid, Volume, check_image, check_shape, check_spacing
from medals_rt.prompts.prompt_set import PromptSet

_MAX_SMALL_BYTES: Final = 4 * 2**20
"""Limit for every member that isn't a volume."""

_ASSUMED: Final = "orientation_assumed"
"""Member of results whose direction isn't that of a patient, but taken to be."""

_MAX_HEADER: Final = 10_000
_CHUNK: Final = 2**20
_MAX_ITEM: Final = 8
"""Bytes a value may take at most."""

_MAX_RATIO: Final = 1040
"""Deflate can't shrink data further than about 1032 times; what announces more is lying."""


def _read_npz_case(path: Path, options: Options) -> Case:
    """Read `imgs`, `spacing`, and `text_prompts` and `gts` where they exist."""
    max_voxels = options.max_voxels
    with _open(path) as archive:
        members = _members(archive, path)
        if "imgs" not in members:
            raise CaseError(
                f"{path.name} has no 'imgs' (it has {_listed(members)}); "
                "a case needs 'imgs' (D, H, W) and 'spacing'",
                code="image-missing",
            )
        image = _read_volume(archive, members["imgs"], "imgs", max_voxels)
        check_image(image, max_voxels=max_voxels, what="imgs")
        spacing, source = _read_geometry(archive, members, path)
        prompts = (
            _read_prompts(archive, members["text_prompts"]) if "text_prompts" in members else None
        )
        truth = None
        if "gts" in members:
            truth = _read_volume(archive, members["gts"], "gts", max_voxels)
            truth = check_labels(truth, "gts", max_voxels=max_voxels)
            if truth.shape != image.shape:
                raise CaseError(
                    f"gts has shape {truth.shape}, imgs {image.shape}; they must be the same",
                    code="shapes-differ",
                )
            truth = source.to_canonical(truth)
    volume = Volume(
        source.to_canonical(image),
        spacing,
        name=stem(path, FORMATS),
        source=source,
    )
    return Case(volume, prompts, truth, path)


def _read_npz_labels(path: Path, options: Options) -> LabelFile:
    """Read the label map that `options` prefer, else the other; `spacing` may be missing."""
    max_voxels, prefer = options.max_voxels, options.prefer
    with _open(path) as archive:
        members = _members(archive, path)
        key = next((name for name in (prefer, "segs", "gts") if name in members), None)
        if key is None:
            raise CaseError(
                f"{path.name} has neither 'segs' nor 'gts' (it has {_listed(members)})",
                code="labels-missing",
            )
        labels = _read_volume(archive, members[key], key, max_voxels)
        labels = check_labels(labels, key, max_voxels=max_voxels)
        instances = None
        if key == "segs" and "instances" in members:
            instances = _read_volume(archive, members["instances"], "instances", max_voxels)
            instances = check_labels(instances, "instances", max_voxels=max_voxels)
            if instances.shape != labels.shape:
                raise CaseError(
                    f"instances have shape {instances.shape}, {key} {labels.shape}",
                    code="shapes-differ",
                )
        spacing, source = None, SourceGrid()
        if "spacing" in members:
            spacing, source = _read_geometry(archive, members, path)
        prompts = (
            _read_prompts(archive, members["text_prompts"]) if "text_prompts" in members else None
        )
    return LabelFile(
        source.to_canonical(labels),
        None if instances is None else source.to_canonical(instances),
        spacing,
        source,
        prompts,
        {int(key): str(text) for key, text in (prompts or {}).items() if _is_label(key)},
    )


def _write_npz(path: Path, output: SegmentationOutput) -> None:
    """Write `segs`, `spacing`, and if given `instances` and `text_prompts`, atomically.

    `text_prompts` is a pickled 0-d object array of a dict of text and int, since that is the
    challenge's layout; read it elsewhere with `allow_pickle=True` only if you trust who wrote it.
    """
    volume, prompts = output.case.volume, output.prompts
    source = volume.source
    fields: dict[str, Any] = {"segs": np.ascontiguousarray(volume.restore(output.labels_dhw))}
    if output.instances_dhw is not None:
        fields["instances"] = np.ascontiguousarray(volume.restore(output.instances_dhw))
    if source.affine_lps is None:
        fields["spacing"] = np.asarray(volume.spacing_hwd_mm, dtype=np.float64)
    else:
        affine = np.asarray(source.affine_lps, dtype=np.float64)
        spacing = np.asarray(source.spacing_ijk_mm, dtype=np.float64)
        fields["spacing"] = spacing
        fields["direction"] = affine[:3, :3] / spacing
        fields["origin"] = affine[:3, 3]
        if not source.has_orientation:
            fields[_ASSUMED] = np.array(True)
    if isinstance(prompts, PromptSet):
        prompts = prompts.as_case_mapping()
    if prompts is not None:
        plain = {str(key): value for key, value in prompts.items()}
        fields["text_prompts"] = np.array(plain, dtype=object)
    with atomic_output(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **fields)


def _is_label(key: str) -> bool:
    return re.fullmatch(r"[0-9]{1,9}", key) is not None


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct_error) as error:
        raise CaseError(
            f"{path.name} isn't a readable .npz file ({_short(error)})", code="npz-unreadable"
        ) from error


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    stored = path.stat().st_size
    for info in archive.infolist():
        key = info.filename.removesuffix(".npy")
        if key in members:
            raise CaseError(
                f"{path.name} holds {key[:40]!r} twice; write the file again",
                code="member-repeated",
            )
        if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise CaseError(
                f"{key[:40]!r} has a compression that isn't read; use numpy.savez",
                code="compression-unknown",
            )
        if info.file_size > info.compress_size * _MAX_RATIO or info.compress_size > stored:
            raise CaseError(
                f"{key[:40]!r} announces {info.file_size:,} bytes, more than its "
                f"{info.compress_size:,} stored ones can hold; the file is damaged, write it again",
                code="size-implausible",
            )
        members[key] = info
    return members


def _read_geometry(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], path: Path
) -> tuple[tuple[float, float, float], SourceGrid]:
    if "spacing" not in members:
        raise CaseError(
            f"{path.name} has no 'spacing' (it has {_listed(members)}); "
            "add the voxel size in mm, three numbers",
            code="spacing-missing",
        )
    spacing = check_spacing(_read_array(archive, members["spacing"], "spacing", _MAX_SMALL_BYTES))
    if "direction" not in members:
        return spacing, SourceGrid()
    direction = _read_array(archive, members["direction"], "direction", _MAX_SMALL_BYTES)
    affine = np.eye(4)
    if direction.size != 9:
        raise CaseError(
            f"direction has {direction.size} values, not 9; write a 3 x 3 matrix",
            code="direction-invalid",
        )
    affine[:3, :3] = direction.reshape(3, 3) * np.asarray(spacing)
    if "origin" in members:
        origin = _read_array(archive, members["origin"], "origin", _MAX_SMALL_BYTES)
        if origin.size != 3:
            raise CaseError(
                f"origin has {origin.size} values, not 3; write x, y, z in mm",
                code="origin-invalid",
            )
        affine[:3, 3] = origin.ravel()
    source = SourceGrid.from_affine(affine, is_assumed=_ASSUMED in members)
    return source.spacing_hwd_mm or spacing, source


def _read_volume(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, max_voxels: int
) -> HostArray:
    return _read_array(archive, info, name, max_voxels * _MAX_ITEM, max_voxels=max_voxels)


def _read_array(
    archive: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    name: str,
    max_bytes: int,
    *,
    max_voxels: int | None = None,
) -> HostArray:
    """Read one numeric member; nothing is allocated before its size is known to be right."""
    with _reading(name), archive.open(info) as file:
        shape, fortran, dtype = _read_header(file, name)
        if dtype.kind not in "biuf" or dtype.itemsize > _MAX_ITEM or dtype.subdtype is not None:
            raise CaseError(
                f"{name} has values of type {dtype}; give real numbers", code="value-type"
            )
        if max_voxels is not None:
            check_shape(shape, max_voxels=max_voxels, what=name)
        size = dtype.itemsize
        for length in shape:
            size *= length
        _check_size(file.tell() + size, info, name)
        if size > max_bytes:
            raise CaseError(
                f"{name} takes {size:,} bytes, more than the limit of {max_bytes:,}",
                code="member-too-large",
            )
        data = bytearray(size)
        _fill(file, data, name)
    array = np.frombuffer(data, dtype=dtype)
    array = array.reshape(shape[::-1]).transpose() if fortran else array.reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _read_prompts(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> dict[str, int | str]:
    """`text_prompts`: the challenge's pickled dict, or JSON text in a 0-d string array."""
    name = "text_prompts"
    if info.file_size > _MAX_SMALL_BYTES:
        raise CaseError(
            f"{name} takes {info.file_size:,} bytes, at most {_MAX_SMALL_BYTES:,} are read",
            code="prompts-too-large",
        )
    with _reading(name), archive.open(info) as file:
        shape, _, dtype = _read_header(file, name)
        if shape != ():
            raise CaseError(
                f"{name} has shape {shape}; expected a 0-d array of one dict", code="prompts-form"
            )
        data = file.read(_MAX_SMALL_BYTES)
    if dtype.kind == "O":
        return read_pickled_mapping(data)
    if dtype.kind != "U" or len(data) != dtype.itemsize:
        raise CaseError(
            f"{name} has values of type {dtype}; expected a dict or its JSON text",
            code="prompts-form",
        )
    return _json_prompts(str(np.frombuffer(data, dtype=dtype)[0]))


def _json_prompts(text: str) -> dict[str, int | str]:
    try:
        decoded = decode_json(text)
    except (ValueError, RecursionError) as error:
        raise CaseError(
            f"text_prompts isn't JSON ({_short(error)})", code="prompts-form"
        ) from error
    if not isinstance(decoded, dict) or not all(
        type(value) in {int, str} for value in decoded.values()
    ):
        raise CaseError(
            "text_prompts isn't a JSON object of label to sentence", code="prompts-form"
        )
    return decoded


def _read_header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise CaseError(
            f"{name} is of .npy version {version}, which isn't read", code="npy-version-unknown"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shape, fortran, dtype = readers[version](file, max_header_size=_MAX_HEADER)
    if any(type(length) is not int or length < 0 for length in shape):
        raise CaseError(
            f"{name} has shape {shape}; lengths are whole numbers from 0", code="header-damaged"
        )
    return shape, fortran, dtype


def _check_size(announced: int, info: zipfile.ZipInfo, name: str) -> None:
    if announced != info.file_size:
        raise CaseError(
            f"{name} announces {announced:,} bytes but {info.file_size:,} are stored; "
            "the file is damaged, write it again",
            code="size-contradicts",
        )


def _fill(file: IO[bytes], data: bytearray, name: str) -> None:
    view = memoryview(data)
    done = 0
    while done < len(view):
        part = file.read(min(_CHUNK, len(view) - done))
        if not part:
            raise CaseError(
                f"{name} ends after {done:,} of {len(view):,} bytes; write it again",
                code="file-truncated",
            )
        view[done : done + len(part)] = part
        done += len(part)
    file.read(1)  # At the end zipfile compares the checksum.


_DAMAGED: Final = (
    zipfile.BadZipFile, zlib.error, struct_error, EOFError, OSError, ValueError, TypeError,
    KeyError, IndexError, OverflowError, NotImplementedError, RuntimeError, MemoryError,
    SyntaxError, TokenError,
)  # fmt: skip
"""What zipfile, zlib and NumPy's header reader raise on a damaged member."""


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn whatever a damaged member makes the libraries raise into a `CaseError`."""
    try:
        yield
    except CaseError:
        raise
    except _DAMAGED as error:
        raise CaseError(
            f"{name} can't be read, the file is damaged ({_short(error)}); write it again",
            code="file-damaged",
        ) from error


def _listed(members: Mapping[str, object]) -> str:
    names = ", ".join(repr(name[:40]) for name in list(members)[:8])
    return names or "nothing"


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__


FORMATS: Final = (
    Format(
        name="npz",
        title="challenge .npz",
        endings=(".npz",),
        menu_title="NumPy (.npz)",
        read_case=_read_npz_case,
        read_labels=_read_npz_labels,
        write=_write_npz,
    ),
)
