"""Jobs that the page follows: reloads, several tabs, first answers, cancel."""

import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medals_rt.common.errors import InputError
from medals_rt.common.interruption import check_interruption
from medals_rt.io.palette import class_color
from medals_rt.pipeline.group_run import CoarseLabels
from tests.serve.page.visit import (
    Visit,
    dice,
    in_browser,
    nifti_of,
    on_screen,
    overlay_of,
)
from tests.serve.serving import Running, until


@dataclass
class Refining:
    """Holds jobs once so many parts of their coarse answer are there, until it is let go."""

    parts: int = 1
    go_on: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def refining(served_demo: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Refining]:
    held = Refining()
    segmenter = served_demo.segmenter
    assert segmenter is not None
    segment = segmenter.segment

    def segment_held(*given: Any, on_coarse: Any, **more: Any) -> Any:
        parts = 0

        def wait(found: CoarseLabels) -> None:
            nonlocal parts
            on_coarse(found)
            parts += 1
            while parts == held.parts and not held.go_on.wait(0.01):
                check_interruption()

        return segment(*given, on_coarse=wait, **more)

    monkeypatch.setattr(segmenter, "segment", segment_held)
    yield held
    held.go_on.set()


HEARD = """
window.heard = [];
const announcer = document.getElementById("announcer");
new MutationObserver(() => heard.push(announcer.textContent)).observe(announcer, {childList: true});
"""
"""Keeps what screen readers are told, one after the other."""


@in_browser
def test_a_reload_in_the_middle_of_a_job(visited: Visit, served_demo: Running, scan: Path) -> None:
    visited.load(scan)
    visited["#modality"].select_option("CT")
    visited.choose("liver", "spleen")
    served_demo.gate.clear()
    visited["#run"].press("Enter")
    visited.expect("#job-text").to_contain_text("First look, part 0 of 100")
    visited.expect("#cancel").to_be_focused()
    visited.page.reload()
    visited.page.wait_for_selector("body[data-ready]")
    visited.expect("#job-text").to_contain_text("First look, part 0 of 100")
    visited.expect("#scans .choose").to_contain_text("ct of someone.nii.gz")
    visited.expect("#chips li").to_have_count(2)
    visited["#cancel"].press("Enter")
    visited.expect("#run-hint").to_have_text("Canceled.")
    visited.expect("#run").to_be_focused()
    visited["#run"].click()
    visited.expect("#job-text").to_contain_text("First look")
    visited.page.reload()
    served_demo.gate.set()
    visited.expect("#class-rows tr").to_have_count(2)
    visited.page.reload()
    visited.expect("#result-text").to_contain_text("Run 1 of 1")


@in_browser
def test_jobs_followed_in_several_tabs_leave_room_for_requests(
    visited: Visit, served_demo: Running, scan: Path
) -> None:
    """A browser has six connections to a server, and eight jobs are followed here."""
    visited.load(scan)
    served_demo.gate.clear()
    started = visited.page.evaluate(
        """async () => {
          const ask = async (...given) => (await fetch(...given)).json();
          const [{ image }] = (await ask("v1/sessions/current")).images;
          const body = await (await fetch(`v1/images/${image}/volume.nii.gz`)).arrayBuffer();
          const jobs = [1, 2, 3, 4].map(async (number) => {
            const sent = { method: "POST", body };
            const { image } = await ask(`v1/images?filename=${number}.nii.gz`, sent);
            const asked = JSON.stringify({ image, prompts: ["liver in CT"], modality: "CT" });
            const headers = { "Content-Type": "application/json" };
            return ask("v1/jobs", { method: "POST", headers, body: asked });
          });
          return (await Promise.all(jobs)).map(({ status }) => status);
        }"""
    )
    assert started == ["queued"] * 4
    visited.page.reload()
    visited.page.wait_for_selector("body[data-ready]")
    other = visited.page.context.new_page()
    other.goto(visited.address)
    other.wait_for_selector("body[data-ready]")
    answered = other.evaluate("fetch('v1/model', { cache: 'no-store' }).then(({ ok }) => ok)")
    assert answered
    other.close()


