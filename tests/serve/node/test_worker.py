"""The thread that owns the model: one series' failure is its own, and nothing is half done."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from msgspec.structs import replace

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.errors import CaseError, DeviceLostError, OutputError
from medals_rt.pipeline.job import open_models
from medals_rt.pipeline.options import RunOptions
from medals_serve.node import worker as module
from medals_serve.node.configuration import read_configuration
from medals_serve.node.spool import Delivery, Spool, SpooledSeries, State
from medals_serve.node.worker import Worker
from tests.dicom import write_series
from tests.serve.node.nodes import receive, run_until, write_configuration

AFFINE = np.diag([12.0, 12.0, 15.0, 1.0])
VALUES = np.random.default_rng(0).integers(-1000, 1000, (6, 16, 20)).astype(np.int16)


def keep(spool: Spool, folder: Path, values: np.ndarray, number: int, description: str) -> None:
    def change(_: int, data: pydicom.Dataset) -> None:
        data.SeriesDescription = description

    for data in write_series(folder, values, AFFINE, change=change, seed=number):
        path = folder / "one"
        data.save_as(path)
        uids = (data.StudyInstanceUID, data.SeriesInstanceUID, data.SOPInstanceUID)
        receive(spool, *map(str, uids), path.read_bytes())


def state_of(spool: Spool, number: int) -> State:
    state = SpooledSeries(spool.folder / "1.2.3.4" / f"1.2.3.4.{number + 1}").state()
    assert state is not None
    return state


def test_each_series_becomes_what_its_rule_says(tiny_bundle: Bundle, tmp_path: Path) -> None:
    text = write_configuration(tmp_path, 11112).read_text(encoding="utf-8")
    (tmp_path / "node.toml").write_text(
        text.replace("quiet_seconds = 1.0", "quiet_seconds = 0.01"), encoding="utf-8"
    )
    configuration = read_configuration(tmp_path / "node.toml")
    options = RunOptions(bundle=tiny_bundle.folder, precision="fp32", threads=1)
    spool = Spool(tmp_path / "series", 10, 10**9)
    keep(spool, tmp_path / "a", VALUES, 0, "made up")
    keep(spool, tmp_path / "b", VALUES[:1], 1, "made up")  # one slice is no volume
    keep(spool, tmp_path / "c", VALUES, 2, "another")
    keep(spool, tmp_path / "d", VALUES, 3, "made up")
    died = SpooledSeries(spool.folder / "1.2.3.4" / "1.2.3.4.4")
    spool.settle(died, State("started", died.names(), starts=3))
    said: list[str] = []
    stop = threading.Event()

    def say(line: str) -> None:
        assert "Phantom" not in line  # the patient
        said.append(line)
        if len(said) == 4:
            stop.set()

    with open_models(options) as segmenter:
        worker = Worker(configuration, options, spool, segmenter, say, say)
        worker.run(stop)
    found = [state_of(spool, number) for number in range(4)]
    assert [each.status for each in found] == ["delivering", "failed", "skipped", "failed"]
    assert "one-slice" in found[1].why
    kinds = ("sr", "rtstruct", "dicom-seg")
    assert found[0].deliveries == [Delivery(f"liver-1.{kind}.dcm", "ORTHANC") for kind in kinds]
    results = spool.folder / "1.2.3.4" / "1.2.3.4.1" / "results"
    modalities = [pydicom.dcmread(results / each.file).Modality for each in found[0].deliveries]
    assert modalities == ["SR", "RTSTRUCT", "SEG"]


class Interrupted:
    """A model that is asked to end while it works."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop

    def segment(self, *_: object, progress: Callable[[str, int, int], None], **__: object) -> None:
        self.stop.set()
        progress("coarse", 1, 2)


def test_what_is_under_way_at_the_end_is_begun_again(tmp_path: Path) -> None:
    configuration = read_configuration(write_configuration(tmp_path, 11112))
    spool = Spool(tmp_path / "series", 10, 10**9)
    keep(spool, tmp_path / "a", VALUES, 0, "made up")
    stop = threading.Event()
    model = Interrupted(stop)
    worker = Worker(configuration, RunOptions(), spool, model, print, pytest.fail)  # type: ignore[arg-type]
    while not stop.is_set():
        worker.run(stop)
    state = state_of(spool, 0)
    assert (state.status, state.starts) == ("started", 0)
    results = spool.folder / "1.2.3.4" / "1.2.3.4.1" / "results"
    assert list(results.iterdir()) == []
    assert len(Spool(tmp_path / "series", 10, 10**9).complete(0)) == 1


