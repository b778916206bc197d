"""`medals-rt batch`: what is written, what is kept, what fails, and what overlaps."""

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medals_rt.batch import Entry, pipeline, plan_batch, run_batch
from medals_rt.bundle import Bundle
from medals_rt.errors import BundleError, OutputError, RunnerError
from medals_rt.job import read_job
from medals_rt.options import PromptSource, RunOptions
from tests.batch.helpers import KIDNEY, LIVER, SHAPE, batch, files_below, statuses, write_case
from tests.batch.helpers import write_json as write_json_file

Result = Any  # of typer's runner


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    for number, prompts in enumerate((LIVER, KIDNEY, LIVER)):
        write_case(folder / f"case{number}.npz", number, prompts)
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def run(tiny_bundle: Bundle, scans: Path, out: Path) -> Callable[..., Result]:
    """Run the batch over `scans` without pictures."""
    return lambda *words: batch(tiny_bundle.folder, scans, out, "--no-preview", *words)


def test_every_case_gets_its_files(tiny_bundle: Bundle, scans: Path, out: Path) -> None:
    result = batch(tiny_bundle.folder, scans, out, "--statistics")
    assert result.exit_code == 0, result.output
    names = ("case0", "case1", "case2")
    assert files_below(out) == sorted(
        ["index.html", "statistics.csv", "summary.csv"]
        + [f"{name}.npz" for name in names]
        + [f"previews/{name}.png" for name in names]
        + [f"reports/{name}.json" for name in names]
    )
    assert statuses(out) == dict.fromkeys(names, "done")
    assert result.stdout.startswith("3 done\n")
    assert [line[:5] for line in result.stderr.splitlines()] == ["[1/3]", "[2/3]", "[3/3]"]
    with np.load(out / "case1.npz", allow_pickle=True) as found:
        assert found["segs"].shape == SHAPE
        assert found["text_prompts"].item() == KIDNEY
        voxels = int((found["segs"] == 5).sum())
    row = (out / "statistics.csv").read_text().splitlines()[2].split(",")
    assert row[:4] == ["case1", "5", "Right kidney", str(voxels)]


def test_a_batch_gives_what_run_gives(
    run: Callable[..., Result], tiny_bundle: Bundle, scans: Path, out: Path
) -> None:
    from typer.testing import CliRunner

    from medals_rt.cli import app

    assert run().exit_code == 0
    alone = out / "alone.npz"
    words = ["run", "--input", scans / "case2.npz", "--output", alone, "--precision", "fp32"]
    words += ["--bundle", tiny_bundle.folder, "--runner", "onnxruntime", "--quiet"]
    assert CliRunner().invoke(app, list(map(str, words))).exit_code == 0
    assert alone.read_bytes() == (out / "case2.npz").read_bytes()


def test_a_second_run_keeps_all_and_opens_no_model(
    run: Callable[..., Result], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run().exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("case*")}

    def refuse(_: RunOptions) -> None:
        raise AssertionError

    monkeypatch.setattr(pipeline, "open_models", refuse)
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
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))


