"""What a run shows and leaves: labels at their place, tables, files."""

import io
import re
import zipfile
from pathlib import Path

import nibabel
import numpy as np

from tests.serve.page.visit import Visit, dice, in_browser, nifti_of, on_screen, to_patient
from tests.serve.serving import until


@in_browser
def test_segmenting_by_keyboard(visited: Visit, scan: Path) -> None:
    """From the search to the slice without the mouse; the labels lie where they are."""
    visited.load(scan)
    visited["#modality"].select_option("CT")
    visited["#search"].focus()
    visited.page.keyboard.type("left kid")
    visited.expect("#suggestions").to_be_visible()
    visited.page.keyboard.press("Escape")
    visited.expect("#suggestions").to_be_hidden()
    visited.page.keyboard.press("ArrowDown")
    visited.expect("#suggestions li[aria-selected=true]").to_have_text(re.compile("^Left kidney"))
    visited.page.keyboard.press("Enter")
    visited.choose("liver", "spleen in CT")
    visited.expect("#chips li").to_have_count(3)
    assert visited.violations() == []
    visited["#run"].focus()
    visited.page.keyboard.press("Enter")
    visited.expect("#class-rows tr").to_have_count(3)
    visited.expect("#run").to_be_enabled()
    assert visited.violations() == []

    _, content = visited.download("#download")
    labels = to_patient(nifti_of(content))
    names = visited["#class-rows .go"].all_text_contents()
    assert names == ["Left kidney", "Liver", "Spleen"]
    spacing = nifti_of(content).header.get_zooms()
    for row, label in enumerate((1, 2, 3)):
        milliliters = (labels == label).sum() * np.prod(spacing) / 1000
        shown = visited["#class-rows .number"].nth(row).text_content()
        assert abs(float(str(shown).removesuffix(" mL").replace(",", "")) / milliliters - 1) < 0.01

    visited["#planes input[value=axial]"].check()
    visited["#class-rows .go"].nth(1).click()
    visited.expect("#readout b").to_have_text("Liver")
    where = str(visited["#readout"].text_content())
    slice_mm = int(re.search(r"(\d+) S mm", where)[1])  # type: ignore[index]
    canonical = nibabel.as_closest_canonical(nifti_of(content))
    k = round((slice_mm - canonical.affine[2, 3]) / canonical.affine[2, 2])

    shown = visited.picture()
    visited["#hide-all"].click()
    overlay = np.abs(shown - visited.picture()).max(axis=2) > 8
    assert dice(overlay, on_screen(labels[:, :, k] > 0, canonical, overlay.shape)) > 0.95

    visited["#class-rows input[type=checkbox]"].nth(1).check()
    overlay = np.abs(shown - visited.picture()).max(axis=2) > 8
    assert dice(overlay, on_screen(labels[:, :, k] % 2 == 1, canonical, overlay.shape)) > 0.9

    visited["#viewer"].focus()
    visited.page.keyboard.press("ArrowUp")
    visited.expect("#readout").not_to_have_text(where)


@in_browser
def test_files_to_keep(visited: Visit, scan: Path) -> None:
    visited.load(scan)
    visited["#modality"].select_option("CT")
    visited.choose("liver")
    visited.run()
    for format_name in visited["#format option"].evaluate_all("all => all.map(one => one.value)"):
        visited["#format"].select_option(format_name)
        name, content = visited.download("#download")
        assert name.startswith("ct of someone")
        assert name.endswith(format_name)
        assert content
    name, content = visited.download("#download-csv")
    assert name.endswith(".csv")
    assert content.decode().splitlines()[0].startswith("label,class,voxels")
    name, content = visited.download("#download-report")
    assert name.endswith(".json")
    visited.expect("#download-lesions").to_be_hidden()
    visited.expect("#download-probabilities").to_be_hidden()
    visited.expect("#format option[value=stl]").to_have_count(1)
    visited.choose("spleen")
    visited.run()
    visited.expect("#format option[value=stl]").to_have_count(0)  # it holds one class


@in_browser
def test_labels_on_another_grid_and_probability_maps(visited: Visit, scan: Path) -> None:
    visited.load(scan)
    visited["#modality"].select_option("CT")
    visited.choose("liver", "spleen")
    visited["#options summary"].click()
    visited["#probabilities"].check()
    visited.run()
    whole = nifti_of(visited.download("#download")[1])
    visited["#spacing"].fill("6")
    visited["#crop"].fill("0")
    moved = nifti_of(visited.download("#download")[1])
    np.testing.assert_allclose(moved.header.get_zooms(), 6, rtol=1e-5)
    volumes = [
        np.prod(each.header.get_zooms()) * np.count_nonzero(each.dataobj) for each in (whole, moved)
    ]
    assert abs(volumes[1] / volumes[0] - 1) < 0.05
    assert np.prod(moved.shape) < np.prod(whole.shape) / 8 / 2
    visited["#spacing"].fill("-1")
    visited["#download"].click()
    visited.expect("#spacing:invalid").to_be_focused()
    with zipfile.ZipFile(io.BytesIO(visited.download("#download-probabilities")[1])) as maps:
        assert len(maps.namelist()) == 2
    visited.page.reload()
    visited.expect("#download-probabilities").to_be_visible()


