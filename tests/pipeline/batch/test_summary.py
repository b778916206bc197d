"""Tables and page tell of all that the folders hold, whichever batch made it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from medals_rt.bundle.bundle import Bundle
from tests.pipeline.batch.helpers import KIDNEY, Result, batch, statuses, write_case


@pytest.fixture
def one(tiny_bundle: Bundle, scans: Path, out: Path) -> Callable[..., Result]:
    """Run the batch on some of the scans, with pictures and statistics."""

    def invoke(*names: str, words: tuple[object, ...] = ()) -> Result:
        inputs = [scans / name for name in names]
        return batch(tiny_bundle.folder, *inputs, out, "--statistics", *words)

    return invoke


def test_cases_of_earlier_batches_are_listed(one: Callable[..., Result], out: Path) -> None:
    assert one("case1.npz").exit_code == 0
    result = one("case2.npz", "case0.npz")
    assert result.exit_code == 0, result.output
    assert statuses(out) == {"case2": "done", "case0": "done", "case1": "kept"}
    assert list(statuses(out)) == ["case2", "case0", "case1"]
    assert result.stdout.startswith("2 done\n")  # the command tells of its own
    rows = (out / "statistics.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["case2", "case0", "case1"]
    page = (out / "index.html").read_text(encoding="utf-8")
    for name in ("case0", "case1", "case2"):
        for link in (f"{name}.npz", f"reports/{name}.json", f"previews/{name}.png"):
            assert f'"{link}"' in page
    assert page.count('"kept",""') == 1


def test_a_row_of_an_earlier_case_is_that_of_its_batch(
    one: Callable[..., Result], out: Path
) -> None:
    def row(name: str) -> list[str]:
        lines = (out / "summary.csv").read_text(encoding="utf-8").splitlines()
        return next(line.split(",") for line in lines if line.startswith(f"{name},"))

    assert one("case1.npz").exit_code == 0
    alone = row("case1")
    assert one("case2.npz").exit_code == 0
    assert row("case1") == [alone[0], "kept", *alone[2:]]


@pytest.mark.parametrize("name", ["case1.npz", "reports/case1.json", ".medals-rt/case1.json"])
def test_what_is_gone_is_not_listed(one: Callable[..., Result], out: Path, name: str) -> None:
    assert one("case1.npz").exit_code == 0
    (out / name).unlink()
    assert one("case2.npz").exit_code == 0
    assert statuses(out) == {"case2": "done"}


def test_what_was_changed_is_listed_with_a_warning(one: Callable[..., Result], out: Path) -> None:
    assert one("case1.npz").exit_code == 0
    (out / "case1.npz").write_bytes(b"somebody's")
    assert one("case2.npz").exit_code == 0
    assert statuses(out) == {"case1": "kept", "case2": "done"}
    assert "case1.npz was changed" in (out / "index.html").read_text(encoding="utf-8")


def test_formats_folders_and_pictures_differ_from_batch_to_batch(
    tiny_bundle: Bundle, tmp_path: Path, out: Path
) -> None:
    scans, reports = tmp_path / "scans", tmp_path / "reports"
    write_case(scans / "deep" / "a  b.v2.npz", prompts=KIDNEY)
    write_case(scans / "c.npz", prompts=KIDNEY)
    words = ("--reports", reports)
    first = batch(tiny_bundle.folder, scans, out, "--no-preview", "--format", "seg.nrrd", *words)
    assert first.exit_code == 0, first.output
    (scans / "deep" / "a  b.v2.npz").unlink()
    assert batch(tiny_bundle.folder, scans, out, *words).exit_code == 0
    assert statuses(reports) == {"c": "done", "deep/a b.v2": "kept"}
    assert '"../out/deep/a%20%20b.v2.seg.nrrd"' in (reports / "index.html").read_text(
        encoding="utf-8"
    )
    assert batch(tiny_bundle.folder, scans, tmp_path / "new", *words).exit_code == 0
    assert statuses(reports) == {"c": "done"}  # the other's result lies elsewhere


def test_a_case_that_failed_now_is_not_also_listed_as_finished(
    one: Callable[..., Result], scans: Path, out: Path
) -> None:
    assert one("case0.npz", "case1.npz").exit_code == 0
    (scans / "case1.npz").write_bytes(b"noise")
    assert one("case1.npz").exit_code == 1
    assert statuses(out) == {"case1": "failed", "case0": "kept"}


def test_a_result_that_stayed_where_its_case_failed_is_listed_by_other_batches(
    one: Callable[..., Result], out: Path
) -> None:
    assert one("case1.npz").exit_code == 0
    assert one("case1.npz", words=("--instances",)).exit_code == 1
    assert statuses(out) == {"case1": "failed"}
    assert "previews/case1.png" not in (out / "index.html").read_text(encoding="utf-8")
    assert one("case2.npz").exit_code == 0
    assert statuses(out) == {"case2": "done", "case1": "kept"}
