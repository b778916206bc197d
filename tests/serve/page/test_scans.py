"""Scans that the page opens: a challenge case, lesions, a DICOM folder, several at a time."""

import gzip
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK

from tests.dicom import write_series
from tests.serve.page.visit import DEMO, Visit, in_browser
from tests.serve.serving import image

HALF_AN_NRRD = """NRRD0004
type: short
dimension: 3
space: left-posterior-superior
sizes: 4 4 4
space directions: (1,0,0) (0,1,0) (0,0,1)
space origin: (0,0,0)
endian: little
encoding: raw
data file: ct.raw

"""


@in_browser
def test_prompts_in_the_file(visited: Visit, tmp_path: Path) -> None:
    """A case of the challenge brings its own."""
    with np.load(DEMO / "cases" / "ct_anatomy.npz") as case:
        np.savez_compressed(
            tmp_path / "case.npz",
            imgs=case["imgs"],
            spacing=case["spacing"],
            text_prompts=np.array({"3": "Liver in CT", "instance_label": 0}),
        )
    visited.load(tmp_path / "case.npz")
    visited.expect("#run").to_be_disabled()
    visited["#modality"].select_option("CT")
    visited.expect("#run").to_have_text("Segment what the file asks for")
    visited.run()
    visited.expect("#class-rows .go").to_have_text(["Liver"])
    visited.expect("#chips li").to_have_count(1)


@in_browser
def test_lesions(visited: Visit) -> None:
    """A class of lesions beside anatomy; each lesion is counted."""
    visited.load(DEMO / "cases" / "ct_liver_tumors.npz")
    visited["#modality"].select_option("CT")
    visited.choose("liver tumors", "liver")
    visited.expect("#chips li").to_have_text([re.compile("lesion"), re.compile("Liver")])
    visited.run()
    visited.expect("#class-rows .go").to_have_text(
        [re.compile("^Liver$"), re.compile(r"\d+ lesions?\)$")]
    )
    name, _ = visited.download("#download-lesions")
    assert name.endswith(".nii.gz")


@in_browser
def test_a_dicom_folder(visited: Visit, tmp_path: Path) -> None:
    """It is packed in the browser; of several series one is asked for."""
    for number in (7, 8):

        def change(_: int, data: Any, number: int = number) -> None:
            data.SeriesNumber = number

        folder, affine = tmp_path / "study" / str(number), np.diag([2.0, 2, 4, 1])
        write_series(folder, image(number), affine, change=change, seed=number)
    visited.page.set_input_files("#folder-input", tmp_path / "study")
    visited.expect("#ask-choices button").to_have_count(2)
    assert visited.violations() == []
    visited.page.keyboard.press("Enter")  # the first has the focus: nothing is lost by it
    visited.page.wait_for_selector("#viewer-empty", state="hidden")
    visited.expect("#scans .name").to_have_text("Series 7 · made up")
    visited.expect("#scans .choose").to_contain_text("study.zip")
    visited.expect("#viewer-heading").to_have_text("Series 7 · made up")
    assert visited.page.title() == "Series 7 · made up · medals-rt"
    visited.complaints.clear()  # the 409 that asks which series


@in_browser
def test_files_of_one_series(visited: Visit, tmp_path: Path) -> None:
    """Without a folder they have no name of their own."""
    write_series(tmp_path, image(1), np.diag([2.0, 2, 4, 1]))
    visited.load(*sorted(tmp_path.iterdir()))
    visited.expect("#scans .choose").to_contain_text("IM0000 and 11 more.zip")


@in_browser
def test_several_scans_at_once(visited: Visit, scan: Path, tmp_path: Path) -> None:
    """Each is one; the first that arrives is open."""
    for number in range(8):
        shutil.copy(scan, tmp_path / f"{number}.nii.gz")
    visited.load(*sorted(tmp_path.iterdir()))
    visited.expect("#scans .name").to_have_text([f"{number}.nii.gz" for number in range(8)])
    visited.expect("#upload").to_be_hidden()
    visited.expect("#scans [aria-current=true]").to_contain_text("0.nii.gz")
    visited.page.reload()
    visited.page.wait_for_selector("body[data-ready]")
    visited.expect("#scans [aria-current=true]").to_contain_text("7.nii.gz")
    visited.expect("#scans [aria-current=true]").to_be_in_viewport(ratio=0.9)


