import json
from html.parser import HTMLParser
from pathlib import Path

import msgspec

from medals_rt.tools.bench.pages import headlines, row_of, write_pages
from medals_rt.tools.bench.records import (
    Answer,
    Backend,
    BenchReport,
    CaseFacts,
    Roofline,
    RunTime,
    Scaling,
    StageWork,
    Standing,
)

HOSTILE = "<script>alert(1)</script>"


def answer(*seconds: float, **more: object) -> Answer:
    runs = tuple(RunTime(s, {"coarse: network": 0.7 * s, "download": 0.3 * s}) for s in seconds)
    return Answer("1.0", "cpu", "bf16", 2, open_seconds=0.5, runs=runs, **more)


def report(*standings: Standing) -> BenchReport:
    return BenchReport(
        format=1,
        date="2026-11-24",
        bundle={"name": HOSTILE, "hash": "0" * 64, "precision": "fp32"},
        machine={"system": "Linux", "architecture": "x86_64", "processor": "P", "cores": 2},
        versions={"python": "3.11"},
        case=CaseFacts(HOSTILE, (4, 5, 6), (1.0, 1.0, 3.0), {"1": HOSTILE, "2": "b"}, "masked"),
        repetitions=3,
        baseline="pytorch bf16",
        standings=standings,
        budget_seconds_per_class=60.0,
    )


STAGE = StageWork("coarse", 1, 1, (8, 8, 8), (8, 8, 8), tflop=2.0, network_seconds=1.0)
FULL = report(
    Standing(
        Backend("openvino"),
        cold=answer(4.0),
        warm=answer(1.0, 2.0, 3.0, stages=(STAGE,), peak_memory_mib=900.0),
        classes=answer(scaling=(Scaling(1, 1.0, 1.2, 800.0), Scaling(243, 9.0, None, 900.0))),
        volumes=answer(scaling=(Scaling(1000, 1.0, None, None), Scaling(2000, 2.0, 3.0, None))),
        roofline=answer(roofline=Roofline(3.0, 2.5)),
    ),
    Standing(Backend("onnxruntime"), failure=f"broke {HOSTILE}"),
    Standing(Backend("pytorch", "bf16"), warm=answer(4.0, 4.0, 4.0)),
)


def test_a_row_says_the_figures() -> None:
    row = row_of(FULL.standings[0], FULL)

    assert (row.cold_first, row.p50, row.p95) == ("4.00", "2.00", "2.90")
    assert row.per_class == "1.00"
    assert row.against_baseline == "2.00x"
    assert row_of(FULL.standings[1], FULL).p50 == ""


def test_headlines_come_from_the_first_backend() -> None:
    assert [each.figure for each in headlines(FULL)] == ["2.00 s", "1.00 s", "2.00x", "900 MiB"]


def test_the_page_is_whole_and_holds_no_foreign_code(tmp_path: Path) -> None:
    class Tags(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []
            self.links: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.seen.append(tag)
            self.links += [v or "" for k, v in attrs if k in {"src", "href"} and tag != "use"]

    paths = write_pages(tmp_path / "out", FULL)

    assert [path.name for path in paths] == ["report.json", "report.md", "report.html"]
    tags = Tags()
    tags.feed(paths[2].read_text(encoding="utf-8"))
    assert "script" not in tags.seen
    assert tags.seen.count("svg") == 5
    assert not [link for link in tags.links if not link.startswith("#")]
    assert json.loads(paths[0].read_text(encoding="utf-8"))["case"]["prompts"]["2"] == "b"
    markdown = paths[1].read_text(encoding="utf-8")
    assert "| openvino | bf16, cpu | 0.50 | 4.00 | 0.50 | 2.00 | 2.90 |" in markdown
    assert "| 243 | 9.00 |  | 900 |" in markdown


def test_runners_that_were_left_out_are_told(tmp_path: Path) -> None:
    why = "tensorrt is left out: there is no TensorRT engine"
    paths = write_pages(tmp_path, msgspec.structs.replace(FULL, left_out=(why,)))

    assert all(why in path.read_text(encoding="utf-8") for path in paths)


def test_a_report_without_any_finished_runner_is_still_a_report(tmp_path: Path) -> None:
    empty = report(Standing(Backend("openvino"), failure="no such library"))

    _, markdown, page = write_pages(tmp_path, empty)

    assert "openvino failed: no such library" in markdown.read_text(encoding="utf-8")
    assert "no such library" in page.read_text(encoding="utf-8")
