"""Results on their way to other nodes (C-STORE) and DICOMweb servers (STOW-RS)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, Final

from medals_rt.common.errors import ServerError
from medals_rt.common.optional_deps import import_optional
from medals_rt.io.dicom.web import store_files
from medals_rt.io.dicom.web_address import is_web_address
from medals_serve.node.configuration import NodeConfiguration
from medals_serve.node.spool import Delivery, Spool, SpooledSeries

_FIRST_WAIT_S: Final = 2.0
_LONGEST_WAIT_S: Final = 600.0
_POLL_S: Final = 0.5
_TIMEOUT_S: Final = 30
_STORED: Final = (0x0000, 0xB000, 0xB006, 0xB007)
"""Success, and success with a warning."""


@dataclass
class _Wait:
    """When a receiver that failed is tried again, and how long it was waited before that."""

    until: float
    seconds: float


@dataclass
class Courier:
    """Delivers results until each has arrived; a receiver that fails is tried again, ever later.

    Attributes
    ----------
    configuration
        Who receives what.
    spool
        Where results lie.
    announce, warn
        Print a line.
    """

    configuration: NodeConfiguration
    spool: Spool
    announce: Callable[[str], None]
    warn: Callable[[str], None]
    _waits: dict[str, _Wait] = field(default_factory=dict, repr=False)

    def run(self, stop: Event) -> None:
        """Deliver until told to stop."""
        while not stop.wait(_POLL_S):
            for series, state in self.spool.delivering():
                for delivery in state.deliveries:
                    if stop.is_set():
                        return
                    if not delivery.sent and self._may_try(delivery.to):
                        self._try(series, delivery)

    def _may_try(self, receiver: str) -> bool:
        wait = self._waits.get(receiver)
        return wait is None or time.monotonic() >= wait.until

    def _try(self, series: SpooledSeries, delivery: Delivery) -> None:
        try:
            self._send(series.results / delivery.file, delivery.to)
        except Exception as error:  # noqa: BLE001 - one result's failure is its own
            last = self._waits.get(delivery.to)
            seconds = _FIRST_WAIT_S if last is None else min(2 * last.seconds, _LONGEST_WAIT_S)
            self._waits[delivery.to] = _Wait(time.monotonic() + seconds, seconds)
            self.warn(f"{delivery.file} of {series.name} waits: {error}")
            return
        self._waits.pop(delivery.to, None)
        self.spool.delivered(series, delivery)
        self.announce(f"sent {delivery.file} of {series.name} to {delivery.to}")

    def _send(self, file: Path, receiver: str) -> None:
        if is_web_address(receiver):
            store_files(receiver, [file])
        else:
            send_file(file, receiver, self.configuration)


def send_file(file: Path, receiver: str, configuration: NodeConfiguration) -> None:
    """Send a DICOM file to a peer, as it is stored.

    Raises
    ------
    ServerError
        The peer can't be reached, rejects us, or doesn't take the object.
    """
    pynetdicom = import_optional("pynetdicom", "medals-rt listen")
    import pydicom

    peer = configuration.peers[receiver]
    data: Any = pydicom.dcmread(file)
    entity = pynetdicom.AE(configuration.title)
    entity.acse_timeout = entity.connection_timeout = entity.dimse_timeout = _TIMEOUT_S
    entity.add_requested_context(data.SOPClassUID, data.file_meta.TransferSyntaxUID)
    tls = None
    if peer.tls and configuration.tls is not None:
        tls = (configuration.tls.for_client(), peer.host)
    association = entity.associate(peer.host, peer.port, ae_title=receiver, tls_args=tls)
    if not association.is_established:
        raise ServerError(
            f"{receiver} at {peer.host} port {peer.port} can't be reached or rejects "
            f"{configuration.title}",
            code="peer-unreachable",
        )
    try:
        status = association.send_c_store(data).get("Status")
    except ValueError as error:  # no presentation context for it was accepted
        raise ServerError(f"{receiver} doesn't take such objects", code="store-refused") from error
    finally:
        association.release()
    if status not in _STORED:
        shown = "no answer" if status is None else f"status 0x{status:04X}"
        raise ServerError(f"{receiver} did not store it ({shown})", code="store-refused")
