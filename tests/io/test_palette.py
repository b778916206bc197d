"""One palette: colors that people tell apart, the same in every output."""

import json
from itertools import combinations, pairwise
from pathlib import Path

import highdicom
import nrrd
import numpy as np
import pydicom
import pytest
from PIL import Image

from medals_rt.common.choices import MODALITIES
from medals_rt.io.palette import (
    Rgb,
    class_color,
    class_colors,
    hex_color,
    instance_color,
    label_color,
    numbered_color,
)
from medals_rt.io.registry import read_case, write_segmentation
from medals_rt.pipeline.job_writing import draw_preview
from medals_rt.prompts.classes import class_groups, class_table
from medals_rt.prompts.prompt_set import numbered
from tests.dicom import write_series
from tests.io.dicom.test_case import UPRIGHT
from tests.pipeline.batch.test_page import DONE, page_of, rows_of

NAMES = list(dict.fromkeys(entry.name for entry in class_table().classes))

# What linear RGB is to people without red, green or blue cones (Machado, Oliveira and Fernandes,
# 2009, severity 1), after normal sight.
SIGHTS = np.array(
    [
        np.eye(3),
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
    ]
)


def lab_of(rgb: Rgb) -> np.ndarray:
    """CIE L*a*b* (D65) of a color to each kind of sight, ``(4, 3)``."""
    value = np.array(rgb)
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    white = xyz.sum(axis=1)
    ratio = np.clip(SIGHTS @ linear, 0, 1) @ xyz.T / white
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.stack(
        [116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1
    )


def least_difference(one: Rgb, other: Rgb) -> float:
    """Delta E (1976) of two colors in the sight that sees the least of it; 2.3 is just visible."""
    return float(np.linalg.norm(lab_of(one) - lab_of(other), axis=1).min())


def test_every_class_has_a_color_of_its_own() -> None:
    assert list(class_colors()) == NAMES
    assert len({hex_color(rgb) for rgb in class_colors().values()}) == len(NAMES)


def test_colors_are_bright_enough_on_gray_images() -> None:
    """Each differs from every gray: it has a hue."""
    for name, rgb in class_colors().items():
        lightness, a, b = lab_of(rgb)[0]
        assert lightness > 40, name
        assert np.hypot(a, b) > 30, name


@pytest.mark.parametrize("apart", [1, 2, 3])
def test_neighbors_are_told_apart_by_everyone(apart: int) -> None:
    pairs = zip(NAMES, NAMES[apart:], strict=False)
    found = {pair: least_difference(*map(class_color, pair)) for pair in pairs}
    assert min(found.values()) > 6, min(found, key=lambda pair: found[pair])


def test_classes_of_a_group_are_told_apart_by_everyone() -> None:
    for group in class_groups(None):
        for modality in MODALITIES:
            names = [key.name for key in group.keys(modality)]
            if len(names) <= 16:
                for pair in combinations(names, 2):
                    assert least_difference(*map(class_color, pair)) > 5, (group.name, pair)


def test_instances_differ_from_the_next_and_stay_near_their_class() -> None:
    for name in ("Liver tumors", "Lung lesions", "Kidney tumors"):
        rgb = label_color(1, name)
        colors = [instance_color(rgb, number) for number in range(1, 33)]
        assert len(set(colors)) == len(colors)
        for one, other in pairwise(colors):
            assert least_difference(one, other) > 4
        hues = [np.arctan2(*lab_of(each)[0, :0:-1]) for each in (rgb, *colors)]
        turned = np.abs(np.angle(np.exp(1j * (np.array(hues[1:]) - hues[0]))))
        assert np.degrees(turned).max() < 65


def test_what_is_no_class_has_the_color_of_its_label() -> None:
    assert label_color(3, "no class of the list") == numbered_color(3)
    assert label_color(3, "Liver") == class_color("Liver")
    assert len({numbered_color(number) for number in range(50)}) == 50


def test_all_outputs_have_the_same_color(tmp_path: Path) -> None:
    image = np.zeros((12, 20, 20), np.int16)
    image[2:9, 4:16, 4:10] = 60
    write_series(tmp_path / "scan", image, UPRIGHT)
    case = read_case(tmp_path / "scan")
    labels = (case.volume.image_dhw > 0).astype(np.uint8)
    prompts = numbered(("Liver in abdominal CT",), "anatomy")
    wanted = [round(255 * part) for part in class_color("Liver")]

    for name in ("a.dcm", "a.rtstruct.dcm", "a.seg.nrrd", "a.glb"):
        write_segmentation(tmp_path / name, case, labels, prompts=prompts)
    seg = pydicom.dcmread(tmp_path / "a.dcm").SegmentSequence[0].RecommendedDisplayCIELabValue
    shown = highdicom.color.CIELabColor.from_dicom_value(seg).to_rgb(clip=True)
    assert np.abs(np.subtract(shown, wanted)).max() <= 2  # CIELab in 16 bits, another white point
    structures = pydicom.dcmread(tmp_path / "a.rtstruct.dcm")
    assert list(structures.ROIContourSequence[0].ROIDisplayColor) == wanted
    header = nrrd.read_header(str(tmp_path / "a.seg.nrrd"))
    assert [round(255 * float(part)) for part in header["Segment0_Color"].split()] == wanted
    content = (tmp_path / "a.glb").read_bytes()
    document = json.loads(content[20 : 20 + int.from_bytes(content[12:16], "little")])
    material = document["materials"][0]["pbrMetallicRoughness"]["baseColorFactor"]
    assert [round(255 * part) for part in material[:3]] == wanted

    draw_preview(tmp_path / "a.png", case.volume, labels, prompts)
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    patch = np.array(wanted) * 0.45 + 255 * 0.55  # the legend's
    assert (np.abs(picture.reshape(-1, 3) - patch).max(axis=1) < 2).sum() > 100

    (row,) = rows_of(page_of(tmp_path, [DONE]))
    assert row["classes"][0]["color"] == "#" + "".join(f"{part:02x}" for part in wanted)
