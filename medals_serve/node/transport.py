"""Connections of those who call a node: bounded before it is known who they are.

pynetdicom believes the length that a PDU announces, and reads for as long as it takes; a connection
that says nothing counts as an association; and none of them lets the process end.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pynetdicom.ae import ApplicationEntity

from medals_rt.common.errors import InputError
from medals_rt.io.dicom.files import printable
from medals_serve.node.configuration import Tls

PATIENCE_S: Final = 20.0
"""What all may take until there is an association, and each PDU afterwards."""
_LARGEST_PDU: Final = 2**20
"""Ours are much smaller, and peers know what we take."""
_PIECE: Final = 2**16


class Entity(ApplicationEntity):
    """One whose limit of associations counts associations alone."""

    @property
    def active_associations(self) -> list[Any]:
        """Those that are established."""
        return [each for each in super().active_associations if each.is_established]


class Certificates:
    """What pynetdicom takes for a context: wraps connections by the files of `[tls]`.

    They are read again when they change: they are renewed while a node runs. Handshakes happen when
    a connection is read, in its own thread: where connections are accepted, a silent one would keep
    all others out.

    Parameters
    ----------
    tls
        Names of the files.
    warn
        Called with a line about new files that can't be used.

    Raises
    ------
    InputError
        They can't be used.
    """

    def __init__(self, tls: Tls, warn: Callable[[str], None]) -> None:
        self._tls, self._warn = tls, warn
        self._seen = _stamps(tls)
        self._context = tls.for_server()

    def wrap_socket(self, connection: socket.socket, *, server_side: bool) -> ssl.SSLSocket:
        """Wrap a connection that was accepted."""
        found = _stamps(self._tls)
        if found != self._seen:
            self._seen = found
            try:
                self._context = self._tls.for_server()
            except InputError as error:
                self._warn(f"the certificates of before stay in use: {error}")
        return self._context.wrap_socket(
            connection, server_side=server_side, do_handshake_on_connect=False
        )


def _stamps(tls: Tls) -> list[tuple[str, int, int]]:
    found = []
    for path in (tls.certificate, tls.key, tls.authority):
        with suppress(OSError):
            state = Path(path).stat()
            found.append((path, state.st_mtime_ns, state.st_ino))
    return found


def bound(event: Any, warn: Callable[[str], None]) -> None:
    """Bound what comes over a connection, in bytes and seconds; for the event that it is open."""
    association, opened = event.assoc, time.monotonic()
    held = association.dul.socket
    connection = held.socket
    connection.settimeout(PATIENCE_S)

    def receive(size: int) -> bytearray:
        begun = time.monotonic() if association.is_established else opened
        try:
            return _received(connection, size, begun + PATIENCE_S)
        except OSError as error:
            warn(f"closed a connection of {event.address[0]}: {printable(error, 200)}")
            raise

    held.recv = receive


def _received(connection: socket.socket, size: int, until: float) -> bytearray:
    """Receive so many bytes, or as many as come before the other end closes."""
    if size > _LARGEST_PDU:
        raise OSError(f"it announces {size:,} bytes")
    data = bytearray()
    try:
        while len(data) < size:
            left = until - time.monotonic()
            if data and left <= 0:
                raise TimeoutError("it takes too long")
            connection.settimeout(max(left, 1e-3))
            piece = connection.recv(min(size - len(data), _PIECE))
            if not piece:
                break
            data += piece
    finally:
        connection.settimeout(PATIENCE_S)
    return data


def cut_off(server: Any) -> None:
    """End the connections of a server that accepts none any more."""
    for each in server.active_associations:
        connection = each.dul.socket.socket
        if connection is not None:
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)  # also below TLS
