"""MONAI Label's extension in OHIF, as its wheel brings it, against a server, in a real browser."""

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.io.registry import read_case
from medals_rt.pipeline.job import run_job
from medals_rt.pipeline.job_request import Job
from medals_rt.pipeline.options import PromptSource, RunOptions
from tests.dicom import write_series
from tests.ohif import Ohif, browsing, serving_ohif
from tests.orthanc import PASSWORD, USER, running_orthanc
from tests.serve.serving import RUNNER, running

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow
AFFINE_LPS = np.diag([12.0, 12.0, 15.0, 1.0])
AFFINE_LPS[:3, 3] = (-90.0, -80.0, -50.0)
ASKED = ("Liver in abdominal CT", "Right kidney in abdominal CT")


def build() -> Path:
    spec = importlib.util.find_spec("monailabel")
    files = Path(spec.origin or "").parent / "endpoints/static/ohif" if spec else Path()
    if not (files / "index.html").is_file():
        pytest.skip("the wheel monailabel, which holds a build of OHIF, isn't installed")
    return files


def test_a_prompt_in_ohif(
    tiny_bundle: Bundle, browser: "Browser", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The series is fetched from the archive; labels and place are those of the command line."""
    files = build()
    monkeypatch.setenv("MEDALS_RT_DICOMWEB_USER", USER)
    monkeypatch.setenv("MEDALS_RT_DICOMWEB_PASSWORD", PASSWORD)
    values = np.random.default_rng(0).integers(-200, 300, (12, 24, 20)).astype(np.int16)
    write_series(tmp_path / "ct", values, AFFINE_LPS)
    output = tmp_path / "labels.npz"
    wanted = run_job(
        Job(
            input=tmp_path / "ct",
            output=output,
            source=PromptSource(sentences=ASKED),
            options=RunOptions(bundle=tiny_bundle.folder, **RUNNER),
        )
    )
    volume = read_case(tmp_path / "ct").volume
    with (
        running_orthanc(tmp_path / "orthanc") as archive,
        running(tiny_bundle, tmp_path / "served", studies=archive.address) as served,
        serving_ohif(archive, files, served.address) as address,
        browsing(browser) as ohif,
    ):
        archive.upload(tmp_path / "ct")
        names = ask(ohif, address)
        found = ohif.labels()
    shown = {names[value] for value in np.unique(found) if value}
    assert shown == {"Liver", "Right kidney"}
    for label, name in enumerate(("Liver", "Right kidney"), 1):
        mask = volume.restore(wanted.labels_dhw == label)
        assert mask.any()
        assert np.array_equal(np.isin(found, [v for v in names if names[v] == name]), mask)


def ask(ohif: Ohif, address: str) -> dict[int, str]:
    """Connect, type prompts into the options, run; names of the segments by number."""
    page = ohif.page
    page.goto(f"{address}/ohif/monai-label?StudyInstanceUIDs=1.2.3.4")
    page.wait_for_selector(".cornerstone-canvas")
    url = page.locator("#monailabelServerURL")
    url.wait_for()
    url.fill(address + "/")
    url.blur()
    page.locator(".monaiLabelPanel button").first.click()
    page.get_by_text("Options / Configurations").click()
    page.locator("select[name=selectName]").select_option("medal-s")
    page.locator(".optionsForm input[type=text]").first.fill("; ".join(ASKED))
    page.get_by_role("button", name="Confirm", exact=True).click()
    with page.expect_response(re.compile("/infer/")) as answered:
        page.locator("button[title='Run Segmentation']").click()
    assert answered.value.ok, answered.value.text()
    page.wait_for_timeout(3000)
    return {each["number"]: each["name"] for each in ohif.segments()}
