"""Results on their way: sent once, and again only where they did not arrive."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from msgspec.structs import replace
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage

from medals_rt.common.errors import ServerError
from medals_serve.node import delivery as module
from medals_serve.node.configuration import NodeConfiguration, Peer, read_configuration
from medals_serve.node.delivery import Courier, send_file
from medals_serve.node.spool import Delivery, Spool, State
from tests.dicom import write_series
from tests.serve.node.nodes import TITLE, sockets_left_open, write_configuration


@pytest.fixture
def result(tmp_path: Path) -> Path:
    write_series(tmp_path / "ct", np.ones((1, 4, 5), np.int16), np.eye(4))
    return next((tmp_path / "ct").iterdir())


def configured(folder: Path, port: int) -> NodeConfiguration:
    found = read_configuration(write_configuration(folder, 11112))
    return replace(found, peers={"ORTHANC": Peer("127.0.0.1", port)})


class Archive:
    """A peer that answers with prepared statuses, the last one again and again."""

    def __init__(self, *statuses: int) -> None:
        self.statuses, self.got = list(statuses), []
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
    spool.keep("1.2", "1.2.3", "1.2.3.4", b"image")
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
