"""Surfaces of results as GLB (glTF 2.0) and STL, with scikit-image (extra "mesh").

Coordinates are millimeters of the patient (LPS), as in 3D Slicer's STL files; faces look outward
and close. A surface crosses the edges between voxel centers inside and outside at the place where
it encloses exactly the volume of the voxels: halfway for large objects, further out for small ones,
whose corners it cuts. Most of its faces can be left out without changing the shape.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from medals_rt.common.atomic_io import atomic_output
from medals_rt.common.errors import CaseError
from medals_rt.common.optional_deps import import_optional
from medals_rt.common.typing import HostArray
from medals_rt.io.case import Case
from medals_rt.io.dicom.results import number_objects, object_color, object_name
from medals_rt.io.format import Format, SegmentationOutput
from medals_rt.io.palette import Rgb

_HALVINGS: Final = 20
_VOLUME_TOLERANCE: Final = 0.02
_ARRAY_BUFFER: Final = 34962
_ELEMENT_BUFFER: Final = 34963
_FLOAT: Final = 5126
_UNSIGNED: Final = 5125


@dataclass(frozen=True, eq=False)
class ClosedSurface:
    """A closed surface: vertices ``(n, 3)`` in millimeters, and three of them a face ``(m, 3)``."""

    name: str
    rgb: Rgb
    vertices_mm: HostArray
    faces: HostArray


def surface_of(mask_dhw: HostArray, affine: HostArray) -> tuple[HostArray, HostArray]:
    """Trace the surface of a mask.

    Parameters
    ----------
    mask_dhw
        ``(D, H, W)``, bool, with at least one voxel.
    affine
        From voxels `(w, h, d)` to millimeters.

    Returns
    -------
    tuple of HostArray
        Vertices ``(n, 3)`` in millimeters, float64, and faces ``(m, 3)``, int64, counterclockwise
        as seen from outside. It encloses the volume of the mask's voxels.
    """
    import_optional("scikit-image", "a mesh")
    from skimage.measure import marching_cubes

    trace: Any = marching_cubes
    padded = np.pad(mask_dhw, 1)
    middles, faces, _, _ = trace(padded.astype(np.float32), 0.5, allow_degenerate=False)
    middles = middles.astype(np.float64)
    outward = _outward(middles, padded)
    faces = faces.astype(np.int64)
    if _volume(middles, faces) < 0:
        faces = faces[:, ::-1]
    low, high = -0.5, 0.5
    for _ in range(_HALVINGS):
        shift = (low + high) / 2
        low, high = (
            (shift, high)
            if _volume(middles + shift * outward, faces) < mask_dhw.sum()
            else (low, shift)
        )
    places_whd = (middles + (low + high) / 2 * outward - 1)[:, ::-1]
    # turning the axes around mirrors, as an affine may do once more
    if np.linalg.det(affine[:3, :3]) > 0:
        faces = faces[:, ::-1]
    return places_whd @ affine[:3, :3].T + affine[:3, 3], faces


def _outward(middles: HostArray, padded: HostArray) -> HostArray:
    """Direction from inside to outside of each vertex between two voxels; zero for others."""
    below = np.floor(middles).astype(np.int64)
    between = middles - below > 0.25
    found = np.zeros_like(middles)
    on_edge = between.sum(axis=1) == 1
    axis = between[on_edge].argmax(axis=1)
    inside_below = padded[tuple(below[on_edge].T)]
    found[np.flatnonzero(on_edge), axis] = np.where(inside_below, 1.0, -1.0)
    return found


def _volume(vertices: HostArray, faces: HostArray) -> float:
    """Volume that a closed surface encloses; negative where its faces look inward."""
    first, second, third = (vertices[faces[:, corner]] for corner in range(3))
    return float(np.einsum("ij,ij->", first, np.cross(second, third))) / 6


def reduced(
    vertices_mm: HostArray, faces: HostArray, reduction: float
) -> tuple[HostArray, HostArray]:
    """Leave out faces of a closed surface, where it is flattest first (quadric error metric).

    Parameters
    ----------
    vertices_mm, faces
        As `surface_of` returns them.
    reduction
        Share of the faces to leave out, 0 to 1. Of a surface that would open, get an edge of more
        than two faces, or change its volume by more than 2 %, twice as many faces are kept, and so
        on: of a single voxel all.

    Raises
    ------
    MissingDependencyError
        If fast-simplification isn't installed.
    """
    library = import_optional("fast-simplification", "a mesh of fewer faces")
    volume, kept = _volume(vertices_mm, faces), 1 - reduction
    open_edges = _open_edges(faces)  # where parts touch at an edge
    while kept < 1:
        fewer_mm, fewer = library.simplify(
            vertices_mm, faces.astype(np.int32), target_reduction=1 - kept
        )
        fewer = _without_folds(fewer.astype(np.int64))
        is_closed = _open_edges(fewer) <= open_edges
        if is_closed and abs(_volume(fewer_mm, fewer) / volume - 1) <= _VOLUME_TOLERANCE:
            used, faces_of_used = np.unique(fewer, return_inverse=True)
            return fewer_mm[used], faces_of_used.reshape(fewer.shape)
        kept *= 2
    return vertices_mm, faces


def _without_folds(faces: HostArray) -> HostArray:
    """Drop faces without area, and pairs of faces that lie back to back between three vertices."""
    first, second, third = faces.T
    faces = faces[(first != second) & (second != third) & (third != first)]
    corners = np.sort(faces, axis=1)
    rotated = np.take_along_axis(faces, (faces.argmin(axis=1)[:, None] + range(3)) % 3, axis=1)
    side = np.where(rotated[:, 1] < rotated[:, 2], 1, -1)
    _, numbers = np.unique(corners, axis=0, return_inverse=True)
    sides = np.bincount(numbers.ravel(), weights=side)
    kept: HostArray = faces[sides[numbers.ravel()] != 0]
    return kept


def _open_edges(faces: HostArray) -> int:
    """Count edges that aren't passed once in each direction, by two faces that face one way."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    there = edges[:, 0] < edges[:, 1]
    _, numbers = np.unique(np.sort(edges, axis=1), axis=0, return_inverse=True)
    forth, back = (np.bincount(numbers.ravel(), weights=each) for each in (there, ~there))
    return int(np.count_nonzero((forth != 1) | (back != 1)))