@in_browser
def test_an_upload_is_canceled(visited: Visit, scan: Path) -> None:
    visited.page.route("**/v1/images?*", lambda _: None)  # never answered
    visited.page.set_input_files("#file-input", scan)
    visited["#cancel-upload"].click()
    visited.expect("#upload").to_be_hidden()
    visited.expect("#scan-problem").to_be_hidden()
    visited.page.unroute("**/v1/images?*")
    visited.load(scan)


@in_browser
def test_an_answer_that_is_not_the_services(visited: Visit, scan: Path) -> None:
    """The sign-in page of a network, say."""
    visited.page.route(
        "**/v1/images?*",
        lambda route: route.fulfill(status=200, body="<html>Sign in", content_type="text/html"),
        times=1,
    )
    visited.page.set_input_files("#file-input", scan)
    visited.expect("#scan-problem").to_contain_text("Something else answered")
    visited.load(scan)


@in_browser
def test_a_lost_connection_is_no_news_once_it_is_back(visited: Visit, scan: Path) -> None:
    visited.page.context.set_offline(True)
    visited.page.set_input_files("#file-input", scan)
    visited.expect("#scan-problem").to_contain_text("connected")
    visited.page.context.set_offline(False)
    visited.expect("#scan-problem").to_be_hidden()
    visited.complaints.clear()


@in_browser
def test_several_scans(visited: Visit, scan: Path) -> None:
    visited.load(scan)
    visited["#modality"].select_option("CT")
    visited.choose("liver")
    visited.run()
    visited.load(DEMO / "cases" / "ct_anatomy.npz")
    visited.expect("#scans li").to_have_count(2)
    visited.expect("#scans [aria-current=true]").to_contain_text("ct_anatomy.npz")
    visited.expect("#modality").to_have_value("")  # not taken from another scan
    visited.expect("#chips li").to_have_count(1)
    visited.expect("#result").to_be_hidden()
    visited["#scans .choose"].first.click()
    visited.expect("#class-rows tr").to_have_count(1)
    visited["#scans li button.plain"].first.click()
    visited["#ask-choices button"].click()
    visited.expect("#scans li").to_have_count(1)
    visited.expect("#result").to_be_hidden()


@in_browser
def test_a_scan_that_did_not_arrive_is_tried_again(visited: Visit, scan: Path) -> None:
    visited.page.route("**/volume.nii.gz", lambda route: route.abort(), times=2)
    visited.page.set_input_files("#file-input", scan)
    visited.expect("#viewer-empty").to_have_text("The scan can't be shown")
    visited["#scans .choose"].click()
    visited.expect("#scan-problem").to_be_visible()
    visited["#scan-problem button"].click()
    visited.expect("#viewer-empty").to_be_hidden()
    visited.expect("#scan-problem").to_be_hidden()
    visited.complaints.clear()


@in_browser
def test_one_of_several_can_not_be_used(visited: Visit, scan: Path, tmp_path: Path) -> None:
    """The others are there, and it is named."""
    (tmp_path / "0.nii.gz").write_bytes(scan.read_bytes()[:200])
    for name in ("1.nii.gz", "2.nii.gz"):
        shutil.copy(scan, tmp_path / name)
    visited.load(*sorted(tmp_path.iterdir()))
    visited.expect("#scans .name").to_have_text(["1.nii.gz", "2.nii.gz"])
    visited.expect("#scans [aria-current=true]").to_contain_text("1.nii.gz")
    visited.expect("#scan-problem").to_contain_text("1 of 3 scans can't be used.\n0.nii.gz: ")
    visited.complaints.clear()


