"""A batch that is run again: what is finished is kept, what changed is done again."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.pipeline.batch import run as batch_run
from medals_rt.pipeline.batch.records import RECORD_FORMAT
from medals_rt.pipeline.options import RunOptions
from tests.pipeline.batch.helpers import KIDNEY, Result, batch, statuses, write_case


def test_a_second_run_keeps_all_and_opens_no_model(
    run: Callable[..., Result], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run().exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("case*")}

    def refuse(_: RunOptions) -> None:
        raise AssertionError

    monkeypatch.setattr(batch_run, "open_models", refuse)
    result = run()
    assert result.exit_code == 0, result.output
    assert set(statuses(out).values()) == {"kept"}
    assert "3 finished before" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in out.rglob("case*")} == before


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def outdate(path: Path) -> None:
    path.write_text(
        path.read_text(encoding="utf-8").replace(f'"format": {RECORD_FORMAT}', '"format": 2'),
        encoding="utf-8",
    )


CHANGES = {
    "another input": ("scans/case1.npz", lambda path: write_case(path, 99, KIDNEY)),
    "a result is gone": ("out/case1.npz", Path.unlink),
    "a result was changed": ("out/case1.npz", spoil),
    "a report was changed": ("out/reports/case1.json", spoil),
    "a record is gone": ("out/.medals-rt/case1.json", Path.unlink),
    "a record is cut off": (
        "out/.medals-rt/case1.json",
        lambda path: path.write_text("{", encoding="utf-8"),
    ),
    "a record of another format": ("out/.medals-rt/case1.json", outdate),
}


def test_only_what_changed_is_run_again(
    run: Callable[..., Result], tmp_path: Path, out: Path
) -> None:
    assert run().exit_code == 0
    for what, (name, make) in CHANGES.items():
        make(tmp_path / name)
        assert run().exit_code == 0, what
        assert statuses(out) == {"case0": "kept", "case1": "done", "case2": "kept"}, what
    assert run().exit_code == 0
    assert set(statuses(out).values()) == {"kept"}


def test_a_renamed_case_is_not_taken_for_another(
    run: Callable[..., Result], scans: Path, out: Path
) -> None:
    assert run().exit_code == 0
    (scans / "case0.npz").replace(scans / "swap.npz")
    (scans / "case2.npz").replace(scans / "case0.npz")
    (scans / "swap.npz").replace(scans / "case2.npz")
    before = (out / "case0.npz").read_bytes()
    assert run().exit_code == 0
    assert statuses(out) == {"case0": "done", "case1": "kept", "case2": "done"}
    assert (out / "case2.npz").read_bytes() == before


def test_options_that_decide_a_result_count(
    run: Callable[..., Result], tiny_bundle: Bundle, tmp_path: Path, scans: Path, out: Path
) -> None:
    assert run().exit_code == 0
    copy = tmp_path / "moved"
    shutil.copytree(tiny_bundle.folder, copy)
    assert batch(copy, scans, out, "--no-preview", "--threads", "1").exit_code == 0
    assert set(statuses(out).values()) == {"kept"}
    for words in (
        ["--seed", "7"],
        ["--refinement", "none"],
        ["--postprocess", "off"],
        ["--prompt", "liver in CT"],
        ["--prompt", "liver in CT", "--lesion", "adrenocortical carcinoma"],
    ):
        assert run(*words).exit_code == 0
        assert set(statuses(out).values()) == {"done"}


def test_the_version_counts(
    run: Callable[..., Result], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run().exit_code == 0
    monkeypatch.setattr("medals_rt.pipeline.batch.records.VERSION", "0.0.0")
    assert run().exit_code == 0
    assert set(statuses(out).values()) == {"done"}


def test_results_of_other_classes_are_replaced_with_a_warning(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    write_case(tmp_path / "scans" / "case.npz", 1, None)
    words = (tmp_path / "scans", tmp_path / "out", "--no-preview", "--modality", "CT", "--prompt")
    assert batch(tiny_bundle.folder, *words, "liver").exit_code == 0
    again = batch(tiny_bundle.folder, *words, "right kidney")
    assert again.exit_code == 0, again.output
    assert "earlier batch, which had Liver" in again.stderr
    assert "earlier batch" not in batch(tiny_bundle.folder, *words, "right kidney").stderr


@pytest.mark.parametrize("more", [("--split", "--format", "nii.gz"), ("--format", "nrrd")])
def test_results_are_replaced_with_a_warning_also_where_other_files_are_asked_for(
    tiny_bundle: Bundle, tmp_path: Path, more: tuple[str, ...]
) -> None:
    write_case(tmp_path / "scans" / "case.npz", 1, None)
    words = (tmp_path / "scans", tmp_path / "out", "--no-preview", "--modality", "CT", "--prompt")
    first = batch(tiny_bundle.folder, *words, "liver", "--format", "nii.gz")
    assert first.exit_code == 0, first.output
    again = batch(tiny_bundle.folder, *words, "right kidney", *more)
    assert again.exit_code == 0, again.output
    assert "earlier batch, which had Liver" in again.stderr
    assert ("case.nii.gz stays" in again.stderr) == ("nrrd" in more)


@pytest.mark.parametrize("own", ["scans", "scans/out"])
def test_results_among_the_scans_are_kept(
    tiny_bundle: Bundle, tmp_path: Path, scans: Path, own: str
) -> None:
    inputs = {"scans": scans, "scans/out": scans / "*"}[own]
    words = (inputs, tmp_path / own, "--format", "nii.gz", "--split", "--quiet")
    for status in ("done", "kept"):
        result = batch(tiny_bundle.folder, *words)
        assert (result.exit_code, result.stderr) == (0, "")
        assert statuses(tmp_path / own) == {f"case{number}": status for number in range(3)}