def _surfaces(output: SegmentationOutput, name: str) -> Iterator[ClosedSurface]:
    """Trace every object of a result that was found, in the order of labels or instances."""
    from scipy.ndimage import find_objects

    volume = output.case.volume
    affine = volume.source.canonical_affine_lps(volume.shape_dhw, volume.spacing_hwd_mm)
    segments = output.segments
    numbers, objects = number_objects(output.labels_dhw, output.instances_dhw, segments, name)
    boxes = find_objects(numbers, max_label=len(objects))
    for number, (each, box) in enumerate(zip(objects, boxes, strict=True), 1):
        if box is None:
            continue
        vertices_mm, faces = surface_of(numbers[box] == number, affine)
        corner_whd = [side.start for side in reversed(box)]
        vertices_mm = vertices_mm + affine[:3, :3] @ corner_whd
        if output.mesh_reduction:
            vertices_mm, faces = reduced(vertices_mm, faces, output.mesh_reduction)
        yield ClosedSurface(object_name(*each), object_color(*each), vertices_mm, faces)


def _write_glb(path: Path, output: SegmentationOutput) -> None:
    content = _glb_of(tuple(_surfaces(output, path.name)))
    with atomic_output(path) as temporary:
        temporary.write_bytes(content)


def _glb_of(surfaces: Sequence[ClosedSurface]) -> bytes:
    """Return a GLB file with a named, colored mesh for each surface."""
    binary = bytearray()
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []

    def add(array: HostArray, kind: str, component: int, target: int, **more: Any) -> int:
        content = array.tobytes()  # of four bytes each: aligned
        views.append(
            {"buffer": 0, "byteOffset": len(binary), "byteLength": len(content), "target": target}
        )
        count = array.size if kind == "SCALAR" else len(array)
        accessors.append(
            {
                "bufferView": len(views) - 1,
                "componentType": component,
                "count": count,
                "type": kind,
                **more,
            }
        )
        binary.extend(content)
        return len(accessors) - 1

    meshes = []
    for number, each in enumerate(surfaces):
        vertices = each.vertices_mm.astype("<f4")
        limits = {"min": vertices.min(axis=0).tolist(), "max": vertices.max(axis=0).tolist()}
        position = add(vertices, "VEC3", _FLOAT, _ARRAY_BUFFER, **limits)
        indices = add(each.faces.astype("<u4"), "SCALAR", _UNSIGNED, _ELEMENT_BUFFER)
        primitive = {"attributes": {"POSITION": position}, "indices": indices, "material": number}
        meshes.append({"name": each.name, "primitives": [primitive]})
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "medals-rt"},
        "scene": 0,
        "scenes": [{"extras": {"units": "millimeters", "frame": "LPS"}}],
    }
    if surfaces:
        document["scenes"][0]["nodes"] = list(range(len(surfaces)))
        document |= {
            "nodes": [{"name": each.name, "mesh": number} for number, each in enumerate(surfaces)],
            "meshes": meshes,
            "materials": [
                {
                    "name": each.name,
                    "pbrMetallicRoughness": {
                        "baseColorFactor": [*each.rgb, 1.0],
                        "metallicFactor": 0.0,
                    },
                }
                for each in surfaces
            ],
            "accessors": accessors,
            "bufferViews": views,
            "buffers": [{"byteLength": len(binary)}],
        }
    text = json.dumps(document, separators=(",", ":")).encode()
    chunks = _chunk(b"JSON", text, b" ") + (
        _chunk(b"BIN\0", bytes(binary), b"\0") if binary else b""
    )
    return b"glTF" + struct.pack("<II", 2, 12 + len(chunks)) + chunks


