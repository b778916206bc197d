"""Phantoms: repeatable, grid-independent, and shaped like a body."""

import numpy as np
import pytest

from demo_training.phantoms import HELD_OUT_SEED, Grid, make_phantom
from demo_training.subject import LABELS

WHOLE = Grid((40, 48, 48), (8.0, 8.0, 8.0), -210.0)
BY_NAME = LABELS


@pytest.fixture(scope="module")
def phantoms() -> list:
    return [make_phantom(seed, WHOLE) for seed in range(HELD_OUT_SEED + 50, HELD_OUT_SEED + 56)]


def _center(labels: np.ndarray, name: str) -> np.ndarray:
    return np.argwhere(labels == BY_NAME[name]).mean(axis=0)


def test_one_integer_makes_the_same_phantom_again() -> None:
    a, b, c = (make_phantom(seed, WHOLE) for seed in (5, 5, 6))
    assert (a.image_hwd == b.image_hwd).all()
    assert (a.labels_hwd == b.labels_hwd).all()
    assert (a.image_hwd != c.image_hwd).any()


def test_every_organ_is_there_and_finite(phantoms: list) -> None:
    for phantom in phantoms:
        assert phantom.image_hwd.dtype == np.float32
        assert np.isfinite(phantom.image_hwd).all()
        present = set(np.unique(phantom.labels_hwd))
        assert set(range(1, 10)) <= present


def test_left_is_left_and_the_head_is_up(phantoms: list) -> None:
    """Axes: H to the back, W to the patient's left, D to the head."""
    for phantom in phantoms:
        labels = phantom.labels_hwd
        for organ in ("lung", "kidney"):
            left, right = _center(labels, f"Left {organ}"), _center(labels, f"Right {organ}")
            assert left[1] > right[1] + 5
        assert _center(labels, "Spleen")[1] > _center(labels, "Liver")[1]
        assert _center(labels, "Heart")[2] > _center(labels, "Liver")[2]
        assert _center(labels, "Left kidney")[2] < _center(labels, "Spleen")[2]
        # the aorta runs along the back, the stomach lies in front
        assert _center(labels, "Aorta")[0] > _center(labels, "Stomach")[0]


def test_grid_does_not_change_the_subject() -> None:
    coarse = make_phantom(11, WHOLE)
    fine = make_phantom(11, Grid((80, 96, 96), (4.0, 4.0, 4.0), -210.0))
    for name in ("Left lung", "Liver", "Spleen", "Heart"):
        volumes = [
            (p.labels_hwd == BY_NAME[name]).sum() * np.prod(p.spacing_hwd_mm)
            for p in (coarse, fine)
        ]
        assert volumes[0] == pytest.approx(volumes[1], rel=0.08)


def test_hounsfield_units_are_a_bodys(phantoms: list) -> None:
    for phantom in phantoms:
        median = {
            name: float(np.median(phantom.image_hwd[phantom.labels_hwd == label]))
            for name, label in BY_NAME.items()
            if (phantom.labels_hwd == label).any()
        }
        assert -950 < median["Left lung"] < -700
        assert 30 < median["Liver"] < 150
        assert 15 < median["Left kidney"] < 260
        assert 25 < median["Aorta"] < 300
        assert phantom.image_hwd.min() >= -1100


def test_tumors_contrast_with_the_liver() -> None:
    grid = Grid((80, 96, 60), (4.0, 4.0, 4.0), -210.0)
    sizes = []
    for seed in range(40, 46):
        phantom = make_phantom(seed, grid, tumor_count=4)
        tumor = phantom.image_hwd[phantom.labels_hwd == BY_NAME["Liver tumors"]]
        liver = phantom.image_hwd[phantom.labels_hwd == BY_NAME["Liver"]]
        sizes.append(tumor.size)
        if tumor.size:
            assert abs(np.median(tumor) - np.median(liver)) > 28
    assert sum(size > 0 for size in sizes) >= 5
    none = make_phantom(40, grid, tumor_count=0)
    assert not (none.labels_hwd == BY_NAME["Liver tumors"]).any()


def test_mr_has_the_anatomy_of_its_seed_in_other_intensities() -> None:
    ct, mr = make_phantom(21, WHOLE), make_phantom(21, WHOLE, modality="MRI")
    assert mr.image_hwd.min() >= 0
    assert mr.image_hwd.max() < 3000
    liver = BY_NAME["Liver"]
    assert (mr.labels_hwd == liver).sum() == pytest.approx((ct.labels_hwd == liver).sum(), rel=0.2)


def test_subjects_differ_in_size_and_place(phantoms: list) -> None:
    volumes = [(p.labels_hwd == BY_NAME["Liver"]).sum() for p in phantoms]
    assert max(volumes) > 1.15 * min(volumes)
    heights = [_center(p.labels_hwd, "Heart")[2] for p in phantoms]
    assert np.std(heights) > 0.3