@in_browser
def test_a_download_says_what_is_too_small_for_its_spacing(visited: Visit, scan: Path) -> None:
    visited.load_ct(scan, "liver", "aorta", "left kidney")
    visited.run()
    visited["#spacing"].fill("60")
    visited["#crop"].fill("10")
    name, _ = visited.download("#download")
    assert name == "ct of someone_seg_crop10_60mm.nii.gz"
    visited.expect("#result-problem").to_contain_text("not in the output at this spacing")
    visited["#spacing"].fill("")
    visited["#crop"].fill("")
    assert visited.download("#download")[0] == "ct of someone_seg.nii.gz"
    visited.expect("#result-problem").to_be_hidden()


@in_browser
def test_the_crosshair_is_seen(visited: Visit, scan: Path, tmp_path: Path) -> None:
    """Also where a pixel of the picture is several millimeters."""
    large = nibabel.Nifti1Image(np.zeros((130, 130, 20), np.int16), np.diag([4.0, 4, 10, 1]))
    nibabel.save(large, tmp_path / "large.nii.gz")

    def is_seen() -> bool:
        red, green, blue = (visited.picture()[..., channel] for channel in range(3))
        return int(((blue > 150) & (red < 150) & (green > 150)).sum()) > 300

    for path in (tmp_path / "large.nii.gz", scan):
        visited.load(path)
        visited.expect("#viewer-heading").to_contain_text(path.name)
        until(is_seen)


@in_browser
def test_zoom(visited: Visit, scan: Path) -> None:
    visited.load_ct(scan)
    visited["#planes input[value=axial]"].check()
    visited["#viewer"].press("0")  # which also focuses it
    before, where = visited.picture(), visited["#readout"].text_content()

    def is_as_before() -> bool:
        return int(np.abs(visited.picture() - before).max()) < 30

    assert is_as_before()
    assert " HU · " in str(where)
    visited["#viewer"].hover()
    visited.page.keyboard.down("Control")
    visited.page.mouse.wheel(0, -100)
    visited.page.keyboard.up("Control")
    assert not is_as_before()
    visited.expect("#readout").to_have_text(str(where))  # the same slice
    visited["#viewer"].press("0")
    until(is_as_before)
    visited["#viewer"].press("+")
    assert not is_as_before()


@in_browser
def test_the_readout_of_an_oblique_scan(visited: Visit, scan: Path, tmp_path: Path) -> None:
    """It says where the crosshair is in the patient."""
    image = nibabel.load(scan)
    angle = np.deg2rad(30)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turned = nibabel.Nifti1Image(image.dataobj, turn @ image.affine)
    nibabel.save(turned, tmp_path / "oblique.nii.gz")
    visited.load_ct(tmp_path / "oblique.nii.gz", "left kidney")
    visited.expect("#readout").to_contain_text("tilted by 30°")
    visited.run()
    labels = nifti_of(visited.download("#download")[1])
    found = np.argwhere(np.asarray(labels.dataobj) == 1)
    visited["#class-rows .go"].click()
    visited.expect("#readout b").to_have_text("Left kidney")
    read = re.findall(r"(\d+) ([LRAPSI])\b", str(visited["#readout"].text_content()))
    shown = [int(mm) * (1 if side in "RAS" else -1) for mm, side in read]
    center = nibabel.affines.apply_affine(labels.affine, found.mean(axis=0))
    np.testing.assert_allclose(shown, center, atol=6)


@in_browser
def test_colors_of_classes_stay_where_the_system_sets_colors(visited: Visit, scan: Path) -> None:
    visited.load(scan)
    visited["#modality"].select_option("CT")
    visited.choose("liver", "spleen")
    visited.run()
    visited.page.emulate_media(forced_colors="active")
    paint = "each => getComputedStyle(each).backgroundColor"
    swatches = visited["#class-rows .swatch"].evaluate_all(f"found => found.map({paint})")
    assert len(set(swatches)) == 2
    chosen, other = (
        visited[f"input[value={plane}] + span"].evaluate(paint) for plane in ("all", "axial")
    )
    assert chosen != other
