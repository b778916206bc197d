"""What a node keeps on disk: there before it is acknowledged, and found again."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medals_rt.common.errors import InputError
from medals_serve.node import spool as module
from medals_serve.node.spool import (
    CANNOT_UNDERSTAND,
    DUPLICATE,
    OUT_OF_RESOURCES,
    Delivery,
    NotStoredError,
    Spool,
    SpooledSeries,
    State,
    lock_spool,
)
from tests.dicom import write_series
from tests.serve.node.nodes import receive


def make(folder: Path, *, waiting: int = 2, size: int = 10**6) -> Spool:
    return Spool(folder / "series", waiting, size)


def refused(spool: Spool, study: str, series: str, uid: str, content: bytes = b"x") -> int:
    with pytest.raises(NotStoredError) as failed:
        receive(spool, study, series, uid, content)
    return failed.value.status


def finish(spool: Spool, series: SpooledSeries, status: str = "done") -> None:
    spool.settle(series, State(status, series.names(), run=1))  # type: ignore[arg-type]


def test_an_image_is_whole_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_mode))
    spool = make(tmp_path)
    receive(spool, "1.2", "1.2.3", "1.2.3.4", b"abc")
    path = tmp_path / "series" / "1.2" / "1.2.3" / "objects" / "1.2.3.4.dcm"
    assert path.read_bytes() == b"abc"
    assert len(synced) == 1 + 4  # the file, and every folder that is new
    assert not list(spool.incoming.iterdir())


def test_a_write_that_fails_is_not_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    spool = make(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    assert refused(spool, "1.2", "1.2.3", "1.2.3.4") == OUT_OF_RESOURCES
    monkeypatch.undo()
    assert spool.complete(0) == []
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("uid", ["", "../1", "1.2/3", "1" * 65, "1..2", "1.2\n"])
def test_no_name_leads_out_of_the_folder(uid: str, tmp_path: Path) -> None:
    spool = make(tmp_path)
    assert refused(spool, uid, "1.2", "1.2.3") == CANNOT_UNDERSTAND
    assert refused(spool, "1.2", uid, "1.2.3") == CANNOT_UNDERSTAND
    assert refused(spool, "1.2", "1.2", uid) == CANNOT_UNDERSTAND


def test_the_same_again_is_welcome_and_something_else_is_not(tmp_path: Path) -> None:
    spool = make(tmp_path)
    for _ in range(2):
        receive(spool, "1.2", "1.2.3", "1.2.3.4", b"abc")
    assert refused(spool, "1.2", "1.2.3", "1.2.3.4", b"other") == DUPLICATE


def test_the_queue_is_bounded(tmp_path: Path) -> None:
    spool = make(tmp_path, waiting=2)
    receive(spool, "1.2", "1.1", "1.1.1", b"a")
    receive(spool, "1.2", "1.2", "1.2.1", b"a")
    assert refused(spool, "1.2", "1.3", "1.3.1") == OUT_OF_RESOURCES
    receive(spool, "1.2", "1.1", "1.1.2", b"a")  # of a series that waits already
    for series in spool.complete(0):
        finish(spool, series)
    assert spool.complete(0) == []
    receive(spool, "1.2", "1.3", "1.3.1", b"a")


def test_the_disk_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = make(tmp_path, size=10)
    receive(spool, "1.2", "1.1", "1.1.1", b"12345678")
    assert refused(spool, "1.2", "1.1", "1.1.2", b"123") == OUT_OF_RESOURCES
    again = make(tmp_path, size=10)  # what is there counts after a restart too
    assert refused(again, "1.2", "1.1", "1.1.2", b"123") == OUT_OF_RESOURCES
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    assert refused(make(tmp_path), "1.2", "1.1", "1.1.2", b"1") == OUT_OF_RESOURCES


def test_a_series_is_complete_when_it_was_quiet(tmp_path: Path) -> None:
    spool = make(tmp_path)
    receive(spool, "1.2", "1.1", "1.1.1", b"a")
    (series,) = spool.complete(0)
    assert series.name == "1.2/1.1"
    assert spool.complete(3600) == []
    path = series.objects / "1.1.1.dcm"
    os.utime(path, (1e9, 1e9))
    assert spool.complete(3600) == [series]


def test_late_images_are_new_work_and_old_ones_none(tmp_path: Path) -> None:
    spool = make(tmp_path)
    receive(spool, "1.2", "1.1", "1.1.1", b"a")
    (series,) = spool.complete(0)
    finish(spool, series)
    receive(spool, "1.2", "1.1", "1.1.1", b"a")
    assert spool.complete(0) == []
    receive(spool, "1.2", "1.1", "1.1.2", b"a")
    assert spool.complete(0) == [series]


def test_late_images_alone_are_no_series(tmp_path: Path) -> None:
    """A SEG of the last few slices would stand for the whole."""
    spool = make(tmp_path)
    for number in (1, 2):
        receive(spool, "1.2", "1.1", f"1.1.{number}", b"a")
    (series,) = spool.complete(0)
    finish(spool, series)
    spool.prune(0)
    receive(spool, "1.2", "1.1", "1.1.3", b"a")
    assert spool.complete(0) == []
    assert list(spool.late(3600)) == []  # more may come
    assert list(spool.late(0)) == [(series, 2)]
    assert list(spool.late(0)) == []  # it was said
    assert list(make(tmp_path).late(0)) == [(series, 2)]
    spool.prune(3600)
    assert series.names() == ("1.1.3.dcm",)
    for number in (1, 2):
        assert spool.complete(0) == []
        receive(spool, "1.2", "1.1", f"1.1.{number}", b"a")
    assert spool.complete(0) == [series]  # the whole of it


def test_late_images_stay_as_long_as_others(tmp_path: Path) -> None:
    """They are part of a series that is being sent again, however old what became of it is."""
    spool = make(tmp_path)
    receive(spool, "1.2", "1.1", "1.1.1", b"a")
    (series,) = spool.complete(0)
    finish(spool, series)
    spool.prune(0)
    state = json.loads((series.folder / "state.json").read_text(encoding="utf-8"))
    state["at"] -= 7200
    (series.folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
    receive(spool, "1.2", "1.1", "1.1.2", b"a")
    spool.prune(3600)
    assert series.names() == ("1.1.2.dcm",)


@pytest.mark.parametrize("status", ["failed", "skipped"])
@pytest.mark.parametrize("pruned", [False, True])
def test_what_came_to_nothing_is_work_when_it_is_sent_again(
    tmp_path: Path, status: str, pruned: bool
) -> None:
    spool = make(tmp_path)
    for number in (1, 2):
        receive(spool, "1.2", "1.1", f"1.1.{number}", b"a")
    (series,) = spool.complete(0)
    finish(spool, series, status)
    assert spool.complete(0) == []
    if pruned:
        spool.prune(0)
    receive(spool, "1.2", "1.1", "1.1.1", b"a")
    assert spool.complete(0) == ([] if pruned else [series])
    assert spool.complete(3600) == []  # others may come again, too
    receive(spool, "1.2", "1.1", "1.1.2", b"a")
    assert spool.complete(0) == [series]


def as_file(data: pydicom.Dataset, syntax: str | None = None) -> bytes:
    out = io.BytesIO()
    if syntax is not None:
        data = pydicom.dcmread(io.BytesIO(as_file(data)))
        data.file_meta.TransferSyntaxUID = syntax
    data.save_as(out, enforce_file_format=True)
    return out.getvalue()


def test_the_same_in_another_syntax_or_by_another_writer_is_welcome(tmp_path: Path) -> None:
    values = np.arange(20, dtype=np.int16).reshape(1, 4, 5)
    (data,) = write_series(tmp_path / "ct", values, np.eye(4))
    data.SmallestImagePixelValue = 0  # of either sign, until the pixels' is known
    data.add_new(0x00091010, "LO", "private")
    spool = make(tmp_path)
    receive(spool, "1.2", "1.2.3", "1.2.3.4", as_file(data, ImplicitVRLittleEndian))
    receive(spool, "1.2", "1.2.3", "1.2.3.4", as_file(data, ExplicitVRLittleEndian))
    other = pydicom.dcmread(io.BytesIO(as_file(data, ImplicitVRLittleEndian)))
    other.file_meta.ImplementationVersionName = "ANOTHER"
    receive(spool, "1.2", "1.2.3", "1.2.3.4", as_file(other))
    for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian):
        for change in ({"PatientID": "another"}, {"PixelData": bytes(40)}):
            changed = pydicom.dcmread(io.BytesIO(as_file(data)))
            for name, value in change.items():
                setattr(changed, name, value)
            again = as_file(changed, syntax)
            assert refused(spool, "1.2", "1.2.3", "1.2.3.4", again) == DUPLICATE


def test_what_was_begun_is_begun_again_but_not_forever(tmp_path: Path) -> None:
    spool = make(tmp_path)
    receive(spool, "1.2", "1.1", "1.1.1", b"a")
    (series,) = spool.complete(0)
    for starts in (1, 2):
        spool.settle(series, State("started", series.names(), starts=starts))
        spool = make(tmp_path)
        assert spool.complete(0) == [series]
    spool.settle(series, State("started", series.names(), starts=3))
    assert make(tmp_path).complete(0) == []
    state = series.state()
    assert state is not None
    assert state.died_of


def test_a_delivery_is_noted_once_it_arrived(tmp_path: Path) -> None:
    spool = make(tmp_path)
    receive(spool, "1.2", "1.1", "1.1.1", b"a")
    (series,) = spool.complete(0)
    parts = [Delivery("a.dcm", "X"), Delivery("a.dcm", "Y")]
    spool.settle(series, State("delivering", series.names(), deliveries=parts))
    spool.delivered(series, parts[0])
    ((found, state),) = make(tmp_path).delivering()  # after a restart
    assert [each.sent for each in state.deliveries] == [True, False]
    spool.delivered(found, parts[1])
    assert list(spool.delivering()) == []
    # one of an earlier run says nothing about a newer result
    newer = [Delivery("b.dcm", "X")]
    spool.settle(series, State("delivering", series.names(), deliveries=newer))
    spool.delivered(series, parts[0])
    assert len(list(spool.delivering())) == 1


@pytest.mark.parametrize("status", ["started", "failed", "skipped"])
def test_results_stay_on_their_way_until_there_are_new_ones(tmp_path: Path, status: str) -> None:
    """What arrives while the model works isn't sent again."""
    spool = make(tmp_path)
    receive(spool, "1.2", "1.1", "1.1.1", b"a")
    (series,) = spool.complete(0)
    parts = [Delivery("a.dcm", to) for to in "XYZ"]
    spool.settle(series, State("delivering", series.names(), run=1, deliveries=list(parts)))
    spool.delivered(series, parts[0])
    receive(spool, "1.2", "1.1", "1.1.2", b"a")
    later = State("started", series.names(), run=2)
    spool.settle(series, later)
    spool.delivered(series, parts[1])
    later.status = status  # type: ignore[assignment]
    spool.settle(series, later)
    spool.prune(0)
    ((found, state),) = make(tmp_path).delivering()
    assert state.deliveries == parts[2:]
    spool.delivered(found, parts[2])
    assert list(spool.delivering()) == []
    after = series.state()
    assert after is not None
    assert after.status == status
    newer = [Delivery("b.dcm", "X")]
    spool.settle(series, State("delivering", series.names(), deliveries=list(newer)))
    assert [state.deliveries for _, state in spool.delivering()] == [newer]


