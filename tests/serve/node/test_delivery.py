"""Results on their way: sent once, and again only where they did not arrive."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pydicom
import pytest
from msgspec.structs import replace
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    Comprehensive3DSRStorage,  # type: ignore[attr-defined]
    CTImageStorage,
)

from medals_rt.common.errors import OutputError, ServerError
from medals_serve.node import delivery as module
from medals_serve.node.configuration import NodeConfiguration, Peer, read_configuration
from medals_serve.node.delivery import Courier, send_file
from medals_serve.node.spool import Delivery, Spool, State
from tests.dicom import write_series
from tests.serve.node.nodes import TITLE, receive, run_until, sockets_left_open, write_configuration


@pytest.fixture
def result(tmp_path: Path) -> Path:
    write_series(tmp_path / "ct", np.ones((1, 4, 5), np.int16), np.eye(4))
    return next((tmp_path / "ct").iterdir())


def configured(folder: Path, port: int, *others: str) -> NodeConfiguration:
    """A node that sends to the ORTHANC at a port, and to others."""
    found = read_configuration(write_configuration(folder, 11112))
    rules = {
        name: replace(rule, send_to=(*rule.send_to, *others)) for name, rule in found.rules.items()
    }
    return replace(found, rules=rules, peers={"ORTHANC": Peer("127.0.0.1", port)})


class Archive:
    """A peer that answers with prepared statuses, the last one again and again."""

    def __init__(self, *statuses: int) -> None:
        self.statuses, self.got = list(statuses), []
        self.refuses = ""
        self.entity = AE("ORTHANC")
        self.entity.require_calling_aet = [TITLE]
        self.entity.add_supported_context(CTImageStorage)

    def __enter__(self) -> Self:
        handlers: Any = [(evt.EVT_C_STORE, self.store)]
        self.server: Any = self.entity.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=handlers
        )
        self.port = self.server.server_address[1]
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()

    def store(self, event: Any) -> int:
        self.got.append(str(event.request.AffectedSOPInstanceUID))
        if self.got[-1] == self.refuses:
            return 0xC000
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]


def test_a_file_is_sent(tmp_path: Path, result: Path) -> None:
    with Archive(0) as archive:
        send_file(result, "ORTHANC", configured(tmp_path, archive.port))
    assert archive.got == ["1.2.3.4.1.1"]


def test_failures_are_told(tmp_path: Path, result: Path) -> None:
    with Archive(0xA700) as archive, pytest.raises(ServerError) as failed:
        send_file(result, "ORTHANC", configured(tmp_path, archive.port))
    assert failed.value.code == "store-refused"
    code = None
    with socket.socket() as deaf, sockets_left_open():
        deaf.bind(("127.0.0.1", 0))  # and listens not
        try:
            send_file(result, "ORTHANC", configured(tmp_path, deaf.getsockname()[1]))
        except ServerError as error:
            code = error.code
    assert code == "peer-unreachable"


def test_a_courier_tries_again_until_it_arrived(
    tmp_path: Path, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(module, "_POLL_S", 0.01)
    spool = Spool(tmp_path / "series", 5, 10**9)
    receive(spool, "1.2", "1.2.3", "1.2.3.4", b"image")
    (series,) = spool.complete(0)
    series.results.mkdir()
    result.rename(series.results / "a.dcm")
    state = State("delivering", series.names(), deliveries=[Delivery("a.dcm", "ORTHANC")])
    spool.settle(series, state)
    stop, said = threading.Event(), []

    def announce(line: str) -> None:
        said.append(line)
        stop.set()

    with Archive(0xA700, 0xA700, 0) as archive:
        Courier(configured(tmp_path, archive.port), spool, announce, said.append).run(stop)
    assert archive.got == ["1.2.3.4.1.1"] * 3
    assert len(said) == 3
    after = series.state()
    assert after is not None
    assert after.status == "done"


def on_its_way(folder: Path, results: Mapping[str, Path], *receivers: str) -> Spool:
    """A spool with one series, of which results are to be sent."""
    spool = Spool(folder / "series", 5, 10**9)
    receive(spool, "1.2", "1.2.3", "1.2.3.4", b"image")
    (series,) = spool.complete(0)
    series.results.mkdir()
    for name, file in results.items():
        shutil.copy(file, series.results / name)
    deliveries = [Delivery(name, to) for name in results for to in receivers]
    spool.settle(series, State("delivering", series.names(), deliveries=deliveries))
    return spool


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_FIRST_WAIT_S", "_POLL_S"):
        monkeypatch.setattr(module, name, 0.01)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("refused", ["its class", "itself"])
def test_a_result_that_is_refused_holds_back_no_other(
    tmp_path: Path, result: Path, refused: str
) -> None:
    """As of an archive that takes SEG and no SR; all else arrives."""
    data = pydicom.dcmread(result)
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.1.2"
    if refused == "its class":
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = Comprehensive3DSRStorage
    data.save_as(tmp_path / "a.dcm")
    spool = on_its_way(tmp_path, {"a.dcm": tmp_path / "a.dcm", "b.dcm": result}, "ORTHANC")
    said: list[str] = []
    with Archive(0) as archive:
        archive.refuses = "1.2.3.4.1.2"
        courier = Courier(configured(tmp_path, archive.port), spool, said.append, said.append)
        run_until(courier, lambda: any("sent b.dcm" in line for line in said))
    assert set(archive.got) - {"1.2.3.4.1.2"} == {"1.2.3.4.1.1"}
    assert "a.dcm of 1.2/1.2.3 waits" in said[0]
    assert ("Comprehensive 3D SR" in said[0]) is (refused == "its class")
    spool.max_waiting = 1  # nor does it keep other series out
    receive(spool, "1.2", "1.2.4", "1.2.4.1", b"image")


@pytest.mark.usefixtures("impatient")
def test_a_receiver_that_never_answers_holds_back_neither_others_nor_the_end(
    tmp_path: Path, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TO_END_S", 0.1)
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as silent, Archive(0) as archive:
        web = f"dicomweb+http://127.0.0.1:{silent.getsockname()[1]}/dicom-web"
        spool = on_its_way(tmp_path, {"a.dcm": result}, web, "ORTHANC")
        configuration = configured(tmp_path, archive.port, web)
        courier = Courier(configuration, spool, said.append, said.append)
        assert run_until(courier, lambda: bool(said)) < 10  # of 120 that it has to answer
        ((_, state),) = spool.delivering()
    assert said == ["sent a.dcm of 1.2/1.2.3 to ORTHANC"]
    assert [each.sent for each in state.deliveries] == [False, True]


@pytest.mark.usefixtures("impatient")
def test_who_was_taken_out_of_the_file_gets_nothing_more(tmp_path: Path, result: Path) -> None:
    files = {"a.dcm": result, "b.dcm": result}
    with socket.create_server(("127.0.0.1", 0)) as former, Archive(0) as archive:
        web = f"dicomweb+http://127.0.0.1:{former.getsockname()[1]}/dicom-web"
        spool = on_its_way(tmp_path, files, web, "PACS", "ORTHANC")
        former.settimeout(0)
        said: list[str] = []
        courier = Courier(configured(tmp_path, archive.port), spool, said.append, said.append)
        run_until(courier, lambda: not list(spool.delivering()))
        with pytest.raises(BlockingIOError):
            former.accept()
    assert said[:2] == [
        f"{each} is no receiver any more; results not sent to it: 2" for each in (web, "PACS")
    ]
    (series,) = spool.series()
    state = series.state()
    assert state is not None
    assert state.status == "done"
    assert state.deliveries == [Delivery(name, "ORTHANC", sent=True) for name in files]


@pytest.mark.usefixtures("impatient")
def test_a_full_disk_ends_no_courier(
    tmp_path: Path, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What couldn't be noted is sent again, as the same object."""
    spool = on_its_way(tmp_path, {"a.dcm": result}, "ORTHANC")
    delivered, full = spool.delivered, [True] * 2

    def noted(*given: Any) -> None:
        if full:
            full.pop()
            raise OutputError("can't write state.json: No space left on device")
        delivered(*given)

    monkeypatch.setattr(spool, "delivered", noted)
    said: list[str] = []
    with Archive(0) as archive:
        courier = Courier(configured(tmp_path, archive.port), spool, said.append, said.append)
        run_until(courier, lambda: len(said) == 3)
    assert archive.got == ["1.2.3.4.1.1"] * 3
    assert said[2] == "sent a.dcm of 1.2/1.2.3 to ORTHANC"
    assert list(spool.delivering()) == []
