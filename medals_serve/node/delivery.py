"""Results on their way to other nodes (C-STORE) and DICOMweb servers (STOW-RS)."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final, TypeAlias

from medals_rt.common.errors import MedalsError, OutputError, ServerError
from medals_rt.common.optional_deps import import_optional
from medals_rt.io.dicom.web import store_files
from medals_rt.io.dicom.web_address import is_web_address
from medals_serve.node.configuration import NodeConfiguration
from medals_serve.node.spool import Delivery, Spool, SpooledSeries

_FIRST_WAIT_S: Final = 2.0
_LONGEST_WAIT_S: Final = 600.0
_POLL_S: Final = 0.5
_TIMEOUT_S: Final = 30
_TO_END_S: Final = 5.0
_AWAY: Final = frozenset(
    {
        "peer-unreachable",
        "server-unreachable",
        "access-refused",
        "certificate-invalid",
        "redirect-refused",
    }
)
"""Codes of errors that are the receiver's, whatever it is sent."""
_STORED: Final = (0x0000, 0xB000, 0xB006, 0xB007)
"""Success, and success with a warning."""


@dataclass
class _Wait:
    """When something that failed is tried again, and how long it was waited before that."""

    until: float
    seconds: float


_Parcel: TypeAlias = tuple[SpooledSeries, Delivery]


@dataclass
class Courier:
    """Delivers results until each has arrived; what fails is tried again, ever later.

    Each receiver has a thread while something is on its way to it, so that one that is slow holds
    back no other. Where a receiver can't be reached, all that it gets waits; where it does not take
    one result, that one does.

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
    _waits: dict[tuple[str, ...], _Wait] = field(default_factory=dict, repr=False)
    _threads: dict[str, Thread] = field(default_factory=dict, repr=False)

    def run(self, stop: Event) -> None:
        """Deliver until told to stop; what is on its way then has a few seconds to arrive.

        What arrives later isn't noted, and is sent again, as the same object, after the next start.
        """
        while not stop.wait(_POLL_S):
            try:
                self._round(stop)
            except (OutputError, OSError) as error:
                self._wait_longer(())
                self.warn(f"the node can't read or note what it has to send: {error}")
        until = time.monotonic() + _TO_END_S
        for thread in self._threads.values():
            thread.join(max(0.0, until - time.monotonic()))

    def _round(self, stop: Event) -> None:
        """Hand each receiver that isn't busy what it may be sent now."""
        busy = {receiver for receiver, thread in self._threads.items() if thread.is_alive()}
        due: defaultdict[str, list[_Parcel]] = defaultdict(list)
        if self._may_try():
            for series, state in self.spool.delivering():
                for each in state.unsent:
                    if each.to not in busy and self._may_send(series, each):
                        due[each.to].append((series, each))
        for receiver, parcels in due.items():
            if receiver not in self.configuration.receivers:
                self._withdraw(receiver, parcels)
                continue
            thread = Thread(target=self._deliver, args=(parcels, stop), daemon=True)
            self._threads[receiver] = thread
            thread.start()

    def _withdraw(self, receiver: str, parcels: list[_Parcel]) -> None:
        """Send nothing more to one whom the file of the node has no longer."""
        for series, delivery in parcels:
            self.spool.withdrawn(series, delivery)
        self.warn(f"{receiver} is no receiver any more; results not sent to it: {len(parcels)}")

    def _deliver(self, parcels: list[_Parcel], stop: Event) -> None:
        """Send one receiver results, one after the other."""
        for series, delivery in parcels:
            if not stop.is_set() and self._may_send(series, delivery):
                self._try(series, delivery)

    def _may_send(self, series: SpooledSeries, delivery: Delivery) -> bool:
        return self._may_try(delivery.to) and self._may_try(*_names(series, delivery))

    def _may_try(self, *what: str) -> bool:
        wait = self._waits.get(what)
        return wait is None or time.monotonic() >= wait.until

    def _wait_longer(self, what: tuple[str, ...]) -> None:
        last = self._waits.get(what)
        seconds = _FIRST_WAIT_S if last is None else min(2 * last.seconds, _LONGEST_WAIT_S)
        self._waits[what] = _Wait(time.monotonic() + seconds, seconds)

    def _try(self, series: SpooledSeries, delivery: Delivery) -> None:
        receiver, parcel = (delivery.to,), _names(series, delivery)
        try:
            self._send(series.results / delivery.file, delivery.to)
            self.spool.delivered(series, delivery)
        except Exception as error:  # noqa: BLE001 - one result's failure is its own
            is_away = isinstance(error, MedalsError) and error.code in _AWAY
            self._wait_longer(receiver if is_away else parcel)
            self.warn(f"{delivery.file} of {series.name} waits: {error}")
            return
        for each in (receiver, parcel):
            self._waits.pop(each, None)
        self.announce(f"sent {delivery.file} of {series.name} to {delivery.to}")

    def _send(self, file: Path, receiver: str) -> None:
        if is_web_address(receiver):
            store_files(receiver, [file], attempts=1)  # the courier has pauses of its own
        else:
            send_file(file, receiver, self.configuration)


def _names(series: SpooledSeries, delivery: Delivery) -> tuple[str, ...]:
    return series.name, delivery.file, delivery.to


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
    refused = ServerError(
        f"{receiver} doesn't take such objects ({data.SOPClassUID.name})", code="store-refused"
    )
    if association.rejected_contexts and not association.accepted_contexts:
        raise refused
    if not association.is_established:
        raise ServerError(
            f"{receiver} at {peer.host} port {peer.port} can't be reached or rejects "
            f"{configuration.title}",
            code="peer-unreachable",
        )
    try:
        status = association.send_c_store(data).get("Status")
    except ValueError as error:  # no presentation context for it was accepted
        raise refused from error
    finally:
        association.release()
    if status not in _STORED:
        shown = "no answer" if status is None else f"status 0x{status:04X}"
        raise ServerError(f"{receiver} did not store it ({shown})", code="store-refused")