CHANGES = {
    "another input": ("scans/case1.npz", lambda path: write_case(path, 99, KIDNEY)),
    "a result is gone": ("out/case1.npz", Path.unlink),
    "a result was changed": ("out/case1.npz", spoil),
    "a report was changed": ("out/reports/case1.json", spoil),
    "a record is gone": ("out/.medals-rt/case1.json", Path.unlink),
    "a record is cut off": ("out/.medals-rt/case1.json", lambda path: path.write_text("{")),
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
    for words in (["--seed", "7"], ["--refinement", "none"], ["--prompt", "liver in CT"]):
        assert run(*words).exit_code == 0
        assert set(statuses(out).values()) == {"done"}


def test_the_version_counts(
    run: Callable[..., Result], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run().exit_code == 0
    monkeypatch.setattr("medals_rt.__version__", "0.0.0")
    assert run().exit_code == 0
    assert set(statuses(out).values()) == {"done"}


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
    assert "knows 4 classes and not CT Spleen" in (out / "summary.csv").read_text()
    assert files_below(out) == ["case2.npz", "reports/case2.json", "summary.csv"]
    write_case(scans / "case1.npz", 1, LIVER)  # repaired
    run()
    assert statuses(out)["case1"] == "done"
    assert statuses(out)["case2"] == "kept"


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
    ("step", "error", "words"),
    [
        ("read_job", MemoryError("3 GiB"), "out of memory (3 GiB)"),
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
    original = getattr(pipeline, step)

    def fail(*given: Any, **options: Any) -> Any:
        job = getattr(given[0], "job", None) or getattr(given[1:2] and given[1], "job", given[0])
        done = original(*given, **options)
        if job.input.name == "case1.npz":
            raise error
        return done

    monkeypatch.setattr(pipeline, step, fail)
    assert run().exit_code == 1
    assert statuses(out) == {"case0": "done", "case1": "failed", "case2": "done"}
    assert words in (out / "summary.csv").read_text()
    assert "case1.npz" not in files_below(out)
    assert "reports/case1.json" not in files_below(out)


def test_models_that_cannot_be_opened_end_the_batch(
    run: Callable[..., Result], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: RunOptions) -> None:
        raise BundleError("no such graph")

    monkeypatch.setattr(pipeline, "open_models", refuse)
    result = run()
    assert result.exit_code == 2
    assert result.stderr == "error: no such graph\n"
    assert files_below(out) == []


def test_what_cannot_be_used_is_said_before_any_work(
    run: Callable[..., Result], scans: Path, out: Path, tmp_path: Path
) -> None:
    jobs = write_json_file(tmp_path / "jobs.json", [{"input": "case0.npz", "seed": "x"}])
    for words, said in {
        ("--prompts", tmp_path / "none.json"): "none.json",
        ("--prompts", jobs, "--prompt", "liver in CT"): "not both",
        ("--jobs", jobs): "jobs.json, job 1",
        ("--reports", scans / "case0.npz"): "can't write",
    }.items():
        result = run(*words)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        assert said in result.stderr
    result = batch(tmp_path / "nowhere", scans, out, "--no-preview")
    assert result.exit_code == 2
    assert "nowhere" in result.stderr


def test_jobs_with_prompts_and_names_of_their_own(
    tiny_bundle: Bundle, tmp_path: Path, out: Path
) -> None:
    scans = tmp_path / "plain"
    write_case(scans / "a.npz", prompts=None)
    table = tmp_path / "jobs.csv"
    table.write_text(
        "input,sentences,kind,output\n"
        "a.npz,liver in CT;right kidney in CT,,organs\n"
        "a.npz,adrenocortical carcinoma on CT,lesion,deep/lesion.npz\n"
    )
    result = batch(tiny_bundle.folder, scans, out, "--jobs", table, "--no-preview", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    with np.load(out / "deep" / "lesion.npz") as found:
        assert "instances" in found
    report = json.loads((out / "reports" / "organs.json").read_text())
    assert [each["name"] for each in report["classes"]] == ["Liver", "Right kidney"]


def test_warnings_of_a_case_are_told(
    run: Callable[..., Result], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = pipeline.segment_job

    def segment(*given: Any) -> Any:
        result = original(*given)
        return replace(
            result, report=replace(result.report, notes=("time budget: less\nwas done",))
        )

    monkeypatch.setattr(pipeline, "segment_job", segment)
    result = run()
    assert result.exit_code == 0
    assert result.stderr.count("; time budget: less was done\n") == 3
    assert result.stdout.count("time budget: less was done") == 3
    assert (out / "summary.csv").read_text().count(",time budget: less was done\n") == 3


def test_one_prompts_file_for_all(run: Callable[..., Result], out: Path, tmp_path: Path) -> None:
    assert run("--prompts", write_json_file(tmp_path / "p.json", KIDNEY)).exit_code == 0
    rows = (out / "summary.csv").read_text().splitlines()
    assert all(",CT,anatomy,1," in row for row in rows[1:])
    report = json.loads((out / "reports" / "case0.json").read_text())
    assert report["classes"][0]["name"] == "Right kidney"


def test_a_full_disk_ends_the_batch_with_what_is_finished(
    run: Callable[..., Result], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = pipeline.write_job

    def write(read: Any, result: Any) -> None:
        if read.job.input.name == "case1.npz":
            raise OutputError(f"can't write {read.job.output}: {os.strerror(errno.ENOSPC)}")
        original(read, result)

    monkeypatch.setattr(pipeline, "write_job", write)
    result = run()
    assert result.exit_code == 1
    assert "No space left on device; 1 of 3 cases are finished" in result.stderr
    assert "summary.csv" not in files_below(out)
    monkeypatch.setattr(pipeline, "write_job", original)
    assert run().exit_code == 0
    assert statuses(out) == {"case0": "kept", "case1": "done", "case2": "done"}


def test_ctrl_c_keeps_what_is_finished(
    run: Callable[..., Result], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = pipeline.segment_job

    def segment(segmenter: Any, read: Any, progress: Any) -> Any:
        if read.job.input.name == "case1.npz":
            raise KeyboardInterrupt
        return original(segmenter, read, progress)

    monkeypatch.setattr(pipeline, "segment_job", segment)
    result = run()
    assert result.exit_code == 130
    last = result.stderr.splitlines()[-1]
    assert last.startswith("interrupted; 1 of 3 cases are finished")
    assert files_below(out) == ["case0.npz", "reports/case0.json"]
    monkeypatch.setattr(pipeline, "segment_job", original)
    assert run().exit_code == 0
    assert statuses(out) == {"case0": "kept", "case1": "done", "case2": "done"}


class Nobody:
    """A listener that hears nothing."""

    def windows(self, stage: str, done: int, total: int) -> None: ...

    def started(self, case: object) -> None: ...

    def ended(self, entry: Entry) -> None: ...


@pytest.fixture
def staged(
    tiny_bundle: Bundle, scans: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> SimpleNamespace:
    """Three cases whose steps are the test's own: nothing is segmented or written."""
    options = RunOptions(bundle=tiny_bundle.folder)
    plan = plan_batch([scans], out, source=PromptSource(), options=options, preview=False)
    closed = threading.Event()

    class Models:
        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None:
            closed.set()

    monkeypatch.setattr(pipeline, "open_models", lambda _: Models())
    monkeypatch.setattr(pipeline, "_written", lambda ready, _: entry_of(ready.case))
    return SimpleNamespace(
        closed=closed,
        patch=lambda name, step: monkeypatch.setattr(pipeline, name, step),
        run=lambda: run_batch(plan.cases, options, Nobody()),
    )


def entry_of(case: Any) -> Entry:
    return Entry(name=case.name, input="", output="", status="done")


def test_reading_and_writing_go_beside_running(staged: SimpleNamespace) -> None:
    """Each step waits for the one that must overlap it; one after the other would never end."""
    begun = {
        (step, name): threading.Event() for step in "rsw" for name in ("case0", "case1", "case2")
    }

    def read(job: Any) -> Any:
        begun["r", job.report.stem].set()
        return read_job(job)

    def segment(_: Any, read: Any, __: Any) -> str:
        name = read.job.report.stem
        begun["s", name].set()
        if name == "case0":
            assert begun["r", "case1"].wait(20)
        return name

    def written(ready: Any, result: str) -> Entry:
        begun["w", result].set()
        if result == "case0":
            assert begun["s", "case1"].wait(20)
        return entry_of(ready.case)

    staged.patch("read_job", read)
    staged.patch("segment_job", segment)
    staged.patch("_written", written)
    assert [entry.name for entry in staged.run()] == ["case0", "case1", "case2"]
    assert all(event.is_set() for event in begun.values())
    assert staged.closed.is_set()


def test_one_case_waits_at_most(staged: SimpleNamespace) -> None:
    alive, most = set(), 0
    lock = threading.Lock()

    def read(job: Any) -> Any:
        nonlocal most
        with lock:
            alive.add(job.report.stem)
            most = max(most, len(alive))
        return read_job(job)

    def written(ready: Any, _: str) -> Entry:
        with lock:
            alive.discard(ready.case.name)
        return entry_of(ready.case)

    staged.patch("read_job", read)
    staged.patch("segment_job", lambda *_: "")
    staged.patch("_written", written)
    staged.run()
    assert not alive
    assert most <= 3


def test_an_interrupt_lets_the_writer_finish(staged: SimpleNamespace) -> None:
    begun, let, ended = threading.Event(), threading.Event(), threading.Event()

    def segment(_: Any, read: Any, __: Any) -> str:
        if read.job.report.stem == "case1":
            assert begun.wait(20)
            threading.Timer(0.05, let.set).start()
            raise KeyboardInterrupt
        return "result"

    def written(ready: Any, _: str) -> Entry:
        begun.set()
        assert let.wait(20)
        ended.set()
        return entry_of(ready.case)

    staged.patch("segment_job", segment)
    staged.patch("_written", written)
    with pytest.raises(KeyboardInterrupt):
        staged.run()
    assert ended.is_set()
    assert staged.closed.is_set()
    assert not [
        each for each in threading.enumerate() if each.name.startswith(("reader", "writer"))
    ]
