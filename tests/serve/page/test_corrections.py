"""Corrections by pen."""

import re
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from tests.serve.page.visit import Visit, in_browser, nifti_of
from tests.serve.serving import Running, lying, until


@in_browser
def test_a_correction(visited: Visit, served_demo: Running, scan: Path) -> None:
    """What was painted goes out with the whole result, on the scan's grid, and corrects it."""
    visited.load(scan)
    visited["#modality"].select_option("CT")
    visited.choose("liver", "spleen")
    visited.run()
    before = nifti_of(visited.download("#download")[1])
    visited["#planes input[value=axial]"].check()
    visited["#class-rows .go"].nth(0).click()
    visited["#draw"].click()
    visited.expect("#pen-class").to_have_value("1")
    box = visited["#viewer"].bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    visited.page.mouse.move(x, y)
    visited.page.mouse.down()
    visited.page.mouse.move(x + 30, y, steps=4)
    visited.page.mouse.up()
    visited.expect("#undo-stroke").to_be_enabled()
    visited["#undo-stroke"].click()
    visited.expect("#undo-stroke").to_be_disabled()
    visited.expect("#run").to_have_text("Segment again")

    visited["#class-rows .go"].nth(0).click()
    visited.expect("#readout b").to_have_text("Liver")
    visited["#pen-class"].select_option("2")
    visited["#viewer"].focus()
    visited.page.keyboard.press("Space")
    visited.expect("#readout b").to_have_text("Spleen")
    visited.expect("#run").to_have_text("Segment with the drawing")
    where = str(visited["#readout"].text_content())
    with visited.page.expect_request(lambda asked: "/v1/masks?" in asked.url) as sent:
        visited.run()
    visited.expect("#result-text").to_contain_text("Run 2 of 2")

    mask = nibabel.Nifti1Image.from_bytes(sent.value.post_data_buffer)
    until(lambda: not [path for path in lying(served_demo.data_dir) if path.suffix == ".nii"])
    drawn, labels = np.asarray(mask.dataobj), np.asarray(before.dataobj)
    np.testing.assert_allclose(mask.affine, nibabel.load(scan).affine, atol=1e-4)
    changed = np.argwhere((drawn == 2) & (labels != 2))
    assert 4 <= len(changed) <= 40
    # The liver lost voxels to the spleen, so it was changed as well; nothing else was.
    assert np.array_equal(drawn == 1, (labels == 1) & (drawn != 2))
    assert np.array_equal((drawn == 2) & (labels == 2), labels == 2)
    center = nibabel.affines.apply_affine(mask.affine, changed.mean(axis=0))
    numbers = re.search(r"(\d+) ([LR]) (\d+) ([AP]) (\d+) ([SI]) mm", where)
    assert numbers
    crosshair = [int(numbers[n]) * (1 if numbers[n + 1] in "RAS" else -1) for n in (1, 3, 5)]
    np.testing.assert_allclose(center, crosshair, atol=4)

    first, second = jobs_of(visited)
    assert (first["corrects"], second["corrects"]) == (None, first["job"])
    assert {"corrected", "corrected-by-hand"} <= {note["code"] for note in second["notes"]}
    visited.expect("#result-notes").to_contain_text("the model looked again in")
    visited.choose("left kidney")
    visited["#run"].click()  # with a class more: what was corrected stays
    visited.expect("#result-text").to_contain_text("Run 3 of 3")
    third = jobs_of(visited)[2]
    assert third["corrects"] == second["job"]
    assert [found["name"] for found in third["classes"]] == ["Liver", "Spleen", "Left kidney"]
    assert "corrected" in {note["code"] for note in third["notes"]}
    visited.expect("#run-hint").to_have_text("")
    visited["#undo-run"].click()
    visited.expect("#result-text").to_contain_text("Run 2 of 3")

    visited["#draw"].click()
    visited["#pen-class"].select_option("1")
    visited["#viewer"].press("Space")
    visited["#undo-run"].click()
    visited.expect("#ask-heading").to_have_text("Discard the drawing?")
    visited["#ask-choices button"].click()
    visited.expect("#result-text").to_contain_text("Run 1 of 3")
    again = nifti_of(visited.download("#download")[1])
    assert np.array_equal(np.asarray(again.dataobj), labels)
    visited["#redo-run"].click()
    visited.expect("#result-text").to_contain_text("Run 2 of 3")

    visited["#run"].click()  # instead of the third, which can't be seen again
    visited.expect("#result-text").to_contain_text("Run 3 of 3")
    until(lambda: third["job"] not in [job["job"] for job in jobs_of(visited)])
    assert len(jobs_of(visited)) == 3


@in_browser
def test_a_result_that_did_not_arrive_is_not_corrected(visited: Visit, scan: Path) -> None:
    """Else all of it would be erased by hand."""
    visited.load_ct(scan, "liver")
    visited.run()
    visited.expect("#draw").to_be_enabled()
    visited.page.route("**/result?format=nii.gz", lambda route: route.abort(), times=1)
    visited.page.reload()
    visited.expect("#run-problem").to_be_visible()
    visited.expect("#draw").to_be_disabled()
    visited.expect("#scans .choose").to_contain_text("segmented")
    visited["#run-problem button"].click()
    visited.expect("#draw").to_be_enabled()
    visited.expect("#run-problem").to_be_hidden()
    visited["#class-rows .go"].click()
    visited.expect("#readout b").to_have_text("Liver")
    visited.complaints.clear()


