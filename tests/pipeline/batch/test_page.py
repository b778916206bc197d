"""`index.html`: whole, offline, and safe whatever the names and messages hold."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from medals_rt.common.errors import MissingDependencyError
from medals_rt.common.notes import Note, warning
from medals_rt.pipeline.batch import Entry
from medals_rt.pipeline.batch.find import BatchCase
from medals_rt.pipeline.batch.page import card, duration, write_page
from medals_rt.pipeline.class_statistics import ClassStatistics
from medals_rt.pipeline.job import Job
from tests.errors import raises

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7*7}}"
FILE_NAME = "javascript:a'\"<b> 100%#?"
VOID = {"meta", "link", "img", "input", "br", "hr"}

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


class Page(HTMLParser):
    """Collects the elements of a page and sees that they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def batch_case(folder: Path, name: str) -> BatchCase:
    job = Job(
        input=Path("in") / f"{name}.npz",
        output=folder / f"{name}.npz",
        report=folder / "reports" / f"{name}.json",
        preview=folder / "previews" / f"{name}.png",
    )
    return BatchCase(name, job, folder / ".medals-rt" / f"{name}.json")


def page_of(folder: Path, entries: list[Entry]) -> Page:
    path = folder / "index.html"
    write_page(path, folder.name, [(batch_case(folder, entry.name), entry) for entry in entries])
    return Page(path.read_text(encoding="utf-8"))


def test_what_stands_on_the_page(tmp_path: Path) -> None:
    failed = Entry(name="broken", input="in/x", output="", status="failed", error="no image in it")
    kept = replace(DONE, name="old", status="kept", within_challenge=True, notes=DONE.notes[1:])
    page = page_of(tmp_path, [DONE, failed, kept])
    assert [item.get("class") for item in page.all("li")] == ["warning", None, None]
    text = " ".join(" ".join(page.words).split())
    for words in (
        "20 x 30 x 10 voxels", "1 x 1.5 x 2.5 mm", "2 min 05 s", "62.5 s a class", "1,500 mL",
        "60.5 ± 9.2", "not found", "no image in it", "over the time limit", "in/x", "4 min 10 s",
    ):  # fmt: skip
        assert words in text
    classes = [article["class"] for article in page.all("article")]
    assert classes == ["done noted late", "failed", "kept"]
    assert [image["src"] for image in page.all("img")] == ["previews/case.png", "previews/old.png"]
    filters = [each["id"] for each in page.all("input")]
    assert filters == [
        f"only-{name}" for name in ("all", "done", "kept", "failed", "noted", "late")
    ]
    assert {label["for"] for label in page.all("label")} == set(filters)


def test_only_filters_that_would_find_something(tmp_path: Path) -> None:
    page = page_of(tmp_path, [replace(DONE, notes=(), within_challenge=True)])
    assert [each["id"] for each in page.all("input")] == ["only-all", "only-done"]


def test_hostile_names_and_messages_stay_text(tmp_path: Path) -> None:
    failed = Entry(name="b", input=HOSTILE, output="", status="failed", error=HOSTILE)
    page = page_of(tmp_path, [replace(DONE, name=FILE_NAME), failed])
    assert not page.all("script")
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    assert "".join(page.words).count(HOSTILE) == 4  # note, class, input, error
    for attributes in [*page.all("a"), *page.all("img")]:
        link = attributes.get("href") or attributes["src"]
        assert "javascript:" not in link
        assert "//" not in link
        assert (tmp_path / unquote(link)).is_relative_to(tmp_path)
        assert FILE_NAME in unquote(link)


def test_nothing_is_fetched(tmp_path: Path) -> None:
    page = page_of(tmp_path, [DONE])
    policies = [each["content"] for each in page.all("meta") if "http-equiv" in each]
    assert [policy.partition(";")[0] for policy in policies] == ["default-src 'none'"]
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert not page.all("link")
    for word in ("http:", "https:", "url(", "@import"):
        assert word not in text


def test_links_lead_from_the_reports_to_the_results(tmp_path: Path) -> None:
    case = batch_case(tmp_path / "out", "deep/a b")
    made = card(replace(DONE, name="deep/a b"), case, tmp_path / "reports")
    assert made.result == "../out/deep/a%20b.npz"
    made = card(DONE, BatchCase("a", replace(case.job, preview=None), case.record), tmp_path)
    assert made.picture == ""


def test_names_that_are_no_text(tmp_path: Path) -> None:
    case = batch_case(tmp_path, "caf\udce9")
    assert card(DONE, case, tmp_path).result == "caf%E9.npz"


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