def test_half_a_file_of_a_killed_process_is_cleared_away(tmp_path: Path) -> None:
    spool = make(tmp_path)
    receive(spool, "1.2", "1.1", "1.1.1", b"a")
    half = spool.incoming / "half.dcm"
    of_earlier_versions = tmp_path / "series" / "1.2" / "1.1" / "objects" / ".partial-1.1.2.dcm"
    for path in (half, of_earlier_versions):
        path.write_bytes(b"half")
    (series,) = make(tmp_path).complete(0)
    assert series.names() == ("1.1.1.dcm",)
    assert not half.exists()


@pytest.mark.parametrize("damaged", [b'{"status": "do', b'{"status": "\xff"}', b""])
def test_a_damaged_state_counts_as_none(tmp_path: Path, damaged: bytes) -> None:
    spool = make(tmp_path)
    receive(spool, "1.2", "1.1", "1.1.1", b"a")
    (series,) = spool.complete(0)
    finish(spool, series)
    (series.folder / "state.json").write_bytes(damaged)
    assert make(tmp_path).complete(0) == [series]


def test_what_others_leave_in_the_folder_is_no_series(tmp_path: Path) -> None:
    spool = make(tmp_path)
    receive(spool, "1.2", "1.1", "1.1.1", b"a")
    for folder in ("series", "series/1.2"):
        (tmp_path / folder / ".nfs0001").write_bytes(b"left")
    (series,) = make(tmp_path).series()
    assert series.name == "1.2/1.1"


