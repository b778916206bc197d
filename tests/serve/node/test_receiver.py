"""The DICOM server of a node and its connections, called by pynetdicom, dcmtk and strangers."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pynetdicom
import pytest
from msgspec.structs import replace
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pynetdicom.dul import DULServiceProvider
from pynetdicom.sop_class import CTImageStorage, Verification

from medals_rt.common.errors import InputError
from medals_rt.io.dicom.files import silence
from medals_serve.node import transport
from medals_serve.node.configuration import NodeConfiguration, Tls, read_configuration
from medals_serve.node.receiver import _keep, listening, received_in
from medals_serve.node.spool import MISMATCH, OUT_OF_RESOURCES, SUCCESS, Spool
from tests.dicom import write_series
from tests.orthanc import free_port
from tests.serve.node.nodes import TITLE, write_configuration
from tests.serve.serving import PATIENCE_S, until


class Running:
    def __init__(self, folder: Path, **changes: Any) -> None:
        path = write_configuration(folder, free_port())
        self.configuration: NodeConfiguration = replace(read_configuration(path), **changes)
        self.spool = Spool(folder / "series", self.configuration.max_waiting, 10**9)
        self.warnings: list[str] = []
        self.ending = ExitStack()
        self.ending.enter_context(received_in(self.spool.incoming))
        self.ending.enter_context(listening(self.configuration, self.spool, self.warnings.append))

    def close(self) -> None:
        self.ending.close()

    @contextmanager
    def associated(
        self, caller: str = "SCANNER", called: str = TITLE, **more: Any
    ) -> Iterator[Any]:
        entity = pynetdicom.AE(caller)
        entity.add_requested_context(CTImageStorage)
        entity.add_requested_context(Verification)
        found = entity.associate("127.0.0.1", self.configuration.port, ae_title=called, **more)
        try:
            yield found
        finally:
            if found.is_established:
                found.release()


def announced(path: Path, uid: str) -> Any:
    """A C-STORE whose command names another UID than its data, as pynetdicom hands it on."""
    return SimpleNamespace(dataset_path=path, request=SimpleNamespace(AffectedSOPInstanceUID=uid))


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    found = Running(tmp_path)
    yield found
    found.close()


@pytest.fixture
def image(tmp_path: Path) -> pydicom.Dataset:
    write_series(tmp_path / "ct", np.ones((1, 4, 5), np.int16), np.eye(4))
    return pydicom.dcmread(next((tmp_path / "ct").iterdir()))


def test_an_image_is_kept_as_it_came(running: Running, image: pydicom.Dataset) -> None:
    with running.associated() as association:
        assert association.send_c_echo().Status == 0
        assert association.send_c_store(image).Status == 0
    (series,) = running.spool.complete(0)
    (name,) = series.names()
    kept = pydicom.dcmread(series.objects / name)
    assert kept == image
    assert kept.file_meta.TransferSyntaxUID == image.file_meta.TransferSyntaxUID


SENDER = """
import pynetdicom, sys
path, port, title = sys.argv[1:]
entity = pynetdicom.AE("SCANNER")
entity.add_requested_context("1.2.840.10008.5.1.4.1.1.2")
association = entity.associate("127.0.0.1", int(port), ae_title=title)
status = association.send_c_store(path)
association.release()
sys.exit(status.Status)
"""


def test_a_large_object_takes_no_memory(
    running: Running, image: pydicom.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies in the node's own folder while it comes, and nothing of it stays there."""
    seen: list[list[int]] = []
    keep = running.spool.keep

    def watched(*given: Any) -> None:
        seen.append([path.stat().st_size for path in running.spool.incoming.iterdir()])
        keep(*given)

    monkeypatch.setattr(running.spool, "keep", watched)
    image.Rows, image.Columns, image.PixelData = 8192, 4096, bytes(2 * 8192 * 4096)
    image.save_as(tmp_path / "large.dcm")
    del image.PixelData
    size = (tmp_path / "large.dcm").stat().st_size
    sending = [tmp_path / "large.dcm", str(running.configuration.port), TITLE]
    tracemalloc.start()
    subprocess.run([sys.executable, "-c", SENDER, *sending], check=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < size / 2  # where this process is slow, some of it waits
    assert len(seen) == len(seen[0]) == 1
    assert abs(seen[0][0] - size) < 1000  # its header is ours
    assert list(running.spool.incoming.iterdir()) == []


def test_what_a_sender_breaks_off_is_cleared_away(running: Running) -> None:
    half = running.spool.incoming / "half.dcm"
    half.write_bytes(b"half")
    running.spool.prune(0)
    assert half.exists()  # it may still come
    os.utime(half, (0, 0))
    running.spool.prune(0)
    assert not half.exists()


@pytest.mark.parametrize(("caller", "called"), [("STRANGER", TITLE), ("SCANNER", "OTHER")])
def test_unknown_titles_are_rejected(caller: str, called: str, running: Running) -> None:
    with running.associated(caller, called) as association:
        assert association.is_rejected
    until(lambda: running.warnings)  # pynetdicom tells us in another thread
    assert caller in running.warnings[0]
    assert "AE title not recognised" in running.warnings[0]


def test_out_of_resources(running: Running, image: pydicom.Dataset) -> None:
    running.spool.max_waiting = 0
    with running.associated() as association:
        assert association.send_c_store(image).Status == OUT_OF_RESOURCES
    assert str(image.PatientName) not in running.warnings[0]


def test_an_object_without_identifiers(running: Running, image: pydicom.Dataset) -> None:
    del image.SeriesInstanceUID
    with running.associated() as association:
        assert association.send_c_store(image).Status >> 12 == 0xC


def test_an_object_under_another_uid(running: Running, image: pydicom.Dataset) -> None:
    """Results refer to images by their own UIDs."""
    with running.associated() as association:
        assert association.send_c_store(image).Status == SUCCESS
    event = announced(Path(image.filename), "1.2.3")
    assert _keep(event, running.spool, running.warnings.append) == MISMATCH
    assert str(image.PatientName) not in running.warnings[-1]
    assert [len(each.names()) for each in running.spool.series()] == [1]


def test_a_port_that_is_taken(running: Running) -> None:
    with (
        pytest.raises(InputError) as refused,
        listening(running.configuration, running.spool, print),
    ):
        pass
    assert refused.value.code == "port-taken"


def test_dcmtk_sends_and_asks(running: Running, tmp_path: Path, image: pydicom.Dataset) -> None:
    if shutil.which("storescu") is None:
        pytest.skip("storescu isn't installed (Debian package dcmtk)")
    place = ["-aet", "SCANNER", "-aec", TITLE, "127.0.0.1", str(running.configuration.port)]
    subprocess.run(["echoscu", *place], check=True, capture_output=True)  # noqa: S607
    image.save_as(tmp_path / "one.dcm")
    subprocess.run(["storescu", *place, tmp_path / "one.dcm"], check=True, capture_output=True)  # noqa: S607
    assert len(running.spool.complete(0)) == 1


def test_deflated_objects_are_not_taken(running: Running) -> None:
    """A few bytes of them may become any number, which pydicom would inflate in one go."""
    entity = pynetdicom.AE("SCANNER")
    entity.add_requested_context(Verification)
    entity.add_requested_context(CTImageStorage, DeflatedExplicitVRLittleEndian)
    found = entity.associate("127.0.0.1", running.configuration.port, ae_title=TITLE)
    try:
        assert [each.abstract_syntax for each in found.accepted_contexts] == [Verification]
    finally:
        found.release()


def test_no_value_of_an_object_is_warned_of(tmp_path: Path, image: pydicom.Dataset) -> None:
    with silence():
        image.SpecificCharacterSet = image.StudyDate = "SECRET"
        for number in (1, 2):
            image.InstanceNumber = number
            image.save_as(tmp_path / f"{number}.dcm")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        running = Running(tmp_path)
        try:
            for number in (1, 2):  # the second is compared with the first
                sending = [tmp_path / f"{number}.dcm", str(running.configuration.port), TITLE]
                sender = [sys.executable, "-c", SENDER, *sending]
                assert bool(subprocess.run(sender, check=False).returncode) == (number == 2)
        finally:
            running.close()
    assert "is here with other content" in running.warnings[0]
    assert [each for each in seen if "SECRET" in str(each.message)] == []


def opened(running: Running, start: bytes) -> socket.socket:
    """A connection that begins and says no more."""
    found = socket.create_connection(("127.0.0.1", running.configuration.port), PATIENCE_S)
    found.sendall(start)
    return found


def test_connections_that_say_nothing_keep_nobody_out(running: Running) -> None:
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(opened(running, b"\x01"))
        with running.associated() as association:
            assert association.send_c_echo().Status == SUCCESS


def test_so_many_associations_at_once(running: Running) -> None:
    with ExitStack() as stack:
        found = [stack.enter_context(running.associated()) for _ in range(9)]
        assert [each.is_established for each in found] == [True] * 8 + [False]
    until(lambda: running.warnings)
    assert "Local limit exceeded" in running.warnings[0]


@pytest.mark.parametrize("start", [b"", b"\x01\x00\x00\x00\x01\x00 a part of it"])
def test_a_connection_has_so_long_to_say_who_it_is(
    start: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slowly its bytes trickle."""
    monkeypatch.setattr(transport, "PATIENCE_S", 1.0)
    running = Running(tmp_path)
    try:
        with opened(running, start) as connection:
            connection.settimeout(0.2)
            end = time.monotonic() + 20
            while not closes(connection):
                assert time.monotonic() < end
                with suppress(OSError):
                    connection.sendall(b"\x00" if start else b"")
    finally:
        running.close()


def test_a_length_is_not_believed(running: Running) -> None:
    with opened(running, b"\x01\x00" + b"\xff" * 4) as connection:
        connection.settimeout(10)
        assert closes(connection)
    assert "4,294,967,295 bytes" in running.warnings[0]


def test_no_connection_outlasts_the_node(tmp_path: Path) -> None:
    """Threads of pynetdicom would keep the process alive."""
    running = Running(tmp_path)
    with opened(running, b"\x01"), running.associated() as association:
        running.close()
        mine = association.dul
        until(lambda: not [each for each in threading.enumerate() if is_of_node(each, mine)], 10)


def is_of_node(thread: threading.Thread, mine: object) -> bool:
    return isinstance(thread, DULServiceProvider) and thread is not mine


def write_certificate(folder: Path) -> Tls:
    """A certificate that is its own authority; in the place of the one before."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl isn't installed: TLS goes untested")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-keyout", key, "-out", certificate, "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return Tls(str(certificate), str(key), str(certificate))


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return write_certificate(tmp_path)


def closes(connection: socket.socket) -> bool:
    """Whether the other end closes or resets a connection, whatever alert it sends before that."""
    try:
        while connection.recv(100):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def test_tls_with_certificates_of_both(tls: Tls, tmp_path: Path, image: pydicom.Dataset) -> None:
    running = Running(tmp_path, tls=tls)
    try:
        with running.associated(tls_args=(tls.for_client(), "127.0.0.1")) as association:
            assert association.send_c_store(image).Status == 0
        place = ("127.0.0.1", running.configuration.port)
        with socket.create_connection(place, PATIENCE_S) as silent:  # keeps nobody out
            with socket.create_connection(place, PATIENCE_S) as plain:
                plain.sendall(b"\x01\x00" + b" " * 100)
                assert closes(plain)
            nameless = ssl.create_default_context(cafile=tls.authority)
            with (
                socket.create_connection(place, PATIENCE_S) as bare,
                nameless.wrap_socket(bare, server_hostname="127.0.0.1") as unnamed,
            ):
                assert closes(unnamed)
            assert silent.fileno() > 0
        assert len(running.spool.complete(0)) == 1
        until(lambda: len(running.warnings) == 2)
        assert all("closed a connection of 127.0.0.1" in each for each in running.warnings)
    finally:
        running.close()


def test_tls_that_is_begun_keeps_nobody_out(tls: Tls, tmp_path: Path) -> None:
    running = Running(tmp_path, tls=tls)
    try:
        with ExitStack() as stack:
            for _ in range(9):
                stack.enter_context(opened(running, b"\x16"))
            place = tls.for_client(), "127.0.0.1"
            association = stack.enter_context(running.associated(tls_args=place))
            assert association.send_c_echo().Status == SUCCESS
    finally:
        running.close()


def test_a_renewed_certificate_is_taken_up(tls: Tls, tmp_path: Path) -> None:
    """And one that is renewed by half leaves the one before in use."""
    running = Running(tmp_path, tls=tls)
    key = Path(tls.key).read_bytes()
    try:
        for renewed in (True, False):
            if renewed:
                write_certificate(tmp_path)
            before = tls.for_client()
            if not renewed:
                Path(tls.key).write_bytes(key)
            with running.associated(tls_args=(before, "127.0.0.1")) as association:
                assert association.send_c_echo().Status == SUCCESS
            assert len(running.warnings) == (not renewed)
        assert "certificates of before stay in use" in running.warnings[0]
    finally:
        running.close()


def test_certificates_that_are_none(tls: Tls, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        Running(tmp_path, tls=replace(tls, key=str(tmp_path / "absent")))
    assert refused.value.code == "certificate-invalid"