@in_browser
def test_scans_of_two_files(visited: Visit, tmp_path: Path) -> None:
    """A header and its voxels are joined in the browser, whatever their order is called."""
    names = _pairs(tmp_path)
    visited.load(*sorted(tmp_path.iterdir()))
    visited.expect("#scans .name").to_have_text(names)
    visited.expect("#scan-problem").to_be_hidden()
    served = visited.page.evaluate(
        """async () => {
            const {images} = await (await fetch('v1/sessions/current')).json();
            const volumes = [];
            for (const {image} of images) {
                const answer = await fetch(`v1/images/${image}/volume.nii.gz`);
                volumes.push(Array.from(new Uint8Array(await answer.arrayBuffer())));
            }
            return volumes;
        }"""
    )
    assert len(served) == len(names)
    first = nibabel.Nifti1Image.from_bytes(gzip.decompress(bytes(served[0])))
    for name, each in zip(names, served, strict=True):
        volume = nibabel.Nifti1Image.from_bytes(gzip.decompress(bytes(each)))
        np.testing.assert_array_equal(volume.dataobj, first.dataobj, err_msg=name)
        np.testing.assert_allclose(volume.affine, first.affine, err_msg=name)
    np.testing.assert_array_equal(np.unique(first.dataobj), np.unique(image(3)))


def _pairs(folder: Path) -> list[str]:
    """One image in every kind of two files; what the page calls them, in order of their names."""
    array_kji = np.ascontiguousarray(image(3).astype(np.int16).T)
    placed = SimpleITK.GetImageFromArray(array_kji)
    placed.SetSpacing((2.0, 2.0, 4.0))
    placed.SetOrigin((3.0, -4.0, 5.0))
    for name in ("a.mhd", "c.nhdr", "e.hdr"):
        SimpleITK.WriteImage(placed, folder / name)
    for name in ("b.mhd", "d.nhdr"):
        SimpleITK.WriteImage(placed, folder / name, useCompression=True)
    voxels = (folder / "a.raw").read_bytes()
    (folder / "f.raw").write_bytes(bytes(100) + voxels)
    header = (folder / "a.mhd").read_text("ascii").replace("a.raw", "f.raw")
    windows = f"HeaderSize = 100\n{header}".replace("\n", "\r\n")
    (folder / "f.mhd").write_bytes(windows.encode("ascii"))
    for ending in (".hdr", ".img"):
        (folder / f"g{ending}.gz").write_bytes(gzip.compress((folder / f"e{ending}").read_bytes()))
    big = nibabel.Nifti1Pair.from_filename(folder / "e.hdr")
    swapped = nibabel.Nifti1Pair(
        np.asarray(big.dataobj).astype(">i2"), big.affine, big.header.as_byteswapped(">")
    )
    swapped.to_filename(folder / "h.hdr")
    nibabel.Nifti2Pair(np.asarray(big.dataobj), big.affine).to_filename(folder / "i.hdr")
    last = (folder / "a.mhd").read_text("ascii").replace("a.raw", "./j.raw")
    (folder / "j.mhd").write_text(f"HeaderSize = -1\n{last}", "ascii")
    (folder / "j.raw").write_bytes(bytes(range(100)) + voxels)
    endings = ["mha", "mha", "nrrd", "nrrd", "nii", "mha", "nii", "nii", "nii", "mha"]
    return [f"{name}.{ending}" for name, ending in zip("abcdefghij", endings, strict=True)]


@in_browser
def test_half_a_scan_of_two_files(visited: Visit, tmp_path: Path) -> None:
    """What is missing is named, and the service doesn't name its own folders."""
    (tmp_path / "ct.nhdr").write_text(HALF_AN_NRRD, encoding="ascii")
    visited.page.set_input_files("#file-input", tmp_path / "ct.nhdr")
    visited.expect("#scan-problem").to_have_text(
        "ct.nhdr keeps its voxels in ct.raw, which isn't beside it; put both into one folder, or "
        "write the scan as one file"
    )
    (tmp_path / "else.raw").write_bytes(bytes(128))
    visited.page.set_input_files("#file-input", sorted(tmp_path.iterdir()))
    visited.expect("#scan-problem").to_have_text(
        "ct.nhdr keeps its voxels in ct.raw, which is not among these files: choose both."
    )
    slices = HALF_AN_NRRD.replace("ct.raw", "LIST\nelse.raw")
    (tmp_path / "ct.nhdr").write_text(slices, encoding="ascii")
    visited.page.set_input_files("#file-input", sorted(tmp_path.iterdir()))
    visited.expect("#scan-problem").to_contain_text("keeps its voxels in several files")
    visited.complaints.clear()
