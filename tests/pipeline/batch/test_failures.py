"""Cases that fail, models that can't be opened, full disks and Ctrl-C."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medals_rt.common.errors import BundleError, OutputError, RunnerError
from medals_rt.pipeline.batch import run as batch_run
from medals_rt.pipeline.options import RunOptions
from tests.pipeline.batch.helpers import LIVER, Result, files_below, statuses, write_case


def test_a_case_that_fails_is_told_and_the_rest_go_on(
    run: Callable[..., Result], scans: Path, out: Path
) -> None:
    (scans / "case0.npz").write_bytes(b"PK\3\4 noise")
    write_case(scans / "case1.npz", prompts={"1": "Livre in CT"})
    write_case(scans / "more" / "[red]x.npz", prompts={"1": "Spleen in CT"})  # not in the bundle
    result = run()
    assert result.exit_code == 1
    assert statuses(out) == {
        "case0": "failed",
        "case1": "failed",
        "case2": "done",
        "more/[red]x": "failed",
    }
    assert result.stderr.splitlines()[-1] == "error: 3 of 4 cases failed"
    assert "[red]x" in result.stdout
    assert "knows 4 classes and not CT Spleen" in (out / "summary.csv").read_text(encoding="utf-8")
    assert files_below(out) == ["case2.npz", "reports/case2.json", "summary.csv"]
    write_case(scans / "case1.npz", 1, LIVER)  # repaired
    run()
    assert statuses(out)["case1"] == "done"
    assert statuses(out)["case2"] == "kept"


def test_names_that_are_no_text_or_too_long_do_not_end_a_batch(
    run: Callable[..., Result], scans: Path, out: Path
) -> None:
    no_text, long, too_long = os.fsdecode(b"caf\xe9"), "l" * 240, "t" * 251
    for name in (no_text, long, too_long):
        write_case(scans / f"{name}.npz")
    result = run()
    assert result.exit_code == 1, result.output
    found = {name: status for name, status in statuses(out).items() if name[:4] != "case"}
    assert found == {"caf\N{REPLACEMENT CHARACTER}": "done", long: "done", too_long: "failed"}
    assert "File name too long" in (out / "summary.csv").read_text(encoding="utf-8")
    report = json.loads((out / "reports" / f"{no_text}.json").read_bytes())
    assert report["case"] == "caf\N{REPLACEMENT CHARACTER}"
    run()
    again = statuses(out)
    assert [again[name] for name in found] == ["kept", "kept", "failed"]


def test_no_result_of_earlier_content_stays_under_a_failed_name(
    run: Callable[..., Result], scans: Path, out: Path
) -> None:
    assert run().exit_code == 0
    for name in ("case0", "case1"):
        (scans / f"{name}.npz").write_bytes(b"noise")
    (out / "case1.npz").write_bytes(b"somebody else's work")
    assert run().exit_code == 1
    assert files_below(out) == [
        "case1.npz",
        "case2.npz",
        "reports/case2.json",
        "summary.csv",
    ]


@pytest.mark.parametrize(
    "words",
    [
        ("--instances",),
        ("--prompt", "Pancreas in CT"),
        ("--window", "bone", "--max-memory", "1MB"),
        (),
    ],
)
def test_an_earlier_result_of_the_same_scan_stays_where_the_case_fails(
    run: Callable[..., Result],
    out: Path,
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where it isn't known whether it is the same; not as what was asked for then."""
    assert run().exit_code == 0
    before = {name: (out / name).read_bytes() for name in files_below(out) if "csv" not in name}
    with monkeypatch.context() as patched:
        if not words:

            def refuse(_: object) -> None:
                raise PermissionError(13, "Permission denied", "a scan")

            patched.setattr(batch_run, "inputs_sha256", refuse)
        for _ in range(2):
            again = run(*words)
            assert again.exit_code == 1, again.output
            assert statuses(out) == {f"case{number}": "failed" for number in range(3)}
            table = (out / "summary.csv").read_text(encoding="utf-8")
            assert table.count("; the result of an earlier run stays") == 3
            assert {name: (out / name).read_bytes() for name in before} == before
    assert run().exit_code == 0
    assert statuses(out) == {f"case{number}": "kept" for number in range(3)}
    record = (out / ".medals-rt" / "case0.json").read_text(encoding="utf-8")
    assert '"status": "failed"' not in record


@pytest.mark.parametrize(
    ("step", "error", "words"),
    [
        ("read_job", MemoryError("3 GiB"), "out of memory (3 GiB)"),
        (
            "read_job",
            PermissionError(13, "Permission denied", "scans/case1.npz"),
            "scans/case1.npz: permission denied; check the file",
        ),
        ("segment_job", RunnerError("the library\nrefused"), "the library refused"),
        ("write_job", ZeroDivisionError("surprise"), "ZeroDivisionError: surprise"),
        ("measure", ZeroDivisionError("surprise"), "ZeroDivisionError: surprise"),
    ],
)
def test_whatever_a_case_raises_is_its_own_failure(
    run: Callable[..., Result],
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: Exception,
    words: str,
) -> None:
    original = getattr(batch_run, step)

    def fail(*given: Any, **options: Any) -> Any:
        job = getattr(given[0], "job", None) or getattr(given[1:2] and given[1], "job", given[0])
        done = original(*given, **options)
        if job.input.name == "case1.npz":
            raise error
        return done

    monkeypatch.setattr(batch_run, step, fail)
    assert run().exit_code == 1
    assert statuses(out) == {"case0": "done", "case1": "failed", "case2": "done"}
    assert words in (out / "summary.csv").read_text(encoding="utf-8")
    assert "case1.npz" not in files_below(out)
    assert "reports/case1.json" not in files_below(out)


def test_models_that_cannot_be_opened_end_the_batch(
    run: Callable[..., Result], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: RunOptions) -> None:
        raise BundleError("no such graph")

    monkeypatch.setattr(batch_run, "open_models", refuse)
    result = run()
    assert result.exit_code == 2
    assert result.stderr == "error: no such graph\n"
    assert files_below(out) == []


def test_a_full_disk_ends_the_batch_with_what_is_finished(
    run: Callable[..., Result], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = batch_run.write_job

    def write(read: Any, result: Any) -> Any:
        if read.job.input.name == "case1.npz":
            raise OutputError(f"can't write {read.job.output}: {os.strerror(errno.ENOSPC)}")
        return original(read, result)

    monkeypatch.setattr(batch_run, "write_job", write)
    result = run()
    assert result.exit_code == 1
    assert "No space left on device; 1 of 3 cases are finished" in result.stderr
    assert "summary.csv" not in files_below(out)
    monkeypatch.setattr(batch_run, "write_job", original)
    assert run().exit_code == 0
    assert statuses(out) == {"case0": "kept", "case1": "done", "case2": "done"}


def test_ctrl_c_keeps_what_is_finished(
    run: Callable[..., Result], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = batch_run.segment_job

    def segment(segmenter: Any, read: Any, progress: Any) -> Any:
        if read.job.input.name == "case1.npz":
            raise KeyboardInterrupt
        return original(segmenter, read, progress)

    monkeypatch.setattr(batch_run, "segment_job", segment)
    result = run()
    assert result.exit_code == 130
    last = result.stderr.splitlines()[-1]
    assert last.startswith("interrupted; 1 of 3 cases are finished")
    assert files_below(out) == ["case0.npz", "reports/case0.json"]
    monkeypatch.setattr(batch_run, "segment_job", original)
    assert run().exit_code == 0
    assert statuses(out) == {"case0": "kept", "case1": "done", "case2": "done"}