class Failing:
    """A model that fails in prepared ways, the last one again and again."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def segment(self, *_: object, **__: object) -> None:
        raise self.errors.pop(0) if len(self.errors) > 1 else self.errors[0]


def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> Any:
    """A worker of one series, with such a model and without pauses, and what it says."""
    for name in ("_FIRST_WAIT_S", "_POLL_S"):
        monkeypatch.setattr(module, name, 0.01)
    configuration = replace(
        read_configuration(write_configuration(tmp_path, 11112)), quiet_seconds=0.001
    )
    spool = Spool(tmp_path / "series", 10, 10**9)
    said: list[str] = []
    model: Any = Failing(*errors)
    return Worker(configuration, RunOptions(), spool, model, said.append, said.append), said


def is_over(worker: Worker, number: int, run: int = 1) -> bool:
    """Whether a series has come to nothing in a run."""
    state = SpooledSeries(worker.spool.folder / "1.2.3.4" / f"1.2.3.4.{number + 1}").state()
    return state is not None and state.came_to_nothing and state.run == run


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (DeviceLostError("the GPU fell off"), 3),
        (MemoryError("1 TB"), 3),
        (OutputError("the disk is full"), 4),
        (OSError(28, "No space left on device"), 4),
        (ZeroDivisionError("a surprise"), 1),
    ],
)
def test_what_may_pass_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, tries: int
) -> None:
    """More often than the node may die of one; the last try fails for good."""
    errors = [error] * 3 + ([CaseError("no volume")] if tries == 4 else [])
    worker, said = failing(tmp_path, monkeypatch, *errors)
    keep(worker.spool, tmp_path / "a", VALUES, 0, "made up")
    run_until(worker, lambda: is_over(worker, 0, tries))
    assert len(said) == tries
    assert all("waits and is tried again" in line for line in said[:-1])
    assert " failed: " in said[-1]
    assert state_of(worker.spool, 0).starts == 0


def test_the_next_start_takes_up_what_came_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not what the node died of again and again."""
    worker, said = failing(tmp_path, monkeypatch, CaseError("no volume"))
    keep(worker.spool, tmp_path / "a", VALUES, 0, "made up")
    keep(worker.spool, tmp_path / "b", VALUES, 1, "another")
    keep(worker.spool, tmp_path / "c", VALUES, 2, "made up")
    deadly = SpooledSeries(worker.spool.folder / "1.2.3.4" / "1.2.3.4.3")
    worker.spool.settle(deadly, State("started", deadly.names(), starts=3))
    for run in (1, 2):
        run_until(worker, lambda: all(is_over(worker, n, run) for n in (0, 1)))  # noqa: B023
    assert [state_of(worker.spool, n).status for n in range(3)] == ["failed", "skipped", "failed"]
    assert state_of(worker.spool, 2).run == 0
    assert sum("died of it" in line for line in said) == 1


def test_a_full_disk_ends_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not even what became of a series can be written down."""
    worker, said = failing(tmp_path, monkeypatch, CaseError("no volume"))
    keep(worker.spool, tmp_path / "a", VALUES, 0, "made up")
    settle, full = worker.spool.settle, [True] * 4

    def settled(*given: Any) -> None:
        if full:
            full.pop()
            raise OutputError("can't write state.json: No space left on device")
        settle(*given)

    monkeypatch.setattr(worker.spool, "settle", settled)
    run_until(worker, lambda: is_over(worker, 0))
    assert [line.partition(",")[0] for line in said[:4]] == [
        "the node can't write to its folder"
    ] * 4


@pytest.mark.parametrize(("description", "status"), [("made up", "failed"), ("another", "skipped")])
def test_a_late_image_that_spoils_a_series_costs_no_finished_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, description: str, status: str
) -> None:
    """Of another patient, say; while the receiver of the result is down."""
    worker, _ = failing(tmp_path, monkeypatch, CaseError("two patients"))
    keep(worker.spool, tmp_path / "a", VALUES[:5], 0, description)
    (series,) = worker.spool.complete(0)
    finished = [Delivery("liver-1.dicom-seg.dcm", "ORTHANC")]
    worker.spool.settle(
        series, State("delivering", series.names(), run=1, deliveries=list(finished))
    )
    keep(worker.spool, tmp_path / "a", VALUES, 0, description)
    run_until(worker, lambda: is_over(worker, 0, 2))
    state = state_of(worker.spool, 0)
    assert (state.status, state.deliveries) == (status, finished)
    assert [found for found, _ in worker.spool.delivering()] == [series]


def test_late_images_alone_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, said = failing(tmp_path, monkeypatch, CaseError("no volume"))
    keep(worker.spool, tmp_path / "a", VALUES, 0, "made up")
    (series,) = worker.spool.complete(0)
    worker.spool.settle(series, State("done", series.names(), run=1))
    for name in series.names()[:4]:
        (series.objects / name).unlink()
    run_until(worker, lambda: bool(said))
    assert "4 earlier ones" in said[0]
    assert "Phantom" not in said[0]
    assert state_of(worker.spool, 0).run == 1
