"""`index.html`: whole, offline, and safe whatever the names and messages hold."""

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from medals_rt.common.errors import MissingDependencyError
from medals_rt.common.notes import Note, warning
from medals_rt.io.palette import class_color, hex_color
from medals_rt.pipeline.batch import Entry
from medals_rt.pipeline.batch.page import CLASS_COLUMNS, COLUMNS, duration, write_page
from medals_rt.pipeline.batch.paths import CasePaths
from medals_rt.pipeline.batch.plan import BatchCase
from medals_rt.pipeline.class_statistics import ClassStatistics
from medals_rt.pipeline.job_request import Job
from tests.errors import raises

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7*7}}"
FILE_NAME = "javascript:a'\"<b> 100%#?"

LIVER = ClassStatistics(1, "Liver", 5, 1500.0, 60.5, 9.25, 2, (0, 0, 0), (5, 1, 1), (5.0, 1.0, 1.0))
SPLEEN = ClassStatistics(2, HOSTILE, 0, 0.0, None, None, 0, None, None, None)
DONE = Entry(
    name="case",
    input="in/case.npz",
    output="out/case.npz",
    status="done",
    modality="CT",
    kind="anatomy",
    shape_dhw=(10, 20, 30),
    spacing_hwd_mm=(1.0, 1.5, 2.5),
    seconds=125.0,
    seconds_per_class=62.5,
    within_challenge=False,
    notes=(warning("x", HOSTILE), Note("cut-by-edge", "at the edge")),
    classes=(LIVER, SPLEEN),
)


def batch_case(folder: Path, name: str) -> BatchCase:
    paths = CasePaths(name, folder, folder, ".npz")
    job = Job(
        input=Path("in") / f"{name}.npz",
        output=paths.labels,
        report=paths.files()["report"],
        preview=paths.files()["preview"],
    )
    return BatchCase(job, paths)


def page_of(folder: Path, entries: list[Entry]) -> Path:
    path = folder / "index.html"
    write_page(path, folder.name, [(batch_case(folder, entry.name), entry) for entry in entries])
    return path


