"""Meshes: closed, facing outward, in place, and of the voxels' volume, as trimesh reads them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import trimesh
from scipy.ndimage import gaussian_filter

from medals_rt.common.errors import CaseError
from medals_rt.io.case import Case
from medals_rt.io.meshes import reduced, surface_of
from medals_rt.io.registry import check_output, read_case, write_segmentation
from medals_rt.prompts.prompt_set import PromptSet, numbered

PROMPTS = numbered(("Liver in abdominal CT", "Right kidney in abdominal CT"), "anatomy")
LIVER = numbered(("Liver in abdominal CT",), "anatomy")
LESIONS = numbered(("Liver tumors in abdominal CT",), "lesion")
RNG = np.random.default_rng(0)
ROTATION, _ = np.linalg.qr(RNG.standard_normal((3, 3)))
AFFINES = {
    "plain": np.diag([0.8, 0.9, 2.5, 1.0]),
    "mirrored": np.diag([-0.8, 0.9, 2.5, 1.0]),
    "oblique": np.block([[ROTATION * (0.7, 0.8, 3.0), np.ones((3, 1))], [np.zeros((1, 3)), 1.0]]),
}


def ball(shape: tuple[int, int, int], center: tuple[float, ...], radius: float) -> np.ndarray:
    places = np.stack(np.indices(shape), axis=-1)
    return np.linalg.norm(places - np.array(center), axis=-1) < radius


def blobs(shape: tuple[int, int, int]) -> np.ndarray:
    """Organic forms with thin necks, which a reduction folds."""
    smooth = gaussian_filter(np.random.default_rng(1).standard_normal(shape), 2)
    return smooth > np.quantile(smooth, 0.8)


SHAPE = (30, 32, 34)
MASKS = {
    "one voxel": np.pad(np.ones((1, 1, 1), bool), 2),
    "a row": np.pad(np.ones((1, 1, 7), bool), 1),
    "a block at the edge": np.ones((4, 5, 6), bool),
    "a ball": ball(SHAPE, (14, 15, 16), 11),
    "a shell": ball(SHAPE, (14, 15, 16), 11) & ~ball(SHAPE, (14, 15, 16), 6),
    "blobs": blobs(SHAPE),
    "noise": RNG.random((9, 10, 11)) < 0.4,
    "two that touch at an edge": np.array([[[1, 0], [0, 1]]], bool),
    "two that touch at a corner": np.array([[[1, 0], [0, 0]], [[0, 0], [0, 1]]], bool),
}


@pytest.mark.parametrize("affine", AFFINES)
@pytest.mark.parametrize("mask", MASKS)
def test_a_surface_is_closed_and_of_the_voxels_volume(mask: str, affine: str) -> None:
    voxels, to_mm = MASKS[mask], AFFINES[affine]
    vertices, faces = surface_of(voxels, to_mm)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    edges = np.sort(mesh.edges, axis=1)
    _, counts = np.unique(edges, axis=0, return_counts=True)
    assert (counts % 2 == 0).all()  # closed; touching parts may share an edge
    volume = voxels.sum() * abs(np.linalg.det(to_mm[:3, :3]))
    assert mesh.volume == pytest.approx(volume, rel=0.02)  # positive: faces look outward


def edges_of(faces: np.ndarray) -> np.ndarray:
    return np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])


def farthest_mm(points_mm: np.ndarray, triangles_mm: np.ndarray) -> float:
    """How far the farthest of some points is from a surface."""
    nearest = np.full(len(points_mm), np.inf)
    for triangle in triangles_mm:
        repeated = np.broadcast_to(triangle, (len(points_mm), 3, 3))
        closest = trimesh.triangles.closest_point(repeated, points_mm)
        nearest = np.minimum(nearest, np.linalg.norm(closest - points_mm, axis=1))
    return float(nearest.max())


@pytest.mark.parametrize("reduction", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("mask", MASKS)
def test_a_reduced_surface_stays_closed_and_of_its_volume(mask: str, reduction: float) -> None:
    voxels, to_mm = MASKS[mask], AFFINES["oblique"]
    whole_mm, every = surface_of(voxels, to_mm)
    vertices, faces = reduced(whole_mm, every, reduction)
    assert len(faces) <= len(every)
    if mask == "a ball" and reduction == 0.9:
        assert len(faces) == pytest.approx((1 - reduction) * len(every), rel=0.02)
        assert farthest_mm(whole_mm, vertices[faces]) < 1.5  # of voxels of 0.7 x 0.8 x 3
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    edges = np.sort(mesh.edges, axis=1)
    _, counts = np.unique(edges, axis=0, return_counts=True)
    _, before = np.unique(np.sort(edges_of(every), axis=1), axis=0, return_counts=True)
    assert (counts % 2 == 0).all()
    assert (counts != 2).sum() <= (before != 2).sum()  # as many as where the mask's parts touch
    if (before == 2).all():
        assert mesh.is_watertight
        assert mesh.is_winding_consistent
        assert len(np.unique(np.sort(faces, axis=1), axis=0)) == len(faces)
    volume = voxels.sum() * abs(np.linalg.det(to_mm[:3, :3]))
    assert mesh.volume == pytest.approx(volume, rel=0.025)  # positive: faces look outward


@pytest.mark.parametrize("mask", ["a ball", "a block at the edge"])
def test_every_face_looks_outward(mask: str) -> None:
    """None is turned around, not the whole alone; some reduced ones have no area."""
    voxels, to_mm = MASKS[mask], AFFINES["mirrored"]
    vertices, faces = surface_of(voxels, to_mm)
    for places, corners in ((vertices, faces), reduced(vertices, faces, 0.5)):
        mesh = trimesh.Trimesh(places, corners, process=False)
        to_middle = mesh.triangles_center - mesh.center_mass  # both objects are convex
        assert (np.einsum("ij,ij->i", mesh.face_normals, to_middle) > -1e-6).all()


def case_of(folder: Path, labels: np.ndarray, affine: np.ndarray) -> tuple[Case, np.ndarray]:
    path = folder / "scan.nii.gz"
    nib.save(nib.Nifti1Image(labels.astype(np.int16), affine), path)
    case = read_case(path)
    return case, case.volume.image_dhw.astype(np.uint8)


LABELS = np.zeros(SHAPE, np.uint8)
LABELS[ball(SHAPE, (9, 10, 11), 6)] = 1
LABELS[ball(SHAPE, (22, 23, 24), 5)] = 2


def write(path: Path, prompts: PromptSet, labels: np.ndarray, affine: np.ndarray) -> None:
    case, labels_dhw = case_of(path.parent, labels, affine)
    assert check_output(path, case) == ()
    write_segmentation(path, case, labels_dhw, prompts=prompts)


@pytest.mark.parametrize("affine", AFFINES)
def test_glb_in_millimeters_of_the_patient(affine: str, tmp_path: Path) -> None:
    to_mm = AFFINES[affine]  # NIfTI's is RAS
    write(tmp_path / "a.glb", PROMPTS, LABELS, to_mm)
    scene = trimesh.load_scene(tmp_path / "a.glb")
    assert list(scene.geometry) == ["Liver", "Right kidney"]
    for (name, mesh), label in zip(scene.geometry.items(), (1, 2), strict=True):
        center = np.argwhere(label == LABELS).mean(axis=0)
        ras = to_mm[:3, :3] @ center + to_mm[:3, 3]
        np.testing.assert_allclose(mesh.center_mass, ras * (-1, -1, 1), atol=0.05)
        assert mesh.is_watertight, name
        volume = (label == LABELS).sum() * abs(np.linalg.det(to_mm[:3, :3]))
        assert mesh.volume == pytest.approx(volume, rel=0.02)


def test_a_file_of_fewer_faces(tmp_path: Path) -> None:
    case, labels_dhw = case_of(tmp_path, LABELS, AFFINES["plain"])
    for name, reduction in (("whole.glb", 0.0), ("less.glb", 0.8)):
        write_segmentation(
            tmp_path / name, case, labels_dhw, prompts=PROMPTS, mesh_reduction=reduction
        )
    whole, less = (
        trimesh.load_scene(tmp_path / name).geometry for name in ("whole.glb", "less.glb")
    )
    for name, mesh in less.items():
        assert mesh.is_watertight
        assert len(mesh.faces) < 0.25 * len(whole[name].faces)
        assert mesh.volume == pytest.approx(whole[name].volume, rel=0.02)


def test_lesions_are_meshes_of_their_own(tmp_path: Path) -> None:
    case, labels_dhw = case_of(tmp_path, LABELS, AFFINES["plain"])
    binary = (labels_dhw > 0).astype(np.uint8)
    path = tmp_path / "a.glb"
    write_segmentation(path, case, binary, instances_dhw=labels_dhw, prompts=LESIONS)
    assert list(trimesh.load_scene(path).geometry) == ["Liver tumors 1", "Liver tumors 2"]


def test_stl_of_one_class(tmp_path: Path) -> None:
    write(tmp_path / "a.stl", LIVER, np.minimum(LABELS, 1), AFFINES["plain"])
    mesh = trimesh.load_mesh(tmp_path / "a.stl")
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx((LABELS > 0).sum() * 0.8 * 0.9 * 2.5, rel=0.02)
    with pytest.raises(CaseError) as early:  # before the network runs
        check_output(tmp_path / "b.stl", prompts=PROMPTS)
    assert early.value.code == "several-classes"
    with pytest.raises(CaseError) as refused:
        write(tmp_path / "b.stl", PROMPTS, LABELS, AFFINES["plain"])
    assert refused.value.code == "several-classes"


@pytest.mark.parametrize("name", ["a.glb", "a.stl"])
def test_nothing_found_is_a_valid_file(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, LIVER, np.zeros(SHAPE, np.uint8), AFFINES["plain"])
    if name == "a.glb":
        assert (tmp_path / name).read_bytes()[:4] == b"glTF"
        assert len(trimesh.load_scene(tmp_path / name).geometry) == 0
    else:
        assert len((tmp_path / name).read_bytes()) == 84


def test_a_case_that_knows_no_place(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "case.npz", imgs=np.zeros(SHAPE, np.float32), spacing=np.array([1.0, 1.0, 1.0])
    )
    with pytest.raises(CaseError) as refused:
        check_output(tmp_path / "a.glb", read_case(tmp_path / "case.npz"))
    assert refused.value.code == "place-unknown"
