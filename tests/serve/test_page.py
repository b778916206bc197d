"""The page in a real browser, Debian's Chromium, against the real service."""

import hashlib
import io
import json
import re
import shutil
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest

import medals_serve
from medals_rt.bundle.bundle import Bundle
from medals_rt.common.interruption import check_interruption
from medals_rt.io.palette import class_color
from medals_rt.io.registry import read_case
from medals_rt.pipeline.segmenter import CoarseLabels
from tests.browser import CHROMIUM
from tests.dicom import write_series
from tests.paths import ROOT
from tests.serve.serving import Running, image, lying, running, until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

PAGE = Path(medals_serve.__file__).parent / "page"
NIIVUE = PAGE / "vendor" / "niivue"
DEMO = ROOT / "engines" / "demo"
PATIENCE_MS = 60_000
"""WebGL is drawn by the processor here, which may be busy."""

# Its files --------------------------------------------------------------------------------------


def scripts() -> list[Path]:
    return sorted(PAGE.glob("*.js"))


def test_niivue_is_the_file_that_its_readme_names() -> None:
    stated = re.search(r"`([0-9a-f]{64})`", (NIIVUE / "README.md").read_text(encoding="utf-8"))
    assert stated
    assert hashlib.sha256((NIIVUE / "niivue.umd.js").read_bytes()).hexdigest() == stated[1]


def test_only_the_viewer_knows_niivue() -> None:
    users = [
        script.name
        for script in scripts()
        if "niivue" in script.read_text(encoding="utf-8").lower()
    ]
    assert users == ["viewer.js"]


@pytest.mark.parametrize("script", scripts(), ids=lambda script: script.name)
def test_texts_are_never_taken_for_html(script: Path) -> None:
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function"
    assert not re.search(forbidden, script.read_text(encoding="utf-8"))


# In a browser -----------------------------------------------------------------------------------

in_browser = pytest.mark.slow


@pytest.fixture(scope="module")
def served_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(Bundle.open(DEMO), tmp_path_factory.mktemp("served")) as found:
        yield found


@dataclass
class Visit:
    """A page that is open, and what it complained of."""

    page: "Page"
    address: str
    complaints: list[str] = field(default_factory=list)

    def __getitem__(self, selector: str) -> "Locator":
        return self.page.locator(selector)

    def open(self) -> None:
        self.page.goto(self.address)
        self.page.wait_for_selector("body[data-ready]")

    def load(self, *scans: Path) -> None:
        self.page.set_input_files("#file-input", list(scans))
        self.page.wait_for_selector("#viewer-empty", state="hidden")

    def choose(self, *texts: str) -> None:
        for text in texts:
            self["#search"].fill(text)
            self["#search"].press("Enter")
            self.expect("#search").to_have_value("")

    def run(self) -> None:
        before = self["#result-text"].text_content()
        self["#run"].click()
        self.expect("#result-text").not_to_have_text(str(before))
        self.expect("#run").to_be_enabled()

    def expect(self, selector: str) -> Any:
        from playwright.sync_api import expect

        return expect(self[selector])

    def download(self, button: str) -> tuple[str, bytes]:
        with self.page.expect_download() as caught:
            self[button].click()
        return caught.value.suggested_filename, caught.value.path().read_bytes()

    def fetched(self, what: str) -> bytes:
        """What the service has of the newest job."""
        path = f"v1/jobs/{self.job()}/{what}".rstrip("/")
        answer = self.page.context.request.get(self.address + path)
        assert answer.ok
        return bytes(answer.body())

    def job(self) -> str:
        """The newest job of the page's session."""
        jobs = self.page.evaluate("fetch('v1/jobs').then((answer) => answer.json())")["jobs"]
        return str(jobs[-1]["job"])

    def picture(self) -> npt.NDArray[np.int16]:
        """What the canvas shows, (row, column, RGB)."""
        from PIL import Image

        with Image.open(io.BytesIO(self["#viewer"].screenshot())) as image:
            return np.asarray(image.convert("RGB"), dtype=np.int16)

    def touch(self, selector: str, *path: tuple[int, int]) -> None:
        """Draw with a finger, from place to place in an element."""
        self[selector].scroll_into_view_if_needed()
        box = self[selector].bounding_box()
        assert box
        finger = self.page.context.new_cdp_session(self.page)
        for kind, (x, y) in zip(("touchStart", "touchMove"), path, strict=True):
            point = {"x": box["x"] + x, "y": box["y"] + y}
            finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
            self.page.wait_for_timeout(50)
        finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    def violations(self) -> list[str]:
        """What axe-core finds wrong; its package, imported, would read it as the locale says."""
        package = find_spec("axe_playwright_python")
        if package is None or package.origin is None:
            pytest.skip("axe-core is not installed: axe-playwright-python")
        script = Path(package.origin).with_name("axe.min.js")
        self.page.evaluate(script.read_text(encoding="utf-8"))
        found = self.page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
        return [f"{each['id']}: {[node['html'] for node in each['nodes']]}" for each in found]


def visit(browser: "Browser", served: Running, **context: Any) -> Iterator[Visit]:
    opened = browser.new_context(**context)
    opened.set_default_timeout(PATIENCE_MS)
    import playwright.sync_api

    playwright.sync_api.expect.set_options(timeout=PATIENCE_MS)
    page = opened.new_page()
    found = Visit(page, served.address + "/")
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.on("request", lambda request: _check_host(request.url, found))
    page.on("dialog", lambda dialog: found.complaints.append(f"dialog {dialog.message}"))
    page.on(
        "console",
        lambda said: said.type == "error" and found.complaints.append(f"{said.type} {said.text}"),
    )
    yield found
    page.close()
    opened.close()
    assert found.complaints == []