def element(path: Path, start: str) -> str:
    found = re.search(f"<script{start}>(.*?)</script>", path.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a page by the names of their members, texts in the place of numbers."""
    content = json.loads(element(path, ' type="application/json" id="content"'))
    texts = content["texts"]
    rows = []
    for row in content["cases"]:
        named = dict(zip(COLUMNS, row, strict=True))
        named["classes"] = [
            dict(zip(CLASS_COLUMNS, each, strict=True)) for each in named["classes"]
        ]
        for each in named["classes"]:
            each["name"] = texts[each["name"]]
            each["color"] = texts[each["color"]]
        named["what"] = texts[named["what"]]
        for notes in ("warnings", "remarks"):
            named[notes] = [texts[number] for number in named[notes]]
        rows.append(named)
    return rows


FAILED = Entry(name="broken", input="in/x", output="", status="failed", error="no image in it")


def test_what_a_page_holds(tmp_path: Path) -> None:
    done, failed = rows_of(page_of(tmp_path, [DONE, FAILED]))
    assert done["links"] == ["case.npz", "reports/case.json", "previews/case.png"]
    assert (done["warnings"], done["remarks"]) == ([HOSTILE], ["at the edge"])
    assert (done["late"], done["what"], done["shape_dhw"]) == (1, "CT, anatomy", [10, 20, 30])
    liver, spleen = done["classes"]
    assert liver == {
        "label": 1, "name": "Liver", "volume_ml": 1500.0, "mean": 60.5, "sd": 9.25,
        "components": 2, "outlier": 0, "color": hex_color(class_color("Liver")),
    }  # fmt: skip
    assert (spleen["name"], spleen["volume_ml"]) == (HOSTILE, None)
    assert (failed["error"], failed["input"], failed["links"]) == ("no image in it", "in/x", [])


def test_nothing_but_its_own_script_may_run_and_nothing_is_fetched(tmp_path: Path) -> None:
    path = page_of(tmp_path, [replace(DONE, name=FILE_NAME), replace(FAILED, error=HOSTILE)])
    text = path.read_text(encoding="utf-8")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy"\s+content="([^"]*)"', text)
    digest = hashlib.sha256(element(path, "").encode()).digest()
    assert policy.split("; ") == [
        "default-src 'none'",
        "img-src 'self' file: data:",
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{base64.b64encode(digest).decode()}'",
    ]
    assert text.count("<script") == 2
    assert "<img" not in text
    for word in ("http:", "https:", "url(", "@import", "innerHTML", "<link"):
        assert word not in text


def test_links_stay_in_the_folder_whatever_the_name(tmp_path: Path) -> None:
    (row, _) = rows_of(page_of(tmp_path, [replace(DONE, name=FILE_NAME), FAILED]))
    for link in row["links"]:
        assert "javascript:" not in link
        assert "//" not in link
        assert FILE_NAME in unquote(link)


def test_links_lead_from_the_reports_to_the_results(tmp_path: Path) -> None:
    case = batch_case(tmp_path / "out", "deep/a b")
    page = tmp_path / "reports" / "index.html"
    page.parent.mkdir()
    write_page(
        page, "x", [(case, DONE), (replace(case, job=replace(case.job, preview=None)), DONE)]
    )
    first, second = rows_of(page)
    assert first["links"][0] == "../out/deep/a%20b.npz"
    assert second["links"][2] == ""


def test_a_page_of_very_many_cases_says_what_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "left out" not in page_of(tmp_path, [DONE, FAILED]).read_text(encoding="utf-8")
    monkeypatch.setattr("medals_rt.pipeline.batch.page.MOST_CASES", 1)
    page = page_of(tmp_path, [DONE, FAILED])
    assert [row["name"] for row in rows_of(page)] == ["case"]
    assert "The last 1 cases are left out here; summary.csv has all." in page.read_text("utf-8")
    assert "2 cases" in page.read_text("utf-8")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    write_page(page, "x", [(batch_case(tmp_path, "caf\udce9"), replace(DONE, name="caf\udce9"))])
    (row,) = rows_of(page)
    assert row["links"][0] == "caf%E9.npz"
    assert row["name"] == "caf\udce9"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 00 s"), (3599.6, "1 h 00 min")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medals_rt.common.optional_deps.find_spec", lambda _: None)
    with raises(MissingDependencyError, "dependency-missing", "medals-rt[preview]"):
        page_of(tmp_path, [DONE])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="the page is looked at in a browser")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium here: the page is not looked at in a browser")
    with api.sync_playwright() as playwright:
        words = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND"]
        opened = playwright.chromium.launch(executable_path=program, args=words)
        yield opened
        opened.close()


@pytest.fixture
def shown(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Show a page of 120 cases, and see that it asks for files alone and that nothing fails."""
    volumes = [1500.0 + number for number in range(119)] + [9000.0]
    entries = [
        replace(
            DONE,
            name=f"case{number}",
            status="kept" if number % 2 else "done",
            seconds=float(number),
            within_challenge=True,
            notes=DONE.notes if number == 7 else (),
            classes=(replace(LIVER, volume_ml=volume), SPLEEN),
        )
        for number, volume in enumerate(volumes)
    ]
    entries.append(replace(FAILED, name=FILE_NAME, error=HOSTILE))
    path = page_of(tmp_path, entries)
    (tmp_path / "previews").mkdir()
    page = browser.new_page(viewport={"width": 1500, "height": 900})
    said: list[str] = []
    page.on("request", lambda request: said.append(request.url))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
    page.goto(path.as_uri())
    page.wait_for_selector("#rows tr")
    yield page
    page.close()
    assert all(each.startswith("file:") for each in said), said


def names(page: Any) -> list[str]:
    return [each[2:] for each in page.locator(".toggle").all_inner_texts()]


def settle(page: Any, standing: str) -> None:
    """Wait until the page says which cases it shows."""
    page.get_by_text(standing, exact=True).wait_for()


def test_pages_sorting_and_search_in_a_browser(shown: Any) -> None:
    settle(shown, "1 to 50 of 121")
    assert names(shown)[:3] == ["case0", "case1", "case2"]
    shown.locator("#next").click()
    shown.locator("#next").click()
    settle(shown, "101 to 121 of 121")
    assert shown.locator("#next").is_disabled()
    shown.locator("th[data-key=seconds] button").click()  # the longest first
    settle(shown, "1 to 50 of 121")
    assert names(shown)[:2] == ["case119", "case118"]
    shown.locator("th[data-key=name] button").click()
    assert names(shown)[:4] == ["case0", "case1", "case2", "case3"]  # numbers as numbers
    shown.fill("#search", "CASE11 kept")
    settle(shown, "no case")
    shown.fill("#search", "onerror alert")
    settle(shown, "1 to 2 of 2")
    assert set(names(shown)) == {FILE_NAME, "case7"}


def test_filters_and_outliers_in_a_browser(shown: Any) -> None:
    labels = shown.locator("#filter label").all_inner_texts()
    assert labels == [
        "all121", "done now60", "finished before60", "failed1", "with warnings1", "unusual volume1",
    ]  # fmt: skip
    shown.locator("label[for=only-outliers]").click()
    settle(shown, "1 to 1 of 1")
    assert names(shown) == ["case119"]
    shown.locator("label[for=only-all]").click()
    shown.select_option("#chosen", "Liver")
    settle(shown, "1 to 50 of 121")
    assert names(shown)[:2] == ["case119", "case118"]
    assert "9,000 mL" in shown.locator("#rows tr").first.inner_text()


def test_the_details_of_a_case_in_a_browser(shown: Any) -> None:
    shown.fill("#search", "at the edge")
    settle(shown, "1 to 1 of 1")
    shown.locator(".toggle").click()
    details = shown.locator("tr.details")
    text = " ".join(details.inner_text().split())
    for words in (
        "20 x 30 x 10 voxels", "1 x 1.5 x 2.5 mm", "62.5 s a class", "1,507 mL", "60.5 ± 9.25",
        "not found", "at the edge", HOSTILE,
    ):  # fmt: skip
        assert words in text
    assert details.locator("img").get_attribute("src") == "previews/case7.png"
    assert details.locator("a").first.get_attribute("href") == "case7.npz"
    shown.fill("#search", "broken")
    settle(shown, "no case")
    shown.fill("#search", "<script>")
    settle(shown, "1 to 2 of 2")
    shown.locator(".toggle").last.click()
    assert shown.locator("#rows script").count() == 0
