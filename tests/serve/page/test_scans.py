"""Scans that the page opens: a challenge case, lesions, a DICOM folder, several at a time."""

import re
from pathlib import Path

import numpy as np

from tests.dicom import write_series
from tests.serve.page.visit import DEMO, Visit, in_browser
from tests.serve.serving import image


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
    for number in (1, 2):
        array = image(number)
        write_series(tmp_path / "study" / str(number), array, np.diag([2.0, 2, 4, 1]), seed=number)
    visited.page.set_input_files("#folder-input", tmp_path / "study")
    visited.expect("#ask-choices button").to_have_count(2)
    assert visited.violations() == []
    visited["#ask-choices button"].first.click()
    visited.page.wait_for_selector("#viewer-empty", state="hidden")
    visited.expect("#scans .name").to_have_text("study.zip")
    visited.complaints.clear()  # the 409 that asks which series


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
