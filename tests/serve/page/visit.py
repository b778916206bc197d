"""A browser on the page, and what it shows."""

import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest

from tests.paths import ROOT
from tests.serve.serving import Running

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

DEMO = ROOT / "engines" / "demo"
PATIENCE_MS = 60_000
"""WebGL is drawn by the processor here, which may be busy."""


in_browser = pytest.mark.slow


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

    def load_ct(self, scan: Path, *classes: str) -> None:
        self.load(scan)
        self["#modality"].select_option("CT")
        self.choose(*classes)

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


def nifti_of(content: bytes) -> Any:
    return nibabel.Nifti1Image.from_bytes(
        gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    )


def to_patient(image: Any) -> npt.NDArray[Any]:
    """Voxels along the right, front and head of the patient."""
    return np.asarray(nibabel.as_closest_canonical(image).dataobj)


def dice(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float:
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


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


def overlay_of(before: npt.NDArray[Any], after: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    return np.asarray(np.abs(after - before).max(axis=2) > 8)