@in_browser
def test_jobs_of_two_tabs_on_one_scan_are_shown_one_after_the_other(
    visited: Visit, served_demo: Running, scan: Path
) -> None:
    visited.load(scan)
    served_demo.gate.clear()
    visited.page.evaluate(
        """async () => {
          const ask = async (...given) => (await fetch(...given)).json();
          const [{ image }] = (await ask("v1/sessions/current")).images;
          const headers = { "Content-Type": "application/json" };
          for (const prompt of ["liver in CT", "spleen in CT"]) {
            const body = JSON.stringify({ image, prompts: [prompt] });
            await ask("v1/jobs", { method: "POST", headers, body });
          }
        }"""
    )
    visited.page.reload()
    visited.page.wait_for_selector("body[data-ready]")
    visited.expect("#job-text").to_contain_text("First look, part 0 of 100")
    time.sleep(1.0)  # a look at the second job would say that it waits
    visited.expect("#job-text").to_contain_text("First look, part 0 of 100")
    visited["#cancel"].press("Enter")
    visited.expect("#job-text").to_contain_text("First look")
    served_demo.gate.set()
    visited.expect("#result-text").to_contain_text("Run 1 of 1")
    visited.expect("#class-rows .go").to_have_text("Spleen")
    visited.expect("#modality").to_have_value("CT")  # the file says none, the job did
    visited.expect("#run").to_be_enabled()


