"""OHIF, a DICOM viewer of the browser, as its makers build it: served beside an archive and driven.

Its files are no part of this project: MEDALS_RT_TEST_OHIF names a folder that `npm pack @ohif/app`
was unpacked into, which `.ci/run` makes. Tests skip where it, Chromium, Playwright or Orthanc is
absent.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pytest

from tests.orthanc import PASSWORD, USER, Orthanc

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_ARCHIVE: Final = "/dicom-web/"
_PROXY: Final = "/proxy/dicom/"
_UNDER: Final = "/ohif/"
VARIABLE: Final = "MEDALS_RT_TEST_OHIF"
PATIENCE_MS: Final = 90_000
_SOURCE: Final = {
    "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
    "sourceName": "archive",
    "configuration": {
        "friendlyName": "Orthanc",
        "name": "Orthanc",
        **dict.fromkeys(("wadoUriRoot", "qidoRoot", "wadoRoot"), "/dicom-web"),
        "qidoSupportsIncludeField": False,
        "imageRendering": "wadors",
        "thumbnailRendering": "wadors",
        "enableStudyLazyLoad": True,
        "singlepart": "bulkdata,video",
        "bulkDataURI": {"enabled": True, "relativeResolution": "studies"},
        "omitQuotationForMultipartRequest": True,
    },
}
_CONFIGURATION: Final = {
    "routerBasename": None,
    "extensions": [],
    "modes": [],
    "showStudyList": True,
    "maxNumberOfWebWorkers": 1,
    "showCPUFallbackMessage": False,
    "investigationalUseDialog": {"option": "never"},
    "defaultDataSourceName": "archive",
    "dataSources": [_SOURCE],
}

_HAS_IMAGES: Final = """() => {
  const {viewportGridService: grid, cornerstoneViewportService: viewports} = window.services;
  return viewports.getCornerstoneViewport(grid.getActiveViewportId())?.getImageIds().length > 0;
}"""
_HAS_SEGMENTS: Final = """() => {
  const all = window.services.segmentationService.getSegmentations();
  return all.length > 0 && Object.keys(all[0].representationData).length > 0;
}"""
_FAILED: Final = "() => document.body.innerText.includes('Error loading displaySet')"
_SEGMENTS: Final = """() => {
  const {segmentationService: service, viewportGridService: grid} = window.services;
  const [found] = service.getSegmentations();
  const viewport = grid.getActiveViewportId();
  return Object.values(found.segments).map((each) => ({
    number: each.segmentIndex,
    name: each.label,
    color: Array.from(
      service.getSegmentColor(viewport, found.segmentationId, each.segmentIndex)).slice(0, 3),
  }));
}"""
_LABELS: Final = """() => {
  const [found] = window.services.segmentationService.getSegmentations();
  return found.representationData.Labelmap.imageIds.map((id) => {
    const image = window.cornerstone.cache.getImage(id);
    const plane = window.cornerstone.metaData.get('imagePlaneModule', image.referencedImageId);
    return {
      height: plane.imagePositionPatient[2],
      rows: image.rows,
      columns: image.columns,
      labels: Array.from(image.voxelManager.getScalarData()),
    };
  });
}"""
_LOOPS: Final = """() => {
  const [found] = window.services.segmentationService.getSegmentations();
  const state = window.cornerstoneTools.annotation.state;
  return Array.from(found.representationData.Contour.annotationUIDsMap).flatMap(
    ([number, uids]) => Array.from(uids).map((uid) => ({
      number: number,
      points: Array.from(state.getAnnotation(uid).data.contour.polyline).map(
        (point) => Array.from(point)),
    })));
}"""
_SHOW_SLICE: Final = """async (height) => {
  const {viewportGridService: grid, cornerstoneViewportService: viewports} = window.services;
  const viewport = viewports.getCornerstoneViewport(grid.getActiveViewportId());
  const heights = viewport.getImageIds().map(
    (id) => window.cornerstone.metaData.get('imagePlaneModule', id).imagePositionPatient[2]);
  const index = heights.findIndex((each) => Math.abs(each - height) < 1e-3);
  await viewport.setImageIdIndex(index);
  viewport.render();
}"""
_SHOW_SEGMENTS: Final = """(shown) => {
  const {viewportGridService: grid, segmentationService: service} = window.services;
  const viewport = grid.getActiveViewportId();
  for (const each of service.getSegmentationRepresentations(viewport)) {
    window.cornerstoneTools.segmentation.config.visibility.setSegmentationRepresentationVisibility(
      viewport, {segmentationId: each.segmentationId, type: each.type}, shown);
  }
}"""
_ON_CANVAS: Final = """(points) => {
  const {viewportGridService: grid, cornerstoneViewportService: viewports} = window.services;
  const viewport = viewports.getCornerstoneViewport(grid.getActiveViewportId());
  return points.map((point) => Array.from(viewport.worldToCanvas(point)));
}"""


def distribution() -> tuple[Path, str]:
    """Return the folder of OHIF's files, and its version."""
    named = os.environ.get(VARIABLE)
    if not named:
        pytest.skip(f"{VARIABLE} names no folder of OHIF (npm pack @ohif/app): nothing is shown")
    package = Path(named)
    version = json.loads((package / "package.json").read_text(encoding="utf-8"))["version"]
    return package / "dist", str(version)


