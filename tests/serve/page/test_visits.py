"""Who comes to the page: a first visit, a token, a phone, a browser without WebGL."""

import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from medals_rt.bundle.bundle import Bundle
from tests.browser import CHROMIUM
from tests.serve.page.visit import Visit, in_browser, visit
from tests.serve.serving import Running, lying, running, until, write_nifti

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@in_browser
def test_a_first_visit(visited: Visit) -> None:
    visited.expect("#notice").to_be_in_viewport()
    visited.expect("#notice").to_contain_text("not for diagnosis")
    visited.expect("#run").to_be_disabled()
    visited.expect("#missing").to_have_text("Choose a scan first.")
    assert visited.violations() == []
    visited["#help-open"].click()
    assert visited.violations() == []
    visited.page.keyboard.press("Escape")
    visited.expect("#help").to_be_hidden()


@in_browser
def test_the_token_is_asked_for(browser: "Browser", tiny_bundle: Bundle, tmp_path: Path) -> None:
    token = "a-token-that-nobody-guesses"  # noqa: S105 - made up
    with running(tiny_bundle, tmp_path, token=token) as served:
        for found in visit(browser, served):
            found.page.goto(found.address)
            assert found.violations() == []
            found["#token"].fill("wrong")
            found["#token"].press("Enter")
            found.expect(".problem").to_have_text("This is not the token of this service.")
            found["#token"].fill(token)
            found["#token"].press("Enter")
            found.page.wait_for_selector("body[data-ready]")
            assert token not in found.page.url
            found.complaints = [each for each in found.complaints if "401" not in each]


@in_browser
def test_suggestions_hide_no_answer(visited: Visit) -> None:
    visited["#search"].fill("livr")
    visited["#search"].press("Enter")
    visited.expect("#reading").not_to_be_empty()
    visited.expect("#suggestions").to_be_visible()
    reading, list_box = visited["#reading"].bounding_box(), visited["#suggestions"].bounding_box()
    assert reading
    assert list_box
    assert reading["y"] + reading["height"] <= list_box["y"]


@in_browser
def test_what_is_typed_is_judged_once_it_is_entered(visited: Visit) -> None:
    visited["#modality"].select_option("CT")
    with visited.page.expect_response(lambda answer: "kind=lesion" in answer.url):
        visited["#search"].fill("liver tum")
    visited.page.wait_for_timeout(200)
    visited.expect("#reading").to_have_text("")
    visited["#search"].press("Enter")
    visited.expect("#reading").to_contain_text("liver tum")
    visited["#search"].fill("lung nodules")
    visited["#search"].press("Enter")
    visited.expect("#reading").to_contain_text("This model doesn't know it; it knows 14 classes")
    visited.choose("liver, spleen, aorta")
    visited.expect("#chips li").to_have_count(3)


@in_browser
def test_names_are_text(visited: Visit, scan: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "<img src=x onerror=alert(1)>'\"&.nii.gz"
    shutil.copy(scan, hostile)
    visited.load(hostile)
    visited.expect("#scans .name").to_have_text(hostile.name)
    assert visited["main img"].count() == 0


@in_browser
def test_sentences_of_the_service(visited: Visit, scan: Path, tmp_path: Path) -> None:
    """What can't be used is said as the command line says it."""
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no NIfTI")
    visited.page.set_input_files("#file-input", broken)
    visited.expect("#scan-problem").to_contain_text("broken.nii.gz")
    assert [each.split(":")[0] for each in visited.complaints] == ["error Failed to load resource"]
    visited.complaints.clear()
    visited.load(scan)
    visited["#modality"].select_option("CT")
    visited["#search"].fill("kidney")
    visited["#search"].press("Enter")
    visited.expect("#reading").to_have_class(re.compile("refused"))
    visited.expect("#chips li").to_have_count(0)


@in_browser
def test_a_session_that_ended(visited: Visit, scan: Path) -> None:
    visited.page.context.clear_cookies()
    visited.page.set_input_files("#file-input", scan)
    visited.expect("#page-problem").to_contain_text("session has ended")
    visited["#page-problem button"].click()
    visited.page.wait_for_selector("body[data-ready]")
    visited.load(scan)
    assert {each.split(":")[0] for each in visited.complaints} == {"error Failed to load resource"}
    visited.complaints.clear()


@in_browser
def test_a_download_of_a_session_that_ended(visited: Visit, scan: Path) -> None:
    visited.load_ct(scan, "liver")
    visited.run()
    visited.page.context.clear_cookies()
    visited["#download"].click()
    visited.expect("#page-problem").to_contain_text("session has ended")
    visited.expect("#result-problem").to_be_hidden()
    visited.complaints.clear()


@in_browser
def test_limits_of_a_service(
    browser: "Browser", tiny_bundle: Bundle, scan: Path, tmp_path: Path
) -> None:
    limits = {"max_upload_bytes": 100_000, "max_sessions": 1, "idle_s": 6.0}
    with running(tiny_bundle, tmp_path, **limits) as served:
        for found in visit(browser, served):
            found.open()
            found.page.set_input_files("#file-input", scan)
            found.expect("#scan-problem").to_contain_text("this service takes up to 100 kB")
            for late in visit(browser, served):
                late.page.goto(late.address)
                late.expect("#page-problem").to_contain_text("all 1 sessions are taken")
                late.page.set_input_files("#file-input", write_nifti(tmp_path / "small.nii.gz"))
                late.expect("#page-problem").to_contain_text("no room for a session")
                late.complaints.clear()
            time.sleep(8.0)  # longer than a session lasts that nobody looks at
            found.load(tmp_path / "small.nii.gz")


@in_browser
def test_a_browser_without_webgl(browser: "Browser", served_demo: Running) -> None:
    poor = browser.browser_type.launch(
        executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-3d-apis"]
    )
    try:
        page = poor.new_page()
        page.goto(served_demo.address)
        page.get_by_text("This browser has no WebGL 2").wait_for()
    finally:
        poor.close()


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(browser: "Browser", served_demo: Running, scan: Path, scheme: str) -> None:
    """Nothing is wider than 360 pixels, in both color schemes."""
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    for visited in visit(browser, served_demo, color_scheme=scheme, **phone):
        visited.open()
        visited.load(scan)
        visited["#modality"].select_option("CT")
        visited.choose("liver", "left kidney", "right lung")
        visited["#groups-part summary"].click()
        visited.run()
        visited["#patterns"].check()
        visited["#draw"].tap()
        visited.touch("#viewer", (60, 150), (80, 150))
        visited.expect("#undo-stroke").to_be_enabled()
        assert visited.page.evaluate("document.documentElement.scrollWidth") <= 360
        visited.expect("#notice").to_be_in_viewport()
        assert visited.violations() == []


@in_browser
def test_data_can_be_deleted(visited: Visit, served_demo: Running, scan: Path) -> None:
    visited.load(scan)

    def uploads() -> set[Path]:
        return {path for path in lying(served_demo.data_dir) if path.name == "upload.nii.gz"}

    before = uploads()  # of other sessions as well
    visited["#end-session"].click()
    visited["#ask-choices button"].click()
    visited.expect("#scans li").to_have_count(0)
    until(lambda: len(before - uploads()) == 1)