@in_browser
def test_what_went_wrong_is_told_with_its_scan(
    visited: Visit, served_demo: Running, scan: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Not with the one that is open when the job fails, and still when its own is opened again."""
    failing = threading.Event()

    def fail(*_: Any, **__: Any) -> Any:
        failing.wait(60)
        raise InputError("one kidney too many")

    monkeypatch.setattr(served_demo.segmenter, "segment", fail)
    visited.load(scan)
    visited["#modality"].select_option("CT")
    visited.choose("liver")
    visited["#run"].click()
    visited.expect("#job").to_be_visible()
    visited.load(shutil.copy(scan, tmp_path / "another one.nii.gz"))
    failing.set()
    visited.expect("#scans li:first-child .choose").to_contain_text("failed")
    visited.expect("#run-problem").to_be_hidden()
    visited["#scans li:first-child .choose"].click()
    visited.expect("#run-problem").to_contain_text("one kidney too many")
    visited["#scans li:last-child .choose"].click()
    visited.expect("#run-problem").to_be_hidden()
    visited.page.reload()
    visited["#scans li:first-child .choose"].click()
    visited.expect("#run-problem").to_contain_text("one kidney too many")


@in_browser
def test_the_first_answer_is_shown_until_the_result_is_there(
    visited: Visit, refining: Refining, scan: Path
) -> None:
    """The coarse labels, at their place, in the colors of their classes."""
    refining.parts = 2  # lungs want another window of gray levels
    visited.load(scan)
    visited["#modality"].select_option("CT")
    visited.choose("liver", "left lung")
    visited["#planes input[value=axial]"].check()
    before = visited.picture()
    where = str(visited["#readout"].text_content())
    slice_mm = int(re.search(r"(\d+) S mm", where)[1])  # type: ignore[index]
    visited.page.evaluate(HEARD)
    visited["#run"].click()
    visited.expect("#first-answer").to_be_visible()
    heard = visited.page.evaluate("heard")
    assert heard.count("The first answer is shown and being refined") == 1
    assert visited.violations() == []

    until(lambda: json.loads(visited.fetched(""))["coarse_parts"] == 2)
    parts = [
        nibabel.as_closest_canonical(nifti_of(visited.fetched(f"coarse/{part}"))) for part in (1, 2)
    ]
    grid = parts[0]
    labels = np.maximum(*(np.asarray(part.dataobj) for part in parts))
    assert labels.shape != nibabel.as_closest_canonical(nibabel.load(scan)).shape
    k = round((slice_mm - grid.affine[2, 3]) / grid.affine[2, 2])
    expected = [on_screen(labels[:, :, k] == label, grid, before.shape[:2]) for label in (1, 2)]

    def shows_both() -> bool:
        return bool((overlay_of(before, visited.picture()) & expected[1]).any())

    until(shows_both)
    shown = visited.picture()
    assert dice(overlay_of(before, shown), expected[0] | expected[1]) > 0.9
    for inside, name in zip(expected, ("Liver", "Left lung"), strict=True):
        assert inside.sum() > 500
        mixed = 0.6 * before[inside] + 0.4 * 255 * np.array(class_color(name))
        np.testing.assert_allclose(np.median(shown[inside] - mixed, axis=0), 0, atol=6)

    visited.page.reload()
    visited.page.wait_for_selector("body[data-ready]")
    visited.expect("#first-answer").to_be_visible()
    refining.go_on.set()
    visited.expect("#class-rows tr").to_have_count(2)
    visited.expect("#first-answer").to_be_hidden()
    visited.expect("#announcer").to_contain_text("done")


@in_browser
def test_of_a_canceled_job_no_answer_stays(visited: Visit, refining: Refining, scan: Path) -> None:
    visited.load(scan)
    visited["#modality"].select_option("CT")
    visited.choose("liver")
    before = visited.picture()
    visited["#run"].click()
    visited.expect("#first-answer").to_be_visible()
    assert overlay_of(before, visited.picture()).sum() > 500
    visited["#cancel"].click()
    visited.expect("#run-hint").to_have_text("Canceled.")
    visited.expect("#first-answer").to_be_hidden()
    assert not overlay_of(before, visited.picture()).any()
    assert not refining.go_on.is_set()


@in_browser
def test_a_scan_is_removed_in_the_middle_of_its_job(
    visited: Visit, served_demo: Running, scan: Path
) -> None:
    """That the job is gone is no news then."""
    visited.load(scan)
    visited["#modality"].select_option("CT")
    visited.choose("liver")
    served_demo.gate.clear()
    visited["#run"].click()
    visited.expect("#job-text").to_contain_text("First look")
    visited["#scans li button.plain"].click()
    with visited.page.expect_response(lambda answer: answer.status == 404):
        visited["#ask-choices button"].click()
    visited.page.evaluate("new Promise((resolve) => setTimeout(resolve, 100))")
    visited.expect("#scans li").to_have_count(0)
    visited.expect("#run-problem").to_be_hidden()
    visited.expect("#job").to_be_hidden()
    assert {each.split(":")[0] for each in visited.complaints} == {"error Failed to load resource"}
    visited.complaints.clear()


@in_browser
def test_of_a_session_that_ended_no_first_answer_stays(
    visited: Visit, refining: Refining, scan: Path
) -> None:
    visited.load(scan)
    visited["#modality"].select_option("CT")
    visited.choose("liver", "spleen")
    visited["#run"].click()
    visited.expect("#first-answer").to_be_visible()
    visited.page.evaluate("fetch('v1/sessions/current', { method: 'DELETE' })")
    visited.expect("#page-problem").to_contain_text("session has ended")
    visited.expect("#first-answer").to_be_hidden()
    visited.expect("#run-problem").to_be_hidden()
    refining.go_on.set()
    assert {each.split(":")[0] for each in visited.complaints} == {"error Failed to load resource"}
    visited.complaints.clear()


@in_browser
def test_a_result_that_was_replaced_in_another_tab(visited: Visit, scan: Path) -> None:
    visited.load_ct(scan, "liver")
    visited.run()
    context = visited.page.context
    with context.expect_page() as opened:
        visited.page.evaluate("window.open(location.href)")
    other = Visit(opened.value, visited.address)
    other.expect("#draw").to_be_enabled()

    visited["#undo-run"].click()
    visited.run()  # instead of the first
    other["#download"].click()
    other.expect("#run-problem").to_contain_text("replaced in another tab. The newest is shown.")
    other.expect("#result-text").to_contain_text("Run 1 of 1")
    assert other.download("#download")[1]

    other["#draw"].click()
    other["#viewer"].press("Space")
    visited["#undo-run"].click()
    visited.run()
    other["#run"].click()
    other.expect("#ask-heading").to_have_text("This result was replaced in another tab")
    other["#ask-choices button"].click()
    other.expect("#result-text").to_contain_text("Run 2 of 2")
    visited.complaints.clear()  # that there is no such job