def test_finished_images_go_and_are_remembered(tmp_path: Path) -> None:
    spool = make(tmp_path, size=4)
    receive(spool, "1.2", "1.1", "1.1.1", b"abcd")
    spool.prune(0)
    (series,) = spool.complete(0)  # not finished: stays
    finish(spool, series)
    spool.prune(3600)
    assert series.names()
    spool.prune(0)
    assert not series.names()
    spool = make(tmp_path, size=10**6)
    receive(spool, "1.2", "1.1", "1.1.1", b"abcd")
    assert spool.complete(0) == []


def test_results_take_their_place_too(tmp_path: Path) -> None:
    spool = make(tmp_path, size=1000)
    receive(spool, "1.2", "1.1", "1.1.1", b"abcd")
    (series,) = spool.complete(0)
    series.results.mkdir()
    (series.results / "a.dcm").write_bytes(bytes(900))
    finish(spool, series)
    assert refused(spool, "1.2", "1.2", "1.2.1", bytes(100)) == OUT_OF_RESOURCES
    spool.prune(0)
    receive(spool, "1.2", "1.2", "1.2.1", bytes(100))


def test_a_series_is_pruned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a month are remembered; each look at what they hold would keep senders waiting."""
    spool = make(tmp_path)
    receive(spool, "1.2", "1.1", "1.1.1", b"abcd")
    for series in spool.complete(0):
        finish(spool, series)
    spool.prune(0)
    monkeypatch.setattr(module, "held_bytes", lambda _: pytest.fail("it was pruned before"))
    spool.prune(0)
    monkeypatch.undo()
    monkeypatch.setattr(module, "_REMEMBER_S", 0.0)
    spool.prune(0)
    assert list(spool.series()) == []
    assert not any(spool._held.values())


def test_one_node_a_folder(tmp_path: Path) -> None:
    with lock_spool(tmp_path), pytest.raises(InputError) as refused:
        lock_spool(tmp_path)
    assert refused.value.code == "folder-locked"


def test_a_new_folder_is_closed_to_others(tmp_path: Path) -> None:
    with lock_spool(tmp_path / "node"):
        Spool(tmp_path / "node" / "series", 1, 10**9)
    for made in [tmp_path / "node" / name for name in (".", "series", "incoming")]:
        assert made.stat().st_mode & 0o077 == 0
    (tmp_path / "own").mkdir(mode=0o755)
    Spool(tmp_path / "own", 1, 10**9)
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o755