def _chunk(kind: bytes, content: bytes, filler: bytes) -> bytes:
    padded = content + filler * (-len(content) % 4)
    return struct.pack("<I", len(padded)) + kind + padded


def _write_stl(path: Path, output: SegmentationOutput) -> None:
    found = list(_surfaces(output, path.name))
    triangles = [each.vertices_mm[each.faces] for each in found]
    corners = np.concatenate([np.zeros((0, 3, 3)), *triangles])
    records = np.zeros(
        len(corners), dtype=[("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("_", "<u2")]
    )
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    records["normal"] = normals / np.maximum(lengths, np.finfo(float).tiny)
    records["corners"] = corners
    with atomic_output(path) as temporary:
        header = b"medals-rt: millimeters, LPS".ljust(80)
        temporary.write_bytes(header + struct.pack("<I", len(records)) + records.tobytes())


def _check(name: str, case: Case) -> tuple[()]:
    if not case.volume.has_orientation:
        raise CaseError(
            f"{name} would be in millimeters of the patient, whose place {case.path.name} doesn't "
            "know; write .npz",
            code="place-unknown",
        )
    return ()


FORMATS: Final = (
    Format(
        name="glb",
        title="a GLB mesh",
        endings=(".glb",),
        menu_title="Surfaces (.glb)",
        has_faces=True,
        libraries=("scikit-image",),
        write=_write_glb,
        check=_check,
    ),
    Format(
        name="stl",
        title="an STL mesh",
        endings=(".stl",),
        menu_title="Surface of one class (.stl)",
        has_faces=True,
        libraries=("scikit-image",),
        write=_write_stl,
        check=_check,
        one_class=True,
    ),
)
