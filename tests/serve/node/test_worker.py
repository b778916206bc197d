"""The thread that owns the model: one series' failure is its own, and nothing is half done."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.pipeline.job import open_models
from medals_rt.pipeline.options import RunOptions
from medals_serve.node.configuration import read_configuration
from medals_serve.node.spool import Delivery, Spool, SpooledSeries, State
from medals_serve.node.worker import Worker
from tests.dicom import write_series
from tests.serve.node.nodes import write_configuration

AFFINE = np.diag([12.0, 12.0, 15.0, 1.0])
VALUES = np.random.default_rng(0).integers(-1000, 1000, (6, 16, 20)).astype(np.int16)


def keep(spool: Spool, folder: Path, values: np.ndarray, number: int, description: str) -> None:
    def change(_: int, data: pydicom.Dataset) -> None:
        data.SeriesDescription = description

    for data in write_series(folder, values, AFFINE, change=change, seed=number):
        path = folder / "one"
        data.save_as(path)
        uids = (data.StudyInstanceUID, data.SeriesInstanceUID, data.SOPInstanceUID)
        spool.keep(*map(str, uids), path.read_bytes())


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