@in_browser
def test_a_correction_beside_lesions_stays_with_an_organ_more(visited: Visit, scan: Path) -> None:
    visited.load_ct(scan, "liver", "liver tumors")
    visited.run()
    visited["#class-rows .go"].first.click()
    visited["#draw"].click()
    visited["#pen input[value=erase]"].check()
    visited["#viewer"].press("Space")
    visited.choose("spleen")
    with visited.page.expect_request(lambda sent: sent.url.endswith("/v1/jobs")) as asked:
        visited.run()
    body = asked.value.post_data_json
    assert body["corrects"] == jobs_of(visited)[0]["job"]
    assert [found["label"] for found in jobs_of(visited)[1]["classes"]] == [1, 3, 2]
    assert "corrected-by-hand" in {note["code"] for note in jobs_of(visited)[1]["notes"]}
    visited.choose("left kidney")
    visited.run()
    assert jobs_of(visited)[2]["corrects"] == jobs_of(visited)[1]["job"]
    assert "corrected" in {note["code"] for note in jobs_of(visited)[2]["notes"]}


@in_browser
def test_corrections_that_cannot_be_kept_are_asked_about(visited: Visit, scan: Path) -> None:
    visited.load_ct(scan, "liver")
    visited.run()
    visited["#draw"].click()
    visited["#viewer"].press("Space")
    visited.run()
    visited["#modality"].select_option("MRI")
    visited["#run"].click()
    visited.expect("#ask-heading").to_have_text("Segment without the corrections?")
    visited.page.keyboard.press("Enter")  # Cancel has the focus
    visited.expect("#ask").to_be_hidden()
    visited["#run"].click()
    visited["#ask-choices button"].click()
    visited.expect("#result-text").to_contain_text("Run 3 of 3")
    assert jobs_of(visited)[2]["corrects"] is None


@in_browser
def test_an_upload_that_ends_drops_no_drawing(visited: Visit, scan: Path, tmp_path: Path) -> None:
    visited.load_ct(scan, "liver")
    held: list[Any] = []
    visited.page.route("**/v1/images?*", lambda route: held.append(route))  # noqa: PLW0108 - else no route is passed
    visited.page.set_input_files("#file-input", shutil.copy(scan, tmp_path / "next.nii.gz"))
    visited["#draw"].click()
    visited["#viewer"].press("Space")
    while not held:
        visited.page.wait_for_timeout(50)
    held[0].continue_()
    visited.expect("#scans li").to_have_count(2)
    visited.expect("#scans [aria-current=true]").to_contain_text("ct of someone")
    visited.expect("#run").to_have_text("Segment with the drawing")


@in_browser
def test_strokes_that_cannot_be_undone_are_strokes(visited: Visit, scan: Path) -> None:
    visited.load_ct(scan, "liver")
    visited["#draw"].click()
    for _ in range(34):
        visited["#viewer"].press("Shift+ArrowRight")
        visited["#viewer"].press("Space")
    for _ in range(32):
        visited["#undo-stroke"].click()
    visited.expect("#undo-stroke").to_be_disabled()
    visited.expect("#run").to_have_text("Segment with the drawing")
    visited["#draw"].click()
    visited.expect("#ask-heading").to_have_text("Discard the drawing?")
    visited.page.keyboard.press("Enter")  # Cancel has the focus
    visited.expect("#pen").to_be_visible()


@in_browser
def test_a_class_that_is_painted_is_shown(visited: Visit, scan: Path) -> None:
    visited.load_ct(scan, "liver", "spleen")
    visited.run()
    visited["#hide-all"].click()
    visited["#draw"].click()
    visited.expect("#class-rows input:checked").to_have_count(1)
    visited["#pen-class"].select_option("2")
    visited.expect("#class-rows input:checked").to_have_count(2)


def jobs_of(visited: Visit) -> list[dict[str, Any]]:
    """Return the session's jobs, as the service tells of them."""
    content = visited.page.evaluate("fetch('v1/sessions/current').then((answer) => answer.json())")
    return list(content["jobs"])


@in_browser
def test_the_outline_of_the_pen(visited: Visit, scan: Path) -> None:
    """It lies where a dab then paints, in each plane, and goes with the pen."""
    visited.load(scan)
    visited["#modality"].select_option("CT")
    visited.choose("liver")
    visited["#draw"].click()
    visited["#pen-size"].fill("9")
    for plane in ("axial", "coronal", "sagittal"):
        visited[f"#planes input[value={plane}]"].check()
        canvas = visited["#viewer"].bounding_box()
        assert canvas
        x, y = canvas["x"] + 0.3 * canvas["width"], canvas["y"] + 0.3 * canvas["height"]
        visited.page.mouse.move(x, y)
        visited.page.mouse.click(x, y)  # the crosshair is there from now on
        visited["#undo-stroke"].click()
        visited.expect("#brush").to_be_hidden()
        before = visited.picture()
        visited.page.mouse.move(x, y)
        visited.expect("#brush").to_be_visible()
        brush = visited["#brush"].bounding_box()
        assert brush
        assert brush["x"] < x < brush["x"] + brush["width"]
        visited.page.mouse.click(x, y)
        visited["#undo-stroke"].hover()
        changed = np.abs(visited.picture() - before).max(axis=2) > 20
        for axis, name, size in ((0, "x", "width"), (1, "y", "height")):
            painted = np.flatnonzero(changed.sum(axis=axis) > 0)
            start = brush[name] - canvas[name]
            np.testing.assert_allclose(
                [painted[0], painted[-1] + 1], [start, start + brush[size]], atol=3, err_msg=plane
            )
        visited["#undo-stroke"].click()
    visited["#draw"].click()
    visited.page.mouse.move(x, y)
    visited.expect("#brush").to_be_hidden()