def _check_host(url: str, found: Visit) -> None:
    if not url.startswith((found.address, "blob:", "data:")):
        found.complaints.append(f"a request to {url}")


@pytest.fixture
def visited(browser: "Browser", served_demo: Running) -> Iterator[Visit]:
    for found in visit(browser, served_demo, viewport={"width": 1300, "height": 720}):
        found.open()
        yield found
        served_demo.gate.set()


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo case as NIfTI whose axes run to the front, to the feet and to the right."""
    volume = read_case(DEMO / "cases" / "ct_anatomy.npz").volume
    spacing_h, spacing_w, spacing_d = volume.spacing_hwd_mm
    image = nibabel.Nifti1Image(
        volume.image_dhw.astype(np.int16).transpose(),  # to the left, the back and the head
        np.array(
            [[-spacing_w, 0, 0, 190], [0, -spacing_h, 0, 160], [0, 0, spacing_d, -40], [0, 0, 0, 1]]
        ),
    )
    turned = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("LPS"), nibabel.orientations.axcodes2ornt("AIR")
    )
    path = tmp_path_factory.mktemp("scan") / "ct of someone.nii.gz"
    nibabel.save(image.as_reoriented(turned), path)
    return path


def nifti_of(content: bytes) -> Any:
    return nibabel.Nifti1Image.from_bytes(
        __import__("gzip").decompress(content) if content[:2] == b"\x1f\x8b" else content
    )


def to_patient(image: Any) -> npt.NDArray[Any]:
    """Voxels along the right, front and head of the patient."""
    return np.asarray(nibabel.as_closest_canonical(image).dataobj)


def dice(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float:
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


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


def on_screen(
    mask_xy: npt.NDArray[np.bool_], image: Any, shape: tuple[int, ...]
) -> npt.NDArray[np.bool_]:
    """An axial slice as it fills a picture: the patient's right on the left, the front on top."""
    width_mm, height_mm = (
        count * size
        for count, size in zip(mask_xy.shape, image.header.get_zooms()[:2], strict=True)
    )
    scale = min(shape[1] / width_mm, shape[0] / height_mm)
    rows, columns = np.indices(shape) + 0.5
    across = (columns - shape[1] / 2) / scale / width_mm + 0.5
    down = (rows - shape[0] / 2) / scale / height_mm + 0.5
    inside = (across >= 0) & (across < 1) & (down >= 0) & (down < 1)
    i = np.clip(((1 - across) * mask_xy.shape[0]).astype(int), 0, mask_xy.shape[0] - 1)
    j = np.clip(((1 - down) * mask_xy.shape[1]).astype(int), 0, mask_xy.shape[1] - 1)
    return inside & mask_xy[i, j]


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


def jobs_of(visited: Visit) -> list[dict[str, Any]]:
    """Return the session's jobs, as the service tells of them."""
    content = visited.page.evaluate("fetch('v1/sessions/current').then((answer) => answer.json())")
    return list(content["jobs"])


@in_browser
def test_a_reload_in_the_middle_of_a_job(visited: Visit, served_demo: Running, scan: Path) -> None:
    visited.load(scan)
    visited["#modality"].select_option("CT")
    visited.choose("liver", "spleen")
    served_demo.gate.clear()
    visited["#run"].press("Enter")
    visited.expect("#job-text").to_contain_text("Coarse stage, window 0 of 100")
    visited.expect("#cancel").to_be_focused()
    visited.page.reload()
    visited.page.wait_for_selector("body[data-ready]")
    visited.expect("#job-text").to_contain_text("Coarse stage, window 0 of 100")
    visited.expect("#scans .choose").to_contain_text("ct of someone.nii.gz")
    visited.expect("#chips li").to_have_count(2)
    visited["#cancel"].press("Enter")
    visited.expect("#run-hint").to_have_text("Canceled.")
    visited.expect("#run").to_be_focused()
    visited["#run"].click()
    visited.expect("#job-text").to_contain_text("Coarse stage")
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
    engine = served_demo.server.engine
    served_demo.gate.set()
    until(lambda: engine.jobs_waiting + engine.jobs_running == 0)  # jobs of other tests
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
    visited.expect("#job-text").to_contain_text("Coarse stage, window 0 of 100")
    time.sleep(1.0)  # a look at the second job would say that it waits
    visited.expect("#job-text").to_contain_text("Coarse stage, window 0 of 100")
    visited["#cancel"].press("Enter")
    visited.expect("#job-text").to_contain_text("Coarse stage")
    served_demo.gate.set()
    visited.expect("#result-text").to_contain_text("Run 1 of 1")
    visited.expect("#class-rows .go").to_have_text("Spleen")


@in_browser
def test_suggestions_hide_no_answer(visited: Visit) -> None:
    visited["#search"].fill("livr")
    visited.expect("#reading").not_to_be_empty()
    visited.expect("#suggestions").to_be_visible()
    reading, list_box = visited["#reading"].bounding_box(), visited["#suggestions"].bounding_box()
    assert reading
    assert list_box
    assert reading["y"] + reading["height"] <= list_box["y"]


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


def overlay_of(before: npt.NDArray[Any], after: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    return np.asarray(np.abs(after - before).max(axis=2) > 8)


HEARD = """
window.heard = [];
const announcer = document.getElementById("announcer");
new MutationObserver(() => heard.push(announcer.textContent)).observe(announcer, {childList: true});
"""
"""Keeps what screen readers are told, one after the other."""


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
