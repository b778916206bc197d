"""Reading, running and writing of different cases go on at once, and end together."""

import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.pipeline.batch import Entry, Silent, run_cases
from medals_rt.pipeline.batch import run as batch_run
from medals_rt.pipeline.job_inputs import read_job
from medals_rt.pipeline.options import RunOptions
from tests.pipeline.batch.helpers import plan


@pytest.fixture
def staged(
    tiny_bundle: Bundle, scans: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> SimpleNamespace:
    """Three cases whose steps are the test's own: nothing is segmented or written."""
    options = RunOptions(bundle=tiny_bundle.folder)
    cases = plan(scans, out=out, options=options, preview=False).cases
    closed = threading.Event()

    class Models:
        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None:
            closed.set()

    monkeypatch.setattr(batch_run, "open_models", lambda _: Models())
    monkeypatch.setattr(batch_run, "_written", lambda ready, _: entry_of(ready.case))
    monkeypatch.setattr(batch_run, "passes_recorded", nullcontext)
    return SimpleNamespace(
        closed=closed,
        patch=lambda name, step: monkeypatch.setattr(batch_run, name, step),
        run=lambda: run_cases(cases, options, Silent()),
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
            assert begun["r", "case1"].wait(180)
        return name

    def written(ready: Any, result: str) -> Entry:
        begun["w", result].set()
        if result == "case0":
            assert begun["s", "case1"].wait(180)
        return entry_of(ready.case)

    staged.patch("read_job", read)
    staged.patch("segment_job", segment)
    staged.patch("_written", written)
    assert [entry.name for entry in staged.run().values()] == ["case0", "case1", "case2"]
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
            assert begun.wait(180)
            threading.Timer(0.05, let.set).start()
            raise KeyboardInterrupt
        return "result"

    def written(ready: Any, _: str) -> Entry:
        begun.set()
        assert let.wait(180)
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