class _Handler(SimpleHTTPRequestHandler):
    """Serve OHIF, and pass on to the archive, or to a service, what is asked of them."""

    def __init__(
        self, *arguments: Any, orthanc: Orthanc, service: str | None = None, **more: Any
    ) -> None:
        self.orthanc, self.service = orthanc, service
        super().__init__(*arguments, **more)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - its base's name
        """Log nothing."""

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(_ARCHIVE):
            self._of_archive(self.path)
        elif path.startswith(_PROXY):
            self._of_archive(_ARCHIVE + self.path[len(_PROXY) :].partition("/")[2])
        elif self.service is not None and not path.startswith(_UNDER):
            self._pass_on(self.service + self.path)
        elif path == "/app-config.js":
            self._answer(200, "text/javascript", f"window.config = {json.dumps(_CONFIGURATION)}")
        else:
            self.path = path.removeprefix(_UNDER.rstrip("/"))
            if not Path(self.translate_path(self.path)).is_file():
                self.path = "/index.html"
            super().do_GET()

    def do_POST(self) -> None:
        assert self.service is not None
        self._pass_on(self.service + self.path)

    def _of_archive(self, path: str) -> None:
        self._pass_on(f"http://127.0.0.1:{self.orthanc.http}{path}", auth=(USER, PASSWORD))

    def _pass_on(self, url: str, **more: Any) -> None:
        import requests

        passed = ("Accept", "Content-Type", "Host", "Origin", "Sec-Fetch-Site")
        answer = requests.request(
            self.command,
            url,
            headers={name: self.headers[name] for name in passed if name in self.headers},
            data=self.rfile.read(int(self.headers.get("Content-Length") or 0)),
            timeout=300,
            proxies={"http": ""},
            **more,
        )
        kind = answer.headers.get("Content-Type", "application/octet-stream")
        self._answer(answer.status_code, kind, answer.content)

    def _answer(self, status: int, kind: str, content: str | bytes) -> None:
        sent = content.encode() if isinstance(content, str) else content
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)


@contextmanager
def serving_ohif(
    orthanc: Orthanc, files: Path | None = None, service: str | None = None
) -> Iterator[str]:
    """Serve OHIF for an archive, and return its address.

    As a proxy would: `files` of a build at /ohif/, all else from a `service`.
    """
    directory = str(files or distribution()[0])
    handler = partial(_Handler, directory=directory, orthanc=orthanc, service=service)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a tab was closed
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Ohif:
    """A study that is open in OHIF."""

    page: Page

    def open(self, address: str, study: str, series: str) -> bool:
        """Open a study and one of its series of segments; whether OHIF could read that."""
        page = self.page
        page.goto(f"{address}/segmentation?StudyInstanceUIDs={study}")
        page.wait_for_selector(".cornerstone-canvas")
        page.wait_for_function(_HAS_IMAGES)
        page.get_by_text(series).first.dblclick()
        page.wait_for_function(f"() => ({_FAILED})() || ({_HAS_SEGMENTS})()")
        return bool(page.evaluate(_HAS_SEGMENTS))

    def segments(self) -> list[dict[str, Any]]:
        """Return number, name and color (RGB of 255) of each."""
        found: list[dict[str, Any]] = self.page.evaluate(_SEGMENTS)
        return found

    def labels(self) -> npt.NDArray[np.uint8]:
        """Return what it shows of label maps, `(k, j, i)` from the feet up."""
        slices = sorted(self.page.evaluate(_LABELS), key=lambda each: each["height"])
        return np.array(
            [
                np.array(each["labels"], np.uint8).reshape(each["rows"], each["columns"])
                for each in slices
            ]
        )

    def loops(self) -> list[tuple[int, npt.NDArray[np.float64]]]:
        """Return the number and the points, in millimeters of the patient, of each contour."""
        return [
            (int(each["number"]), np.array(each["points"])) for each in self.page.evaluate(_LOOPS)
        ]

    def drawn(self, points_lps_mm: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Return whether segments change the picture at points of one axial slice."""
        self.page.evaluate(_SHOW_SLICE, float(points_lps_mm[0, 2]))
        pictures = []
        for shown in (True, False):
            self.page.evaluate(_SHOW_SEGMENTS, shown)
            self.page.wait_for_timeout(1000)
            pictures.append(self._picture())
        self.page.evaluate(_SHOW_SEGMENTS, True)
        changed = np.abs(pictures[0] - pictures[1]).max(axis=2) > 8
        on_canvas = np.array(self.page.evaluate(_ON_CANVAS, points_lps_mm.tolist()))
        column, row = np.rint(on_canvas).astype(int).T
        height, width = changed.shape
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        assert inside.all(), "the whole slice is on the canvas"
        return np.asarray(changed[row, column])

    def _picture(self) -> npt.NDArray[np.int16]:
        from PIL import Image

        canvas = self.page.locator(".cornerstone-canvas").first
        with Image.open(BytesIO(canvas.screenshot())) as image:
            return np.asarray(image.convert("RGB"), dtype=np.int16)


@contextmanager
def browsing(browser: Browser) -> Iterator[Ohif]:
    """Open a tab."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    try:
        yield Ohif(context.new_page())
    finally:
        context.close()
